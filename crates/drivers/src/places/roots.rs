//! Location → opened directory: the one way from a [`Location`] to files of this host.
//!
//! ```text
//! Location ── split ─▶ root, path inside it ── openat2(RESOLVE_BENEATH) ─▶ Directory
//! ```
//! A root is one of the host's storage roots or the mount of a share. The kernel itself resolves the path inside it and
//! refuses whatever leads out, `..` and symbolic links too, so nothing can change between a check and its use. What was
//! opened stays the same directory whatever becomes of its path.
//!
//! All calls block, and on a mount whose file server is dead for ever: [`Roots::list`], [`Roots::space`] and
//! [`Roots::check_writable`] have deadlines; who calls [`Roots::open`] brings his own.

use std::{
    fs::File,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use ferry_core::{
    finding::{Finding, FindingId},
    id::{HostId, ShareId},
    location::Location,
    place::{DirectoryListing, Space},
    share_source::ShareSource,
};
use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::{stat::Mode, statvfs::fstatvfs},
    unistd::{UnlinkatFlags, unlinkat},
};
use thiserror::Error;
use uuid::Uuid;

use super::{access, access::QemuUser, listing};
use crate::run::within;

/// Longest wait for a directory to be read. A thousand files on a slow file server take some seconds.
const LIST_WAIT: Duration = Duration::from_secs(20);
/// Longest wait for a file system to tell its space.
const SPACE_WAIT: Duration = Duration::from_secs(5);
/// Longest wait for the check that a file can be made.
const CHECK_WAIT: Duration = Duration::from_secs(20);
/// The kernel gives up on a `..` in a link when something was renamed meanwhile; a second try does nearly always.
const TRIES_MAX: usize = 16;

/// A share that is mounted on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareRoot {
    /// The share.
    pub id: ShareId,
    /// How administrators call it.
    pub source: ShareSource,
    /// The top of its mount.
    pub mount: PathBuf,
}

/// Where files may be on this host, and nowhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    host: HostId,
    local: Vec<PathBuf>,
    shares: Vec<ShareRoot>,
}

/// Why a location cannot be used. Each variant is something that a caller treats differently.
#[derive(Debug, Error)]
pub enum RootsError {
    /// It lies outside of every root, or leads there.
    #[error("{path} {why}")]
    Outside {
        /// As an administrator writes it.
        path: String,
        /// In which way.
        why: String,
        /// What to do.
        fix: String,
    },
    /// Its share is not attached on this host.
    #[error("The share of {path} is not attached on this host")]
    NotAttached {
        /// Share and path.
        path: String,
    },
    /// There is nothing.
    #[error("{path} is not there")]
    Missing {
        /// As an administrator writes it.
        path: String,
    },
    /// It is something else.
    #[error("{path} is not a directory")]
    NotADirectory {
        /// As an administrator writes it.
        path: String,
    },
    /// The system refused it.
    #[error("Could not read {path}: {source}")]
    Unreadable {
        /// As an administrator writes it.
        path: String,
        /// Why.
        source: Errno,
    },
    /// Files cannot be made there, or QEMU's user cannot write them.
    #[error("{path} cannot hold files of VMs: {reason}")]
    NotWritable {
        /// As an administrator writes it.
        path: String,
        /// Why.
        reason: String,
    },
    /// The file system does not answer.
    #[error("{path} gave no answer within {} s", .waited.as_secs())]
    Stuck {
        /// As an administrator writes it.
        path: String,
        /// How long was waited.
        waited: Duration,
    },
}

impl RootsError {
    /// The finding that tells a user.
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

impl ShareRoot {
    /// As [`Roots::check_writable`], of the top of the share.
    ///
    /// # Errors
    /// Those of [`Roots::check_writable`].
    pub fn check_writable(&self, user: Option<QemuUser>) -> Result<(), RootsError> {
        let location = Location::Share { share: self.id, path: String::new() };
        let only = Roots { host: HostId(Uuid::nil()), local: Vec::new(), shares: vec![self.clone()] };
        only.check_writable(&location, user)
    }
}

impl Roots {
    /// The host's storage roots and the shares attached on it.
    pub fn new(host: HostId, local: Vec<PathBuf>, shares: Vec<ShareRoot>) -> Self {
        Self { host, local, shares }
    }

    /// The storage roots, as locations.
    pub fn local(&self) -> impl Iterator<Item = Location> {
        self.local.iter().map(|root| Location::Local { host: self.host, path: root.display().to_string() })
    }

    /// Opens the directory of a location.
    ///
    /// # Errors
    /// Any but [`RootsError::NotWritable`] and [`RootsError::Stuck`].
    pub fn open(&self, location: &Location) -> Result<Directory, RootsError> {
        let (top, inside) = self.split(location)?;
        open_below(top, inside, self.written(location))
    }

    /// Opens the directory that holds the file of a location, and gives the file's name in it. The file need not exist.
    ///
    /// # Errors
    /// As [`Roots::open`]; [`RootsError::Outside`] for a root itself.
    pub fn open_parent(&self, location: &Location) -> Result<(Directory, String), RootsError> {
        let (top, inside) = self.split(location)?;
        let (Some(parent), Some(name)) = (inside.parent(), inside.file_name()) else {
            return Err(self.outside(location, "is no file below a storage root or share"));
        };
        let directory = open_below(top, parent.to_owned(), self.written(location))?;
        Ok((directory, name.to_string_lossy().into_owned()))
    }

    /// What is in a directory, within 20 s.
    ///
    /// # Errors
    /// Those of [`Roots::open`], [`RootsError::Stuck`].
    pub fn list(&self, location: &Location) -> Result<DirectoryListing, RootsError> {
        self.bounded(location, LIST_WAIT, |directory| listing::list(&directory))
    }

    /// Total and free bytes of what holds a directory, within 5 s; `None` where the file system does not tell.
    ///
    /// # Errors
    /// Those of [`Roots::open`], [`RootsError::Stuck`].
    pub fn space(&self, location: &Location) -> Result<Option<Space>, RootsError> {
        self.bounded(location, SPACE_WAIT, |directory| Ok(directory.space()))
    }

    /// Makes sure, within 20 s, that a file made in the directory and given to QEMU's user can be written by it. Makes a
    /// file for that, and removes it. Without a user, that a file can be made.
    ///
    /// # Errors
    /// Those of [`Roots::open`], [`RootsError::NotWritable`], [`RootsError::Stuck`].
    pub fn check_writable(&self, location: &Location, user: Option<QemuUser>) -> Result<(), RootsError> {
        self.bounded(location, CHECK_WAIT, move |directory| access::check(&directory, user.as_ref()))
    }

    /// A location as an administrator writes it.
    pub fn written(&self, location: &Location) -> String {
        match location {
            Location::Local { path, .. } => path.clone(),
            Location::Share { share, path } => match self.shares.iter().find(|root| root.id == *share) {
                Some(root) => root.source.written(path),
                None => format!("share {share}: {path}"),
            },
        }
    }

    fn bounded<T: Send + 'static>(
        &self,
        location: &Location,
        wait: Duration,
        work: impl FnOnce(Directory) -> Result<T, RootsError> + Send + 'static,
    ) -> Result<T, RootsError> {
        let (roots, of) = (self.clone(), location.clone());
        within(wait, move || work(roots.open(&of)?))
            .unwrap_or_else(|| Err(RootsError::Stuck { path: self.written(location), waited: wait }))
    }

    /// The root that holds a location most closely, and the path inside it. Pure.
    fn split(&self, location: &Location) -> Result<(&Path, PathBuf), RootsError> {
        match location {
            Location::Share { share, path } => {
                let root = self.shares.iter().find(|root| root.id == *share);
                let root = root.ok_or_else(|| RootsError::NotAttached { path: self.written(location) })?;
                let inside = normal(Path::new(path));
                let inside = inside.ok_or_else(|| self.outside(location, "leads out of its share"))?;
                Ok((&root.mount, inside))
            }
            Location::Local { host, .. } if *host != self.host => {
                Err(self.outside(location, "is a path of another host"))
            }
            Location::Local { path, .. } => {
                let path = Path::new(path);
                let refused = || self.outside(location, "lies in none of the host's storage roots");
                let depth = |root: &PathBuf| root.components().count();
                let holds = |root: &&PathBuf| path.starts_with(root);
                let root = self.local.iter().filter(holds).max_by_key(|root| depth(root));
                let share = self.shares.iter().filter(|share| path.starts_with(&share.mount));
                let share = share.max_by_key(|share| depth(&share.mount));
                // A share may be mounted inside a storage root; what lies on it is not this host's own.
                if let Some(share) = share.filter(|share| root.is_none_or(|root| depth(root) <= depth(&share.mount))) {
                    return Err(on_share(share, path).unwrap_or_else(refused));
                }
                let root = root.ok_or_else(refused)?;
                let inside = path.strip_prefix(root).ok().and_then(normal).ok_or_else(refused)?;
                Ok((root, inside))
            }
        }
    }

    fn outside(&self, location: &Location, why: &str) -> RootsError {
        let roots: Vec<String> = self.local.iter().map(|root| root.display().to_string()).collect();
        let fix = format!(
            "Choose a directory in a share (by the share's own path) or in {}; other directories become storage roots by \
             storage_roots in the configuration of the host's agent",
            if roots.is_empty() { "a storage root".to_owned() } else { roots.join(" or ") }
        );
        RootsError::Outside { path: self.written(location), why: why.to_owned(), fix }
    }
}

/// A directory that was opened, and stays this one.
#[derive(Debug)]
pub struct Directory {
    root: OwnedFd,
    fd: OwnedFd,
    inside: PathBuf,
    path: PathBuf,
    written: String,
}

impl Directory {
    /// Its path on this host, as libvirt and QEMU are given it. Whoever may rename directories in the root can make it
    /// mean another one; it stays in the root only as far as they do not.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As an administrator writes it.
    pub fn written(&self) -> &str {
        &self.written
    }

    /// Total and free bytes of what holds it; `None` where the file system does not tell, as smbnetfs.
    pub fn space(&self) -> Option<Space> {
        let stat = fstatvfs(&self.fd).ok().filter(|stat| stat.blocks() > 0)?;
        let bytes = |blocks: u64| blocks.checked_mul(stat.fragment_size()).map(ferry_core::units::ByteCount);
        Some(Space { total: bytes(stat.blocks())?, free: bytes(stat.blocks_available())? })
    }

    /// Makes a new file in it, readable and writable by its owner alone.
    ///
    /// # Errors
    /// [`RootsError::NotWritable`], also when the name is there already or is no plain name.
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
    /// The system's.
    pub fn remove_file(&self, name: &str) -> Result<(), Errno> {
        unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir)
    }

    /// The directory itself, for calls that work relative to it.
    pub(super) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// What a name in it leads to, if that lies in the same root.
    pub(super) fn follow(&self, name: &Path) -> Result<OwnedFd, Errno> {
        beneath(&self.root, &self.inside.join(name), OFlag::O_PATH)
    }

    /// The error of a call on it.
    pub(super) fn unreadable(&self, source: Errno) -> RootsError {
        RootsError::Unreadable { path: self.written.clone(), source }
    }
}

/// Tells an administrator who writes a path below the mount of a share what he means; `None` if it leads out of it.
fn on_share(share: &ShareRoot, path: &Path) -> Option<RootsError> {
    let inside = path.strip_prefix(&share.mount).ok().and_then(normal)?;
    Some(RootsError::Outside {
        path: path.display().to_string(),
        why: "is on a share, whose files are named by the share's own path".to_owned(),
        fix: format!("Write {}", share.source.written(&inside.to_string_lossy())),
    })
}

/// Opens the directory `inside` a root, whose own path may lead through symbolic links.
fn open_below(top: &Path, inside: PathBuf, written: String) -> Result<Directory, RootsError> {
    let refused = |errno| refusal(errno, &written);
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(top, flags, Mode::empty()).map_err(refused)?;
    let fd = beneath(&root, &inside, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(refused)?;
    Ok(Directory { root, fd, path: top.join(&inside), inside, written })
}

/// Opens `path` below `root`. The kernel refuses with EXDEV what leads out: absolute links and too many `..`.
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
    match errno {
        Errno::ENOENT => RootsError::Missing { path },
        Errno::ENOTDIR => RootsError::NotADirectory { path },
        Errno::EXDEV => RootsError::Outside {
            path,
            why: "holds a symbolic link that leads out of its storage root or share, or names its target by an \
                  absolute path"
                .to_owned(),
            fix: "Choose the directory that the link leads to, if it lies in a storage root, or make the link relative"
                .to_owned(),
        },
        source => RootsError::Unreadable { path, source },
    }
}

/// The path if it is relative and does not climb, without `.`.
fn normal(path: &Path) -> Option<PathBuf> {
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

#[cfg(test)]
mod tests;
