//! The shares attached on this host: stored in a file, and attached again when the agent starts.

mod adopt;
mod scratch;
mod watch;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use ferry_core::{
    api::agent::{AttachRequest, ShareCredentials, ShareMount},
    error::chain,
    finding::{Action, ByHand, Finding, FindingId, Message},
    id::{HostId, ShareId},
    place::Space,
    share::{AttachMode, AttachedShare},
    share_source::ShareSource,
};
use ferry_drivers::{
    places::{Places, ShareRoot},
    share::{ShareDriver, file_system_of},
};
use serde::{Deserialize, Serialize};
use tracing::warn;

pub use self::scratch::remove_scratch;
use crate::{AgentError, config::Config, lock::lock, records};

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    id: ShareId,
    /// Named `unc` in the file, as an earlier version of the agent wrote it.
    #[serde(rename = "unc")]
    source: ShareSource,
    mode: AttachMode,
    path: PathBuf,
    /// Needed to mount an SMB share again after the host restarts. The file is readable by root only.
    credentials: Option<ShareCredentials>,
    /// For a share that is a path: what was mounted there when it was attached. Nothing else shows that it still is.
    #[serde(default)]
    mounted: Option<String>,
}

impl Entry {
    /// The share's state; of its mount, what `driver` reports, if it was probed.
    fn view(&self, finding: Option<Finding>, space: Option<Space>, driver: Option<&dyn ShareDriver>) -> AttachedShare {
        let trouble = finding.as_ref().map(|finding| finding.message.to_string());
        let (free, total) = space.map(|space| (space.free, space.total)).unzip();
        let soft = driver.is_some_and(|driver| !driver.waits(&self.path));
        let server_locks = driver.is_some_and(|driver| !driver.locks_stay(&self.path));
        let at = matches!(self.source, ShareSource::Path(_)).then(|| self.path.display().to_string());
        let (id, source, mode, file_system) = (self.id, self.source.clone(), self.mode, file_system_of(&self.path));
        AttachedShare { id, source, mode, trouble, finding, free, total, soft, server_locks, at, file_system }
    }
}

/// The table of shares.
pub struct Shares {
    path: PathBuf,
    root: PathBuf,
    qemu_conf: PathBuf,
    driver: Arc<dyn ShareDriver>,
    entries: Mutex<Vec<Entry>>,
    /// The state of each share at its last probe, for callers that must not wait for a dead mount.
    views: tokio::sync::watch::Sender<Vec<AttachedShare>>,
}

impl Shares {
    /// Reads the table. Shares whose mount is gone are mounted again by [`Shares::supervise`].
    ///
    /// # Errors
    /// If the table cannot be read.
    pub fn load(config: &Config, driver: Arc<dyn ShareDriver>) -> Result<Self, AgentError> {
        let path = config.shares_path();
        let entries: Vec<Entry> = records::read_or_put_aside(&path)?.unwrap_or_default();
        let unknown = |entry: &Entry| {
            let (message, fix) = (Message::ShareNotLookedAt, ByHand::TryAgainSoon);
            Finding::blocks(FindingId::ShareUnreachable, &entry.source, message, fix)
        };
        let views = entries.iter().map(|entry| entry.view(Some(unknown(entry)), None, None)).collect();
        let (root, qemu_conf) = (config.share_root.clone(), config.qemu_conf.clone());
        Ok(Self {
            path,
            root,
            qemu_conf,
            driver,
            entries: Mutex::new(entries),
            views: tokio::sync::watch::Sender::new(views),
        })
    }

    /// The state of shares at their last probe.
    pub fn watch(&self) -> tokio::sync::watch::Receiver<Vec<AttachedShare>> {
        self.views.subscribe()
    }

    /// Attaches a share. Blocks. Repeating it is safe.
    ///
    /// # Errors
    /// If the driver refuses; nothing is left attached.
    pub fn attach(&self, id: ShareId, request: &AttachRequest) -> Result<AttachedShare, AgentError> {
        let source = &request.source;
        Self::check_login(request)?;
        if request.credentials.is_some() {
            self.driver.probe(source, request.credentials.as_ref())?;
        }
        let (mode, path) = match (&request.at, source) {
            (Some(at), _) => (AttachMode::Adopted, self.adopt(id, source, Path::new(at))?),
            (None, ShareSource::Path(shared)) => {
                (AttachMode::Adopted, self.adopt(id, source, Path::new(shared.as_str()))?)
            }
            (None, ShareSource::Smb(_) | ShareSource::Nfs(_)) => {
                let point = self.root.join(id.to_string());
                self.driver.attach(source, request.credentials.as_ref(), &point)?;
                (AttachMode::Mounted, point)
            }
        };
        if let Err(refused) = self.check_ownership(id, source, &path) {
            self.let_go(id, mode, source, &path);
            return Err(refused);
        }
        let credentials = request.credentials.clone().filter(|_| mode == AttachMode::Mounted);
        let space = self.driver.space(source, request.credentials.as_ref(), &path);
        let mounted = match source {
            ShareSource::Path(_) => self.driver.mounted(&path).map(|mounted| mounted.what),
            ShareSource::Smb(_) | ShareSource::Nfs(_) => None,
        };
        let entry = Entry { id, source: source.clone(), mode, path, credentials, mounted };
        let view = entry.view(None, space, Some(&*self.driver));
        self.change(|entries| {
            entries.retain(|other| other.id != id);
            entries.push(entry);
        })?;
        self.publish(|views| {
            views.retain(|other| other.id != id);
            views.push(view.clone());
        });
        Ok(view)
    }

    /// Undoes a mount that this request made.
    fn let_go(&self, id: ShareId, mode: AttachMode, source: &ShareSource, path: &Path) {
        let was_there = self.entry(id).is_ok();
        if mode == AttachMode::Mounted
            && !was_there
            && let Err(error) = self.driver.detach(source, path)
        {
            warn!(share = %source, error = %chain(&error), "A share stays mounted that was not attached");
        }
    }

    /// Detaches a share. Blocks. Ok if it is not attached. An adopted mount stays mounted.
    ///
    /// # Errors
    /// If it cannot be unmounted, for instance while files on it are open; it stays attached then.
    pub fn detach(&self, id: ShareId) -> Result<(), AgentError> {
        if let Some(entry) = self.copy().into_iter().find(|entry| entry.id == id) {
            if entry.mode == AttachMode::Mounted {
                self.driver.detach(&entry.source, &entry.path)?;
            }
            self.change(|entries| entries.retain(|other| other.id != id))?;
            self.publish(|views| views.retain(|other| other.id != id));
        }
        Ok(())
    }

    /// Where each share is.
    pub fn places(&self, host: HostId) -> Places {
        Places::new(host, self.copy().into_iter().map(|entry| (entry.id, entry.path)).collect())
    }

    /// The root directories of the shares' mounts.
    pub fn roots(&self) -> Vec<ShareRoot> {
        let root = |entry: Entry| ShareRoot { id: entry.id, source: entry.source, mount: entry.path };
        self.copy().into_iter().map(root).collect()
    }

    /// Checks that a share's files can be used now. Blocks, for some seconds if its file server is dead.
    ///
    /// # Errors
    /// `share.not-attached`, or the share's problem.
    pub fn check(&self, id: ShareId) -> Result<(), AgentError> {
        Ok(self.is_usable(&self.entry(id)?)?)
    }

    /// Current free and total bytes of a share, if they can be determined. Blocks, for some seconds if its file server
    /// is dead.
    ///
    /// # Errors
    /// `share.not-attached`.
    pub fn space(&self, id: ShareId) -> Result<Option<Space>, AgentError> {
        let entry = self.entry(id)?;
        Ok(self.driver.space(&entry.source, entry.credentials.as_ref(), &entry.path))
    }

    /// The mount points of some shares.
    ///
    /// # Errors
    /// `share.not-attached` naming the first that is not attached.
    pub fn mounts(&self, ids: impl IntoIterator<Item = ShareId>) -> Result<Vec<ShareMount>, AgentError> {
        let one = |share| Ok(ShareMount { share, path: self.path_of(share)?.display().to_string() });
        ids.into_iter().map(one).collect()
    }

    fn path_of(&self, id: ShareId) -> Result<PathBuf, AgentError> {
        Ok(self.entry(id)?.path)
    }

    fn entry(&self, id: ShareId) -> Result<Entry, AgentError> {
        self.copy().into_iter().find(|entry| entry.id == id).ok_or_else(|| {
            AgentError::refused(
                422,
                Finding::blocks(
                    FindingId::ShareNotAttached,
                    id,
                    Message::ShareNotAttachedHere,
                    Action::AttachShareOnHost,
                ),
            )
        })
    }

    fn copy(&self) -> Vec<Entry> {
        lock(&self.entries).clone()
    }

    fn change(&self, edit: impl FnOnce(&mut Vec<Entry>)) -> Result<(), AgentError> {
        let mut entries = lock(&self.entries);
        let mut edited = entries.clone();
        edit(&mut edited);
        records::write_json(&self.path, &edited)?;
        *entries = edited;
        Ok(())
    }
}
