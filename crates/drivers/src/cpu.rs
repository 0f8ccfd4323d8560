//! How busy this host's CPUs are, by the kernel: `/proc/stat` and `/proc/pressure/cpu`.

use std::{
    fs,
    path::PathBuf,
    sync::Mutex,
    time::{Duration, Instant},
};

use ferry_core::compression::CpuLoad;

/// The kernel is asked at most this often, whoever asks here: its averages change no faster.
const APART: Duration = Duration::from_secs(1);

/// Samples the load. A kernel without PSI, or a container without these files, tells less.
#[derive(Debug)]
pub struct CpuSampler {
    proc: PathBuf,
    last: Mutex<Last>,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    at: Instant,
    times: Option<Times>,
    load: CpuLoad,
}

/// Time of all CPUs since the host's start, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Times {
    cpus: u32,
    idle: u64,
    all: u64,
}

impl Default for CpuSampler {
    fn default() -> Self {
        Self::of("/proc".into())
    }
}

impl CpuSampler {
    fn of(proc: PathBuf) -> Self {
        let mut sampler =
            Self { last: Mutex::new(Last { at: Instant::now(), times: None, load: CpuLoad::default() }), proc };
        let first = sampler.sample(None, Instant::now());
        sampler.last = Mutex::new(first);
        sampler
    }

    /// The load of the last second or more. Idle CPUs are known from a second after this was made. Reads two files of the
    /// kernel at most.
    pub fn load(&self) -> CpuLoad {
        self.load_at(Instant::now())
    }

    fn load_at(&self, now: Instant) -> CpuLoad {
        let mut last = self.last.lock().expect("no thread panics while holding this lock");
        if now.saturating_duration_since(last.at) >= APART {
            *last = self.sample(last.times, now);
        }
        last.load
    }

    fn sample(&self, before: Option<Times>, at: Instant) -> Last {
        let read = |name: &str| fs::read_to_string(self.proc.join(name)).ok();
        let times = read("stat").and_then(|text| times(&text));
        let idle_cpus = before.zip(times).and_then(|(before, now)| idle_cpus(before, now));
        let some_percent = read("pressure/cpu").and_then(|text| some_percent(&text));
        Last { at, times, load: CpuLoad { idle_cpus, some_percent } }
    }
}

/// Reads `/proc/stat`. CPUs that wait for a disk are idle; those that another machine took (steal) are not.
fn times(stat: &str) -> Option<Times> {
    let all = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    // user nice system idle iowait irq softirq steal; what guests took is part of user and nice.
    let ticks: Vec<u64> = all.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
    let is_one = |line: &&str| {
        line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    };
    let cpus = stat.lines().filter(is_one).count() as u32;
    Some(Times { cpus, idle: ticks.get(3)? + ticks.get(4).unwrap_or(&0), all: ticks.iter().sum() })
}

/// How many CPUs were idle between two samples. `None`: no time has passed, or CPUs came or went.
fn idle_cpus(before: Times, now: Times) -> Option<f64> {
    let (idle, all) = (now.idle.checked_sub(before.idle)?, now.all.checked_sub(before.all)?);
    (all > 0 && now.cpus == before.cpus).then(|| f64::from(now.cpus) * (idle.min(all) as f64 / all as f64))
}

/// Reads the `avg10` of `some` from a file of PSI.
fn some_percent(pressure: &str) -> Option<f64> {
    let some = pressure.lines().find_map(|line| line.strip_prefix("some "))?;
    let average: f64 = some.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?.parse().ok()?;
    (0.0..=100.0).contains(&average).then_some(average)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  100 10 50 700 40 5 5 90 60 1 \ncpu0 50 5 25 350 20 2 3 45 30 0\ncpu1 50 5 25 350 20 3 2 45 30 1\nintr 1 2\n";
    const PRESSURE: &str =
        "some avg10=12.50 avg60=3.00 avg300=0.10 total=123\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";

    #[test]
    fn the_kernels_files_are_read_or_left() {
        assert_eq!(times(STAT), Some(Times { cpus: 2, idle: 740, all: 1000 }));
        for text in ["", "cpu", "cpu  1 2 3\n", "cpu  a b c d e\n", "cpu0 1 2 3 4\n"] {
            assert_eq!(times(text), None, "{text:?}");
        }
        assert_eq!(some_percent(PRESSURE), Some(12.5));
        for text in
            ["", "full avg10=1.00\n", "some avg60=1.00\n", "some avg10=x\n", "some avg10=nan\n", "some avg10=101\n"]
        {
            assert_eq!(some_percent(text), None, "{text:?}");
        }
    }

    #[test]
    fn idle_time_is_that_between_two_samples() {
        let at = |cpus, idle, all| Times { cpus, idle, all };
        for (before, now, idle) in [
            (at(2, 740, 1000), at(2, 890, 1200), Some(1.5)),
            (at(2, 740, 1000), at(2, 740, 1200), Some(0.0)),
            (at(2, 740, 1000), at(2, 740, 1000), None),
            (at(2, 740, 1000), at(4, 890, 1200), None),
            // The kernel's idle time may step back.
            (at(2, 740, 1000), at(2, 700, 1200), None),
        ] {
            assert_eq!(idle_cpus(before, now), idle, "{before:?} {now:?}");
        }
    }

    #[test]
    fn the_kernel_is_asked_once_a_second_and_may_tell_nothing() {
        let proc = tempfile::tempdir().expect("a directory");
        let sampler = CpuSampler::of(proc.path().into());
        let start = Instant::now();
        assert_eq!(sampler.load_at(start + APART), CpuLoad::default());
        fs::create_dir(proc.path().join("pressure")).expect("made");
        fs::write(proc.path().join("stat"), STAT).expect("written");
        fs::write(proc.path().join("pressure/cpu"), PRESSURE).expect("written");
        assert_eq!(sampler.load_at(start + APART * 3 / 2), CpuLoad::default());
        let pressed = CpuLoad { idle_cpus: None, some_percent: Some(12.5) };
        assert_eq!(sampler.load_at(start + APART * 2), pressed);
        fs::write(proc.path().join("stat"), STAT.replace("700", "800").replace("100 10", "200 10")).expect("written");
        assert_eq!(sampler.load_at(start + APART * 5 / 2), pressed);
        assert_eq!(sampler.load_at(start + APART * 3), CpuLoad { idle_cpus: Some(1.0), ..pressed });
    }

    #[test]
    fn this_host_tells_of_its_cpus() {
        let sampler = CpuSampler::default();
        assert!(sampler.last.lock().expect("no panic").times.is_some_and(|times| times.cpus > 0 && times.all > 0));
    }
}
