//! The migrations that this host takes part in.
//!
//! ```text
//! http ─▶ Registry ─▶ control socket ─▶ carrier process: source.rs or destination.rs
//!            └─ hold · autostart · undefine · journal: what must outlive the carrier
//! ```
//! A carrier owns its side of one migration (see `docs/adr/0002`). The registry starts it, asks it, and does what must
//! be done with it gone: after a restart of the agent the journals say which migrations there are.

pub mod arrivals;
pub mod carrier;
mod destination;
pub mod hold;
pub mod journal;
mod launch;
pub(crate) mod looks;
pub mod mark;
mod registry;
pub mod seeds;
mod source;
mod takeover;
mod vouch;

pub use launch::Launcher;
pub use registry::Registry;
pub(crate) use registry::translation;
