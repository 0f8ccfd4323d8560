//! Defines a clone during a move of the disk below it; the clone knows that disk by another name.

use std::path::Path;

use ferry_core::{migration::Phase, vm::DiskFormat};

use super::{
    aim::Aim,
    judge::{Broken, Case},
    stage::Stage,
};
use crate::{
    clones::{self, Alias},
    host::Host,
    observe::Observer,
};

/// The clone, and its name for the folder of the disk below it.
const CLONE: &str = "chaos-clone";
const FOLDER: &str = "/var/lib/libvirt/chaos-alias";

/// A clone that was defined in time, before the move ended.
#[derive(Clone, Debug)]
pub struct Aliased {
    /// The guest whose disk is the clone's base.
    guest: String,
    /// The index of the clone's host.
    host: usize,
    /// The base's path on that host, without the alias.
    base: String,
    alias: Alias,
    /// A description.
    pub description: String,
}

/// Defines a clone of the guest's disk: on the guest's host or, if the disk is on the share, on the next host. Its base
/// is named through a link or, in every other run, a bind mount. `None`: the copy of the disk had already ended.
///
/// # Errors
/// The lab fails to define it.
pub fn define(stage: &Stage, aim: &Aim, run: u64) -> anyhow::Result<Option<Aliased>> {
    let Some(job) = aim.job else { return Ok(None) };
    let source = &stage.hosts()[aim.source];
    let Ok(path) = stage.disk_path_of(&aim.guest, &source.name) else { return Ok(None) };
    let format = if path.ends_with(".qcow2") { DiskFormat::Qcow2 } else { DiskFormat::Raw };
    let inside = Path::new(&path).strip_prefix(stage.ferry.mount_of(source)?).map(Path::to_owned);
    let (place, base) = match inside {
        Ok(inside) => {
            let place = (aim.source + 1) % stage.hosts().len();
            (place, stage.ferry.mount_of(&stage.hosts()[place])?.join(inside).display().to_string())
        }
        Err(_) => (aim.source, path),
    };
    let host = &stage.hosts()[place];
    let alias = if run.is_multiple_of(2) { Alias::Bind } else { Alias::Link };
    let (folder, name) = base.rsplit_once('/').unwrap_or(("/", &base));
    alias.make(host, folder, FOLDER)?;
    clones::define(host, CLONE, &format!("{FOLDER}/{name}"), format)?;
    let description =
        format!("clone of {}'s disk defined on {} by a name of its own ({alias:?})", aim.guest, host.name);
    let aliased = Aliased { guest: aim.guest.clone(), host: place, base: base.clone(), alias, description };
    let copies = stage.jobs_after(job - 1)?.iter().any(|view| view.id.0 == job && view.phase == Phase::Migrating);
    if copies {
        return Ok(Some(aliased));
    }
    aliased.take_away(host)?;
    Ok(None)
}

impl Aliased {
    /// Checks that the base exists and, unless a guest has it, that the clone starts; then removes both.
    ///
    /// # Errors
    /// They cannot be removed.
    pub fn judge(&self, stage: &Stage, observer: &Observer) -> anyhow::Result<Vec<Case>> {
        let host = &stage.hosts()[self.host];
        let case = |text: String| vec![Case { broken: Broken::Lost, text }];
        let at = observer.last(&self.guest).map(|heard| heard.host).unwrap_or_default();
        let real = stage.file_of(host, &self.base);
        let in_use = stage.disk_of(&self.guest, &at).is_ok_and(|(path, _)| path == real);
        let cases = if !real.is_file() {
            case(format!("{}, which a clone on {} needs, is gone", self.base, host.name))
        } else if in_use {
            // The move failed: its guest has the disk, and locks it.
            Vec::new()
        } else {
            let started = host.virsh(&["start", CLONE]);
            started.err().map_or_else(Vec::new, |error| {
                case(format!("the clone on {} of what was {}'s disk does not start: {error:#}", host.name, self.guest))
            })
        };
        if cases.is_empty() {
            self.take_away(host)?;
            if !in_use {
                std::fs::remove_file(real)?;
            }
        }
        Ok(cases)
    }

    fn take_away(&self, host: &Host) -> anyhow::Result<()> {
        clones::remove(host, CLONE)?;
        self.alias.remove(host, FOLDER)
    }
}
