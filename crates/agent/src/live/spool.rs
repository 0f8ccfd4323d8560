//! The spool of a move on an SMB share: the driver's client, as the wire wants a share.

use std::io;

use bytes::Bytes;
use ferry_drivers::share::smb::files::{SmbChange, SmbEntry, SmbFiles, SmbWatch};
use ferry_wire::transport::spool::share::{Change, Entry, Operation, Share, Watch};

/// An SMB share that carries the bytes of moves.
pub struct SmbShare(SmbFiles);

impl SmbShare {
    /// Uses these connections to it.
    pub fn new(files: SmbFiles) -> Self {
        Self(files)
    }
}

fn entry(entry: SmbEntry) -> Entry {
    let SmbEntry { name, is_folder, bytes, written } = entry;
    Entry { name, is_folder, bytes, written }
}

fn change(change: SmbChange) -> Change {
    match change {
        SmbChange::Added(name) => Change::Added(name),
        SmbChange::Removed(name) => Change::Removed(name),
        SmbChange::Unknown => Change::Unknown,
    }
}

impl Share for SmbShare {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn make(&self, folder: &str) -> Operation<'_, ()> {
        let folder = folder.to_owned();
        Box::pin(async move { self.0.make(&folder).await })
    }

    fn list(&self, folder: &str) -> Operation<'_, Vec<Entry>> {
        let folder = folder.to_owned();
        Box::pin(async move { Ok(self.0.list(&folder).await?.into_iter().map(entry).collect()) })
    }

    fn publish(&self, path: &str, bytes: Bytes) -> Operation<'_, ()> {
        let path = path.to_owned();
        Box::pin(async move { self.0.publish(&path, &bytes).await })
    }

    fn read(&self, path: &str, bytes_max: usize) -> Operation<'_, Option<Vec<u8>>> {
        let path = path.to_owned();
        Box::pin(async move { self.0.read(&path, bytes_max).await })
    }

    fn delete(&self, path: &str) -> Operation<'_, ()> {
        let path = path.to_owned();
        Box::pin(async move { self.0.delete(&path).await })
    }

    fn remove(&self, folder: &str) -> Operation<'_, ()> {
        let folder = folder.to_owned();
        Box::pin(async move { self.0.remove(&folder).await })
    }

    fn watch(&self, folder: &str) -> Operation<'_, Box<dyn Watch>> {
        let folder = folder.to_owned();
        Box::pin(async move { Ok(Box::new(SmbReports(self.0.watch(&folder).await?)) as Box<dyn Watch>) })
    }
}

struct SmbReports(SmbWatch);

impl Watch for SmbReports {
    fn changes(&mut self) -> Operation<'_, Vec<Change>> {
        Box::pin(async { io::Result::Ok(self.0.changes().await?.into_iter().map(change).collect()) })
    }
}
