//! Directories of this host, opened below a root so that nothing leads out of it, and why one cannot be used.

use std::{
    fs::File,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use ferry_core::{
    finding::{Action, ByHand, Finding, FindingId, Fix, Message},
    place::Space,
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::{stat::Mode, statvfs::fstatvfs},
    unistd::{UnlinkatFlags, unlinkat},
};
use thiserror::Error;

/// The kernel fails on a `..` in a link if anything was renamed meanwhile; a second try almost always succeeds.
const TRIES_MAX: usize = 16;

/// Why a location cannot be used. Each variant is something that a caller treats differently.
#[derive(Debug, Error)]
#[error("{}", self.message())]
pub enum RootsError {
    /// It lies outside of every root, or leads outside.
    Outside {
        /// Its path, as an administrator writes it.
        path: String,
        /// How it lies outside.
        why: Message,
        /// What the administrator should do.
        fix: ByHand,
    },
    /// Its share is not attached on this host.
    NotAttached {
        /// Share and path.
        path: String,
    },
    /// It does not exist.
    Missing {
        /// Its path, as an administrator writes it.
        path: String,
    },
    /// It is not a directory.
    NotADirectory {
        /// Its path, as an administrator writes it.
        path: String,
    },
    /// The system refused to read it.
    Unreadable {
        /// Its path, as an administrator writes it.
        path: String,
        /// Why.
        source: Errno,
    },
    /// Files cannot be created there, or QEMU's user cannot write them.
    NotWritable {
        /// Its path, as an administrator writes it.
        path: String,
        /// Why.
        reason: String,
    },
    /// The file system does not answer.
    Stuck {
        /// Its path, as an administrator writes it.
        path: String,
        /// How long the caller waited.
        waited: Duration,
    },
}

impl RootsError {
    fn path(&self) -> &String {
        match self {
            Self::Outside { path, .. }
            | Self::NotAttached { path }
            | Self::Missing { path }
            | Self::NotADirectory { path }
            | Self::Unreadable { path, .. }
            | Self::NotWritable { path, .. }
            | Self::Stuck { path, .. } => path,
        }
    }

    /// The finding to show to a user.
    pub fn message(&self) -> Message {
        let path = self.path().clone();
        match self {
            Self::Outside { why, .. } => Message::PlaceOutside { path, why: why.clone().into() },
            Self::NotAttached { .. } => Message::PlaceNotAttached { path },
            Self::Missing { .. } => Message::PlaceMissing { path },
            Self::NotADirectory { .. } => Message::PlaceNotADirectory { path },
            Self::Unreadable { source, .. } => Message::PlaceUnreadable { path, reason: source.to_string() },
            Self::NotWritable { reason, .. } => Message::PlaceNotWritable { path, reason: reason.clone() },
            Self::Stuck { waited, .. } => Message::PlaceSilent { path, seconds: waited.as_secs() },
        }
    }

    /// The finding to show to a user.
    pub fn finding(&self) -> Finding {
        let (id, fix): (_, Fix) = match self {
            Self::Outside { fix, .. } => (FindingId::PlaceOutside, fix.clone().into()),
            Self::NotAttached { .. } => (FindingId::ShareNotAttached, Action::AttachShareOnHost.into()),
            Self::Missing { .. } => (FindingId::PlaceMissing, ByHand::MakeDirectory.into()),
            Self::NotADirectory { .. } => (FindingId::PlaceNotADirectory, ByHand::ChooseParent.into()),
            Self::Unreadable { .. } | Self::Stuck { .. } => (FindingId::PlaceUnreadable, ByHand::CheckDirectory.into()),
            Self::NotWritable { .. } => (FindingId::PlaceNotWritable, ByHand::LetQemuIn.into()),
        };
        Finding::blocks(id, self.path(), self.message(), fix)
    }
}

/// An open directory. It stays the same directory when its path changes.
#[derive(Debug)]
pub struct Directory {
    root: OwnedFd,
    fd: OwnedFd,
    inside: PathBuf,
    path: PathBuf,
    written: String,
}

impl Directory {
    /// Its path on this host, for libvirt and QEMU. Anyone who may rename directories in the root can make the path
    /// mean another directory; only without such renames does it stay in the root.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its path, as an administrator writes it.
    pub fn written(&self) -> &str {
        &self.written
    }

    /// Total and free bytes of its file system; `None` if the file system does not report them, like smbnetfs.
    pub fn space(&self) -> Option<Space> {
        let stat = fstatvfs(&self.fd).ok().filter(|stat| stat.blocks() > 0)?;
        let bytes = |blocks: u64| blocks.checked_mul(stat.fragment_size()).map(ferry_core::units::ByteCount);
        Some(Space { total: bytes(stat.blocks())?, free: bytes(stat.blocks_available())? })
    }

    /// Creates a new file in it, readable and writable only by its owner.
    ///
    /// # Errors
    /// [`RootsError::NotWritable`], also if the name exists already or is not a plain name.
    pub fn create_file(&self, name: &str) -> Result<File, RootsError> {
        let plain = normal(Path::new(name)).is_some_and(|path| path.components().count() == 1);
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL;
        let made = if plain { beneath(&self.fd, Path::new(name), flags) } else { Err(Errno::EINVAL) };
        made.map(File::from).map_err(|errno| RootsError::NotWritable {
            path: self.written.clone(),
            reason: format!("a file {name:?} could not be made ({errno})"),
        })
    }

    /// Removes a file from it.
    ///
    /// # Errors
    /// The system's errors.
    pub fn remove_file(&self, name: &str) -> Result<(), Errno> {
        unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir)
    }

    /// The directory itself, for calls that work relative to it.
    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Opens the target of a name in it, if the target lies in the same root.
    pub(super) fn follow(&self, name: &Path) -> Result<OwnedFd, Errno> {
        beneath(&self.root, &self.inside.join(name), OFlag::O_PATH)
    }

    /// Converts the error of a call on it.
    pub(super) fn unreadable(&self, source: Errno) -> RootsError {
        RootsError::Unreadable { path: self.written.clone(), source }
    }
}

/// Opens the directory `inside` a root, whose own path may contain symbolic links.
pub(super) fn open_below(top: &Path, inside: PathBuf, written: String) -> Result<Directory, RootsError> {
    let refused = |errno| refusal(errno, &written);
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(top, flags, Mode::empty()).map_err(refused)?;
    let fd = beneath(&root, &inside, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(refused)?;
    Ok(Directory { root, fd, path: top.join(&inside), inside, written })
}

/// Opens `path` below `root`. For a path that leads outside, by absolute links or too many `..`, the kernel returns
/// EXDEV.
fn beneath(root: &OwnedFd, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let how = if flags.contains(OFlag::O_CREAT) { how.mode(Mode::S_IRUSR | Mode::S_IWUSR) } else { how };
    let mut opened = Err(Errno::EAGAIN);
    for _ in 0..TRIES_MAX {
        opened = openat2(root, path, how);
        if !matches!(opened, Err(Errno::EAGAIN | Errno::EINTR)) {
            break;
        }
    }
    opened
}

fn refusal(errno: Errno, written: &str) -> RootsError {
    let path = written.to_owned();
    if errno == Errno::ENOENT {
        return RootsError::Missing { path };
    }
    if errno == Errno::ENOTDIR {
        return RootsError::NotADirectory { path };
    }
    if errno == Errno::EXDEV {
        return RootsError::Outside { path, why: Message::LinkLeadsOut, fix: ByHand::ChooseLinked };
    }
    RootsError::Unreadable { path, source: errno }
}

/// The path without `.`, if it is relative and does not contain `..`.
pub(super) fn normal(path: &Path) -> Option<PathBuf> {
    let mut inside = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => inside.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(inside)
}
