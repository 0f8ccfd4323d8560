//! `ferry host …`

use std::path::PathBuf;

use clap::{ArgGroup, Subcommand};
use ferry_core::{admission::Limits, network::Subnet, transfer::Preset};

/// `ferry host …`
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Add a host with the token that `ferry-agent setup` printed on it
    ///
    /// Example: ferry host add 192.0.2.11:7421 --name kvm1 --token ferry1.…
    Add {
        /// ADDRESS:PORT of the host's agent
        address: String,
        /// A name for the host
        #[arg(long)]
        name: String,
        /// The enrolment token; it works once
        #[arg(long, required_unless_present = "enrolment_file")]
        token: Option<String>,
        /// Read the enrolment token from this file; - is stdin
        #[arg(long, conflicts_with = "token")]
        enrolment_file: Option<PathBuf>,
    },
    /// List the hosts
    List,
    /// Show a host with its VMs, shares and problems
    Show {
        /// The host's name
        host: String,
    },
    /// Set how many moves, in and out together, a host takes part in at the same time, and how and where their bytes travel
    ///
    /// Examples: ferry host set kvm1 --live-limit 4 --memory-bandwidth 100 ·
    /// ferry host set kvm1 --migration-network 10.78.0.0/24 --migration-network 10.77.0.0/24
    #[command(group = ArgGroup::new("what").required(true).multiple(true))]
    Set {
        /// The host's name
        host: String,
        /// Live moves at the same time
        #[arg(long, value_name = "N", group = "what",
            value_parser = clap::value_parser!(u32).range(1..=i64::from(Limits::MAX)))]
        live_limit: Option<u32>,
        /// Storage moves at the same time
        #[arg(long, value_name = "N", group = "what",
            value_parser = clap::value_parser!(u32).range(1..=i64::from(Limits::MAX)))]
        storage_limit: Option<u32>,
        /// Send bytes as they are (standard), or compressed where that is faster (compression); a move may request otherwise
        #[arg(long, value_name = "PRESET", group = "what")]
        performance: Option<Preset>,
        /// Bandwidth limit for the memory of each move; 0 for none. MiB per second
        #[arg(long, value_name = "MIB_PER_S", group = "what",
            value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
        memory_bandwidth: Option<u64>,
        /// Bandwidth limit for the disks of each move, all together; 0 for none. MiB per second
        #[arg(long, value_name = "MIB_PER_S", group = "what",
            value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
        storage_bandwidth: Option<u64>,
        /// Let the bytes of moves travel in this subnet only, or, given several times, in the first in which both hosts have
        /// an address; at most 8
        #[arg(long, value_name = "SUBNET", group = "what")]
        migration_network: Vec<Subnet>,
        /// Let the bytes of moves travel where the agents are set to listen (data_address)
        #[arg(long, group = "what", conflicts_with = "migration_network")]
        no_migration_network: bool,
    },
    /// Move every running VM away from a host, and place nothing there until it is resumed
    ///
    /// Example: ferry host drain kvm1 --wait
    Drain {
        /// The host's name
        host: String,
        /// Move all VMs to this host; otherwise each moves to the host with the most free memory
        #[arg(long)]
        to: Option<String>,
        /// Copy disks that the destination cannot reach to this directory there; otherwise to its first storage location
        #[arg(long, value_name = "PLACE")]
        storage: Option<String>,
        /// Move VMs even if their destinations may not have enough memory, counting what other moves were promised
        #[arg(long)]
        overcommit: bool,
        /// Wait, and show progress, until all moves have ended
        #[arg(long)]
        wait: bool,
    },
    /// End the maintenance of a host: VMs may be placed there again
    Resume {
        /// The host's name
        host: String,
    },
    /// Show where VM files may be on a host, or what is in a directory there
    ///
    /// Examples: ferry host browse kvm1 · ferry host browse kvm1 '\\fs1.example.org\vms\web'
    Browse {
        /// The host's name
        host: String,
        /// /DIRECTORY on the host, or \\SERVER.DOMAIN\SHARE\DIRECTORY
        location: Option<String>,
    },
    /// List, add and remove the directories that are offered first for VM files on a host
    #[command(subcommand)]
    Storage(StorageCommand),
    /// Remove a host from the inventory; its VMs keep running
    Remove {
        /// The host's name
        host: String,
    },
}

/// `ferry host storage …`
#[derive(Debug, Subcommand)]
pub enum StorageCommand {
    /// List a host's storage locations
    List {
        /// The host
        host: String,
    },
    /// Add a storage location; the host checks that VM files can be there
    ///
    /// Example: ferry host storage add kvm1 '\\fs1.example.org\vms\web'
    Add {
        /// The host
        host: String,
        /// /DIRECTORY on the host, or \\SERVER.DOMAIN\SHARE\DIRECTORY
        location: String,
    },
    /// Remove a storage location; the directory and its files stay
    Remove {
        /// The host
        host: String,
        /// As `ferry host storage list` shows it
        location: String,
    },
}
