//! Jobs while they wait and while they run. What is kept of a job is its log; here is only what a restart may lose.
//!
//! ```text
//! enqueue ─▶ queue ─ core::admission::admit ─▶ task: store.admit ─▶ saga::executor::drive ─▶ ended
//!              ▲                                                              │
//!              └────────── admission after each end, limit and new job ───────┘
//! ```

pub(crate) mod driver;
mod queue;
pub(crate) mod running;
