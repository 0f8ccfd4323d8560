//! One file per group of commands.

mod host;
mod job;
mod share;
mod vm;

use crate::{
    Failure, Output,
    arguments::{Arguments, Command},
    connection,
};

/// Does what was typed.
///
/// # Errors
/// [`Failure`], whose exit code is documented.
pub async fn run(arguments: Arguments, output: &Output) -> Result<(), Failure> {
    if let Command::Login = arguments.command {
        let path = connection::login(&arguments.server).await?;
        output.talk(&format!("The server answered; stored in {}", path.display()));
        return Ok(());
    }
    let client = connection::connect(&arguments.server)?;
    match arguments.command {
        Command::Host(command) => host::run(command, &client, output).await,
        Command::Share(command) => share::run(command, &client, output).await,
        Command::Vm(command) => vm::run(command, &client, output).await,
        Command::Job(command) => job::run(command, &client, output).await,
        Command::Login => Ok(()),
    }
}
