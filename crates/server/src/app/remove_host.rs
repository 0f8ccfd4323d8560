//! Removes a host: its agent's pin is dropped. What is attached and runs there stays as it is.

use ferry_core::finding::{Finding, FindingId};

use super::App;
use crate::failure::Failure;

pub(crate) async fn remove_host(app: &App, reference: &str) -> Result<(), Failure> {
    let title = format!("Could not remove host {reference}");
    let host = app.inventory.find(reference).map_err(|finding| Failure::found(&title, finding))?;
    let id = host.record.id;
    let open = app.store.open_jobs().await?;
    if let Some(job) = open.iter().find(|job| job.job.source.id == id || job.job.destination.id == id) {
        let finding = Finding::blocks(
            FindingId::HostBusy,
            host.name(),
            format!("Host {} takes part in job {}, which moves VM {}", host.name(), job.id, job.job.vm_name),
            format!("Wait for it (`ferry job watch {}`) or cancel it (`ferry job cancel {}`)", job.id, job.id),
        );
        return Err(Failure::found(title, finding));
    }
    app.store.remove_host(id).await?;
    app.inventory.remove(id);
    tracing::info!(host = host.name(), "A host was removed");
    Ok(())
}
