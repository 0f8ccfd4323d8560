//! Events at a moving VM outside of Ferry: commands of an administrator with `virsh`, and a crash of the guest.
//!
//! ```text
//! act ─▶ settle ─▶ is the VM off because of the act? ── no ──▶ judged like any other run
//!                    └─ yes ─▶ one host has it, with its newest data ─▶ `ferry vm start` ─▶ it runs, intact
//! ```
//! A VM whose process an administrator ended is off. If the process was an incomplete copy, the VM is at the source,
//! and runs there.

use std::time::{Duration, Instant};

use super::{
    aim::Aim,
    judge::{self, Broken, Case},
    kind::Kind,
    processes::{has_qemu, without_server},
    stage::Stage,
};
use crate::{
    bench::virsh_migrate,
    host::Host,
    images,
    observe::{Heard, Observer, now},
    run::{ProgramOutput, wait_for},
};

/// After a process has ended, heartbeats in flight may be heard for this long.
const UNDERWAY: Duration = Duration::from_millis(300);
/// A guest that was not heard for this long was paused.
const SETTLED_WITHIN: Duration = Duration::from_millis(60);
/// How long a guest may take to crash, and how long an administrator keeps trying a start that is refused.
const CRASH_WITHIN: Duration = Duration::from_secs(3);
const STARTS_FOR: Duration = Duration::from_secs(5);
/// How many refused attempts to start are made.
const STARTS: u32 = 3;
/// How long Ferry may take to notice that a VM is off, and how long the VM may take to boot.
const START_WITHIN: Duration = Duration::from_secs(30);
const BOOT_WITHIN: Duration = Duration::from_secs(90);
const POLL_EVERY: Duration = Duration::from_millis(50);

/// The act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AdminAction {
    /// `virsh resume` on this host.
    Resume(usize),
    /// `virsh destroy` at the source.
    DestroySource,
    /// `virsh destroy` at the destination.
    DestroyDestination,
    /// `virsh migrate` to a third host.
    Migrate,
    /// `virsh start` at the source.
    Start,
    /// The guest crashes.
    Crash,
}

impl AdminAction {
    fn of(kind: Kind, aim: &Aim) -> Option<Self> {
        match kind {
            Kind::AdminResumeSource => Some(Self::Resume(aim.source)),
            Kind::AdminResumeDestination => Some(Self::Resume(aim.destination)),
            Kind::AdminDestroySource => Some(Self::DestroySource),
            Kind::AdminDestroyDestination => Some(Self::DestroyDestination),
            Kind::AdminMigrate => Some(Self::Migrate),
            Kind::AdminStart => Some(Self::Start),
            Kind::GuestCrash => Some(Self::Crash),
            Kind::Server
            | Kind::SourceAgent
            | Kind::DestinationAgent
            | Kind::SourceCarrier
            | Kind::DestinationCarrier
            | Kind::SourceLibvirtd
            | Kind::DestinationLibvirtd
            | Kind::DestinationQemu
            | Kind::Smbd
            | Kind::SourceHost
            | Kind::DestinationHost
            | Kind::Link
            | Kind::SourceLibvirtdBeforeFinish
            | Kind::SourceLibvirtdAfterFinish
            | Kind::Alias => None,
        }
    }
}

/// An act that had an effect on the VM.
#[derive(Clone, Debug)]
pub struct Act {
    what: AdminAction,
    /// The guest.
    pub guest: String,
    /// The host on which it was done.
    host: String,
    /// Its time, on the machine's clock.
    pub done: Duration,
    /// A description.
    pub description: String,
}

/// Performs the act. `None`: it had no target, or no longer.
///
/// # Errors
/// The lab fails to perform it.
pub fn act(stage: &Stage, observer: &Observer, kind: Kind, aim: &Aim) -> anyhow::Result<Option<Act>> {
    let Some(what) = AdminAction::of(kind, aim) else { return Ok(None) };
    let name = &aim.guest;
    let (source, destination) = (&stage.hosts()[aim.source], &stage.hosts()[aim.destination]);
    let (host, description) = match what {
        AdminAction::Resume(place) => by_virsh(&stage.hosts()[place], "resume", name)?,
        AdminAction::DestroySource => by_virsh(source, "destroy", name)?,
        AdminAction::DestroyDestination => by_virsh(destination, "destroy", name)?,
        AdminAction::Migrate => (destination, move_on(stage, observer, aim)?),
        // A running server would remove the definition immediately after the process's end.
        AdminAction::Start => (source, without_server(stage, || start_what_is_held(source, name))?),
        AdminAction::Crash => crash(stage, aim)?,
    };
    let act = |description| Act { what, guest: name.clone(), host: host.name.clone(), done: now(), description };
    Ok(description.map(act))
}

/// Applies a `virsh` command to a VM. Returns no description if the host does not know the VM, or has no process of it.
fn by_virsh<'a>(host: &'a Host, verb: &str, name: &str) -> anyhow::Result<(&'a Host, Option<String>)> {
    let output = host.try_run(&["virsh", "-q", "-c", "qemu:///system", verb, name])?;
    let line = format!("`virsh {verb} {name}` on {}", host.name);
    let description = match (output.ok(), verb) {
        (true, _) => Some(line),
        (false, "resume") if !output.err.contains("failed to get domain") => {
            Some(format!("{line} (refused: {})", output.err.trim().replace('\n', " ")))
        }
        (false, _) => None,
    };
    Ok((host, description))
}

/// Moves the VM to the host that is neither source nor destination.
fn move_on(stage: &Stage, observer: &Observer, aim: &Aim) -> anyhow::Result<Option<String>> {
    let (from, name) = (aim.destination, &aim.guest);
    if observer.last(name).is_none_or(|heard| heard.host != stage.hosts()[from].name) {
        return Ok(None);
    }
    let Some(to) = (0..stage.hosts().len()).find(|place| ![aim.source, from].contains(place)) else { return Ok(None) };
    let (here, there) = (&stage.hosts()[from], &stage.hosts()[to]);
    there.set_firewall(true)?;
    let moved = virsh_migrate(&stage.ferry, name, (from, to), &there.ip, &["--unsafe"]).and_then(|ready| ready.go());
    there.set_firewall(false)?;
    let line = format!("`virsh migrate {name}` from {} to {}", here.name, there.name);
    Ok(Some(match moved {
        Ok(_) => line,
        Err(error) => {
            let why = format!("{error:#}");
            let why = why.rsplit("error:").next().unwrap_or_default().trim().replace('\n', " ");
            format!("{line} (refused: {why})")
        }
    }))
}

/// Tries to start the VM at the source, until the source no longer knows it. While libvirt migrates the VM, it delays
/// the start, and starts the VM immediately afterwards.
fn start_what_is_held(source: &Host, name: &str) -> anyhow::Result<Option<String>> {
    let (until, mut vetoed) = (Instant::now() + STARTS_FOR, 0);
    while Instant::now() < until {
        let output = source.try_run(&["virsh", "-q", "-c", "qemu:///system", "start", name])?;
        if output.ok() {
            return Ok(Some(format!("`virsh start {name}` on {} (not vetoed)", source.name)));
        }
        if output.err.contains("failed to get domain") {
            break;
        }
        vetoed += u32::from(output.err.contains("held by Ferry"));
        if vetoed == STARTS {
            break;
        }
    }
    Ok((vetoed > 0).then(|| format!("`virsh start {name}` on {} (vetoed {vetoed} time(s))", source.name)))
}

/// While libvirt migrates a guest it does not report a crash. It may resume the guest first, and report the crash
/// later.
fn crash<'a>(stage: &'a Stage, aim: &Aim) -> anyhow::Result<(&'a Host, Option<String>)> {
    let (source, destination) = (&stage.hosts()[aim.source], &stage.hosts()[aim.destination]);
    let guest = stage.guests.iter().find(|guest| guest.name == aim.guest);
    let until = Instant::now() + CRASH_WITHIN;
    while Instant::now() < until {
        // A datagram may be lost. The guest crashes only once, even if it is resumed.
        if let Some(guest) = guest {
            guest.ask(&stage.ferry.lab, "crash")?;
        }
        let crashed =
            [source, destination].into_iter().find(|host| state(host, &aim.guest).is_some_and(|is| is == "crashed"));
        if let Some(host) = crashed {
            return Ok((host, Some(format!("guest {} crashed on {}", aim.guest, host.name))));
        }
        std::thread::sleep(POLL_EVERY);
    }
    Ok((source, Some(format!("guest {} crashed on {}, which libvirt does not say", aim.guest, source.name))))
}

/// libvirt's state of a VM.
pub fn state(host: &Host, name: &str) -> Option<String> {
    host.virsh(&["domstate", name]).ok().map(|output| output.trim().to_owned())
}

/// Why an act explains a silent guest: it was not heard since, and the ended process was the VM; or `crashed` is true
/// for the host on which it was last heard.
pub fn excuse(heard: &[Heard], act: &Act, crashed: impl FnOnce(&str) -> bool) -> Option<String> {
    let last = heard.last()?;
    if act.what == AdminAction::Crash && crashed(&last.host) {
        return Some(format!("its guest crashed on {}", last.host));
    }
    if last.at > act.done + UNDERWAY {
        return None;
    }
    match act.what {
        AdminAction::DestroySource => Some(format!("an administrator ended it on {}", act.host)),
        // If it was heard from the source until then, the ended process was an incomplete copy.
        AdminAction::DestroyDestination if last.host == act.host || last.at + SETTLED_WITHIN < act.done => {
            Some(format!("an administrator ended it on {}", act.host))
        }
        AdminAction::Crash => Some(format!("its guest crashed on {}", act.host)),
        AdminAction::DestroyDestination | AdminAction::Resume(_) | AdminAction::Migrate | AdminAction::Start => None,
    }
}

/// What a host has of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Has {
    host: String,
    process: bool,
    defined: bool,
}

/// The host that has a VM that is off because of the act.
///
/// # Errors
/// It is not exactly one host, or the VM is not in the state that the act left.
fn who_has(what: AdminAction, all: &[Has]) -> Result<&str, String> {
    let having: Vec<&Has> = all.iter().filter(|has| has.process || has.defined).collect();
    let places: Vec<String> = having
        .iter()
        .map(|has| format!("{} ({})", has.host, if has.process { "with a process" } else { "defined" }))
        .collect();
    let crashed = what == AdminAction::Crash;
    match having[..] {
        [one] if one.process == crashed => Ok(&one.host),
        [_] if crashed => Err(format!("crashed and has no process any more, but is at {}", places[0])),
        [_] => Err(format!("was shut off by an administrator and does not run, but is at {}", places[0])),
        [] => Err("was shut off and is nowhere any more".to_owned()),
        [..] => Err(format!("is at more than one host: {}", places.join(", "))),
    }
}

/// Restarts a VM that is off because of the act, and checks where it was and what data it has.
pub fn start_again(stage: &Stage, observer: &Observer, act: &Act) -> Vec<Case> {
    let name = &act.guest;
    let case = |broken, text: String| vec![Case { broken, text: format!("{name} {text}") }];
    let has = |host: &Host| Has {
        host: host.name.clone(),
        process: has_qemu(host, name),
        defined: state(host, name).is_some(),
    };
    let all: Vec<Has> = stage.hosts().iter().map(has).collect();
    let host = match who_has(act.what, &all) {
        Ok(host) => stage.ferry.lab.host(host),
        Err(text) => return case(Broken::Lost, text),
    };
    if let Err(text) = newest_data(stage, observer, name, &host.name) {
        return case(Broken::Corrupt, text);
    }
    if act.what == AdminAction::Crash
        && let Err(error) = host.virsh(&["destroy", name])
    {
        return case(Broken::Stuck, format!("crashed and cannot be ended on {}: {error:#}", host.name));
    }
    let since = now();
    if let Err(text) = start(stage, name) {
        return case(
            Broken::Lost,
            format!("is off on {}, and `ferry vm start {name}` does not start it: {text}", host.name),
        );
    }
    let lives = || -> Vec<Heard> { observer.heard(name).into_iter().filter(|heard| heard.at >= since).collect() };
    let well = wait_for("it is well", BOOT_WITHIN, || judge::is_well(&lives(), since, now()).then_some(()));
    let mut cases = judge::of_guest(name, &lives(), now(), None);
    if well.is_err() && cases.is_empty() {
        cases = case(Broken::Lost, format!("was started again on {} and is not well", host.name));
    }
    cases
}

/// Whether the disk contains all writes that were acknowledged to the guest before it ended.
fn newest_data(stage: &Stage, observer: &Observer, name: &str, host: &str) -> Result<(), String> {
    let in_words = |error: anyhow::Error| format!("{error:#}");
    let (path, format) = stage.disk_of(name, host).map_err(in_words)?;
    let writes = observer.last(name).map_or(0, |heard| heard.beat.writes);
    if !images::holds_data(&path, format, stage.data_mib()).map_err(in_words)? {
        return Err(format!("is off, and {} does not hold the data that were in it", path.display()));
    }
    let disk = images::head(&path, format, judge::DISK_BYTES).map_err(in_words)?;
    judge::of_disk(judge::sum_of_sequences(&disk)?, writes, None)
}

fn start(stage: &Stage, name: &str) -> Result<(), String> {
    let mut last = String::new();
    let started = wait_for("it starts", START_WITHIN, || {
        let output = stage.ferry.ferry(&["vm", "start", name]);
        last = output.as_ref().map_or_else(|error| format!("{error:#}"), |output| output.err.trim().to_owned());
        output.is_ok_and(|output| ProgramOutput::ok(&output)).then_some(())
    });
    started.map_err(|_| last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::Beat;

    fn heard(host: &str, at_ms: u64) -> Heard {
        let beat = Beat {
            vm: "vm".into(),
            count: at_ms,
            pages: 0,
            page_passes: 0,
            bad_pages: 0,
            sectors: 0,
            sector_passes: 0,
            bad_sectors: 0,
            writes: 0,
            asked: "rest".into(),
        };
        Heard { host: host.into(), at: Duration::from_millis(at_ms), beat }
    }

    #[test]
    fn only_the_end_of_the_vm_itself_excuses_its_silence() {
        // Silent since 1,000 ms; last heard from the source `a` or the destination `b`.
        for (what, at, last, done_ms, excused) in [
            (AdminAction::DestroySource, "a", "a", 1_010, true),
            (AdminAction::DestroySource, "a", "a", 690, false),
            (AdminAction::DestroyDestination, "b", "b", 1_010, true),
            // It was heard from the source until the copy was ended: it must continue there.
            (AdminAction::DestroyDestination, "b", "a", 1_010, false),
            // It was paused for the hand-over.
            (AdminAction::DestroyDestination, "b", "a", 1_100, true),
            (AdminAction::Crash, "a", "a", 1_010, true),
            (AdminAction::Resume(0), "a", "a", 1_010, false),
            (AdminAction::Migrate, "b", "b", 1_010, false),
            (AdminAction::Start, "a", "b", 1_010, false),
        ] {
            let done = Duration::from_millis(done_ms);
            let act = Act { what, guest: "vm".into(), host: at.into(), done, description: String::new() };
            assert_eq!(excuse(&[heard(last, 1_000)], &act, |_| false).is_some(), excused, "{act:?} {last}");
        }
    }

    #[test]
    fn a_guest_that_was_heard_after_its_crash_is_excused_where_it_is_crashed() {
        // libvirt resumes it once when it gives up the migration.
        let crash = |what| Act {
            what,
            guest: "vm".into(),
            host: "a".into(),
            done: Duration::from_millis(500),
            description: String::new(),
        };
        let excused =
            |what, crashed: &str| excuse(&[heard("a", 1_000)], &crash(what), |host| host == crashed).is_some();
        assert!(excused(AdminAction::Crash, "a"));
        assert!(!excused(AdminAction::Crash, "b"), "elsewhere");
        assert!(!excused(AdminAction::DestroySource, "a"), "nobody had it crash");
    }

    #[test]
    fn a_vm_that_is_off_is_at_one_host_as_it_was_left() {
        let has = |process, defined| move |host: &str| Has { host: host.into(), process, defined };
        let (nothing, defined, process) = (has(false, false), has(false, true), has(true, true));
        assert_eq!(who_has(AdminAction::DestroySource, &[defined("a"), nothing("b")]), Ok("a"));
        assert_eq!(who_has(AdminAction::Crash, &[nothing("a"), process("b")]), Ok("b"));
        for (what, all, word) in [
            (AdminAction::DestroySource, [defined("a"), defined("b")], "more than one"),
            (AdminAction::DestroySource, [nothing("a"), nothing("b")], "nowhere"),
            (AdminAction::DestroySource, [process("a"), nothing("b")], "does not run"),
            (AdminAction::Crash, [defined("a"), nothing("b")], "no process any more"),
            (AdminAction::Crash, [process("a"), defined("b")], "more than one"),
        ] {
            let description = who_has(what, &all).expect_err(word);
            assert!(description.contains(word), "{description}");
        }
    }
}
