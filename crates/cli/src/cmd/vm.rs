//! `ferry vm …`

use ferry_client::server::ServerClient;
use ferry_core::api::server::{MigrateMany, MigrateVm, MoveStorage};

use super::job;
use crate::{
    Failure, Output,
    arguments::{MigrateArguments, MoveStorageArguments, VmCommand},
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
        VmCommand::MoveStorage(arguments) => move_storage(arguments, client, output).await?,
    }
    Ok(())
}

async fn move_storage(arguments: MoveStorageArguments, client: &ServerClient, output: &Output) -> Result<(), Failure> {
    let body = MoveStorage {
        to: arguments.to,
        disks: arguments.disks,
        keep_source: arguments.keep_source,
        add_default: arguments.add_default,
        bandwidth_bytes_per_s: arguments.bandwidth.map(|mib| mib << 20),
        dry_run: arguments.dry_run,
    };
    if arguments.dry_run {
        output.data(&client.try_move_storage(&arguments.vm, &body).await?, render::storage_plan);
        return Ok(());
    }
    let accepted = client.move_storage(&arguments.vm, &body).await?;
    job::accepted(&accepted, arguments.wait, client, output).await
}

async fn migrate(arguments: MigrateArguments, client: &ServerClient, output: &Output) -> Result<(), Failure> {
    let how = MigrateVm {
        destination: arguments.to,
        dry_run: arguments.dry_run,
        downtime_limit_ms: arguments.max_downtime,
        bandwidth_bytes_per_s: arguments.bandwidth.map(|mib| mib << 20),
        storage_bandwidth_bytes_per_s: arguments.storage_bandwidth.map(|mib| mib << 20),
        performance: arguments.performance,
        timeout_ms: arguments.timeout.map(|seconds| seconds * 1_000),
        on_stall: arguments.on_stall.into(),
        storage: arguments.storage,
        disks: arguments.disks,
        keep_source: arguments.keep_source,
        offline: arguments.offline,
        overcommit: arguments.overcommit,
    };
    if arguments.dry_run {
        let mut candidates = Vec::with_capacity(arguments.vms.len());
        for vm in &arguments.vms {
            candidates.push(client.try_migrate(vm, &how).await?);
        }
        output.data(&candidates, |list| render::candidates(list));
        return Ok(());
    }
    let accepted = match arguments.vms.as_slice() {
        [vm] => client.migrate(vm, &how).await?,
        _ => client.migrate_many(&MigrateMany { vms: arguments.vms, how }).await?,
    };
    job::accepted(&accepted, arguments.wait, client, output).await
}
