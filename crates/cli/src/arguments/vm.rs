//! `ferry vm …`

use clap::{Args, Subcommand, ValueEnum};
use ferry_core::{api::server::MoveDisk, job::OnStall, transfer::Preset, vm::DiskFormat};

/// `ferry vm …`. A VM is given by name, by UUID, or as HOST/NAME.
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// List the VMs
    List,
    /// Show a VM with its files
    Show {
        /// The VM
        vm: String,
    },
    /// Start a VM
    Start {
        /// The VM
        vm: String,
    },
    /// Ask the guest of a VM to shut down
    Shutdown {
        /// The VM
        vm: String,
    },
    /// List every host with the kind of move that is possible there, or what prevents it
    Hosts {
        /// The VM
        vm: String,
    },
    /// Move running VMs to another host
    ///
    /// Example: ferry vm migrate web01 web02 --to kvm2 --wait
    Migrate(MigrateArguments),
    /// Move disks of a running VM to other files on its host
    ///
    /// A place is a directory: a path on the host, or `\\\\server.domain\\share\\directory`.
    ///
    /// Example: ferry vm move-storage web01 --to /var/lib/libvirt/images --disk vdb,format=qcow2 --wait
    MoveStorage(MoveStorageArguments),
}

/// `ferry vm move-storage …`
#[derive(Debug, Args)]
pub struct MoveStorageArguments {
    /// The VM
    pub vm: String,
    /// Where disks go that are not named with --disk
    #[arg(long, value_name = "PLACE", required_unless_present = "disks")]
    pub to: Option<String>,
    /// Where one disk goes (a directory, or a file that ends in .raw, .img or .qcow2), and in which format
    #[arg(long = "disk", value_name = "DISK[=PLACE][,format=raw|qcow2]", value_parser = move_disk)]
    pub disks: Vec<MoveDisk>,
    /// Keep the old files
    #[arg(long)]
    pub keep_source: bool,
    /// Also make each place a storage location of the host
    #[arg(long)]
    pub add_default: bool,
    /// Bandwidth limit for all disks together. MiB per second
    #[arg(long, value_name = "MIB_PER_S", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub bandwidth: Option<u64>,
    /// Only show what would happen
    #[arg(long)]
    pub dry_run: bool,
    /// Wait, and show progress, until the job ends
    #[arg(long)]
    pub wait: bool,
}

/// `vda`, `vda=PLACE`, `vda=PLACE,format=qcow2` or `vda,format=qcow2`. A place may hold commas.
fn move_disk(text: &str) -> Result<MoveDisk, String> {
    let (rest, format) = match text.rsplit_once(",format=") {
        None => (text, None),
        Some((rest, "raw")) => (rest, Some(DiskFormat::Raw)),
        Some((rest, "qcow2")) => (rest, Some(DiskFormat::Qcow2)),
        Some((_, other)) => return Err(format!("{other:?} is no format: raw or qcow2")),
    };
    let (device, to) = match rest.split_once('=') {
        None => (rest, None),
        Some((device, place)) => (device, Some(place.to_owned())),
    };
    if device.is_empty() || !device.chars().all(|letter| letter.is_ascii_alphanumeric()) {
        return Err(format!("{device:?} is no disk: give its name in the definition, as vda"));
    }
    if to.as_ref().is_some_and(String::is_empty) {
        return Err(format!("where {device} goes is missing"));
    }
    Ok(MoveDisk { device: device.to_owned(), to, format })
}

/// `ferry vm migrate …`
#[derive(Debug, Args)]
pub struct MigrateArguments {
    /// The VMs; either all of them are accepted or none
    #[arg(required = true, value_name = "VM")]
    pub vms: Vec<String>,
    /// Move them to this host
    #[arg(long)]
    pub to: String,
    /// Only show what would happen
    #[arg(long)]
    pub dry_run: bool,
    /// Wait, and show progress, until the job ends
    #[arg(long)]
    pub wait: bool,
    /// Switch over when the rest can be sent within this time. Milliseconds
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(10..=10_000))]
    pub max_downtime: Option<u32>,
    /// Bandwidth limit for memory, and for all migrated disks before it. MiB per second
    #[arg(long, value_name = "MIB_PER_S", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub bandwidth: Option<u64>,
    /// Bandwidth limit for all migrated disks together, in place of --bandwidth. MiB per second
    #[arg(long, value_name = "MIB_PER_S", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub storage_bandwidth: Option<u64>,
    /// Send bytes as they are (standard), or compressed where that is faster (compression); otherwise as both hosts are set
    #[arg(long, value_name = "PRESET")]
    pub performance: Option<Preset>,
    /// Time limit of the move. Seconds
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=604_800))]
    pub timeout: Option<u64>,
    /// What to do if the guest writes memory faster than it can be sent
    #[arg(long, value_enum, default_value_t)]
    pub on_stall: Stall,
    /// Where disks go that the destination cannot reach: a directory there, or `\\\\server.domain\\share\\directory`
    #[arg(long, value_name = "PLACE")]
    pub storage: Option<String>,
    /// Where one migrated disk goes (a directory, or a file that ends in .raw, .img or .qcow2), and in which format
    #[arg(long = "disk", value_name = "DISK[=PLACE][,format=raw|qcow2]", value_parser = move_disk)]
    pub disks: Vec<MoveDisk>,
    /// Keep the old files of migrated disks
    #[arg(long)]
    pub keep_source: bool,
    /// Move a VM that is shut off, with its files; refused for a running VM
    #[arg(long)]
    pub offline: bool,
    /// Move the VM even if the destination may not have enough memory, counting what other moves were promised
    #[arg(long)]
    pub overcommit: bool,
}

/// What to do with a move that does not converge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Stall {
    /// End the move at the time limit; the VM is never slowed
    #[default]
    Abort,
    /// Throttle the guest's CPUs more and more; end the move at the time limit if that does not help. With QEMU 9.2 to 10,
    /// a hand-over that fails then, for instance because the destination dies, may end the VM
    Autoconverge,
    /// At the time limit allow a downtime of up to 30 seconds; end the move if that does not help
    Pause,
}

impl From<Stall> for OnStall {
    fn from(stall: Stall) -> Self {
        match stall {
            Stall::Abort => Self::Abort,
            Stall::Autoconverge => Self::Autoconverge,
            Stall::Pause => Self::Pause,
        }
    }
}
