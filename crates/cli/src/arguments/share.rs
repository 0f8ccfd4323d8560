//! `ferry share …`

use std::path::PathBuf;

use clap::Subcommand;

/// `ferry share …`
#[derive(Debug, Subcommand)]
pub enum ShareCommand {
    /// Add a share: an SMB share, an NFS export, or a path that is the same on several hosts
    ///
    /// Examples: ferry share add vms '\\fs1.example.org\vms'; ferry share add vms nfs://fs1.example.org/export/vms;
    /// ferry share add vms --path /mnt/vms
    Add {
        /// How to call it
        name: String,
        /// \\SERVER.DOMAIN\SHARE or nfs://SERVER.DOMAIN/EXPORT
        #[arg(required_unless_present = "path", conflicts_with = "path")]
        source: Option<String>,
        /// A directory of CephFS, GlusterFS, GFS2, OCFS2 or whatever you have mounted on several hosts
        #[arg(long)]
        path: Option<String>,
    },
    /// List the shares
    List,
    /// Show a share with the hosts that have it
    Show {
        /// Its name
        share: String,
    },
    /// Attach a share on a host: mount it there, or adopt a mount of your own with --at
    Attach {
        /// Its name
        share: String,
        /// On this host
        #[arg(long)]
        host: String,
        /// Log in as this user
        #[arg(long)]
        user: Option<String>,
        /// Read the password from this file; without it FERRY_SHARE_PASSWORD is taken
        #[arg(long)]
        password_file: Option<PathBuf>,
        /// Adopt the mount that is there on the host; for a share that is a path, where this host has it if not there
        #[arg(long)]
        at: Option<String>,
    },
    /// Detach a share from a host
    Detach {
        /// Its name
        share: String,
        /// From this host
        #[arg(long)]
        host: String,
    },
    /// Forget a share
    Remove {
        /// Its name
        share: String,
    },
}
