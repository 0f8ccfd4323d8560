//! Files of an SMB share, read and written by this program itself instead of through a mount: without a cache between two
//! hosts, with many requests on their way, and told of changes by the server.
//!
//! There is one connection for each address of the server, used in turn: the client knows no multichannel. A connection that
//! fails is made anew by the next operation; the caller decides how often to try.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use ferry_core::{api::agent::ShareCredentials, error::chain, unc::UncPath};
use smb2::{
    ClientConfig, Error, ErrorKind, FileNotifyAction, FileNotifyEvent, SmbClient, Tree, Watcher, client::Connection,
    types::status::NtStatus,
};
use tokio::{
    sync::{Mutex, mpsc},
    task::AbortHandle,
};

use super::{
    password::{self, SplitUser},
    publish::publish,
};
use crate::share::{ShareError, error::SMB_PORT};

/// Most addresses of a server that are used at once.
const ADDRESSES_MAX: usize = 4;
/// How long a connection may take.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// How long the server may be silent while it is asked for something.
const ANSWER_WAIT: Duration = Duration::from_secs(20);
/// A file up to this length is read by one request: a segment of a quiet channel.
const SMALL_BYTES_MAX: u64 = 64 << 10;
/// Reports of changes that wait to be taken.
const REPORTS_MAX: usize = 64;

/// What a folder holds under one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmbEntry {
    /// The name, without the folder.
    pub name: String,
    /// Whether it is a folder.
    pub is_folder: bool,
    /// Length in bytes; 0 for a folder.
    pub bytes: u64,
    /// When it was last written, by the server's clock.
    pub written: Option<SystemTime>,
}

/// A change of a folder that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SmbChange {
    /// There is a file of this name now.
    Added(String),
    /// There is none any more.
    Removed(String),
    /// The server could not tell all changes.
    Unknown,
}

/// A share, by a client in this process. Paths are relative to it, with `/` between their parts.
///
/// Errors of its operations are of the kinds `NotFound`, `AlreadyExists`, `NotADirectory`, `DirectoryNotEmpty`,
/// `PermissionDenied`, `StorageFull`, `InvalidInput`, `InvalidData` (a file that is too long) and `Unsupported` if the
/// server refuses, and of any other if it cannot be reached.
pub struct SmbFiles {
    name: String,
    share: String,
    clients: Vec<Client>,
    /// Counts the operations.
    next: AtomicUsize,
}

/// One address of the server.
struct Client {
    config: ClientConfig,
    attached: Mutex<Option<Attached>>,
}

/// A connection that has logged in to the share.
#[derive(Clone)]
struct Attached {
    connection: Connection,
    tree: Arc<Tree>,
    /// Holds the connection.
    _client: Arc<SmbClient>,
}

impl SmbFiles {
    /// Logs in to the share at every address of its server that answers.
    ///
    /// # Errors
    /// [`ShareError::Unreachable`], [`ShareError::NoShare`], [`ShareError::Password`].
    pub async fn connect(unc: &UncPath, credentials: &ShareCredentials) -> Result<Self, ShareError> {
        password::check(unc, credentials)?;
        let unreachable = |reason: String| ShareError::Unreachable { share: unc.into(), reason };
        let found = tokio::time::timeout(CONNECT_WAIT, tokio::net::lookup_host((unc.server(), SMB_PORT))).await;
        let addresses = found
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|error| unreachable(format!("its name was not resolved: {error}")))?;
        let mut addresses: Vec<SocketAddr> = addresses.collect();
        addresses.sort();
        addresses.dedup();
        addresses.truncate(ADDRESSES_MAX);
        let logins = addresses.iter().map(|address| {
            let client = Client { config: config(*address, credentials), attached: Mutex::default() };
            async move { client.attach(unc.share()).await.map(|_| client) }
        });
        let (mut clients, mut failed) = (Vec::new(), None);
        for login in futures_util::future::join_all(logins).await {
            match login {
                Ok(client) => clients.push(client),
                Err(error) => failed = Some(error),
            }
        }
        if clients.is_empty() {
            return Err(match failed {
                Some(error) => refusal(unc, &credentials.user, error),
                None => unreachable("its name has no address".to_owned()),
            });
        }
        let (name, share) = (unc.to_string(), unc.share().to_owned());
        Ok(Self { name, share, clients, next: AtomicUsize::new(0) })
    }

    /// The share's name for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many connections it uses.
    pub fn connections(&self) -> usize {
        self.clients.len()
    }

    /// Makes a folder, and those above it. Ok if it exists.
    ///
    /// # Errors
    /// See [`SmbFiles`].
    pub async fn make(&self, folder: &str) -> io::Result<()> {
        for (end, _) in folder.match_indices('/').chain([(folder.len(), "")]) {
            let mut turn = self.turn().await?;
            let made = turn.tree.create_directory(&mut turn.connection, &folder[..end]).await;
            match self.end(turn, made).await {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made?,
            }
        }
        Ok(())
    }

    /// What a folder holds, in any order.
    ///
    /// # Errors
    /// See [`SmbFiles`].
    pub async fn list(&self, folder: &str) -> io::Result<Vec<SmbEntry>> {
        let mut turn = self.turn().await?;
        let listed = turn.tree.list_directory(&mut turn.connection, folder).await;
        let entries = self.end(turn, listed).await?;
        let ours = entries.into_iter().filter(|entry| entry.name != "." && entry.name != "..");
        Ok(ours
            .map(|entry| SmbEntry {
                is_folder: entry.is_directory,
                bytes: if entry.is_directory { 0 } else { entry.size },
                written: entry.modified.to_system_time(),
                name: entry.name,
            })
            .collect())
    }

    /// Writes a file under another name, then renames it: nobody ever sees a part of it. Replaces what has the name. The
    /// server is not asked to bring it to its disk.
    ///
    /// # Errors
    /// See [`SmbFiles`].
    pub async fn publish(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let turn = self.turn().await?;
        let published = publish(&turn.connection, turn.tree.tree_id, path, bytes).await;
        self.end(turn, published).await
    }

    /// The content of a file of at most `bytes_max`; `None` if there is none. A longer one is `InvalidData`.
    ///
    /// # Errors
    /// See [`SmbFiles`].
    pub async fn read(&self, path: &str, bytes_max: usize) -> io::Result<Option<Vec<u8>>> {
        let mut turn = self.turn().await?;
        let read = read(&mut turn, path, bytes_max as u64).await;
        match self.end(turn, read).await {
            Ok(Read::Content(bytes)) if bytes.len() <= bytes_max => Ok(Some(bytes)),
            Ok(Read::Content(bytes)) => Err(too_long(bytes.len() as u64)),
            Ok(Read::TooLong(length)) => Err(too_long(length)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes a file. Ok if there is none.
    ///
    /// # Errors
    /// See [`SmbFiles`].
    pub async fn delete(&self, path: &str) -> io::Result<()> {
        let mut turn = self.turn().await?;
        let deleted = turn.tree.delete_file(&mut turn.connection, path).await;
        unless_missing(self.end(turn, deleted).await)
    }

    /// Removes an empty folder. Ok if there is none.
    ///
    /// # Errors
    /// See [`SmbFiles`].
    pub async fn remove(&self, folder: &str) -> io::Result<()> {
        let mut turn = self.turn().await?;
        let removed = turn.tree.delete_directory(&mut turn.connection, folder).await;
        unless_missing(self.end(turn, removed).await)
    }

    /// Follows a folder from now on.
    ///
    /// # Errors
    /// See [`SmbFiles`].
    pub async fn watch(&self, folder: &str) -> io::Result<SmbWatch> {
        let mut turn = self.turn().await?;
        let watcher = turn.tree.watch(&mut turn.connection, folder, false).await;
        let watcher = self.end(turn, watcher).await?;
        let (reports, changes) = mpsc::channel(REPORTS_MAX);
        let turn = self.turn().await?;
        let task = tokio::spawn(report(watcher, reports, turn, folder.to_owned())).abort_handle();
        Ok(SmbWatch { changes, task })
    }

    /// The connection whose turn it is.
    async fn turn(&self) -> io::Result<Attached> {
        let client = self.next.fetch_add(1, Ordering::Relaxed) % self.clients.len();
        self.clients[client].attach(&self.share).await.map_err(io_error)
    }

    /// Tells how an operation on a connection ended, which is not used again if it failed.
    async fn end<T>(&self, turn: Attached, outcome: Result<T, Error>) -> io::Result<T> {
        if outcome.as_ref().is_err_and(|error| !is_answer(error)) {
            for client in &self.clients {
                client.forget(&turn).await;
            }
        }
        outcome.map_err(io_error)
    }
}

/// What there is to read.
enum Read {
    Content(Vec<u8>),
    /// Of this length.
    TooLong(u64),
}

async fn read(turn: &mut Attached, path: &str, bytes_max: u64) -> Result<Read, Error> {
    match turn.tree.read_file_compound_sized(&mut turn.connection, path, SMALL_BYTES_MAX).await {
        Err(Error::FileTooLargeForSingleRead { .. }) => {}
        whole => return whole.map(Read::Content),
    }
    let download = turn.tree.download(&mut turn.connection, path).await?;
    if download.size() > bytes_max {
        return Ok(Read::TooLong(download.size()));
    }
    download.collect().await.map(Read::Content)
}

impl Client {
    /// The connection, made anew if there is none.
    async fn attach(&self, share: &str) -> Result<Attached, Error> {
        let mut attached = self.attached.lock().await;
        if let Some(attached) = &*attached {
            return Ok(attached.clone());
        }
        let mut client = SmbClient::connect(self.config.clone()).await?;
        let tree = Arc::new(client.connect_share(share).await?);
        let connection = client.connection().clone();
        Ok(attached.insert(Attached { connection, tree, _client: Arc::new(client) }).clone())
    }

    /// Does not use this connection any more.
    async fn forget(&self, failed: &Attached) {
        let mut attached = self.attached.lock().await;
        if attached.as_ref().is_some_and(|attached| Arc::ptr_eq(&attached.tree, &failed.tree)) {
            *attached = None;
        }
    }
}

fn config(address: SocketAddr, credentials: &ShareCredentials) -> ClientConfig {
    let user = SplitUser::of(credentials);
    ClientConfig {
        addr: address.to_string(),
        timeout: CONNECT_WAIT,
        username: user.name.to_owned(),
        password: user.password.to_owned(),
        domain: user.domain.unwrap_or_default().to_owned(),
        // The caller tries again, and knows what may be repeated.
        auto_reconnect: false,
        // What travels is encrypted.
        compression: false,
        dfs_enabled: false,
        response_timeout: Some(ANSWER_WAIT),
        ..ClientConfig::default()
    }
}

/// The changes of a folder.
pub struct SmbWatch {
    changes: mpsc::Receiver<Vec<SmbChange>>,
    task: AbortHandle,
}

impl SmbWatch {
    /// The next changes, in the server's order. Dropping this loses none.
    ///
    /// # Errors
    /// If nothing more is told: the connection is gone.
    pub async fn changes(&mut self) -> io::Result<Vec<SmbChange>> {
        self.changes.recv().await.ok_or_else(|| io::ErrorKind::ConnectionReset.into())
    }
}

impl Drop for SmbWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The server tells of changes since the first request for them has reached it: whoever listed the folder before must list
/// it again then, which is when it answers a later request.
async fn report(mut watcher: Watcher, reports: mpsc::Sender<Vec<SmbChange>>, mut turn: Attached, folder: String) {
    let later = async {
        for _ in 0..2 {
            let _ = turn.tree.stat(&mut turn.connection, &folder).await;
        }
        let _ = reports.send(vec![SmbChange::Unknown]).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        () = report_all(&mut watcher, &reports) => {}
        () = later => {}
    }
}

async fn report_all(watcher: &mut Watcher, reports: &mpsc::Sender<Vec<SmbChange>>) {
    loop {
        let changes: Vec<SmbChange> = match watcher.next_events().await {
            Ok(events) => events.into_iter().filter_map(change).collect(),
            Err(error) if error.status() == Some(NtStatus::NOTIFY_ENUM_DIR) => vec![SmbChange::Unknown],
            Err(_) => return,
        };
        if !changes.is_empty() && reports.send(changes).await.is_err() {
            return;
        }
    }
}

/// A file has its whole content when it gets its name, so other changes tell nothing.
fn change(event: FileNotifyEvent) -> Option<SmbChange> {
    let is_one_of = |actions: [FileNotifyAction; 2]| actions.contains(&event.action);
    if is_one_of([FileNotifyAction::Added, FileNotifyAction::RenamedNewName]) {
        Some(SmbChange::Added(event.filename))
    } else if is_one_of([FileNotifyAction::Removed, FileNotifyAction::RenamedOldName]) {
        Some(SmbChange::Removed(event.filename))
    } else {
        None
    }
}

fn unless_missing(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

fn too_long(length: u64) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it is {length} bytes long"))
}

/// Whether the server answered the request, so that its connection is sound.
fn is_answer(error: &Error) -> bool {
    let is_over = |status: NtStatus| {
        [NtStatus::NETWORK_NAME_DELETED, NtStatus::USER_SESSION_DELETED, NtStatus::NETWORK_SESSION_EXPIRED]
            .contains(&status)
    };
    error.status().is_some_and(|status| !is_over(status)) || matches!(error, Error::FileTooLargeForSingleRead { .. })
}

/// Kinds of answers, as those of files.
const KINDS: [(ErrorKind, io::ErrorKind); 14] = [
    (ErrorKind::NotFound, io::ErrorKind::NotFound),
    (ErrorKind::AlreadyExists, io::ErrorKind::AlreadyExists),
    (ErrorKind::IsADirectory, io::ErrorKind::NotADirectory),
    (ErrorKind::NotADirectory, io::ErrorKind::NotADirectory),
    (ErrorKind::AuthRequired, io::ErrorKind::PermissionDenied),
    (ErrorKind::SigningRequired, io::ErrorKind::PermissionDenied),
    (ErrorKind::AccessDenied, io::ErrorKind::PermissionDenied),
    (ErrorKind::GuestSessionRefused, io::ErrorKind::PermissionDenied),
    (ErrorKind::DiskFull, io::ErrorKind::StorageFull),
    (ErrorKind::InvalidName, io::ErrorKind::InvalidInput),
    (ErrorKind::TooLarge, io::ErrorKind::InvalidData),
    (ErrorKind::Unsupported, io::ErrorKind::Unsupported),
    (ErrorKind::TimedOut, io::ErrorKind::TimedOut),
    (ErrorKind::SharingViolation, io::ErrorKind::ResourceBusy),
];

/// Any other kind may pass: the connection is gone, or the server has no room for the request now.
fn io_error(error: Error) -> io::Error {
    let of_kind = || KINDS.iter().find(|(kind, _)| *kind == error.kind()).map(|(_, kind)| *kind);
    let kind = if error.status() == Some(NtStatus::DELETE_PENDING) {
        // It is as good as gone.
        io::ErrorKind::NotFound
    } else if error.status() == Some(NtStatus::DIRECTORY_NOT_EMPTY) {
        io::ErrorKind::DirectoryNotEmpty
    } else {
        of_kind().unwrap_or(io::ErrorKind::ConnectionReset)
    };
    io::Error::new(kind, error)
}

fn refusal(unc: &UncPath, user: &str, error: Error) -> ShareError {
    let (share, reason) = (unc.into(), chain(&error));
    let kind = io_error(error).kind();
    if kind == io::ErrorKind::PermissionDenied {
        ShareError::Password { share, user: user.to_owned(), reason }
    } else if kind == io::ErrorKind::NotFound {
        ShareError::NoShare { share }
    } else {
        ShareError::Unreachable { share, reason }
    }
}
