//! The destination of a live move, around its carrier: creates the files of incoming disks, runs a VM that is here, and
//! removes what did not arrive.

use std::{path::PathBuf, sync::Arc, time::Duration};

use ferry_core::{
    api::agent::{DestinationReady, IncomingDisk, PrepareDestination, Role, Stage},
    error::chain,
    files::cleanup::GuestWrites,
    finding::{ByHand, FindingId, Message},
    id::{Generation, JobId, VmId},
    migration::Presence,
};
use ferry_drivers::identity::InUse;
use tracing::warn;

use super::{
    carrier::control::{Answer, Ask},
    journal::{Journal, State, Task},
    registry::{Registry, Reported},
    report::reported,
};
use crate::{
    AgentError,
    attempt::Attempt,
    blocking::{blocking, call},
    failpoint::made_to_fail,
    files::{
        self,
        host_storage::HostStorage,
        incoming::{self, IncomingImage},
        new_file::{Lifecycle, NewFile},
    },
    hold,
    refusal::{refused, uuid_taken},
};

impl Registry {
    /// Prepares to receive a VM.
    ///
    /// # Errors
    /// `request.stale`, `vm.uuid-taken`, or why the carrier could not be started. Nothing is left behind then; a file
    /// that could not be removed is recorded, and is removed by the undo.
    pub async fn prepare_destination(
        self: Arc<Self>,
        job: JobId,
        generation: Generation,
        request: PrepareDestination,
        storage: HostStorage,
    ) -> Result<DestinationReady, AgentError> {
        let mounts = storage.shares.mounts(request.shares.iter().copied())?;
        made_to_fail("agent-prepare-destination")?;
        let vm = request.vm;
        let socket_dir = self.config.sessions_dir().join(request.session.0.simple().to_string());
        let ready = |answer, journal: &Journal| match answer {
            Answer::Report { address: Some(carrier), .. } => {
                let socket_dir = socket_dir.display().to_string();
                let files = journal.task.incoming_disks().iter().map(IncomingImage::file).collect();
                Ok(DestinationReady { carrier, mounts: mounts.clone(), socket_dir, files })
            }
            Answer::Report { address: None, .. } | Answer::Refused { .. } => {
                Err(AgentError::failed("The carrier does not say where it listens"))
            }
        };
        match self.take_up(Attempt { job, generation, vm }).await? {
            Some(known) => {
                if let Some(answer) = self.ask(&known, Ask::Report { after: 0, wait_ms: 0 }).await {
                    return ready(answer, &known);
                }
                // Its carrier is gone, so what was created for it is created again.
                self.remove_incoming(known).await?;
            }
            None => self.must_not_be_here(vm).await?,
        }
        let session = request.session;
        let incoming_disks = match request.disks.is_empty() {
            true => Vec::new(),
            false => {
                let (partials, requested) = (Arc::clone(&self.partials), request.disks.clone());
                blocking(move || incoming::with_room(&storage, vm, &requested, &partials)).await?
            }
        };
        let mounted = mounts.iter().map(|mount| PathBuf::from(&mount.path));
        let roots = mounted.chain(incoming_disks.iter().map(|incoming_disk| incoming_disk.path.clone())).collect();
        let task = Task::Destination { request, roots, incoming_disks };
        let planned = self.journal(job, generation, task, session, socket_dir.clone(), false);
        let begun = async {
            let (this, journal, owner) = (Arc::clone(&self), planned.clone(), self.process_owner().await?);
            let journal = blocking(move || this.make_incoming(journal, owner)).await?;
            Ok((self.begin(&journal).await?, journal))
        };
        let (answer, journal) = match begun.await {
            Ok(begun) => begun,
            Err(error) => {
                self.give_up(self.table.get(job).unwrap_or(planned)).await;
                return Err(error);
            }
        };
        made_to_fail("agent-prepared-destination")?;
        // The VM may return: a hold of an earlier move away is over.
        hold::release(&self.config.holds_dir(), vm)?;
        ready(answer, &journal)
    }

    /// Creates the files of incoming disks. After an error the table's journal lists the files that exist. Blocks.
    fn make_incoming(&self, mut journal: Journal, owner: (u32, u32)) -> Result<Journal, AgentError> {
        let vm = journal.task.vm();
        for index in 0..journal.task.incoming_disks().len() {
            made_to_fail("agent-make-arrival")?;
            let incoming_disk = journal.task.incoming_disks()[index].clone();
            let partial = |file: &NewFile<'_>| self.partials.reuse(vm, file);
            incoming_disk
                .new_file()
                .make(owner, partial, |lifecycle| self.note_incoming(&mut journal, index, lifecycle))?;
        }
        Ok(journal)
    }

    /// Records how far the file of one disk is.
    fn note_incoming(&self, journal: &mut Journal, index: usize, lifecycle: Lifecycle) -> Result<(), AgentError> {
        if let Task::Destination { incoming_disks, .. } = &mut journal.task {
            incoming_disks[index].lifecycle = lifecycle;
        }
        self.put(journal)
    }

    /// Reverts what was made for a migration that could not start. What cannot be reverted now stays recorded for the
    /// undo.
    async fn give_up(&self, journal: Journal) {
        let given_up = async {
            let journal = self.remove_incoming(journal).await?;
            self.forget(&journal).await
        };
        if let Err(error) = given_up.await {
            warn!(error = %chain(&error), "What was made for a move that could not begin is still here");
        }
    }

    /// Removes the files created for disks that did not arrive, or keeps them for the next attempt.
    pub(super) async fn remove_incoming(&self, mut journal: Journal) -> Result<Journal, AgentError> {
        if !journal.task.incoming_disks().iter().any(IncomingImage::is_left) {
            return Ok(journal);
        }
        let used = Arc::new(self.files_in_use(&journal).await?);
        for index in 0..journal.task.incoming_disks().len() {
            let incoming_disk = journal.task.incoming_disks()[index].clone();
            if !incoming_disk.is_left() {
                continue;
            }
            let (vm, used, partials) = (journal.task.vm(), Arc::clone(&used), Arc::clone(&self.partials));
            let remove =
                move || incoming_disk.new_file().remove(&used, GuestWrites::Never, |file| partials.keep(vm, file));
            let lifecycle = blocking(remove).await?;
            self.note_incoming(&mut journal, index, lifecycle)?;
        }
        Ok(journal)
    }

    /// Files named by this host's VMs and by other migrations: they must not be removed for this one.
    pub(super) async fn files_in_use(&self, journal: &Journal) -> Result<InUse, AgentError> {
        let mut used = call(&self.hypervisor, |hypervisor| hypervisor.files_in_use()).await?;
        for other in self.table.all().iter().filter(|other| other.job != journal.job) {
            match &other.task {
                Task::Destination { incoming_disks, .. } => {
                    let left = incoming_disks.iter().filter(|incoming_disk| incoming_disk.is_left());
                    used.extend(left.map(|incoming_disk| incoming_disk.path.clone()));
                }
                Task::Source { migrated, .. } if !other.state.is_confirmed() => {
                    used.extend(migrated.iter().map(|(_, path)| path.clone()));
                }
                Task::Source { .. } => {}
            }
        }
        blocking(move || files::in_use(used)).await
    }

    /// Checks that new files for disks of a VM can be created. Blocks.
    ///
    /// # Errors
    /// What prevents it.
    pub fn check_incoming(
        &self,
        storage: &HostStorage,
        vm: VmId,
        requested: &[IncomingDisk],
    ) -> Result<(), AgentError> {
        incoming::checked(storage, vm, requested, &self.partials).map(drop)
    }

    /// A copy that is given up is destroyed with its definition, so the VM must not have been here before.
    async fn must_not_be_here(&self, vm: VmId) -> Result<(), AgentError> {
        let Some(facts) = call(&self.hypervisor, move |hypervisor| hypervisor.vm(vm)).await? else { return Ok(()) };
        Err(uuid_taken(vm, &facts.name))
    }

    /// Runs the VM here: the server asked both hosts, and it is here.
    ///
    /// # Errors
    /// Why it could not be resumed; `request.stale` if the copy was given up.
    pub(super) async fn resume(&self, journal: Journal) -> Reported {
        made_to_fail("agent-resume")?;
        if journal.state.is_aborted() || journal.task.role() == Role::Source {
            let vm = journal.task.vm();
            return Err(refused(
                FindingId::RequestStale,
                vm,
                Message::NotToRun { job: journal.job, vm: vm.to_string() },
                ByHand::AskBothHosts,
            ));
        }
        let state = if journal.state.is_confirmed() { State::Confirmed { here: true } } else { State::Here };
        let journal = Journal { state, ..journal };
        self.put(&journal)?;
        match self.ask(&journal, Ask::Resume).await {
            Some(answer) => reported(answer),
            None => {
                self.resume_without_carrier(&journal).await?;
                self.report_of(&journal, 0, Duration::ZERO).await
            }
        }
    }

    pub(super) async fn resume_without_carrier(&self, journal: &Journal) -> Result<(), AgentError> {
        let vm = journal.task.vm();
        Ok(call(&self.hypervisor, move |hypervisor| hypervisor.resume(vm)).await?)
    }

    /// Destination: checks that the VM is here, not merely arriving, and so are its incoming files. Until then the
    /// source's files may be the only good ones.
    pub(super) async fn must_be_here(&self, journal: &Journal) -> Result<(), AgentError> {
        let Task::Destination { request, incoming_disks, .. } = &journal.task else { return Ok(()) };
        if journal.state.is_confirmed() || (incoming_disks.is_empty() && !request.persistent) {
            return Ok(());
        }
        let vm = journal.task.vm();
        let not_here =
            |why: String| AgentError::failed(format!("VM {vm} cannot be confirmed at the destination yet: {why}"));
        let report = self.report_of(journal, 0, Duration::ZERO).await?;
        match report.presence {
            Presence::Running | Presence::Halted | Presence::Paused | Presence::Off | Presence::Absent => {}
            // It had run here, and was then paused by someone or by a storage failure.
            Presence::Arrived if matches!(report.stage, Stage::Resumed | Stage::Confirmed) => {}
            Presence::Arrived
            | Presence::Receiving
            | Presence::HandedOver
            | Presence::Left
            | Presence::Stopped
            | Presence::Ended
            | Presence::Unknown => {
                return Err(not_here(format!("it is {:?} there", report.presence)));
            }
        }
        let facts = call(&self.hypervisor, move |hypervisor| hypervisor.vm(vm)).await?;
        let facts = facts.ok_or_else(|| not_here("the host does not know it".to_owned()))?;
        for incoming_disk in incoming_disks {
            if !facts.files.iter().any(|file| file.place == incoming_disk.path) {
                return Err(not_here(format!("it does not use {}", incoming_disk.path.display())));
            }
        }
        let paths: Vec<PathBuf> = incoming_disks.iter().map(|incoming_disk| incoming_disk.path.clone()).collect();
        let missing = move || paths.into_iter().find(|path| !path.is_file());
        match self.probes.probe(&format!("The disks of VM {vm}"), missing).await? {
            None => Ok(()),
            Some(path) => Err(not_here(format!("its file {} is not there", path.display()))),
        }
    }
}
