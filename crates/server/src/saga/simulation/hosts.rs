//! The model's hosts, as the saga asks them. A request may be lost, or its answer.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use ferry_client::{ClientError, agent::Attempt};
use ferry_core::{
    api::agent::{
        ConfirmRequest, DestinationReady, DiskArrival, PrepareDestination, PrepareSource, Report, Role, Stage,
    },
    files::DiskMove,
    finding::{Finding, FindingId},
    id::{Generation, JobId, VmId},
    migration::Presence,
    pin::Pin,
    units::ByteCount,
    vm::VmState,
};

use super::{
    super::models::{away, refused},
    super::participant::{LiveParticipant, Participant, Reported},
    world::{FAULTS_UNTIL, Flight, Side, World},
};

pub(super) type Shared = Arc<Mutex<World>>;

pub(super) fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().expect("nobody panics with it")
}

/// The server goes on, or this was its last moment: then it never returns.
pub(super) async fn server_goes_on(world: &Shared) {
    let ends = lock(world).ends_server();
    if ends {
        std::future::pending().await
    }
    // Another task of the server goes on first, now and then.
    tokio::task::yield_now().await;
}

/// One host with its agent.
pub(super) struct Host {
    pub(super) world: Shared,
    pub(super) role: Role,
}

impl Host {
    /// A request reaches the agent, or not; the answer may be lost after it was done.
    async fn call<T>(&self, act: impl FnOnce(&mut World) -> Result<T, ClientError> + Send) -> Result<T, ClientError> {
        server_goes_on(&self.world).await;
        let answer = {
            let mut world = lock(&self.world);
            world.tick();
            if !world.side(self.role).agent_is_up {
                return Err(away());
            }
            let answer = act(&mut world);
            world.check();
            if world.moment < FAULTS_UNTIL && world.chance.one_in(20) { Err(away()) } else { answer }
        };
        // Also the server may die here: what was done is not known to it.
        server_goes_on(&self.world).await;
        answer
    }

    fn known<'a>(&self, world: &'a mut World) -> Result<&'a mut Side, ClientError> {
        let side = world.side(self.role);
        if side.known { Ok(side) } else { Err(refused(404, FindingId::JobUnknown)) }
    }

    fn report_of(&self, world: &mut World) -> Reported {
        let role = self.role;
        let side = self.known(world)?;
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
            ..Report::new(JobId(1), Generation(1), role, side.sequence, stage)
        })
    }

    async fn prepare(&self) -> Result<(), ClientError> {
        self.call(|world| {
            let side = world.side(self.role);
            if side.ended {
                return Err(refused(409, FindingId::RequestStale));
            }
            if !side.known {
                (side.known, side.carrier, side.held) = (true, true, self.role == Role::Source);
            }
            Ok(())
        })
        .await
    }
}

impl Participant for Host {
    fn name(&self) -> &str {
        match self.role {
            Role::Source => "kvm1",
            Role::Destination => "kvm2",
        }
    }

    fn pin(&self) -> Pin {
        Pin([0; 32])
    }

    async fn perform(&self, _: Attempt) -> Reported {
        self.call(|world| {
            let side = self.known(world)?;
            if side.carrier && side.stage == Stage::Prepared && side.libvirt_is_up {
                side.to(Stage::Performing);
                let answers = world.destination.carrier && world.destination.libvirt_is_up;
                world.flight = Flight::Memory;
                world.destination.process = Presence::Receiving;
                if world.destination.stage == Stage::Prepared {
                    world.destination.to(Stage::Performing);
                }
                if !answers {
                    world.destination.process = Presence::Absent;
                    world.fail_flight();
                }
            }
            self.report_of(world)
        })
        .await
    }

    async fn report(&self, _: Attempt, after: u64, wait: Duration) -> Reported {
        if !wait.is_zero() {
            for _ in 0..5 {
                let has_news = {
                    let mut world = lock(&self.world);
                    world.tick();
                    let is_there = world.side(self.role).agent_is_up;
                    // One that is not there lets nobody wait.
                    !is_there || self.known(&mut world).is_ok_and(|side| side.sequence > after)
                };
                if has_news {
                    break;
                }
                tokio::time::sleep(wait / 5).await;
                server_goes_on(&self.world).await;
            }
        }
        let answer = self.call(|world| self.report_of(world)).await;
        if wait.is_zero() && self.role == Role::Destination {
            lock(&self.world).tell(&answer);
        }
        answer
    }

    async fn abort(&self, _: Attempt) -> Reported {
        self.call(|world| {
            let past_pivot = || refused(409, FindingId::JobPastPivot);
            let flight = world.flight;
            let side = self.known(world)?;
            if side.aborted {
                return self.report_of(world);
            }
            if side.confirmed || side.here || side.finish_delivered {
                return Err(past_pivot());
            }
            if !side.libvirt_is_up {
                return Err(refused(409, FindingId::JobOpen));
            }
            match self.role {
                Role::Source => {
                    if side.carrier && matches!(side.stage, Stage::Prepared | Stage::Performing) {
                        side.to(Stage::Aborted);
                    }
                    match flight {
                        // It is too late to abort: the outcome is waited for.
                        Flight::Finishing => return Err(past_pivot()),
                        _ => world.fail_flight(),
                    }
                    // It may have moved, or may be run at the destination: then the hold stays.
                    world.source.held = !matches!(world.source.process, Presence::Running | Presence::Halted);
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
                    world.fail_flight();
                    world.destination.process = Presence::Absent;
                }
            }
            world.side(self.role).aborted = true;
            self.report_of(world)
        })
        .await
    }

    async fn confirm(&self, _: Attempt, _: &ConfirmRequest) -> Reported {
        self.call(|world| {
            let role = self.role;
            let side = self.known(world)?;
            if role == Role::Source {
                let left = matches!(side.process, Presence::Left | Presence::Stopped);
                let gone = left || matches!(side.process, Presence::Absent | Presence::Off | Presence::Ended);
                if !side.libvirt_is_up || !gone {
                    return Err(refused(409, FindingId::JobOpen));
                }
                side.process = Presence::Absent;
            }
            side.confirmed = true;
            self.report_of(world)
        })
        .await
    }

    async fn release(&self, _: Attempt) -> Result<(), ClientError> {
        self.call(|world| {
            let free = !world.locks_hold || !world.destination.has_disks();
            let elsewhere = world.elsewhere && self.role == Role::Source;
            let side = world.side(self.role);
            if side.known && !side.libvirt_is_up && self.role == Role::Source {
                return Err(refused(409, FindingId::JobOpen));
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
            let story = || format!("{:#?}\n{:#?}", world.log, world.past);
            assert!(!let_go || !elsewhere, "a source is let go of what is elsewhere: {}", story());
            assert!(!runs_again || free, "it is let go while the other copy has its disks: {}", story());
            if world.flight == Flight::Memory || world.flight == Flight::Stopped || world.flight == Flight::Finishing {
                world.fail_flight();
            }
            Ok(())
        })
        .await
    }
}

impl LiveParticipant for Host {
    async fn incoming(&self, _: VmId, disks: &[DiskMove]) -> Result<Vec<DiskArrival>, Vec<Finding>> {
        let one = |disk: &DiskMove| DiskArrival {
            device: disk.device.clone(),
            to: disk.to.clone(),
            format: disk.format,
            virtual_size: ByteCount(1),
            allocated: ByteCount(1),
        };
        Ok(disks.iter().map(one).collect())
    }

    async fn prepare_destination(&self, _: Attempt, _: &PrepareDestination) -> Result<DestinationReady, ClientError> {
        self.prepare().await?;
        let (mounts, files) = (Vec::new(), Vec::new());
        Ok(DestinationReady { carrier: String::new(), mounts, socket_dir: String::new(), files })
    }

    async fn prepare_source(&self, _: Attempt, _: &PrepareSource) -> Result<bool, ClientError> {
        self.prepare().await?;
        Ok(lock(&self.world).autostart)
    }

    async fn resume(&self, _: Attempt) -> Reported {
        self.call(|world| {
            let may_run = world.may_run();
            let side = self.known(world)?;
            if side.aborted {
                return Err(refused(409, FindingId::RequestStale));
            }
            side.here = true;
            if may_run {
                side.process = Presence::Running;
                side.to(Stage::Resumed);
                world.note("resumed by request");
            }
            self.report_of(world)
        })
        .await
    }

    async fn end_copy(&self, _: Attempt) -> Reported {
        self.call(|world| {
            let side = self.known(world)?;
            match side.process {
                Presence::Absent | Presence::Off | Presence::Ended => {}
                Presence::Left if side.libvirt_is_up => side.process = Presence::Off,
                _ => return Err(refused(409, FindingId::JobOpen)),
            }
            self.report_of(world)
        })
        .await
    }

    async fn state_of(&self, _: VmId) -> Result<Option<VmState>, ClientError> {
        self.call(|world| {
            let side = world.side(self.role);
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
        })
        .await
    }
}
