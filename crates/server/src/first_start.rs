//! The state directory: keys, the administrator's token, the pin for the command line. Made at the first start.

use std::{fs::File, os::unix::fs::DirBuilderExt as _, path::Path};

use anyhow::Context as _;
use ferry_trust::KeyPair;

use crate::{config::Config, store::Store};

/// The name of the one token there is now.
const ADMIN: &str = "admin";

/// What a server needs of its state directory.
pub(crate) struct State {
    pub(crate) store: Store,
    /// The REST API's key.
    pub(crate) rest_key: KeyPair,
    /// The key that agents pin.
    pub(crate) agents_key: KeyPair,
    /// Locked for as long as it is open.
    pub(crate) lock: File,
}

/// Opens the state, and makes what is not there yet.
pub(crate) async fn open(config: &Config) -> anyhow::Result<State> {
    let folder = &config.state_dir;
    make_folder(folder)?;
    let lock = lock(folder)?;
    let store = open_store(config).await?;
    let rest_key = KeyPair::load_or_create(&folder.join("rest.key"))?;
    let agents_key = KeyPair::load_or_create(&folder.join("agents.key"))?;
    write(&folder.join("server.pin"), &format!("{}\n", rest_key.pin()))?;
    if !store.has_tokens().await? {
        new_token(&store, folder).await?;
    }
    Ok(State { store, rest_key, agents_key, lock })
}

/// Replaces the administrator's token; the old one is worthless from then on, also for a server that runs.
/// Ok holds the file with the new one.
///
/// # Errors
/// When the state cannot be used.
pub async fn renew_token(config: &Config) -> anyhow::Result<std::path::PathBuf> {
    make_folder(&config.state_dir)?;
    let store = open_store(config).await?;
    let path = new_token(&store, &config.state_dir).await?;
    store.close().await;
    Ok(path)
}

async fn open_store(config: &Config) -> anyhow::Result<Store> {
    let path = config.database();
    // SQLite makes its files readable for others under a usual umask; they hold secrets of sessions.
    if !path.exists() {
        write(&path, "")?;
    }
    Store::open(&path).await.with_context(|| format!("Could not open the database {}", path.display()))
}

/// The file comes first: a token whose hash alone is stored would help nobody.
async fn new_token(store: &Store, folder: &Path) -> anyhow::Result<std::path::PathBuf> {
    let token = ferry_trust::new_token();
    let path = folder.join("admin.token");
    write(&path, &format!("{token}\n"))?;
    store.put_token(ADMIN, &ferry_trust::token_hash(&token)).await?;
    tracing::info!(path = %path.display(), "A new administrator token was written");
    Ok(path)
}

fn make_folder(folder: &Path) -> anyhow::Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.with_context(|| format!("Could not make the state directory {}", folder.display()))
}

/// Two servers on one database would both drive its jobs.
fn lock(folder: &Path) -> anyhow::Result<File> {
    let path = folder.join("lock");
    let file = File::create(&path).with_context(|| format!("Could not write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(_) => anyhow::bail!("Another ferry-server uses the state directory {}", folder.display()),
    }
}

fn write(path: &Path, content: &str) -> anyhow::Result<()> {
    ferry_trust::write_private(path, content.as_bytes()).with_context(|| format!("Could not write {}", path.display()))
}
