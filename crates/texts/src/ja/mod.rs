//! Japanese. Polite (です・ます), without a full stop at the end of a sentence, since sentences are put together.
//!
//! | English | here |
//! |---|---|
//! | VM, CPU, UUID, libvirt, QEMU, commands and options | as they are |
//! | host, share, job, agent, disk, snapshot | ホスト、共有、ジョブ、エージェント、ディスク、スナップショット |
//! | move, migration; live, offline | 移行、ライブ移行、オフライン移行; of disks on one host 移動 |
//! | source, destination | 移行元、移行先 |
//! | shut off, paused, stands still | 停止、一時停止、止まっている |
//! | switched over | 切り替わった |
//! | attach, detach (a share) | 接続、切断 |
//! | storage root, storage location | ストレージルート、ストレージの場所 |
//! | promised (memory) | 割り当て済み |
//! | enrolment token | 登録トークン |
//! | reaches (a place) | アクセスできる |
//! | drain | 退避 |
//! | attempt | 試行 |

mod fix;
mod job;
mod message;
mod title;

use std::fmt::Display;

use ferry_core::{
    finding::{Clauses, Fix, Fixes, Messages},
    id::{Generation, JobId},
    job::JobKind,
    job_text::{Counts, Remarks, Slots, StepTitle},
    migration::{Phase, Presence, Step},
    text::{AllOf, AnyOf, Jobs, List},
    units::ByteCount,
};

/// What can be said in Japanese: sentences and what stands in them.
pub(crate) trait Japanese {
    /// In Japanese.
    fn in_japanese(&self) -> String;
}

/// Makes a catalogue of an enum of `ferry-core`'s `texts!`: each sentence with its arguments, each in Japanese by its name.
macro_rules! catalogue {
    ($name:ty: $($variant:ident $({ $($field:ident),+ })? = $text:literal,)*) => {
        impl $crate::ja::Japanese for $name {
            fn in_japanese(&self) -> String {
                match self {
                    $(Self::$variant $({ $($field),+ })? => {
                        $($(let $field = $crate::ja::Japanese::in_japanese($field);)+)?
                        format!($text)
                    })*
                    Self::Unknown { .. } => self.to_string(),
                }
            }
        }
    };
}
use catalogue;

/// What is the same in every language.
macro_rules! as_it_is {
    ($($of:ty)*) => { $(impl Japanese for $of {
        fn in_japanese(&self) -> String {
            (self as &dyn Display).to_string()
        }
    })* };
}
as_it_is! { String u16 u32 u64 ByteCount JobId Generation }

impl<T: Japanese> Japanese for Box<T> {
    fn in_japanese(&self) -> String {
        T::in_japanese(self)
    }
}

impl Japanese for Fix {
    fn in_japanese(&self) -> String {
        match self {
            Self::Action(fix) => fix.in_japanese(),
            Self::Command(fix) => fix.in_japanese(),
            Self::ByHand(fix) => fix.in_japanese(),
        }
    }
}

/// How lists are put together: each item, and what stands between two.
macro_rules! joined {
    ($($name:ty = $each:literal, $between:literal;)*) => { $(impl Japanese for $name {
        fn in_japanese(&self) -> String {
            self.0.iter().map(|item| format!($each, item.in_japanese())).collect::<Vec<_>>().join($between)
        }
    })* };
}
joined! {
    List = "{}", "、";
    AllOf = "{}", " と ";
    AnyOf = "{}", " または ";
    Jobs = "ジョブ {}", "と";
    Messages = "{}", "。";
    Clauses = "{}", "、";
    Fixes = "{}", "。また、";
    Slots = "{}", "と";
    Remarks = "{}", "。";
}

impl Japanese for Counts {
    fn in_japanese(&self) -> String {
        match self.0.is_empty() {
            true => String::new(),
            false => {
                let counts: Vec<String> = self.0.iter().map(Japanese::in_japanese).collect();
                format!("（{}）", counts.join("、"))
            }
        }
    }
}

impl Japanese for StepTitle {
    fn in_japanese(&self) -> String {
        let title = match (self.kind, self.step) {
            (JobKind::Storage, Step::Preflight) => "ホストの確認",
            (JobKind::Storage | JobKind::Offline, Step::PrepareDestination) => "新しいファイルの作成",
            (JobKind::Storage, Step::Perform) => "コピーと切り替え",
            (JobKind::Storage, Step::Confirm) => "古いファイルの削除",
            (JobKind::Offline, Step::PrepareSource) => "移行元での VM の保持",
            (JobKind::Offline, Step::Perform) => "ファイルのコピーと移行先での定義",
            (JobKind::Offline, Step::Confirm) => "移行元の定義とファイルの削除",
            (JobKind::LiveVsm, Step::PrepareDestination) => "新しいファイルの作成と移行先の準備",
            (JobKind::LiveVsm, Step::Perform) => "ディスクのコピー、メモリと状態の移行",
            (JobKind::LiveVsm, Step::Confirm) => "古いファイルの削除と確定",
            (_, Step::Preflight) => "両方のホストの確認",
            (_, Step::Reserve) => "VM の予約",
            (_, Step::PrepareDestination) => "移行先の準備",
            (_, Step::PrepareSource) => "移行元の準備",
            (_, Step::Perform) => "メモリと状態の移行",
            (_, Step::Resume) => "移行先での再開",
            (_, Step::Confirm) => "移行元での確定",
            (_, Step::Release) => "後始末",
        };
        title.to_owned()
    }
}

impl Japanese for Phase {
    fn in_japanese(&self) -> String {
        let phase = match self {
            Self::Queued => "待機中",
            Self::Preparing => "準備中",
            Self::Migrating => "移行中",
            Self::Completing => "完了処理中",
            Self::RollingBack => "取り消し処理中",
            Self::Succeeded => "成功",
            Self::Cancelled => "キャンセル済み",
            Self::Failed => "失敗",
            Self::Stuck => "停滞中",
        };
        phase.to_owned()
    }
}

impl Japanese for Presence {
    fn in_japanese(&self) -> String {
        let presence = match self {
            Self::Running => "動作中",
            Self::Paused => "一時停止中",
            Self::Stopped => "失敗した移行のために停止中",
            Self::Halted => "ゲストがクラッシュまたはサスペンド",
            Self::HandedOver => "送信済みで結果を待機中",
            Self::Left => "送信済みで libvirt が管理していない状態",
            Self::Receiving => "受信中",
            Self::Arrived => "受信を完了して一時停止中",
            Self::Off => "停止",
            Self::Ended => "動作を続けた後に停止",
            Self::Absent => "なし",
            Self::Unknown => "不明",
        };
        presence.to_owned()
    }
}
