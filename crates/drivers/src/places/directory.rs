//! Directories of this host, opened below a root so that nothing leads out of it, and why one cannot be used.

use std::{
    fs::File,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use ferry_core::{
    finding::{Finding, FindingId},
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
pub enum RootsError {
    /// It lies outside of every root, or leads outside.
    #[error("{path} {why}")]
    Outside {
        /// Its path, as an administrator writes it.
        path: String,
        /// How it lies outside.
        why: String,
        /// What the administrator should do.
        fix: String,
    },
    /// Its share is not attached on this host.
    #[error("The share of {path} is not attached on this host")]
    NotAttached {
        /// Share and path.
        path: String,
    },
    /// It does not exist.
    #[error("{path} is not there")]
    Missing {
        /// Its path, as an administrator writes it.
        path: String,
    },
    /// It is not a directory.
    #[error("{path} is not a directory")]
    NotADirectory {
        /// Its path, as an administrator writes it.
        path: String,
    },
    /// The system refused to read it.
    #[error("Could not read {path}: {source}")]
    Unreadable {
        /// Its path, as an administrator writes it.
        path: String,
        /// Why.
        source: Errno,
    },
    /// Files cannot be created there, or QEMU's user cannot write them.
    #[error("{path} cannot hold files of VMs: {reason}")]
    NotWritable {
        /// Its path, as an administrator writes it.
        path: String,
        /// Why.
        reason: String,
    },
    /// The file system does not answer.
    #[error("{path} gave no answer within {} s", .waited.as_secs())]
    Stuck {
        /// Its path, as an administrator writes it.
        path: String,
        /// How long the caller waited.
        waited: Duration,
    },
}

impl RootsError {
    /// The finding to show to a user.
    pub fn finding(&self) -> Finding {
        let (id, path, fix) = match self {
            Self::Outside { path, fix, .. } => (FindingId::PlaceOutside, path, fix.clone()),
            Self::NotAttached { path } => {
                (FindingId::ShareNotAttached, path, "Attach it with `ferry share attach`".to_owned())
            }
            Self::Missing { path } => {
                (FindingId::PlaceMissing, path, "Make the directory on the host, or choose another".to_owned())
            }
            Self::NotADirectory { path } => {
                (FindingId::PlaceNotADirectory, path, "Choose the directory that holds it".to_owned())
            }
            Self::Unreadable { path, .. } | Self::Stuck { path, .. } => (
                FindingId::PlaceUnreadable,
                path,
                "Check the directory, its file system and links on the host".to_owned(),
            ),
            Self::NotWritable { path, .. } => (
                FindingId::PlaceNotWritable,
                path,
                "Let QEMU's user into the directory, see that its file system is writable, or choose another"
                    .to_owned(),
            ),
        };
        Finding::blocks(id, path, self.to_string(), fix)
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
    if errno != Errno::EXDEV {
        return RootsError::Unreadable { path, source: errno };
    }
    RootsError::Outside {
        path,
        why:
            "holds a symbolic link that leads out of its storage root or share, or names its target by an absolute path"
                .to_owned(),
        fix: "Choose the directory that the link leads to, if it lies in a storage root, or make the link relative"
            .to_owned(),
    }
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
