//! Simulated storage moves: copies advance by themselves, and when all are ready the disks pivot one after another. The
//! agents' own function decides on each next step ([`block_copy::next`]).
//!
//! At every moment each disk uses an existing file.

use ferry_client::ClientError;
use ferry_core::{
    api::agent::{ConfirmRequest, Role, Stage},
    files::block_copy::{self, DiskNow, Next},
    finding::FindingId,
    migration::{LogEvent, Phase, phase},
};

use super::{
    super::{
        models::world::{Fault, Model, Server, refused, report},
        participant::Reported,
    },
    faults::Faults,
};

/// One disk.
#[derive(Clone, Copy, Debug)]
struct Disk {
    now: DiskNow,
    /// Whether its copy was started.
    begun: bool,
    old_file: bool,
    new_file: bool,
}

#[derive(Debug)]
pub(super) struct World {
    faults: Faults,
    server: Server,
    disks: [Disk; 2],
    agent_is_down: bool,
    libvirt_is_down: bool,
    known: bool,
    released: bool,
    stage: Stage,
    /// Whether the first disk is pivoting or has pivoted.
    switching: bool,
    /// The move was asked to end, and does nothing more.
    ending: bool,
    sequence: u64,
    /// Whether another VM needs the old files.
    needed: bool,
}

impl World {
    pub(super) fn new(number: u64) -> Self {
        let mut faults = Faults::new(number);
        let needed = faults.one_in(4);
        Self {
            faults,
            server: Server::default(),
            disks: [Disk { now: DiskNow::Old, begun: false, old_file: true, new_file: false }; 2],
            agent_is_down: false,
            libvirt_is_down: false,
            known: false,
            released: false,
            stage: Stage::Prepared,
            switching: false,
            ending: false,
            sequence: 0,
            needed,
        }
    }

    fn known(&self) -> Result<(), ClientError> {
        if self.known { Ok(()) } else { Err(refused(404, FindingId::JobUnknown)) }
    }

    fn to(&mut self, stage: Stage) {
        self.stage = stage;
        self.sequence += 1;
    }

    fn moved(&self) -> usize {
        self.disks.iter().filter(|disk| disk.now == DiskNow::New).count()
    }

    /// Ends all unfinished copies.
    fn end_copies(&mut self) {
        for disk in &mut self.disks {
            if matches!(disk.now, DiskNow::Copying | DiskNow::Ready) {
                disk.now = DiskNow::Old;
            }
        }
    }

    fn break_something(&mut self) {
        match self.faults.one_of(8) {
            0 | 1 => self.agent_is_down = true,
            2 | 3 => self.libvirt_is_down = true,
            4 => {
                self.faults.note("the copies break off");
                self.end_copies();
            }
            _ => {
                if matches!(phase(&self.server.log), Phase::Preparing | Phase::Migrating) {
                    self.faults.note("a cancel");
                    self.server.log.push(LogEvent::CancelRequested { by: "admin".into() });
                    self.server.run.cancelled.cancel();
                }
            }
        }
    }

    /// QEMU copies, and the agent takes its next step.
    fn go_on(&mut self) {
        for disk in &mut self.disks {
            if disk.now == DiskNow::Copying && self.faults.one_in(2) {
                disk.now = DiskNow::Ready;
            }
        }
        let goes_on = self.known && self.stage == Stage::Performing && !self.ending;
        if !goes_on || self.agent_is_down || self.libvirt_is_down {
            return;
        }
        let [one, other] = &self.disks;
        match block_copy::next(&[("vda", one.begun, one.now), ("vdb", other.begun, other.now)]) {
            Next::Begin(index) => (self.disks[index].begun, self.disks[index].now) = (true, DiskNow::Copying),
            Next::Wait => {}
            Next::Pivot(index) => (self.switching, self.disks[index].now) = (true, DiskNow::New),
            Next::Done => self.to(Stage::Delivered),
            Next::Fail(_) => self.to(Stage::Failed),
        }
        self.sequence += 1;
    }

    /// Judges the state after the last run of the server. Ok: the job has ended.
    pub(super) fn judge(&self, phase: Phase) -> Result<bool, String> {
        let is_clean = !self.known && !self.server.reserved;
        let each = |so: fn(&Self, &Disk) -> bool| self.disks.iter().all(|disk| so(self, disk));
        let whole = match phase {
            Phase::Succeeded => each(|world, disk| disk.now == DiskNow::New && disk.old_file == world.needed),
            Phase::Failed | Phase::Cancelled => {
                // Only some disks have moved: that happens only if a copy broke off.
                let broken = self.faults.past.iter().any(|note| note.contains("break off"));
                each(|_, disk| disk.old_file && disk.new_file == (disk.now == DiskNow::New))
                    && (self.moved() == 0 || (broken && self.moved() == 1))
            }
            Phase::Queued
            | Phase::Preparing
            | Phase::Migrating
            | Phase::Completing
            | Phase::RollingBack
            | Phase::Stuck => false,
        };
        if whole && is_clean { Ok(true) } else { Err(format!("it is not whole: {self:#?}")) }
    }
}

impl Model for World {
    fn server(&mut self) -> &mut Server {
        &mut self.server
    }

    fn fault(&mut self, _: Role, _: &'static str) -> Option<Fault> {
        if self.server_dies() {
            return Some(Fault::DiesBefore);
        }
        self.tick();
        if self.agent_is_down { Some(Fault::Lost) } else { self.faults.of_answer() }
    }

    fn check(&self) {
        for disk in &self.disks {
            let used = if disk.now == DiskNow::New { disk.new_file } else { disk.old_file };
            assert!(used, "a disk has lost its file: {self:#?}");
        }
    }

    fn server_dies(&mut self) -> bool {
        self.faults.ends_server()
    }

    fn tick(&mut self) {
        self.faults.pass(&self.server);
        if self.faults.fails_one_in(12) {
            self.break_something();
        }
        if !self.faults.is_hostile() || self.faults.one_in(6) {
            (self.agent_is_down, self.libvirt_is_down) = (false, false);
        }
        if self.faults.one_in(2) {
            self.go_on();
        }
        self.check();
    }

    fn has_news(&mut self, _: Role, after: u64) -> bool {
        self.tick();
        self.agent_is_down || (self.known && self.sequence > after)
    }

    fn needs_old_files(&mut self) -> bool {
        self.needed
    }

    fn is_gone(&mut self, _: Role) -> bool {
        false
    }

    fn prepare(&mut self, _: Role) -> Result<bool, ClientError> {
        if self.released {
            return Err(refused(409, FindingId::RequestStale));
        }
        if !self.known {
            self.known = true;
            for disk in &mut self.disks {
                disk.new_file = true;
            }
        }
        Ok(true)
    }

    fn perform(&mut self) -> Reported {
        self.known()?;
        if self.stage == Stage::Prepared {
            self.to(Stage::Performing);
        }
        self.report(Role::Source)
    }

    fn report(&mut self, role: Role) -> Reported {
        self.known()?;
        Ok(report(role, self.sequence, self.stage))
    }

    fn abort(&mut self, role: Role) -> Reported {
        self.known()?;
        match self.stage {
            Stage::Aborted | Stage::Failed => {}
            Stage::Prepared | Stage::Performing if !self.switching => {
                self.ending = true;
                if self.libvirt_is_down {
                    return Err(refused(409, FindingId::JobOpen));
                }
                self.end_copies();
                self.to(Stage::Aborted);
            }
            Stage::Prepared | Stage::Performing | Stage::Delivered | Stage::Resumed | Stage::Confirmed => {
                return Err(refused(409, FindingId::JobPastPivot));
            }
        }
        self.report(role)
    }

    fn confirm(&mut self, role: Role, body: &ConfirmRequest) -> Reported {
        assert!(!self.needed || body.keep_source, "files go that another VM needs: {self:#?}");
        self.known()?;
        if self.stage != Stage::Confirmed {
            if self.stage != Stage::Delivered || self.libvirt_is_down {
                return Err(refused(409, FindingId::JobOpen));
            }
            for disk in &mut self.disks {
                disk.old_file = body.keep_source;
            }
            self.to(Stage::Confirmed);
        }
        self.report(role)
    }

    fn release(&mut self, _: Role) -> Result<(), ClientError> {
        if self.known {
            self.ending = true;
            if self.libvirt_is_down {
                return Err(refused(409, FindingId::JobOpen));
            }
            self.end_copies();
            for disk in &mut self.disks {
                disk.new_file &= disk.now == DiskNow::New;
            }
        }
        (self.known, self.released) = (false, true);
        Ok(())
    }
}
