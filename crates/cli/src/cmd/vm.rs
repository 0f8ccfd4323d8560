//! `ferry vm …`

use ferry_client::server::ServerClient;
use ferry_core::api::server::MigrateVm;

use super::job;
use crate::{
    Failure, Output,
    arguments::{MigrateArguments, VmCommand},
    render,
};

pub(crate) async fn run(command: VmCommand, client: &ServerClient, output: &Output) -> Result<(), Failure> {
    match command {
        VmCommand::List => output.data(&client.vms().await?, |list| render::vms(list)),
        VmCommand::Show { vm } => output.data(&client.vm(&vm).await?, render::vm),
        VmCommand::Start { vm } => output.data(&client.start_vm(&vm).await?, render::vm),
        VmCommand::Shutdown { vm } => {
            let view = client.shutdown_vm(&vm).await?;
            output.talk(&format!("The guest of {vm} was asked to shut itself down"));
            output.data(&view, render::vm);
        }
        VmCommand::Hosts { vm } => output.data(&client.candidates(&vm).await?, |list| render::candidates(list)),
        VmCommand::Migrate(arguments) => migrate(arguments, client, output).await?,
    }
    Ok(())
}

async fn migrate(arguments: MigrateArguments, client: &ServerClient, output: &Output) -> Result<(), Failure> {
    let body = MigrateVm {
        destination: arguments.to,
        dry_run: arguments.dry_run,
        downtime_limit_ms: arguments.max_downtime,
        bandwidth_bytes_per_s: arguments.bandwidth.map(|mib| mib << 20),
        timeout_ms: arguments.timeout.map(|seconds| seconds * 1_000),
    };
    if arguments.dry_run {
        let candidate = client.try_migrate(&arguments.vm, &body).await?;
        output.data(&vec![candidate], |list| render::candidates(list));
        return Ok(());
    }
    let accepted = client.migrate(&arguments.vm, &body).await?;
    if !arguments.wait {
        output.talk(&format!("Job {0} is accepted; `ferry job watch {0}` follows it", accepted.id));
        output.data(&accepted, render::job);
        return Ok(());
    }
    job::wait(accepted.id, client, output).await
}
