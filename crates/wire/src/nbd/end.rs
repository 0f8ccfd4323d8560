//! One end of a disk's channel, as its filter sees it.

use super::error::NbdError;

/// One end: both directions know of each other.
pub(super) trait End: Send {
    fn requests(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), NbdError>;
    fn replies(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), NbdError>;
}
