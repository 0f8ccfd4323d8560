//! Chooses hosts for VMs that must leave a host, or that move together.

use crate::{
    id::{HostId, VmId},
    memory::{Need, Stock},
};

/// A VM that needs a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// The VM.
    pub vm: VmId,
    /// The memory it needs.
    pub need: Need,
    /// Hosts that can take it, apart from the memory that the other leaving VMs take.
    pub hosts: Vec<HostId>,
}

/// A host that may receive VMs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// The host.
    pub host: HostId,
    /// Available memory there.
    pub stock: Stock,
}

/// The destination of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The host.
    pub host: HostId,
    /// The host's memory may not suffice for all VMs that go there; the user accepts that.
    pub beyond: bool,
}

/// A host for each VM, in the order of `leaving`: the largest VM chooses first, and takes the host with most available
/// memory of the kind it needs. `None`: no host has enough. With `overcommit`, VMs that found too little plain memory
/// are placed last, in spite of it; huge pages must suffice, or QEMU does not start.
pub fn spread(leaving: &[Leaving], rooms: &[Room], overcommit: bool) -> Vec<Option<Chosen>> {
    let mut rooms = rooms.to_vec();
    let mut order: Vec<usize> = (0..leaving.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(leaving[*index].need.bytes));
    let mut chosen = vec![None; leaving.len()];
    let fits = order.iter().map(|index| (*index, false));
    let takes = order.iter().filter(|_| overcommit).map(|index| (*index, true));
    for (index, beyond) in fits.chain(takes) {
        let Leaving { need, hosts, .. } = &leaving[index];
        if chosen[index].is_some() || (beyond && need.page.is_some()) {
            continue;
        }
        let may = |room: &&mut Room| hosts.contains(&room.host);
        // Among equal hosts the first one, so that the same input gives the same result.
        let most = |best: &mut Room, room: &mut Room| room.stock.open(need) > best.stock.open(need);
        let best = rooms.iter_mut().filter(may).reduce(|best, room| if most(best, room) { room } else { best });
        let Some(room) = best else { continue };
        if beyond || room.stock.open(need) >= need.bytes {
            room.stock.take(need);
            chosen[index] = Some(Chosen { host: room.host, beyond });
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::{
        fixtures,
        host::{HostFacts, HugePages},
        units::ByteCount,
    };

    fn host(number: u8) -> HostId {
        HostId(Uuid::from_u128(u128::from(number)))
    }

    fn leaving(number: u8, mib: u64, page_mib: Option<u64>, hosts: &[u8]) -> Leaving {
        let hosts = hosts.iter().map(|number| host(*number)).collect();
        let need = Need { page: page_mib.map(ByteCount::mib), bytes: ByteCount::mib(mib) };
        Leaving { vm: VmId(Uuid::from_u128(u128::from(number))), need, hosts }
    }

    /// The default huge page size is 2 MiB.
    fn room(number: u8, mib: u64, huge_mib: &[(u64, u64)]) -> Room {
        let pages =
            |&(size, mib): &(u64, u64)| HugePages { size: ByteCount::mib(size), free: mib / size, usual: size == 2 };
        let huge_pages = huge_mib.iter().map(pages).collect();
        let facts = HostFacts { memory_free: ByteCount::mib(mib), huge_pages, ..fixtures::host("kvm2") };
        Room { host: host(number), stock: Stock::of(&facts, &[]) }
    }

    fn at(number: u8) -> Option<Chosen> {
        Some(Chosen { host: host(number), beyond: false })
    }

    fn beyond(number: u8) -> Option<Chosen> {
        Some(Chosen { host: host(number), beyond: true })
    }

    #[test]
    fn the_largest_goes_where_most_is_free_and_others_where_they_can() {
        let vm = |number, mib, hosts: &[u8]| leaving(number, mib, None, hosts);
        let vms = [vm(1, 100, &[1, 2]), vm(2, 900, &[1, 2]), vm(3, 100, &[1]), vm(4, 5000, &[1, 2]), vm(5, 1, &[])];
        let rooms = [room(1, 800, &[]), room(2, 1000, &[])];
        assert_eq!(spread(&vms, &rooms, false), [at(1), at(2), at(1), None, None]);
        assert_eq!(spread(&vms, &rooms, true), [at(1), at(2), at(1), beyond(1), None], "those that fit come first");
    }

    #[test]
    fn what_the_earlier_ones_take_of_huge_pages_is_gone_for_the_later() {
        let big = |number, hosts: &[u8]| leaving(number, 1024, Some(2), hosts);
        let usual = |number| leaving(number, 1024, Some(0), &[1, 2]);
        let giant = |number| leaving(number, 1024, Some(1024), &[1, 2]);
        let plain = |number, mib| leaving(number, mib, None, &[1]);
        for (row, vms, rooms, overcommit, expected) in [
            (
                "two fit on one host, the third does not",
                vec![big(1, &[1]), big(2, &[1]), big(3, &[1])],
                vec![room(1, 9999, &[(2, 2500)])],
                false,
                vec![at(1), at(1), None],
            ),
            (
                "it goes where pages are left",
                vec![big(1, &[1, 2]), big(2, &[1, 2]), big(3, &[1, 2])],
                vec![room(1, 0, &[(2, 2500)]), room(2, 9999, &[(2, 1024)])],
                false,
                vec![at(1), at(1), at(2)],
            ),
            (
                "of the usual size, whether they name it or not",
                vec![big(1, &[1]), usual(2)],
                vec![room(1, 9999, &[(2, 1500)]), room(2, 9999, &[(1024, 9999)])],
                false,
                vec![at(1), None],
            ),
            (
                "sizes are apart",
                vec![big(1, &[1]), giant(2), giant(3)],
                vec![room(1, 9999, &[(2, 1024), (1024, 1024)])],
                false,
                vec![at(1), at(1), None],
            ),
            (
                "nobody can take it that they are missing",
                vec![big(1, &[1]), big(2, &[1])],
                vec![room(1, 9999, &[(2, 1024)])],
                true,
                vec![at(1), None],
            ),
            (
                "QEMU's own memory is plain",
                vec![big(1, &[1]), plain(2, 900)],
                vec![room(1, 1000, &[(2, 1024)])],
                false,
                vec![at(1), None],
            ),
        ] {
            assert_eq!(spread(&vms, &rooms, overcommit), expected, "{row}");
        }
    }

    proptest! {
        #[test]
        fn no_host_is_filled_beyond_its_room_unless_somebody_takes_that(
            vms in prop::collection::vec((1..400u64, any::<bool>(), prop::collection::vec(0..3u8, 0..3)), 0..12),
            free in prop::collection::vec((0..1000u64, 0..1000u64), 3),
            overcommit in any::<bool>(),
        ) {
            let page = |huge: bool| huge.then_some(2);
            let vms: Vec<_> = vms.iter().map(|(mib, huge, hosts)| leaving(0, *mib, page(*huge), hosts)).collect();
            let rooms: Vec<_> =
                free.iter().enumerate().map(|(number, (mib, huge))| room(number as u8, *mib, &[(2, *huge)])).collect();
            let chosen = spread(&vms, &rooms, overcommit);
            for room in &rooms {
                for page in [None, Some(ByteCount::mib(2))] {
                    let there = vms.iter().zip(&chosen).filter(|(vm, chosen)| {
                        vm.need.page == page && chosen.is_some_and(|chosen| chosen.host == room.host && !chosen.beyond)
                    });
                    let open = room.stock.open(&Need { page, bytes: ByteCount(0) });
                    prop_assert!(there.map(|(vm, _)| vm.need.bytes.0).sum::<u64>() <= open.0);
                }
            }
            for (vm, chosen) in vms.iter().zip(&chosen) {
                prop_assert!(chosen.is_none_or(|chosen| vm.hosts.contains(&chosen.host)));
                prop_assert!(chosen.is_none_or(|chosen| !chosen.beyond || (overcommit && vm.need.page.is_none())));
                prop_assert!(chosen.is_some() || !overcommit || vm.need.page.is_some() || vm.hosts.is_empty());
            }
        }
    }
}
