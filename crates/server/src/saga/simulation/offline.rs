//! Simulated offline moves: a source that sends files, a destination that defines the VM, and an administrator. The
//! administrator starts the VM wherever nothing prevents it, moves it on, or removes it from the destination.
//!
//! ```text
//! source   Prepared ─▶ Performing ─▶ Delivered ─▶ Confirmed             held from Prepared until released
//! dest.    Prepared ─▶ files: some ─▶ all ─▶ the VM is defined (Delivered) ─▶ Confirmed
//! ```
//! A request to define the VM may be executed late, when the server believes that it was lost; it may also fail after
//! libvirt has defined the VM.
//!
//! At every moment at most one host could start the VM, and some host has its definition together with all its files.

use ferry_client::ClientError;
use ferry_core::{
    api::agent::{ConfirmRequest, Role, Stage},
    finding::FindingId,
    migration::{LogEvent, Phase, phase},
    vm::VmState,
};

use super::{
    super::{
        models::world::{Fault, Model, OfflineModel, Server, refused, report},
        participant::Reported,
    },
    faults::Faults,
};

/// What one host has.
#[derive(Clone, Debug)]
struct Side {
    agent_is_down: bool,
    libvirt_is_down: bool,
    known: bool,
    released: bool,
    stage: Stage,
    sequence: u64,
    held: bool,
    defined: bool,
    autostart: bool,
    /// Whether all files of the VM are here.
    has_files: bool,
    /// Whether some of them are here.
    has_parts: bool,
}

impl Side {
    fn new() -> Self {
        Self {
            agent_is_down: false,
            libvirt_is_down: false,
            known: false,
            released: false,
            stage: Stage::Prepared,
            sequence: 0,
            held: false,
            defined: false,
            autostart: false,
            has_files: false,
            has_parts: false,
        }
    }

    fn to(&mut self, stage: Stage) {
        self.stage = stage;
        self.sequence += 1;
    }

    fn could_start(&self) -> bool {
        self.defined && !self.held
    }
}

#[derive(Debug)]
pub(super) struct World {
    faults: Faults,
    server: Server,
    source: Side,
    destination: Side,
    /// Whether the source started the VM at boot.
    pub(super) autostart: bool,
    /// Whether another VM needs the old files.
    needed: bool,
    /// The destination will receive a request to define the VM that the server believes lost.
    late: bool,
    /// Whether the VM was moved on to a third host.
    elsewhere: bool,
    /// The VM was removed from the destination, and only the source still has it.
    taken_away: bool,
}

impl World {
    pub(super) fn new(number: u64) -> Self {
        let mut faults = Faults::new(number);
        let (autostart, needed) = (faults.one_in(2), faults.one_in(4));
        Self {
            faults,
            server: Server::default(),
            source: Side { defined: true, has_files: true, autostart, ..Side::new() },
            destination: Side::new(),
            autostart,
            needed,
            late: false,
            elsewhere: false,
            taken_away: false,
        }
    }

    fn side(&mut self, role: Role) -> &mut Side {
        match role {
            Role::Source => &mut self.source,
            Role::Destination => &mut self.destination,
        }
    }

    fn known(&mut self, role: Role) -> Result<&mut Side, ClientError> {
        let side = self.side(role);
        if side.known { Ok(side) } else { Err(refused(404, FindingId::JobUnknown)) }
    }

    fn break_something(&mut self) {
        match self.faults.one_of(9) {
            0 => self.destination.agent_is_down = true,
            1 => self.source.libvirt_is_down = true,
            2 => self.destination.libvirt_is_down = true,
            3 | 4 => {
                self.source.agent_is_down = self.faults.one_in(2);
                if self.source.stage == Stage::Performing {
                    self.faults.note("the copy breaks off");
                    self.source.to(Stage::Failed);
                }
            }
            5 | 6 => self.by_hand(),
            _ => {
                if matches!(phase(&self.server.log), Phase::Preparing | Phase::Migrating) {
                    self.faults.note("a cancel");
                    self.server.log.push(LogEvent::CancelRequested { by: "admin".into() });
                    self.server.run.cancelled.cancel();
                }
            }
        }
    }

    /// An administrator acts by `virsh` at the destination, after its agent recorded that the VM is there, and before
    /// the job is done with it.
    fn by_hand(&mut self) {
        let side = &mut self.destination;
        if side.defined && side.stage == Stage::Delivered {
            side.defined = false;
            self.elsewhere = self.faults.one_in(2);
            self.taken_away = !self.elsewhere;
            self.faults.note(if self.elsewhere { "moved on by hand" } else { "taken away by hand" });
        }
    }

    fn go_on(&mut self) {
        if self.source.stage == Stage::Performing && self.destination.known && !self.source.agent_is_down {
            match self.destination.stage {
                Stage::Prepared | Stage::Performing if self.destination.has_parts && self.faults.one_in(2) => {
                    self.destination.has_files = true;
                    self.destination.to(Stage::Performing);
                    self.source.to(Stage::Delivered);
                }
                Stage::Prepared | Stage::Performing => {
                    self.destination.has_parts = true;
                    self.destination.to(Stage::Performing);
                }
                Stage::Delivered | Stage::Resumed | Stage::Confirmed | Stage::Failed | Stage::Aborted => {
                    self.source.to(Stage::Failed)
                }
            }
        }
        if self.late && self.faults.one_in(4) {
            self.late = false;
            self.faults.note("a request to define the VM comes late");
            let _ = self.define();
        }
    }

    /// Judges the state after the last run of the server. Ok: whether the job has ended; otherwise it waits for a
    /// human.
    pub(super) fn judge(&self, phase: Phase) -> Result<bool, String> {
        let (here, there) = (&self.source, &self.destination);
        let clean = |side: &Side| !side.known && !side.held;
        let is_clean = clean(here) && clean(there) && !self.server.reserved;
        let whole = match phase {
            Phase::Succeeded => {
                let gone = !here.defined && here.has_files == self.needed;
                let has_it = there.defined && there.has_files && there.autostart == self.autostart;
                is_clean && gone && (has_it || self.elsewhere)
            }
            Phase::Failed | Phase::Cancelled => {
                let has_it = here.defined && here.has_files && here.autostart == self.autostart;
                is_clean && has_it && !there.defined && !there.has_parts && !there.has_files
            }
            // Only the source has the VM; it keeps and holds it.
            Phase::Completing | Phase::Stuck if self.taken_away => return Ok(false),
            Phase::Queued
            | Phase::Preparing
            | Phase::Migrating
            | Phase::Completing
            | Phase::RollingBack
            | Phase::Stuck => false,
        };
        if whole { Ok(true) } else { Err(format!("it is not whole: {self:#?}")) }
    }
}

impl Model for World {
    fn server(&mut self) -> &mut Server {
        &mut self.server
    }

    fn fault(&mut self, role: Role, what: &'static str) -> Option<Fault> {
        if self.server_dies() {
            return Some(Fault::DiesBefore);
        }
        self.tick();
        if self.side(role).agent_is_down {
            return Some(Fault::Lost);
        }
        if what == "define" && self.faults.fails_one_in(6) {
            self.late = true;
            return Some(Fault::Lost);
        }
        self.faults.of_answer()
    }

    fn check(&self) {
        let (here, there) = (&self.source, &self.destination);
        let could_start = [here.could_start(), there.could_start() || self.elsewhere];
        assert!(could_start != [true, true], "two hosts could start it: {self:#?}");
        let whole = |side: &Side| side.defined && side.has_files;
        assert!(whole(here) || whole(there) || self.elsewhere, "it is lost: {self:#?}");
    }

    fn server_dies(&mut self) -> bool {
        self.faults.ends_server()
    }

    fn tick(&mut self) {
        self.faults.pass(&self.server);
        if self.faults.fails_one_in(12) {
            self.break_something();
        }
        let hostile = self.faults.is_hostile();
        for role in [Role::Source, Role::Destination] {
            if !hostile || self.faults.one_in(6) {
                (self.side(role).agent_is_down, self.side(role).libvirt_is_down) = (false, false);
            }
        }
        if self.faults.one_in(2) {
            self.go_on();
        }
        if self.taken_away && self.faults.is_late() {
            self.server.run.waits.cancel();
        }
        self.check();
    }

    fn has_news(&mut self, role: Role, after: u64) -> bool {
        self.tick();
        let side = self.side(role);
        side.agent_is_down || (side.known && side.sequence > after)
    }

    fn third_host(&mut self) -> Result<Option<VmState>, ClientError> {
        Ok(self.elsewhere.then_some(VmState::ShutOff))
    }

    fn needs_old_files(&mut self) -> bool {
        self.needed
    }

    fn is_gone(&mut self, role: Role) -> bool {
        let side = self.side(role);
        !side.agent_is_down && !side.defined
    }

    fn prepare(&mut self, role: Role) -> Result<bool, ClientError> {
        let side = self.side(role);
        if side.released {
            return Err(refused(409, FindingId::RequestStale));
        }
        side.known = true;
        if role == Role::Source {
            (side.held, side.autostart) = (true, false);
        }
        Ok(true)
    }

    fn perform(&mut self) -> Reported {
        let side = self.known(Role::Source)?;
        if side.stage == Stage::Prepared {
            side.to(Stage::Performing);
        }
        self.report(Role::Source)
    }

    fn report(&mut self, role: Role) -> Reported {
        let side = self.known(role)?;
        Ok(report(role, side.sequence, side.stage))
    }

    fn abort(&mut self, role: Role) -> Reported {
        let side = self.known(role)?;
        let is_here = match side.stage {
            Stage::Confirmed => true,
            Stage::Delivered => role == Role::Destination,
            _ if role == Role::Source || !side.has_files => false,
            _ if side.libvirt_is_down => return Err(refused(409, FindingId::JobOpen)),
            Stage::Prepared | Stage::Performing | Stage::Resumed | Stage::Failed | Stage::Aborted => side.defined,
        };
        if is_here {
            // Including a definition by a request that failed.
            if side.stage != Stage::Confirmed {
                side.to(Stage::Delivered);
            }
            return Err(refused(409, FindingId::JobPastPivot));
        }
        if side.stage != Stage::Failed {
            side.to(Stage::Aborted);
        }
        self.report(role)
    }

    fn confirm(&mut self, role: Role, body: &ConfirmRequest) -> Reported {
        let takes_needed = role == Role::Source && self.needed && !body.keep_source;
        assert!(!takes_needed, "files go that another VM needs: {self:#?}");
        let is_sure = role == Role::Destination || self.elsewhere || self.destination.stage == Stage::Confirmed;
        assert!(is_sure, "the source's part goes before the destination's is known to be whole: {self:#?}");
        let side = self.known(role)?;
        if side.stage != Stage::Confirmed {
            if side.stage != Stage::Delivered || side.libvirt_is_down {
                return Err(refused(409, FindingId::JobOpen));
            }
            match role {
                Role::Source => (side.defined, side.has_files) = (false, body.keep_source),
                Role::Destination if !side.defined => return Err(refused(409, FindingId::VmUnknown)),
                Role::Destination => side.autostart = body.autostart,
            }
            side.to(Stage::Confirmed);
        }
        self.report(role)
    }

    fn release(&mut self, role: Role) -> Result<(), ClientError> {
        let autostart = self.autostart;
        let side = self.side(role);
        if side.known {
            if side.libvirt_is_down {
                return Err(refused(409, FindingId::JobOpen));
            }
            match role {
                Role::Source => {
                    side.held = false;
                    side.autostart |= autostart && side.stage != Stage::Confirmed;
                }
                Role::Destination if side.defined || matches!(side.stage, Stage::Delivered | Stage::Confirmed) => {}
                Role::Destination => (side.has_parts, side.has_files) = (false, false),
            }
        }
        (side.known, side.released) = (false, true);
        Ok(())
    }
}

impl OfflineModel for World {
    fn define(&mut self) -> Reported {
        let fails = self.faults.fails_one_in(6);
        let side = self.known(Role::Destination)?;
        match side.stage {
            Stage::Delivered | Stage::Confirmed => return self.report(Role::Destination),
            Stage::Prepared | Stage::Performing if side.has_files && !side.libvirt_is_down => side.defined = true,
            Stage::Prepared | Stage::Performing | Stage::Resumed | Stage::Failed | Stage::Aborted => {
                return Err(refused(409, FindingId::JobOpen));
            }
        }
        if fails {
            self.faults.note("it is defined, and the request fails");
            return Err(refused(500, FindingId::JobOpen));
        }
        self.destination.to(Stage::Delivered);
        self.report(Role::Destination)
    }
}
