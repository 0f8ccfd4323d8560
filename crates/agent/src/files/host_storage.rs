//! Where files may be on this host, and the space for new ones: passed to every request that creates files.

use std::{path::PathBuf, sync::Arc};

use ferry_core::{
    finding::{Action, FindingId, Message},
    location::Location,
};
use ferry_drivers::places::{Places, Roots, RootsError};

use super::claims::{Claim, Reserved};
use crate::{AgentError, refusal::refused, shares::Shares};

/// The storage of this host, for one request. Space is promised to the request as long as its claim lives.
pub struct HostStorage {
    /// Maps locations to paths.
    pub places: Places,
    /// Where files may be.
    pub roots: Roots,
    /// Knows the free space of shares.
    pub shares: Arc<Shares>,
    /// libvirt's settings, which name the user that QEMU runs as.
    pub(crate) qemu_conf: PathBuf,
    /// Returns the space that other jobs' copies will still occupy. Blocks.
    pub(crate) reserved: Box<dyn Fn() -> Vec<Reserved> + Send + Sync>,
    /// Space promised to the request.
    pub(crate) claim: Arc<Claim>,
}

impl HostStorage {
    /// The path of a disk's or file's location on this host.
    ///
    /// # Errors
    /// `file.place`.
    pub(crate) fn path(&self, device: &str, place: &Location) -> Result<PathBuf, AgentError> {
        self.places.path(place).ok_or_else(|| {
            refused(
                FindingId::FilePlace,
                device,
                Message::PlaceNotReached { device: device.to_owned() },
                Action::ShowHost,
            )
        })
    }
}

/// The error for a location that is outside of where files may be, or does not answer.
pub(crate) fn outside(error: &RootsError) -> AgentError {
    AgentError::refused(409, error.finding())
}
