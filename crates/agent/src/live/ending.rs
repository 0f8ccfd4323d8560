//! The end of a live move on this host: undone before the point of no return or confirmed after it, and then forgotten.

use std::{fs, time::Duration};

use ferry_core::{
    api::agent::{ConfirmRequest, Role},
    finding::{Command, Finding, FindingId, Message},
    id::{Generation, JobId, VmId},
    migration::Presence,
};

use super::{
    carrier::control::Ask,
    journal::{Journal, State},
    launch,
    registry::{Registry, Reported},
    report::reported,
    source::{end_left_copy, not_ended},
};
use crate::{
    AgentError, attempt::journal, blocking::call, failpoint::made_to_fail, files::incoming, records,
    refusal::past_pivot,
};

impl Registry {
    /// Ends the move before the point of no return. Ok promises: at the source, the VM stays and may be started and
    /// moved again; at the destination, nothing of it is left.
    ///
    /// # Errors
    /// `job.past-pivot` (409); `job.undecided` (409) while it is unknown who has the VM; at the destination also if its
    /// copy could not be destroyed.
    pub(super) async fn abort(&self, journal: Journal) -> Reported {
        made_to_fail("agent-abort")?;
        let journal = self.undo(journal).await?;
        self.report_of(&journal, 0, Duration::ZERO).await
    }

    pub(super) async fn undo(&self, mut journal: Journal) -> Result<Journal, AgentError> {
        let (vm, role) = (journal.task.vm(), journal.task.role());
        match journal.state {
            State::Aborted { .. } => return Ok(journal),
            State::Confirmed { .. } | State::Here => return Err(AgentError::refused(409, *past_pivot(vm))),
            State::Open | State::Ending => {}
        }
        match self.ask(&journal, Ask::Abort).await {
            Some(answer) => drop(reported(answer)?),
            None => self.abort_without_carrier(&journal)?,
        }
        if role == Role::Source {
            // Its carrier may have lost libvirt, which then continues by itself.
            self.end_migration(vm).await?;
        }
        let presence = call(&self.hypervisor, move |hypervisor| hypervisor.presence(vm, role)).await?;
        match (role, self.carrier_state(&journal)?.sees(presence)) {
            // The VM may have moved if its carrier died before reporting it: release ends its hold, not this.
            (Role::Source, Presence::Absent | Presence::Off | Presence::Ended | Presence::Left | Presence::Stopped) => {
            }
            (Role::Source, Presence::HandedOver) => return Err(not_ended(vm)),
            (Role::Source, _) => self.let_go(&journal).await?,
            (Role::Destination, Presence::Running | Presence::Halted) => {
                return Err(AgentError::refused(409, *past_pivot(vm)));
            }
            (Role::Destination, Presence::Off) if journal.state != State::Ending => {
                return Err(AgentError::refused(409, was_complete(vm)));
            }
            (Role::Destination, _) => {
                if presence != Presence::Absent {
                    journal.state = State::Ending;
                    self.put(&journal)?;
                }
                call(&self.hypervisor, move |hypervisor| {
                    hypervisor.destroy(vm)?;
                    hypervisor.undefine(vm)
                })
                .await?;
                journal = self.remove_incoming(journal).await?;
            }
        }
        made_to_fail("agent-undone")?;
        journal.state = State::Aborted { ended: journal.state.gave_up() };
        self.put(&journal)?;
        Ok(journal)
    }

    fn abort_without_carrier(&self, journal: &Journal) -> Result<(), AgentError> {
        let state = self.carrier_state(journal)?;
        if state.finish_delivered || state.resumed {
            return Err(AgentError::refused(409, *past_pivot(journal.task.vm())));
        }
        Ok(())
    }

    /// Makes the move final. The destination is asked first: its Ok promises that the VM is here with its incoming
    /// files, and that autostart is set. Then the source's definition and old files are removed.
    ///
    /// # Errors
    /// If libvirt refuses; repeating it is safe. At the destination also while the VM or one of its files is not here,
    /// at the source while the VM has a process here.
    pub(super) async fn confirm(&self, mut journal: Journal, request: ConfirmRequest) -> Reported {
        made_to_fail("agent-confirm")?;
        let (vm, role) = (journal.task.vm(), journal.task.role());
        match role {
            Role::Source => self.wait_ended(&journal).await,
            Role::Destination => self.must_be_here(&journal).await?,
        }
        call(&self.hypervisor, move |hypervisor| match role {
            Role::Source => {
                end_left_copy(hypervisor, vm)?;
                hypervisor.undefine(vm)
            }
            Role::Destination if request.autostart => hypervisor.set_autostart(vm, true),
            Role::Destination => Ok(()),
        })
        .await?;
        let kept = if request.keep_source { Vec::new() } else { self.remove_old_files(&journal).await? };
        made_to_fail("agent-confirmed")?;
        journal.state = State::Confirmed { here: journal.state.is_here() };
        self.put(&journal)?;
        let mut report = self.report_of(&journal, 0, Duration::ZERO).await?;
        report.findings = kept;
        if role == Role::Destination {
            let incoming_disks = journal.task.incoming_disks().to_vec();
            let what = format!("The disks of VM {vm}");
            report.disks = self.probes.probe(&what, move || incoming::arrived(&incoming_disks)).await?;
        }
        Ok(report)
    }

    /// Forgets the move: the carrier leaves, its sockets and journal are removed, the hold is released.
    ///
    /// # Errors
    /// `request.stale`, or files that cannot be removed; repeating it is safe. Ok if it is not known.
    pub(super) async fn release(&self, job: JobId, generation: Generation) -> Result<(), AgentError> {
        made_to_fail("agent-release")?;
        let journal = match self.table.find(job, generation) {
            Ok(journal) => journal,
            Err(AgentError::Refused { status: 404, .. }) => return self.table.end(job, generation),
            Err(error) => return Err(error),
        };
        if journal.task.role() == Role::Source {
            self.release_source(&journal).await?;
        }
        self.table.end(job, generation)?;
        made_to_fail("agent-released")?;
        self.forget(&journal).await
    }

    /// The carrier leaves, and every file of the migration is removed.
    pub(super) async fn forget(&self, journal: &Journal) -> Result<(), AgentError> {
        let folder = self.config.journal_dir();
        let path = journal::path(&folder, journal.job);
        if self.ask(journal, Ask::Leave).await.is_none() {
            launch::end_process(self.carrier_state(journal).unwrap_or_default().pid, &path);
        }
        self.carried.end(journal.job);
        match fs::remove_dir_all(&journal.socket_dir) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(AgentError::File { path: journal.socket_dir.clone(), source }),
        }
        for left in [&journal.control, &path.with_extension("said"), &Journal::state_path(&folder, journal.job)] {
            records::remove(left)?;
        }
        // Last: until then a repeated request finds the rest.
        records::remove(&path)?;
        self.table.remove(journal.job);
        Ok(())
    }
}

/// The finding for a VM that was complete at the destination, may have run there, and is shut off by now.
fn was_complete(vm: VmId) -> Finding {
    Finding::blocks(
        FindingId::JobUndecided,
        vm,
        Message::WasComplete { vm: vm.to_string() },
        Command::StartNewest { vm: vm.to_string() },
    )
}
