//! Sectors with sequence numbers whose expected values are kept in memory: a write that was acknowledged and lost is
//! found although the sector's checksum is right.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    sync::atomic::Ordering::Relaxed,
    thread,
    time::Duration,
};

use crate::{Found, Wanted};

const SECTOR: usize = 4096;
/// Sectors in use: few, so that each is written again often.
const SECTORS: usize = 128;
const DEVICE: &str = "/dev/vda";

/// A buffer at an address that O_DIRECT takes.
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

/// Writes and verifies; returns only when there is no disk.
pub(crate) fn run(wanted: &Wanted, found: &Found) {
    let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT | libc::O_SYNC).open(DEVICE);
    let disk = match opened {
        Ok(disk) => disk,
        Err(error) => {
            println!("ticker: no disk: {error}");
            return;
        }
    };
    let mut sequences = [0u64; SECTORS];
    let pause = Duration::from_secs(1) / wanted.writes_per_s.max(1);
    for (index, sequence) in sequences.iter_mut().enumerate() {
        write(&disk, index, 1, found);
        *sequence = 1;
    }
    println!("ticker: {SECTORS} sectors are written");
    let (mut next, mut verified) = (0, 0);
    loop {
        next = (next + 101) % SECTORS;
        verify(&disk, next, sequences[next], found);
        sequences[next] += 1;
        write(&disk, next, sequences[next], found);
        verify(&disk, verified, sequences[verified], found);
        verified = (verified + 1) % SECTORS;
        if verified == 0 {
            found.sector_passes.fetch_add(1, Relaxed);
        }
        thread::sleep(pause);
    }
}

fn write(disk: &File, index: usize, sequence: u64, found: &Found) {
    let mut buffer = Aligned([0; SECTOR]);
    fill(&mut buffer, index, sequence);
    match disk.write_all_at(&buffer.0, (index * SECTOR) as u64) {
        Ok(()) => {
            found.writes.fetch_add(1, Relaxed);
        }
        Err(error) => {
            println!("ticker: sector {index} could not be written: {error}");
            found.bad_sectors.fetch_add(1, Relaxed);
        }
    }
}

fn verify(disk: &File, index: usize, sequence: u64, found: &Found) {
    let (mut read, mut expected) = (Aligned([0; SECTOR]), Aligned([0; SECTOR]));
    fill(&mut expected, index, sequence);
    let outcome = disk.read_exact_at(&mut read.0, (index * SECTOR) as u64);
    found.sectors.fetch_add(1, Relaxed);
    if outcome.is_err() || read.0 != expected.0 {
        println!("ticker: sector {index} does not hold sequence {sequence}: {outcome:?}");
        found.bad_sectors.fetch_add(1, Relaxed);
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
