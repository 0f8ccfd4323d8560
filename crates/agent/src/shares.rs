//! The shares attached on this host: kept in a file, attached again when the agent starts.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use ferry_core::{
    api::agent::{AttachRequest, ShareCredentials, ShareMount, ShareToken},
    finding::{Finding, FindingId},
    id::{HostId, ShareId},
    place::Space,
    share::{AttachMode, AttachedShare},
    share_source::ShareSource,
};
use ferry_drivers::{
    places::{Places, QemuUser, RootsError, ShareRoot},
    retry_busy,
    share::{ShareDriver, ShareError, file_system_of},
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::{AgentError, config::Config, lock::lock, records, setup};

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    id: ShareId,
    /// Called `unc` in the file: an earlier version of the agent wrote it so.
    #[serde(rename = "unc")]
    source: ShareSource,
    mode: AttachMode,
    path: PathBuf,
    /// Needed to mount an SMB share again after a restart of the host. The file is readable by root alone.
    credentials: Option<ShareCredentials>,
    /// Of a share that is a path: what was mounted there when it was attached. Nothing else tells that it still is.
    #[serde(default)]
    mounted: Option<String>,
}

impl Entry {
    /// How it is; of its mount, what `driver` says, if it was looked at.
    fn view(&self, finding: Option<Finding>, space: Option<Space>, driver: Option<&dyn ShareDriver>) -> AttachedShare {
        let trouble = finding.as_ref().map(|finding| finding.message.clone());
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
    /// How each was when it was looked at last, for whoever must not wait for a dead mount.
    views: watch::Sender<Vec<AttachedShare>>,
}

/// Longest name of a token file.
const TOKEN_NAME_MAX: usize = 64;
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
        let path = config.shares_path();
        let entries: Vec<Entry> = records::read_or_put_aside(&path)?.unwrap_or_default();
        let unknown = |entry: &Entry| {
            let message = "The agent has just been started and has not looked at it yet";
            Finding::blocks(FindingId::ShareUnreachable, &entry.source, message, "Try again in some seconds")
        };
        let views = entries.iter().map(|entry| entry.view(Some(unknown(entry)), None, None)).collect();
        let (root, qemu_conf) = (config.share_root.clone(), config.qemu_conf.clone());
        Ok(Self { path, root, qemu_conf, driver, entries: Mutex::new(entries), views: watch::Sender::new(views) })
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
                    shares.mount_anew();
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
            let trouble = self.is_usable(&entry).err().map(|error| self.told(&entry, error));
            let space = asks_space.then(|| self.driver.space(&entry.source, entry.credentials.as_ref(), &entry.path));
            self.publish(|views| {
                let Some(view) = views.iter_mut().find(|view| view.id == entry.id) else { return };
                let known = view.free.zip(view.total).map(|(free, total)| Space { free, total });
                *view = entry.view(trouble, space.unwrap_or(known), Some(&*self.driver));
            });
        }
    }

    /// What stands against a share's use. Why a mount does not answer, only the file server can tell.
    fn told(&self, entry: &Entry, error: ShareError) -> Finding {
        let asked = match error {
            // Of a login that the server refuses, the kernel says no more than "Permission denied".
            ShareError::Stuck { .. }
            | ShareError::Unreachable { .. }
            | ShareError::Host { .. }
            | ShareError::Mount { .. } => self.driver.probe(&entry.source, entry.credentials.as_ref()).err(),
            _ => None,
        };
        let error = asked.unwrap_or(error);
        let mut finding = error.finding();
        finding.fix = match error {
            ShareError::Password { .. } if entry.mode == AttachMode::Mounted => "Let the file server take the password of \
                 the mount again: VMs that stand still go on by themselves. Then move or stop those of this host, detach \
                 the share, and attach it with the new password"
                .to_owned(),
            ShareError::Unreachable { .. } | ShareError::Stuck { .. } => {
                format!("{}. VMs on it stand still until then, and go on by themselves", finding.fix)
            }
            _ => finding.fix,
        };
        finding
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
            if entry.mode == AttachMode::Adopted || self.is_usable(&entry).is_ok() {
                continue;
            }
            // Safe to repeat: a mount that is there is left as it is, unless the process behind it is gone.
            match self.driver.attach(&entry.source, entry.credentials.as_ref(), &entry.path) {
                // It was detached meanwhile.
                Ok(()) if self.copy().iter().all(|other| other.id != entry.id) => {
                    let _ = self.driver.detach(&entry.source, &entry.path);
                }
                Ok(()) => info!(share = %entry.source, "a share was mounted again"),
                Err(error) if first => {
                    warn!(share = %entry.source, %error, "a share could not be mounted again; it is tried on");
                }
                Err(error) => debug!(share = %entry.source, %error, "a share could not be mounted again yet"),
            }
        }
    }

    /// Mounts anew, where nothing uses it, what an earlier version mounted so that QEMU's locks are the file server's.
    fn mount_anew(&self) {
        for entry in self.copy() {
            if entry.mode == AttachMode::Adopted || self.driver.locks_stay(&entry.path) {
                continue;
            }
            // What could not be mounted again stays: VMs can be started on it.
            let answers = self.driver.probe(&entry.source, entry.credentials.as_ref());
            if let Err(error) = answers.and_then(|_| self.driver.detach(&entry.source, &entry.path)) {
                debug!(share = %entry.source, %error, "a share is not mounted anew yet");
                continue;
            }
            match self.driver.attach(&entry.source, entry.credentials.as_ref(), &entry.path) {
                Ok(()) => info!(share = %entry.source, "a share was mounted anew: QEMU's locks stay on this host"),
                // It is tried on, as any share that is not mounted.
                Err(error) => warn!(share = %entry.source, %error, "a share could not be mounted anew"),
            }
        }
    }

    /// Whether a share's files can be used now.
    fn is_usable(&self, entry: &Entry) -> Result<(), ShareError> {
        self.driver.check(&entry.source, &entry.path)?;
        let Some(before) = &entry.mounted else { return Ok(()) };
        let now = self.driver.mounted(&entry.path).map(|mounted| mounted.what);
        if now.as_ref() == Some(before) {
            return Ok(());
        }
        let now = now.unwrap_or_else(|| "nothing".to_owned());
        let found = format!("{now} is mounted there, and it was {before} when the share was attached");
        Err(ShareError::NotAMount { share: entry.source.clone(), at: entry.path.clone(), found })
    }

    /// Attaches a share. Blocks. Repeating it is safe.
    ///
    /// # Errors
    /// What the driver refuses; nothing is left attached.
    pub fn attach(&self, id: ShareId, request: &AttachRequest) -> Result<AttachedShare, AgentError> {
        let source = &request.source;
        check_login(request)?;
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

    /// Takes back a mount that this request made.
    fn let_go(&self, id: ShareId, mode: AttachMode, source: &ShareSource, path: &Path) {
        let was_there = self.entry(id).is_ok();
        if mode == AttachMode::Mounted
            && !was_there
            && let Err(error) = self.driver.detach(source, path)
        {
            warn!(share = %source, %error, "a share stays mounted that was not attached");
        }
    }

    /// An administrator's own mount.
    fn adopt(&self, id: ShareId, source: &ShareSource, path: &Path) -> Result<PathBuf, AgentError> {
        if let Some(other) = self.copy().into_iter().find(|other| other.id != id && other.path == path) {
            return Err(not_adopted(
                path,
                format!("{} is attached on this host as share {}", path.display(), other.source),
                "Attach the share at another path, or use the one that is there",
            ));
        }
        let below_root = path.starts_with(&self.root);
        if !below_root && source.wants_login() {
            return Err(not_adopted(
                path,
                format!("{} does not lie below {}, which libvirt knows as shared", path.display(), self.root.display()),
                format!("Mount {source} below {} instead", self.root.display()),
            ));
        }
        self.driver.adopt(source, path)?;
        if !below_root {
            self.check_libvirt(path)?;
        }
        Ok(path.to_owned())
    }

    /// libvirt must know that files there are shared: by the type of the file system, or because qemu.conf says so.
    fn check_libvirt(&self, path: &Path) -> Result<(), AgentError> {
        let mounted = self.driver.mounted(path);
        if mounted.as_ref().is_some_and(|mounted| mounted.is_known_as_shared()) {
            return Ok(());
        }
        let conf = fs::read_to_string(&self.qemu_conf).unwrap_or_default();
        let Some(line) = setup::missing_line(&conf, &path.display().to_string()) else { return Ok(()) };
        let kind = mounted.map_or_else(|| "unknown".to_owned(), |mounted| mounted.kind);
        Err(AgentError::refused(
            422,
            Finding::blocks(
                FindingId::HostSharedFilesystems,
                path.display(),
                format!(
                    "libvirt does not know that {} is shared: it lies on a file system of type {kind}, and {} does not list it",
                    path.display(),
                    self.qemu_conf.display()
                ),
                format!(
                    "Write `{line}` into {} on the host, restart libvirtd (or virtqemud), then attach the share again",
                    self.qemu_conf.display()
                ),
            ),
        ))
    }

    /// What the agent makes, QEMU's user must be able to write: found by trying. A server that takes root for nobody does
    /// not let root make files there and give them away. SMB knows no owners.
    fn check_ownership(&self, id: ShareId, source: &ShareSource, path: &Path) -> Result<(), AgentError> {
        if matches!(source, ShareSource::Smb(_)) {
            return Ok(());
        }
        let conf = fs::read_to_string(&self.qemu_conf).unwrap_or_default();
        let top = ShareRoot { id, source: source.clone(), mount: path.to_owned() };
        match top.check_writable(QemuUser::of_conf(&conf)) {
            Ok(()) => Ok(()),
            Err(error @ (RootsError::NotWritable { .. } | RootsError::Unreadable { .. })) => Err(AgentError::refused(
                422,
                Finding::blocks(
                    FindingId::PlaceNotWritable,
                    source,
                    format!("{error}; files that Ferry makes there cannot be given to QEMU"),
                    how_to_own(source),
                ),
            )),
            Err(
                error @ (RootsError::Outside { .. }
                | RootsError::NotAttached { .. }
                | RootsError::Missing { .. }
                | RootsError::NotADirectory { .. }
                | RootsError::Stuck { .. }),
            ) => Err(error.into()),
        }
    }

    /// Detaches a share. Blocks. Ok if it is not attached. An adopted mount stays mounted.
    ///
    /// # Errors
    /// When it cannot be unmounted, for instance while files on it are open; it stays attached then.
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

    /// The tops of the shares' mounts.
    pub fn roots(&self) -> Vec<ShareRoot> {
        let root = |entry: Entry| ShareRoot { id: entry.id, source: entry.source, mount: entry.path };
        self.copy().into_iter().map(root).collect()
    }

    /// Makes sure that a share's files can be used now. Blocks, for some seconds if its file server is dead.
    ///
    /// # Errors
    /// `share.not-attached`, or what is wrong with it.
    pub fn check(&self, id: ShareId) -> Result<(), AgentError> {
        Ok(self.is_usable(&self.entry(id)?)?)
    }

    /// Free and total bytes of a share now, where they can be known. Blocks, for some seconds if its file server is dead.
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

    /// Removes a token file. Blocks, for some seconds if another host still has it open.
    ///
    /// # Errors
    /// When the name is not one, or the share cannot be written.
    pub fn remove_token(&self, id: ShareId, name: &str) -> Result<(), AgentError> {
        remove_scratch(&self.token_path(id, name)?)
    }

    /// Where the scratch image of a trial of QEMU's locks is.
    ///
    /// # Errors
    /// When the name is not one, or the share is not attached.
    pub fn lock_path(&self, id: ShareId, name: &str) -> Result<PathBuf, AgentError> {
        self.scratch_path(id, "locks", name)
    }

    fn token_path(&self, id: ShareId, name: &str) -> Result<PathBuf, AgentError> {
        self.scratch_path(id, "token", name)
    }

    /// A file of Ferry's own at the top of a share.
    fn scratch_path(&self, id: ShareId, kind: &str, name: &str) -> Result<PathBuf, AgentError> {
        let legal = !name.is_empty()
            && name.len() <= TOKEN_NAME_MAX
            && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '-');
        if !legal {
            return Err(AgentError::refused(
                400,
                Finding::blocks(
                    FindingId::RequestInvalid,
                    name,
                    "A scratch file is named by letters, digits and dashes",
                    "This is a fault of the server program",
                ),
            ));
        }
        Ok(self.path_of(id)?.join(format!(".ferry-{kind}-{name}")))
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

/// User and password are given where the file server wants them, and nowhere else.
fn check_login(request: &AttachRequest) -> Result<(), AgentError> {
    let source = &request.source;
    let (message, fix) = match (source.wants_login(), &request.credentials, &request.at) {
        (true, None, None) => (
            format!("No user and password were given for {source}"),
            "Give them with `--user` and `--password-file`, or adopt a mount of your own with `--at PATH`",
        ),
        (false, Some(_), _) => (
            format!("{source} takes no user and password: the server, or who mounted it, decides by the host"),
            "Attach it without `--user`",
        ),
        (true, Some(_), _) | (true, None, Some(_)) | (false, None, _) => return Ok(()),
    };
    Err(AgentError::refused(422, Finding::blocks(FindingId::SharePassword, source, message, fix)))
}

fn not_adopted(path: &Path, message: String, fix: impl Into<String>) -> AgentError {
    AgentError::refused(422, Finding::blocks(FindingId::ShareMount, path.display(), message, fix))
}

fn how_to_own(source: &ShareSource) -> String {
    match source {
        ShareSource::Nfs(nfs) => format!(
            "Export it read-write, and with root as root: on {}, write `{} HOST(rw,sync,no_subtree_check,no_root_squash)` into \
             /etc/exports, with the name or network of this host for HOST, run `exportfs -ra`, and attach the share again; QEMU's \
             user must be able to pass the exported directory (mode 0711 or more)",
            nfs.server(),
            nfs.export()
        ),
        ShareSource::Smb(_) | ShareSource::Path(_) => {
            "Let root of this host make files there and give them to QEMU's user, and QEMU's user pass the directory (mode 0711 \
             or more); then attach the share again"
                .to_owned()
        }
    }
}

/// Removes a file that two hosts had open; Ok if there is none. Blocks, for some seconds if the other host's close has not
/// reached the file server yet (SMB answers a sharing violation, which mounts give as EBUSY).
///
/// # Errors
/// When it cannot be removed.
pub fn remove_scratch(path: &Path) -> Result<(), AgentError> {
    match retry_busy(|| fs::remove_file(path)) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(AgentError::File { path: path.to_owned(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ferry_drivers::share::fake::{FakeExport, FakeFileServers, FakeShares};
    use uuid::Uuid;

    use super::*;

    /// A host with a share that was attached by an agent before.
    struct Site {
        _folder: tempfile::TempDir,
        config: Config,
        servers: FakeFileServers,
        source: ShareSource,
        mountpoint: PathBuf,
    }

    impl Site {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let config = Config {
                state_dir: folder.path().join("state"),
                share_root: folder.path().join("srv"),
                ..Config::new("127.0.0.1:1".parse().expect("an address"))
            };
            fs::create_dir(&config.state_dir).expect("made");
            let export = FakeExport::new(folder.path().join("export"));
            fs::create_dir(&export.directory).expect("made");
            let (servers, source): (_, ShareSource) =
                (FakeFileServers::new(), r"\\fs1.ferry.test\vms".parse().expect("a UNC path"));
            servers.export(&source, export.clone());
            let (id, credentials) = (ShareId(Uuid::from_u128(5)), Some(export.credentials()));
            let mountpoint = config.share_root.join(id.to_string());
            let site = Self { _folder: folder, config, servers, source: source.clone(), mountpoint };
            site.load().attach(id, &AttachRequest { source, credentials, at: None }).expect("attached");
            site
        }

        fn load(&self) -> Shares {
            Shares::load(&self.config, Arc::new(FakeShares::new(self.servers.clone()))).expect("a table")
        }

        fn unmount(&self) {
            fs::remove_file(&self.mountpoint).expect("a mount of the fake is a link");
        }

        fn set_up(&self, is_up: bool) {
            self.servers.change(&self.source, |export| export.is_up = is_up);
        }
    }

    fn seen(shares: &Shares) -> AttachedShare {
        shares.look(false);
        shares.watch().borrow()[0].clone()
    }

    #[test]
    fn a_share_whose_file_server_was_away_at_the_start_is_mounted_later() {
        let site = Site::new();
        // The host boots: its mounts are gone, and the file server is not up yet.
        site.unmount();
        site.set_up(false);
        let shares = site.load();
        shares.attach_again(true);
        assert!(seen(&shares).trouble.is_some());
        site.set_up(true);
        shares.attach_again(false);
        assert_eq!(seen(&shares).trouble, None);
        assert!(site.mountpoint.exists());
    }

    #[test]
    fn a_mount_of_an_earlier_version_is_made_anew_when_its_file_server_answers() {
        let site = Site::new();
        let shares = site.load();
        assert!(!seen(&shares).server_locks, "what is mounted now leaves locks on the host");
        site.unmount();
        let earlier = FakeShares::new(site.servers.clone());
        earlier.mount_with_server_locks(&site.source, &site.mountpoint).expect("mounted");
        site.set_up(false);
        shares.mount_anew();
        assert!(seen(&shares).server_locks && site.mountpoint.exists(), "what could not be mounted again stays");
        site.set_up(true);
        shares.mount_anew();
        let view = seen(&shares);
        assert_eq!((view.server_locks, view.trouble), (false, None));
    }

    #[test]
    fn why_a_mount_does_not_answer_is_told_by_its_file_server() {
        let site = Site::new();
        let shares = site.load();
        let mut entry = shares.copy().remove(0);
        let waited = Duration::from_secs(5);
        let stuck = || ShareError::Stuck { share: site.source.clone(), at: site.mountpoint.clone(), waited };
        // The server itself is well: no more is known than that the mount does not answer.
        let told = shares.told(&entry, stuck());
        assert_eq!(told.id, FindingId::ShareUnreachable);
        assert!(told.message.contains("gave no answer"), "{told:#?}");
        site.set_up(false);
        let told = shares.told(&entry, stuck());
        assert_eq!(told.id, FindingId::ShareUnreachable);
        assert!(told.message.contains("NT_STATUS_HOST_UNREACHABLE"), "the server's own answer: {told:#?}");
        assert!(told.fix.ends_with("VMs on it stand still until then, and go on by themselves"), "{told:#?}");
        site.set_up(true);
        site.servers.change(&site.source, |export| export.password = "another".to_owned());
        let reason = "Permission denied".to_owned();
        let unreachable = ShareError::Unreachable { share: site.source.clone(), reason };
        assert_eq!(shares.told(&entry, unreachable).id, FindingId::SharePassword);
        let told = shares.told(&entry, stuck());
        assert_eq!(told.id, FindingId::SharePassword);
        assert!(told.fix.starts_with("Let the file server take the password of the mount again"), "{told:#?}");
        // Of an administrator's own mount Ferry has no password that could be another one.
        entry.mode = AttachMode::Adopted;
        assert!(!shares.told(&entry, stuck()).fix.contains("attach it with the new password"));
        // What is no mount at all needs no server to tell.
        let (share, at) = (site.source.clone(), site.mountpoint.clone());
        let unmounted = ShareError::NotAMount { share, at, found: "nothing is mounted there".to_owned() };
        let expected = unmounted.finding();
        assert_eq!(shares.told(&entry, unmounted), expected);
    }
}
