//! A copy of a disk. Time is virtual: each poll of a copy advances it by one part.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::PathBuf};

use crate::hypervisor::DiskCopyRequest;

/// Polls until a copy is complete.
const PARTS: u64 = 4;

/// A copy in progress.
pub(super) struct Copy {
    pub(super) request: DiskCopyRequest,
    from: PathBuf,
    pub(super) total: u64,
    pub(super) copied: u64,
    pub(super) ready: bool,
}

impl Copy {
    /// A copy of `total` bytes, none of which is copied yet.
    pub(super) fn begin(request: DiskCopyRequest, from: PathBuf, total: u64) -> Self {
        Self { request, from, total, copied: 0, ready: false }
    }

    /// Copies one part.
    pub(super) fn step(&mut self) -> io::Result<()> {
        if self.ready {
            return Ok(());
        }
        self.part(self.total.div_ceil(PARTS).max(1))?;
        self.ready = self.copied == self.total;
        Ok(())
    }

    /// Copies everything again, including what the guest has written since.
    pub(super) fn once_more(&mut self) -> io::Result<()> {
        self.copied = 0;
        self.part(self.total)
    }

    fn part(&mut self, bytes: u64) -> io::Result<()> {
        let (from, to) = (File::open(&self.from)?, File::options().write(true).open(&self.request.to)?);
        let end = (self.copied + bytes).min(self.total);
        let mut block = vec![0; 1 << 16];
        while self.copied < end {
            let count = block.len().min((end - self.copied) as usize);
            let block = &mut block[..count];
            from.read_exact_at(block, self.copied)?;
            // Keeps holes.
            if block.iter().any(|byte| *byte != 0) {
                to.write_all_at(block, self.copied)?;
            }
            self.copied += count as u64;
        }
        Ok(())
    }
}
