//! The shares attached on this host: kept in a file, attached again when the agent starts.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use ferry_core::{
    api::agent::{AttachRequest, ShareCredentials, ShareMount, ShareToken},
    finding::{Finding, FindingId},
    id::{HostId, ShareId},
    location::UncPath,
    place::Space,
    share::{AttachMode, AttachedShare},
};
use ferry_drivers::{
    places::{Places, ShareRoot},
    share::{ShareDriver, file_system_of},
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::{AgentError, config::Config, error::chain, files};

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    id: ShareId,
    unc: UncPath,
    mode: AttachMode,
    path: PathBuf,
    /// Needed to mount it again after a restart of the host. The file is readable by root alone.
    credentials: Option<ShareCredentials>,
}

impl Entry {
    fn view(&self, trouble: Option<String>, space: Option<Space>, soft: bool) -> AttachedShare {
        let (free, total) = space.map(|space| (space.free, space.total)).unzip();
        let file_system = file_system_of(&self.path);
        AttachedShare { id: self.id, unc: self.unc.clone(), mode: self.mode, trouble, free, total, soft, file_system }
    }
}

/// The table of shares.
pub struct Shares {
    path: PathBuf,
    root: PathBuf,
    driver: Arc<dyn ShareDriver>,
    entries: Mutex<Vec<Entry>>,
    /// How each was when it was looked at last, for whoever must not wait for a dead mount.
    views: watch::Sender<Vec<AttachedShare>>,
}

/// Longest name of a token file.
const TOKEN_NAME_MAX: usize = 64;
/// How long a token file may be busy after it was read: closing a file is not waited for on a FUSE mount.
const BUSY_MAX: Duration = Duration::from_secs(5);
const BUSY_PAUSE: Duration = Duration::from_millis(50);
/// How often shares are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// At every so many looks what is not mounted is tried to be.
const LOOKS_PER_MOUNT: u32 = 3;
/// At every so many looks free space is asked, which some mounts know only from the file server.
const LOOKS_PER_SPACE: u32 = 12;

impl Shares {
    /// Reads the table. Shares whose mount is gone are mounted again by [`Shares::look_after`].
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn load(config: &Config, driver: Arc<dyn ShareDriver>) -> Result<Self, AgentError> {
        let path = config.state_dir.join("shares.json");
        let entries: Vec<Entry> = files::read_json(&path)?.unwrap_or_default();
        let unknown = "The agent has just been started and has not looked at it yet";
        let views = entries.iter().map(|entry| entry.view(Some(unknown.to_owned()), None, false)).collect();
        let (root, entries) = (config.share_root.clone(), Mutex::new(entries));
        Ok(Self { path, root, driver, entries, views: watch::Sender::new(views) })
    }

    /// How shares are, as they were looked at last.
    pub fn watch(&self) -> watch::Receiver<Vec<AttachedShare>> {
        self.views.subscribe()
    }

    /// Mounts what was mounted before, then looks at every share again and again; what is not mounted, because its file
    /// server was away, is mounted when it can be. Ends with the task that runs it.
    pub async fn look_after(self: Arc<Self>) {
        for look in 0.. {
            let shares = Arc::clone(&self);
            let looked = tokio::task::spawn_blocking(move || {
                if look % LOOKS_PER_MOUNT == 0 {
                    shares.attach_again(look == 0);
                }
                shares.look(look % LOOKS_PER_SPACE == 0);
            });
            let _ = looked.await;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Looks at every share. Blocks for seconds when a mount hangs.
    fn look(&self, asks_space: bool) {
        for entry in self.copy() {
            let trouble = self.driver.check(&entry.unc, &entry.path).err().map(|error| chain(&error));
            let space = asks_space.then(|| self.driver.space(&entry.unc, entry.credentials.as_ref(), &entry.path));
            self.publish(|views| {
                let Some(view) = views.iter_mut().find(|view| view.id == entry.id) else { return };
                let known = view.free.zip(view.total).map(|(free, total)| Space { free, total });
                *view = entry.view(trouble, space.unwrap_or(known), !self.driver.waits(&entry.path));
            });
        }
    }

    fn publish(&self, change: impl FnOnce(&mut Vec<AttachedShare>)) {
        self.views.send_if_modified(|views| {
            let before = views.clone();
            change(views);
            *views != before
        });
    }

    fn attach_again(&self, first: bool) {
        for entry in self.copy() {
            let (AttachMode::Mounted, Some(credentials)) = (entry.mode, &entry.credentials) else { continue };
            if self.driver.check(&entry.unc, &entry.path).is_ok() {
                continue;
            }
            // Safe to repeat: a mount that is there is left as it is, unless the process behind it is gone.
            match self.driver.attach(&entry.unc, credentials, &entry.path) {
                // It was detached meanwhile.
                Ok(()) if self.copy().iter().all(|other| other.id != entry.id) => {
                    let _ = self.driver.detach(&entry.unc, &entry.path);
                }
                Ok(()) => info!(share = %entry.unc, "a share was mounted again"),
                Err(error) if first => {
                    warn!(share = %entry.unc, %error, "a share could not be mounted again; it is tried on");
                }
                Err(error) => debug!(share = %entry.unc, %error, "a share could not be mounted again yet"),
            }
        }
    }

    /// Attaches a share. Blocks. Repeating it is safe.
    ///
    /// # Errors
    /// What the driver refuses; nothing is left attached.
    pub fn attach(&self, id: ShareId, request: &AttachRequest) -> Result<AttachedShare, AgentError> {
        let unc = &request.unc;
        if let Some(credentials) = &request.credentials {
            self.driver.probe(unc, credentials)?;
        }
        let (mode, path) = match (&request.at, &request.credentials) {
            (Some(at), _) => (AttachMode::Adopted, self.adopt(unc, Path::new(at))?),
            (None, Some(credentials)) => {
                let point = self.root.join(id.to_string());
                self.driver.attach(unc, credentials, &point)?;
                (AttachMode::Mounted, point)
            }
            (None, None) => {
                return Err(AgentError::refused(
                    422,
                    Finding::blocks(
                        FindingId::SharePassword,
                        unc,
                        format!("No user and password were given for {unc}"),
                        "Give them with `--user` and `--password-file`, or adopt a mount of your own with `--at PATH`",
                    ),
                ));
            }
        };
        let credentials = request.credentials.clone().filter(|_| mode == AttachMode::Mounted);
        let space = self.driver.space(unc, request.credentials.as_ref(), &path);
        let entry = Entry { id, unc: unc.clone(), mode, path, credentials };
        let view = entry.view(None, space, !self.driver.waits(&entry.path));
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

    /// An administrator's own mount: below the share root, which libvirt knows as shared.
    fn adopt(&self, unc: &UncPath, path: &Path) -> Result<PathBuf, AgentError> {
        if !path.starts_with(&self.root) {
            return Err(AgentError::refused(
                422,
                Finding::blocks(
                    FindingId::ShareMount,
                    path.display(),
                    format!(
                        "{} does not lie below {}, which libvirt knows as shared",
                        path.display(),
                        self.root.display()
                    ),
                    format!("Mount {unc} below {} instead", self.root.display()),
                ),
            ));
        }
        self.driver.adopt(unc, path)?;
        Ok(path.to_owned())
    }

    /// Detaches a share. Blocks. Ok if it is not attached. An adopted mount stays mounted.
    ///
    /// # Errors
    /// When it cannot be unmounted, for instance while files on it are open; it stays attached then.
    pub fn detach(&self, id: ShareId) -> Result<(), AgentError> {
        if let Some(entry) = self.copy().into_iter().find(|entry| entry.id == id) {
            if entry.mode == AttachMode::Mounted {
                self.driver.detach(&entry.unc, &entry.path)?;
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

    /// The tops of the shares' mounts.
    pub fn roots(&self) -> Vec<ShareRoot> {
        let root = |entry: Entry| ShareRoot { id: entry.id, unc: entry.unc, mount: entry.path };
        self.copy().into_iter().map(root).collect()
    }

    /// Makes sure that a share's files can be used now. Blocks, for some seconds if its file server is dead.
    ///
    /// # Errors
    /// `share.not-attached`, or what is wrong with it.
    pub fn check(&self, id: ShareId) -> Result<(), AgentError> {
        let entry = self.entry(id)?;
        Ok(self.driver.check(&entry.unc, &entry.path)?)
    }

    /// Free and total bytes of a share now, where they can be known. Blocks, for some seconds if its file server is dead.
    ///
    /// # Errors
    /// `share.not-attached`.
    pub fn space(&self, id: ShareId) -> Result<Option<Space>, AgentError> {
        let entry = self.entry(id)?;
        Ok(self.driver.space(&entry.unc, entry.credentials.as_ref(), &entry.path))
    }

    /// The mount points of some shares.
    ///
    /// # Errors
    /// `share.not-attached` naming the first that is not attached.
    pub fn mounts(&self, ids: &[ShareId]) -> Result<Vec<ShareMount>, AgentError> {
        ids.iter().map(|id| Ok(ShareMount { share: *id, path: self.path_of(*id)?.display().to_string() })).collect()
    }

    /// Writes a token file. Blocks.
    ///
    /// # Errors
    /// When the name is not one, or the share cannot be written.
    pub fn write_token(&self, id: ShareId, name: &str, token: &ShareToken) -> Result<(), AgentError> {
        let path = self.token_path(id, name)?;
        fs::write(&path, &token.content).map_err(|source| AgentError::File { path, source })
    }

    /// Reads a token file; `None` if it is not there. Blocks.
    ///
    /// # Errors
    /// When the name is not one, or the share cannot be read.
    pub fn read_token(&self, id: ShareId, name: &str) -> Result<Option<ShareToken>, AgentError> {
        let path = self.token_path(id, name)?;
        match fs::read_to_string(&path) {
            Ok(content) => Ok(Some(ShareToken { content })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(AgentError::File { path, source }),
        }
    }

    /// Removes a token file. Blocks, for some seconds if the other host's close has not reached the file server yet
    /// (SMB answers a sharing violation, which mounts give as EBUSY).
    ///
    /// # Errors
    /// When the name is not one, or the share cannot be written.
    pub fn remove_token(&self, id: ShareId, name: &str) -> Result<(), AgentError> {
        let path = self.token_path(id, name)?;
        let until = Instant::now() + BUSY_MAX;
        loop {
            match files::remove(&path) {
                Err(AgentError::File { source, .. })
                    if source.kind() == std::io::ErrorKind::ResourceBusy && Instant::now() < until =>
                {
                    std::thread::sleep(BUSY_PAUSE);
                }
                outcome => return outcome,
            }
        }
    }

    fn token_path(&self, id: ShareId, name: &str) -> Result<PathBuf, AgentError> {
        let legal = !name.is_empty()
            && name.len() <= TOKEN_NAME_MAX
            && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '-');
        if !legal {
            return Err(AgentError::refused(
                400,
                Finding::blocks(
                    FindingId::RequestInvalid,
                    name,
                    "A token file is named by letters, digits and dashes",
                    "This is a fault of the server program",
                ),
            ));
        }
        Ok(self.path_of(id)?.join(format!(".ferry-token-{name}")))
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
                    "The share is not attached on this host",
                    "Attach it with `ferry share attach`",
                ),
            )
        })
    }

    fn copy(&self) -> Vec<Entry> {
        self.entries.lock().expect("nobody panics while holding it").clone()
    }

    fn change(&self, edit: impl FnOnce(&mut Vec<Entry>)) -> Result<(), AgentError> {
        let mut entries = self.entries.lock().expect("nobody panics while holding it");
        let mut edited = entries.clone();
        edit(&mut edited);
        files::write_json(&self.path, &edited)?;
        *entries = edited;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ferry_drivers::share::fake::{FakeExport, FakeFileServers, FakeShares};
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_share_whose_file_server_was_away_at_the_start_is_mounted_later() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = Config {
            state_dir: folder.path().join("state"),
            share_root: folder.path().join("srv"),
            ..Config::new("127.0.0.1:1".parse().expect("an address"))
        };
        fs::create_dir(&config.state_dir).expect("made");
        let export = FakeExport::new(folder.path().join("export"));
        fs::create_dir(&export.directory).expect("made");
        let (servers, unc): (_, UncPath) =
            (FakeFileServers::new(), r"\\fs1.ferry.test\vms".parse().expect("a UNC path"));
        servers.export(&unc, export.clone());
        let load = || Shares::load(&config, Arc::new(FakeShares::new(servers.clone()))).expect("a table");
        let (id, credentials) = (ShareId(Uuid::from_u128(5)), Some(export.credentials()));
        load().attach(id, &AttachRequest { unc: unc.clone(), credentials, at: None }).expect("attached");

        // The host boots: its mounts are gone, and the file server is not up yet.
        let mountpoint = config.share_root.join(id.to_string());
        fs::remove_file(&mountpoint).expect("a mount of the fake is a link");
        servers.change(&unc, |export| export.is_up = false);
        let shares = load();
        let trouble = |shares: &Shares| {
            shares.look(false);
            shares.watch().borrow()[0].trouble.clone()
        };
        shares.attach_again(true);
        assert!(trouble(&shares).is_some());
        servers.change(&unc, |export| export.is_up = true);
        shares.attach_again(false);
        assert_eq!(trouble(&shares), None);
        assert!(mountpoint.exists());
    }
}
