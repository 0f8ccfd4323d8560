//! Whether both hosts reach the shares of a VM, see the same content, and can hand over files on them.

use std::collections::BTreeSet;

use super::facts::{LiveFacts, ShareIdentity, Side};
use crate::{
    finding::{Finding, FindingId},
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
    what: &str,
    share: ShareId,
    findings: &mut Vec<Finding>,
) {
    let name = facts.share_name(share);
    for side in [&facts.source, &facts.destination] {
        match side.attached(share) {
            None if side.reachable => findings.push(Finding::blocks(
                FindingId::ShareNotAttached,
                object,
                format!(
                    "{what} on share {name}, and host {} does not reach it: the share is not attached on it",
                    side.name
                ),
                format!("Attach the share: `ferry share attach {name} --host {}`", side.name),
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
    let (id, fix) = match finding {
        Some(finding) => (finding.id, finding.fix.clone()),
        None => (
            FindingId::ShareUnreachable,
            format!("See that the share works on {host}; if it was mounted otherwise, attach it again"),
        ),
    };
    Finding::blocks(id, share, format!("Host {host} cannot use share {share}: {trouble}"), fix)
}

/// Warns of shares among the places whose mount on a host passes I/O errors to the guest while the file server is down.
pub fn soft_shares<'a>(side: &Side<'_>, places: impl Iterator<Item = &'a Location>) -> Vec<Finding> {
    let used: BTreeSet<ShareId> = places.filter_map(Location::share).collect();
    let soft = side.shares.iter().filter(|share| share.soft && used.contains(&share.id));
    let warn = |share: &AttachedShare| {
        Finding::warns(
            FindingId::ShareSoft,
            &share.source,
            format!(
                "{} is mounted without `hard` on {}: guests see errors while its file server is away",
                share.source, side.name
            ),
            format!("Mount it anew with `-o hard` on {}, or let Ferry mount it", side.name),
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
        let fix = match share.mode {
            // A defined VM that is shut off keeps the share attached, so detaching is not the fix to suggest.
            AttachMode::Mounted => format!(
                "Shut down the VMs on {} that use it: as soon as none does, Ferry mounts it anew there, with `nobrl`",
                side.name
            ),
            AttachMode::Adopted => format!(
                "Stop the VMs that use it on {}, unmount it there, and mount it again with `-o nobrl` besides its other \
                 options; `-o remount,nobrl` changes nothing for files that are open",
                side.name
            ),
        };
        Finding::blocks(
            FindingId::ShareLocks,
            &share.source,
            format!(
                "{} is mounted without `nobrl` on {}: QEMU's locks become the file server's, and a VM that is moved could \
                 not run again",
                share.source, side.name
            ),
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
        let told = findings.iter().any(|finding| finding.id == FindingId::ShareLocks);
        match facts.share_identity.get(&share) {
            None | Some(ShareIdentity::Proven) => {}
            Some(ShareIdentity::Different) => findings.push(not_same(&name, source, destination)),
            Some(ShareIdentity::LocksFail(_)) if told || !handed_over.contains(&share) => {}
            Some(ShareIdentity::LocksFail(why)) => findings.push(Finding::blocks(
                FindingId::ShareLocks,
                &name,
                format!(
                    "QEMU on {destination} could not take over from QEMU on {source} what lies on share {name}: {why}"
                ),
                format!(
                    "Look at the mount options of the share on {source} and {destination} (for SMB: `nobrl`), then attach \
                     it again"
                ),
            )),
            Some(ShareIdentity::NotProven(why)) => findings.push(Finding::blocks(
                FindingId::ShareNotSame,
                &name,
                format!("Whether {source} and {destination} see the same share {name} could not be shown: {why}"),
                "See that the share can be written from both hosts, then try again",
            )),
        }
    }
}

/// The finding for two mounts that are not the same share.
pub fn not_same(share: &str, one: &str, other: &str) -> Finding {
    Finding::blocks(
        FindingId::ShareNotSame,
        share,
        format!(
            "A file that {one} wrote on share {share} is not there for {other}: two different shares stand behind one name"
        ),
        "Check what the server's name resolves to on both hosts, and what is mounted at an adopted path",
    )
}
