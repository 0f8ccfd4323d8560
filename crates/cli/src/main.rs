//! Program `ferry`.

use std::process::ExitCode;

use clap::Parser as _;
use ferry_cli::{Output, arguments::Arguments, cmd};

fn main() -> ExitCode {
    ferry_trust::install_provider();
    let arguments = Arguments::parse();
    let output = Output::new(arguments.json, arguments.language.as_deref());
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output.talk(&format!("error: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(cmd::run(arguments, &output)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.fail(&failure);
            ExitCode::from(failure.exit_code())
        }
    }
}
