//! Two processes that hand a byte to each other, without a pause.
//!
//! Each hand-over changes the address space, which empties the TLB of an emulated processor. QEMU before 10.0 needs that
//! to move such a guest whole: it forgets pages that are changed through what stands in the TLB.

use std::{
    io::{self, Read, Write},
    process::{Child, Command, Stdio},
    thread,
};

/// The first argument of the process that this one starts.
pub(crate) const TOSS: &str = "toss";

/// Starts the other process, and a thread that hands the byte back to it. Ending the process ends both.
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

/// Hands on whatever byte comes, until there is nobody any more.
pub(crate) fn toss(mut from: impl Read, mut to: impl Write) -> io::Result<()> {
    let mut byte = [0];
    loop {
        from.read_exact(&mut byte)?;
        to.write_all(&byte)?;
        to.flush()?;
    }
}
