//! `ferry host …`

use ferry_client::server::ServerClient;
use ferry_core::{
    api::server::{AddHost, AddStorageLocation, DrainHost, HostView, SetHost},
    network::MigrationNetworks,
};

use super::job;
use crate::{
    Failure, Output,
    arguments::{HostCommand, StorageCommand},
    connection, render,
};

pub(crate) async fn run(command: HostCommand, client: &ServerClient, output: &Output) -> Result<(), Failure> {
    match command {
        HostCommand::Add { address, name, token, enrolment_file } => {
            let token = match (token, enrolment_file) {
                (Some(token), _) => token,
                (None, Some(path)) => connection::read(&path)?.trim().to_owned(),
                (None, None) => return Err(Failure::Usage("Give --token or --enrolment-file".to_owned())),
            };
            let host = client.add_host(&AddHost { name, address, token }).await?;
            output.data(&host, render::host);
        }
        HostCommand::List => output.data(&client.hosts().await?, |list| render::hosts(list)),
        HostCommand::Show { host } => output.data(&client.host(&host).await?, render::host),
        HostCommand::Set {
            host,
            live_limit,
            storage_limit,
            performance,
            memory_bandwidth,
            storage_bandwidth,
            migration_network,
            no_migration_network,
        } => {
            let networks = MigrationNetworks::try_from(migration_network);
            let networks = networks.map_err(|error| Failure::Usage(error.to_string()))?;
            let body = SetHost {
                live_limit,
                storage_limit,
                performance,
                memory_bandwidth_bytes_per_s: memory_bandwidth.map(|mib| mib << 20),
                storage_bandwidth_bytes_per_s: storage_bandwidth.map(|mib| mib << 20),
                migration_networks: (no_migration_network || !networks.is_empty()).then_some(networks),
            };
            output.data(&client.set_host(&host, &body).await?, render::host);
        }
        HostCommand::Drain { host, to, storage, overcommit, wait } => {
            let body = DrainHost { destination: to, storage, overcommit };
            let accepted = client.drain_host(&host, &body).await?;
            job::accepted(&accepted, wait, client, output).await?;
        }
        HostCommand::Resume { host } => output.data(&client.resume_host(&host).await?, render::host),
        HostCommand::Browse { host, location } => {
            output.data(&client.places(&host, location.as_deref()).await?, |view| render::places(&host, view));
        }
        HostCommand::Storage(command) => storage(command, client, output).await?,
        HostCommand::Remove { host } => {
            client.remove_host(&host).await?;
            output.talk(&format!("Host {host} is forgotten; its VMs go on"));
        }
    }
    Ok(())
}

async fn storage(command: StorageCommand, client: &ServerClient, output: &Output) -> Result<(), Failure> {
    let host: HostView = match command {
        StorageCommand::List { host } => client.host(&host).await?,
        StorageCommand::Add { host, location } => {
            client.add_storage_location(&host, &AddStorageLocation { location }).await?
        }
        StorageCommand::Remove { host, location } => client.remove_storage_location(&host, &location).await?,
    };
    output.data(&host.storage_locations, |locations| render::storage_locations(locations));
    Ok(())
}
