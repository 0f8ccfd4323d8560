//! The common framework for attempts of every kind of move: live, storage and offline.
//!
//! ```text
//! request ─▶ locks: one at a time per job ─▶ participant: the kind that knows the job ─▶ the kind's own work
//!                                              │
//!                                            table: is it the newest, known, within the limit?
//!                                              ├─ ended: released attempts (on disk), other kinds' jobs
//!                                              └─ journal: one file per job
//! ```
//! Each kind decides how the work is done: by a process (`live/`, `docs/adr/0002`), by a thread (`storage/`,
//! `docs/adr/0007`) or by a task (`offline/`, `docs/adr/0009`).

pub(crate) mod ended;
pub(crate) mod journal;
pub mod locks;
pub(crate) mod participant;
pub(crate) mod table;

use ferry_core::id::{Generation, JobId, VmId};

/// An attempt of a job, and the VM that it moves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    pub(crate) job: JobId,
    pub(crate) generation: Generation,
    pub(crate) vm: VmId,
}
