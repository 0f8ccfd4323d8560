//! Whether both hosts reach the shares of a VM, see the same content, and can hand over files on them.

use std::collections::BTreeSet;

use super::facts::{LiveFacts, ShareIdentity, Side};
use crate::{
    finding::{Action, ByHand, Command, Finding, FindingId, Fix, Message},
    id::ShareId,
    location::Location,
    share::{AttachMode, AttachedShare},
    vm::{VmFacts, VmFile},
};

/// Whether a host can use files at a location, as far as is known.
pub fn reaches(side: &Side<'_>, place: &Location) -> bool {
    side.usable(place).is_some()
}

/// The shares that a VM's files lie on.
pub fn shares_of(vm: &VmFacts) -> BTreeSet<ShareId> {
    vm.files.iter().flat_map(VmFile::places).filter_map(Location::share).collect()
}

/// A file on a share needs that share on both hosts. `what` describes the file.
pub(super) fn share_reach(
    facts: &LiveFacts<'_>,
    object: &str,
    what: &Message,
    share: ShareId,
    findings: &mut Vec<Finding>,
) {
    let name = facts.share_name(share);
    for side in [&facts.source, &facts.destination] {
        match side.attached(share) {
            None if side.reachable => findings.push(Finding::blocks(
                FindingId::ShareNotAttached,
                object,
                Message::FileShareNotAttached {
                    what: what.clone().into(),
                    share: name.clone(),
                    host: side.name.to_owned(),
                },
                Action::AttachShare { share: name.clone(), host: side.name.to_owned() },
            )),
            Some(AttachedShare { trouble: Some(trouble), finding, .. }) => {
                let finding = share_in_trouble(&name, side.name, trouble, finding.as_ref());
                // One finding for all files on the share.
                if !findings.contains(&finding) {
                    findings.push(finding);
                }
            }
            None | Some(AttachedShare { trouble: None, .. }) => {}
        }
    }
}

/// The finding for an attached share that a host cannot use, with its agent's message.
fn share_in_trouble(share: &str, host: &str, trouble: &str, finding: Option<&Finding>) -> Finding {
    let host = host.to_owned();
    let (id, why, fix): (_, _, Fix) = match finding {
        Some(finding) => (finding.id, finding.message.clone(), finding.fix.clone()),
        None => {
            let why = Message::Verbatim { text: trouble.to_owned() };
            (FindingId::ShareUnreachable, why, ByHand::SeeThatShareWorks { host: host.clone() }.into())
        }
    };
    Finding::blocks(id, share, Message::ShareUnusable { share: share.to_owned(), host, why: why.into() }, fix)
}

/// Warns of shares among the places whose mount on a host passes I/O errors to the guest while the file server is down.
pub fn soft_shares<'a>(side: &Side<'_>, places: impl Iterator<Item = &'a Location>) -> Vec<Finding> {
    let used: BTreeSet<ShareId> = places.filter_map(Location::share).collect();
    let soft = side.shares.iter().filter(|share| share.soft && used.contains(&share.id));
    let warn = |share: &AttachedShare| {
        Finding::warns(
            FindingId::ShareSoft,
            &share.source,
            Message::ShareSoft { share: share.source.to_string(), host: side.name.to_owned() },
            Command::MountHard { host: side.name.to_owned() },
        )
    };
    soft.map(warn).collect()
}

/// Finds shares among `used` whose mount on a host turns QEMU's locks into locks of the file server. With such a mount,
/// a running QEMU cannot write the regions that it has locked itself once a second host has opened the file, as a move
/// does.
pub(super) fn server_locks(side: &Side<'_>, used: &BTreeSet<ShareId>) -> Vec<Finding> {
    let bad = side.shares.iter().filter(|share| share.server_locks && used.contains(&share.id));
    let block = |share: &AttachedShare| {
        let host = side.name.to_owned();
        let fix: Fix = match share.mode {
            // A defined VM that is shut off keeps the share attached, so detaching is not the fix to suggest.
            AttachMode::Mounted => ByHand::ShutDownUsers { host }.into(),
            AttachMode::Adopted => Command::MountNobrl { host }.into(),
        };
        Finding::blocks(
            FindingId::ShareLocks,
            &share.source,
            Message::ShareServerLocks { share: share.source.to_string(), host: side.name.to_owned() },
            fix,
        )
    };
    bad.map(block).collect()
}

/// Both hosts must have proved that they see the same content on each share, and that a VM can be handed over there.
pub(super) fn identity(facts: &LiveFacts<'_>, handed_over: &BTreeSet<ShareId>, findings: &mut Vec<Finding>) {
    let (source, destination) = (facts.source.name, facts.destination.name);
    for share in shares_of(facts.vm) {
        let name = facts.share_name(share);
        // Reported already, with the reason.
        let is_known = findings.iter().any(|finding| finding.id == FindingId::ShareLocks);
        match facts.share_identity.get(&share) {
            None | Some(ShareIdentity::Proven) => {}
            Some(ShareIdentity::Different) => findings.push(not_same(&name, source, destination)),
            Some(ShareIdentity::LocksFail(_)) if is_known || !handed_over.contains(&share) => {}
            Some(ShareIdentity::LocksFail(why)) => findings.push(Finding::blocks(
                FindingId::ShareLocks,
                &name,
                Message::ShareLocksFail {
                    share: name.clone(),
                    source: source.to_owned(),
                    destination: destination.to_owned(),
                    why: why.clone().into(),
                },
                Command::LookAtMounts { source: source.to_owned(), destination: destination.to_owned() },
            )),
            Some(ShareIdentity::NotProven(why)) => findings.push(Finding::blocks(
                FindingId::ShareNotSame,
                &name,
                Message::ShareNotProven {
                    share: name.clone(),
                    source: source.to_owned(),
                    destination: destination.to_owned(),
                    why: why.clone().into(),
                },
                ByHand::SeeThatShareIsWritable,
            )),
        }
    }
}

/// The finding for two mounts that are not the same share.
pub fn not_same(share: &str, one: &str, other: &str) -> Finding {
    Finding::blocks(
        FindingId::ShareNotSame,
        share,
        Message::ShareNotSame { share: share.to_owned(), one: one.to_owned(), other: other.to_owned() },
        ByHand::CheckWhatIsMounted,
    )
}
