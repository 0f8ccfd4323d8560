//! What a spool needs of a file share, and no more. [`super::local::LocalShare`] is one for tests; the real one is a client
//! of an SMB server. Both pass [`super::conformance`].

use std::{io, pin::Pin, time::SystemTime};

use bytes::Bytes;

/// An operation on a share. Dropping it may leave it done or not.
pub type Operation<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// What a folder holds under one name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The name, without the folder.
    pub name: String,
    /// Whether it is a folder.
    pub is_folder: bool,
    /// Length in bytes; 0 for a folder.
    pub bytes: u64,
    /// When it was last written, by the server's clock; only good for a comparison with itself.
    pub written: Option<SystemTime>,
}

/// A change of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// There is a file of this name now.
    Added(String),
    /// There is none any more.
    Removed(String),
    /// Changes were lost: only a listing tells.
    Unknown,
}

/// Follows the changes of one folder.
pub trait Watch: Send {
    /// The next changes, in the server's order. Dropping the operation loses none.
    ///
    /// # Errors
    /// If nothing more is told; a new watch may tell more.
    fn changes(&mut self) -> Operation<'_, Vec<Change>>;
}

/// A folder tree that both carriers reach. Paths are relative, with `/` between their parts.
///
/// An error of one of these kinds is definite, and any other may pass (the server starts again, the network is cut):
/// `NotFound`, `NotADirectory`, `DirectoryNotEmpty`, `PermissionDenied`, `StorageFull`, `QuotaExceeded`, `ReadOnlyFilesystem`, `InvalidInput`, `InvalidData`,
/// `Unsupported`. Each operation may be repeated after an error.
pub trait Share: Send + Sync + 'static {
    /// Its name for people, as in `\\fs1.example.org\vms`.
    fn name(&self) -> &str;

    /// Makes a folder, and those above it. Ok if it exists.
    fn make(&self, folder: &str) -> Operation<'_, ()>;

    /// What a folder holds, in any order.
    fn list(&self, folder: &str) -> Operation<'_, Vec<Entry>>;

    /// Writes a file under another name, then renames it: nobody ever sees a part of it. Replaces what has the name.
    fn publish(&self, path: &str, bytes: Bytes) -> Operation<'_, ()>;

    /// The content of a file of at most `bytes_max`; `None` if there is none. A longer one is `InvalidData`, and is not
    /// read.
    fn read(&self, path: &str, bytes_max: usize) -> Operation<'_, Option<Vec<u8>>>;

    /// Deletes a file. Ok if there is none.
    fn delete(&self, path: &str) -> Operation<'_, ()>;

    /// Removes an empty folder. Ok if there is none.
    fn remove(&self, folder: &str) -> Operation<'_, ()>;

    /// Follows a folder from now on. `Unsupported` if that cannot be done here: then it is listed again and again.
    fn watch(&self, folder: &str) -> Operation<'_, Box<dyn Watch>>;
}
