//! Two processes that pass a byte back and forth, without a pause.
//!
//! Each hand-over changes the address space, which empties the TLB of an emulated processor. QEMU before 10.0 needs
//! that to migrate such a guest correctly: it misses changes of pages that are cached in the TLB.

use std::{
    io::{self, Read, Write},
    process::{Child, Command, Stdio},
    thread,
};

/// The first argument of the process that this one starts.
pub(crate) const TOSS: &str = "toss";

/// Starts the other process, and a thread that returns the byte to it. Killing the process ends both.
pub(crate) fn start() -> Option<Child> {
    let mut other = Command::new("/proc/self/exe")
        .arg(TOSS)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .inspect_err(|error| println!("ticker: it will rest: {error}"))
        .ok()?;
    let (mut there, back) = (other.stdin.take()?, other.stdout.take()?);
    thread::spawn(move || there.write_all(b"x").and_then(|()| toss(back, there)));
    Some(other)
}

/// Passes on each byte, until the other process has ended.
pub(crate) fn toss(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut byte = [0];
    loop {
        from.read_exact(&mut byte)?;
        to.write_all(&byte)?;
        to.flush()?;
    }
}
