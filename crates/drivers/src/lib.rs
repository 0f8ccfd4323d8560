//! Drivers for systems outside of Ferry: hypervisors and file shares.
//!
//! Each trait has a real implementation and a fake, and one conformance suite that both pass. Mount points and
//! libvirt's domains appear only here, and nowhere above.

mod addresses;
mod busy;
pub mod cpu;
pub mod file;
pub mod hypervisor;
pub mod identity;
pub mod image;
pub mod lock_trial;
pub mod places;
mod run;
pub mod share;

pub use self::{busy::retry_busy, run::within};
