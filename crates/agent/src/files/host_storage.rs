//! Where files may be on this host, and what room there is for new ones: what a request that makes files is given.

use std::{path::PathBuf, sync::Arc};

use ferry_core::{finding::FindingId, location::Location};
use ferry_drivers::places::{Places, Roots, RootsError};

use super::claims::{Claim, Reserved};
use crate::{AgentError, refusal::refused, shares::Shares};

/// The places of this host, for one request. Room is promised to the request as long as its claim lives.
pub struct HostStorage {
    /// Paths of locations.
    pub places: Places,
    /// Where files may be.
    pub roots: Roots,
    /// Who knows how much room a share has.
    pub shares: Arc<Shares>,
    /// libvirt's settings, which name the user that QEMU runs as.
    pub(crate) qemu_conf: PathBuf,
    /// Asks what room other jobs' copies will still take. Blocks.
    pub(crate) reserved: Box<dyn Fn() -> Vec<Reserved> + Send + Sync>,
    /// What the request was promised.
    pub(crate) claim: Arc<Claim>,
}

impl HostStorage {
    /// The path of a disk's or file's place on this host.
    ///
    /// # Errors
    /// `file.place`.
    pub(crate) fn path(&self, device: &str, place: &Location) -> Result<PathBuf, AgentError> {
        self.places.path(place).ok_or_else(|| {
            refused(
                FindingId::FilePlace,
                device,
                format!("The place of {device} cannot be reached on this host"),
                "See what the host reaches with `ferry host show`",
            )
        })
    }
}

/// A place that is outside of where files may be, or does not answer.
pub(crate) fn outside(error: &RootsError) -> AgentError {
    AgentError::refused(409, error.finding())
}
