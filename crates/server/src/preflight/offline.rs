//! Checks of an offline move, and the choice of the files that move.

use std::{collections::BTreeMap, sync::Arc};

use ferry_core::{
    api::{
        agent::{Check, CheckOffline, OfflineFile},
        server::Candidate,
    },
    files::{
        DiskMove, FileMove, OtherUser,
        plan::{Planned, Requested, plan_offline},
        shared_with,
    },
    finding::{Action, Finding, FindingId, Message, Severity, any_blocks},
    id::{JobId, VmId},
    job::MoveKind,
    network::Route,
    preflight::{Assessment, LiveFacts, ShareIdentity, offline, reaches, route_between, shares_of},
    units::ByteCount,
    vm::{DiskFormat, FileRole, VmFacts, VmState},
};
use futures_util::future::join_all;

use super::{Preflight, candidate, findings_of, gone, uses};
use crate::{
    inventory::{Host, Inventory},
    store::StoreError,
};

/// The files that move.
#[derive(Clone, Copy, Debug)]
pub(crate) enum MovedFiles<'a> {
    /// What the request asks for: the files are chosen by what the destination reaches now.
    Requested(&'a Requested),
    /// The files that were chosen earlier.
    Decided(&'a [FileMove]),
}

/// The result of a check.
pub(crate) struct Checked {
    /// The VM as the source reports it now; `None`: it is no longer there.
    pub(crate) vm: Option<VmFacts>,
    /// The files that move, with their sizes.
    pub(crate) sized: Sized,
    /// Everything that blocks the move or that its user should know.
    pub(crate) findings: Vec<Finding>,
    /// Where its bytes travel; `None`: the hosts have no migration networks, or a finding says why not.
    pub(crate) route: Option<Route>,
}

/// Files that move, as the source has them now.
#[derive(Default)]
pub(crate) struct Sized {
    /// The existing files.
    pub(crate) files: Vec<OfflineFile>,
    /// UEFI variables that do not exist yet: libvirt creates them when the VM is started for the first time.
    pub(crate) absent: Vec<FileMove>,
}

impl Checked {
    /// Every file that moves.
    pub(crate) fn moves(&self) -> Vec<FileMove> {
        let there = self.sized.files.iter().map(|file| &file.file);
        there.chain(&self.sized.absent).cloned().collect()
    }

    pub(crate) fn candidate(self, destination: &Host) -> Candidate {
        let files = &self.sized.files;
        let why = if files.is_empty() {
            Message::AllOnShares
        } else {
            let bytes = ByteCount(files.iter().map(|file| file.allocated.0).sum());
            Message::MovesShutOff { disks: files.iter().map(|file| &file.file.device).collect(), bytes }
        };
        let assessed = Assessment::new(Some(MoveKind::Offline), why, self.findings);
        Candidate { route: self.route, ..candidate(destination, assessed) }
    }
}

/// Checks an offline move, by asking both hosts now.
pub(crate) async fn check(
    preflight: &Preflight,
    vm: VmId,
    source: &Arc<Host>,
    destination: &Arc<Host>,
    what: MovedFiles<'_>,
    moving: Option<JobId>,
) -> Result<Checked, StoreError> {
    let inventory = &preflight.inventory;
    let (at_source, at_destination, shares) =
        tokio::join!(inventory.refresh(source), inventory.refresh(destination), preflight.shares());
    let shares = shares?;
    let Some(facts) = at_source.vm(vm).cloned() else {
        let findings = vec![gone(vm, source, &at_source)];
        return Ok(Checked { vm: None, sized: Sized::default(), findings, route: None });
    };
    // The settings of one moment, for the findings and the route alike.
    let (here, there) = (at_source.side(source), at_destination.side(destination));
    let Planned { moves: mut files, mut findings } = match what {
        MovedFiles::Requested(requested) => plan_offline(&facts, requested, |place| reaches(&there, place)),
        MovedFiles::Decided(files) => {
            let planned = plan_offline(&facts, &Requested::default(), |_| true);
            Planned { moves: files.to_vec(), findings: planned.findings }
        }
    };
    let mut migrated: Vec<DiskMove> = files.iter().map(as_disk).collect();
    if any_blocks(&findings) {
        // Each file is reported only once.
        let rest = facts.files.iter().map(|file| DiskMove {
            device: file.device.clone(),
            from: file.place.clone(),
            real: file.real.clone(),
            to: file.place.clone(),
            format: DiskFormat::Raw,
        });
        migrated.extend(rest);
    }
    let decided = matches!(what, MovedFiles::Decided(_));
    findings.extend(used_by_others(inventory, &facts, &mut files, destination.name(), decided));
    let identities =
        shares_of(&facts).into_iter().filter(|share| uses(&at_source, *share) && uses(&at_destination, *share));
    let prove = |share| async move { (share, preflight.identity.prove(share, source, destination).await) };
    let same_host = source.record.id == destination.record.id;
    let identity: BTreeMap<_, ShareIdentity> =
        if same_host { BTreeMap::new() } else { join_all(identities.map(prove)).await.into_iter().collect() };
    findings.extend(offline(&LiveFacts {
        vm: &facts,
        busy: moving,
        source: here,
        destination: there,
        shares: &shares,
        share_identity: &identity,
        migrated_disks: &migrated,
        // The VM needs memory only when it is started.
        promised: &[],
        overcommit: false,
    }));
    let mut sized = Sized::default();
    if !any_blocks(&findings) {
        match sizes(source, vm, &files).await {
            Ok(found) => {
                let request = CheckOffline { vm, files: found.files.clone(), absent: found.absent.clone() };
                let request = Check::OfflineDestination(request);
                if let Err(error) = destination.agent.check(&request).await {
                    findings.extend(findings_of(destination, &error));
                }
                sized = found;
            }
            Err(more) => findings.extend(more),
        }
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    let route = route_between(&here, &there);
    Ok(Checked { vm: Some(facts), sized, findings, route })
}

/// A file in the form of a running VM's disk.
pub(crate) fn as_disk(file: &FileMove) -> DiskMove {
    DiskMove {
        device: file.device.clone(),
        from: file.from.clone(),
        real: file.real.clone(),
        to: file.to.clone(),
        format: DiskFormat::Raw,
    }
}

/// The findings about files that move and that other VMs also name. Removable media and boot files may be used by
/// several VMs: they do not move anyway.
fn used_by_others(
    inventory: &Inventory,
    vm: &VmFacts,
    files: &mut [FileMove],
    destination: &str,
    decided: bool,
) -> Vec<Finding> {
    let placed = inventory.placed();
    let needs = |other: &VmFacts, of: &FileMove| other.files.iter().any(|file| of.is_needed_by(file));
    let mut findings = Vec::new();
    for file in files.iter_mut().filter(|file| matches!(file.role, FileRole::Disk | FileRole::Nvram)) {
        for (host, seen) in &placed {
            let others = seen.vms().iter().filter(|other| other.id != vm.id && needs(other, file));
            for other in others.collect::<Vec<_>>() {
                let is_shut_off = other.state == VmState::ShutOff;
                let other = OtherUser { vm: &other.name, host: host.name(), is_shut_off };
                let found = shared_with(&vm.name, file, other, destination);
                if found.severity == Severity::Warns && decided && !file.kept {
                    // The plan removes the old file.
                    findings.push(Finding::blocks(
                        FindingId::DiskShareable,
                        &file.device,
                        Message::DiskSharedSince {
                            vm: other.vm.to_owned(),
                            host: other.host.to_owned(),
                            device: file.device.clone(),
                        },
                        Action::NewOfflineMove { vm: vm.name.clone(), host: destination.to_owned() },
                    ));
                    continue;
                }
                file.kept |= found.severity == Severity::Warns;
                findings.push(found);
            }
        }
    }
    findings
}

/// The files that move, with the sizes that the source reports now.
pub(crate) async fn sizes(source: &Host, vm: VmId, files: &[FileMove]) -> Result<Sized, Vec<Finding>> {
    let mut sized = Sized::default();
    if files.is_empty() {
        return Ok(sized);
    }
    let devices: Vec<&str> = files.iter().map(|file| file.device.as_str()).collect();
    let sizes = source.agent.files(vm, &devices).await.map_err(|error| findings_of(source, &error))?;
    for file in files {
        match sizes.iter().find(|size| size.device == file.device) {
            Some(size) => {
                let (length, allocated) = (size.length, size.allocated);
                sized.files.push(OfflineFile { file: file.clone(), length, allocated });
            }
            None if file.role == FileRole::Nvram => sized.absent.push(file.clone()),
            None => {
                return Err(vec![Finding::blocks(
                    FindingId::DiskUnknown,
                    &file.device,
                    Message::FileSizeUnknown { host: source.name().to_owned(), device: file.device.clone() },
                    Action::ShowVm,
                )]);
            }
        }
    }
    Ok(sized)
}
