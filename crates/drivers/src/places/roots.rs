//! Location → opened directory: the only way from a [`Location`] to files of this host.
//!
//! ```text
//! Location ── split ─▶ root, path inside it ── openat2(RESOLVE_BENEATH) ─▶ Directory
//! ```
//! A root is one of the host's storage roots or the mount of a share. The kernel itself resolves the path inside it and
//! refuses whatever leads out, including `..` and symbolic links, so nothing can change between the check and the use.
//! An opened directory stays the same, whatever happens to its path.
//!
//! All calls block; on a mount whose file server is dead they block forever. [`Roots::list`], [`Roots::space`] and
//! [`Roots::check_writable`] have deadlines; callers of [`Roots::open`] need a deadline of their own.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use ferry_core::{
    finding::{ByHand, Message},
    id::{HostId, ShareId},
    location::Location,
    place::{DirectoryListing, Space},
    share_source::ShareSource,
    text::AnyOf,
};
use uuid::Uuid;

use super::{
    access::{self, QemuUser},
    directory::{Directory, RootsError, normal, open_below},
    listing,
};
use crate::run::within;

/// Time limit for reading a directory. A thousand files on a slow file system take several seconds.
const LIST_WAIT: Duration = Duration::from_secs(20);
/// Time limit for a file system to report its space.
const SPACE_WAIT: Duration = Duration::from_secs(5);
/// Time limit for the check that a file can be created.
const CHECK_WAIT: Duration = Duration::from_secs(20);

/// A share that is mounted on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareRoot {
    /// The share.
    pub id: ShareId,
    /// Its source, as administrators write it.
    pub source: ShareSource,
    /// The top of its mount.
    pub mount: PathBuf,
}

/// The places where files may be on this host; files may be nowhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    host: HostId,
    local: Vec<PathBuf>,
    shares: Vec<ShareRoot>,
}

impl ShareRoot {
    /// As [`Roots::check_writable`], for the top of the share.
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

    /// Opens the directory that contains the file of a location, and returns it with the file's name. The file need not
    /// exist.
    ///
    /// # Errors
    /// As [`Roots::open`]; [`RootsError::Outside`] for a root itself.
    pub fn open_parent(&self, location: &Location) -> Result<(Directory, String), RootsError> {
        let (top, inside) = self.split(location)?;
        let (Some(parent), Some(name)) = (inside.parent(), inside.file_name()) else {
            return Err(self.outside(location, Message::NoFileBelow));
        };
        let directory = open_below(top, parent.to_owned(), self.written(location))?;
        Ok((directory, name.to_string_lossy().into_owned()))
    }

    /// The content of a directory, within 20 s.
    ///
    /// # Errors
    /// Those of [`Roots::open`]; [`RootsError::Stuck`].
    pub fn list(&self, location: &Location) -> Result<DirectoryListing, RootsError> {
        self.bounded(location, LIST_WAIT, |directory| listing::list(&directory))
    }

    /// Total and free bytes of a directory's file system, within 5 s; `None` if it does not report them.
    ///
    /// # Errors
    /// Those of [`Roots::open`]; [`RootsError::Stuck`].
    pub fn space(&self, location: &Location) -> Result<Option<Space>, RootsError> {
        self.bounded(location, SPACE_WAIT, |directory| Ok(directory.space()))
    }

    /// Checks, within 20 s, that QEMU's user can write a file that is created in the directory and given to that user.
    /// Creates a file for the check, and removes it. Without a user, checks only that a file can be created.
    ///
    /// # Errors
    /// Those of [`Roots::open`]; [`RootsError::NotWritable`]; [`RootsError::Stuck`].
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

    /// The innermost root that contains a location, and the path inside it. Pure.
    fn split(&self, location: &Location) -> Result<(&Path, PathBuf), RootsError> {
        match location {
            Location::Share { share, path } => {
                let root = self.shares.iter().find(|root| root.id == *share);
                let root = root.ok_or_else(|| RootsError::NotAttached { path: self.written(location) })?;
                let inside = normal(Path::new(path));
                let inside = inside.ok_or_else(|| self.outside(location, Message::LeadsOutOfShare))?;
                Ok((&root.mount, inside))
            }
            Location::Local { host, .. } if *host != self.host => Err(self.outside(location, Message::OfAnotherHost)),
            Location::Local { path, .. } => {
                let path = Path::new(path);
                let refused = || self.outside(location, Message::InNoStorageRoot);
                let depth = |root: &PathBuf| root.components().count();
                let holds = |root: &&PathBuf| path.starts_with(root);
                let root = self.local.iter().filter(holds).max_by_key(|root| depth(root));
                let share = self.shares.iter().filter(|share| path.starts_with(&share.mount));
                let share = share.max_by_key(|share| depth(&share.mount));
                // A share may be mounted inside a storage root; files on the share do not belong to that root.
                if let Some(share) = share.filter(|share| root.is_none_or(|root| depth(root) <= depth(&share.mount))) {
                    return Err(on_share(share, path).unwrap_or_else(refused));
                }
                let root = root.ok_or_else(refused)?;
                let inside = path.strip_prefix(root).ok().and_then(normal).ok_or_else(refused)?;
                Ok((root, inside))
            }
        }
    }

    fn outside(&self, location: &Location, why: Message) -> RootsError {
        let roots: Vec<String> = self.local.iter().map(|root| root.display().to_string()).collect();
        let roots = match roots.is_empty() {
            true => Message::AStorageRoot,
            false => Message::StorageRoots { roots: AnyOf(roots) },
        };
        RootsError::Outside { path: self.written(location), why, fix: ByHand::ChooseDirectory { roots: roots.into() } }
    }
}

/// The error for a path below the mount of a share, with the form that should be used; `None` if it leads out of the
/// share.
fn on_share(share: &ShareRoot, path: &Path) -> Option<RootsError> {
    let inside = path.strip_prefix(&share.mount).ok().and_then(normal)?;
    let fix = ByHand::WriteInstead { path: share.source.written(&inside.to_string_lossy()) };
    Some(RootsError::Outside { path: path.display().to_string(), why: Message::IsOnShare, fix })
}

#[cfg(test)]
mod tests;
