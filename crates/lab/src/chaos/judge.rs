//! Judges the observations of a run. Pure: heartbeats, the disk's content and the jobs' texts are arguments.
//!
//! Where a VM runs and whether it is intact is judged only from outside; Ferry's own reports count only for the state
//! of jobs.

use std::{fmt, time::Duration};

use ferry_core::api::server::JobView;

use crate::observe::Heard;

/// A guest that was not heard for this long does not run. A busy machine delays heartbeats, which come every 10 ms, by
/// several hundred milliseconds.
const QUIET: Duration = Duration::from_secs(2);
/// A guest that was heard within this time runs there now.
const NOW: Duration = Duration::from_millis(700);
/// Complete passes over memory: the pass in progress when counting begins does not count.
const PASSES: u64 = 2;
/// Size of a ticker's sector in bytes, and number of sectors.
const SECTOR: usize = 4096;
const SECTORS: usize = 128;
/// End of its sectors, if they are adjacent.
pub const DISK_BYTES: usize = SECTOR * SECTORS;
/// A ticker verifies the sector that it writes, and the next one in order. After this many, each sector was verified.
const SECTORS_VERIFIED: u64 = 2 * SECTORS as u64 + 2;

/// A broken promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Broken {
    /// No host runs the VM, although a host that had it is alive; or a file that a VM needs is gone.
    Lost,
    /// Two hosts run the VM.
    Split,
    /// A page or an acknowledged sector is wrong.
    Corrupt,
    /// A job has neither ended nor states what it waits for and what to do.
    Stuck,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Lost => "lost",
            Self::Split => "split",
            Self::Corrupt => "corrupt",
            Self::Stuck => "stuck",
        })
    }
}

/// One broken promise, with the observation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The promise.
    pub broken: Broken,
    /// The object and the observation; one sentence.
    pub text: String,
}

/// A host that died in the run and is still down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    /// Its name.
    pub host: String,
    /// The time of its death.
    pub at: Duration,
}

/// The broken promises of a guest. `heard` contains all heartbeats of the run, oldest first, up to `until`; `excuse` is
/// a reason why the guest may be silent.
pub fn of_guest(name: &str, heard: &[Heard], until: Duration, excuse: Option<&str>) -> Vec<Case> {
    let case = |broken, text: Option<String>| text.map(|text| Case { broken, text: format!("{name} {text}") });
    let split = split(heard);
    // A second copy is reported once: errors in its heartbeats are not reported again.
    let again = if split.is_none() { started_again(heard) } else { None };
    let lost = if excuse.is_some() { None } else { silent(heard, until).or(again) };
    [case(Broken::Split, split), case(Broken::Lost, lost), case(Broken::Corrupt, wrong(heard))]
        .into_iter()
        .flatten()
        .collect()
}

/// Whether two hosts ran it: the first host is heard again after a second one, or the second continues from an older
/// state than the first had reached. A guest moves at most once in a run.
pub fn split(heard: &[Heard]) -> Option<String> {
    let mut left: Vec<&str> = Vec::new();
    for pair in heard.windows(2) {
        let [one, next] = pair else { continue };
        if one.host == next.host {
            continue;
        }
        if left.contains(&next.host.as_str()) {
            return Some(format!("was heard from {} again after it was heard from {}", next.host, one.host));
        }
        // The same heartbeat from both hosts is one packet that both had in their queues at the hand-over.
        if next.beat.count < one.beat.count {
            return Some(format!(
                "went on at {} from beat {} though {} had reached beat {}",
                next.host, next.beat.count, one.host, one.beat.count
            ));
        }
        left.push(&one.host);
    }
    None
}

fn started_again(heard: &[Heard]) -> Option<String> {
    let back = heard.windows(2).find(|pair| pair[0].host == pair[1].host && pair[1].beat.count < pair[0].beat.count)?;
    Some(format!("began anew on {}: what ran before is gone", back[1].host))
}

fn silent(heard: &[Heard], until: Duration) -> Option<String> {
    let Some(last) = heard.last() else { return Some("was never heard".to_owned()) };
    let silence = until.saturating_sub(last.at);
    (silence > QUIET).then(|| format!("is not heard since {} s, last from {}", silence.as_secs(), last.host))
}

fn wrong(heard: &[Heard]) -> Option<String> {
    let pages = heard.iter().map(|heard| heard.beat.bad_pages).max()?;
    let sectors = heard.iter().map(|heard| heard.beat.bad_sectors).max()?;
    (pages + sectors > 0).then(|| format!("found {pages} page(s) and {sectors} sector(s) that it had not written so"))
}

/// The reason why a guest may be silent: the host that had it is dead. `copy_ended` is whether the QEMU it was last
/// heard from ended by itself when the other host died, which libvirt causes only when the hand-over is complete.
pub fn excuse(heard: &[Heard], death: &Death, copy_ended: bool) -> Option<String> {
    let last = heard.last()?;
    if last.host == death.host {
        return Some(format!("it was last heard from {}, which died", death.host));
    }
    let silent_since = last.at < death.at + QUIET;
    (copy_ended && silent_since).then(|| format!("it had just been handed over to {}, which died", death.host))
}

/// What is wrong with a guest that had to run again within a time limit.
pub fn late(name: &str, heard: &[Heard], from: Duration, within: Duration) -> Option<Case> {
    let runs = heard.iter().any(|heard| heard.at > from && heard.at <= from + within);
    let text = || format!("{name} did not run again within {} s", within.as_secs());
    (!runs).then(|| Case { broken: Broken::Lost, text: text() })
}

/// Whether a guest is heard from exactly one host now, and has verified memory and disk since `calm`.
pub fn is_well(heard: &[Heard], calm: Duration, now: Duration) -> bool {
    let mut hosts: Vec<&str> =
        heard.iter().rev().take_while(|heard| heard.at + NOW > now).map(|heard| heard.host.as_str()).collect();
    hosts.dedup();
    let since = heard.iter().find(|heard| heard.at >= calm);
    let verified = since.zip(heard.last()).is_some_and(|(first, last)| {
        last.beat.page_passes >= first.beat.page_passes + PASSES
            && last.beat.sectors >= first.beat.sectors + SECTORS_VERIFIED
    });
    hosts.len() == 1 && verified
}

/// The position of a moment relative to the silence of a guest's (intended) hand-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    /// From the last heartbeat before it to the first one after it. Milliseconds.
    pub length_ms: u64,
    /// From its start to the moment. Milliseconds; negative before it, larger than its length after it.
    pub offset_ms: i64,
    /// Whether the guest was heard from another host afterwards.
    pub moved: bool,
}

impl Silence {
    /// Whether the moment lies in the silence.
    pub fn holds_moment(&self) -> bool {
        (0..=self.length_ms as i64).contains(&self.offset_ms)
    }
}

/// The silence in which the guest changed its host; otherwise the one around the moment, if it lasts at least `least`.
pub fn silence(heard: &[Heard], at: Duration, least: Duration) -> Option<Silence> {
    let moved = heard.windows(2).find(|pair| pair[0].host != pair[1].host);
    let around = || {
        let pair = heard.windows(2).find(|pair| pair[0].at <= at && at < pair[1].at)?;
        (pair[1].at.saturating_sub(pair[0].at) >= least).then_some(pair)
    };
    let pair = moved.or_else(around)?;
    let ms = |time: Duration| time.as_millis() as i64;
    Some(Silence {
        length_ms: pair[1].at.saturating_sub(pair[0].at).as_millis() as u64,
        offset_ms: ms(at) - ms(pair[0].at),
        moved: moved.is_some(),
    })
}

/// The longest interruption of a guest's heartbeats.
pub fn longest_silence(heard: &[Heard]) -> Duration {
    heard.windows(2).map(|pair| pair[1].at.saturating_sub(pair[0].at)).max().unwrap_or_default()
}

/// What is wrong with a job at the end of the waiting time. `answers` is whether the server still answers.
pub fn of_job(job: &JobView, answers: bool) -> Option<Case> {
    if job.phase.ended() {
        return None;
    }
    let title = job.phase.title();
    let text = match (answers, speaks(&job.summary)) {
        (true, true) => return None,
        (true, false) => format!("job {} is {title} and says: {}", job.id, job.summary),
        (false, _) => format!("the server does not answer; job {} was {title} and said: {}", job.id, job.summary),
    };
    Some(Case { broken: Broken::Stuck, text })
}

/// Whether a summary states what the job waits for, and contains a command in backquotes.
pub fn speaks(summary: &str) -> bool {
    let words = summary.to_lowercase();
    let waits = ["wait", "until", "as soon as", "keeps trying"].iter().any(|word| words.contains(word));
    let command = summary.split('`').skip(1).step_by(2).any(|quoted| quoted.contains(char::is_alphabetic));
    waits && command
}

/// The sum of all sequence numbers on a ticker's disk: each write of the guest increases it by one.
///
/// # Errors
/// The first sector whose content the ticker cannot have written.
pub fn sum_of_sequences(disk: &[u8]) -> Result<u64, String> {
    if disk.len() < SECTOR * SECTORS {
        return Err(format!("the disk's file holds {} bytes only", disk.len()));
    }
    let sectors = disk.chunks_exact(SECTOR).take(SECTORS).enumerate();
    sectors.map(|(index, sector)| sequence(index, sector)).sum()
}

/// The ticker's format: the index, the sequence number, then words computed from both.
fn sequence(index: usize, sector: &[u8]) -> Result<u64, String> {
    let mut words = sector.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")));
    let (place, sequence) = (words.next().unwrap_or(0), words.next().unwrap_or(0));
    let base = sequence << 32 ^ (index as u64) << 16;
    let whole = words.zip(2u64..).all(|(word, at)| word == (base ^ at).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    if place == index as u64 && whole {
        return Ok(sequence);
    }
    Err(format!("sector {index} of the disk's file is not as the guest writes it"))
}

/// Whether the disk's file contains every acknowledged write. `before` and `after` are the numbers of acknowledged
/// writes in the guest's heartbeats before and after the file was read; `None`: there was no heartbeat afterwards.
///
/// # Errors
/// What is missing.
pub fn of_disk(sum: u64, before: u64, after: Option<u64>) -> Result<(), String> {
    let after = after.unwrap_or(u64::MAX - 1);
    // One more write than acknowledged may be in flight.
    if (before..=after + 1).contains(&sum) {
        return Ok(());
    }
    Err(format!(
        "the disk's file holds {sum} writes, and the guest's count of acknowledged ones was {before} to {after}"
    ))
}

#[cfg(test)]
mod tests {
    use ferry_core::{
        id::{JobId, VmId},
        job::JobKind,
        migration::Phase,
    };

    use super::*;
    use crate::observe::Beat;

    fn heard(host: &str, at_ms: u64, count: u64) -> Heard {
        let beat = Beat {
            vm: "vm".into(),
            count,
            pages: 0,
            page_passes: count / 10,
            bad_pages: 0,
            sectors: count * 20,
            sector_passes: 0,
            bad_sectors: 0,
            writes: 0,
            asked: "rest".into(),
        };
        Heard { host: host.into(), at: Duration::from_millis(at_ms), beat }
    }

    fn kinds(heard: &[Heard], until_ms: u64, excuse: Option<&str>) -> Vec<Broken> {
        let cases = of_guest("vm", heard, Duration::from_millis(until_ms), excuse);
        cases.iter().map(|case| case.broken).collect()
    }

    #[test]
    fn a_vm_that_moved_once_and_is_heard_is_well() {
        let beats = [heard("a", 0, 1), heard("a", 10, 2), heard("b", 200, 2), heard("b", 210, 3)];
        assert_eq!(kinds(&beats, 220, None), []);
    }

    #[test]
    fn each_broken_promise_is_found_and_no_other() {
        let mut bad = vec![heard("a", 0, 1), heard("a", 10, 2)];
        bad[1].beat.bad_sectors = 1;
        for (beats, until_ms, expected) in [
            (vec![], 10, Broken::Lost),
            (vec![heard("a", 0, 1)], 5_000, Broken::Lost),
            (vec![heard("a", 0, 9), heard("a", 10, 1)], 20, Broken::Lost),
            (vec![heard("a", 0, 1), heard("b", 10, 2), heard("a", 15, 2)], 20, Broken::Split),
            (vec![heard("a", 0, 9), heard("b", 10, 7)], 20, Broken::Split),
            // A second copy that was booted from scratch.
            (vec![heard("b", 0, 900), heard("a", 10, 1), heard("b", 15, 901), heard("a", 20, 2)], 30, Broken::Split),
            (bad, 20, Broken::Corrupt),
        ] {
            assert_eq!(kinds(&beats, until_ms, None), [expected], "{beats:?}");
        }
    }

    #[test]
    fn an_excuse_covers_silence_and_nothing_else() {
        let split = [heard("a", 0, 1), heard("b", 10, 2), heard("a", 15, 2)];
        assert_eq!(kinds(&split, 9_000, Some("a died")), [Broken::Split]);
        assert_eq!(kinds(&split[..1], 9_000, Some("a died")), []);
    }

    #[test]
    fn only_the_host_that_had_the_vm_excuses_its_loss() {
        let death = Death { host: "b".into(), at: Duration::from_millis(100) };
        let at_source = [heard("a", 0, 1), heard("a", 90, 2)];
        assert_eq!(excuse(&at_source, &death, false), None, "the source had it and lives");
        assert!(excuse(&at_source, &death, true).is_some(), "it had been handed over");
        let moved = [heard("a", 0, 1), heard("b", 90, 2)];
        assert!(excuse(&moved, &death, false).is_some());
        let went_on = [heard("a", 0, 1), heard("a", 9_000, 2)];
        assert_eq!(excuse(&went_on, &death, true), None, "it ran on and ended later");
    }

    #[test]
    fn a_vm_that_runs_again_too_late_is_lost_and_in_time_is_not() {
        let (from, within) = (Duration::from_secs(10), Duration::from_secs(30));
        for (at_ms, is_late) in [(9_999, true), (10_001, false), (40_000, false), (40_001, true)] {
            let found = late("vm", &[heard("a", 0, 1), heard("b", at_ms, 2)], from, within);
            assert_eq!(found.map(|case| case.broken), is_late.then_some(Broken::Lost), "{at_ms}");
        }
    }

    #[test]
    fn well_is_one_host_and_verified_since_then() {
        let calm = Duration::from_millis(100);
        let well = |beats: &[Heard], now_ms| is_well(beats, calm, Duration::from_millis(now_ms));
        let beats = [heard("a", 0, 10), heard("a", 120, 25), heard("b", 900, 41)];
        assert!(well(&beats, 901));
        assert!(!well(&beats, 2_000), "it is silent");
        assert!(!well(&beats[..2], 121), "nothing was verified since");
        let both = [heard("a", 120, 25), heard("a", 890, 48), heard("b", 900, 49)];
        assert!(!well(&both, 901), "it is heard from two");
    }

    #[test]
    fn a_fault_in_a_hand_over_is_told_from_one_beside_it() {
        let beats = [heard("a", 0, 1), heard("a", 10, 2), heard("b", 200, 3)];
        let of = |beats: &[Heard], at_ms| {
            silence(beats, Duration::from_millis(at_ms), Duration::from_millis(60)).map(|found| found.holds_moment())
        };
        assert_eq!((of(&beats, 5), of(&beats, 50), of(&beats, 300)), (Some(false), Some(true), Some(false)));
        assert_eq!(longest_silence(&beats), Duration::from_millis(190));
        let stayed = [heard("a", 0, 1), heard("a", 10, 2), heard("a", 200, 3)];
        assert_eq!((of(&stayed, 5), of(&stayed, 50)), (None, Some(true)));
    }

    fn job(phase: Phase, summary: &str) -> JobView {
        JobView {
            id: JobId(4),
            kind: JobKind::Live,
            parent: None,
            children: Vec::new(),
            attempt: 1,
            waits: None,
            vm: Some(VmId(uuid::Uuid::nil())),
            vm_name: "vm".into(),
            source: "a".into(),
            destination: "b".into(),
            phase,
            summary: summary.into(),
            by: "admin".into(),
            accepted_at_ms: 0,
            ended_at_ms: None,
            steps: Vec::new(),
            progress: None,
            disks: Vec::new(),
            sentences: Vec::new(),
            next: Vec::new(),
            figures: None,
            transfer: None,
            route: None,
            findings: Vec::new(),
            log: Vec::new(),
        }
    }

    #[test]
    fn an_open_job_must_say_what_it_waits_for_and_what_to_do() {
        let silent = "VM vm is at b and is being resumed there.";
        let helpful = "VM vm waits for host b to answer: start its agent with `systemctl start ferry-agent`.";
        assert_eq!(of_job(&job(Phase::Succeeded, silent), true), None);
        assert_eq!(of_job(&job(Phase::Stuck, helpful), true), None);
        assert_eq!(of_job(&job(Phase::Stuck, silent), true).map(|case| case.broken), Some(Broken::Stuck));
        assert!(of_job(&job(Phase::Stuck, helpful), false).is_some(), "nobody can read it");
        assert!(!speaks("It waits for ``.") && !speaks("Run `virsh list`.") && !speaks("It waits for host b."));
    }

    #[test]
    fn a_lost_or_torn_write_is_seen_in_the_disks_file() {
        let mut disk = Vec::new();
        for index in 0..SECTORS as u64 {
            let word = |at| match at {
                0 => index,
                1 => 3,
                _ => (3 << 32 ^ index << 16 ^ at).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            };
            disk.extend((0..SECTOR as u64 / 8).flat_map(|at| word(at).to_le_bytes()));
        }
        assert_eq!(sum_of_sequences(&disk), Ok(3 * SECTORS as u64));
        disk[SECTOR + 100] ^= 1;
        assert!(sum_of_sequences(&disk).expect_err("torn").contains("sector 1 "));
        assert!(of_disk(384, 384, Some(384)).is_ok() && of_disk(385, 384, Some(384)).is_ok());
        assert!(of_disk(383, 384, Some(390)).is_err() && of_disk(392, 384, Some(390)).is_err());
        // For a guest that has ended, only the lower bound is known.
        assert!(of_disk(386, 384, None).is_ok() && of_disk(383, 384, None).is_err());
    }
}
