//! `ferry host …`

use std::path::PathBuf;

use clap::Subcommand;
use ferry_core::admission::Limits;

/// `ferry host …`
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Add a host with the token that `ferry-agent setup` printed on it
    ///
    /// Example: ferry host add 192.0.2.11:7421 --name kvm1 --token ferry1.…
    Add {
        /// ADDRESS:PORT of its agent
        address: String,
        /// How to call it
        #[arg(long)]
        name: String,
        /// The enrolment token, good for one use
        #[arg(long, required_unless_present = "enrolment_file")]
        token: Option<String>,
        /// Read the enrolment token from this file; - is stdin
        #[arg(long, conflicts_with = "token")]
        enrolment_file: Option<PathBuf>,
    },
    /// List the hosts
    List,
    /// Show a host with its VMs, shares and what is wrong with its set-up
    Show {
        /// Its name
        host: String,
    },
    /// Set how many moves a host takes part in at once, in and out together
    ///
    /// Example: ferry host set kvm1 --live-limit 4
    Set {
        /// Its name
        host: String,
        /// Live moves at once
        #[arg(long, value_name = "N", required_unless_present = "storage_limit",
            value_parser = clap::value_parser!(u32).range(1..=i64::from(Limits::MAX)))]
        live_limit: Option<u32>,
        /// Storage moves at once
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(Limits::MAX)))]
        storage_limit: Option<u32>,
    },
    /// Move every running VM away from a host, and place nothing there until it is resumed
    ///
    /// Example: ferry host drain kvm1 --wait
    Drain {
        /// Its name
        host: String,
        /// All of them to this host; else each to the host that has most memory free
        #[arg(long)]
        to: Option<String>,
        /// Copy disks that the destination does not reach to this folder there; else to its first storage location
        #[arg(long, value_name = "PLACE")]
        storage: Option<String>,
        /// Move VMs even if the memory of their destinations may not do, counting what other moves were promised
        #[arg(long)]
        overcommit: bool,
        /// Stay and show progress until the last has ended
        #[arg(long)]
        wait: bool,
    },
    /// End a host's maintenance: VMs may be placed there again
    Resume {
        /// Its name
        host: String,
    },
    /// Show what a host offers for files of VMs, or what is in a directory there
    ///
    /// Examples: ferry host browse kvm1 · ferry host browse kvm1 '\\fs1.example.org\vms\web'
    Browse {
        /// Its name
        host: String,
        /// /DIRECTORY of the host, or \\SERVER.DOMAIN\SHARE\DIRECTORY
        location: Option<String>,
    },
    /// List, add and remove the directories that a host offers first for files of VMs
    #[command(subcommand)]
    Storage(StorageCommand),
    /// Forget a host; its VMs go on
    Remove {
        /// Its name
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
    /// Add a storage location; the host checks that it can hold files of VMs
    ///
    /// Example: ferry host storage add kvm1 '\\fs1.example.org\vms\web'
    Add {
        /// The host
        host: String,
        /// /DIRECTORY of the host, or \\SERVER.DOMAIN\SHARE\DIRECTORY
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
