//! Commands to QEMU's own monitor, past libvirt: whether an arrived VM has its disks, and whether a VM runs that
//! libvirt believes to be stopped by a disk error.
//!
//! The QEMU of a VM that arrives paused has not yet activated its disks. libvirt (since 11.1,
//! `qemuMigrationBlockNodesReactivate`) makes QEMU activate them during Finish, by `blockdev-set-active` (QEMU since
//! 10.0), and only logs a warning if that fails. With an older libvirt, or after such a failure, Ferry sends the
//! command itself: QEMU tries, reports the error, and the VM stays paused.

use std::path::PathBuf;

use ferry_core::vm::VmFile;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{faults::asked, ffi::Domain};
use crate::hypervisor::{DiskRefused, HypervisorError};

/// The first QEMU version that supports these commands, in libvirt's numbering.
pub(super) const SINCE: u64 = 10_000_000;

/// QEMU's answer; libvirt adds an id to it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Answer<T> {
    Return {
        #[serde(rename = "return")]
        value: T,
    },
    Error {
        error: Refusal,
    },
}

#[derive(Debug, Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

/// An image, or a file below one, in the output of `query-named-block-nodes`.
#[derive(Debug, Deserialize)]
struct Node {
    #[serde(rename = "node-name")]
    name: String,
    /// The file's name.
    file: String,
    /// Since 10.0.
    #[serde(default)]
    active: Option<bool>,
}

/// Makes QEMU activate the disks that are inactive; returns those that it cannot activate.
pub(super) fn activate(
    domain: &Domain,
    files: &[VmFile<PathBuf>],
    what: &str,
) -> Result<Vec<DiskRefused>, HypervisorError> {
    activate_by(files, |command| ask(domain, &command, what))
}

/// QEMU's status of a VM that, according to libvirt, was stopped by a disk error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// It runs.
    Runs,
    /// [`stop`] stopped it, and its caller did not resume the VM.
    LeftStopped,
    /// The disk error stopped it.
    Stands,
}

/// Queries whether the VM's vCPUs run.
pub(super) fn status(domain: &Domain, what: &str) -> Result<Status, HypervisorError> {
    match read::<Value>(ask(domain, &json!({ "execute": "query-status" }), what)?)? {
        Answer::Return { value } => Ok(read_status(&value)),
        Answer::Error { error } => Err(refused(what, error)),
    }
}

fn read_status(value: &Value) -> Status {
    match value["status"].as_str() {
        Some("running") => Status::Runs,
        // After a disk error QEMU's status is `io-error`, and when libvirt stops a VM, libvirt gives another reason.
        Some("paused") => Status::LeftStopped,
        _ => Status::Stands,
    }
}

/// Stops the VM's vCPUs.
pub(super) fn stop(domain: &Domain, what: &str) -> Result<(), HypervisorError> {
    match read::<Value>(ask(domain, &json!({ "execute": "stop" }), what)?)? {
        Answer::Return { .. } => Ok(()),
        Answer::Error { error } => Err(refused(what, error)),
    }
}

fn ask(domain: &Domain, command: &Value, what: &str) -> Result<Value, HypervisorError> {
    let answer = domain.monitor(&command.to_string()).map_err(asked(what))?;
    serde_json::from_str(&answer)
        .map_err(|error| HypervisorError::Failed { what: what.to_owned(), reason: error.to_string() })
}

fn refused(what: &str, error: Refusal) -> HypervisorError {
    HypervisorError::Failed { what: what.to_owned(), reason: error.desc }
}

fn activate_by(
    files: &[VmFile<PathBuf>],
    mut ask: impl FnMut(Value) -> Result<Value, HypervisorError>,
) -> Result<Vec<DiskRefused>, HypervisorError> {
    match read::<Value>(ask(set_active(None))?)? {
        Answer::Return { .. } => return Ok(Vec::new()),
        Answer::Error { error } if error.class == "CommandNotFound" => return Ok(Vec::new()),
        // It stopped at the first failure, without naming the disk.
        Answer::Error { .. } => {}
    }
    let nodes: Vec<Node> = match read(ask(json!({ "execute": "query-named-block-nodes" }))?)? {
        Answer::Return { value } => value,
        Answer::Error { error } => return Err(unreadable(error.desc)),
    };
    let mut refused: Vec<DiskRefused> = Vec::new();
    for node in nodes.iter().filter(|node| node.active == Some(false)) {
        let path = PathBuf::from(&node.file);
        // An image and the file that contains it are two nodes.
        if refused.iter().any(|other| other.path == path) {
            continue;
        }
        if let Answer::Error { error: Refusal { desc: reason, .. } } =
            read::<Value>(ask(set_active(Some(&node.name)))?)?
        {
            let of_disk = files.iter().find(|file| file.place == path || file.below.contains(&path));
            let device = of_disk.map(|file| file.device.clone()).unwrap_or_default();
            refused.push(DiskRefused { device, path, reason });
        }
    }
    Ok(refused)
}

/// The command that activates one node, or all nodes.
fn set_active(node: Option<&str>) -> Value {
    let arguments = match node {
        Some(node) => json!({ "active": true, "node-name": node }),
        None => json!({ "active": true }),
    };
    json!({ "execute": "blockdev-set-active", "arguments": arguments })
}

fn read<T: for<'a> Deserialize<'a>>(answer: Value) -> Result<Answer<T>, HypervisorError> {
    serde_json::from_value(answer).map_err(|error| unreadable(error.to_string()))
}

fn unreadable(reason: String) -> HypervisorError {
    HypervisorError::Failed { what: "QEMU was asked, and its answer says nothing".to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::fake::FakeGuest;

    fn error(class: &str, desc: &str) -> Value {
        json!({ "id": "libvirt-7", "error": { "class": class, "desc": desc } })
    }

    #[test]
    fn a_disk_that_qemu_does_not_get_is_named_with_its_words() {
        let files = FakeGuest::new("db", &["/srv/a.raw".into(), "/srv/b.qcow2".into()]).facts.files;
        let node = |name: &str, file: &str, active: bool| json!({ "node-name": name, "file": file, "active": active, "ro": false });
        let nodes = [
            node("a-storage", "/srv/a.raw", false),
            node("b-storage", "/srv/b.qcow2", false),
            node("b-format", "/srv/b.qcow2", false),
            node("c-storage", "/srv/c.raw", true),
        ];
        let mut asked = Vec::new();
        let refused = activate_by(&files, |command| {
            let node = command["arguments"]["node-name"].as_str().map(str::to_owned);
            asked.push(node.clone().unwrap_or_else(|| command["execute"].as_str().expect("a command").to_owned()));
            Ok(match (command["execute"].as_str(), node.as_deref()) {
                (Some("query-named-block-nodes"), _) => json!({ "return": nodes }),
                (_, Some("a-storage")) => json!({ "return": {} }),
                _ => error("GenericError", "Failed to get \"write\" lock"),
            })
        });
        let reason = "Failed to get \"write\" lock".to_owned();
        let expected = DiskRefused { device: "vdb".into(), path: "/srv/b.qcow2".into(), reason };
        assert_eq!(refused.expect("told"), [expected]);
        assert_eq!(asked, ["blockdev-set-active", "query-named-block-nodes", "a-storage", "b-storage"]);
    }

    #[test]
    fn a_vm_that_was_left_stopped_is_told_from_one_that_an_error_stopped() {
        for (status, running, expected) in [
            ("running", true, Status::Runs),
            ("paused", false, Status::LeftStopped),
            ("io-error", false, Status::Stands),
            ("finish-migrate", false, Status::Stands),
            ("guest-panicked", false, Status::Stands),
        ] {
            assert_eq!(read_status(&json!({ "status": status, "running": running })), expected, "{status}");
        }
        assert_eq!(read_status(&json!({})), Status::Stands);
    }

    #[test]
    fn a_qemu_that_gives_its_disks_or_cannot_tell_is_asked_once() {
        for answer in [json!({ "return": {}, "id": "libvirt-7" }), error("CommandNotFound", "not found")] {
            let mut asked = 0;
            let refused = activate_by(&[], |_| {
                asked += 1;
                Ok(answer.clone())
            });
            assert_eq!((refused.expect("told"), asked), (Vec::new(), 1));
        }
        assert!(activate_by(&[], |_| Ok(json!({ "event": "STOP" }))).is_err(), "that is no answer");
    }
}
