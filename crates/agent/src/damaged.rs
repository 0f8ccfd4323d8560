//! Findings about the agent's damaged files that were put aside.

use std::path::{Path, PathBuf};

use ferry_core::finding::{Finding, FindingId};

use crate::{config::Config, records};

/// One finding for each damaged file of the agent that was put aside.
pub(crate) fn damaged(config: &Config) -> Vec<Finding> {
    let moves = [config.journal_dir(), config.offline_dir(), config.storage_dir()];
    let of_a_move = |path: PathBuf| {
        let job = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.split('.').next());
        let job = job.unwrap_or_default().to_owned();
        damaged_file(
            &path,
            format!(
                "what this host did for job {job} is not known to its agent, which does nothing about what is left of it"
            ),
            format!(
                "See what job {job} says (`ferry job show {job}`) and where its VM is (`ferry vm list`); then remove the file"
            ),
        )
    };
    let of_a_copy = |path: PathBuf| {
        damaged_file(
            &path,
            "an unfinished copy of a disk is not known any more, and stays".to_owned(),
            "Remove the file, and what is named *.ferry-seed and older than a day where disks lie".to_owned(),
        )
    };
    let of_the_agent =
        |path: PathBuf| match path.to_string_lossy().starts_with(&*config.shares_path().to_string_lossy()) {
            true => damaged_file(
                &path,
                "shares are not attached any more that Ferry had mounted on this host".to_owned(),
                "Attach them again with `ferry share attach`, then remove the file".to_owned(),
            ),
            false => damaged_file(
                &path,
                "a request that was under way since before the agent's start may be taken though its attempt has ended"
                    .to_owned(),
                "Remove the file when no job of this host is open (`ferry job list`)".to_owned(),
            ),
        };
    let in_all = moves.iter().flat_map(|folder| records::put_aside(folder)).map(of_a_move);
    let copies = records::put_aside(&config.seeds_dir()).into_iter().map(of_a_copy);
    in_all.chain(copies).chain(records::put_aside(&config.state_dir).into_iter().map(of_the_agent)).collect()
}

fn damaged_file(path: &Path, consequence: String, fix: String) -> Finding {
    let file = path.display();
    let message = format!("A damaged file of the agent's is put aside as {file}: {consequence}");
    Finding::warns(FindingId::HostDamaged, file, message, fix)
}
