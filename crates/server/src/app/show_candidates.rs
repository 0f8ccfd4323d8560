//! Judges every host as the destination of a VM, from what is already known.

use ferry_core::api::{problem::Title, server::Candidate};

use super::App;
use crate::{failure::Failure, preflight::live};

pub(crate) async fn candidates(app: &App, reference: &str) -> Result<Vec<Candidate>, Failure> {
    let title = Title::FindHosts { vm: reference.to_owned() };
    let (source, vm) = app.inventory.find_vm(&title, reference)?;
    // No storage is given: only UEFI variables at libvirt's default path migrate without a request.
    let judged = live::judge_all(&app.preflight, &source, &vm, &app.promised().await?, false, |_| None).await?;
    Ok(judged.into_iter().map(|(candidate, _)| candidate).collect())
}
