//! Detaches a share from a host, unless a VM there has a file on it.

use std::sync::Arc;

use ferry_core::{
    api::{problem::Title, server::ShareView},
    finding::{Action, Finding, FindingId, Message},
    preflight::shares_of,
};

use super::{App, show_shares};
use crate::failure::Failure;

pub(crate) async fn detach_share(app: &Arc<App>, share: &str, host: &str) -> Result<ShareView, Failure> {
    let title = Title::DetachShare { share: share.to_owned(), host: host.to_owned() };
    let share = show_shares::find(app, &title, share).await?;
    let host = app.inventory.find(host).map_err(|finding| Failure::found(&title, finding))?;
    // The agent's last report may be old: a VM may have been defined since.
    let seen = app.inventory.refresh(&host).await;
    if let Some(trouble) = seen.trouble {
        return Err(Failure::found(title, trouble));
    }
    let vms = seen.observation.as_ref().map_or(&[][..], |observation| &observation.vms);
    if let Some(vm) = vms.iter().find(|vm| shares_of(vm).contains(&share.id)) {
        let finding = Finding::blocks(
            FindingId::ShareInUse,
            &share.name,
            Message::ShareHasVm { vm: vm.name.clone(), host: host.name().to_owned(), share: share.name.clone() },
            Action::MoveOrUndefine { vm: vm.name.clone() },
        );
        return Err(Failure::found(title, finding));
    }
    let in_job = app.store.open_jobs().await?.into_iter().find(|job| {
        (job.job.source.id == host.record.id || job.job.destination.id == host.record.id)
            && job.job.plan.contains(&share.id.to_string())
    });
    if let Some(job) = in_job {
        let finding = Finding::blocks(
            FindingId::ShareInUse,
            &share.name,
            Message::ShareInJob { job: job.id, vm: job.job.vm_name.clone(), share: share.name.clone() },
            Action::WaitForJobToEnd { job: job.id },
        );
        return Err(Failure::found(title, finding));
    }
    let detached = host.agent.detach_share(share.id).await;
    detached.map_err(|error| Failure::of_agent(&title, host.name(), &error))?;
    host.wait_until(|seen| !seen.has_share(share.id)).await;
    tracing::info!(host = host.name(), share = share.name, "A share was detached");
    Ok(show_shares::view(app, share))
}
