//! Whether Ferry vouches that the files of a VM are shared, where this host's libvirt cannot be told so.

use std::path::{Path, PathBuf};

use ferry_core::{
    api::agent::{PrepareSource, Role},
    finding::{ByHand, Finding, FindingId, Message},
    release::{SHARED_FILESYSTEMS_SINCE, Trust, distrusted, knows_shared_filesystems, trusts},
    share::FileSystem,
    vm::{VmFacts, VmFile},
};
use ferry_drivers::{hypervisor::HostInfo, share::file_system_of};

use crate::{AgentError, host::libvirt_version};

/// Whether the move needs Ferry to vouch. Blocks.
///
/// # Errors
/// `host.release` for a file that Ferry may not vouch for, or if the files were not proved to be shared.
pub(super) fn vouched(
    hypervisor: &dyn HostInfo,
    facts: &VmFacts<PathBuf>,
    request: &PrepareSource,
) -> Result<bool, AgentError> {
    let version = libvirt_version(&hypervisor.host()?);
    if knows_shared_filesystems(&version) {
        return Ok(false);
    }
    let stays = facts.files.iter().filter(|file| !request.disks.iter().any(|disk| disk.device == file.device));
    // Resolve every link: a file's name says nothing about where it is.
    let lies_on = |path: &Path| file_system_of(&path.canonicalize().unwrap_or_else(|_| path.to_owned()));
    let files: Vec<_> = stays.map(|file| (file, lies_on(&file.place))).collect();
    needed(&version, &facts.name, &files, request.shares_proven).map_err(|finding| AgentError::refused(409, *finding))
}

fn needed(
    libvirt_version: &str,
    vm_name: &str,
    files: &[(&VmFile<PathBuf>, Option<FileSystem>)],
    shares_proven: bool,
) -> Result<bool, Box<Finding>> {
    let files: Vec<_> = files.iter().map(|(file, on)| (*file, on.as_ref())).collect();
    let found = trusts(libvirt_version, Role::Source, &files);
    for (trust, (file, on)) in found.iter().zip(&files) {
        if let Some(finding) = distrusted(*trust, ("this host", libvirt_version), (vm_name, file), *on) {
            return Err(Box::new(finding));
        }
    }
    let needed = found.contains(&Trust::ToProve);
    if needed && !shares_proven {
        return Err(Box::new(Finding::blocks(
            FindingId::HostRelease,
            vm_name,
            Message::SharesNotProven { libvirt: libvirt_version.to_owned(), vm: vm_name.to_owned() },
            ByHand::UpgradeServerOrLibvirt { since: SHARED_FILESYSTEMS_SINCE.to_string() },
        )));
    }
    Ok(needed)
}

#[cfg(test)]
mod tests {
    use ferry_drivers::hypervisor::fake::FakeGuest;

    use super::*;

    #[test]
    fn ferry_gives_its_word_only_after_the_proof_and_for_disks_past_the_page_cache() {
        let guest = FakeGuest::new("web01", &["/srv/ferry/a.raw".into()]).facts;
        let disk = &guest.files[0];
        let cached = VmFile { bypasses_cache: false, ..disk.clone() };
        let cifs = Some(FileSystem { kind: "cifs".into(), fixed_owner: true });
        let ext4 = Some(FileSystem { kind: "ext4".into(), fixed_owner: false });
        for (row, libvirt, file, on, proven, expected) in [
            ("Debian 12", "9.0.0", disk, &cifs, true, Some(true)),
            ("Debian 12, nothing shown", "9.0.0", disk, &cifs, false, None),
            ("Debian 12, cached", "9.0.0", &cached, &cifs, true, None),
            ("Debian 12, owners", "9.0.0", disk, &ext4, true, None),
            ("Debian 13, nothing shown", "11.3.0", &cached, &ext4, false, Some(false)),
        ] {
            let found = needed(libvirt, "web01", &[(file, on.clone())], proven);
            assert_eq!(found.as_ref().ok().copied(), expected, "{row}");
        }
        assert_eq!(needed("9.0.0", "web01", &[], false), Ok(false), "all disks move along");
        let refused = needed("9.0.0", "web01", &[(disk, cifs)], false).expect_err("nothing was shown");
        assert_eq!(refused.id, FindingId::HostRelease);
    }
}
