//! What was attempted, in Japanese.

use ferry_core::api::problem::Title;

use super::catalogue;

catalogue! { Title:
    Text { text } = "{text}",
    AddHost { host } = "ホスト {host} を追加できませんでした",
    ShowHost { host } = "ホスト {host} を表示できませんでした",
    SetLimits { host } = "ホスト {host} の上限を設定できませんでした",
    DrainHost { host } = "ホスト {host} を退避できませんでした",
    ResumeHost { host } = "ホスト {host} のメンテナンスを終了できませんでした",
    RemoveHost { host } = "ホスト {host} を削除できませんでした",
    BrowseHost { host } = "ホスト {host} の場所を参照できませんでした",
    AddStorage { host } = "ホスト {host} にストレージの場所を追加できませんでした",
    RemoveStorage { host } = "ホスト {host} のストレージの場所を削除できませんでした",
    AddShare { share } = "共有 {share} を追加できませんでした",
    ShowShare { share } = "共有 {share} を表示できませんでした",
    RemoveShare { share } = "共有 {share} を削除できませんでした",
    AttachShare { share, host } = "共有 {share} をホスト {host} に接続できませんでした",
    DetachShare { share, host } = "共有 {share} をホスト {host} から切断できませんでした",
    ShowVm { vm } = "VM {vm} を表示できませんでした",
    StartVm { vm } = "VM {vm} を起動できませんでした",
    ShutDownVm { vm } = "VM {vm} を停止できませんでした",
    FindHosts { vm } = "VM {vm} の移行先になるホストを調べられませんでした",
    MoveVm { vm, host } = "VM {vm} を {host} へ移行できませんでした",
    MoveVms { count, host } = "{count} 台の VM を {host} へ移行できませんでした",
    MoveDisks { vm } = "VM {vm} のディスクを移動できませんでした",
    ShowJob { job } = "ジョブ {job} を表示できませんでした",
    CancelJob { job } = "ジョブ {job} をキャンセルできませんでした",
    RestartJob { job } = "ジョブ {job} を再実行できませんでした",
    RetryJob { job } = "ジョブ {job} を再試行できませんでした",
    UndoJob { job } = "ジョブ {job} を取り消せませんでした",
    DismissJob { job } = "ジョブ {job} を打ち切れませんでした",
    NotWellFormed = "要求の形式が正しくありません",
    NotDone = "要求は実行されませんでした",
    NotAuthorised = "要求が認証されていません",
    DatabaseFailed = "サーバーのデータベースでエラーが発生しました",
}
