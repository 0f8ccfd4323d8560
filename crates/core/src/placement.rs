//! Where VMs go that have to leave a host.

use crate::{
    id::{HostId, VmId},
    units::ByteCount,
};

/// A VM that has to go somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// The VM.
    pub vm: VmId,
    /// Its memory.
    pub memory: ByteCount,
    /// Hosts that can take it as far as anything but memory is concerned.
    pub hosts: Vec<HostId>,
}

/// A host that VMs may go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The host.
    pub host: HostId,
    /// Memory that is free there.
    pub free: ByteCount,
}

/// A host for each VM, in the order of `leaving`: the largest choose first, each the host that has most memory left.
/// `None`: none has room.
pub fn spread(leaving: &[Leaving], rooms: &[Room]) -> Vec<Option<HostId>> {
    let mut rooms = rooms.to_vec();
    let mut order: Vec<usize> = (0..leaving.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(leaving[*index].memory));
    let mut chosen = vec![None; leaving.len()];
    for index in order {
        let vm = &leaving[index];
        let fits = |room: &&mut Room| vm.hosts.contains(&room.host) && room.free >= vm.memory;
        // Of equal rooms the first: the same question gets the same answer.
        let best = rooms.iter_mut().filter(fits).reduce(|best, room| if room.free > best.free { room } else { best });
        if let Some(room) = best {
            room.free = ByteCount(room.free.0 - vm.memory.0);
            chosen[index] = Some(room.host);
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn host(number: u8) -> HostId {
        HostId(Uuid::from_u128(u128::from(number)))
    }

    fn leaving(number: u8, mib: u64, hosts: &[u8]) -> Leaving {
        let hosts = hosts.iter().map(|number| host(*number)).collect();
        Leaving { vm: VmId(Uuid::from_u128(u128::from(number))), memory: ByteCount::mib(mib), hosts }
    }

    fn room(number: u8, mib: u64) -> Room {
        Room { host: host(number), free: ByteCount::mib(mib) }
    }

    #[test]
    fn the_largest_goes_where_most_is_free_and_others_where_they_can() {
        let vms =
            [leaving(1, 100, &[1, 2]), leaving(2, 900, &[1, 2]), leaving(3, 100, &[1]), leaving(4, 5000, &[1, 2])];
        let chosen = spread(&vms, &[room(1, 800), room(2, 1000)]);
        assert_eq!(chosen, [Some(host(1)), Some(host(2)), Some(host(1)), None]);
    }

    proptest! {
        #[test]
        fn no_host_is_filled_beyond_its_room(
            vms in prop::collection::vec((1..400u64, prop::collection::vec(0..3u8, 0..3)), 0..12),
            free in prop::collection::vec(0..1000u64, 3),
        ) {
            let vms: Vec<_> = vms.iter().map(|(mib, hosts)| leaving(0, *mib, hosts)).collect();
            let rooms: Vec<_> = free.iter().enumerate().map(|(number, mib)| room(number as u8, *mib)).collect();
            let chosen = spread(&vms, &rooms);
            for room in &rooms {
                let there = vms.iter().zip(&chosen).filter(|(_, chosen)| **chosen == Some(room.host));
                prop_assert!(there.clone().map(|(vm, _)| vm.memory.0).sum::<u64>() <= room.free.0);
                prop_assert!(there.clone().all(|(vm, _)| vm.hosts.contains(&room.host)));
            }
        }
    }
}
