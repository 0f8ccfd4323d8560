//! Moves of running VMs.
//!
//! ```text
//! http ─▶ Registry ─▶ control socket ─▶ carrier process: carrier/source or carrier/destination
//!            └─ hold · autostart · undefine · journal: what must outlive the carrier
//! ```
//! A carrier owns its side of one migration (see `docs/adr/0002`). The registry starts it, asks it, and does what must
//! be done with it gone: after a restart of the agent the journals say which migrations there are.

pub mod carrier;
mod destination;
mod ending;
pub mod journal;
mod launch;
mod registry;
mod report;
mod source;
mod vouch;

pub use launch::Launcher;
pub use registry::Registry;
pub(crate) use source::translation;
