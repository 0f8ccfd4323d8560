//! What the threads tell each other.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Disks that are written at most.
pub(crate) const DISKS_MAX: usize = 8;

/// What the threads found. All only rise.
#[derive(Default)]
pub(crate) struct Found {
    /// Pages compared with what they must hold.
    pub(crate) pages: AtomicU64,
    /// Whole passes over all pages.
    pub(crate) page_passes: AtomicU64,
    /// Pages that held something else.
    pub(crate) bad_pages: AtomicU64,
    /// Sectors read back and compared.
    pub(crate) sectors: AtomicU64,
    /// Disks that are written.
    pub(crate) disks: AtomicUsize,
    /// Whole passes over all sectors of each disk.
    pub(crate) sector_passes: [AtomicU64; DISKS_MAX],
    /// Sectors that held something else, or could not be read or written.
    pub(crate) bad_sectors: AtomicU64,
    /// Sectors written.
    pub(crate) writes: AtomicU64,
    /// One byte of memory is to be changed.
    pub(crate) flip: AtomicBool,
    /// It verifies as fast as it can.
    pub(crate) hastens: AtomicBool,
}

impl Found {
    /// Whole passes over all sectors of every disk: as many as the slowest has made.
    pub(crate) fn whole_passes(&self) -> u64 {
        let disks = &self.sector_passes[..self.disks.load(Relaxed)];
        disks.iter().map(|passes| passes.load(Relaxed)).min().unwrap_or(0)
    }
}
