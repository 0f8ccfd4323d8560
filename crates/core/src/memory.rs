//! Whether the destination has enough memory for a VM, after what was promised to other moves.
//!
//! | the VM | needs | from the host's | |---|---|---| | default | what its guest has now | memory available to QEMU
//! (`MemAvailable`), less what is promised | | with a balloon | the same; a warning if the guest's maximum would not
//! fit | the same | | in huge pages | all of it, in pages of that size | free pages of that size, less what is promised
//! |
//!
//! QEMU takes plain memory as pages arrive, so the kernel still shows as free what running moves will fill: the part
//! that was promised to moves and is not filled yet is subtracted.

use serde::{Deserialize, Serialize};

use crate::{
    finding::{Action, Command, Finding, FindingId, Fix, Message, Severity},
    host::{HostFacts, HugePages},
    units::ByteCount,
    vm::VmFacts,
};

/// What QEMU itself needs besides the guest's memory: measured, 60 to 100 MiB.
pub const MARGIN: ByteCount = ByteCount::mib(128);

/// An amount of memory of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    /// The size of its huge pages; `None`: plain memory, with [`MARGIN`].
    pub page: Option<ByteCount>,
    /// The amount.
    pub bytes: ByteCount,
}

/// The memory that a VM takes at its destination.
pub fn need(vm: &VmFacts) -> Need {
    match vm.huge_page {
        Some(page) => Need { page: Some(page), bytes: vm.memory },
        None => Need { page: None, bytes: plus_margin(guest_now(vm)) },
    }
}

fn guest_now(vm: &VmFacts) -> ByteCount {
    vm.memory_now.map_or(vm.memory, |now| now.min(vm.memory))
}

fn plus_margin(bytes: ByteCount) -> ByteCount {
    ByteCount(bytes.0.saturating_add(MARGIN.0))
}

/// How much of the promised memory a move has taken so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// Guest memory that has been received.
    pub memory: ByteCount,
    /// Whether the receiving process exists: libvirt makes it take all its huge pages at its start (`prealloc`).
    pub receives: bool,
}

/// The part of a need that the destination's kernel still shows as free.
pub fn left(need: Need, arrived: Arrived) -> Need {
    let bytes = match need.page {
        Some(_) if arrived.receives => 0,
        Some(_) => need.bytes.0,
        None => need.bytes.0.saturating_sub(arrived.memory.0),
    };
    Need { bytes: ByteCount(bytes), ..need }
}

/// The page size of a need; the host's default size where the VM names none.
fn page_of(host: &HostFacts, need: &Need) -> Option<ByteCount> {
    let usual = || host.huge_pages.iter().find(|pages| pages.usual).map_or(ByteCount(0), |pages| pages.size);
    need.page.map(|page| if page.0 == 0 { usual() } else { page })
}

/// The free memory of one kind on a host, and how much of it is promised.
fn free(host: &HostFacts, page: Option<ByteCount>, promised: &[Need]) -> (ByteCount, ByteCount) {
    let all = match page {
        None => host.memory_free,
        Some(_) => {
            let of_size = host.huge_pages.iter().filter(|pages| Some(pages.size) == page);
            ByteCount(of_size.map(|pages| pages.size.0.saturating_mul(pages.free)).fold(0, u64::saturating_add))
        }
    };
    let same = |need: &&Need| page_of(host, need) == page;
    let taken = promised.iter().filter(same).map(|need| need.bytes.0);
    (all, ByteCount(taken.fold(0, u64::saturating_add)))
}

/// Memory of each kind that is free on a host and not promised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stock {
    plain: ByteCount,
    huge: Vec<Huge>,
}

/// Huge pages of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Huge {
    page: ByteCount,
    open: ByteCount,
    usual: bool,
}

impl Huge {
    /// Whether a VM that asks for pages of this size gets these; zero means the default size.
    fn is(&self, page: ByteCount) -> bool {
        if page.0 == 0 { self.usual } else { self.page == page }
    }
}

impl Stock {
    /// The memory of a host, less what is promised.
    pub fn of(host: &HostFacts, promised: &[Need]) -> Self {
        let open = |page| {
            let (free, promised) = free(host, page, promised);
            ByteCount(free.0.saturating_sub(promised.0))
        };
        let huge = |pages: &HugePages| Huge { page: pages.size, open: open(Some(pages.size)), usual: pages.usual };
        Self { plain: open(None), huge: host.huge_pages.iter().map(huge).collect() }
    }

    /// The amount available of the needed kind.
    pub fn open(&self, need: &Need) -> ByteCount {
        match need.page {
            None => self.plain,
            Some(page) => self.huge.iter().find(|huge| huge.is(page)).map_or(ByteCount(0), |huge| huge.open),
        }
    }

    /// Takes the needed amount, or what is left of it. QEMU's own memory is plain even if the guest's is in huge pages.
    pub fn take(&mut self, need: &Need) {
        let less = |open: &mut ByteCount, bytes: ByteCount| open.0 = open.0.saturating_sub(bytes.0);
        match need.page {
            None => less(&mut self.plain, need.bytes),
            Some(page) => {
                less(&mut self.plain, MARGIN);
                if let Some(huge) = self.huge.iter_mut().find(|huge| huge.is(page)) {
                    less(&mut huge.open, need.bytes);
                }
            }
        }
    }
}

/// What the memory of host `name` has against the VM. With `overcommit`, a lack of plain memory is only reported.
pub fn findings(vm: &VmFacts, name: &str, host: &HostFacts, promised: &[Need], overcommit: bool) -> Vec<Finding> {
    let need = need(vm);
    let page = page_of(host, &need);
    let (free, promised) = free(host, page, promised);
    let open = free.0.saturating_sub(promised.0);
    let host = name.to_owned();
    let has = match promised.0 {
        0 => Message::HostHasFree { host, free }.into(),
        _ => Message::HostHasFreePromised { host, free, promised }.into(),
    };
    let (vm_name, now, most) = (vm.name.clone(), guest_now(vm), vm.memory);
    let (may_block, message, fix): (bool, _, Fix) = if need.bytes.0 > open {
        match page {
            // QEMU does not start without them.
            Some(page) => {
                let message = Message::VmNeedsHugePages { vm: vm_name, memory: most, page, has };
                return vec![Finding::blocks(FindingId::HostMemory, name, message, Command::SetHugePages)];
            }
            None => {
                let message = Message::VmNeedsMemory { vm: vm_name, needs: need.bytes, now, margin: MARGIN, has };
                (true, message, Action::FreeMemory.into())
            }
        }
    } else if page.is_none() && plus_margin(most).0 > open {
        (false, Message::VmMayNeedMemory { vm: vm_name, now, most, has }, Action::KeepBalloon.into())
    } else {
        return Vec::new();
    };
    let severity = if may_block && !overcommit { Severity::Blocks } else { Severity::Warns };
    vec![Finding { severity, ..Finding::warns(FindingId::HostMemory, name, message, fix) }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{finding::Severity, fixtures};

    fn host(free_mib: u64, huge: &[(u64, u64)]) -> HostFacts {
        let huge_pages = huge
            .iter()
            .map(|(mib, free)| HugePages { size: ByteCount::mib(*mib), free: *free, usual: *mib == 2 })
            .collect();
        HostFacts { memory_free: ByteCount::mib(free_mib), huge_pages, ..fixtures::host("kvm2") }
    }

    fn vm(mib: u64, now: Option<u64>, page: Option<u64>) -> VmFacts {
        let (memory_now, huge_page) = (now.map(ByteCount::mib), page.map(ByteCount::mib));
        VmFacts { memory: ByteCount::mib(mib), memory_now, huge_page, ..fixtures::vm(1, Vec::new()) }
    }

    fn promise(mib: u64, page: Option<u64>) -> Need {
        Need { page: page.map(ByteCount::mib), bytes: ByteCount::mib(mib) }
    }

    #[test]
    fn memory_is_judged_for_what_it_is() {
        use Severity::{Blocks, Warns};
        let plain = || vm(1024, None, None);
        let (ballooned, huge) = (vm(8192, Some(1024), None), vm(1024, None, Some(2)));
        let usual = vm(1024, None, Some(0));
        for (row, vm, host, promised, overcommit, expected) in [
            ("it fits", plain(), host(1152, &[]), vec![], false, None),
            ("it does not", plain(), host(1151, &[]), vec![], false, Some(Blocks)),
            ("somebody takes that", plain(), host(1151, &[]), vec![], true, Some(Warns)),
            ("promised to another", plain(), host(2048, &[]), vec![promise(1024, None)], false, Some(Blocks)),
            ("promised of another kind", plain(), host(2048, &[]), vec![promise(1024, Some(2))], false, None),
            ("more promised than there is", plain(), host(64, &[]), vec![promise(1024, None)], false, Some(Blocks)),
            ("a balloon, with all room", ballooned.clone(), host(8320, &[]), vec![], false, None),
            ("a balloon, with room for now", ballooned.clone(), host(1152, &[]), vec![], false, Some(Warns)),
            ("a balloon, without", ballooned, host(1100, &[]), vec![], false, Some(Blocks)),
            ("huge pages, and no other memory", huge.clone(), host(16, &[(2, 512)]), vec![], false, None),
            ("huge pages of another size", huge.clone(), host(9999, &[(1024, 9)]), vec![], false, Some(Blocks)),
            ("too few huge pages", huge.clone(), host(9999, &[(2, 511)]), vec![], false, Some(Blocks)),
            ("huge pages as usual there", usual.clone(), host(16, &[(1024, 0), (2, 512)]), vec![], false, None),
            ("too few of the usual", usual, host(16, &[(1024, 9), (2, 511)]), vec![], false, Some(Blocks)),
            ("they cannot be overcommitted", huge.clone(), host(9999, &[(2, 511)]), vec![], true, Some(Blocks)),
            ("promised huge pages", huge, host(16, &[(2, 600)]), vec![promise(256, Some(2))], false, Some(Blocks)),
        ] {
            let found = findings(&vm, "kvm2", &host, &promised, overcommit);
            assert_eq!(found.first().map(|finding| finding.severity), expected, "{row}: {found:?}");
        }
        let finding = &findings(&plain(), "kvm2", &host(1500, &[]), &[promise(700, None)], false)[0];
        for words in ["web01", "1.1 GiB", "1.0 GiB", "kvm2 has 1.5 GiB free", "700.0 MiB are promised to other moves"] {
            assert!(finding.message.to_string().contains(words), "{words}: {finding:?}");
        }
    }

    #[test]
    fn what_has_arrived_is_not_promised_any_more() {
        let (plain, huge) = (need(&vm(1024, None, None)), need(&vm(1024, None, Some(2))));
        for (row, need, memory, receives, expected) in [
            ("nothing has", plain, 0, false, 1152),
            ("the process is there, and takes pages as they come", plain, 0, true, 1152),
            ("most of it has", plain, 1000, true, 152),
            ("more than was promised has", plain, 9999, true, 0),
            ("huge pages are taken when the process starts", huge, 0, false, 1024),
            ("all of them at once", huge, 0, true, 0),
        ] {
            let arrived = Arrived { memory: ByteCount::mib(memory), receives };
            assert_eq!(left(need, arrived).bytes, ByteCount::mib(expected), "{row}");
        }
    }

    #[test]
    fn a_stock_has_each_kind_by_itself_and_gives_no_more_than_there_is() {
        let host = host(1000, &[(2, 512), (1024, 4)]);
        let stock = Stock::of(&host, &[promise(300, None), promise(1000, Some(2)), promise(8, Some(0))]);
        let open = |stock: &Stock| {
            [None, Some(2), Some(0), Some(1024), Some(64)].map(|page| stock.open(&promise(1, page)).0 >> 20)
        };
        assert_eq!(open(&stock), [700, 16, 16, 4096, 0], "a page of no size is of the usual one");
        for (row, need, expected) in [
            ("plain", promise(100, None), [600, 16, 16, 4096, 0]),
            ("of a size", promise(1024, Some(1024)), [572, 16, 16, 3072, 0]),
            ("as usual", promise(10, Some(0)), [572, 6, 6, 4096, 0]),
            ("of a size that is not there", promise(10, Some(64)), [572, 16, 16, 4096, 0]),
            ("more than there is", promise(9000, Some(2)), [572, 0, 0, 4096, 0]),
        ] {
            let mut stock = stock.clone();
            stock.take(&need);
            assert_eq!(open(&stock), expected, "{row}");
        }
    }
}
