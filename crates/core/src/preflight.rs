//! Facts → findings: what stands against a move, said before anything is changed.
//!
//! Every function here is pure. Each finding names its object and the fix; ids are documented in `docs/findings.md`.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    api::{
        agent::{API_VERSIONS, Role},
        server::Candidate,
    },
    files::DiskMove,
    finding::{Finding, FindingId, any_blocks},
    host::HostFacts,
    id::{JobId, ShareId, VmId},
    immovable::immovable,
    job::MoveKind,
    location::Location,
    memory::{self, Need},
    power::stands_still,
    release::{MOVES_EMULATED_SINCE, Release, distrusted, trusts},
    share::{AttachMode, AttachedShare},
    share_source::ShareSource,
    vm::{FileRole, Oddity, VmFacts, VmFile, VmState},
};

/// A VM on a host, as the inventory has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The host's name.
    pub host: String,
    /// The VM's id.
    pub id: VmId,
    /// The VM's name.
    pub name: String,
    /// Whether it runs there.
    pub state: VmState,
}

/// Finds the VM that `reference` means: a name, a UUID, or `HOST/NAME`. Ok holds an index into `placed`.
///
/// A VM that several hosts define is where it has a process; where none has one, a plain name is ambiguous.
///
/// # Errors
/// `vm.unknown`, `vm.ambiguous` (with the list `HOST/NAME`), `vm.runs-twice`.
pub fn resolve_vm(reference: &str, placed: &[Placed]) -> Result<usize, Finding> {
    let (host, name) = match reference.split_once('/') {
        Some((host, name)) => (Some(host), name),
        None => (None, reference),
    };
    let id: Option<VmId> = name.parse().ok();
    let mut matches: Vec<usize> = (0..placed.len())
        .filter(|&index| {
            let vm = &placed[index];
            (vm.name == name || Some(vm.id) == id) && host.is_none_or(|host| vm.host == host)
        })
        .collect();
    let ids: BTreeSet<VmId> = matches.iter().map(|&index| placed[index].id).collect();
    if ids.len() == 1 && matches.len() > 1 {
        let alive: Vec<usize> =
            matches.iter().copied().filter(|&index| placed[index].state != VmState::ShutOff).collect();
        let running = alive.iter().filter(|&&index| placed[index].state == VmState::Running).count();
        if running > 1 {
            return Err(runs_twice(&placed[matches[0]].name, &hosts_of(&alive, placed)));
        }
        if !alive.is_empty() {
            matches = vec![*alive.iter().find(|&&index| placed[index].state == VmState::Running).unwrap_or(&alive[0])];
        }
    }
    match matches[..] {
        [] => Err(Finding::blocks(
            FindingId::VmUnknown,
            reference,
            format!("No VM named {reference:?} is on any host that Ferry knows"),
            "List the VMs with `ferry vm list`; a host that does not answer shows the VMs it had last",
        )),
        [one] => Ok(one),
        _ => {
            let list: Vec<String> =
                matches.iter().map(|&index| format!("{}/{}", placed[index].host, placed[index].name)).collect();
            Err(Finding::blocks(
                FindingId::VmAmbiguous,
                reference,
                format!("{reference:?} may be any of {}", list.join(", ")),
                format!("Say which one, as in `{}`", list[0]),
            ))
        }
    }
}

/// The finding of a VM that runs on several hosts.
pub fn runs_twice(vm: &str, hosts: &[String]) -> Finding {
    Finding::blocks(
        FindingId::VmRunsTwice,
        vm,
        format!("VM {vm} runs on {} at once, and its copies write the same files", hosts.join(" and ")),
        "Decide which copy is the right one and destroy the others with `virsh destroy` at once; then check its disks",
    )
}

fn hosts_of(indices: &[usize], placed: &[Placed]) -> Vec<String> {
    indices.iter().map(|&index| placed[index].host.clone()).collect()
}

/// Whether two hosts' mounts were shown to be of one share, by a file written on one side and read on the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sameness {
    /// They are.
    Proven,
    /// The other side did not see the file, or saw another one.
    Different,
    /// It could not be tried, and why.
    NotProven(String),
    /// They are, but QEMU's locks do not work there: a VM that was handed over could not run. Says what went wrong.
    LocksFail(String),
}

/// A share, as findings name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedShare {
    /// Its name in Ferry.
    pub name: String,
    /// What stands behind it.
    pub source: ShareSource,
}

/// One host of a move.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether its agent answered just now.
    pub reachable: bool,
    /// Whether nothing is to be placed there.
    pub maintenance: bool,
    /// What the agent said, if it ever did.
    pub facts: Option<&'a HostFacts>,
    /// Its VMs.
    pub vms: &'a [VmFacts],
    /// Its shares.
    pub shares: &'a [AttachedShare],
}

/// Everything that [`live`] judges.
#[derive(Clone, Debug)]
pub struct LiveFacts<'a> {
    /// The VM, as the source has it.
    pub vm: &'a VmFacts,
    /// Another job that moves it.
    pub busy: Option<JobId>,
    /// Where it is.
    pub source: Side<'a>,
    /// Where it shall go.
    pub destination: Side<'a>,
    /// Names of shares.
    pub shares: &'a BTreeMap<ShareId, NamedShare>,
    /// What was proven of the shares the VM uses. A share without an entry was not asked about (quick look).
    pub sameness: &'a BTreeMap<ShareId, Sameness>,
    /// Disks that move along: the destination need not reach the files that they use now.
    pub along: &'a [DiskMove],
    /// Memory of the destination that other moves were promised.
    pub promised: &'a [Need],
    /// Somebody takes it that the destination's memory may not do.
    pub overcommit: bool,
}

/// What stands against a live move, blocking findings first.
pub fn live(facts: &LiveFacts<'_>) -> Vec<Finding> {
    judge(facts, true)
}

/// What hosts and shares have against a move of a VM that is shut off, blocking findings first; what the VM itself has
/// against it says [`crate::files::plan::plan_offline`].
pub fn offline(facts: &LiveFacts<'_>) -> Vec<Finding> {
    judge(facts, false)
}

fn judge(facts: &LiveFacts<'_>, live: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    if facts.source.name == facts.destination.name {
        findings.push(Finding::blocks(
            FindingId::VmAlreadyThere,
            &facts.vm.name,
            format!("VM {} is already on {}", facts.vm.name, facts.destination.name),
            "Choose another host; `ferry vm hosts` lists them",
        ));
        return findings;
    }
    if let Some(job) = facts.busy {
        // What else there is to find is the doing of that job.
        findings.push(busy(facts.vm, job));
        return findings;
    }
    if live {
        vm_state(facts, &mut findings);
        findings.extend(immovable(facts.vm));
    }
    for side in [&facts.source, &facts.destination] {
        host_state(side, &mut findings);
    }
    if facts.destination.maintenance {
        let name = facts.destination.name;
        findings.push(Finding::blocks(
            FindingId::HostMaintenance,
            name,
            format!("Host {name} is in maintenance: nothing is placed there"),
            format!("Choose another host, or end the maintenance: `ferry host resume {name}`"),
        ));
    }
    if facts.destination.reachable {
        destination_room(facts, &mut findings);
    }
    for file in &facts.vm.files {
        let stays = !facts.along.iter().any(|disk| disk.device == file.device);
        if stays {
            file_reach(facts, file, &mut findings);
        }
        file_remarks(facts, file, &mut findings);
        if file.is(Oddity::Encrypted) && (stays || !live) {
            findings.push(needs_secret(facts, file));
        }
    }
    // Where two QEMUs have a file open, one after the other: not that of a disk that moves along, nor of a VM that is off.
    let handed_over = if live { shares_that_stay(facts) } else { BTreeSet::new() };
    if live {
        files_trusted(facts, &mut findings);
    }
    for side in [&facts.source, &facts.destination] {
        findings.extend(server_locks(side, &handed_over));
    }
    sameness(facts, &handed_over, &mut findings);
    let places: Vec<&Location> = facts.vm.files.iter().flat_map(VmFile::places).collect();
    findings.extend(soft_shares(&facts.source, places.iter().copied()));
    findings.extend(soft_shares(&facts.destination, places.into_iter().chain(facts.along.iter().map(|disk| &disk.to))));
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

/// One host as the destination of the VM: what kind of move it would be, and why.
pub fn candidate(facts: &LiveFacts<'_>) -> Candidate {
    let findings = live(facts);
    let blocked = any_blocks(&findings);
    let kind = if facts.along.is_empty() { MoveKind::Live } else { MoveKind::LiveVsm };
    let why = match findings.first() {
        Some(first) if blocked => first.message.clone(),
        _ if kind == MoveKind::Live => "Every file of the VM lies on shares that both hosts reach".to_owned(),
        _ => {
            let disks: Vec<&str> = facts.along.iter().map(|disk| disk.device.as_str()).collect();
            format!("Moves along: {}", disks.join(", "))
        }
    };
    Candidate { host: facts.destination.name.to_owned(), kind: (!blocked).then_some(kind), why, findings }
}

/// Whether a host can use what lies at a place, as far as is known.
pub fn reaches(side: &Side<'_>, place: &Location) -> bool {
    match place {
        Location::Local { .. } => false,
        Location::Share { share, .. } => {
            side.shares.iter().any(|attached| attached.id == *share && attached.trouble.is_none())
        }
    }
}

/// The shares that a VM's files lie on.
pub fn shares_of(vm: &VmFacts) -> BTreeSet<ShareId> {
    vm.files.iter().flat_map(VmFile::places).filter_map(Location::share).collect()
}

fn vm_state(facts: &LiveFacts<'_>, findings: &mut Vec<Finding>) {
    let vm = facts.vm;
    match vm.state {
        VmState::ShutOff => findings.push(Finding::blocks(
            FindingId::VmNotRunning,
            &vm.name,
            format!("VM {} is shut off on {}", vm.name, facts.source.name),
            format!("Start it first: `ferry vm start {}`; or move it as it is with `--offline`", vm.name),
        )),
        VmState::Running | VmState::Paused | VmState::Crashed | VmState::Suspended | VmState::Incoming => {
            findings.extend(stands_still(vm, Some(facts.source.name)));
        }
    }
}

/// The finding of a VM that a job moves.
pub fn busy(vm: &VmFacts, job: JobId) -> Finding {
    busy_by(&vm.name, job)
}

/// As [`busy`], of a VM that is known by its name.
pub fn busy_by(vm_name: &str, job: JobId) -> Finding {
    Finding::blocks(
        FindingId::VmBusy,
        vm_name,
        format!("Job {job} moves VM {vm_name} now"),
        format!("Wait for it (`ferry job watch {job}`) or cancel it (`ferry job cancel {job}`)"),
    )
}

fn host_state(side: &Side<'_>, findings: &mut Vec<Finding>) {
    if !side.reachable {
        findings.push(Finding::blocks(
            FindingId::HostUnreachable,
            side.name,
            format!("The agent on host {} does not answer", side.name),
            format!(
                "Check that the host is up and `ferry-agent run` is running on it; see `ferry host show {}`",
                side.name
            ),
        ));
    }
    if let Some(facts) = side.facts {
        if !facts.api_versions.iter().any(|version| API_VERSIONS.contains(version)) {
            findings.push(Finding::blocks(
                FindingId::HostVersion,
                side.name,
                format!(
                    "The agent on {} speaks versions {:?} of the agent API, this server {API_VERSIONS:?}",
                    side.name, facts.api_versions
                ),
                "Bring server and agents to the same version",
            ));
        }
        for finding in &facts.findings {
            findings.push(Finding { object: side.name.to_owned(), ..finding.clone() });
        }
    }
}

fn destination_room(facts: &LiveFacts<'_>, findings: &mut Vec<Finding>) {
    let (vm, destination) = (facts.vm, &facts.destination);
    // It takes memory when it is started, not before.
    if let Some(host) = destination.facts.filter(|_| vm.state != VmState::ShutOff) {
        findings.extend(memory::findings(vm, destination.name, host, facts.promised, facts.overcommit));
    }
    machine_type(facts, findings);
    emulation(facts, findings);
    for other in destination.vms {
        if other.id == vm.id {
            findings.push(Finding::blocks(
                FindingId::VmUuidTaken,
                &vm.name,
                format!("Host {} already has a VM with UUID {}, named {}", destination.name, vm.id, other.name),
                format!(
                    "If it is a leftover, remove it on {}: `virsh undefine {}`; otherwise give one of them another UUID",
                    destination.name, other.name
                ),
            ));
        } else if other.name == vm.name {
            findings.push(Finding::blocks(
                FindingId::VmNameTaken,
                &vm.name,
                format!("Host {} already has another VM named {} (UUID {})", destination.name, vm.name, other.id),
                format!("Rename one of them: `virsh domrename {} NEW-NAME` on {}", vm.name, destination.name),
            ));
        }
    }
}

/// QEMU knows the machine types of its own release and of earlier ones.
fn machine_type(facts: &LiveFacts<'_>, findings: &mut Vec<Finding>) {
    let (vm, destination) = (facts.vm, &facts.destination);
    let (Some(machine), Some(host)) = (vm.machine.as_deref(), destination.facts) else { return };
    let (Some(needed), Some(has)) = (Release::of_machine(machine), Release::of(&host.qemu_version)) else { return };
    if needed > has {
        findings.push(Finding::blocks(
            FindingId::VmMachine,
            &vm.name,
            format!(
                "VM {} has machine type {machine}, and QEMU {} on {} is older than that",
                vm.name, host.qemu_version, destination.name
            ),
            format!(
                "Choose a host with QEMU {needed} or later; or, while the VM is shut off, set an earlier machine type                  (`virsh edit {}`): guests may see other devices then",
                vm.name
            ),
        ));
    }
}

/// What QEMU emulates, an old one does not move whole.
fn emulation(facts: &LiveFacts<'_>, findings: &mut Vec<Finding>) {
    let (vm, source) = (facts.vm, &facts.source);
    let Some(host) = source.facts.filter(|_| vm.emulated) else { return };
    if Release::of(&host.qemu_version).is_some_and(|release| release < MOVES_EMULATED_SINCE) {
        findings.push(Finding::warns(
            FindingId::HostRelease,
            &vm.name,
            format!(
                "QEMU {} on {} emulates the processors of VM {}, and forgets some of the pages that it changes during a live \
                 move: the guest may crash at its destination",
                host.qemu_version, source.name, vm.name
            ),
            format!(
                "Shut the VM down and move it with `--offline`; or run it by KVM, or by QEMU {MOVES_EMULATED_SINCE} or later"
            ),
        ));
    }
}

/// Both hosts' libvirts must take files that stay on shares for shared, or need not.
fn files_trusted(facts: &LiveFacts<'_>, findings: &mut Vec<Finding>) {
    for (side, role) in [(&facts.source, Role::Source), (&facts.destination, Role::Destination)] {
        let Some(version) = side.facts.map(|host| host.libvirt_version.as_str()) else { continue };
        let attached = |file: &VmFile| match &file.place {
            Location::Share { share, .. } => {
                side.shares.iter().find(|attached| attached.id == *share && attached.trouble.is_none())
            }
            Location::Local { .. } => None,
        };
        // What is not reached is told as that.
        let stays = facts.vm.files.iter().filter(|file| !facts.along.iter().any(|disk| disk.device == file.device));
        let files: Vec<_> =
            stays.filter_map(|file| attached(file).map(|share| (file, share.file_system.as_ref()))).collect();
        for (found, (file, on)) in trusts(version, role, &files).into_iter().zip(&files) {
            findings.extend(distrusted(found, (side.name, version), (&facts.vm.name, file), *on));
        }
    }
}

fn file_reach(facts: &LiveFacts<'_>, file: &VmFile, findings: &mut Vec<Finding>) {
    let vm = &facts.vm.name;
    let object = format!("{vm} {}", file.device);
    let (source, destination) = (facts.source.name, facts.destination.name);
    for below in &file.below {
        file_below_reach(facts, file, below, findings);
    }
    match (&file.place, file.role) {
        (_, FileRole::NotAFile) => findings.push(not_a_file(facts, file)),
        (Location::Local { path, .. }, FileRole::Media) => findings.push(Finding::blocks(
            FindingId::VmLocalMedia,
            object,
            format!("Drive {} of VM {vm} holds {path}, which lies on host {source} only", file.device),
            format!("Eject it (`virsh change-media {vm} {} --eject` on {source}) or put it on a share", file.device),
        )),
        (Location::Local { path, .. }, FileRole::Disk | FileRole::Nvram | FileRole::Boot) => {
            findings.push(Finding::blocks(
                FindingId::DiskNotShared,
                object,
                format!("{} of VM {vm} is {path} on host {source}, not on a share", role_and_device(file)),
                match file.role {
                    FileRole::Disk if file.shareable => format!(
                        "Shut down every VM that uses it and move them one after the other, each with the disk to the same \
                         place, `ferry vm migrate {vm} --to {destination} --storage PLACE --offline`; start none before all \
                         have moved. Or put the file on a share that both hosts reach"
                    ),
                    FileRole::Nvram => format!(
                        "Let them move along: `--storage PLACE`, a folder of {destination} \
                         (`ferry host browse {destination}`) or of a share"
                    ),
                    FileRole::Disk if !file.read_only => format!(
                        "Let it move along: `--storage PLACE`, a folder of {destination} (`ferry host browse {destination}`) \
                         or of a share"
                    ),
                    _ => format!("Put the file on a share that {source} and {destination} both reach (`ferry share list`)"),
                },
            ))
        }
        (Location::Share { share, path }, _) => {
            let what = format!("{} of VM {vm} is {path}", role_and_device(file));
            share_reach(facts, &object, &what, *share, findings);
        }
    }
}

/// A file on a share needs that share on both hosts. `what` says which file it is.
fn share_reach(facts: &LiveFacts<'_>, object: &str, what: &str, share: ShareId, findings: &mut Vec<Finding>) {
    let name = share_name(facts, share);
    for side in [&facts.source, &facts.destination] {
        let attached = side.shares.iter().find(|attached| attached.id == share);
        match attached {
            None if side.reachable => findings.push(Finding::blocks(
                FindingId::ShareNotAttached,
                object,
                format!(
                    "{what} on share {name}, and host {} does not reach it: the share is not attached on it",
                    side.name
                ),
                format!("Attach the share: `ferry share attach {name} --host {}`", side.name),
            )),
            Some(AttachedShare { trouble: Some(trouble), finding, .. }) => {
                let finding = share_in_trouble(&name, side.name, trouble, finding.as_ref());
                // Once for all files that lie there.
                if !findings.contains(&finding) {
                    findings.push(finding);
                }
            }
            None | Some(AttachedShare { trouble: None, .. }) => {}
        }
    }
}

/// An attached share that a host cannot use, told as its agent tells it.
fn share_in_trouble(share: &str, host: &str, trouble: &str, finding: Option<&Finding>) -> Finding {
    let (id, fix) = match finding {
        Some(finding) => (finding.id, finding.fix.clone()),
        None => (
            FindingId::ShareUnreachable,
            format!("See that the share works on {host}; if it was mounted otherwise, attach it again"),
        ),
    };
    Finding::blocks(id, share, format!("Host {host} cannot use share {share}: {trouble}"), fix)
}

/// A file that a disk which stays needs below it.
fn file_below_reach(facts: &LiveFacts<'_>, file: &VmFile, below: &Location, findings: &mut Vec<Finding>) {
    let (vm, device) = (&facts.vm.name, &file.device);
    let (object, destination) = (format!("{vm} {device}"), facts.destination.name);
    match below {
        Location::Share { share, path } => {
            let what = format!("{path}, which disk {device} of VM {vm} is an overlay over, is");
            share_reach(facts, &object, &what, *share, findings);
        }
        Location::Local { path, .. } => findings.push(Finding::blocks(
            FindingId::DiskNotShared,
            object,
            format!("Disk {device} of VM {vm} is an overlay over {path} on host {}, not on a share", facts.source.name),
            format!(
                "Let the disk move along as one image: `--disk {device}=PLACE`, a folder of {destination} \
                 (`ferry host browse {destination}`) or of a share, while the VM runs"
            ),
        )),
    }
}

/// What is no file cannot be taken along, and Ferry cannot tell whether the destination has the same.
fn not_a_file(facts: &LiveFacts<'_>, file: &VmFile) -> Finding {
    let (vm, device, source) = (&facts.vm.name, &file.device, facts.source.name);
    let (Location::Local { path, .. } | Location::Share { path, .. }) = &file.place;
    let object = format!("{vm} {device}");
    if file.is_medium() {
        return Finding::blocks(
            FindingId::VmLocalMedia,
            object,
            format!("Drive {device} of VM {vm} holds {path}, which is {}", file.what()),
            format!("Eject it: `virsh change-media {vm} {device} --eject` on {source}"),
        );
    }
    let kind = file.kind.as_deref().unwrap_or_default();
    let fix = match kind {
        "nvdimm" => "Detach it before the move, or move the VM by hand while it is shut off".to_owned(),
        "volume" => {
            format!("Start its pool (`virsh pool-list --all` and `virsh pool-start` on {source}), then ask again")
        }
        _ if kind.starts_with("filesystem") => {
            format!("Unmount it in the guest and detach it: `virsh detach-device {vm} FILE` on {source}")
        }
        _ => "Move the disk to a file on a share that both hosts reach".to_owned(),
    };
    Finding::blocks(
        FindingId::DiskNotShared,
        object,
        format!("{device} of VM {vm} is {path}, {}, and not a file on a share", file.what()),
        fix,
    )
}

/// An encrypted image can be used only where its secret is known.
fn needs_secret(facts: &LiveFacts<'_>, file: &VmFile) -> Finding {
    let destination = facts.destination.name;
    Finding::warns(
        FindingId::DiskEncrypted,
        format!("{} {}", facts.vm.name, file.device),
        format!(
            "Disk {} of VM {} is encrypted: {destination} must know the secret that its <encryption> names",
            file.device, facts.vm.name
        ),
        format!(
            "Define it there with the same UUID: `virsh secret-define` and `virsh secret-set-value` on {destination}"
        ),
    )
}

fn file_remarks(facts: &LiveFacts<'_>, file: &VmFile, findings: &mut Vec<Finding>) {
    let vm = &facts.vm.name;
    let will_be = facts.along.iter().find(|disk| disk.device == file.device).map_or(&file.place, |disk| &disk.to);
    let has_server = will_be.share().is_some();
    if file.role == FileRole::Disk && !file.read_only && !file.stops_on_error && has_server {
        findings.push(Finding::warns(
            FindingId::DiskUnsafe,
            format!("{vm} {}", file.device),
            format!("Disk {} of VM {vm} shows I/O errors to the guest when the file server is away", file.device),
            "Set error_policy='stop' in the disk's <driver>, so that the VM waits instead",
        ));
    }
}

/// Warns of shares among the places whose mount on a host gives the guest errors while the file server is away.
pub fn soft_shares<'a>(side: &Side<'_>, places: impl Iterator<Item = &'a Location>) -> Vec<Finding> {
    let used: BTreeSet<ShareId> = places.filter_map(Location::share).collect();
    let soft = side.shares.iter().filter(|share| share.soft && used.contains(&share.id));
    let warn = |share: &AttachedShare| {
        Finding::warns(
            FindingId::ShareSoft,
            &share.source,
            format!(
                "{} is mounted without `hard` on {}: guests see errors while its file server is away",
                share.source, side.name
            ),
            format!("Mount it anew with `-o hard` on {}, or let Ferry mount it", side.name),
        )
    };
    soft.map(warn).collect()
}

/// Shares among `used` whose mount on a host makes QEMU's locks those of the file server. There a running QEMU cannot
/// write what it has locked itself as soon as a second host has opened the file, which is what a move does.
fn server_locks(side: &Side<'_>, used: &BTreeSet<ShareId>) -> Vec<Finding> {
    let bad = side.shares.iter().filter(|share| share.server_locks && used.contains(&share.id));
    let block = |share: &AttachedShare| {
        let fix = match share.mode {
            // A VM that is shut off and defined keeps the share attached, so nobody is sent to detach it.
            AttachMode::Mounted => format!(
                "Shut down the VMs on {} that use it: as soon as none does, Ferry mounts it anew there, with `nobrl`",
                side.name
            ),
            AttachMode::Adopted => format!(
                "Stop the VMs that use it on {}, unmount it there, and mount it again with `-o nobrl` besides its other \
                 options; `-o remount,nobrl` changes nothing for files that are open",
                side.name
            ),
        };
        Finding::blocks(
            FindingId::ShareLocks,
            &share.source,
            format!(
                "{} is mounted without `nobrl` on {}: QEMU's locks become the file server's, and a VM that is moved could \
                 not run again",
                share.source, side.name
            ),
            fix,
        )
    };
    bad.map(block).collect()
}

/// Shares with files of the VM that do not move along.
fn shares_that_stay(facts: &LiveFacts<'_>) -> BTreeSet<ShareId> {
    let moves = |file: &VmFile| facts.along.iter().any(|disk| disk.device == file.device);
    let files = facts.vm.files.iter().filter(|file| !moves(file)).cloned().collect();
    shares_of(&VmFacts { files, ..facts.vm.clone() })
}

fn sameness(facts: &LiveFacts<'_>, handed_over: &BTreeSet<ShareId>, findings: &mut Vec<Finding>) {
    let (source, destination) = (facts.source.name, facts.destination.name);
    for share in shares_of(facts.vm) {
        let name = share_name(facts, share);
        // Said already, with the reason.
        let told = findings.iter().any(|finding| finding.id == FindingId::ShareLocks);
        match facts.sameness.get(&share) {
            None | Some(Sameness::Proven) => {}
            Some(Sameness::Different) => findings.push(not_same(&name, source, destination)),
            Some(Sameness::LocksFail(_)) if told || !handed_over.contains(&share) => {}
            Some(Sameness::LocksFail(why)) => findings.push(Finding::blocks(
                FindingId::ShareLocks,
                &name,
                format!(
                    "QEMU on {destination} could not take over from QEMU on {source} what lies on share {name}: {why}"
                ),
                format!(
                    "Look at the mount options of the share on {source} and {destination} (for SMB: `nobrl`), then attach \
                     it again"
                ),
            )),
            Some(Sameness::NotProven(why)) => findings.push(Finding::blocks(
                FindingId::ShareNotSame,
                &name,
                format!("Whether {source} and {destination} see the same share {name} could not be shown: {why}"),
                "See that the share can be written from both hosts, then try again",
            )),
        }
    }
}

/// The finding of two mounts that are not of one share.
pub fn not_same(share: &str, one: &str, other: &str) -> Finding {
    Finding::blocks(
        FindingId::ShareNotSame,
        share,
        format!(
            "A file that {one} wrote on share {share} is not there for {other}: two different shares stand behind one name"
        ),
        "Check what the server's name resolves to on both hosts, and what is mounted at an adopted path",
    )
}

fn role_and_device(file: &VmFile) -> String {
    match file.role {
        FileRole::Disk | FileRole::NotAFile => format!("Disk {}", file.device),
        FileRole::Media => format!("Drive {}", file.device),
        FileRole::Nvram => "The NVRAM".to_owned(),
        FileRole::Boot => format!("The {}", file.device),
    }
}

fn share_name(facts: &LiveFacts<'_>, share: ShareId) -> String {
    facts.shares.get(&share).map_or_else(|| share.to_string(), |named| named.name.clone())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::stall::Stall;
    use crate::{
        finding::Severity,
        fixtures,
        id::HostId,
        share::{AttachMode, FileSystem},
        units::ByteCount,
        vm::DiskFormat,
    };

    const VM: VmId = VmId(Uuid::from_u128(1));
    const SHARE: ShareId = ShareId(Uuid::from_u128(2));
    /// On the first host only.
    const OTHER: ShareId = ShareId(Uuid::from_u128(7));
    const KVM1: HostId = HostId(Uuid::from_u128(3));

    /// A VM and two hosts between which nothing stands; each test spoils one fact.
    struct Fixture {
        vm: VmFacts,
        busy: Option<JobId>,
        source: Host,
        destination: Host,
        sameness: BTreeMap<ShareId, Sameness>,
        along: Vec<DiskMove>,
    }

    struct Host {
        name: &'static str,
        reachable: bool,
        maintenance: bool,
        facts: HostFacts,
        vms: Vec<VmFacts>,
        shares: Vec<AttachedShare>,
    }

    fn attached() -> AttachedShare {
        fixtures::attached(SHARE.0.as_u128())
    }

    fn host(name: &'static str) -> Host {
        Host {
            name,
            reachable: true,
            maintenance: false,
            facts: fixtures::host(name),
            vms: Vec::new(),
            shares: vec![attached()],
        }
    }

    fn disk(place: Location) -> VmFile {
        fixtures::disk("vda", place)
    }

    fn no_file(kind: &str, place: Location) -> VmFile {
        VmFile { role: FileRole::NotAFile, kind: Some(kind.into()), ..disk(place) }
    }

    fn on_share() -> Location {
        Location::Share { share: SHARE, path: "web01/disk.raw".into() }
    }

    fn local(path: &str) -> Location {
        Location::Local { host: KVM1, path: path.into() }
    }

    fn vm() -> VmFacts {
        fixtures::vm(VM.0.as_u128(), vec![disk(on_share())])
    }

    impl Fixture {
        fn new() -> Self {
            Self {
                vm: vm(),
                busy: None,
                source: Host { shares: vec![attached(), AttachedShare { id: OTHER, ..attached() }], ..host("kvm1") },
                destination: host("kvm2"),
                sameness: BTreeMap::from([(SHARE, Sameness::Proven)]),
                along: Vec::new(),
            }
        }

        fn findings(&self) -> Vec<Finding> {
            self.judged(live)
        }

        fn judged(&self, how: fn(&LiveFacts<'_>) -> Vec<Finding>) -> Vec<Finding> {
            let shares = BTreeMap::from([(SHARE, NamedShare { name: "vms".into(), source: attached().source })]);
            how(&LiveFacts {
                vm: &self.vm,
                busy: self.busy,
                source: self.source.side(),
                destination: self.destination.side(),
                shares: &shares,
                sameness: &self.sameness,
                along: &self.along,
                promised: &[],
                overcommit: false,
            })
        }
    }

    impl Host {
        fn side(&self) -> Side<'_> {
            Side {
                name: self.name,
                reachable: self.reachable,
                maintenance: self.maintenance,
                facts: Some(&self.facts),
                vms: &self.vms,
                shares: &self.shares,
            }
        }
    }

    #[test]
    fn nothing_stands_against_a_good_move() {
        assert_eq!(Fixture::new().findings(), []);
    }

    type Spoil = fn(&mut Fixture);

    /// One row each: what is wrong, the id, and words that the finding must hold (the object and the fix).
    const ROWS: &[(&str, Spoil, FindingId, &[&str])] = &[
        ("stopped", |f| f.vm.state = VmState::ShutOff, FindingId::VmNotRunning, &["web01", "ferry vm start web01"]),
        ("paused", |f| f.vm.state = VmState::Paused, FindingId::VmPaused, &["web01", "virsh resume web01"]),
        (
            "a disk that could not be read",
            |f| {
                f.vm.state = VmState::Paused;
                f.vm.stall = Some(Stall { devices: vec!["vda".into()], full: false });
            },
            FindingId::VmPaused,
            &["web01", "vda could not be read", "run again by itself", "virsh resume web01"],
        ),
        (
            "a disk without room",
            |f| {
                f.vm.state = VmState::Paused;
                f.vm.stall = Some(Stall { devices: vec!["vda".into()], full: true });
            },
            FindingId::VmPaused,
            &["web01", "no room for what it writes to vda", "Make room", "virsh resume web01"],
        ),
        (
            "crashed",
            |f| f.vm.state = VmState::Crashed,
            FindingId::VmCrashed,
            &["web01 crashed on kvm1", "virsh dump web01", "`virsh destroy web01` on kvm1"],
        ),
        (
            "suspended",
            |f| f.vm.state = VmState::Suspended,
            FindingId::VmSuspended,
            &["web01", "`virsh dompmwakeup web01` on kvm1"],
        ),
        ("incoming", |f| f.vm.state = VmState::Incoming, FindingId::VmBusy, &["web01", "ferry job list"]),
        ("already there", |f| f.destination.name = "kvm1", FindingId::VmAlreadyThere, &["web01", "kvm1"]),
        ("busy", |f| f.busy = Some(JobId(7)), FindingId::VmBusy, &["web01", "ferry job watch 7"]),
        (
            "destination in maintenance",
            |f| f.destination.maintenance = true,
            FindingId::HostMaintenance,
            &["kvm2", "ferry host resume kvm2"],
        ),
        ("destination away", |f| f.destination.reachable = false, FindingId::HostUnreachable, &["kvm2"]),
        ("source away", |f| f.source.reachable = false, FindingId::HostUnreachable, &["kvm1"]),
        (
            "local disk",
            |f| f.vm.files.push(disk(local("/srv/data.raw"))),
            FindingId::DiskNotShared,
            &["vda", "/srv/data.raw", "kvm1", "kvm2"],
        ),
        (
            "shared local disk",
            |f| f.vm.files = vec![VmFile { shareable: true, ..disk(local("/srv/quorum.raw")) }],
            FindingId::DiskNotShared,
            &["vda", "/srv/quorum.raw", "Shut down every VM that uses it"],
        ),
        (
            "block device",
            |f| f.vm.files = vec![VmFile { role: FileRole::NotAFile, ..disk(local("/dev/sdb")) }],
            FindingId::DiskNotShared,
            &["vda", "/dev/sdb"],
        ),
        (
            "network disk",
            |f| f.vm.files = vec![no_file("network rbd", local("pool/image"))],
            FindingId::DiskNotShared,
            &["vda", "pool/image", "network rbd"],
        ),
        (
            "volume without a place",
            |f| f.vm.files = vec![no_file("volume", local("default/web01.raw"))],
            FindingId::DiskNotShared,
            &["vda", "default/web01.raw", "virsh pool-start"],
        ),
        (
            "machine type of a later QEMU",
            |f| f.destination.facts.qemu_version = "7.2.22".into(),
            FindingId::VmMachine,
            &["web01", "kvm2", "pc-q35-10.0", "7.2.22", "QEMU 10.0 or later"],
        ),
        (
            "page cache with an old libvirt at the source",
            |f| {
                f.source.facts.libvirt_version = "9.0.0".into();
                f.vm.files[0].bypasses_cache = false;
            },
            FindingId::HostRelease,
            &["web01 vda", "kvm1", "9.0.0", "cache='none'", "10.9"],
        ),
        (
            "old libvirt at the destination, which gives files back",
            |f| {
                f.destination.facts.libvirt_version = "9.0.0".into();
                f.destination.shares[0].file_system = Some(FileSystem { kind: "ext4".into(), fixed_owner: false });
            },
            FindingId::HostRelease,
            &["web01 vda", "kvm2", "9.0.0", "ext4", "10.9"],
        ),
        (
            "folder below a mount",
            |f| f.vm.files = vec![no_file("dir", on_share())],
            FindingId::DiskNotShared,
            &["vda", "web01/disk.raw", "type dir"],
        ),
        (
            "filesystem",
            |f| f.vm.files = vec![VmFile { device: "share".into(), ..no_file("filesystem virtiofs", local("/home")) }],
            FindingId::DiskNotShared,
            &["share", "/home", "virsh detach-device web01"],
        ),
        (
            "memory in a file",
            |f| f.vm.files = vec![VmFile { device: "nvdimm".into(), ..no_file("nvdimm", local("/pmem")) }],
            FindingId::DiskNotShared,
            &["nvdimm", "/pmem", "Detach"],
        ),
        (
            "drive with a block device",
            |f| f.vm.files = vec![no_file("cdrom block", local("/dev/sr0"))],
            FindingId::VmLocalMedia,
            &["vda", "/dev/sr0", "virsh change-media web01 vda --eject"],
        ),
        (
            "overlay over a local file",
            |f| f.vm.files[0].below = vec![local("/base.raw")],
            FindingId::DiskNotShared,
            &["vda", "/base.raw", "kvm1", "--disk vda=PLACE"],
        ),
        (
            "overlay over a file on another share",
            |f| f.vm.files[0].below = vec![Location::Share { share: OTHER, path: "base.raw".into() }],
            FindingId::ShareNotAttached,
            &["vda", "base.raw", "ferry share attach", "kvm2"],
        ),
        ("checkpoint", |f| f.vm.checkpoints = 2, FindingId::VmCheckpoint, &["2 checkpoint", "--metadata"]),
        (
            "local NVRAM",
            |f| f.vm.files = vec![VmFile { role: FileRole::Nvram, ..disk(local("/var/lib/libvirt/nvram.fd")) }],
            FindingId::DiskNotShared,
            &["NVRAM", "/var/lib/libvirt/nvram.fd", "--storage PLACE", "ferry host browse kvm2"],
        ),
        (
            "local medium",
            |f| f.vm.files.push(VmFile { role: FileRole::Media, device: "sda".into(), ..disk(local("/iso/d.iso")) }),
            FindingId::VmLocalMedia,
            &["sda", "/iso/d.iso", "--eject"],
        ),
        (
            "share on the source only",
            |f| f.destination.shares.clear(),
            FindingId::ShareNotAttached,
            &["vms", "kvm2", "web01/disk.raw", "ferry share attach vms --host kvm2"],
        ),
        (
            "share in trouble",
            |f| {
                // One of several files on it: told once.
                f.vm.files.push(VmFile { device: "vdb".into(), ..disk(on_share()) });
                let share = &mut f.destination.shares[0];
                let (message, fix) = ("the server refused user root", "Let it take the password again");
                share.finding = Some(Finding::blocks(FindingId::SharePassword, "share", message, fix));
                share.trouble = Some(message.into());
            },
            FindingId::SharePassword,
            &["vms", "kvm2", "the server refused user root", "Let it take the password again"],
        ),
        (
            "share in trouble, as an earlier agent tells it",
            |f| f.destination.shares[0].trouble = Some("the mount does not answer".into()),
            FindingId::ShareUnreachable,
            &["vms", "kvm2", "the mount does not answer"],
        ),
        (
            "two shares of one name",
            |f| {
                f.sameness.insert(SHARE, Sameness::Different);
            },
            FindingId::ShareNotSame,
            &["vms", "kvm1", "kvm2"],
        ),
        (
            "sameness not shown",
            |f| {
                f.sameness.insert(SHARE, Sameness::NotProven("read only".into()));
            },
            FindingId::ShareNotSame,
            &["vms", "read only"],
        ),
        (
            "the kernel's SMB client without nobrl, mounted by Ferry",
            |f| f.destination.shares[0].server_locks = true,
            FindingId::ShareLocks,
            &["kvm2", "nobrl", "Shut down", "Ferry mounts it anew"],
        ),
        (
            "the same, mounted by the administrator of the source; it was seen as well",
            |f| {
                f.source.shares[0] =
                    AttachedShare { server_locks: true, mode: AttachMode::Adopted, ..f.source.shares[0].clone() };
                f.sameness.insert(SHARE, Sameness::LocksFail("refused".into()));
            },
            FindingId::ShareLocks,
            &["kvm1", "unmount", "-o nobrl", "remount,nobrl` changes nothing"],
        ),
        (
            "locks that let nobody take over",
            |f| {
                f.sameness.insert(SHARE, Sameness::LocksFail("byte 201 is locked".into()));
            },
            FindingId::ShareLocks,
            &["vms", "kvm1", "kvm2", "byte 201 is locked", "nobrl"],
        ),
        (
            "no memory",
            |f| f.destination.facts.memory_free = ByteCount::gib(1),
            FindingId::HostMemory,
            &["kvm2", "1.1 GiB", "1.0 GiB"],
        ),
        ("snapshot", |f| f.vm.snapshots = 2, FindingId::VmSnapshot, &["web01", "snapshot-delete"]),
        (
            "host device",
            |f| f.vm.host_devices.push("pci 0000:01:00.0".into()),
            FindingId::VmHostDevice,
            &["0000:01:00.0", "Detach"],
        ),
        (
            "TPM",
            |f| f.vm.tpm = true,
            FindingId::VmHostDevice,
            &[
                "TPM",
                "/var/lib/libvirt/swtpm/00000000-0000-0000-0000-000000000001",
                "virsh undefine web01 --keep-nvram",
            ],
        ),
        (
            "UUID taken",
            |f| f.destination.vms.push(VmFacts { name: "old".into(), state: VmState::ShutOff, ..vm() }),
            FindingId::VmUuidTaken,
            &["kvm2", "old", "virsh undefine old"],
        ),
        (
            "name taken",
            |f| f.destination.vms.push(VmFacts { id: VmId(Uuid::from_u128(9)), ..vm() }),
            FindingId::VmNameTaken,
            &["kvm2", "web01", "virsh domrename"],
        ),
        (
            "agent of another time",
            |f| f.destination.facts.api_versions = vec![7],
            FindingId::HostVersion,
            &["kvm2", "[7]", "same version"],
        ),
        (
            "libvirt without shared_filesystems",
            |f| {
                f.destination.facts.findings.push(Finding::blocks(
                    FindingId::HostSharedFilesystems,
                    "this host",
                    "libvirt does not know that /srv/ferry is shared",
                    "Run `ferry-agent setup`",
                ));
            },
            FindingId::HostSharedFilesystems,
            &["kvm2", "ferry-agent setup"],
        ),
        (
            "confinement without the rule",
            |f| {
                f.destination.facts.findings.push(Finding::blocks(
                    FindingId::HostConfinement,
                    "this host",
                    "AppArmor does not let VMs use the sockets of moves",
                    "Run `ferry-agent setup`",
                ));
            },
            FindingId::HostConfinement,
            &["kvm2", "ferry-agent setup"],
        ),
    ];

    #[test]
    fn each_fact_that_stands_against_a_move_is_found_alone_and_named() {
        for (row, spoil, id, words) in ROWS {
            let mut fixture = Fixture::new();
            spoil(&mut fixture);
            let findings = fixture.findings();
            let [finding] = &findings[..] else { panic!("{row}: {findings:#?}") };
            assert_eq!((finding.id, finding.severity), (*id, Severity::Blocks), "{row}");
            let text = format!("{}\n{}\n{}", finding.object, finding.message, finding.fix);
            for word in *words {
                assert!(text.contains(word), "{row}: {word:?} is not in {text}");
            }
            assert!(!finding.message.ends_with('.') && !finding.fix.is_empty(), "{row}: {text}");
        }
    }

    #[test]
    fn old_releases_stand_against_nothing_that_they_can_do() {
        let mut fixture = Fixture::new();
        for host in [&mut fixture.source, &mut fixture.destination] {
            host.facts.libvirt_version = "9.0.0".into();
            host.facts.qemu_version = "7.2.22".into();
        }
        fixture.vm.machine = Some("pc-q35-7.2".into());
        assert_eq!(fixture.findings(), []);
        // A disk that moves along is not asked about.
        fixture.vm.files[0].bypasses_cache = false;
        let (from, to) = (on_share(), local("/n/x.raw"));
        fixture.along = vec![DiskMove { device: "vda".into(), from, real: None, to, format: DiskFormat::Raw }];
        assert_eq!(fixture.findings(), []);
    }

    #[test]
    fn an_emulated_vm_of_an_old_qemu_is_warned_of() {
        let mut fixture = Fixture::new();
        fixture.vm.machine = Some("pc-q35-7.2".into());
        fixture.source.facts.qemu_version = "7.2.22".into();
        assert_eq!(fixture.findings(), [], "KVM's kernel keeps the bitmap");
        fixture.vm.emulated = true;
        let findings = fixture.findings();
        let [finding] = &findings[..] else { panic!("{findings:#?}") };
        assert_eq!((finding.id, finding.severity), (FindingId::HostRelease, Severity::Warns));
        assert!(finding.message.contains("QEMU 7.2.22 on kvm1") && finding.fix.contains("`--offline`"), "{finding:?}");
        fixture.source.facts.qemu_version = "10.0.2".into();
        assert_eq!(fixture.findings(), []);
    }

    #[test]
    fn a_disk_that_shows_errors_to_the_guest_is_warned_of() {
        let mut fixture = Fixture::new();
        fixture.vm.files[0].stops_on_error = false;
        let findings = fixture.findings();
        assert_eq!(findings.len(), 1);
        assert_eq!((findings[0].id, findings[0].severity), (FindingId::DiskUnsafe, Severity::Warns));
        // No file server is behind a disk on a file system of the host.
        let (from, to) = (on_share(), local("/n/x.raw"));
        fixture.along = vec![DiskMove { device: "vda".into(), from, real: None, to, format: DiskFormat::Raw }];
        assert_eq!(fixture.findings(), []);
    }

    #[test]
    fn an_encrypted_disk_needs_its_secret_where_it_goes() {
        let mut fixture = Fixture::new();
        fixture.vm.files[0].oddities = vec![Oddity::Encrypted];
        let findings = fixture.findings();
        let [finding] = &findings[..] else { panic!("{findings:#?}") };
        assert_eq!((finding.id, finding.severity), (FindingId::DiskEncrypted, Severity::Warns));
        assert!(finding.message.contains("kvm2") && finding.fix.contains("virsh secret-define"), "{finding:?}");
        // Of one that cannot move along is said that, and not this.
        let (from, to) = (on_share(), local("/n/x.raw"));
        fixture.along = vec![DiskMove { device: "vda".into(), from, real: None, to, format: DiskFormat::Raw }];
        assert_eq!(fixture.findings(), []);
    }

    #[test]
    fn a_share_that_is_not_mounted_hard_is_warned_of() {
        let mut fixture = Fixture::new();
        fixture.destination.shares[0].soft = true;
        let findings = fixture.findings();
        let [finding] = &findings[..] else { panic!("{findings:#?}") };
        assert_eq!((finding.id, finding.severity), (FindingId::ShareSoft, Severity::Warns));
        assert!(finding.message.contains("kvm2") && finding.fix.contains("-o hard"), "{finding:?}");
        // What does not use it does not care.
        fixture.vm.files.clear();
        assert_eq!(fixture.findings(), []);
    }

    #[test]
    fn locks_do_not_matter_where_no_qemu_takes_over_from_another() {
        let mut fixture = Fixture::new();
        fixture.source.shares[0].server_locks = true;
        fixture.sameness.insert(SHARE, Sameness::LocksFail("refused".into()));
        assert_eq!(fixture.findings().len(), 1, "the disk stays on the share");
        // It leaves the share with the VM.
        let (from, to) = (on_share(), local("/n/x.raw"));
        fixture.along = vec![DiskMove { device: "vda".into(), from, real: None, to, format: DiskFormat::Raw }];
        assert_eq!(fixture.findings(), []);
        fixture.along.clear();
        let off = fixture.judged(offline);
        assert_eq!(off.iter().find(|finding| finding.id == FindingId::ShareLocks), None, "{off:#?}");
    }

    #[test]
    fn blocking_findings_come_first() {
        let mut fixture = Fixture::new();
        fixture.vm.files[0].stops_on_error = false;
        fixture.destination.facts.memory_free = ByteCount(0);
        let severities: Vec<_> = fixture.findings().iter().map(|finding| finding.severity).collect();
        assert_eq!(severities, [Severity::Blocks, Severity::Warns]);
    }

    fn placed(host: &str, id: u128, name: &str, state: VmState) -> Placed {
        Placed { host: host.into(), id: VmId(Uuid::from_u128(id)), name: name.into(), state }
    }

    #[test]
    fn a_reference_finds_one_vm_or_says_why_not() {
        let inventory = [
            placed("kvm1", 1, "web01", VmState::Running),
            placed("kvm1", 2, "db", VmState::Running),
            placed("kvm2", 3, "db", VmState::ShutOff),
            // Left behind by an earlier move: the one with a process counts.
            placed("kvm2", 1, "web01", VmState::ShutOff),
            placed("kvm1", 5, "twin", VmState::Running),
            placed("kvm2", 5, "twin", VmState::Running),
        ];
        let uuid = Uuid::from_u128(2).to_string();
        for (reference, expected) in [
            ("web01", Ok(0)),
            ("kvm2/web01", Ok(3)),
            ("db", Err(FindingId::VmAmbiguous)),
            ("kvm2/db", Ok(2)),
            (uuid.as_str(), Ok(1)),
            ("nope", Err(FindingId::VmUnknown)),
            ("kvm3/web01", Err(FindingId::VmUnknown)),
            ("", Err(FindingId::VmUnknown)),
            ("twin", Err(FindingId::VmRunsTwice)),
        ] {
            assert_eq!(resolve_vm(reference, &inventory).map_err(|finding| finding.id), expected, "{reference}");
        }
        let ambiguous = resolve_vm("db", &inventory).expect_err("two of that name");
        assert!(ambiguous.message.contains("kvm1/db, kvm2/db"), "{}", ambiguous.message);
    }
}
