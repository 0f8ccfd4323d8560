//! Probes every share periodically, and mounts those that are not mounted.

use std::{sync::Arc, time::Duration};

use ferry_core::{
    error::chain,
    finding::{ByHand, Finding},
    place::Space,
    share::{AttachMode, AttachedShare},
};
use ferry_drivers::share::ShareError;
use tracing::{debug, info, warn};

use super::{Entry, Shares};

/// Probe interval.
const POLL_EVERY: Duration = Duration::from_secs(5);

/// Probes per attempt to mount what is not mounted.
const POLLS_PER_MOUNT: u32 = 3;

/// Probes per query of free space, which for some mounts only the file server knows.
const POLLS_PER_SPACE: u32 = 12;

impl Shares {
    /// Mounts the shares of the table, then probes every share periodically; one that is not mounted because its file
    /// server was away is mounted when possible. Ends with the task that runs it.
    pub async fn supervise(self: Arc<Self>) {
        for round in 0.. {
            let shares = Arc::clone(&self);
            let polled = tokio::task::spawn_blocking(move || {
                if round % POLLS_PER_MOUNT == 0 {
                    shares.attach_again(round == 0);
                    shares.mount_anew();
                }
                shares.poll(round % POLLS_PER_SPACE == 0);
            });
            let _ = polled.await;
            tokio::time::sleep(POLL_EVERY).await;
        }
    }

    /// Probes every share. Blocks for seconds if a mount hangs.
    fn poll(&self, asks_space: bool) {
        for entry in self.copy() {
            let trouble = self.is_usable(&entry).err().map(|error| self.finding_for(&entry, error));
            let space = asks_space.then(|| self.driver.space(&entry.source, entry.credentials.as_ref(), &entry.path));
            self.publish(|views| {
                let Some(view) = views.iter_mut().find(|view| view.id == entry.id) else { return };
                let known = view.free.zip(view.total).map(|(free, total)| Space { free, total });
                *view = entry.view(trouble, space.unwrap_or(known), Some(&*self.driver));
            });
        }
    }

    /// What prevents a share's use. Only the file server can show why a mount does not respond.
    fn finding_for(&self, entry: &Entry, error: ShareError) -> Finding {
        // For a login that the server refuses, the kernel reports only "Permission denied".
        let is_vague = matches!(
            error,
            ShareError::Stuck { .. }
                | ShareError::Unreachable { .. }
                | ShareError::Host { .. }
                | ShareError::Mount { .. }
        );
        let ask = || self.driver.probe(&entry.source, entry.credentials.as_ref()).err();
        let error = is_vague.then(ask).flatten().unwrap_or(error);
        let mut finding = error.finding();
        finding.fix = match error {
            ShareError::Password { .. } if entry.mode == AttachMode::Mounted => ByHand::TakePasswordAgain.into(),
            ShareError::Unreachable { .. } | ShareError::Stuck { .. } => {
                ByHand::VmsWait { fix: finding.fix.into() }.into()
            }
            ShareError::NoShare { .. }
            | ShareError::Password { .. }
            | ShareError::Dialect { .. }
            | ShareError::Mount { .. }
            | ShareError::NotAMount { .. }
            | ShareError::Busy { .. }
            | ShareError::Host { .. } => finding.fix,
        };
        finding
    }

    pub(super) fn publish(&self, change: impl FnOnce(&mut Vec<AttachedShare>)) {
        self.views.send_if_modified(|views| {
            let before = views.clone();
            change(views);
            *views != before
        });
    }

    fn attach_again(&self, first: bool) {
        for entry in self.copy() {
            if entry.mode == AttachMode::Adopted || self.is_usable(&entry).is_ok() {
                continue;
            }
            // Safe to repeat: an existing mount is left unchanged, unless its process is gone.
            match self.driver.attach(&entry.source, entry.credentials.as_ref(), &entry.path) {
                // The share was detached meanwhile.
                Ok(()) if self.copy().iter().all(|other| other.id != entry.id) => {
                    let _ = self.driver.detach(&entry.source, &entry.path);
                }
                Ok(()) => info!(share = %entry.source, "A share was mounted again"),
                Err(error) if first => {
                    warn!(share = %entry.source, error = %chain(&error), "A share could not be mounted again; it is tried on");
                }
                Err(error) => {
                    debug!(share = %entry.source, error = %chain(&error), "A share could not be mounted again yet")
                }
            }
        }
    }

    /// Remounts, if not in use, mounts of an earlier version that pass QEMU's locks to the file server.
    fn mount_anew(&self) {
        for entry in self.copy() {
            if entry.mode == AttachMode::Adopted || self.driver.locks_stay(&entry.path) {
                continue;
            }
            // A mount that could not be replaced is kept: VMs can be started on it.
            let answers = self.driver.probe(&entry.source, entry.credentials.as_ref());
            if let Err(error) = answers.and_then(|_| self.driver.detach(&entry.source, &entry.path)) {
                debug!(share = %entry.source, error = %chain(&error), "A share is not mounted anew yet");
                continue;
            }
            match self.driver.attach(&entry.source, entry.credentials.as_ref(), &entry.path) {
                Ok(()) => info!(share = %entry.source, "A share was mounted anew: QEMU's locks stay on this host"),
                // Mounting is retried, as for any share that is not mounted.
                Err(error) => warn!(share = %entry.source, error = %chain(&error), "A share could not be mounted anew"),
            }
        }
    }

    /// Whether a share's files can be used now.
    pub(super) fn is_usable(&self, entry: &Entry) -> Result<(), ShareError> {
        self.driver.check(&entry.source, &entry.path)?;
        let Some(before) = &entry.mounted else { return Ok(()) };
        let now = self.driver.mounted(&entry.path).map(|mounted| mounted.what);
        if now.as_ref() == Some(before) {
            return Ok(());
        }
        let now = now.unwrap_or_else(|| "nothing".to_owned());
        let found = format!("{now} is mounted there, and it was {before} when the share was attached");
        Err(ShareError::NotAMount { share: entry.source.clone(), at: entry.path.clone(), found })
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use ferry_core::{api::agent::AttachRequest, finding::FindingId, id::ShareId, share_source::ShareSource};
    use ferry_drivers::share::fake::{FakeExport, FakeFileServers, FakeShares};
    use uuid::Uuid;

    use super::*;
    use crate::config::Config;

    /// A host with a share that an earlier agent process attached.
    struct Site {
        _folder: tempfile::TempDir,
        config: Config,
        servers: FakeFileServers,
        source: ShareSource,
        mountpoint: PathBuf,
    }

    impl Site {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let config = Config {
                state_dir: folder.path().join("state"),
                share_root: folder.path().join("srv"),
                ..Config::new("127.0.0.1:1".parse().expect("an address"))
            };
            fs::create_dir(&config.state_dir).expect("made");
            let export = FakeExport::new(folder.path().join("export"));
            fs::create_dir(&export.directory).expect("made");
            let (servers, source): (_, ShareSource) =
                (FakeFileServers::new(), r"\\fs1.ferry.test\vms".parse().expect("a UNC path"));
            servers.export(&source, export.clone());
            let (id, credentials) = (ShareId(Uuid::from_u128(5)), Some(export.credentials()));
            let mountpoint = config.share_root.join(id.to_string());
            let site = Self { _folder: folder, config, servers, source: source.clone(), mountpoint };
            site.load().attach(id, &AttachRequest { source, credentials, at: None }).expect("attached");
            site
        }

        fn load(&self) -> Shares {
            Shares::load(&self.config, Arc::new(FakeShares::new(self.servers.clone()))).expect("a table")
        }

        fn unmount(&self) {
            fs::remove_file(&self.mountpoint).expect("a mount of the fake is a link");
        }

        fn set_up(&self, is_up: bool) {
            self.servers.change(&self.source, |export| export.is_up = is_up);
        }
    }

    fn seen(shares: &Shares) -> AttachedShare {
        shares.poll(false);
        shares.watch().borrow()[0].clone()
    }

    #[test]
    fn a_share_whose_file_server_was_away_at_the_start_is_mounted_later() {
        let site = Site::new();
        // The host boots: its mounts are gone, and the file server is not up yet.
        site.unmount();
        site.set_up(false);
        let shares = site.load();
        shares.attach_again(true);
        assert!(seen(&shares).trouble.is_some());
        site.set_up(true);
        shares.attach_again(false);
        assert_eq!(seen(&shares).trouble, None);
        assert!(site.mountpoint.exists());
    }

    #[test]
    fn a_mount_of_an_earlier_version_is_made_anew_when_its_file_server_answers() {
        let site = Site::new();
        let shares = site.load();
        assert!(!seen(&shares).server_locks, "what is mounted now leaves locks on the host");
        site.unmount();
        let earlier = FakeShares::new(site.servers.clone());
        earlier.mount_with_server_locks(&site.source, &site.mountpoint).expect("mounted");
        site.set_up(false);
        shares.mount_anew();
        assert!(seen(&shares).server_locks && site.mountpoint.exists(), "what could not be mounted again stays");
        site.set_up(true);
        shares.mount_anew();
        let view = seen(&shares);
        assert_eq!((view.server_locks, view.trouble), (false, None));
    }

    #[test]
    fn why_a_mount_does_not_answer_is_told_by_its_file_server() {
        let site = Site::new();
        let shares = site.load();
        let mut entry = shares.copy().remove(0);
        let waited = Duration::from_secs(5);
        let stuck = || ShareError::Stuck { share: site.source.clone(), at: site.mountpoint.clone(), waited };
        // The server itself works: all that is known is that the mount does not respond.
        let finding = shares.finding_for(&entry, stuck());
        assert_eq!(finding.id, FindingId::ShareUnreachable);
        assert!(finding.message.to_string().contains("gave no answer"), "{finding:#?}");
        site.set_up(false);
        let finding = shares.finding_for(&entry, stuck());
        assert_eq!(finding.id, FindingId::ShareUnreachable);
        assert!(
            finding.message.to_string().contains("NT_STATUS_HOST_UNREACHABLE"),
            "the server's own answer: {finding:#?}"
        );
        assert!(
            finding.fix.to_string().ends_with("VMs on it wait until then, and continue by themselves"),
            "{finding:#?}"
        );
        site.set_up(true);
        site.servers.change(&site.source, |export| export.password = "another".to_owned());
        let reason = "Permission denied".to_owned();
        let unreachable = ShareError::Unreachable { share: site.source.clone(), reason };
        assert_eq!(shares.finding_for(&entry, unreachable).id, FindingId::SharePassword);
        let finding = shares.finding_for(&entry, stuck());
        assert_eq!(finding.id, FindingId::SharePassword);
        assert!(
            finding.fix.to_string().starts_with("Make the file server accept the password of the mount again"),
            "{finding:#?}"
        );
        // Ferry has no password for an administrator's own mount that could be outdated.
        entry.mode = AttachMode::Adopted;
        assert!(!shares.finding_for(&entry, stuck()).fix.to_string().contains("attach it with the new password"));
        // A path without a mount can be reported without asking the server.
        let (share, at) = (site.source.clone(), site.mountpoint.clone());
        let unmounted = ShareError::NotAMount { share, at, found: "nothing is mounted there".to_owned() };
        let expected = unmounted.finding();
        assert_eq!(shares.finding_for(&entry, unmounted), expected);
    }
}
