//! Measures moves, and compares the runs of both sides.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use ferry_core::api::server::JobView;

use crate::{
    ferry::Ferry,
    observe::{Heard, Observer, judge, now},
    run::{checked, run_within},
};

/// Time limit of one move: the slowest one measured takes about two minutes.
pub(super) const MOVE_DEADLINE: Duration = Duration::from_secs(600);
pub(super) const MIB: f64 = 1_048_576.0;

/// The side that moves the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Virsh,
    Ferry,
}

impl Side {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Virsh => "virsh",
            Self::Ferry => "ferry",
        }
    }
}

/// One run of one side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) total_ms: f64,
    pub(super) gap_ms: f64,
    /// Bytes on the wire.
    pub(super) bytes: f64,
    /// Busy time of the machine's processors during the run.
    pub(super) cpu_ms: f64,
}

impl Run {
    pub(super) fn report(&self, run: usize, side: Side) {
        eprintln!(
            "run {run}: {:<5} {:>7.0} ms, guest silent {:>5.0} ms, {:>6.1} MiB, processors busy {:>6.0} ms",
            side.name(),
            self.total_ms,
            self.gap_ms,
            self.bytes / MIB,
            self.cpu_ms,
        );
    }
}

/// The runs of both sides.
pub(super) struct Sides<R> {
    pub(super) plain: Vec<R>,
    pub(super) ours: Vec<R>,
}

impl<R> Sides<R> {
    /// Runs both sides alternately, `runs` times each. The order changes from round to round, so that neither side
    /// always gets the warm direction.
    pub(super) fn alternate(
        runs: usize,
        mut one: impl FnMut(usize, Side) -> anyhow::Result<R>,
    ) -> anyhow::Result<Self> {
        let mut sides = Self { plain: Vec::new(), ours: Vec::new() };
        for run in 1..=runs {
            let order = if run % 2 == 1 { [Side::Ferry, Side::Virsh] } else { [Side::Virsh, Side::Ferry] };
            for side in order {
                let result = one(run, side).with_context(|| format!("Run {run} of {}", side.name()))?;
                match side {
                    Side::Virsh => sides.plain.push(result),
                    Side::Ferry => sides.ours.push(result),
                }
            }
        }
        Ok(sides)
    }

    /// The median of Ferry's runs divided by that of the other side.
    pub(super) fn ratio(&self, of: fn(&R) -> f64) -> f64 {
        median(self.ours.iter().map(of)) / median(self.plain.iter().map(of))
    }

    /// By how much the silence of Ferry's guest exceeds 1.15 × that of the other side, medians.
    pub(super) fn silence(&self, of: fn(&R) -> f64) -> Figure {
        let value = median(self.ours.iter().map(of)) - 1.15 * median(self.plain.iter().map(of));
        Figure::new("guest silent, ferry − 1.15 × virsh, ms", value, 100.0)
    }

    pub(super) fn table(&self, plain: &str, rows: &[Row<R>]) -> String {
        let mut text = format!("| | {plain} | ferry |\n|---|---|---|\n");
        for (name, of) in rows {
            text += &format!("| {name} | {} | {} |\n", range(&self.plain, *of), range(&self.ours, *of));
        }
        text
    }
}

/// A row of a table: its name, and its value from a run.
pub(super) type Row<R> = (&'static str, fn(&R) -> f64);

/// Median, minimum and maximum.
pub(super) fn range<R>(runs: &[R], of: fn(&R) -> f64) -> String {
    let (least, most) =
        runs.iter().map(of).fold((f64::MAX, 0.0_f64), |(least, most), value| (least.min(value), most.max(value)));
    format!("{:.0} ({least:.0} – {most:.0})", median(runs.iter().map(of)))
}

pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

/// A measured value with its bound.
pub(super) struct Figure {
    name: &'static str,
    value: f64,
    bound: f64,
}

impl Figure {
    pub(super) fn new(name: &'static str, value: f64, bound: f64) -> Self {
        Self { name, value, bound }
    }

    pub(super) fn met(&self) -> bool {
        self.value <= self.bound
    }
}

pub(super) fn verdicts(figures: &[Figure]) -> String {
    let mut text = "\n| figure | measured | bound | |\n|---|---|---|---|\n".to_owned();
    for figure in figures {
        let verdict = if figure.met() { "met" } else { "**missed**" };
        text += &format!("| {} | {:.2} | {:.2} | {verdict} |\n", figure.name, figure.value, figure.bound);
    }
    text
}

/// A move that is being measured.
pub(super) struct Watch<'a> {
    observer: &'a Observer,
    vm: &'a str,
    begun: Duration,
    started: Instant,
    busy_ms: f64,
}

impl<'a> Watch<'a> {
    pub(super) fn begin(observer: &'a Observer, vm: &'a str) -> anyhow::Result<Self> {
        // Flush earlier writes, so that they are not written back during the measurement.
        nix::unistd::sync();
        Ok(Self { observer, vm, begun: now(), busy_ms: busy_ms()?, started: Instant::now() })
    }

    /// The time since the start, and the busy time of the machine's processors since then. Milliseconds.
    pub(super) fn end(&self) -> anyhow::Result<(f64, f64)> {
        Ok((self.started.elapsed().as_secs_f64() * 1_000.0, busy_ms()? - self.busy_ms))
    }

    /// The longest silence of the guest since the start. Milliseconds.
    pub(super) fn gap_ms(&self) -> anyhow::Result<f64> {
        let heard = self.observer.heard(self.vm);
        let around: Vec<Heard> = heard.into_iter().filter(|heard| heard.at >= self.begun).collect();
        Ok(judge(&around)?.gap_ms as f64)
    }
}

/// Busy time of all processors of the machine since its boot.
pub(super) fn busy_ms() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).map_while(|word| word.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq: all except idle and iowait. A tick is 10 ms.
    let busy = ticks.iter().enumerate().filter(|(index, _)| ![3, 4].contains(index)).map(|(_, ticks)| ticks);
    Ok(busy.sum::<f64>() * 10.0)
}

/// Bytes that a host has sent through one of its devices.
pub(super) fn device_bytes(ferry: &Ferry, host: usize, device: &str) -> anyhow::Result<u64> {
    let text = ferry.lab.hosts[host].run(&["cat", &format!("/sys/class/net/{device}/statistics/tx_bytes")])?;
    Ok(text.trim().parse()?)
}

/// Runs a command of Ferry's command line that waits for its job; the job must succeed.
pub(super) fn job(ferry: &Ferry, line: &[&str]) -> anyhow::Result<JobView> {
    let mut words = vec!["--json"];
    words.extend(line);
    words.push("--wait");
    let output = run_within(ferry.command(&words)?, MOVE_DEADLINE)?;
    ensure!(output.ok(), "ferry {}: {}{}", line.join(" "), output.out, output.err);
    Ok(serde_json::from_str(output.out.lines().last().unwrap_or_default())?)
}

/// Moves a VM by `virsh migrate --live --p2p` with the options `more` to the host at `address`. Paths on the share are
/// translated in its definition, because the share is mounted at different paths on the hosts.
pub(crate) fn virsh_migrate(
    ferry: &Ferry,
    vm: &str,
    (from, to): (usize, usize),
    address: &str,
    more: &[&str],
) -> anyhow::Result<Ready> {
    let flags = [&["--live", "--p2p", "--persistent", "--undefinesource"], more].concat();
    virsh_migrate_by(ferry, vm, (from, to), address, &flags)
}

/// As [`virsh_migrate`], with just these options.
pub(super) fn virsh_migrate_by(
    ferry: &Ferry,
    vm: &str,
    (from, to): (usize, usize),
    address: &str,
    flags: &[&str],
) -> anyhow::Result<Ready> {
    let (source, destination) = (&ferry.lab.hosts[from], &ferry.lab.hosts[to]);
    let (here, there) = (ferry.mount_of(source)?, ferry.mount_of(destination)?);
    let translated = |flag: &str, name: &str| -> anyhow::Result<String> {
        let xml = source.virsh(&["dumpxml", vm, flag])?;
        let path = format!("/run/{name}.xml");
        fs::write(source.path(&path), xml.replace(&here.display().to_string(), &there.display().to_string()))?;
        Ok(path)
    };
    let (live, kept) = (translated("--migratable", "live")?, translated("--inactive", "kept")?);
    let mut command = source.command("virsh");
    command.args(["-q", "-c", "qemu:///system", "migrate"]).args(flags);
    command.args([vm, &format!("qemu+tcp://{address}/system")]);
    command.args(["--migrateuri", &format!("tcp://{address}"), "--xml", &live, "--persistent-xml", &kept]);
    Ok(Ready(command))
}

/// A prepared command, ready to be measured.
pub(crate) struct Ready(pub(super) std::process::Command);

impl Ready {
    pub(crate) fn go(self) -> anyhow::Result<String> {
        checked(self.0, MOVE_DEADLINE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_figure_is_told() {
        let sides = Sides { plain: vec![100.0, 90.0, 300.0], ours: vec![120.0, 115.0, 125.0] };
        let of: fn(&f64) -> f64 = |value| *value;
        assert_eq!(sides.ratio(of), 1.2);
        let figures = [Figure::new("total", sides.ratio(of), 1.15), sides.silence(of)];
        assert_eq!(figures.iter().map(Figure::met).collect::<Vec<_>>(), [false, true]);
        assert_eq!(verdicts(&figures).matches("**missed**").count(), 1);
        let table = sides.table("virsh", &[("total", of)]);
        assert!(table.contains("| total | 100 (90 – 300) | 120 (115 – 125) |"), "{table}");
    }

    #[test]
    fn each_side_goes_first_in_its_turn() {
        let mut order = Vec::new();
        let sides = Sides::alternate(2, |run, side| {
            order.push((run, side));
            Ok(order.len())
        });
        assert_eq!(order, [(1, Side::Ferry), (1, Side::Virsh), (2, Side::Virsh), (2, Side::Ferry)]);
        let sides = sides.expect("nothing fails");
        assert_eq!((sides.plain, sides.ours), (vec![2, 3], vec![1, 4]));
    }

    #[test]
    fn medians_are_medians() {
        assert_eq!((median([3.0, 1.0, 2.0]), median([1.0, 2.0])), (2.0, 1.5));
        assert!(median([]).is_nan());
    }
}
