//! The server to call and its pin: from the command line, otherwise as stored by `ferry login`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ferry_client::server::ServerClient;
use ferry_core::pin::Pin;
use serde::{Deserialize, Serialize};

use crate::{Failure, arguments::ServerArguments};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    server: Option<String>,
    pin: Option<Pin>,
    token: Option<String>,
}

fn stored_path() -> Option<PathBuf> {
    let base = match std::env::var_os("XDG_CONFIG_HOME") {
        Some(path) => PathBuf::from(path),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".config"),
    };
    Some(base.join("ferry").join("config.toml"))
}

fn resolve(arguments: &ServerArguments) -> Result<(String, Pin, String), Failure> {
    let path = stored_path();
    let stored: Stored = match path.as_deref().map(fs::read_to_string) {
        Some(Ok(text)) => toml::from_str(&text).map_err(|error| {
            Failure::NotLoggedIn(format!("{} is damaged: {error}", path.unwrap_or_default().display()))
        })?,
        Some(Err(_)) | None => Stored::default(),
    };
    let missing = |what: &str, how: &str| {
        Failure::NotLoggedIn(format!("The {what} is not known; give {how}, or store it once with `ferry login`"))
    };
    let server = arguments.server.clone().or(stored.server).ok_or_else(|| missing("server", "--server"))?;
    let pin = arguments.pin.or(stored.pin).ok_or_else(|| missing("server's pin", "--pin"))?;
    let token = match &arguments.token_file {
        Some(path) => read(path)?.trim().to_owned(),
        None => stored.token.ok_or_else(|| missing("token", "--token-file"))?,
    };
    Ok((server, pin, token))
}

pub(crate) fn connect(arguments: &ServerArguments) -> Result<ServerClient, Failure> {
    let (server, pin, token) = resolve(arguments)?;
    Ok(ServerClient::new(&server, pin, &token)?)
}

/// Stores the given values once the server has accepted them.
pub(crate) async fn login(arguments: &ServerArguments) -> Result<PathBuf, Failure> {
    let (server, pin, token) = resolve(arguments)?;
    ServerClient::new(&server, pin, &token)?.hosts().await?;
    let path =
        stored_path().ok_or_else(|| Failure::NotLoggedIn("Neither HOME nor XDG_CONFIG_HOME is set".to_owned()))?;
    let stored = Stored { server: Some(server), pin: Some(pin), token: Some(token) };
    let text = toml::to_string(&stored).expect("strings can always be written as TOML");
    let folder = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)
        .and_then(|()| ferry_trust::write_private(&path, text.as_bytes()))
        .map_err(|source| Failure::File { path: path.clone(), source })?;
    Ok(path)
}

pub(crate) fn read(path: &Path) -> Result<String, Failure> {
    let outcome =
        if path == Path::new("-") { std::io::read_to_string(std::io::stdin()) } else { fs::read_to_string(path) };
    outcome.map_err(|source| Failure::File { path: path.to_owned(), source })
}
