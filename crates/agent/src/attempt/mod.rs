//! One frame for the attempts of every kind of move: live, of disks, and of VMs that are shut off.
//!
//! ```text
//! request ─▶ locks: alone for its job, and to its end ─▶ participant: the kind that knows the job ─▶ the kind's own work
//!                                                          │
//!                                                        table: is it the newest, known, one too many?
//!                                                          ├─ ended: attempts that were released (on disk), and jobs of other kinds
//!                                                          └─ journal: what is written down, one file for each job
//! ```
//! Who does the work is each kind's own affair: a process (`live/`, `docs/adr/0002`), a thread (`storage/`, `docs/adr/0007`) or
//! a task (`offline/`, `docs/adr/0009`).

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
