//! Keeps pages whose every byte is known: any byte that a move changes, loses or takes from an older version is
//! detected.

use std::{
    sync::atomic::Ordering::Relaxed,
    thread,
    time::{Duration, Instant},
};

use crate::{found::Found, settings::Settings};

const WORDS: usize = 512;
/// A marker in every page, for which captures of the link are searched.
const MARK: [u64; 2] = [u64::from_le_bytes(*b"FERRY-PL"), u64::from_le_bytes(*b"AINTEXT!")];
/// Number of pages verified between two dirtying rounds.
const SLICE: usize = 64;

/// Shortest pause between two slices; the pause is also a multiple of the time that the slice took. Otherwise a guest
/// with an emulated processor, and its host, would do nothing else.
const PAUSE_MIN: Duration = Duration::from_millis(2);
const REST: u32 = 3;
/// Longest pause between two slices. A slice during which the VM was stopped, for its switchover or by a busy host,
/// seems to have taken long: a multiple of that would be minutes in which no page is verified.
const PAUSE_MAX: Duration = Duration::from_secs(2);

type Page = [u64; WORDS];

fn word(index: usize, version: u64, at: usize) -> u64 {
    match at {
        0 | 1 => MARK[at],
        _ => (version << 40 ^ (index as u64) << 12 ^ at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15),
    }
}

fn fill(page: &mut Page, index: usize, version: u64) {
    for (at, place) in page.iter_mut().enumerate() {
        *place = word(index, version, at);
    }
}

fn holds(page: &Page, index: usize, version: u64) -> bool {
    page.iter().enumerate().all(|(at, value)| *value == word(index, version, at))
}

/// Maintains the pages; never returns.
pub(crate) fn run(settings: &Settings, found: &Found) -> ! {
    let count = (settings.memory_mib << 20) / size_of::<Page>();
    let mut pages: Vec<Page> = vec![[0; WORDS]; count];
    // Stored separately, so that a page that reverted to an older version as a whole is detected as well.
    let mut versions = vec![1u64; count];
    for (index, page) in pages.iter_mut().enumerate() {
        fill(page, index, 1);
    }
    println!("ticker: {count} pages are filled");
    let per_second = (settings.dirty_mib_per_s << 20) / size_of::<Page>() / settings.slower as usize;
    let started = Instant::now();
    let (mut dirtied, mut next, mut verified) = (0usize, 0usize, 0usize);
    loop {
        if found.flip.swap(false, Relaxed) {
            pages[count / 2][WORDS / 2] ^= 1 << 17;
        }
        let due = (started.elapsed().as_secs_f64() * per_second as f64) as usize;
        // After a pause of the VM, missed writes are not made up for: no real guest shows such a burst.
        dirtied = dirtied.max(due.saturating_sub(SLICE));
        while dirtied < due {
            // A stride that visits every page, and looks random to the sending side.
            next = (next + 7919) % count;
            // A page is verified before it is overwritten, so that no damage is hidden.
            verify(&pages[next], next, versions[next], found);
            versions[next] += 1;
            fill(&mut pages[next], next, versions[next]);
            dirtied += 1;
        }
        let begun = Instant::now();
        for _ in 0..SLICE {
            verify(&pages[verified], verified, versions[verified], found);
            verified = (verified + 1) % count;
            if verified == 0 {
                found.page_passes.fetch_add(1, Relaxed);
            }
        }
        thread::sleep(pause(begun.elapsed(), if found.hastens.load(Relaxed) { 1 } else { settings.slower }));
    }
}

/// The pause after a slice.
fn pause(took: Duration, slower: u32) -> Duration {
    took.saturating_mul(REST * slower).clamp(PAUSE_MIN, PAUSE_MAX)
}

fn verify(page: &Page, index: usize, version: u64, found: &Found) {
    found.pages.fetch_add(1, Relaxed);
    if !holds(page, index, version) {
        found.bad_pages.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_in_which_the_vm_was_stopped_does_not_stop_verifying() {
        assert_eq!(pause(Duration::ZERO, 20), PAUSE_MIN);
        assert_eq!(pause(Duration::from_millis(10), 20), Duration::from_millis(600));
        assert_eq!(pause(Duration::from_secs(6), 20), PAUSE_MAX);
        assert_eq!(pause(Duration::MAX, u32::MAX / REST), PAUSE_MAX);
    }

    #[test]
    fn any_changed_byte_or_older_version_is_found() {
        let mut page = [0; WORDS];
        fill(&mut page, 7, 3);
        assert!(holds(&page, 7, 3));
        assert!(!holds(&page, 7, 2) && !holds(&page, 7, 4) && !holds(&page, 8, 3));
        for at in 0..WORDS {
            let mut damaged = page;
            damaged[at] ^= 1 << (at % 64);
            assert!(!holds(&damaged, 7, 3), "word {at}");
        }
    }
}
