//! Every host as the destination of a VM, from what is known.

use ferry_core::api::server::Candidate;

use super::App;
use crate::{failure::Failure, preflight::live};

pub(crate) async fn candidates(app: &App, reference: &str) -> Result<Vec<Candidate>, Failure> {
    let title = format!("Could not look for hosts for VM {reference}");
    let (source, vm) = app.inventory.find_vm(&title, reference)?;
    // What moves along without a word: UEFI variables that lie where libvirt has them.
    let judged = live::judge_all(&app.preflight, &source, &vm, &app.promised().await?, false, |_| None).await?;
    Ok(judged.into_iter().map(|(candidate, _)| candidate).collect())
}
