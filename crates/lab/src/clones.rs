//! Linked clones: VMs whose disk is an overlay over another VM's disk, possibly by another name.

use std::fs;

use ferry_core::vm::DiskFormat;

use crate::host::Host;

/// The default size of a ticker's disks.
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
    /// Makes a host's `folder` available under the name `alias`.
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

    /// Removes the other name.
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

/// The path of a clone's own disk on its host.
fn overlay(name: &str) -> String {
    format!("/var/lib/libvirt/{name}.qcow2")
}

/// Defines a clone without starting it: an overlay over `base`, whose existence is not checked, and a machine without
/// other files.
///
/// # Errors
/// The message of libvirt or qemu-img.
pub fn define(host: &Host, name: &str, base: &str, format: DiskFormat) -> anyhow::Result<()> {
    let top = overlay(name);
    let format = format.name();
    // Without opening the base, because a VM that writes it has locked it.
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

/// Ends a clone, if it runs, and removes it with its overlay.
///
/// # Errors
/// libvirt's message.
pub fn remove(host: &Host, name: &str) -> anyhow::Result<()> {
    // It may not be running.
    let _ = host.virsh(&["destroy", name]);
    host.virsh(&["undefine", name])?;
    host.run(&["rm", "-f", &overlay(name)]).map(drop)
}
