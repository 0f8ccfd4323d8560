//! VMs that QEMU stopped because of an I/O error on a disk, and when they may continue.
//!
//! With `error_policy='stop'` QEMU stops the VM, keeps the failed request, and repeats it when the VM continues: the
//! guest sees only a delay. On the kernel's SMB client, a read past the page cache fails if the file server goes away
//! during it, whatever the mount options are (Linux 6.12, observed on stock hosts: `docs/shares.md`). Therefore each
//! restart of a file server stops VMs that only had to wait.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    id::VmId,
    share::AttachedShare,
    units::ByteCount,
    vm::{VmFacts, VmState},
};

/// Shortest time between two attempts to continue the same VM.
pub const PAUSE_MIN: Duration = Duration::from_secs(5);
/// Longest time. The time doubles for a VM that stops again at once.
pub const PAUSE_MAX: Duration = Duration::from_secs(60);
/// If a VM was not due for this long after its pause ended, it has run in between, or its share was unavailable.
const RAN: Duration = Duration::from_secs(10);

/// Free space on a share from which a VM that stopped for lack of space may continue.
pub const ROOM_MIN: ByteCount = ByteCount::mib(64);

/// Whether the reason why QEMU stopped a VM is over: each failed disk lies on a share that answers now, and that has
/// free space again if that was the reason. An error of any other disk is left to the administrator.
pub fn may_go_on(vm: &VmFacts, shares: &[AttachedShare]) -> bool {
    let Some(stall) = vm.stall.as_ref().filter(|stall| vm.state == VmState::Paused && !stall.devices.is_empty()) else {
        return false;
    };
    let has_room = |share: &AttachedShare| !stall.full || share.free.is_some_and(|free| free >= ROOM_MIN);
    stall.devices.iter().all(|device| {
        let file = vm.files.iter().find(|file| file.device == *device);
        let lies_on = file.and_then(|file| file.place.share());
        shares.iter().any(|share| Some(share.id) == lies_on && share.trouble.is_none() && has_room(share))
    })
}

/// When VMs were last continued: one that stops again at once is tried less and less often.
#[derive(Debug, Default)]
pub struct Tries(BTreeMap<VmId, Try>);

#[derive(Clone, Copy, Debug)]
struct Try {
    at: Duration,
    pause: Duration,
}

impl Tries {
    /// Whether this VM may be tried at `now`; if so, the try is recorded. Times are relative to any fixed moment.
    pub fn due(&mut self, vm: VmId, now: Duration) -> bool {
        self.0.retain(|_, last| now.saturating_sub(last.at) <= last.pause + RAN);
        let pause = match self.0.get(&vm) {
            Some(last) if now.saturating_sub(last.at) < last.pause => return false,
            Some(last) => (last.pause * 2).min(PAUSE_MAX),
            None => PAUSE_MIN,
        };
        self.0.insert(vm, Try { at: now, pause });
        true
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        fixtures::{attached, disk, vm},
        id::{HostId, ShareId},
        location::Location,
        vm::Stall,
    };

    #[test]
    fn only_a_vm_whose_share_answers_again_goes_on() {
        let on = |share| Location::Share { share: ShareId(Uuid::from_u128(share)), path: "web01/disk.raw".into() };
        let here = Location::Local { host: HostId(Uuid::from_u128(1)), path: "/var/lib/libvirt/images/own.raw".into() };
        let files = vec![disk("vda", on(5)), disk("vdb", on(6)), disk("vdc", here)];
        let away = AttachedShare { trouble: Some("it gave no answer".into()), ..attached(6) };
        let shares = [attached(5), away];
        let stalled = |devices: &[&str], full| VmFacts {
            state: VmState::Paused,
            stall: Some(Stall { devices: devices.iter().map(|device| (*device).to_owned()).collect(), full }),
            ..vm(1, files.clone())
        };
        assert!(may_go_on(&stalled(&["vda"], false), &shares));
        let with_room = |free| [AttachedShare { free: Some(ByteCount(free)), ..attached(5) }];
        assert!(may_go_on(&stalled(&["vda"], true), &with_room(ROOM_MIN.0)));
        assert!(!may_go_on(&stalled(&["vda"], true), &with_room(ROOM_MIN.0 - 1)));
        for (what, stays) in [
            ("its share is away", stalled(&["vdb"], false)),
            ("one of two is away", stalled(&["vda", "vdb"], false)),
            ("a disk of its host's own failed", stalled(&["vda", "vdc"], false)),
            ("it is not known whether its share is full still", stalled(&["vda"], true)),
            ("it is not known which disk", stalled(&[], false)),
            ("such a disk is not known", stalled(&["vdx"], false)),
            ("somebody paused it", VmFacts { stall: None, ..stalled(&["vda"], false) }),
            ("it runs", VmFacts { state: VmState::Running, ..stalled(&["vda"], false) }),
        ] {
            assert!(!may_go_on(&stays, &shares), "{what}");
        }
        assert!(!may_go_on(&stalled(&["vda"], false), &[]), "the share is not attached");
    }

    #[test]
    fn a_vm_that_stops_again_at_once_is_tried_ever_more_seldom() {
        let (mut tries, vm, other) = (Tries::default(), VmId(Uuid::from_u128(1)), VmId(Uuid::from_u128(2)));
        let due_at: Vec<u64> = (0..300).filter(|second| tries.due(vm, Duration::from_secs(*second))).collect();
        assert_eq!(due_at, [0, 5, 15, 35, 75, 135, 195, 255]);
        assert!(tries.due(other, Duration::from_secs(300)), "each VM has its own");
        // It stops again after it ran for a while: the pauses start over.
        for (second, is_due) in
            [(326, true), (330, false), (331, true), (340, false), (341, true), (372, true), (377, true)]
        {
            assert_eq!(tries.due(vm, Duration::from_secs(second)), is_due, "at {second} s");
        }
    }
}
