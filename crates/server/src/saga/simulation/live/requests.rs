//! The reactions of simulated hosts to the requests of a live move.

use ferry_client::ClientError;
use ferry_core::{
    api::agent::{ConfirmRequest, Report, Role, Stage},
    finding::FindingId,
    migration::Presence,
    vm::VmState,
};

use super::{
    super::super::{
        models::world::{Fault, LiveModel, Model, Server, away, refused, report},
        participant::Reported,
    },
    Flight, Side, World,
};

impl World {
    fn known(&mut self, role: Role) -> Result<&mut Side, ClientError> {
        let side = self.side(role);
        if side.known { Ok(side) } else { Err(refused(404, FindingId::JobUnknown)) }
    }
}

impl Model for World {
    fn server(&mut self) -> &mut Server {
        &mut self.server
    }

    fn fault(&mut self, role: Role, _: &'static str) -> Option<Fault> {
        if self.server_dies() {
            return Some(Fault::DiesBefore);
        }
        self.tick();
        if !self.side(role).agent_is_up {
            return Some(Fault::Lost);
        }
        self.faults.of_answer()
    }

    fn check(&self) {
        self.is_one_vm();
    }

    fn server_dies(&mut self) -> bool {
        self.faults.ends_server()
    }

    fn tick(&mut self) {
        self.go_by();
    }

    fn has_news(&mut self, role: Role, after: u64) -> bool {
        self.go_by();
        // Without an attempt, the agent answers at once.
        let side = self.side(role);
        !side.agent_is_up || (side.known && side.sequence > after)
    }

    fn reported(&mut self, role: Role, answer: &Reported) {
        if role == Role::Destination {
            self.count_report(answer);
        }
    }

    fn third_host(&mut self) -> Result<Option<VmState>, ClientError> {
        match self.faults.fails_one_in(4) {
            true => Err(away()),
            false => Ok((self.elsewhere && !self.unknown).then_some(VmState::Running)),
        }
    }

    fn needs_old_files(&mut self) -> bool {
        self.needed
    }

    fn is_gone(&mut self, role: Role) -> bool {
        let side = self.side(role);
        side.agent_is_up && side.libvirt_is_up && side.process == Presence::Absent
    }

    fn prepare(&mut self, role: Role) -> Result<bool, ClientError> {
        let autostart = self.autostart;
        let side = self.side(role);
        if side.ended {
            return Err(refused(409, FindingId::RequestStale));
        }
        if !side.known {
            (side.known, side.carrier, side.held) = (true, true, role == Role::Source);
            side.autostart = false;
        }
        Ok(autostart)
    }

    fn perform(&mut self) -> Reported {
        let side = self.known(Role::Source)?;
        if side.carrier && side.stage == Stage::Prepared && side.libvirt_is_up {
            side.to(Stage::Performing);
            let answers = self.destination.carrier && self.destination.libvirt_is_up;
            self.flight = Flight::Memory;
            self.destination.process = Presence::Receiving;
            if self.destination.stage == Stage::Prepared {
                self.destination.to(Stage::Performing);
            }
            if !answers {
                self.destination.process = Presence::Absent;
                self.fail_flight();
            }
        }
        self.report(Role::Source)
    }

    fn report(&mut self, role: Role) -> Reported {
        let side = self.known(role)?;
        let process = if side.libvirt_is_up { side.process } else { Presence::Unknown };
        let stage = match (side.carrier, role) {
            _ if side.aborted => Stage::Aborted,
            _ if side.confirmed => Stage::Confirmed,
            (true, _) => side.stage,
            (false, Role::Destination) if matches!(process, Presence::Running | Presence::Halted) => Stage::Resumed,
            (false, _) if side.finish_delivered || side.here => Stage::Delivered,
            (false, _) => Stage::Failed,
        };
        Ok(Report {
            finish_delivered: side.finish_delivered || side.here,
            gave_up: side.ending,
            presence: process,
            ..report(role, side.sequence, stage)
        })
    }

    fn abort(&mut self, role: Role) -> Reported {
        let past_pivot = || refused(409, FindingId::JobPastPivot);
        let flight = self.flight;
        let side = self.known(role)?;
        if side.aborted {
            return self.report(role);
        }
        if side.confirmed || side.here || side.finish_delivered {
            return Err(past_pivot());
        }
        if !side.libvirt_is_up {
            return Err(refused(409, FindingId::JobOpen));
        }
        match role {
            Role::Source => {
                if side.carrier && matches!(side.stage, Stage::Prepared | Stage::Performing) {
                    side.to(Stage::Aborted);
                }
                match flight {
                    // It is too late to abort: the outcome must be awaited.
                    Flight::Finishing => return Err(past_pivot()),
                    Flight::Not | Flight::Memory | Flight::Stopped | Flight::Delivered | Flight::Failed => {
                        self.fail_flight();
                    }
                }
                // The VM may have moved, or may have been resumed at the destination: then the hold stays.
                self.source.held = !matches!(self.source.process, Presence::Running | Presence::Halted);
            }
            Role::Destination => {
                match side.process {
                    Presence::Running | Presence::Halted => return Err(past_pivot()),
                    Presence::Off if !side.ending => return Err(past_pivot()),
                    Presence::Absent => {}
                    _ => side.ending = true,
                }
                if side.carrier {
                    side.to(Stage::Aborted);
                }
                side.process = Presence::Absent;
                self.fail_flight();
                self.destination.process = Presence::Absent;
            }
        }
        self.side(role).aborted = true;
        self.report(role)
    }

    fn confirm(&mut self, role: Role, body: &ConfirmRequest) -> Reported {
        let takes_needed = self.with_disks && self.needed && !body.keep_source && role == Role::Source;
        let takes_newest = role == Role::Source && self.copy_is_old;
        assert!(!takes_newest, "the newest copy goes: {}", self.story());
        assert!(!takes_needed, "files go that another VM needs: {}", self.story());
        let is_sure = role == Role::Destination || self.destination.confirmed;
        assert!(is_sure, "the source's part goes before the destination's is known to be whole: {}", self.story());
        let side = self.known(role)?;
        match role {
            Role::Source => {
                let left = matches!(side.process, Presence::Left | Presence::Stopped);
                let gone = left || matches!(side.process, Presence::Absent | Presence::Off | Presence::Ended);
                if !side.libvirt_is_up || !gone {
                    return Err(refused(409, FindingId::JobOpen));
                }
                side.process = Presence::Absent;
            }
            Role::Destination => side.autostart = body.autostart,
        }
        side.confirmed = true;
        self.report(role)
    }

    fn release(&mut self, role: Role) -> Result<(), ClientError> {
        let free = !self.locks_hold || !self.destination.has_disks();
        let elsewhere = self.elsewhere && role == Role::Source;
        let autostart = self.autostart;
        let side = self.side(role);
        if side.known && !side.libvirt_is_up && role == Role::Source {
            return Err(refused(409, FindingId::JobOpen));
        }
        if side.known && !side.confirmed {
            side.autostart = autostart && role == Role::Source;
        }
        if side.confirmed || side.aborted || side.process != Presence::Off {
            side.held = false;
        }
        let let_go = !side.held && side.process != Presence::Absent;
        let runs_again = side.aborted && matches!(side.process, Presence::Left | Presence::Stopped);
        if runs_again {
            side.process = Presence::Running;
        }
        (side.known, side.carrier, side.ended) = (false, false, true);
        assert!(!let_go || !elsewhere, "a source is let go of what is elsewhere: {}", self.story());
        assert!(!runs_again || free, "it is let go while the other copy has its disks: {}", self.story());
        if matches!(self.flight, Flight::Memory | Flight::Stopped | Flight::Finishing) {
            self.fail_flight();
        }
        Ok(())
    }
}

impl LiveModel for World {
    fn resume(&mut self) -> Reported {
        let may_run = self.may_run();
        let side = self.known(Role::Destination)?;
        if side.aborted {
            return Err(refused(409, FindingId::RequestStale));
        }
        side.here = true;
        if may_run {
            side.process = Presence::Running;
            side.to(Stage::Resumed);
            self.note("resumed by request");
        }
        self.report(Role::Destination)
    }

    fn end_copy(&mut self) -> Reported {
        let side = self.known(Role::Source)?;
        match side.process {
            Presence::Absent | Presence::Off | Presence::Ended => {}
            Presence::Left if side.libvirt_is_up => side.process = Presence::Off,
            _ => return Err(refused(409, FindingId::JobOpen)),
        }
        self.report(Role::Source)
    }

    fn state_of(&mut self, role: Role) -> Result<Option<VmState>, ClientError> {
        let side = self.side(role);
        if !side.libvirt_is_up {
            return Err(away());
        }
        Ok(match side.process {
            Presence::Running => Some(VmState::Running),
            Presence::Halted => Some(VmState::Crashed),
            Presence::Off | Presence::Ended => Some(VmState::ShutOff),
            Presence::Absent => None,
            _ => Some(VmState::Paused),
        })
    }
}
