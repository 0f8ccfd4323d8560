//! Renders bodies of the API as text.

mod carried;
mod places;

use ferry_core::{
    api::server::{
        Candidate, ChildView, HostView, JobView, PlannedDisk, ShareView, StepState, StepView, StoragePlan, VmView,
    },
    carried::Carried,
    files::DiskProgress,
    job::JobKind,
    location::Location,
    migration::Phase,
    network::HostAddress,
    share::AttachedShare,
    transfer::{Preset, RateLimits, Transfer},
    units::ByteCount,
    vm::{FileRole, VmState},
};
use time::{OffsetDateTime, macros::format_description};

pub(crate) use places::{places, storage_locations};

use crate::output::{findings, step_title, summary, table, usable, why};

fn state(state: VmState) -> &'static str {
    match state {
        VmState::Running => "running",
        VmState::Paused => "paused",
        VmState::Crashed => "crashed",
        VmState::Suspended => "suspended",
        VmState::Incoming => "arriving",
        VmState::ShutOff => "shut off",
    }
}

/// A duration in a readable unit.
pub(crate) fn duration(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..60_000 => format!("{:.1} s", ms as f64 / 1_000.0),
        60_000..3_600_000 => format!("{} min {:02} s", ms / 60_000, ms / 1_000 % 60),
        _ => format!("{} h {:02} min", ms / 3_600_000, ms / 60_000 % 60),
    }
}

fn at(ms: u64) -> String {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
    OffsetDateTime::from_unix_timestamp((ms / 1_000) as i64)
        .ok()
        .and_then(|time| time.format(&format).ok())
        .unwrap_or_default()
}

pub(crate) fn hosts(hosts: &[HostView]) -> String {
    let row = |host: &HostView| {
        let facts = host.facts.as_ref();
        let memory = facts.map(|facts| format!("{} of {}", facts.memory_free, facts.memory_total));
        let troubles = facts.map_or(0, |facts| facts.findings.len());
        vec![
            host.name.clone(),
            host.address.clone(),
            if !host.reachable {
                "away".into()
            } else if host.maintenance {
                "maintenance".into()
            } else if troubles > 0 {
                format!("{troubles} finding(s)")
            } else {
                "ok".into()
            },
            host.vms.len().to_string(),
            host.moves.iter().filter(|each| each.phase != Phase::Queued).count().to_string(),
            memory.unwrap_or_default(),
            facts.map(|facts| format!("{} / {}", facts.libvirt_version, facts.qemu_version)).unwrap_or_default(),
        ]
    };
    table(&["HOST", "AGENT", "STATE", "VMS", "MOVES", "FREE MEMORY", "LIBVIRT / QEMU"], hosts.iter().map(row).collect())
}

fn share_state(attached: &AttachedShare) -> String {
    usable(attached.trouble.as_deref(), attached.finding.as_ref())
}

pub(crate) fn host(host: &HostView) -> String {
    let mut text = format!("Host {}\n", host.name);
    let mut line = |name: &str, value: String| text += &format!("  {name:<10} {value}\n");
    line("agent", format!("{} ({})", host.address, if host.reachable { "answers" } else { "does not answer" }));
    line("key", host.pin.to_string());
    if host.maintenance {
        line("state", format!("maintenance: nothing is placed here until `ferry host resume {}`", host.name));
    }
    line("limits", format!("{} live, {} storage moves at once", host.limits.live, host.limits.storage));
    line("moves", transfer(host.transfer.preset, host.transfer.limits));
    if !host.migration_networks.is_empty() {
        let networks: Vec<String> = host.migration_networks.iter().map(String::from).collect();
        line("networks", format!("{}; moves use no other", networks.join(", ")));
    }
    if let Some(facts) = &host.facts {
        line("machine", format!("{}, {} CPUs", facts.hostname, facts.cpus));
        line("memory", format!("{} free of {}", facts.memory_free, facts.memory_total));
        line(
            "software",
            format!("libvirt {}, QEMU {}, agent {}", facts.libvirt_version, facts.qemu_version, facts.agent_version),
        );
        if let Some(addresses) = &facts.addresses {
            let one = |found: &HostAddress| format!("{found} ({})", found.interface);
            line("addresses", addresses.iter().map(one).collect::<Vec<_>>().join(", "));
        }
        text += &findings(&facts.findings);
    }
    let shares = host
        .shares
        .iter()
        .map(|share| vec![share.source.to_string(), format!("{:?}", share.mode).to_lowercase(), share_state(share)]);
    text += &format!("\n{}\n", table(&["SHARE", "MODE", "STATE"], shares.collect()));
    if !host.storage_locations.is_empty() {
        text += &format!("\n{}\n", storage_locations(&host.storage_locations));
    }
    let vms = host.vms.iter().map(|vm| vec![vm.name.clone(), state(vm.state).into(), vm.memory.to_string()]);
    text += &format!("\n{}\n", table(&["VM", "STATE", "MEMORY"], vms.collect()));
    if !host.moves.is_empty() {
        let moves = host.moves.iter().map(|each| {
            let way = if each.incoming { "in, from" } else { "out, to" };
            let way = format!("{way} {}", each.other);
            vec![each.job.to_string(), each.vm_name.clone(), way, each.phase.title().to_owned()]
        });
        text += &format!("\n{}\n", table(&["JOB", "MOVES", "", "STATE"], moves.collect()));
    }
    text
}

pub(crate) fn shares(shares: &[ShareView]) -> String {
    let row = |share: &ShareView| {
        let hosts: Vec<&str> = share.hosts.iter().map(|on| on.host.as_str()).collect();
        vec![share.name.clone(), share.source.to_string(), hosts.join(", ")]
    };
    table(&["SHARE", "PATH", "ATTACHED ON"], shares.iter().map(row).collect())
}

pub(crate) fn share(share: &ShareView) -> String {
    let row = |on: &ferry_core::api::server::ShareOnHost| {
        vec![on.host.clone(), format!("{:?}", on.attached.mode).to_lowercase(), share_state(&on.attached)]
    };
    let rows = share.hosts.iter().map(row).collect();
    format!("Share {}\n  path       {}\n\n{}", share.name, share.source, table(&["HOST", "MODE", "STATE"], rows))
}

pub(crate) fn vms(vms: &[VmView]) -> String {
    let row = |vm: &VmView| {
        vec![
            vm.facts.name.clone(),
            vm.host.clone(),
            state(vm.facts.state).into(),
            vm.facts.memory.to_string(),
            vm.facts.vcpus.to_string(),
            vm.job.map(|job| format!("job {job}")).unwrap_or_default(),
        ]
    };
    table(&["VM", "HOST", "STATE", "MEMORY", "CPUS", "MOVES"], vms.iter().map(row).collect())
}

pub(crate) fn vm(vm: &VmView) -> String {
    let facts = &vm.facts;
    let mut text = format!("VM {} on {}\n", facts.name, vm.host);
    let mut line = |name: &str, value: String| text += &format!("  {name:<10} {value}\n");
    line("uuid", facts.id.to_string());
    line("state", state(facts.state).to_owned());
    line("memory", facts.memory.to_string());
    line("cpus", facts.vcpus.to_string());
    line("autostart", if facts.autostart { "yes" } else { "no" }.to_owned());
    line("networks", facts.networks.join(", "));
    text += &findings(&vm.findings);
    let row = |file: &ferry_core::vm::VmFile| {
        let place = place(&file.place);
        let role = match file.role {
            FileRole::Disk => "disk",
            FileRole::Media => "media",
            FileRole::Nvram => "nvram",
            FileRole::Boot => "boot file",
            FileRole::NotAFile => "not a file",
        };
        vec![file.device.clone(), role.into(), place]
    };
    let rows = facts.files.iter().map(row).collect();
    format!("{text}\n{}", table(&["DEVICE", "ROLE", "PLACE"], rows))
}

/// How bytes travel, and how fast they may.
fn transfer(preset: Preset, limits: RateLimits) -> String {
    let limit = |what: &str, limit: Option<ByteCount>| limit.map(|limit| format!(", {what} at most {limit}/s"));
    [Some(preset.to_string()), limit("memory", limits.memory), limit("disks", limits.storage)]
        .into_iter()
        .flatten()
        .collect()
}

pub(crate) fn candidates(candidates: &[Candidate]) -> String {
    let row = |candidate: &Candidate| {
        let kind = candidate.kind.map_or("–", |kind| kind.title());
        vec![candidate.host.clone(), kind.to_owned(), why(candidate)]
    };
    let mut text = table(&["HOST", "MOVE", "WHY"], candidates.iter().map(row).collect());
    for candidate in candidates.iter().filter(|candidate| !candidate.findings.is_empty()) {
        text += &format!("\n\n{}\n{}", candidate.host, findings(&candidate.findings).trim_end());
    }
    for Transfer { preset, limits } in candidates.iter().filter_map(|candidate| candidate.transfer) {
        text += &format!("\n\nBytes would travel: {}", transfer(preset, limits));
    }
    for route in candidates.iter().filter_map(|candidate| candidate.route) {
        text += &format!("\n\nMigration network: {route}");
    }
    text
}

pub(crate) fn jobs(jobs: &[JobView]) -> String {
    let row = |job: &JobView| {
        let took = job.ended_at_ms.map(|end| duration(end.saturating_sub(job.accepted_at_ms)));
        vec![
            job.parent.map_or_else(|| job.id.to_string(), |parent| format!("{} of {parent}", job.id)),
            job.kind.title().to_owned(),
            job.vm_name.clone(),
            way(&job.source, &job.destination),
            job.waits
                .as_ref()
                .map_or_else(|| job.phase.title().to_owned(), |wait| format!("queued #{}", wait.position)),
            at(job.accepted_at_ms),
            took.unwrap_or_default(),
        ]
    };
    table(&["JOB", "KIND", "VM", "FROM → TO", "STATE", "ACCEPTED", "TOOK"], jobs.iter().map(row).collect())
}

/// Source and destination in short; several hosts are not named.
fn way(source: &str, destination: &str) -> String {
    let name = |host: &str| if host.is_empty() { "several".to_owned() } else { host.to_owned() };
    if source == destination && !source.is_empty() {
        return format!("on {source}");
    }
    format!("{} → {}", name(source), name(destination))
}

/// A short description of the job.
fn headline(job: &JobView) -> String {
    let several = |host: &str| if host.is_empty() { "several hosts".to_owned() } else { host.to_owned() };
    let (source, destination) = (several(&job.source), several(&job.destination));
    match job.kind {
        JobKind::Live => format!("Live move of {} from {source} to {destination}", job.vm_name),
        JobKind::LiveVsm => format!("Live move with storage of {} from {source} to {destination}", job.vm_name),
        JobKind::Offline => format!("Offline move of {} from {source} to {destination}", job.vm_name),
        JobKind::Storage => format!("Storage move of {} on {source}", job.vm_name),
        JobKind::Several => format!("Moves of {} from {source} to {destination}", job.vm_name),
        JobKind::Drain => format!("Drain of {source}: {} to {destination}", job.vm_name),
    }
}

pub(crate) fn job(job: &JobView) -> String {
    let mut text = format!(
        "Job {}: {}: {}\n  {}\n  accepted {} by {}\n",
        job.id,
        headline(job),
        job.phase.title(),
        summary(&job.sentences, &job.summary),
        at(job.accepted_at_ms),
        job.by
    );
    if let Some(parent) = job.parent {
        text += &format!("  part of job {parent}\n");
    }
    if job.attempt > 1 {
        text += &format!("  attempt {}\n", job.attempt);
    }
    if let Some(Transfer { preset, limits }) = job.transfer {
        text += &format!("  bytes travel: {}\n", transfer(preset, limits));
    }
    if let Some(route) = job.route {
        text += &format!("  migration network: {route}\n");
    }
    text += &findings(&job.findings);
    if !job.kind.is_parent() {
        text += &format!("\n{}\n", timeline(job));
    }
    if !job.children.is_empty() {
        let row = |child: &ChildView| {
            vec![
                child.id.to_string(),
                child.vm_name.clone(),
                way(&child.source, &child.destination),
                child.phase.title().to_owned(),
                summary(&child.sentences, &child.summary),
            ]
        };
        let rows = job.children.iter().map(row).collect();
        text += &format!("\n{}\n", table(&["JOB", "VM", "FROM → TO", "STATE", ""], rows));
    }
    if !job.disks.is_empty() {
        text += &format!("\n{}\n", disks(&job.disks));
    }
    if let Some(figures) = &job.figures.filter(|_| matches!(job.kind, JobKind::Storage | JobKind::Offline)) {
        text += &format!(
            "\n  total {} · looked at {} · took {} before, {} now\n",
            duration(figures.total_ms),
            figures.sent,
            figures.allocated_source,
            figures.allocated_destination
        );
    }
    if let Some(figures) = &job.figures.filter(|_| !matches!(job.kind, JobKind::Storage | JobKind::Offline)) {
        text += &format!(
            "\n  total {} · downtime {} (QEMU {}) · sent {} · on the wire {} · iterations {}\n",
            duration(figures.total_ms),
            duration(figures.downtime_ms),
            duration(figures.qemu_downtime_ms),
            figures.sent,
            figures.wire,
            figures.iterations
        );
        if job.kind == JobKind::LiveVsm {
            text += &format!(
                "  disks took {} at the source and take {} at the destination; {} of the bytes on the wire were theirs\n",
                figures.allocated_source, figures.allocated_destination, figures.disk_wire
            );
        }
        if let Some(Carried { memory, disks, .. }) = &figures.carried {
            text += &carried::line("memory", memory);
            text += &carried::line("disks", disks);
        }
    }
    if !job.log.is_empty() {
        text += "\nLog\n";
        for line in &job.log {
            text += &format!("  {}  {}\n", at(line.at_ms), summary(line.sentence.as_slice(), &line.message));
        }
    }
    text
}

fn place(place: &Location) -> String {
    match place {
        Location::Share { path, .. } => format!("share: {path}"),
        Location::Local { path, .. } => format!("this host: {path}"),
    }
}

/// One line for each disk that moves.
fn disks(disks: &[DiskProgress]) -> String {
    let size = |bytes: ByteCount| if bytes.0 == 0 { String::new() } else { bytes.to_string() };
    let row = |disk: &DiskProgress| {
        let percent = disk.copied.0.saturating_mul(100).checked_div(disk.total.0).unwrap_or(0);
        vec![
            disk.device.clone(),
            disk.stage.title().to_owned(),
            if disk.total.0 == 0 { String::new() } else { format!("{percent} % of {}", disk.total) },
            size(disk.allocated_before),
            size(disk.allocated_after),
        ]
    };
    table(&["DISK", "STATE", "COPIED", "TOOK", "TAKES NOW"], disks.iter().map(row).collect())
}

/// What a storage move would do.
pub(crate) fn storage_plan(plan: &StoragePlan) -> String {
    let row = |planned: &PlannedDisk| {
        vec![
            planned.disk.device.clone(),
            planned.disk.format.name().to_owned(),
            planned.allocated.map(|bytes| bytes.to_string()).unwrap_or_default(),
            place(&planned.disk.from),
            place(&planned.disk.to),
        ]
    };
    let rows = plan.disks.iter().map(row).collect();
    format!("{}\n{}", table(&["DISK", "FORMAT", "TAKES", "FROM", "TO"], rows), findings(&plan.findings))
}

/// Width of a bar in the timeline, in columns.
const BAR: u64 = 32;

/// The steps with their durations, as bars on a common axis.
pub(crate) fn timeline(job: &JobView) -> String {
    let start = job.accepted_at_ms;
    let last = job.steps.iter().filter_map(|step| step.ended_at_ms.or(step.started_at_ms)).max().unwrap_or(start);
    let span = last.saturating_sub(start).max(1);
    let row = |step: &StepView| {
        let mark = match step.state {
            StepState::Waiting => "·",
            StepState::Running => "▶",
            StepState::Done => "✓",
            StepState::Failed => "✗",
            StepState::Undone => "↺",
            StepState::UndoFailed => "‼",
        };
        let (from, to) = (step.started_at_ms, step.ended_at_ms.or(step.started_at_ms.map(|_| last)));
        let (bar, took) = match from.zip(to) {
            Some((from, to)) => {
                let column = |at: u64| at.saturating_sub(start) * BAR / span;
                let (left, right) = (column(from).min(BAR - 1), column(to).max(column(from) + 1).min(BAR));
                let bar = " ".repeat(left as usize) + &"█".repeat((right - left) as usize);
                (bar, duration(to.saturating_sub(from)))
            }
            None => (String::new(), String::new()),
        };
        let message = summary(step.sentence.as_slice(), step.message.as_deref().unwrap_or_default());
        vec![mark.to_owned(), step_title(job.kind, step), took, bar, message]
    };
    table(&["", "STEP", "TOOK", "WHEN", ""], job.steps.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use ferry_core::{
        id::{JobId, VmId},
        job::Figures,
        migration::Step,
        units::ByteCount,
    };

    use super::*;

    fn step(step: Step, from: u64, to: u64) -> StepView {
        let title = step.title().to_owned();
        StepView {
            step,
            title,
            state: StepState::Done,
            started_at_ms: Some(from),
            ended_at_ms: Some(to),
            message: None,
            sentence: None,
        }
    }

    #[test]
    fn a_finished_job_is_told_in_full() {
        let figures = Figures {
            total_ms: 2_340,
            downtime_ms: 96,
            qemu_downtime_ms: 80,
            sent: ByteCount::mib(200),
            wire: ByteCount::mib(201),
            iterations: 3,
            ..Figures::default()
        };
        let view = JobView {
            id: JobId(7),
            kind: JobKind::Live,
            parent: None,
            children: Vec::new(),
            attempt: 1,
            waits: None,
            vm: Some(VmId(uuid::Uuid::nil())),
            vm_name: "web01".into(),
            source: "kvm1".into(),
            destination: "kvm2".into(),
            phase: Phase::Succeeded,
            summary: "VM web01 runs on kvm2".into(),
            by: "admin".into(),
            accepted_at_ms: 1_000,
            ended_at_ms: Some(3_340),
            steps: vec![step(Step::Preflight, 1_000, 1_100), step(Step::Perform, 1_200, 3_200)],
            progress: None,
            disks: Vec::new(),
            sentences: Vec::new(),
            next: Vec::new(),
            figures: Some(figures),
            transfer: None,
            route: None,
            findings: Vec::new(),
            log: Vec::new(),
        };
        let text = job(&view);
        for expected in [
            "Job 7: Live move of web01 from kvm1 to kvm2: succeeded",
            "VM web01 runs on kvm2",
            "total 2.3 s · downtime 96 ms (QEMU 80 ms) · sent 200.0 MiB · on the wire 201.0 MiB · iterations 3",
            "Move memory and state",
            "2.0 s",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
    }

    #[test]
    fn durations_read_well() {
        for (ms, text) in
            [(0, "0 ms"), (999, "999 ms"), (1_500, "1.5 s"), (61_000, "1 min 01 s"), (3_660_000, "1 h 01 min")]
        {
            assert_eq!(duration(ms), text);
        }
    }
}
