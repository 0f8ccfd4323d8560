//! Shared helpers of the image tests.

use std::{process::Command, time::Duration};

use crate::run::run;

/// The owner of files that a test creates.
pub(super) fn me() -> (u32, u32) {
    (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())
}

/// Runs QEMU's tool.
pub(super) fn qemu_img(arguments: &[&str]) {
    let mut tool = Command::new("qemu-img");
    let outcome = run(tool.args(arguments), Duration::from_secs(30)).expect("qemu-img is installed");
    assert!(outcome.is_ok(), "{arguments:?}: {}", outcome.reason());
}
