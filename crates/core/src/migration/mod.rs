//! A migration as recorded in its log: steps, events, the resulting phase, and the verdict on who has the VM.
//!
//! ```text
//! Preflight → Reserve → PrepareDestination → PrepareSource → Perform → Resume → Confirm → Release
//! compensable ×4 (undone newest first)                       pivot     retriable ×3 (repeated until done)
//!
//! Queued → Preparing → Migrating → Completing → Succeeded
//!              └───────────┴→ RollingBack → Cancelled | Failed      UndoFailed or a retriable step that fails → Stuck
//! ```
//!
//! The log is the only stored truth; [`phase()`] is a fold over it. The point of no return lies inside [`Step::Perform`]:
//! the moment the Finish reply reaches the source's libvirtd, which then ends the source's copy.

mod log;
mod next;
mod phase;
mod step;
mod verdict;

pub use log::{Has, HostAnswer, LogEvent, attempt, ends_by_itself, newest_attempt, phase};
pub use next::{Accepted, JobAction, Refused, answer, is_taken_back, next};
pub use phase::Phase;
pub use step::{Contents, Step, StepClass, steps};
pub use verdict::{Presence, Verdict, is_to_be_remembered, verdict};
