//! Removes a host and its agent's pin. Attached shares and running VMs stay as they are.

use ferry_core::{
    api::problem::Title,
    finding::{Action, Finding, FindingId, Message},
};

use super::App;
use crate::failure::Failure;

pub(crate) async fn remove_host(app: &App, reference: &str) -> Result<(), Failure> {
    let title = Title::RemoveHost { host: reference.to_owned() };
    let host = app.inventory.find(reference).map_err(|finding| Failure::found(&title, finding))?;
    let id = host.record.id;
    let open = app.store.open_jobs().await?;
    if let Some(job) = open.iter().find(|job| job.job.source.id == id || job.job.destination.id == id) {
        let finding = Finding::blocks(
            FindingId::HostBusy,
            host.name(),
            Message::HostInJob { host: host.name().to_owned(), job: job.id, vm: job.job.vm_name.clone() },
            Action::WaitOrCancel { job: job.id },
        );
        return Err(Failure::found(title, finding));
    }
    app.store.remove_host(id).await?;
    app.inventory.remove(id);
    tracing::info!(host = host.name(), "A host was removed");
    Ok(())
}
