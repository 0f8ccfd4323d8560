//! Removes a share that no host has attached.

use ferry_core::finding::{Finding, FindingId};

use super::show_shares;
use crate::{App, failure::Failure};

pub(crate) async fn remove_share(app: &App, reference: &str) -> Result<(), Failure> {
    let title = format!("Could not remove share {reference}");
    let share = show_shares::find(app, &title, reference).await?;
    let view = show_shares::view(app, share.clone());
    if let Some(on) = view.hosts.first() {
        let finding = Finding::blocks(
            FindingId::ShareInUse,
            &share.name,
            format!("Share {} is attached on host {}", share.name, on.host),
            format!("Detach it first: `ferry share detach {} --host {}`", share.name, on.host),
        );
        return Err(Failure::found(title, finding));
    }
    app.store.remove_share(share.id).await?;
    tracing::info!(share = share.name, "A share was removed");
    Ok(())
}
