//! What the channels of one end have carried.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use ferry_core::carried::{Carried, Stages, Waits};
use ferry_wire::{
    frame::Codec,
    meter::{Meter, Wait},
    nbd::NbdMeter,
};

use crate::lock::lock;

/// Counters of the channels of one end, those that have ended included.
#[derive(Default)]
pub(super) struct Meters {
    pub(super) memory: Arc<Meter>,
    pub(super) disks: Arc<Meter>,
    spared: Mutex<DiskMeters>,
}

#[derive(Default)]
struct DiskMeters {
    open: BTreeMap<u16, Arc<NbdMeter>>,
    /// What channels that have ended did not send or write.
    ended: Spared,
}

#[derive(Clone, Copy, Default)]
struct Spared {
    zeroes: u64,
    held: u64,
    changed: u64,
}

impl Spared {
    fn add(&mut self, meter: &NbdMeter) {
        self.zeroes += meter.elided_bytes();
        self.held += meter.referenced_bytes();
        self.changed += meter.mismatches();
    }
}

impl Meters {
    /// Bytes of memory and disks on the wire so far.
    pub(super) fn wire(&self) -> u64 {
        self.memory.wire() + self.disks.wire()
    }

    /// Counters for a disk channel that opens.
    pub(super) fn open_disk(&self, index: u16) -> Arc<NbdMeter> {
        self.end_disk(index);
        let meter = Arc::<NbdMeter>::default();
        lock(&self.spared).open.insert(index, Arc::clone(&meter));
        meter
    }

    /// A disk channel has ended.
    pub(super) fn end_disk(&self, index: u16) {
        let DiskMeters { open, ended } = &mut *lock(&self.spared);
        if let Some(meter) = open.remove(&index) {
            ended.add(&meter);
        }
    }

    /// Counters of the disk channels that are open.
    pub(super) fn open_disks(&self) -> BTreeMap<u16, Arc<NbdMeter>> {
        lock(&self.spared).open.clone()
    }

    /// The sum of all channels so far.
    pub(super) fn carried(&self) -> Carried {
        let spared = {
            let DiskMeters { open, ended } = &*lock(&self.spared);
            let mut spared = *ended;
            open.values().for_each(|meter| spared.add(meter));
            spared
        };
        Carried {
            memory: stages(&self.memory),
            disks: Stages { zeroes: spared.zeroes, held: spared.held, ..stages(&self.disks) },
            changed_blocks: spared.changed,
        }
    }
}

fn stages(meter: &Meter) -> Stages {
    let ms = |wait| meter.waited(wait).as_millis() as u64;
    let compressed = || Codec::ALL.iter().filter(|codec| **codec != Codec::Raw).map(|codec| meter.coded(*codec));
    Stages {
        plain: meter.sent_plain() + meter.received_plain(),
        wire: meter.wire(),
        compressed_from: compressed().map(|coded| coded.plain).sum(),
        compressed_to: compressed().map(|coded| coded.coded).sum(),
        encoding_ms: meter.encoding().as_millis() as u64,
        waits: Waits {
            source_ms: ms(Wait::Source),
            lane_ms: ms(Wait::Lane),
            window_ms: ms(Wait::Window),
            limit_ms: ms(Wait::Limit),
            delivery_ms: ms(Wait::Delivery),
        },
        ..Stages::default()
    }
}
