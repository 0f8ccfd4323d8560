//! The state of a live move on this host: as its carrier reports it, or, without a carrier, from the carrier's record
//! and the hypervisor.

use std::time::Duration;

use ferry_core::{
    api::agent::{Report, Role, Stage},
    migration::Presence,
};

use super::{
    carrier::control::{self, Answer, Ask},
    journal::{Journal, State},
    registry::{Registry, Reported},
};
use crate::{AgentError, blocking::call, failpoint::made_to_fail};

impl Registry {
    /// Begins the migration.
    pub(super) async fn perform(&self, journal: &Journal) -> Reported {
        made_to_fail("agent-perform")?;
        match self.ask(journal, Ask::Perform).await {
            Some(answer) => reported(answer),
            None => self.report_of(journal, 0, Duration::ZERO).await,
        }
    }

    /// The report, as soon as it is newer than `after`, or after `wait`.
    pub(super) async fn report_of(&self, journal: &Journal, after: u64, wait: Duration) -> Reported {
        let ask = Ask::Report { after, wait_ms: wait.as_millis() as u64 };
        let mut report = match self.ask(journal, ask).await {
            Some(answer) => reported(answer)?,
            None => {
                if after == u64::MAX {
                    // The report will not change any more.
                    tokio::time::sleep(wait.min(control::WAIT_MAX)).await;
                }
                self.report_without_carrier(journal).await?
            }
        };
        match journal.state {
            State::Aborted { .. } => report.stage = Stage::Aborted,
            State::Confirmed { .. } => report.stage = Stage::Confirmed,
            State::Open | State::Here | State::Ending => {}
        }
        report.gave_up |= journal.state.gave_up();
        Ok(report)
    }

    /// The carrier is gone: uses its record, and asks the hypervisor.
    async fn report_without_carrier(&self, journal: &Journal) -> Reported {
        let (vm, role) = (journal.task.vm(), journal.task.role());
        let mut state = self.carrier_state(journal)?;
        state.finish_delivered |= journal.state.is_here();
        let presence = call(&self.hypervisor, move |hypervisor| hypervisor.presence(vm, role)).await;
        let presence = state.sees(presence.unwrap_or(Presence::Unknown));
        let has_run = state.resumed || matches!(presence, Presence::Running | Presence::Halted);
        let stage = match (role, has_run, state.finish_delivered) {
            (Role::Destination, true, _) => Stage::Resumed,
            (_, _, true) => Stage::Delivered,
            // libvirt continues a migration whose caller died; without the channels it fails soon.
            (Role::Source | Role::Destination, _, false) => Stage::Failed,
        };
        let end = match role {
            Role::Source => "source",
            Role::Destination => "destination",
        };
        Ok(Report {
            finish_delivered: state.finish_delivered,
            gave_up: state.given_up,
            presence,
            figures: state.figures,
            error: Some(format!("The process that carried the move at the {end} is gone")),
            ..Report::new(journal.job, journal.generation, role, u64::MAX, stage)
        })
    }
}

pub(super) fn reported(answer: Answer) -> Reported {
    match answer {
        Answer::Report { report, .. } => Ok(*report),
        Answer::Refused { finding } => Err(AgentError::Refused { status: 409, finding }),
    }
}
