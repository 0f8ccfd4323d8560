//! The hypervisor driver for libvirt with QEMU.

mod definitions;
mod ffi;
mod locks;
mod monitor;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock},
    thread,
    time::{Duration, Instant},
};

use ferry_core::{
    api::agent::Role,
    id::VmId,
    migration::Presence,
    units::ByteCount,
    vm::{VmFacts, VmFile},
};

use self::{
    definitions::{Definitions, there},
    ffi::{Connection, Domain, Fault, PausedReason, PowerState},
};
use super::{
    DISK_SOCKET, DiskCopy, DiskCopyRequest, DiskRefused, DiskSize, DomainEvent, EventSink, Hypervisor, HypervisorError,
    HypervisorHost, MEMORY_SOCKET, MigrateRequest, MigrationStats, RPC_SOCKET,
    definition::{self, Form},
    files_below, has_a_place, images_to_ask,
    rpc::{Bound, definition::check_definition},
};

/// How long QEMU may take to end the copy of a disk: it waits for writes that are under way.
const ABANDON_WITHIN: Duration = Duration::from_secs(15);
const ABANDON_PAUSE: Duration = Duration::from_millis(20);
/// Where libvirt writes down the processes of its VMs, `NAME.pid`.
const PROCESSES: &str = "/run/libvirt/qemu";

/// libvirt on this host, over one connection that is opened again when libvirtd was restarted.
pub struct Libvirt {
    uri: String,
    live: Mutex<Option<Arc<Live>>>,
    /// VMs whose migration shall end. QEMU may report the channel that it breaks itself for that as the failure.
    aborting: Mutex<BTreeSet<VmId>>,
    definitions: Definitions,
}

/// A connection, and what does not change while it lives.
struct Live {
    connection: Arc<Connection>,
    /// Asked once: for its capabilities libvirt may start every QEMU there is to probe it, each time, where
    /// `/dev/kvm` is there and cannot be used (2 s seen).
    host: OnceLock<(HypervisorHost, (u32, u32))>,
}

impl Libvirt {
    /// Will connect to `uri` (`qemu:///system`) at the first call.
    pub fn new(uri: impl Into<String>) -> Self {
        Self {
            uri: uri.into(),
            live: Mutex::new(None),
            aborting: Mutex::default(),
            definitions: Definitions::default(),
        }
    }

    fn live(&self) -> Result<Arc<Live>, HypervisorError> {
        let mut slot = self.live.lock().expect("nobody panics while holding it");
        if let Some(live) = slot.as_ref().filter(|live| live.connection.is_alive()) {
            return Ok(Arc::clone(live));
        }
        let connection = Arc::new(Connection::open(&self.uri).map_err(unreachable)?);
        let live = Arc::new(Live { connection, host: OnceLock::new() });
        *slot = Some(Arc::clone(&live));
        Ok(live)
    }

    /// The host, and the owner of its VMs' processes.
    fn host_and_owner(&self) -> Result<(HypervisorHost, (u32, u32)), HypervisorError> {
        let live = self.live()?;
        if let Some(known) = live.host.get() {
            return Ok(known.clone());
        }
        let capabilities = live.connection.capabilities().map_err(unreachable)?;
        let node = live.connection.node().map_err(unreachable)?;
        let missing = |what: &str| HypervisorError::Unreachable(format!("its capabilities do not say {what}"));
        let host = HypervisorHost {
            uuid: definition::host_uuid(&capabilities).ok_or_else(|| missing("the host's UUID"))?,
            cpus: node.cpus,
            memory_total: ByteCount::kib(node.memory_kib),
            libvirt_version: version(live.connection.library_version().map_err(unreachable)?),
            qemu_version: version(live.connection.hypervisor_version().map_err(unreachable)?),
            confined_by: definition::confined_by(&capabilities),
        };
        let owner = definition::process_owner(&capabilities).ok_or_else(|| missing("which user QEMU runs as"))?;
        Ok(live.host.get_or_init(|| (host, owner)).clone())
    }

    /// A definition, for another host or for people: volumes of storage pools are named by what they are.
    fn text(&self, domain: &Domain, form: ffi::Xml, what: &str) -> Result<String, HypervisorError> {
        definitions::text(&self.live()?.connection, domain, form).map_err(failed(what))
    }

    fn aborting(&self) -> MutexGuard<'_, BTreeSet<VmId>> {
        self.aborting.lock().expect("nobody panics while holding it")
    }

    fn find(&self, vm: VmId) -> Result<Option<Domain>, HypervisorError> {
        match self.live()?.connection.domain(&vm.to_string()) {
            Ok(domain) => Ok(Some(domain)),
            Err(fault) if fault.is_no_domain() => Ok(None),
            Err(fault) => Err(HypervisorError::Unreachable(fault.message)),
        }
    }

    fn need(&self, vm: VmId) -> Result<Domain, HypervisorError> {
        self.find(vm)?.ok_or(HypervisorError::NoVm(vm))
    }
}

fn unreachable(fault: Fault) -> HypervisorError {
    HypervisorError::Unreachable(fault.message)
}

fn failed(what: impl Into<String>) -> impl FnOnce(Fault) -> HypervisorError {
    let what = what.into();
    move |fault| match fault.is_aborted() {
        true => HypervisorError::Aborted { what },
        false => HypervisorError::Failed { what, reason: fault.message },
    }
}

/// What libvirt tells of a job: nothing of a VM that is not there any more or has no process. Other faults are none of
/// these: there may be a job.
fn none_if_gone<T>(
    told: Result<Option<T>, Fault>,
    what: impl FnOnce() -> String,
) -> Result<Option<T>, HypervisorError> {
    match told {
        Err(fault) if fault.is_no_domain() || fault.is_invalid_now() => Ok(None),
        told => told.map_err(asked(what())),
    }
}

/// Why a VM is not run whose guest ended that itself.
const CRASHED: &str = "its guest crashed, and its process is kept as its definition asks";
const SUSPENDED: &str = "its guest suspended itself to memory: wake it with `virsh dompmwakeup`";

fn left_as_it_is(what: String, reason: &str) -> HypervisorError {
    HypervisorError::Failed { what, reason: reason.to_owned() }
}

/// As [`failed`], for what may be asked again: a fault that says nothing of the VM is one of libvirt's own.
fn asked(what: impl Into<String>) -> impl FnOnce(Fault) -> HypervisorError {
    let what = what.into();
    move |fault| match fault.passes() {
        true => HypervisorError::Unreachable(format!("{what}: {}", fault.message)),
        false => failed(what)(fault),
    }
}

/// Waits until a disk is not being copied any more.
fn wait_for_no_copy(domain: &Domain, device: &str, what: &str) -> Result<(), HypervisorError> {
    let until = Instant::now() + ABANDON_WITHIN;
    loop {
        let has_ended = match domain.disk_job(device) {
            Ok(Some(_)) => false,
            // In this order: libvirt knows the copy until QEMU has given up the new file.
            Ok(None) => there(domain.xml(ffi::Xml::Live))?.is_none_or(|xml| definition::mirror(&xml, device).is_none()),
            Err(fault) if fault.is_no_domain() => true,
            Err(_) if matches!(domain.state(), Ok(PowerState::Off)) => true,
            Err(fault) => return Err(asked(what)(fault)),
        };
        if has_ended {
            return Ok(());
        }
        if Instant::now() >= until {
            let reason = format!("QEMU did not end it within {} s", ABANDON_WITHIN.as_secs());
            return Err(HypervisorError::Failed { what: what.to_owned(), reason });
        }
        thread::sleep(ABANDON_PAUSE);
    }
}

impl Hypervisor for Libvirt {
    fn host(&self) -> Result<HypervisorHost, HypervisorError> {
        Ok(self.host_and_owner()?.0)
    }

    fn vms(&self) -> Result<Vec<VmFacts<PathBuf>>, HypervisorError> {
        let live = self.live()?;
        let domains = live.connection.domains().map_err(unreachable)?;
        self.definitions.read(&live.connection, domains)
    }

    fn vm(&self, vm: VmId) -> Result<Option<VmFacts<PathBuf>>, HypervisorError> {
        let live = self.live()?;
        Ok(self.find(vm)?.map(|domain| definitions::read_now(&live.connection, &domain)).transpose()?.flatten())
    }

    fn files_in_use(&self) -> Result<BTreeSet<PathBuf>, HypervisorError> {
        let (mut used, mut images) = (BTreeSet::new(), BTreeSet::new());
        let live = self.live()?;
        for domain in live.connection.domains().map_err(unreachable)? {
            let (running, kept) = definitions::files_now(&live.connection, &domain)?;
            running.iter().chain(&kept).try_for_each(has_a_place)?;
            used.extend(running.iter().chain(&kept).flat_map(VmFile::places).cloned());
            // The definition by which a VM runs tells what lies below its disks; the one that is kept does not.
            images.extend(images_to_ask(kept.iter().filter(|file| !running.iter().any(|own| own.place == file.place))));
        }
        used.extend(files_below(images)?);
        Ok(used)
    }

    fn presence(&self, vm: VmId, role: Role) -> Result<Presence, HypervisorError> {
        let Some(domain) = self.find(vm)? else { return Ok(Presence::Absent) };
        let Some(state) = there(domain.state())? else { return Ok(Presence::Absent) };
        Ok(match (state, role) {
            (PowerState::Running, _) => Presence::Running,
            (PowerState::Crashed | PowerState::Suspended, _) => Presence::Halted,
            (PowerState::Off, Role::Source) if there(domain.shut_itself_down())? == Some(true) => Presence::Ended,
            (PowerState::Off, _) => Presence::Off,
            (PowerState::Paused(PausedReason::Migration), Role::Source) => {
                // In this order: a migration that ends in between changes the state first.
                match there(domain.job_stats(false))?.flatten() {
                    Some(_) => Presence::HandedOver,
                    None if there(domain.state())? == Some(state) => Presence::Left,
                    None => return self.presence(vm, role),
                }
            }
            (PowerState::Paused(PausedReason::NotRunAgain), Role::Source) => Presence::Stopped,
            (
                PowerState::Paused(PausedReason::Other | PausedReason::ByQemu | PausedReason::StartingUp),
                Role::Source,
            ) => Presence::Paused,
            (PowerState::Paused(PausedReason::Migration | PausedReason::StartingUp), Role::Destination) => {
                Presence::Receiving
            }
            (
                PowerState::Paused(PausedReason::Other | PausedReason::ByQemu | PausedReason::NotRunAgain),
                Role::Destination,
            ) => Presence::Arrived,
        })
    }

    fn watch(&self, sink: EventSink) -> Result<Box<dyn Send>, HypervisorError> {
        let relay = Box::new(move |event: ffi::Event<'_>| {
            let vm = |uuid: &str| uuid.parse().ok();
            let event = match event {
                ffi::Event::StoppedForMigration(uuid) => vm(uuid).map(DomainEvent::StoppedForMigration),
                ffi::Event::Changed(uuid) => vm(uuid).map(DomainEvent::Changed),
                ffi::Event::Closed => Some(DomainEvent::ConnectionLost),
            };
            event.into_iter().for_each(&sink);
        });
        // A connection of its own: libvirt keeps one close callback for each.
        let watch = Connection::open(&self.uri)
            .and_then(|connection| ffi::Watch::start(connection, relay))
            .map_err(unreachable)?;
        Ok(Box::new(watch))
    }

    fn start(&self, vm: VmId) -> Result<(), HypervisorError> {
        let domain = self.need(vm)?;
        let what = format!("Could not start VM {vm}");
        match domain.state().map_err(failed(&what))? {
            PowerState::Running => Ok(()),
            PowerState::Crashed => Err(left_as_it_is(what, CRASHED)),
            PowerState::Suspended => Err(left_as_it_is(what, SUSPENDED)),
            PowerState::Paused(_) | PowerState::Off => domain.create().map_err(failed(&what)),
        }
    }

    fn ensure_disks(&self, vm: VmId) -> Result<Vec<DiskRefused>, HypervisorError> {
        let what = format!("Could not see whether VM {vm} has its disks");
        let live = self.live()?;
        let domain = self.need(vm)?;
        let name = domain.name().map_err(asked(&what))?;
        let files = definition::parse(&domain.xml(ffi::Xml::Live).map_err(asked(&what))?)?.files;
        if locks::has_all(&Path::new(PROCESSES).join(format!("{name}.pid")), &files) {
            return Ok(Vec::new());
        }
        // Asked for nothing, an older QEMU would cost the VM its good name all the same.
        if live.connection.hypervisor_version().map_err(asked(&what))? < monitor::SINCE {
            return Ok(Vec::new());
        }
        monitor::activate(&domain, &files, &what)
    }

    fn shutdown(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.need(vm)?.shutdown().map_err(failed(format!("Could not ask VM {vm} to shut down")))
    }

    fn resume(&self, vm: VmId) -> Result<(), HypervisorError> {
        let domain = self.need(vm)?;
        let what = format!("Could not resume VM {vm}");
        match domain.state().map_err(failed(&what))? {
            // libvirt would run it.
            PowerState::Crashed => return Err(left_as_it_is(what, CRASHED)),
            PowerState::Suspended => return Err(left_as_it_is(what, SUSPENDED)),
            // One that runs is asked for, too: a libvirt that was restarted answers once it has taken the VM up again.
            PowerState::Running | PowerState::Paused(_) | PowerState::Off => {}
        }
        match domain.resume() {
            Ok(()) => Ok(()),
            // libvirt refuses to resume what runs; that is what was asked for.
            Err(fault) => match domain.state() {
                Ok(PowerState::Running) => Ok(()),
                Ok(PowerState::Paused(_) | PowerState::Crashed | PowerState::Suspended | PowerState::Off) | Err(_) => {
                    Err(failed(what)(fault))
                }
            },
        }
    }

    fn see_running(&self, vm: VmId) -> Result<bool, HypervisorError> {
        let what = format!("Could not see whether VM {vm} runs");
        let live = self.live()?;
        let domain = self.need(vm)?;
        if domain.state().map_err(asked(&what))? != PowerState::Paused(PausedReason::ByQemu)
            || live.connection.hypervisor_version().map_err(asked(&what))? < monitor::SINCE
        {
            return Ok(false);
        }
        match monitor::status(&domain, &what)? {
            monitor::Status::Stands => return Ok(false),
            // libvirt hears that it runs from QEMU, which says so only when it did not run before.
            monitor::Status::Runs => monitor::stop(&domain, &what)?,
            monitor::Status::LeftStopped => {}
        }
        domain.resume().map_err(failed(what))?;
        Ok(true)
    }

    fn destroy(&self, vm: VmId) -> Result<(), HypervisorError> {
        let Some(domain) = self.find(vm)? else { return Ok(()) };
        match domain.destroy() {
            Ok(()) => Ok(()),
            Err(fault) if fault.is_no_domain() => Ok(()),
            Err(fault) => match domain.state() {
                Ok(PowerState::Off) => Ok(()),
                Ok(PowerState::Running | PowerState::Paused(_) | PowerState::Crashed | PowerState::Suspended)
                | Err(_) => Err(failed(format!("Could not end the process of VM {vm}"))(fault)),
            },
        }
    }

    fn undefine(&self, vm: VmId) -> Result<(), HypervisorError> {
        let Some(domain) = self.find(vm)? else { return Ok(()) };
        match domain.undefine() {
            Ok(()) => Ok(()),
            Err(fault) if fault.is_no_domain() => Ok(()),
            // A transient VM has no definition to remove.
            Err(_) if domain.persistent().is_ok_and(|persistent| !persistent) => Ok(()),
            Err(fault) => Err(failed(format!("Could not remove the definition of VM {vm}"))(fault)),
        }
    }

    fn definition(&self, vm: VmId, paths: &[(PathBuf, PathBuf)]) -> Result<String, HypervisorError> {
        let what = format!("Could not take the definition of VM {vm} along");
        let refused = |reason: &str| Err(HypervisorError::Failed { what: what.clone(), reason: reason.to_owned() });
        let domain = self.need(vm)?;
        if domain.state().map_err(failed(&what))? != PowerState::Off {
            return refused("it is not shut off");
        }
        if domain.saved().map_err(failed(&what))? {
            return refused("its state was saved: start it, or remove that with `virsh managedsave-remove`");
        }
        let xml = self.text(&domain, ffi::Xml::Portable, &what)?;
        definition::translate(&xml, vm, paths, &[], Form::Kept)
    }

    fn kept_definition(&self, vm: VmId) -> Result<String, HypervisorError> {
        let what = format!("Could not read the definition of VM {vm}");
        self.text(&self.need(vm)?, ffi::Xml::Public, &what)
    }

    fn define(&self, definition: &str, bound: &Bound) -> Result<(), HypervisorError> {
        let bad = |reason: String| HypervisorError::Definition { vm: bound.vm, reason };
        check_definition(definition, bound).map_err(|error| bad(error.to_string()))?;
        let defined = self.live()?.connection.define(definition);
        defined.map(drop).map_err(failed(format!("Could not define VM {}", bound.name)))
    }

    fn set_autostart(&self, vm: VmId, autostart: bool) -> Result<(), HypervisorError> {
        self.need(vm)?.set_autostart(autostart).map_err(failed(format!("Could not set autostart of VM {vm}")))
    }

    fn migrate(&self, request: &MigrateRequest) -> Result<(), HypervisorError> {
        let vm = request.vm;
        self.aborting().remove(&vm);
        let domain = self.need(vm)?;
        let what = format!("Could not migrate VM {vm}");
        let read = |form| self.text(&domain, form, &what);
        let translate = |xml: &str, form| definition::translate(xml, vm, &request.translate, &request.disks, form);
        let live = translate(&read(ffi::Xml::Migratable)?, Form::Live)?;
        let kept = match request.persistent {
            true => Some(translate(&read(ffi::Xml::Portable)?, Form::Kept)?),
            false => None,
        };
        let disks: Vec<&str> = request.disks.iter().map(|disk| disk.device.as_str()).collect();
        let socket = |name: &str| request.socket_dir.join(name).display().to_string();
        // Takes effect for the migration that follows; libvirt resets it afterwards.
        domain.set_downtime_limit(milliseconds(request.downtime_limit)).map_err(failed(&what))?;
        domain
            .migrate(&ffi::Migrate {
                connection_uri: &format!("qemu+unix:///system?socket={}", socket(RPC_SOCKET)),
                migrate_uri: &format!("unix://{}", socket(MEMORY_SOCKET)),
                disks_uri: &format!("unix://{}", socket(DISK_SOCKET)),
                disks: &disks,
                live_xml: &live,
                persistent_xml: kept.as_deref(),
                // libvirt counts in MiB/s; zero would mean no cap.
                auto_converge: request.auto_converge,
                vouched: request.vouched,
                bandwidth_mib_per_s: request.bandwidth_bytes_per_s.map(|bytes| (bytes >> 20).max(1)),
            })
            .map_err(|fault| match self.aborting().remove(&vm) {
                true => HypervisorError::Aborted { what },
                false => failed(what)(fault),
            })
    }

    fn migration_stats(&self, vm: VmId) -> Result<Option<MigrationStats>, HypervisorError> {
        let Some(domain) = self.find(vm)? else { return Ok(None) };
        none_if_gone(domain.job_stats(false), || format!("Could not read the migration of VM {vm}"))
    }

    fn disk_along(&self, vm: VmId, device: &str) -> Result<Option<(ByteCount, ByteCount)>, HypervisorError> {
        let Some(domain) = self.find(vm)? else { return Ok(None) };
        let job = match domain.disk_job(device) {
            Err(fault) if fault.is_away() => return Err(unreachable(fault)),
            // While the memory is handed over libvirt may refuse to look; then it is not known.
            job => job.ok().flatten(),
        };
        Ok(job.map(|(cur, end)| (ByteCount(cur.min(end)), ByteCount(end))))
    }

    fn set_downtime_limit(&self, vm: VmId, limit: Duration) -> Result<(), HypervisorError> {
        let what = format!("Could not set the downtime limit of VM {vm}");
        self.need(vm)?.set_downtime_limit(milliseconds(limit)).map_err(failed(what))
    }

    fn completed_stats(&self, vm: VmId) -> Result<Option<MigrationStats>, HypervisorError> {
        let Some(domain) = self.find(vm)? else { return Ok(None) };
        none_if_gone(domain.job_stats(true), || format!("Could not read what the migration of VM {vm} took"))
    }

    fn abort_migration(&self, vm: VmId) -> Result<(), HypervisorError> {
        let Some(domain) = self.find(vm)? else { return Ok(()) };
        self.aborting().insert(vm);
        match domain.abort_job() {
            Ok(()) => Ok(()),
            Err(_) if domain.job_stats(false).is_ok_and(|job| job.is_none()) => Ok(()),
            Err(fault) => Err(failed(format!("Could not end the migration of VM {vm}"))(fault)),
        }
    }

    fn disk_size(&self, vm: VmId, device: &str) -> Result<DiskSize, HypervisorError> {
        self.need(vm)?.disk_size(device).map_err(failed(format!("Could not read the size of disk {device} of VM {vm}")))
    }

    fn copy_disk(&self, request: &DiskCopyRequest) -> Result<(), HypervisorError> {
        let DiskCopyRequest { vm, device, to, format, bandwidth_bytes_per_s } = request;
        let target = definition::copy_target(to, *format).ok_or_else(|| HypervisorError::Definition {
            vm: *vm,
            reason: format!("the path {} is not UTF-8", to.display()),
        })?;
        let what = format!("Could not copy disk {device} of VM {vm} to {}", to.display());
        self.need(*vm)?.copy_disk(device, &target, *bandwidth_bytes_per_s).map_err(asked(what))
    }

    fn disk_copy(&self, vm: VmId, device: &str) -> Result<Option<DiskCopy>, HypervisorError> {
        let domain = self.need(vm)?;
        if there(domain.state())?.is_none_or(|state| state == PowerState::Off) {
            return Ok(None);
        }
        // In this order: a job that ends in between has no mirror either.
        let (Some((cur, end)), Some(xml)) =
            (domain.disk_job(device).map_err(unreachable)?, there(domain.xml(ffi::Xml::Live))?)
        else {
            return Ok(None);
        };
        Ok(definition::mirror(&xml, device).map(|(to, ready)| DiskCopy {
            to,
            copied: ByteCount(cur.min(end)),
            total: ByteCount(end),
            ready,
        }))
    }

    fn pivot_disk(&self, vm: VmId, device: &str) -> Result<(), HypervisorError> {
        let what = format!("Could not switch disk {device} of VM {vm} to its copy");
        self.need(vm)?.end_disk_job(device, true).map_err(failed(what))
    }

    fn abandon_disk_copy(&self, vm: VmId, device: &str) -> Result<(), HypervisorError> {
        let Some(domain) = self.find(vm)? else { return Ok(()) };
        let what = format!("Could not end the copy of disk {device} of VM {vm}");
        match domain.end_disk_job(device, false) {
            Ok(()) => wait_for_no_copy(&domain, device, &what),
            // libvirt has no code of its own for "there is none".
            Err(_) if matches!(domain.disk_job(device), Ok(None)) || matches!(domain.state(), Ok(PowerState::Off)) => {
                Ok(())
            }
            Err(fault) if fault.is_no_domain() => Ok(()),
            Err(fault) => Err(asked(what)(fault)),
        }
    }

    fn rpc_socket(&self) -> PathBuf {
        // A URI may name the socket itself.
        if let Some((_, socket)) = self.uri.split_once("socket=") {
            return PathBuf::from(socket.split('&').next().unwrap_or(socket));
        }
        // libvirtd and the modular virtqemud listen at different places; with both, the modular one serves QEMU.
        let modular = PathBuf::from("/run/libvirt/virtqemud-sock");
        if modular.exists() { modular } else { PathBuf::from("/run/libvirt/libvirt-sock") }
    }

    fn process_owner(&self) -> Result<(u32, u32), HypervisorError> {
        Ok(self.host_and_owner()?.1)
    }
}

/// libvirt's number of a version: 1,000,000 × major + 1,000 × minor + release.
fn version(number: u64) -> String {
    format!("{}.{}.{}", number / 1_000_000, number / 1_000 % 1_000, number % 1_000)
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn no_job_a_vm_that_is_gone_and_a_daemon_that_is_away_are_three_things() {
        let read = |told: Result<Option<u8>, Fault>| none_if_gone(told, || "Could not look".to_owned());
        assert!(matches!(read(Ok(Some(1))), Ok(Some(1))));
        assert!(matches!(read(Ok(None)), Ok(None)));
        for (code, broken, expected) in [
            (virt_sys::VIR_ERR_NO_DOMAIN, false, "none"),
            (virt_sys::VIR_ERR_OPERATION_INVALID, false, "none"),
            (virt_sys::VIR_ERR_OPERATION_TIMEOUT, false, "unreachable"),
            (virt_sys::VIR_ERR_SYSTEM_ERROR, true, "unreachable"),
            (virt_sys::VIR_ERR_INTERNAL_ERROR, false, "failed"),
        ] {
            let found = match read(Err(Fault::test(code, broken))) {
                Ok(None) => "none",
                Err(HypervisorError::Unreachable(_)) => "unreachable",
                Err(HypervisorError::Failed { .. }) => "failed",
                other => panic!("{other:?}"),
            };
            assert_eq!(found, expected, "{code}");
        }
    }

    #[test]
    fn nothing_is_linked_that_libvirt_9_lacks() {
        // What this program needs of a library is named in it by the library's version of then: LIBVIRT_5.6.0.
        let program = std::fs::read(std::env::current_exe().expect("a path")).expect("readable");
        let named = |at: usize| {
            let text = &program[at + "LIBVIRT_".len()..];
            let end = text.iter().position(|byte| *byte == 0)?;
            let mut numbers = std::str::from_utf8(&text[..end]).ok()?.split('.').map(str::parse::<u32>);
            Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
        };
        let found = program.windows("LIBVIRT_".len()).enumerate().filter(|(_, text)| text == b"LIBVIRT_");
        let versions: BTreeSet<_> = found.filter_map(|(at, _)| named(at)).collect();
        assert!(versions.len() > 5, "the driver is linked: {versions:?}");
        assert!(versions.iter().all(|version| *version <= (9, 0)), "{versions:?}");
    }

    #[test]
    fn files_of_both_definitions_and_below_their_disks_are_in_use() {
        let folder = tempfile::tempdir().expect("a folder");
        let (base, top) = (folder.path().join("base.raw"), folder.path().join("top.qcow2"));
        std::fs::write(&base, [0; 4096]).expect("written");
        let mut tool = Command::new("qemu-img");
        tool.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(&base).arg(&top);
        assert!(tool.status().expect("qemu-img is installed").success());
        // libvirt's own in-process driver: no daemon is needed.
        let libvirt = Libvirt::new("test:///default");
        let define = |disk: &Path, format: &str| {
            let xml = format!(
                "<domain type='test'><name>db</name><uuid>0d7a4d0e-4f57-4f3e-9a80-0c6a4b6ad008</uuid><memory>1024</memory>\
                 <os><type>hvm</type></os><devices><disk type='file' device='disk'><driver name='qemu' type='{format}'/>\
                 <source file='{}'/><target dev='vda'/></disk></devices></domain>",
                disk.display()
            );
            libvirt.live().expect("connected").connection.define(&xml).expect("defined")
        };
        define(Path::new("/running.raw"), "raw").create().expect("started");
        // What it uses at its next start only.
        define(&top, "qcow2");
        let used = libvirt.files_in_use().expect("told");
        for path in [Path::new("/running.raw"), &top, &base] {
            assert!(used.contains(path), "{}: {used:?}", path.display());
        }
        let mut broken = std::fs::read(&top).expect("readable");
        // The length of its base's name.
        broken[16..20].fill(0xff);
        std::fs::write(&top, broken).expect("written");
        // What cannot be read is not left out.
        let error = libvirt.files_in_use().expect_err("a broken header");
        assert!(error.to_string().contains("top.qcow2"), "{error}");
    }
}
