//! What tests of several crates share.

pub mod logs;
pub mod metrics;
