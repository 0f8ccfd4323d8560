//! Linked clones: VMs whose disk lies on another VM's, which they may know by another name.

use std::fs;

use ferry_core::vm::DiskFormat;

use crate::host::Host;

/// As large as the disks of a ticker are by default.
const SIZE: &str = "64M";

/// How a folder gets another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alias {
    /// A symbolic link.
    Link,
    /// A bind mount.
    Bind,
}

impl Alias {
    /// Gives a host's `folder` the other name `alias`.
    ///
    /// # Errors
    /// What could not be done.
    pub fn make(self, host: &Host, folder: &str, alias: &str) -> anyhow::Result<()> {
        match self {
            Self::Link => host.run(&["ln", "-s", folder, alias]).map(drop),
            Self::Bind => {
                host.run(&["mkdir", alias])?;
                host.run(&["mount", "--bind", folder, alias]).map(drop)
            }
        }
    }

    /// Takes the other name away.
    ///
    /// # Errors
    /// What could not be done.
    pub fn remove(self, host: &Host, alias: &str) -> anyhow::Result<()> {
        match self {
            Self::Link => host.run(&["rm", alias]).map(drop),
            Self::Bind => {
                host.run(&["umount", alias])?;
                host.run(&["rmdir", alias]).map(drop)
            }
        }
    }
}

/// Where a clone's own disk is, on its host.
fn overlay(name: &str) -> String {
    format!("/var/lib/libvirt/{name}.qcow2")
}

/// Defines a clone that was never started: an overlay over `base`, which nobody asks whether it is there, and a machine
/// that needs nothing else.
///
/// # Errors
/// What libvirt or qemu-img said.
pub fn define(host: &Host, name: &str, base: &str, format: DiskFormat) -> anyhow::Result<()> {
    let top = overlay(name);
    let format = format.name();
    // Unasked: a VM that writes it has it locked.
    host.run(&["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", format, "-b", base, &top, SIZE])?;
    let definition = format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
          <os><type arch='x86_64' machine='q35'>hvm</type></os>
          <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{top}'/>
            <target dev='vda' bus='virtio'/></disk></devices></domain>"
    );
    let path = format!("/run/{name}.xml");
    fs::write(host.path(&path), definition)?;
    host.virsh(&["define", &path]).map(drop)
}

/// Ends a clone, if it runs, and takes it away with its overlay.
///
/// # Errors
/// What libvirt said.
pub fn remove(host: &Host, name: &str) -> anyhow::Result<()> {
    // One that does not run needs no end.
    let _ = host.virsh(&["destroy", name]);
    host.virsh(&["undefine", name])?;
    host.run(&["rm", "-f", &overlay(name)]).map(drop)
}
