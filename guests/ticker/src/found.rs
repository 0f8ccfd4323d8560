//! State shared by the threads.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Maximal number of disks that are written.
pub(crate) const DISKS_MAX: usize = 8;

/// Results of the threads. All counters only rise.
#[derive(Default)]
pub(crate) struct Found {
    /// Pages compared with what they must hold.
    pub(crate) pages: AtomicU64,
    /// Complete passes over all pages.
    pub(crate) page_passes: AtomicU64,
    /// Pages with wrong content.
    pub(crate) bad_pages: AtomicU64,
    /// Sectors read back and compared.
    pub(crate) sectors: AtomicU64,
    /// Disks that are written.
    pub(crate) disks: AtomicUsize,
    /// Complete passes over all sectors of each disk.
    pub(crate) sector_passes: [AtomicU64; DISKS_MAX],
    /// Sectors with wrong content, or with an I/O error.
    pub(crate) bad_sectors: AtomicU64,
    /// Sectors written.
    pub(crate) writes: AtomicU64,
    /// A request to change one byte of memory.
    pub(crate) flip: AtomicBool,
    /// Verify as fast as possible.
    pub(crate) hastens: AtomicBool,
}

impl Found {
    /// Complete passes over all sectors of all disks, that is, the number of the slowest disk.
    pub(crate) fn whole_passes(&self) -> u64 {
        let disks = &self.sector_passes[..self.disks.load(Relaxed)];
        disks.iter().map(|passes| passes.load(Relaxed)).min().unwrap_or(0)
    }
}
