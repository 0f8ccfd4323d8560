//! What a mount must provide so that VMs can use it: an adopted one of an administrator, or a newly made one.

use std::{
    fs,
    path::{Path, PathBuf},
};

use ferry_core::{
    api::agent::AttachRequest,
    finding::{Finding, FindingId},
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
        let (message, fix) = match (source.wants_login(), &request.credentials, &request.at) {
            (true, None, None) => (
                format!("No user and password were given for {source}"),
                "Give them with `--user` and `--password-file`, or adopt a mount of your own with `--at PATH`",
            ),
            (false, Some(_), _) => (
                format!("{source} takes no user and password: the server, or who mounted it, decides by the host"),
                "Attach it without `--user`",
            ),
            (true, Some(_), _) | (true, None, Some(_)) | (false, None, _) => return Ok(()),
        };
        Err(AgentError::refused(422, Finding::blocks(FindingId::SharePassword, source, message, fix)))
    }

    /// Adopts an administrator's mount.
    pub(super) fn adopt(&self, id: ShareId, source: &ShareSource, path: &Path) -> Result<PathBuf, AgentError> {
        if let Some(other) = self.copy().into_iter().find(|other| other.id != id && other.path == path) {
            return Err(not_adopted(
                path,
                format!("{} is attached on this host as share {}", path.display(), other.source),
                "Attach the share at another path, or use the one that is there",
            ));
        }
        let below_root = path.starts_with(&self.root);
        if !below_root && source.wants_login() {
            return Err(not_adopted(
                path,
                format!("{} does not lie below {}, which libvirt knows as shared", path.display(), self.root.display()),
                format!("Mount {source} below {} instead", self.root.display()),
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
                format!(
                    "libvirt does not know that {} is shared: it lies on a file system of type {kind}, and {} does not list it",
                    path.display(),
                    self.qemu_conf.display()
                ),
                format!(
                    "Write `{line}` into {} on the host, restart libvirtd (or virtqemud), then attach the share again",
                    self.qemu_conf.display()
                ),
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
                    format!("{error}; files that Ferry makes there cannot be given to QEMU"),
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

fn not_adopted(path: &Path, message: String, fix: impl Into<String>) -> AgentError {
    AgentError::refused(422, Finding::blocks(FindingId::ShareMount, path.display(), message, fix))
}

fn how_to_own(source: &ShareSource) -> String {
    match source {
        ShareSource::Nfs(nfs) => format!(
            "Export it read-write, and with root as root: on {}, write `{} HOST(rw,sync,no_subtree_check,no_root_squash)` into \
             /etc/exports, with the name or network of this host for HOST, run `exportfs -ra`, and attach the share again; QEMU's \
             user must be able to pass the exported directory (mode 0711 or more)",
            nfs.server(),
            nfs.export()
        ),
        ShareSource::Smb(_) | ShareSource::Path(_) => {
            "Let root of this host make files there and give them to QEMU's user, and QEMU's user pass the directory (mode 0711 \
             or more); then attach the share again"
                .to_owned()
        }
    }
}
