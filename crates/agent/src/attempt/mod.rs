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
use tracing::{Span, error_span, field};

/// An attempt of a job, and the VM that it moves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    pub(crate) job: JobId,
    pub(crate) generation: Generation,
    pub(crate) vm: VmId,
}

impl Attempt {
    /// The span of its log lines, for work that goes on without a request.
    pub(crate) fn span(self) -> Span {
        let Self { job, generation, vm } = self;
        error_span!(parent: None, "move", %job, %generation, %vm)
    }

    /// Names the VM in the span of a request: it is known when the attempt is.
    fn name_vm(self) {
        Span::current().record("vm", field::display(self.vm));
    }
}

/// The span of the log lines of a request about an attempt. Tasks and threads do not inherit it by themselves. Of level
/// ERROR, so that each line has it that is shown at all.
pub(crate) fn span(job: JobId, generation: Generation) -> Span {
    error_span!(parent: None, "move", %job, %generation, vm = field::Empty)
}
