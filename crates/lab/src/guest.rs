//! Guests: the ticker's definition.

use std::{fs, path::Path};

use anyhow::Context as _;
use uuid::Uuid;

use crate::{lab::Lab, lab::NETWORK};

/// A ticker to be defined.
#[derive(Clone, Debug)]
pub struct Ticker {
    /// libvirt's name, and that of its heartbeats.
    pub name: String,
    /// libvirt's UUID.
    pub uuid: Uuid,
    /// Memory.
    pub memory_mib: u32,
    /// Pages with a pattern, dirtied.
    pub pattern_mib: u32,
    /// At this rate.
    pub dirty_mib_per_s: u32,
    /// Sectors written, as a bound.
    pub writes_per_s: u32,
    /// Last part of its address, 100 to 199.
    pub address: u8,
}

impl Ticker {
    /// A ticker of 512 MiB.
    pub fn new(name: &str, address: u8) -> Self {
        Self {
            name: name.to_owned(),
            uuid: Uuid::new_v4(),
            memory_mib: 512,
            pattern_mib: 128,
            dirty_mib_per_s: 8,
            writes_per_s: 60,
            address,
        }
    }

    /// Its address.
    pub fn ip(&self) -> String {
        format!("{NETWORK}.{}", self.address)
    }

    /// Makes its files in `backing`, the share's backing folder, and gives its definition for a host that has the share
    /// at `mount`. Kernel and initramfs lie on the share, too: libvirt changes their owner.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn prepare(&self, lab: &Lab, backing: &Path, mount: &Path) -> anyhow::Result<String> {
        let folder = backing.join(&self.name);
        fs::create_dir_all(&folder).context("Could not make a folder on the share")?;
        let file = fs::File::create(folder.join("disk.raw")).context("Could not make a disk")?;
        file.set_len(64 << 20)?;
        fs::copy(&lab.boot.kernel, folder.join("vmlinuz"))?;
        fs::copy(&lab.boot.initramfs, folder.join("initramfs.img"))?;
        Ok(self.definition(&mount.join(&self.name)))
    }

    /// Its definition, with its files in `folder`.
    pub fn definition(&self, folder: &Path) -> String {
        let Self { name, uuid, memory_mib, pattern_mib, dirty_mib_per_s, writes_per_s, .. } = self;
        let folder = folder.display();
        let mac = format!("52:54:00:77:00:{:02x}", self.address);
        format!(
            "<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{folder}/vmlinuz</kernel>
    <initrd>{folder}/initramfs.img</initrd>
    <cmdline>console=ttyS0 quiet panic=1 ticker.name={name} ticker.ip={ip} ticker.memory_mib={pattern_mib} ticker.dirty_mib_per_s={dirty_mib_per_s} ticker.writes_per_s={writes_per_s}</cmdline>
  </os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none' error_policy='stop' discard='unmap' detect_zeroes='unmap'/>
      <source file='{folder}/disk.raw'/><target dev='vda' bus='virtio'/>
    </disk>
    <interface type='bridge'><source bridge='br0'/><mac address='{mac}'/><model type='virtio'/></interface>
    <serial type='file'><source path='/var/log/libvirt/qemu/{name}.serial'/><target port='0'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
",
            ip = self.ip(),
        )
    }
}
