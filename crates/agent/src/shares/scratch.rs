//! Ferry's own small files in the root directory of shares: tokens, and scratch images for lock trials.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use ferry_core::{
    api::agent::ShareToken,
    finding::{ByHand, Finding, FindingId, Message},
    id::ShareId,
};
use ferry_drivers::retry_busy;

use super::Shares;
use crate::AgentError;

/// Longest name of a token file.
const TOKEN_NAME_MAX: usize = 64;

impl Shares {
    /// Writes a token file. Blocks.
    ///
    /// # Errors
    /// If the name is invalid, or the share cannot be written.
    pub fn write_token(&self, id: ShareId, name: &str, token: &ShareToken) -> Result<(), AgentError> {
        let path = self.token_path(id, name)?;
        fs::write(&path, &token.content).map_err(|source| AgentError::File { path, source })
    }

    /// Reads a token file; `None` if it does not exist. Blocks.
    ///
    /// # Errors
    /// If the name is invalid, or the share cannot be read.
    pub fn read_token(&self, id: ShareId, name: &str) -> Result<Option<ShareToken>, AgentError> {
        let path = self.token_path(id, name)?;
        match fs::read_to_string(&path) {
            Ok(content) => Ok(Some(ShareToken { content })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(AgentError::File { path, source }),
        }
    }

    /// Removes a token file. Blocks, for some seconds if another host still has it open.
    ///
    /// # Errors
    /// If the name is invalid, or the share cannot be written.
    pub fn remove_token(&self, id: ShareId, name: &str) -> Result<(), AgentError> {
        remove_scratch(&self.token_path(id, name)?)
    }

    /// The path of the scratch image for a trial of QEMU's locks.
    ///
    /// # Errors
    /// If the name is invalid, or the share is not attached.
    pub fn lock_path(&self, id: ShareId, name: &str) -> Result<PathBuf, AgentError> {
        self.scratch_path(id, "locks", name)
    }

    fn token_path(&self, id: ShareId, name: &str) -> Result<PathBuf, AgentError> {
        self.scratch_path(id, "token", name)
    }

    /// A file of Ferry in the root directory of a share.
    fn scratch_path(&self, id: ShareId, kind: &str, name: &str) -> Result<PathBuf, AgentError> {
        let legal = !name.is_empty()
            && name.len() <= TOKEN_NAME_MAX
            && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '-');
        if !legal {
            return Err(AgentError::refused(
                400,
                Finding::blocks(FindingId::RequestInvalid, name, Message::ScratchName, ByHand::FaultOfServer),
            ));
        }
        Ok(self.path_of(id)?.join(format!(".ferry-{kind}-{name}")))
    }
}

/// Removes a file that two hosts had open; Ok if there is none. Blocks, for some seconds if the other host's close has
/// not reached the file server yet (an SMB server reports a sharing violation, which mounts return as EBUSY).
///
/// # Errors
/// If it cannot be removed.
pub fn remove_scratch(path: &Path) -> Result<(), AgentError> {
    match retry_busy(|| fs::remove_file(path)) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(AgentError::File { path: path.to_owned(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
