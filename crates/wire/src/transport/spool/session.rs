//! The folder of one session on a share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use ferry_core::{id::SessionId, pin::Secret};
use tokio::task::AbortHandle;

use super::{
    error::{Fault, io_error},
    retry::persist,
    segment::{FILE_BYTES_MAX, Keys},
    share::Share,
    view::{View, follow},
};
use crate::WireError;

/// The folder of all sessions, at the top of a share.
pub const FOLDER: &str = "ferry-spool";
/// How often the destination shows that a session is alive.
pub(super) const HEARTBEAT_EVERY: Duration = Duration::from_secs(60);
/// The file by which it does.
const HEARTBEAT: &str = "alive";

/// One end's access to the folder of a session. Its pipes hold it; it ends with them.
pub struct Spool {
    share: Arc<dyn Share>,
    folder: String,
    keys: Keys,
    view: Arc<View>,
    published: AtomicU64,
    follower: AbortHandle,
}

impl Spool {
    /// Makes the folder of a session, and follows it.
    ///
    /// # Errors
    /// [`WireError::Peer`], with the share's name, if the share cannot be reached or refuses.
    pub async fn open(share: Arc<dyn Share>, session: SessionId, secret: &Secret) -> Result<Arc<Self>, WireError> {
        let folder = format!("{FOLDER}/{}", session.0.simple());
        let failed = |fault| WireError::Peer(io_error(fault));
        persist(&*share, "make the folder of the move", || share.make(&folder)).await.map_err(failed)?;
        let view = Arc::new(View::new());
        let follower = tokio::spawn(follow(Arc::clone(&share), folder.clone(), Arc::clone(&view))).abort_handle();
        let keys = Keys::new(session, secret);
        Ok(Arc::new(Self { share, folder, keys, view, published: AtomicU64::new(0), follower }))
    }

    /// Bytes of the segments that this end has published.
    pub fn published_bytes(&self) -> u64 {
        self.published.load(Relaxed)
    }

    /// Removes the folder with what is left in it. To be called when no pipe is used any more.
    ///
    /// # Errors
    /// [`WireError::Peer`], with the share's name; then [`super::janitor`] removes it later.
    pub async fn clear(&self) -> Result<(), WireError> {
        self.follower.abort();
        clear(&*self.share, &self.folder).await.map_err(|fault| WireError::Peer(io_error(fault)))
    }

    /// Shows that the session is alive, until it is dropped.
    pub(super) async fn beat(self: Arc<Self>) {
        let path = self.path(HEARTBEAT);
        for beats in 0_u64.. {
            let beat = Bytes::copy_from_slice(&beats.to_le_bytes());
            // One that is missing does not count: several must be, before the session is taken for dead.
            let _ = self.share.publish(&path, beat).await;
            tokio::time::sleep(HEARTBEAT_EVERY).await;
        }
    }

    pub(super) fn view(&self) -> &View {
        &self.view
    }

    pub(super) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// The share's name, for people.
    pub fn share_name(&self) -> String {
        self.share.name().to_owned()
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.folder)
    }

    /// Publishes a sealed segment; returns its name.
    pub(super) async fn publish(&self, name: String, file: Vec<u8>) -> Result<String, Fault> {
        let (path, file) = (self.path(&name), Bytes::from(file));
        persist(&*self.share, "write a segment", || self.share.publish(&path, file.clone())).await?;
        self.published.fetch_add(file.len() as u64, Relaxed);
        Ok(name)
    }

    /// The file of a segment, if it is there.
    pub(super) async fn read(&self, name: &str) -> Result<Option<Vec<u8>>, Fault> {
        let path = self.path(name);
        persist(&*self.share, "read a segment", || self.share.read(&path, FILE_BYTES_MAX)).await
    }

    /// Deletes a segment that was read: its sender may write another.
    pub(super) async fn delete(&self, name: &str) -> Result<(), Fault> {
        let path = self.path(name);
        persist(&*self.share, "delete a segment", || self.share.delete(&path)).await
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

/// Removes a session's folder with its files. Ok if there is none.
pub(super) async fn clear(share: &dyn Share, folder: &str) -> Result<(), Fault> {
    const WHAT: &str = "remove the folder of a move";
    let listed = persist(share, WHAT, || {
        Box::pin(async {
            match share.list(folder).await {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
                listed => listed,
            }
        })
    });
    for entry in listed.await?.into_iter().filter(|entry| !entry.is_folder) {
        let path = format!("{folder}/{}", entry.name);
        persist(share, WHAT, || share.delete(&path)).await?;
    }
    persist(share, WHAT, || share.remove(folder)).await
}
