//! The state directory: keys, the administrator's token, and the pin for the command line. Created at the first start.

use std::{fs::File, os::unix::fs::DirBuilderExt as _, path::Path};

use anyhow::Context as _;
use ferry_trust::KeyPair;

use crate::{config::Config, store::Store};

/// The name of the only token.
const ADMIN: &str = "admin";

/// The parts of the state directory that a server needs.
pub(crate) struct State {
    pub(crate) store: Store,
    /// The REST API's key.
    pub(crate) rest_key: KeyPair,
    /// The key that agents pin.
    pub(crate) agents_key: KeyPair,
    /// Locked while it is open.
    pub(crate) lock: File,
}

/// Opens the state directory and creates missing parts.
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

/// Replaces the administrator's token. The old token is invalid from then on, even for a running server. Ok is the path
/// of the file with the new token.
///
/// # Errors
/// If the state directory cannot be used.
pub async fn renew_token(config: &Config) -> anyhow::Result<std::path::PathBuf> {
    make_folder(&config.state_dir)?;
    let store = open_store(config).await?;
    let path = new_token(&store, &config.state_dir).await?;
    store.close().await;
    Ok(path)
}

async fn open_store(config: &Config) -> anyhow::Result<Store> {
    let path = config.database();
    // With a usual umask, SQLite would make its files readable for others; they hold session secrets.
    if !path.exists() {
        write(&path, "")?;
    }
    Store::open(&path).await.with_context(|| format!("Could not open the database {}", path.display()))
}

/// The file is written first: a token of which only the hash is stored would be useless.
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

/// Two servers with the same database would both drive its jobs.
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
