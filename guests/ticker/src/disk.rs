//! Writes sectors with sequence numbers whose expected values are kept in memory. A write that was acknowledged and
//! lost is detected even if the sector's checksum is right.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use crate::{
    found::{DISKS_MAX, Found},
    settings::Settings,
};

const SECTOR: usize = 4096;
/// Number of sectors in use: few, so that each is rewritten often.
const SECTORS: usize = 128;
/// Number of writes between two flushes: each flush takes as long as ten writes.
const WRITES_PER_FLUSH: usize = 16;

/// A buffer that is aligned for O_DIRECT.
#[repr(align(4096))]
struct Aligned([u8; SECTOR]);

fn fill(buffer: &mut Aligned, index: usize, sequence: u64) {
    for (at, chunk) in buffer.0.chunks_exact_mut(8).enumerate() {
        let word = match at {
            0 => index as u64,
            1 => sequence,
            _ => (sequence << 32 ^ (index as u64) << 16 ^ at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        };
        chunk.copy_from_slice(&word.to_le_bytes());
    }
}

/// Starts a thread for each disk, so that a slow or blocked one does not delay the others.
pub(crate) fn start(settings: &Arc<Settings>, found: &Arc<Found>) {
    let disks = if settings.disks.is_empty() { all() } else { settings.disks.clone() };
    found.disks.store(disks.len().min(DISKS_MAX), Relaxed);
    if disks.is_empty() {
        println!("ticker: no disk");
    }
    for (number, device) in disks.into_iter().take(DISKS_MAX).enumerate() {
        let (settings, found) = (Arc::clone(settings), Arc::clone(found));
        thread::spawn(move || run(&device, number, &settings, &found));
    }
}

/// All virtio disks.
fn all() -> Vec<PathBuf> {
    let named = ('a'..='z').map(|letter| PathBuf::from(format!("/dev/vd{letter}")));
    named.filter(|device| device.exists()).collect()
}

/// Writes and verifies; returns only when the disk cannot be opened.
fn run(device: &Path, number: usize, settings: &Settings, found: &Found) {
    // A path that is not a device is a file of the running system.
    let is_file = !device.starts_with("/dev");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(is_file).custom_flags(libc::O_DIRECT);
    let opened = options.open(device);
    let disk = match opened {
        Ok(file) => Disk { file, stride: (settings.stride_kib.max(4) as u64) << 10, found },
        Err(error) => {
            println!("ticker: no disk {}: {error}", device.display());
            return;
        }
    };
    let mut sequences = [0u64; SECTORS];
    let pause = Duration::from_secs(1) / settings.writes_per_s.max(1);
    for (index, sequence) in sequences.iter_mut().enumerate() {
        disk.write(index, 1);
        *sequence = 1;
    }
    println!("ticker: {SECTORS} sectors of {} are written", device.display());
    let (mut next, mut done) = (0, 0);
    let mut due = Instant::now();
    loop {
        // A stride that visits every sector, and looks random to the copying side. A sector is verified before it is
        // overwritten, so that no damage is hidden.
        next = (next + 101) % SECTORS;
        disk.verify(next, sequences[next]);
        sequences[next] += 1;
        disk.write(next, sequences[next]);
        done = (done + 1) % SECTORS;
        if done % WRITES_PER_FLUSH == 0 {
            disk.flush();
        }
        if done == 0 {
            found.sector_passes[number].fetch_add(1, Relaxed);
        }
        // The duration of the write counts; after a pause of the VM, missed writes are not made up for.
        let pause = if found.hastens.load(Relaxed) { Duration::ZERO } else { pause };
        due = (due + pause).max(Instant::now());
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

struct Disk<'a> {
    file: File,
    /// Distance between two sectors in use, in bytes.
    stride: u64,
    found: &'a Found,
}

impl Disk<'_> {
    fn write(&self, index: usize, sequence: u64) {
        let mut buffer = Aligned([0; SECTOR]);
        fill(&mut buffer, index, sequence);
        match self.file.write_all_at(&buffer.0, index as u64 * self.stride) {
            Ok(()) => {
                self.found.writes.fetch_add(1, Relaxed);
            }
            Err(error) => {
                println!("ticker: sector {index} could not be written: {error}");
                self.found.bad_sectors.fetch_add(1, Relaxed);
            }
        }
    }

    fn flush(&self) {
        if let Err(error) = self.file.sync_data() {
            println!("ticker: what was written could not be made to last: {error}");
            self.found.bad_sectors.fetch_add(1, Relaxed);
        }
    }

    fn verify(&self, index: usize, sequence: u64) {
        let (mut read, mut expected) = (Aligned([0; SECTOR]), Aligned([0; SECTOR]));
        fill(&mut expected, index, sequence);
        let outcome = self.file.read_exact_at(&mut read.0, index as u64 * self.stride);
        self.found.sectors.fetch_add(1, Relaxed);
        if outcome.is_err() || read.0 != expected.0 {
            println!("ticker: sector {index} does not hold sequence {sequence}: {outcome:?}");
            self.found.bad_sectors.fetch_add(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_sequence_number_is_told_apart() {
        let (mut old, mut new) = (Aligned([0; SECTOR]), Aligned([0; SECTOR]));
        fill(&mut old, 5, 1);
        fill(&mut new, 5, 2);
        assert_ne!(old.0, new.0);
        assert_eq!(&raw const old as usize % SECTOR, 0, "O_DIRECT takes the buffer");
    }
}
