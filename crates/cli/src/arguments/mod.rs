//! What may be typed: the commands, and a file for each group of them.

mod host;
mod job;
mod share;
mod vm;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use ferry_core::pin::Pin;

pub use self::{
    host::{HostCommand, StorageCommand},
    job::{JobCommand, Since},
    share::ShareCommand,
    vm::{MigrateArguments, MoveStorageArguments, Stall, VmCommand},
};

/// Move running VMs between KVM hosts.
///
/// Exit codes: 0 done · 1 the job failed, or a fault · 2 wrong usage · 3 refused, with findings · 4 not found ·
/// 5 the server does not answer · 6 not authorised · 130 interrupted (the job continues).
#[derive(Debug, Parser)]
#[command(name = "ferry", version, arg_required_else_help = true)]
pub struct Arguments {
    /// Print one JSON document instead of tables
    #[arg(long, global = true)]
    pub json: bool,
    /// Tell findings in this language, as in `ja`; else that of LC_ALL, LC_MESSAGES or LANG. English for those there is none of
    #[arg(long, global = true, env = "FERRY_LANG", value_name = "LANGUAGE")]
    pub language: Option<String>,
    /// Which server to use
    #[command(flatten)]
    pub server: ServerArguments,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Which server to use and how to verify it. Anything left out is taken from what `ferry login` stored.
#[derive(Clone, Debug, Default, Args)]
pub struct ServerArguments {
    /// The server, such as `https://ferry.example.org:7420`
    #[arg(long, global = true, env = "FERRY_SERVER")]
    pub server: Option<String>,
    /// The hash of the server's key, from its `server.pin` file
    #[arg(long, global = true, env = "FERRY_PIN")]
    pub pin: Option<Pin>,
    /// Read the token from this file
    #[arg(long, global = true, env = "FERRY_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Add, list, show and remove hosts
    #[command(subcommand)]
    Host(HostCommand),
    /// Add shares, and attach them on hosts
    #[command(subcommand)]
    Share(ShareCommand),
    /// List, start, shut down and move VMs
    #[command(subcommand)]
    Vm(VmCommand),
    /// List, show, watch and cancel jobs
    #[command(subcommand)]
    Job(JobCommand),
    /// Store server, pin and token for later commands
    Login,
    /// Write man pages and completions into a directory. For packages
    #[command(hide = true)]
    Manual {
        /// The directory
        folder: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use ferry_core::{api::server::MoveDisk, vm::DiskFormat};

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_migration_takes_its_options_and_refuses_nonsense() {
        let parse = |line: &str| Arguments::try_parse_from(line.split(' '));
        let parsed =
            parse("ferry --json vm migrate web01 --to kvm2 --wait --max-downtime 100 --bandwidth 50").expect("good");
        let Command::Vm(VmCommand::Migrate(migrate)) = parsed.command else { panic!("another command") };
        assert!(parsed.json && migrate.wait && !migrate.dry_run);
        assert_eq!((migrate.max_downtime, migrate.bandwidth, migrate.timeout), (Some(100), Some(50), None));
        let line =
            "ferry vm move-storage web01 --to /srv/a --disk vdb=//fs1.x.y/v/d,format=qcow2 --disk vdc,format=raw";
        let Command::Vm(VmCommand::MoveStorage(storage)) = parse(line).expect("good").command else {
            panic!("another command")
        };
        let disk = |device: &str, to: Option<&str>, format| MoveDisk {
            device: device.into(),
            to: to.map(str::to_owned),
            format: Some(format),
        };
        assert_eq!(
            storage.disks,
            [disk("vdb", Some("//fs1.x.y/v/d"), DiskFormat::Qcow2), disk("vdc", None, DiskFormat::Raw)]
        );
        for bad in [
            "ferry vm migrate web01",
            "ferry vm move-storage web01",
            "ferry vm move-storage web01 --disk =/srv",
            "ferry vm move-storage web01 --disk vda=",
            "ferry vm move-storage web01 --disk vda=/srv,format=vmdk",
            "ferry vm migrate --to kvm2",
            "ferry vm migrate web01 --to kvm2 --on-stall wait",
            "ferry host set kvm1",
            "ferry host browse",
            "ferry host storage add kvm1",
            "ferry host storage remove kvm1",
            "ferry host set kvm1 --live-limit 0",
            "ferry job list --since yesterday",
            "ferry vm migrate web01 --to kvm2 --max-downtime 5",
            "ferry vm migrate web01 --to kvm2 --bandwidth 0",
            "ferry job show x",
            "ferry host add a:1 --name x",
            "ferry --pin nonsense vm list",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
