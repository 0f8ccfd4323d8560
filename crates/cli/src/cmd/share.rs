//! `ferry share …`

use std::path::PathBuf;

use ferry_client::server::ServerClient;
use ferry_core::api::{
    agent::ShareCredentials,
    server::{AddShare, AttachShare},
};

use crate::{Failure, Output, arguments::ShareCommand, connection, render};

pub(crate) async fn run(command: ShareCommand, client: &ServerClient, output: &Output) -> Result<(), Failure> {
    match command {
        ShareCommand::Add { name, source, path } => {
            let source = written(source, path)?;
            output.data(&client.add_share(&AddShare { name, source }).await?, render::share);
        }
        ShareCommand::List => output.data(&client.shares().await?, |list| render::shares(list)),
        ShareCommand::Show { share } => output.data(&client.share(&share).await?, render::share),
        ShareCommand::Attach { share, host, user, password_file, at } => {
            let credentials = credentials(user, password_file)?;
            let body = AttachShare { credentials, at };
            output.data(&client.attach_share(&share, &host, &body).await?, render::share);
        }
        ShareCommand::Detach { share, host } => {
            output.data(&client.detach_share(&share, &host).await?, render::share);
        }
        ShareCommand::Remove { share } => {
            client.remove_share(&share).await?;
            output.talk(&format!("Share {share} is forgotten; its files stay"));
        }
    }
    Ok(())
}

/// A path is accepted only with `--path`: `/server/share` may be a UNC path that lost a slash.
fn written(source: Option<String>, path: Option<String>) -> Result<String, Failure> {
    let is_path = |text: &str| text.starts_with('/') && !text.starts_with("//");
    match (source, path) {
        (Some(source), None) if is_path(&source) => {
            Err(Failure::Usage(format!("Write `--path {source}` if {source} is a directory that several hosts share")))
        }
        (None, Some(path)) if !is_path(&path) => {
            Err(Failure::Usage(format!("--path takes an absolute path, as in /mnt/vms, not {path:?}")))
        }
        (source, path) => Ok(source.or(path).unwrap_or_default()),
    }
}

/// A password is never an argument, because every user of the machine could read it there.
fn credentials(user: Option<String>, password_file: Option<PathBuf>) -> Result<Option<ShareCredentials>, Failure> {
    let Some(user) = user else { return Ok(None) };
    let password = match password_file {
        Some(path) => connection::read(&path)?.trim_end_matches(['\n', '\r']).to_owned(),
        None => std::env::var("FERRY_SHARE_PASSWORD").map_err(|_| {
            Failure::Usage("Give the password with --password-file, or in FERRY_SHARE_PASSWORD".to_owned())
        })?,
    };
    Ok(Some(ShareCredentials { user, password }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_taken_for_a_share_only_where_it_is_said() {
        let add = |source: &str, path: &str| {
            let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            written(given(source), given(path)).ok()
        };
        assert_eq!(add("nfs://fs1.x.org/vms", "").as_deref(), Some("nfs://fs1.x.org/vms"));
        assert_eq!(add("//fs1.x.org/vms", "").as_deref(), Some("//fs1.x.org/vms"));
        assert_eq!(add("", "/mnt/vms").as_deref(), Some("/mnt/vms"));
        for (source, path) in
            [("/fs1.x.org/vms", ""), ("", "mnt/vms"), ("", "//fs1.x.org/vms"), ("", "nfs://fs1.x.org/a")]
        {
            assert_eq!(add(source, path), None, "{source} {path}");
        }
    }
}
