//! Follows both directions of the channel, and reports when the reply to Finish passes.

use super::{
    calls::FinishCall,
    message::{FINISH, Header, Kind, LengthError, REMOTE_PROGRAM, STATUS_OK, Splitter},
};

/// The outcome of the call that ends the hand-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FinishReply {
    /// Whether the destination has the VM: the call did not cancel, and the reply is not an error. Once the source's
    /// libvirtd has read that, it ends the source's copy and cannot be made to run that copy again.
    pub destination_has_it: bool,
    header: Header,
    /// Start and end of the reply in the buffer it was appended to.
    place: (usize, usize),
}

impl FinishReply {
    /// Replaces the reply by a libvirt error with this message, in the `out` that the reply was appended to. The
    /// source's libvirtd then keeps its copy and resumes it.
    pub fn refuse(&self, out: &mut Vec<u8>, message: &str) {
        let (start, end) = self.place;
        out.splice(start..end, self.header.refusal_reply(message));
    }
}

/// Follows both directions of the channel and reports when the reply to Finish passes.
#[derive(Debug, Default)]
pub struct Tap {
    calls: Splitter,
    replies: Splitter,
    /// Serial of the Finish call, and whether the call cancels the migration.
    finish: Option<(u32, bool)>,
    passed: Passed,
}

/// How many whole messages a [`Tap`] has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Messages from the source's libvirtd.
    pub calls: u32,
    /// Messages to the source's libvirtd.
    pub replies: u32,
}

impl Tap {
    /// The messages that it has seen so far.
    pub fn passed(&self) -> Passed {
        self.passed
    }

    /// Whether the source's libvirtd has called Finish.
    pub fn has_seen_finish(&self) -> bool {
        self.finish.is_some()
    }

    /// Parses bytes from the source's libvirtd, which pass unchanged.
    ///
    /// # Errors
    /// The bytes are not valid messages.
    pub fn calls(&mut self, bytes: &[u8]) -> Result<(), LengthError> {
        let Self { calls, finish, passed, .. } = self;
        calls.push(bytes, |message| {
            passed.calls += 1;
            let header = message.header;
            if (header.program, header.procedure, header.kind) == (REMOTE_PROGRAM, FINISH, Kind::Call) {
                // An unreadable Finish is not taken for one that ends the source's copy.
                let cancelled = FinishCall::parse(message.body).map_or(true, |finish| finish.cancelled);
                *finish = Some((header.serial, cancelled));
            }
            Ok(())
        })
    }

    /// Takes bytes for the source's libvirtd and appends each whole message to `out`. Ok contains the reply to Finish
    /// if it is among them; the reply is delivered once `out` is written.
    ///
    /// # Errors
    /// The bytes are not valid messages.
    pub fn replies(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Option<FinishReply>, LengthError> {
        let Self { replies, finish, passed, .. } = self;
        let mut seen = None;
        replies.push::<LengthError>(bytes, |message| {
            passed.replies += 1;
            let header = message.header;
            if let Some((serial, cancelled)) = *finish
                && (header.program, header.procedure, header.kind) == (REMOTE_PROGRAM, FINISH, Kind::Reply)
                && header.serial == serial
            {
                seen = Some(FinishReply {
                    destination_has_it: header.status == STATUS_OK && !cancelled,
                    header,
                    place: (out.len(), out.len() + message.bytes.len()),
                });
            }
            out.extend_from_slice(message.bytes);
            Ok(())
        })?;
        Ok(seen)
    }
}
