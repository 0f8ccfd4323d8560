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
        /// A name for the share
        name: String,
        /// \\SERVER.DOMAIN\SHARE or nfs://SERVER.DOMAIN/EXPORT
        #[arg(required_unless_present = "path", conflicts_with = "path")]
        source: Option<String>,
        /// A directory of CephFS, GlusterFS, GFS2, OCFS2 or anything else that you have mounted on several hosts
        #[arg(long)]
        path: Option<String>,
    },
    /// List the shares
    List,
    /// Show a share with the hosts that have it
    Show {
        /// The share's name
        share: String,
    },
    /// Attach a share on a host: mount it there, or adopt an existing mount with --at
    Attach {
        /// The share's name
        share: String,
        /// The host
        #[arg(long)]
        host: String,
        /// Log in as this user
        #[arg(long)]
        user: Option<String>,
        /// Read the password from this file; otherwise from FERRY_SHARE_PASSWORD
        #[arg(long)]
        password_file: Option<PathBuf>,
        /// Adopt the mount at this path on the host; for a share that is a path, where this host has it
        #[arg(long)]
        at: Option<String>,
    },
    /// Detach a share from a host
    Detach {
        /// The share's name
        share: String,
        /// The host
        #[arg(long)]
        host: String,
    },
    /// Remove a share from the inventory
    Remove {
        /// The share's name
        share: String,
    },
}
