//! Moves of running VMs.
//!
//! ```text
//! http ─▶ Registry ─▶ control socket ─▶ carrier process: carrier/source or carrier/destination
//!            └─ hold · autostart · undefine · journal: work that must outlive the carrier
//! ```
//! A carrier owns its side of one migration (see `docs/adr/0002`). The registry starts it, queries it, and does the
//! work that must not depend on it: after a restart of the agent the journals list the migrations.

mod carried;
pub mod carrier;
mod destination;
mod ending;
pub mod journal;
mod launch;
mod registry;
mod report;
mod source;
pub mod spool;
mod vouch;

pub use launch::{Launcher, reason};
pub use registry::Registry;
pub(crate) use source::translation;
