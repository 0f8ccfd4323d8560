//! What may be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ferry_core::{admission::Limits, api::server::MoveDisk, id::JobId, job::OnStall, pin::Pin, vm::DiskFormat};
use time::{Date, OffsetDateTime, macros::format_description};

/// Move running VMs between KVM hosts.
///
/// Exit codes: 0 done · 1 the job failed, or a fault · 2 wrong usage · 3 refused, with findings · 4 not found ·
/// 5 the server does not answer · 6 not authorised · 130 interrupted (a job goes on).
#[derive(Debug, Parser)]
#[command(name = "ferry", version, arg_required_else_help = true)]
pub struct Arguments {
    /// Print one JSON document instead of tables
    #[arg(long, global = true)]
    pub json: bool,
    /// Who to talk to
    #[command(flatten)]
    pub server: ServerArguments,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// Where the server is and how it is known. Anything left out is taken from what `ferry login` stored.
#[derive(Clone, Debug, Default, Args)]
pub struct ServerArguments {
    /// Talk to this server, as in `https://ferry.example.org:7420`
    #[arg(long, global = true, env = "FERRY_SERVER")]
    pub server: Option<String>,
    /// Know the server by the hash of its key, as its `server.pin` file has it
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
    /// Add file shares, and attach them on hosts
    #[command(subcommand)]
    Share(ShareCommand),
    /// List, start, shut down and move VMs
    #[command(subcommand)]
    Vm(VmCommand),
    /// List, show, watch and cancel jobs
    #[command(subcommand)]
    Job(JobCommand),
    /// Store server, pin and token, so that they need not be given again
    Login,
    /// Write man pages and completions into a folder. For packages
    #[command(hide = true)]
    Manual {
        /// The folder
        folder: PathBuf,
    },
}

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
    /// Ask a VM's guest to shut itself down
    Shutdown {
        /// The VM
        vm: String,
    },
    /// List every host with the kind of move it would be, and why
    Hosts {
        /// The VM
        vm: String,
    },
    /// Move running VMs to another host
    ///
    /// Example: ferry vm migrate web01 web02 --to kvm2 --wait
    Migrate(MigrateArguments),
    /// Move disks of a running VM to other files of its host
    ///
    /// A place is a folder: a path on the host, or `\\\\server.domain\\share\\folder`.
    ///
    /// Example: ferry vm move-storage web01 --to /var/lib/libvirt/images --disk vdb,format=qcow2 --wait
    MoveStorage(MoveStorageArguments),
}

/// `ferry vm move-storage …`
#[derive(Debug, Args)]
pub struct MoveStorageArguments {
    /// The VM
    pub vm: String,
    /// Where every disk goes that is not named with --disk
    #[arg(long, value_name = "PLACE", required_unless_present = "disks")]
    pub to: Option<String>,
    /// One disk: where it goes (a folder, or a file that ends in .raw, .img or .qcow2), and in which format
    #[arg(long = "disk", value_name = "DISK[=PLACE][,format=raw|qcow2]", value_parser = move_disk)]
    pub disks: Vec<MoveDisk>,
    /// Keep the old files
    #[arg(long)]
    pub keep_source: bool,
    /// Offer each place from now on: it becomes a storage location of the host
    #[arg(long)]
    pub add_default: bool,
    /// Read no faster than this. MiB per second, all disks together
    #[arg(long, value_name = "MIB_PER_S", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub bandwidth: Option<u64>,
    /// Only say what would happen
    #[arg(long)]
    pub dry_run: bool,
    /// Stay and show progress until the job ends
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
    /// The VMs; of several, all are accepted or none is
    #[arg(required = true, value_name = "VM")]
    pub vms: Vec<String>,
    /// Move them to this host
    #[arg(long)]
    pub to: String,
    /// Only say what would happen
    #[arg(long)]
    pub dry_run: bool,
    /// Stay and show progress until the job ends
    #[arg(long)]
    pub wait: bool,
    /// Switch over when the rest fits into this. Milliseconds
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(10..=10_000))]
    pub max_downtime: Option<u32>,
    /// Send no faster than this, memory and, before it, each disk that moves along. MiB per second
    #[arg(long, value_name = "MIB_PER_S", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub bandwidth: Option<u64>,
    /// The move's time limit. Seconds
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=604_800))]
    pub timeout: Option<u64>,
    /// What to do when the guest writes faster than its memory can be sent
    #[arg(long, value_enum, default_value_t)]
    pub on_stall: Stall,
    /// Where disks go that the destination does not reach: a folder of it, or `\\\\server.domain\\share\\folder`
    #[arg(long, value_name = "PLACE")]
    pub storage: Option<String>,
    /// One disk that moves along: where it goes (a folder, or a file that ends in .raw, .img or .qcow2), and in which format
    #[arg(long = "disk", value_name = "DISK[=PLACE][,format=raw|qcow2]", value_parser = move_disk)]
    pub disks: Vec<MoveDisk>,
    /// Keep the old files of disks that moved along
    #[arg(long)]
    pub keep_source: bool,
    /// The VM is shut off and moves so, with its files; refused for a VM that runs
    #[arg(long)]
    pub offline: bool,
    /// Move it even if the destination's memory may not do, counting what other moves were promised
    #[arg(long)]
    pub overcommit: bool,
}

/// What to do with a move that does not converge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Stall {
    /// End it at the time limit; the VM is never slowed
    #[default]
    Abort,
    /// Slow the guest's CPUs more and more; end it at the time limit if that does not help. With QEMU 9.2 to 10 a
    /// hand-over that fails, as when the destination dies in it, may end the VM then
    Autoconverge,
    /// At the time limit let the VM stand still for longer, up to 30 seconds; end it if that does not help
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

/// A moment, for `--since`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since {
    /// Unix milliseconds.
    pub at_ms: u64,
}

impl std::str::FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let help = || "give an age such as 90m, 12h or 7d, or a day such as 2026-11-23 (UTC)".to_owned();
        let milliseconds = |at: OffsetDateTime| Self { at_ms: (at.unix_timestamp().max(0) as u64) * 1_000 };
        if let Ok(day) = Date::parse(text, format_description!("[year]-[month]-[day]")) {
            return Ok(milliseconds(day.midnight().assume_utc()));
        }
        let unit = text.chars().last().ok_or_else(help)?;
        let seconds = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 24 * 3_600,
            _ => return Err(help()),
        };
        let count: u32 = text[..text.len() - 1].parse().map_err(|_| help())?;
        Ok(milliseconds(OffsetDateTime::now_utc() - time::Duration::seconds(i64::from(count) * seconds)))
    }
}

/// `ferry job …`
#[derive(Debug, Subcommand)]
pub enum JobCommand {
    /// List jobs, newest first
    List {
        /// No more than this many
        #[arg(long, default_value_t = 20)]
        limit: u32,
        /// Only those accepted since then: an age such as 90m, 12h or 7d, or a day such as 2026-11-23 (UTC)
        #[arg(long)]
        since: Option<Since>,
    },
    /// Print what is kept of every job that ended, oldest first, one JSON object a line
    Export {
        /// Only those accepted since then: an age such as 90m, 12h or 7d, or a day such as 2026-11-23 (UTC)
        #[arg(long)]
        since: Option<Since>,
    },
    /// Show a job with its steps and log
    Show {
        /// Its number
        job: JobId,
    },
    /// Follow a job until it ends
    Watch {
        /// Its number
        job: JobId,
    },
    /// Cancel a job; its VMs that have not switched over stay where they are
    Cancel {
        /// Its number
        job: JobId,
    },
    /// Try a job that failed or was cancelled once more
    Restart {
        /// Its number
        job: JobId,
        /// Stay and show progress until the job ends
        #[arg(long)]
        wait: bool,
    },
    /// Try now what a stuck job tries again and again
    Retry {
        /// Its number
        job: JobId,
    },
    /// Take back what a job did; possible before the VM has switched over
    Undo {
        /// Its number
        job: JobId,
    },
    /// Give up a job that does not end by itself: nothing more is done for it, and what is left stays
    Dismiss {
        /// Its number
        job: JobId,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_moment_is_an_age_or_a_day() {
        let day: Since = "1970-01-02".parse().expect("a day");
        assert_eq!(day.at_ms, 24 * 3_600 * 1_000);
        let now = OffsetDateTime::now_utc().unix_timestamp() as u64 * 1_000;
        let hours: Since = "12h".parse().expect("an age");
        assert!((43_200_000..43_260_000).contains(&(now + 1_000 - hours.at_ms)), "{hours:?}");
        for bad in ["", "h", "-1h", "1w", "2026-13-01", "1.5h", "½h"] {
            assert!(bad.parse::<Since>().is_err(), "{bad}");
        }
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
