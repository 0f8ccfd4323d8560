//! Starts a VM, or asks its guest to shut down.

use std::sync::Arc;

use ferry_core::{
    api::{agent::Power, problem::Title, server::VmView},
    finding::{ByHand, Finding, FindingId, Message},
    power::paused_finding,
    preflight::busy,
    vm::VmState,
};

use super::{App, show_vms};
use crate::{failure::Failure, inventory::Seen};

pub(crate) async fn power_vm(app: &Arc<App>, reference: &str, power: Power) -> Result<VmView, Failure> {
    let title = match power {
        Power::Start => Title::StartVm { vm: reference.to_owned() },
        Power::Shutdown => Title::ShutDownVm { vm: reference.to_owned() },
    };
    let (host, vm) = app.inventory.find_vm(&title, reference)?;
    // The host is asked now: it may have lost power since its last report, with the VMs that ran there.
    let seen = app.inventory.refresh_now(&host).await;
    if let Some(trouble) = seen.trouble.clone().filter(|_| !seen.reachable) {
        return Err(Failure::found(title, trouble));
    }
    let vm = seen.vm(vm.id).cloned().unwrap_or(vm);
    let jobs = app.store.moving().await?;
    if let Some(job) = jobs.get(&vm.id) {
        return Err(Failure::found(title, busy(&vm, *job)));
    }
    match (power, vm.state) {
        // The VM is already in the requested state.
        (Power::Start, VmState::Running) => return Ok(show_vms::view(app, &jobs, host.name(), vm)),
        (Power::Shutdown, VmState::ShutOff) => {
            let finding = Finding::blocks(
                FindingId::VmNotRunning,
                &vm.name,
                Message::VmShutOffAlready { vm: vm.name.clone(), host: host.name().to_owned() },
                ByHand::NothingToDo,
            );
            return Err(Failure::found(title, finding));
        }
        (Power::Start, VmState::Paused | VmState::Crashed | VmState::Suspended | VmState::Incoming)
        | (Power::Shutdown, VmState::Crashed | VmState::Suspended) => {
            if let Some(finding) = paused_finding(&vm, Some(host.name())) {
                return Err(Failure::found(title, finding));
            }
        }
        (Power::Start, VmState::ShutOff)
        | (Power::Shutdown, VmState::Running | VmState::Paused | VmState::Incoming) => {}
    }
    let done = host.agent.power(vm.id, power).await;
    done.map_err(|error| Failure::of_agent(&title, host.name(), &error))?;
    // A guest needs time to shut down, while a start is visible at once.
    let is_seen =
        |seen: &Seen| power == Power::Shutdown || seen.vm(vm.id).is_some_and(|vm| vm.state == VmState::Running);
    let seen = host.wait_until(is_seen).await;
    let facts = seen.vm(vm.id).cloned().unwrap_or(vm);
    Ok(show_vms::view(app, &jobs, host.name(), facts))
}
