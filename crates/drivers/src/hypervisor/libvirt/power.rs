//! VMs' processes, by libvirt.

use ferry_core::id::VmId;

use super::{
    Libvirt,
    faults::{asked, failed},
    ffi::{PausedReason, PowerState},
    monitor,
};
use crate::hypervisor::{HypervisorError, Power};

/// Why a VM is not resumed after its guest crashed.
const CRASHED: &str = "its guest crashed, and its process is kept as its definition asks";
const SUSPENDED: &str = "its guest suspended itself to memory: wake it with `virsh dompmwakeup`";

fn left_as_it_is(what: String, reason: &str) -> HypervisorError {
    HypervisorError::Failed { what, reason: reason.to_owned() }
}

impl Power for Libvirt {
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

    fn shutdown(&self, vm: VmId) -> Result<(), HypervisorError> {
        self.need(vm)?.shutdown().map_err(failed(format!("Could not ask VM {vm} to shut down")))
    }

    fn resume(&self, vm: VmId) -> Result<(), HypervisorError> {
        let domain = self.need(vm)?;
        let what = format!("Could not resume VM {vm}");
        match domain.state().map_err(failed(&what))? {
            // libvirt would resume it.
            PowerState::Crashed => return Err(left_as_it_is(what, CRASHED)),
            PowerState::Suspended => return Err(left_as_it_is(what, SUSPENDED)),
            // Also called for a running VM: a restarted libvirt answers only once it has reconnected to the VM.
            PowerState::Running | PowerState::Paused(_) | PowerState::Off => {}
        }
        match domain.resume() {
            Ok(()) => Ok(()),
            // libvirt refuses to resume a running VM, but that is the desired state.
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
            // libvirt learns that it runs only from QEMU's event, which QEMU sends only if it did not run before.
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
}
