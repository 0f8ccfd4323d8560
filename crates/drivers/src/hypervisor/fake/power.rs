//! Processes of fake VMs.

use ferry_core::id::VmId;

use super::{
    FakeHypervisor,
    faults::Point,
    guest::Memory,
    host::{LOCKED, Process, failed, no_vm},
};
use crate::hypervisor::{HypervisorError, Power};

impl Power for FakeHypervisor {
    fn start(&self, vm: VmId) -> Result<(), HypervisorError> {
        let what = || format!("Could not start VM {vm}");
        let mut state = self.host.call(Point::Start, what)?;
        let entry = no_vm(&mut state, vm)?;
        match entry.process {
            Process::Off => {}
            Process::Running(_) => return Ok(()),
            Process::Paused(_)
            | Process::Stopped(_)
            | Process::HandedOver(_)
            | Process::Left(_)
            | Process::Receiving(_)
            | Process::Received(_)
            | Process::Arrived(_)
            | Process::Crashed(_)
            | Process::Suspended(_) => return failed(what(), "domain is already running"),
        }
        if self.host.world.is_locked_for(vm, &self.host.name) {
            return failed(what(), LOCKED);
        }
        let memory = Memory::fresh(vm, entry.guest.resident, entry.guest.dirty_ratio);
        drop(state);
        self.host.shift(vm, |_| Process::Running(memory));
        Ok(())
    }

    fn shutdown(&self, vm: VmId) -> Result<(), HypervisorError> {
        let what = || format!("Could not ask VM {vm} to shut down");
        let mut state = self.host.call(Point::Shutdown, what)?;
        if !matches!(no_vm(&mut state, vm)?.process, Process::Running(_)) {
            return failed(what(), "domain is not running");
        }
        drop(state);
        // Fake guests shut down at once.
        self.crash(vm);
        if let Some(entry) = self.host.state().vms.get_mut(&vm) {
            entry.shut_down = true;
        }
        Ok(())
    }

    fn resume(&self, vm: VmId) -> Result<(), HypervisorError> {
        let what = || format!("Could not resume VM {vm}");
        let mut state = self.host.call(Point::Resume, what)?;
        match no_vm(&mut state, vm)?.process {
            Process::Running(_) => return Ok(()),
            Process::Paused(_) | Process::Stopped(_) | Process::Arrived(_)
                if self.host.world.is_locked_for(vm, &self.host.name) =>
            {
                return failed(what(), LOCKED);
            }
            Process::Paused(_) | Process::Stopped(_) | Process::Left(_) | Process::Arrived(_) => {
                no_vm(&mut state, vm)?.facts.stall = None;
            }
            Process::Off => return failed(what(), "domain is not running"),
            Process::Crashed(_) | Process::Suspended(_) => return failed(what(), "its guest does not run"),
            Process::HandedOver(_) | Process::Receiving(_) | Process::Received(_) => {
                return failed(what(), "domain is being migrated");
            }
        }
        drop(state);
        self.host.shift(vm, |process| {
            if let Process::Paused(memory)
            | Process::Stopped(memory)
            | Process::Left(memory)
            | Process::Arrived(memory) = process
            {
                Process::Running(memory)
            } else {
                process
            }
        });
        Ok(())
    }

    fn see_running(&self, vm: VmId) -> Result<bool, HypervisorError> {
        let mut state = self.host.call(Point::SeeRunning, || format!("Could not see whether VM {vm} runs"))?;
        let entry = no_vm(&mut state, vm)?;
        let unseen = std::mem::take(&mut entry.runs_unseen) && matches!(entry.process, Process::Running(_));
        if unseen {
            entry.facts.stall = None;
        }
        drop(state);
        if unseen {
            self.host.shift(vm, |process| process);
        }
        Ok(unseen)
    }

    fn destroy(&self, vm: VmId) -> Result<(), HypervisorError> {
        let state = self.host.call(Point::Destroy, || format!("Could not end the process of VM {vm}"))?;
        let alive = state.vms.get(&vm).is_some_and(|entry| !matches!(entry.process, Process::Off));
        drop(state);
        if alive {
            self.crash(vm);
        }
        Ok(())
    }
}
