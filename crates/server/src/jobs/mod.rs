//! Queued and running jobs. A job's log is its only stored state; everything here may be lost in a restart.
//!
//! ```text
//! enqueue ─▶ queue ─ core::admission::admit ─▶ task: store.admit ─▶ saga::executor::drive ─▶ ended
//!              ▲                                                              │
//!              └───── admission after each end, change of limits, new job ────┘
//! ```

pub(crate) mod driver;
mod queue;
pub(crate) mod running;
