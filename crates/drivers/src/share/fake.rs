//! A fake file server: shares are directories, and every host that is given the same [`FakeServer`] sees them.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use ferry_core::{api::agent::ShareCredentials, id::ShareId, location::UncPath};

use super::{Attach, ShareDriver, ShareError};

/// What goes wrong with a fake share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It speaks SMB 2 only.
    OldDialect,
    /// It does not answer.
    Away,
}

/// File servers and their shares.
#[derive(Clone, Default)]
pub struct FakeServer {
    shares: Arc<Mutex<HashMap<String, Share>>>,
}

#[derive(Clone)]
struct Share {
    directory: PathBuf,
    password: String,
    fault: Option<Fault>,
}

impl FakeServer {
    /// Offers `directory` as `unc`, with a password.
    pub fn offer(&self, unc: &UncPath, directory: &Path, password: &str) {
        let share = Share { directory: directory.to_owned(), password: password.to_owned(), fault: None };
        self.shares.lock().expect("no panic").insert(unc.to_string(), share);
    }

    /// Makes something go wrong with a share, or right again.
    pub fn set_fault(&self, unc: &UncPath, fault: Option<Fault>) {
        if let Some(share) = self.shares.lock().expect("no panic").get_mut(&unc.to_string()) {
            share.fault = fault;
        }
    }

    fn find(&self, unc: &UncPath) -> Option<Share> {
        self.shares.lock().expect("no panic").get(&unc.to_string()).cloned()
    }
}

/// The fake SMB client of one host.
pub struct FakeShares {
    server: FakeServer,
    attached: Mutex<HashMap<ShareId, PathBuf>>,
}

impl FakeShares {
    /// A host that reaches `server`.
    pub fn new(server: FakeServer) -> Self {
        Self { server, attached: Mutex::default() }
    }

    fn reach(&self, unc: &UncPath) -> Result<Share, ShareError> {
        let share = self.server.find(unc);
        match share {
            Some(share) if share.fault == Some(Fault::OldDialect) => Err(ShareError::Dialect { unc: unc.clone() }),
            Some(share) if share.fault.is_none() => Ok(share),
            Some(_) | None => Err(ShareError::Unreachable { unc: unc.clone(), reason: "no answer".to_owned() }),
        }
    }
}

impl ShareDriver for FakeShares {
    fn probe(&self, unc: &UncPath, credentials: &ShareCredentials) -> Result<(), ShareError> {
        let share = self.reach(unc)?;
        if share.password == credentials.password {
            Ok(())
        } else {
            Err(ShareError::Password { unc: unc.clone(), user: credentials.user.clone() })
        }
    }

    fn attach(&self, attach: &Attach<'_>) -> Result<PathBuf, ShareError> {
        self.probe(attach.unc, attach.credentials).map_err(|error| ShareError::Mount {
            unc: attach.unc.clone(),
            path: PathBuf::new(),
            reason: error.to_string(),
        })?;
        let directory = self.reach(attach.unc)?.directory;
        self.attached.lock().expect("no panic").insert(attach.id, directory.clone());
        Ok(directory)
    }

    fn adopt(&self, unc: &UncPath, path: &Path) -> Result<PathBuf, ShareError> {
        if path.is_dir() {
            return Ok(path.to_owned());
        }
        Err(ShareError::Mount { unc: unc.clone(), path: path.to_owned(), reason: "nothing is mounted there".into() })
    }

    fn detach(&self, id: ShareId, _unc: &UncPath) -> Result<(), ShareError> {
        self.attached.lock().expect("no panic").remove(&id);
        Ok(())
    }

    fn trouble(&self, path: &Path) -> Option<String> {
        (!path.is_dir()).then(|| format!("{} is not there", path.display()))
    }
}
