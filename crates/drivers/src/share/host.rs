//! Shares of any kind on this host.

use std::path::{Path, PathBuf};

use ferry_core::{api::agent::ShareCredentials, place::Space, share_source::ShareSource, unc::UncPath};

use super::{
    Mounted, ShareDriver, ShareError, ShareFacts,
    calls::{all_mounts, mount_at},
    mounts, nfs, path,
    smb::SmbShares,
};

/// Shares of this host.
#[derive(Debug)]
pub struct HostShares {
    smb: SmbShares,
}

impl HostShares {
    /// Keeps credentials and helper mounts of SMB shares in `work_dir`, which only root can enter. After a restart,
    /// pass the same directory to find the mounts again.
    pub fn new(work_dir: impl Into<PathBuf>) -> Self {
        Self { smb: SmbShares::new(work_dir) }
    }
}

impl ShareDriver for HostShares {
    fn probe(&self, share: &ShareSource, credentials: Option<&ShareCredentials>) -> Result<ShareFacts, ShareError> {
        match share {
            ShareSource::Smb(unc) => self.smb.probe(unc, login(unc, credentials)?),
            ShareSource::Nfs(nfs) => nfs::probe(nfs),
            ShareSource::Path(_) => Ok(ShareFacts { dialect: None, space: None }),
        }
    }

    fn attach(
        &self,
        share: &ShareSource,
        credentials: Option<&ShareCredentials>,
        mountpoint: &Path,
    ) -> Result<(), ShareError> {
        match share {
            ShareSource::Smb(unc) => self.smb.attach(unc, login(unc, credentials)?, mountpoint),
            ShareSource::Nfs(nfs) => nfs::attach(nfs, mountpoint),
            ShareSource::Path(_) => {
                let reason = "a path is mounted by its administrator and adopted by Ferry".to_owned();
                Err(ShareError::Mount { share: share.clone(), at: mountpoint.to_owned(), reason })
            }
        }
    }

    fn adopt(&self, share: &ShareSource, path: &Path) -> Result<(), ShareError> {
        match share {
            ShareSource::Smb(unc) => self.smb.check(unc, path),
            ShareSource::Nfs(nfs) => nfs::check(nfs, path),
            ShareSource::Path(shared) => path::adopt(shared, path),
        }
    }

    fn mounted(&self, path: &Path) -> Option<Mounted> {
        let all = all_mounts().ok()?;
        let mount = mounts::holding(&all, path)?;
        let what = format!("{} {} {}", mount.kind, mount.source, mount.root.display());
        Some(Mounted { kind: mount.kind.clone(), what })
    }

    fn waits(&self, path: &Path) -> bool {
        mount_at(path).ok().flatten().is_none_or(|mount| mounts::waits(&mount))
    }

    fn locks_stay(&self, path: &Path) -> bool {
        mount_at(path).ok().flatten().is_none_or(|mount| mounts::locks_stay(&mount))
    }

    fn detach(&self, share: &ShareSource, mountpoint: &Path) -> Result<(), ShareError> {
        match share {
            ShareSource::Smb(unc) => self.smb.detach(unc, mountpoint),
            ShareSource::Nfs(nfs) => nfs::detach(nfs, mountpoint),
            // Ferry has not mounted it.
            ShareSource::Path(_) => Ok(()),
        }
    }

    fn check(&self, share: &ShareSource, path: &Path) -> Result<(), ShareError> {
        match share {
            ShareSource::Smb(unc) => self.smb.check(unc, path),
            ShareSource::Nfs(nfs) => nfs::check(nfs, path),
            ShareSource::Path(shared) => path::check(shared, path),
        }
    }

    fn space(&self, share: &ShareSource, credentials: Option<&ShareCredentials>, path: &Path) -> Option<Space> {
        match share {
            ShareSource::Smb(unc) => self.smb.space(unc, credentials, path),
            ShareSource::Nfs(nfs) => nfs::space(nfs, path),
            ShareSource::Path(shared) => path::space(shared, path),
        }
    }
}

fn login<'a>(unc: &UncPath, credentials: Option<&'a ShareCredentials>) -> Result<&'a ShareCredentials, ShareError> {
    credentials.ok_or_else(|| ShareError::Password {
        share: unc.into(),
        user: String::new(),
        reason: "no user and password were given".to_owned(),
    })
}
