//! Retries operations on busy files. On a FUSE mount, close(2) returns before the file is closed; an SMB server reports
//! a sharing violation while another host has the file open (mounts return it as EBUSY); and neither renames or removes
//! a file that is open.

use std::{
    io, thread,
    time::{Duration, Instant},
};

/// How long a file may stay busy.
const BUSY_MAX: Duration = Duration::from_secs(5);
/// Pause between two tries.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// Repeats `act` while it fails because a file is busy, for at most 5 s. Blocks.
///
/// # Errors
/// Those of `act`; those of its last try if the file stays busy.
pub fn retry_busy<T>(mut act: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let until = Instant::now() + BUSY_MAX;
    loop {
        match act() {
            Err(error) if is_busy(&error) && Instant::now() < until => thread::sleep(BUSY_PAUSE),
            outcome => return outcome,
        }
    }
}

fn is_busy(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::ExecutableFileBusy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_busy_is_tried_again() {
        for (kind, tries) in [(io::ErrorKind::ResourceBusy, 3), (io::ErrorKind::NotFound, 1)] {
            let mut tried = 0;
            let outcome = retry_busy(|| {
                tried += 1;
                if tried < 3 { Err(io::Error::from(kind)) } else { Ok(()) }
            });
            assert_eq!((tried, outcome.is_ok()), (tries, tries == 3), "{kind}");
        }
    }
}
