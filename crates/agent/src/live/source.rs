//! The source of a live move, around its carrier: holds the VM, then releases it or removes its remains here.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use ferry_core::{
    api::agent::{PrepareSource, Role, ShareMount, SourceReady, Stage},
    error::chain,
    files::{DiskMove, cleanup::old_file_kept},
    finding::{Action, Finding, FindingId, Message},
    id::{Generation, JobId, VmId},
    location::Location,
    migration::Presence,
    vm::{FileRole, NVRAM, VmFacts},
};
use ferry_drivers::hypervisor::{Hypervisor, HypervisorError};
use tracing::{Instrument as _, info, warn};

use super::{
    carrier::{
        control::{Answer, Ask},
        source::run_again,
    },
    journal::{Journal, Task},
    launch::is_session_dir,
    registry::{Registry, Reported},
    vouch,
};
use crate::{
    AgentError,
    attempt::Attempt,
    blocking::{blocking, call},
    failpoint::made_to_fail,
    files::old_file::remove_unless,
    hold,
    shares::Shares,
};

/// How long libvirt may take to end a move whose carrier is gone, or to return from the source's call after the
/// hand-over.
const END_DEADLINE: Duration = Duration::from_secs(25);

/// Poll interval meanwhile.
const END_POLL: Duration = Duration::from_millis(200);

impl Registry {
    /// Prepares to send: holds the VM, clears autostart, connects to the destination.
    ///
    /// # Errors
    /// `request.stale`, or why the carrier could not be started or connect; nothing is changed then.
    pub async fn prepare_source(
        &self,
        job: JobId,
        generation: Generation,
        request: PrepareSource,
        shares: &Shares,
    ) -> Result<SourceReady, AgentError> {
        let mounts = shares.mounts(request.destination.mounts.iter().map(|mount| mount.share))?;
        made_to_fail("agent-prepare-source")?;
        let (vm, session) = (request.vm, request.session);
        let known = self.take_up(Attempt { job, generation, vm }).await?;
        if let Some(known) = &known
            && self.ask(known, Ask::Report { after: 0, wait_ms: 0 }).await.is_some()
        {
            self.hold(known).await?;
            return Ok(SourceReady { autostart: known.autostart });
        }
        // The destination's QEMU listens at this path there, so the path here must be the same.
        let socket_dir = PathBuf::from(&request.destination.socket_dir);
        if !is_session_dir(&socket_dir) {
            return Err(AgentError::failed(format!("{} is no folder for sockets", socket_dir.display())));
        }
        let facts = call(&self.hypervisor, move |hypervisor| hypervisor.vm(vm)).await?;
        let facts = facts.ok_or(HypervisorError::NoVm(vm))?;
        let migrated = migrated_files(&facts, &request)?;
        let translate = migrated_nvram(&migrated, &request).into_iter();
        let translate = translate.chain(translation(&mounts, &request.destination.mounts)).collect();
        let (judged, asked) = (facts.clone(), request.clone());
        let vouched =
            call(&self.hypervisor, move |hypervisor| Ok(vouch::vouched(hypervisor, &judged, &asked))).await??;
        let (persistent, name) = (facts.persistent, facts.name);
        let task = Task::Source { request, translate, persistent, migrated, vouched, name };
        let autostart = known.map_or(facts.autostart, |known| known.autostart);
        let journal = self.journal(job, generation, task, session, socket_dir, autostart);
        if let Err(error) = self.begin(&journal).await {
            self.forget(&journal).await?;
            return Err(error);
        }
        if let Err(error) = self.hold(&journal).await {
            if let Err(error) = self.let_go(&journal).await {
                warn!(error = %chain(&error), "What was changed for the move could not be taken back");
            }
            self.forget(&journal).await?;
            return Err(error);
        }
        made_to_fail("agent-prepared-source")?;
        Ok(SourceReady { autostart })
    }

    pub(super) async fn hold(&self, journal: &Journal) -> Result<(), AgentError> {
        let vm = journal.task.vm();
        hold::ensure(&self.config.holds_dir(), vm, journal.job)?;
        if journal.autostart {
            call(&self.hypervisor, move |hypervisor| hypervisor.set_autostart(vm, false)).await?;
        }
        Ok(())
    }

    /// Reverts [`Registry::hold`].
    pub(super) async fn let_go(&self, journal: &Journal) -> Result<(), AgentError> {
        let vm = journal.task.vm();
        hold::release(&self.config.holds_dir(), vm)?;
        if journal.autostart {
            call(&self.hypervisor, move |hypervisor| hypervisor.set_autostart(vm, true)).await?;
        }
        Ok(())
    }

    /// Source: makes sure that libvirt has no migration of the VM any more.
    pub(super) async fn end_migration(&self, vm: VmId) -> Result<(), AgentError> {
        let until = Instant::now() + END_DEADLINE;
        loop {
            let moving = call(&self.hypervisor, move |hypervisor| {
                if hypervisor.migration_stats(vm)?.is_none() {
                    return Ok(None);
                }
                Ok(Some(hypervisor.abort_migration(vm)))
            });
            match moving.await? {
                None => return Ok(()),
                Some(Err(error)) if Instant::now() > until => return Err(error.into()),
                Some(_) if Instant::now() > until => return Err(not_ended(vm)),
                Some(_) => tokio::time::sleep(END_POLL).await,
            }
        }
    }

    /// Source: ends the process of the VM that libvirt left here, because the destination has the VM and needs its
    /// disks. Ok if there is none.
    ///
    /// # Errors
    /// If the VM is here in another state: nothing is done then.
    pub(super) async fn end_copy(&self, journal: &Journal) -> Reported {
        let vm = journal.task.vm();
        if journal.task.role() == Role::Source {
            call(&self.hypervisor, move |hypervisor| end_left_copy(hypervisor, vm)).await?;
        }
        self.report_of(journal, 0, Duration::ZERO).await
    }

    /// Source: removes the files of migrated disks that are no longer in use, or keeps them for the VM's return. Returns
    /// those that stay, and why.
    pub(super) async fn remove_old_files(&self, journal: &Journal) -> Result<Vec<Finding>, AgentError> {
        let Task::Source { request, migrated, name, .. } = &journal.task else { return Ok(Vec::new()) };
        if migrated.is_empty() {
            return Ok(Vec::new());
        }
        let (migrated, name) = (migrated.clone(), name.clone());
        let used = self.files_in_use(journal).await?;
        // A file on a share is reached from everywhere: only one of this host's own is worth anything at a return.
        let is_own = |disk: &&DiskMove| matches!(disk.from, Location::Local { .. });
        let own: Vec<String> = request.disks.iter().filter(is_own).map(|disk| disk.device.clone()).collect();
        let (vm, partials) = (request.vm, Arc::clone(&self.partials));
        blocking(move || {
            let mut kept = Vec::new();
            for (device, path) in migrated {
                let takes = |path: &Path| own.contains(&device) && partials.keep_left(vm, &device, path);
                if let Some(obstacle) = remove_unless(&path, &used, |obstacle| obstacle, takes)? {
                    let (why, fix) = (obstacle.why(), obstacle.fix());
                    warn!(disk = device, file = %path.display(), %why, "An old file stays");
                    kept.push(old_file_kept(&name, &device, path.display(), why, fix));
                }
            }
            Ok(kept)
        })
        .await
    }

    /// The destination may run the VM before libvirt's call has returned at the source.
    pub(super) async fn wait_ended(&self, journal: &Journal) {
        let until = Instant::now() + END_DEADLINE;
        let mut after = 0;
        while Instant::now() < until {
            let ask = Ask::Report { after, wait_ms: END_DEADLINE.as_millis() as u64 };
            match self.ask(journal, ask).await {
                Some(Answer::Report { report, .. }) if report.stage == Stage::Performing => after = report.sequence,
                Some(Answer::Report { .. } | Answer::Refused { .. }) | None => return,
            }
        }
    }

    pub(super) async fn release_source(&self, journal: &Journal) -> Result<(), AgentError> {
        let vm = journal.task.vm();
        let (presence, defined) = call(&self.hypervisor, move |hypervisor| {
            Ok((hypervisor.presence(vm, Role::Source)?, hypervisor.vm(vm)?.is_some()))
        })
        .await?;
        // Neither confirmed nor undone: a definition without a process may belong to a VM that runs elsewhere.
        let off = matches!(presence, Presence::Absent | Presence::Off | Presence::Ended);
        let settled = journal.state.is_confirmed() || journal.state.is_aborted() || !defined || !off;
        if settled {
            hold::release(&self.config.holds_dir(), vm)?;
        } else {
            warn!("The VM stays held: it is not known that it is not elsewhere");
        }
        // Its undo could not know whether the VM was elsewhere. A later release implies that it is not.
        let was_stopped = matches!(presence, Presence::Left | Presence::Stopped);
        let was_open = off || was_stopped;
        if journal.state.is_aborted() && journal.autostart && defined && was_open {
            call(&self.hypervisor, move |hypervisor| hypervisor.set_autostart(vm, true)).await?;
        }
        // libvirt reports who paused such a copy: nobody else will run it.
        if was_stopped && journal.state.is_aborted() {
            tokio::spawn(run_again(Arc::clone(&self.hypervisor), vm).in_current_span());
        }
        Ok(())
    }
}

/// Source: ends a process that libvirt left paused. Fails if the VM is here in another state.
pub(super) fn end_left_copy(hypervisor: &dyn Hypervisor, vm: VmId) -> Result<(), HypervisorError> {
    match hypervisor.presence(vm, Role::Source)? {
        Presence::Absent | Presence::Off | Presence::Ended => Ok(()),
        Presence::Left | Presence::Stopped => {
            info!("The destination has the VM: what libvirt left of it here is ended");
            hypervisor.destroy(vm)
        }
        presence @ (Presence::Running
        | Presence::Paused
        | Presence::Halted
        | Presence::HandedOver
        | Presence::Receiving
        | Presence::Arrived
        | Presence::Unknown) => Err(HypervisorError::Failed {
            what: format!("Could not end what is left of VM {vm} at the source"),
            reason: format!("the VM still has a process here ({presence:?})"),
        }),
    }
}

pub(super) fn not_ended(vm: VmId) -> AgentError {
    AgentError::failed(format!("libvirt does not end the move of VM {vm}"))
}

/// The path of migrated UEFI variables, here and at the destination.
fn migrated_nvram(migrated: &[(String, PathBuf)], request: &PrepareSource) -> Option<(PathBuf, PathBuf)> {
    let (_, here) = migrated.iter().find(|(device, _)| device == NVRAM)?;
    let there = request.destination.files.iter().find(|file| file.device == NVRAM)?;
    Some((here.clone(), PathBuf::from(&there.path)))
}

/// The files of migrated disks here. Each has a new file at the destination.
fn migrated_files(facts: &VmFacts<PathBuf>, request: &PrepareSource) -> Result<Vec<(String, PathBuf)>, AgentError> {
    let one = |disk: &DiskMove| {
        let has_new = request.destination.files.iter().any(|file| file.device == disk.device);
        let file = facts.files.iter().find(|file| file.device == disk.device);
        let file = file.filter(|file| matches!(file.role, FileRole::Disk | FileRole::Nvram));
        let path = file.filter(|_| has_new).map(|file| file.place.clone());
        path.map(|path| (disk.device.clone(), path)).ok_or_else(|| {
            let finding = Finding::blocks(
                FindingId::DiskUnknown,
                &disk.device,
                Message::DiskNotAtBoth { device: disk.device.clone(), vm: facts.name.clone() },
                Action::ShowVm,
            );
            AgentError::refused(409, finding)
        })
    };
    request.disks.iter().map(one).collect()
}

/// Maps folders here to their paths at the destination.
pub(crate) fn translation(here: &[ShareMount], there: &[ShareMount]) -> Vec<(PathBuf, PathBuf)> {
    let pair = |there: &ShareMount| {
        let here = here.iter().find(|here| here.share == there.share)?;
        Some((PathBuf::from(&here.path), PathBuf::from(&there.path)))
    };
    there.iter().filter_map(pair).collect()
}
