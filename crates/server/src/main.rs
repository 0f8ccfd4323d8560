//! `ferry-server`: runs the control plane.

use std::path::PathBuf;

use clap::{CommandFactory as _, Parser, Subcommand};
use ferry_manual::Section;
use ferry_server::{Server, config::Config, openapi_document, renew_token};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Serve Ferry's REST API, run jobs and keep the inventory
#[derive(Debug, Parser)]
#[command(name = "ferry-server", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the REST API until stopped by SIGTERM or Ctrl-C
    Run {
        /// Read settings from this file [default: /etc/ferry/server.toml, if it exists]
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Replace the administrator's token and print the path of the file with the new one
    Token {
        /// Read settings from this file [default: /etc/ferry/server.toml, if it exists]
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Print the OpenAPI document of the REST API
    Openapi,
    /// Write man pages and shell completions into a folder, for packages
    #[command(hide = true)]
    Manual {
        /// The folder to write into
        folder: PathBuf,
    },
}

fn main() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_env("FERRY_LOG").unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn"));
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(std::io::stderr).init();
    #[cfg(feature = "failpoints")]
    let _scenario = fail::FailScenario::setup();
    match Arguments::parse().command {
        Command::Run { config } => run(Config::read(config.as_deref())?),
        Command::Token { config } => token(&Config::read(config.as_deref())?),
        Command::Openapi => {
            print!("{}", openapi_document());
            Ok(())
        }
        Command::Manual { folder } => Ok(ferry_manual::write(Arguments::command(), Section::Administrator, &folder)?),
    }
}

#[tokio::main]
async fn run(config: Config) -> anyhow::Result<()> {
    let server = Server::start(&config).await?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    server.stop().await
}

#[tokio::main(flavor = "current_thread")]
async fn token(config: &Config) -> anyhow::Result<()> {
    println!("{}", renew_token(config).await?.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_has_a_page_for_each_command_that_people_type() {
        let folder = tempfile::tempdir().expect("a folder");
        ferry_manual::write(Arguments::command(), Section::Administrator, folder.path()).expect("written");
        let entries = std::fs::read_dir(folder.path()).expect("a folder");
        let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
        let mut pages: Vec<String> = names.filter(|name| name.ends_with(".8")).collect();
        pages.sort();
        assert_eq!(pages, ["ferry-server-openapi.8", "ferry-server-run.8", "ferry-server-token.8", "ferry-server.8"]);
    }
}
