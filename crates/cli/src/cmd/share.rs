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
        ShareCommand::Add { name, unc } => {
            output.data(&client.add_share(&AddShare { name, unc }).await?, render::share);
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

/// A password is never an argument: every user of the machine could read it there.
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
