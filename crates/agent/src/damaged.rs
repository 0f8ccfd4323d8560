//! Findings about the agent's damaged files that were put aside.

use std::path::{Path, PathBuf};

use ferry_core::finding::{Action, ByHand, Finding, FindingId, Fix, Message};

use crate::{config::Config, records};

/// One finding for each damaged file of the agent that was put aside.
pub(crate) fn damaged(config: &Config) -> Vec<Finding> {
    let moves = [config.journal_dir(), config.offline_dir(), config.storage_dir()];
    let of_a_move = |path: PathBuf| {
        let job = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split('.').next());
        let job = job.unwrap_or_default().to_owned();
        damaged_file(&path, Message::DamagedMove { job: job.clone() }, Action::ShowDamagedJob { job })
    };
    let of_a_copy = |path: PathBuf| damaged_file(&path, Message::DamagedCopy, ByHand::RemoveOldCopies);
    let of_the_agent =
        |path: PathBuf| match path.to_string_lossy().starts_with(&*config.shares_path().to_string_lossy()) {
            true => damaged_file(&path, Message::DamagedShares, Action::AttachSharesAgain),
            false => damaged_file(&path, Message::DamagedRequests, Action::RemoveWhenNoJob),
        };
    let in_all = moves.iter().flat_map(|folder| records::put_aside(folder)).map(of_a_move);
    let copies = records::put_aside(&config.partials_dir()).into_iter().map(of_a_copy);
    in_all.chain(copies).chain(records::put_aside(&config.state_dir).into_iter().map(of_the_agent)).collect()
}

fn damaged_file(path: &Path, consequence: Message, fix: impl Into<Fix>) -> Finding {
    let file = path.display().to_string();
    let message = Message::DamagedFile { file, consequence: consequence.into() };
    Finding::warns(FindingId::HostDamaged, path.display(), message, fix)
}
