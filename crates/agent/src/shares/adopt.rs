//! What a mount must provide so that VMs can use it: an adopted one of an administrator, or a newly made one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ferry_core::{
    api::agent::AttachRequest,
    finding::{Action, ByHand, Command, Finding, FindingId, Fix, Message},
    id::ShareId,
    share_source::ShareSource,
};
use ferry_drivers::places::{QemuUser, RootsError, ShareRoot};

use super::Shares;
use crate::{AgentError, qemu_conf};

impl Shares {
    /// Credentials must be given where the file server needs them, and nowhere else.
    pub(super) fn check_login(request: &AttachRequest) -> Result<(), AgentError> {
        let source = &request.source;
        let share = source.to_string();
        let (message, fix) = match (source.wants_login(), &request.credentials, &request.at) {
            (true, None, None) => (Message::ShareWantsLogin { share }, Action::GiveLogin),
            (false, Some(_), _) => (Message::ShareWantsNoLogin { share }, Action::AttachWithoutUser),
            (true, Some(_), _) | (true, None, Some(_)) | (false, None, _) => return Ok(()),
        };
        Err(AgentError::refused(422, Finding::blocks(FindingId::SharePassword, source, message, fix)))
    }

    /// Adopts an administrator's mount.
    pub(super) fn adopt(&self, id: ShareId, source: &ShareSource, path: &Path) -> Result<PathBuf, AgentError> {
        if let Some(other) = self.copy().into_iter().find(|other| other.id != id && other.path == path) {
            return Err(not_adopted(
                path,
                Message::PathIsOtherShare { path: path.display().to_string(), share: other.source.to_string() },
                ByHand::AttachElsewhere,
            ));
        }
        let below_root = path.starts_with(&self.root);
        if !below_root && source.wants_login() {
            return Err(not_adopted(
                path,
                Message::PathNotBelow { path: path.display().to_string(), root: self.root.display().to_string() },
                ByHand::MountBelow { share: source.to_string(), root: self.root.display().to_string() },
            ));
        }
        self.driver.adopt(source, path)?;
        if !below_root {
            self.check_libvirt(path)?;
        }
        Ok(path.to_owned())
    }

    /// libvirt must treat files there as shared: by the type of the file system, or because of qemu.conf.
    fn check_libvirt(&self, path: &Path) -> Result<(), AgentError> {
        let mounted = self.driver.mounted(path);
        if mounted.as_ref().is_some_and(|mounted| mounted.is_known_as_shared()) {
            return Ok(());
        }
        let conf = fs::read_to_string(&self.qemu_conf).unwrap_or_default();
        let Some(line) = qemu_conf::missing_line(&conf, &path.display().to_string()) else { return Ok(()) };
        let kind = mounted.map_or_else(|| "unknown".to_owned(), |mounted| mounted.kind);
        Err(AgentError::refused(
            422,
            Finding::blocks(
                FindingId::HostSharedFilesystems,
                path.display(),
                Message::PathNotKnownShared {
                    path: path.display().to_string(),
                    kind,
                    conf: self.qemu_conf.display().to_string(),
                },
                Command::WriteInConf { line, conf: self.qemu_conf.display().to_string() },
            ),
        ))
    }

    /// QEMU's user must be able to write what the agent creates; this is tested. A server that maps root to nobody does
    /// not let root create files there and change their owner. SMB has no owners.
    pub(super) fn check_ownership(&self, id: ShareId, source: &ShareSource, path: &Path) -> Result<(), AgentError> {
        if matches!(source, ShareSource::Smb(_)) {
            return Ok(());
        }
        let conf = fs::read_to_string(&self.qemu_conf).unwrap_or_default();
        let top = ShareRoot { id, source: source.clone(), mount: path.to_owned() };
        match top.check_writable(QemuUser::of_conf(&conf)) {
            Ok(()) => Ok(()),
            Err(error @ (RootsError::NotWritable { .. } | RootsError::Unreadable { .. })) => Err(AgentError::refused(
                422,
                Finding::blocks(
                    FindingId::PlaceNotWritable,
                    source,
                    Message::PlaceNotForQemu { refused: error.message().into() },
                    how_to_own(source),
                ),
            )),
            Err(
                error @ (RootsError::Outside { .. }
                | RootsError::NotAttached { .. }
                | RootsError::Missing { .. }
                | RootsError::NotADirectory { .. }
                | RootsError::Stuck { .. }),
            ) => Err(error.into()),
        }
    }
}

fn not_adopted(path: &Path, message: Message, fix: ByHand) -> AgentError {
    AgentError::refused(422, Finding::blocks(FindingId::ShareMount, path.display(), message, fix))
}

fn how_to_own(source: &ShareSource) -> Fix {
    match source {
        ShareSource::Nfs(nfs) => {
            Command::ExportForRoot { server: nfs.server().to_owned(), export: nfs.export().to_owned() }.into()
        }
        ShareSource::Smb(_) | ShareSource::Path(_) => ByHand::LetRootGive.into(),
    }
}
