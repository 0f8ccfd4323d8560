//! Tests on a scratch image whether QEMU's locks allow a VM to be handed over on a share, in the same order as two
//! QEMUs.
//!
//! ```text
//! source        Holder::start ────────────── let_go ────────── check
//!                qemu-io: open, lock, write    write, close      reads what the destination wrote
//! destination                  Taker::open ──────────── take
//!                               opens beside it          locks, reads, writes
//! ```
//! On the kernel's SMB client without `nobrl`, a second open takes away the file's lease. From then on the locks are
//! those of the server, and mandatory: QEMU's shared locks block its own writes, and its test for the write lock
//! conflicts with the lock that QEMU holds itself ("Failed to get "write" lock", permanently). A new open by the same
//! host would get the lease back and hide the problem. Therefore the destination opens the file before the source
//! closes it, and keeps it open, as a QEMU that receives a VM does. No QEMU tool before 10.0 opens an image in this
//! way; the locks are those of QEMU's `block/file-posix.c`, unchanged since 2.10.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::AsFd as _,
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};
use thiserror::Error;

/// Size of the scratch image: QEMU opens no image smaller than a sector.
const IMAGE_BYTES: usize = 64 << 10;
/// Size of the block that is written and read.
const BLOCK: usize = 4096;
/// The first and the last byte that the source writes, and the byte that the destination writes.
const HELD: u8 = 0x41;
const LET_GO: u8 = 0x42;
const TAKEN: u8 = 0x43;
/// Time limit for a write of the other host to become visible, and for a tool to start or end.
const STEP_WAIT: Duration = Duration::from_secs(5);
const POLL_EVERY: Duration = Duration::from_millis(10);
/// Start of QEMU's lock bytes: operations that a process performs, and operations that it denies to others.
const PERMISSIONS: i64 = 100;
const REFUSALS: i64 = 200;
/// Bits of the operations that a running VM's disk performs (consistent read, write, resize) and denies to others
/// (write, resize).
const DOES: [i64; 3] = [0, 1, 3];
const REFUSES: [i64; 2] = [1, 3];

/// Why a trial failed.
#[derive(Debug, Error)]
pub enum LockTrialError {
    /// The locks do not work: after a hand-over, a VM could not run.
    #[error("{0}")]
    Fails(String),
    /// The trial could not be performed.
    #[error("Could not {what}")]
    Host {
        /// What was attempted.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> LockTrialError {
    let what = what.into();
    move |source| LockTrialError::Host { what, source }
}

/// The source's side: QEMU's own tool, with the image open.
#[derive(Debug)]
pub struct Holder {
    path: PathBuf,
    tool: Child,
}

impl Holder {
    /// Creates the image at `path` and makes `qemu-io` open, lock and write it. Ok promises that the write is visible.
    ///
    /// # Errors
    /// [`LockTrialError`]; the image may then exist.
    pub fn start(path: &Path) -> Result<Self, LockTrialError> {
        let made = OpenOptions::new().write(true).create_new(true).open(path);
        // Written instead of truncated to its size, because some mounts do not support truncation.
        made.and_then(|mut file| file.write_all(&vec![0; IMAGE_BYTES]))
            .map_err(host(format!("make {}", path.display())))?;
        let tool = Command::new("qemu-io")
            .args(["-f", "raw", "-t", "none"])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .env("LC_ALL", "C.UTF-8")
            .spawn()
            .map_err(host("run qemu-io (Debian package qemu-utils)"))?;
        let mut holder = Self { path: path.to_owned(), tool };
        holder.send(&format!("write -P {HELD} 0 {BLOCK}\nflush\n"))?;
        let path = holder.path.clone();
        let written = wait_until(|| holder.has_ended() || block(&path).is_ok_and(|read| read == [HELD; BLOCK]));
        if written && !holder.has_ended() {
            return Ok(holder);
        }
        let failure = holder.end()?;
        Err(LockTrialError::Fails(format!("a first write failed: {failure}")))
    }

    /// Writes once more after another host has opened the image, and closes it.
    ///
    /// # Errors
    /// [`LockTrialError::Fails`] if the file does not contain the write afterwards.
    pub fn let_go(mut self) -> Result<(), LockTrialError> {
        // If the tool is gone, the check of the file below reports it.
        let _ = self.send(&format!("write -P {LET_GO} 0 {BLOCK}\nflush\nquit\n"));
        let path = self.path.clone();
        let failure = self.end()?;
        match block(&path) {
            Ok(read) if read == [LET_GO; BLOCK] => Ok(()),
            Ok(_) => Err(LockTrialError::Fails(format!(
                "a QEMU that has an image open may not write its first sector any more as soon as another host has opened \
                 it: {failure}"
            ))),
            Err(error) => Err(host(format!("read {}", path.display()))(error)),
        }
    }

    fn send(&mut self, commands: &str) -> Result<(), LockTrialError> {
        let pipe = self.tool.stdin.as_mut().expect("stdin is a pipe, and is taken only at the end");
        pipe.write_all(commands.as_bytes()).and_then(|()| pipe.flush()).map_err(host("speak to qemu-io"))
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.tool.try_wait(), Ok(None))
    }

    /// Waits for the tool's end; returns its last error line.
    ///
    /// # Errors
    /// The tool still waits for the file, so nothing is known of the locks. An NFS 4 server makes clients wait up to 90
    /// s for locks after its start.
    fn end(&mut self) -> Result<String, LockTrialError> {
        drop(self.tool.stdin.take());
        if !wait_until(|| self.has_ended()) {
            let _ = self.tool.kill();
            let seconds = STEP_WAIT.as_secs();
            let why = format!(
                "it still waits for the file server after {seconds} s; servers that have just started let wait"
            );
            return Err(host("write with qemu-io")(io::Error::new(io::ErrorKind::TimedOut, why)));
        }
        let read = |stream: Option<&mut dyn io::Read>| {
            let mut text = String::new();
            let _ = stream.map(|stream| stream.read_to_string(&mut text));
            text
        };
        let errors = read(self.tool.stderr.as_mut().map(|stream| stream as &mut dyn io::Read));
        let output = read(self.tool.stdout.as_mut().map(|stream| stream as &mut dyn io::Read));
        let mut lines = errors.lines().chain(output.lines()).map(|line| line.trim_start_matches("qemu-io>").trim());
        let failed = |line: &&str| line.contains("failed") || line.contains("Failed") || line.contains("rror");
        Ok(lines.rfind(failed).unwrap_or("qemu-io did not say why").to_owned())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.tool.kill();
        let _ = self.tool.wait();
    }
}

/// The destination's side: the image, opened as the QEMU of an incoming VM does.
#[derive(Debug)]
pub struct Taker {
    file: File,
}

impl Taker {
    /// Opens the image without a lock. Ok promises that it contains what the source wrote.
    ///
    /// # Errors
    /// [`LockTrialError`].
    pub fn open(path: &Path) -> Result<Self, LockTrialError> {
        let what = || format!("open {}", path.display());
        // A new file of another host may become visible late.
        let seen = wait_until(|| block(path).is_ok_and(|read| read == [HELD; BLOCK]));
        let file = open(path, true).map_err(host(what()))?;
        if seen { Ok(Self { file }) } else { Err(stale("the source wrote before")) }
    }

    /// Takes the locks of a running VM's QEMU, reads what the source wrote last, and writes.
    ///
    /// # Errors
    /// [`LockTrialError::Fails`].
    pub fn take(self) -> Result<(), LockTrialError> {
        for byte in DOES.map(|bit| PERMISSIONS + bit).into_iter().chain(REFUSES.map(|bit| REFUSALS + bit)) {
            lock(&self.file, byte)?;
        }
        // Whether another process denies what this one performs, or performs what this one denies.
        for byte in DOES.map(|bit| REFUSALS + bit).into_iter().chain(REFUSES.map(|bit| PERMISSIONS + bit)) {
            test(&self.file, byte)?;
        }
        if !wait_until(|| read(&self.file).is_ok_and(|read| read == [LET_GO; BLOCK])) {
            return Err(stale("the source wrote last"));
        }
        let written = write(&self.file, TAKEN).and_then(|()| self.file.sync_data());
        written.map_err(|error| {
            LockTrialError::Fails(format!("a QEMU that took over may not write the first sector: {error}"))
        })
    }
}

/// Checks at the source what the destination wrote.
///
/// # Errors
/// [`LockTrialError`].
pub fn check(path: &Path) -> Result<(), LockTrialError> {
    if wait_until(|| block(path).is_ok_and(|read| read == [TAKEN; BLOCK])) {
        return Ok(());
    }
    block(path).map_err(host(format!("read {}", path.display())))?;
    Err(stale("the destination wrote"))
}

fn stale(what: &str) -> LockTrialError {
    let seconds = STEP_WAIT.as_secs();
    LockTrialError::Fails(format!("what {what} is not seen on the other host within {seconds} s"))
}

/// A shared lock on one byte, held until the file is closed.
fn lock(file: &File, byte: i64) -> Result<(), LockTrialError> {
    let range = range(byte, libc::F_RDLCK);
    match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&range)) {
        // On a file system without locks, QEMU continues without them as well.
        Ok(_) | Err(Errno::ENOLCK | Errno::ENOSYS | Errno::EOPNOTSUPP) => Ok(()),
        Err(error) => Err(LockTrialError::Fails(format!("QEMU's lock of byte {byte} is refused: {error}"))),
    }
}

/// Whether an exclusive lock on one byte is available, that is, no other process has a shared one.
fn test(file: &File, byte: i64) -> Result<(), LockTrialError> {
    let mut range = range(byte, libc::F_WRLCK);
    match fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut range)) {
        Ok(_) if i32::from(range.l_type) == libc::F_UNLCK => Ok(()),
        Ok(_) => Err(LockTrialError::Fails(format!(
            "QEMU would say \"Failed to get \"write\" lock\": byte {byte} stays locked although the source has closed the file"
        ))),
        Err(Errno::ENOLCK | Errno::ENOSYS | Errno::EOPNOTSUPP) => Ok(()),
        Err(error) => Err(LockTrialError::Fails(format!("QEMU's test of byte {byte} is refused: {error}"))),
    }
}

fn range(byte: i64, kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: byte,
        l_len: 1,
        // Locks of open file descriptions have no owner.
        l_pid: 0,
    }
}

/// A block that is aligned for O_DIRECT.
#[repr(align(4096))]
struct Aligned([u8; BLOCK]);

/// Opens as QEMU does with `cache='none'`: past the page cache, if the mount supports that.
fn open(path: &Path, writes: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(writes);
    match options.clone().custom_flags(libc::O_DIRECT).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => options.open(path),
        opened => opened,
    }
}

fn block(path: &Path) -> io::Result<[u8; BLOCK]> {
    read(&open(path, false)?)
}

fn read(file: &File) -> io::Result<[u8; BLOCK]> {
    let mut block = Aligned([0; BLOCK]);
    file.read_exact_at(&mut block.0, 0)?;
    Ok(block.0)
}

fn write(file: &File, pattern: u8) -> io::Result<()> {
    file.write_all_at(&Aligned([pattern; BLOCK]).0, 0)
}

/// Whether the condition becomes true within [`STEP_WAIT`].
fn wait_until(mut is: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + STEP_WAIT;
    loop {
        if is() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        thread::sleep(POLL_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("scratch");
        (folder, path)
    }

    #[test]
    fn a_hand_over_passes_where_locks_work() {
        let (_folder, path) = folder();
        let holder = Holder::start(&path).expect("held");
        let taker = Taker::open(&path).expect("open beside it");
        holder.let_go().expect("let go");
        taker.take().expect("taken");
        check(&path).expect("seen");
    }

    #[test]
    fn who_takes_before_the_source_lets_go_meets_qemus_own_locks() {
        let (_folder, path) = folder();
        let holder = Holder::start(&path).expect("held");
        let error = Taker::open(&path).expect("open beside it").take().expect_err("it is held");
        assert!(matches!(&error, LockTrialError::Fails(why) if why.contains("write")), "{error:?}");
        drop(holder);
    }

    #[test]
    fn a_lock_that_stays_is_found_after_the_source_let_go() {
        let (_folder, path) = folder();
        let holder = Holder::start(&path).expect("held");
        let taker = Taker::open(&path).expect("open beside it");
        // Simulates a file server that fails to release a lock.
        let left = File::options().read(true).open(&path).expect("open");
        lock(&left, REFUSALS + 1).expect("locked");
        holder.let_go().expect("let go");
        let error = taker.take().expect_err("somebody refuses writes");
        assert!(matches!(&error, LockTrialError::Fails(why) if why.contains("byte 201")), "{error:?}");
    }

    #[test]
    fn what_the_other_host_did_not_write_is_told() {
        let (_folder, path) = folder();
        let holder = Holder::start(&path).expect("held");
        let taker = Taker::open(&path).expect("open beside it");
        holder.let_go().expect("let go");
        write(&open(&path, true).expect("open"), HELD).expect("as if the last write had not come");
        assert!(matches!(taker.take(), Err(LockTrialError::Fails(why)) if why.contains("wrote last")));
    }

    /// Simulates a file server that makes its clients wait.
    #[test]
    fn a_tool_that_still_waits_tells_nothing_of_the_locks() {
        let (_folder, path) = folder();
        let holder = Holder::start(&path).expect("held");
        let pid = nix::unistd::Pid::from_raw(i32::try_from(holder.tool.id()).expect("a process id"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).expect("stopped");
        let error = holder.let_go().expect_err("it never answers");
        assert!(
            matches!(&error, LockTrialError::Host { source, .. } if source.kind() == io::ErrorKind::TimedOut),
            "{error:?}"
        );
    }
}
