//! One end of a disk channel, as its filter uses it.

use super::error::NbdError;

/// One end; both directions share state.
pub(super) trait End: Send {
    fn requests(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), NbdError>;
    fn replies(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), NbdError>;
}
