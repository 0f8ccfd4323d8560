//! How busy this host's CPUs are, by the kernel: `/proc/stat`, and how long tasks wait for a CPU (PSI).
//!
//! Guests come first, so their waiting counts: that of the cgroup in which libvirt runs all of them. An agent's own threads
//! are in another one; with theirs, an encoder on a host of few CPUs would give way to nobody but itself. Where libvirt
//! runs guests without cgroups, the whole host's waiting is all that is known.

use std::{
    fs,
    path::PathBuf,
    sync::Mutex,
    time::{Duration, Instant},
};

use ferry_core::compression::CpuLoad;

/// The kernel is asked at most this often, whoever asks here: its averages change no faster.
const APART: Duration = Duration::from_secs(1);
/// Where the kernel tells how long tasks wait for a CPU: those of libvirt's guests (systemd's cgroups, cgroups without
/// systemd), or all. The first that is there counts.
const PRESSURE: [&str; 3] =
    ["sys/fs/cgroup/machine.slice/cpu.pressure", "sys/fs/cgroup/machine/cpu.pressure", "proc/pressure/cpu"];

/// Samples the load. A kernel without PSI, or a container without these files, tells less.
#[derive(Debug)]
pub struct CpuSampler {
    root: PathBuf,
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
        Self::of("/".into())
    }
}

impl CpuSampler {
    fn of(root: PathBuf) -> Self {
        let mut sampler =
            Self { last: Mutex::new(Last { at: Instant::now(), times: None, load: CpuLoad::default() }), root };
        let first = sampler.sample(None, Instant::now());
        sampler.last = Mutex::new(first);
        sampler
    }

    /// The load of the last second or more. Idle CPUs are known from a second after this was made. Reads four files of the
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
        let read = |name: &str| fs::read_to_string(self.root.join(name)).ok();
        let times = read("proc/stat").and_then(|text| times(&text));
        let idle_cpus = before.zip(times).and_then(|(before, now)| idle_cpus(before, now));
        let some_percent = PRESSURE.into_iter().find_map(read).and_then(|text| some_percent(&text));
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
    const PRESSED: &str =
        "some avg10=12.50 avg60=3.00 avg300=0.10 total=123\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";

    #[test]
    fn the_kernels_files_are_read_or_left() {
        assert_eq!(times(STAT), Some(Times { cpus: 2, idle: 740, all: 1000 }));
        for text in ["", "cpu", "cpu  1 2 3\n", "cpu  a b c d e\n", "cpu0 1 2 3 4\n"] {
            assert_eq!(times(text), None, "{text:?}");
        }
        assert_eq!(some_percent(PRESSED), Some(12.5));
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
        let root = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("it has one")).expect("made");
            fs::write(path, text).expect("written");
        };
        let sampler = CpuSampler::of(root.path().into());
        let start = Instant::now();
        assert_eq!(sampler.load_at(start + APART), CpuLoad::default());
        write("proc/stat", STAT);
        write("proc/pressure/cpu", PRESSED);
        assert_eq!(sampler.load_at(start + APART * 3 / 2), CpuLoad::default());
        let pressed = CpuLoad { idle_cpus: None, some_percent: Some(12.5) };
        assert_eq!(sampler.load_at(start + APART * 2), pressed);
        write("proc/stat", &STAT.replace("700", "800").replace("100 10", "200 10"));
        assert_eq!(sampler.load_at(start + APART * 5 / 2), pressed);
        assert_eq!(sampler.load_at(start + APART * 3), CpuLoad { idle_cpus: Some(1.0), ..pressed });
    }

    #[test]
    fn only_guests_waiting_counts_where_it_is_known() {
        let root = tempfile::tempdir().expect("a directory");
        let sampler = CpuSampler::of(root.path().into());
        let start = Instant::now();
        for (round, (file, percent)) in (1..).zip([
            ("proc/pressure", "90.00"),
            ("sys/fs/cgroup/machine", "20.00"),
            ("sys/fs/cgroup/machine.slice", "5.00"),
        ]) {
            let (folder, name) = (root.path().join(file), if round == 1 { "cpu" } else { "cpu.pressure" });
            fs::create_dir_all(&folder).expect("made");
            fs::write(folder.join(name), PRESSED.replace("12.50", percent)).expect("written");
            let expected = percent.parse().ok();
            assert_eq!(sampler.load_at(start + APART * round).some_percent, expected, "{file}");
        }
    }

    #[test]
    fn this_host_tells_of_its_cpus() {
        let sampler = CpuSampler::default();
        assert!(sampler.last.lock().expect("no panic").times.is_some_and(|times| times.cpus > 0 && times.all > 0));
    }
}
