//! One file per group of commands.

mod host;
mod job;
mod share;
mod vm;

use clap::CommandFactory as _;
use ferry_manual::Section;

use crate::{
    Failure, Output,
    arguments::{Arguments, Command},
    connection,
};

/// Runs the command.
///
/// # Errors
/// [`Failure`], whose exit code is documented.
pub async fn run(arguments: Arguments, output: &Output) -> Result<(), Failure> {
    if let Command::Login = arguments.command {
        let path = connection::login(&arguments.server).await?;
        output.talk(&format!("The server answered; stored in {}", path.display()));
        return Ok(());
    }
    if let Command::Manual { folder } = arguments.command {
        let written = ferry_manual::write(Arguments::command(), Section::User, &folder);
        return written.map_err(|source| Failure::File { path: folder, source });
    }
    let client = connection::connect(&arguments.server)?;
    match arguments.command {
        Command::Host(command) => host::run(command, &client, output).await,
        Command::Share(command) => share::run(command, &client, output).await,
        Command::Vm(command) => vm::run(command, &client, output).await,
        Command::Job(command) => job::run(command, &client, output).await,
        Command::Login | Command::Manual { .. } => Ok(()),
    }
}
