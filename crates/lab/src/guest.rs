//! Guests: the ticker's definition.

use std::{
    fs,
    net::UdpSocket,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use ferry_core::vm::DiskFormat;
use uuid::Uuid;

use crate::{
    debian,
    fabric::NETWORK,
    ferry::in_fabric,
    host::Host,
    images::{Disk, Place},
    lab::Lab,
    local,
};

/// Where a guest listens, and where it sends what it tells.
const PORT: u16 = 7007;
/// What an emulated guest's kernel need not do: it boots in 77 s on a stock host then, and in 97 s with it.
const BOOT_OPTIONS: &str = "nokaslr no_timer_check mitigations=off";
/// Debian's firmware, and what its variables are at first.
const UEFI_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const UEFI_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

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
    /// Sectors written to each disk, as a bound.
    pub writes_per_s: u32,
    /// Beats, dirties and verifies so many times slower than it would: at least 1.
    pub slower: u32,
    /// What its kernel is told besides.
    pub kernel: &'static str,
    /// From one sector that is written to the next: 4 keeps them together, more scatters the 128 over the disks.
    pub stride_kib: u32,
    /// Last part of its address, 100 to 199.
    pub address: u8,
    /// vda, vdb, … : it writes and verifies each.
    pub disks: Vec<Disk>,
    /// It boots Debian from its first disk, and writes and verifies a file there instead of the disks themselves.
    pub debian: bool,
    /// It has a panic device, and its process stays when it crashes.
    pub stays_after_crash: bool,
    /// It boots by UEFI, whose variables are in a file of its host.
    pub uefi: bool,
}

impl Ticker {
    /// A ticker of 512 MiB with a raw disk on the share.
    pub fn new(name: &str, address: u8) -> Self {
        Self {
            name: name.to_owned(),
            uuid: Uuid::new_v4(),
            memory_mib: 512,
            pattern_mib: 128,
            dirty_mib_per_s: 8,
            writes_per_s: 60,
            slower: 1,
            kernel: "",
            stride_kib: 4,
            address,
            disks: vec![Disk::new(Place::Share, DiskFormat::Raw)],
            debian: false,
            stays_after_crash: false,
            uefi: false,
        }
    }

    /// A Debian of 512 MiB with its disk, 4 GiB, on the share.
    pub fn debian(name: &str, address: u8) -> Self {
        Self { pattern_mib: 32, dirty_mib_per_s: 2, debian: true, ..Self::new(name, address) }
    }

    /// Its address.
    pub fn ip(&self) -> String {
        format!("{NETWORK}.{}", self.address)
    }

    /// Makes its files in `backing`, the share's backing folder, and gives its definition for a host that has the share
    /// at `mount`. Kernel and initramfs lie on the share, too: libvirt changes their owner. Local disks are made by
    /// [`Self::make_local_disks`].
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn prepare(&self, lab: &Lab, backing: &Path, mount: &Path) -> anyhow::Result<String> {
        let folder = backing.join(&self.name);
        fs::create_dir_all(&folder).context("Could not make a folder on the share")?;
        for (index, disk) in self.disks.iter().enumerate().filter(|(_, disk)| disk.place == Place::Share) {
            self.make_disk(index, disk, &folder.join(file_name(index, disk)))?;
        }
        fs::copy(&lab.boot.kernel, folder.join("vmlinuz"))?;
        fs::copy(&lab.boot.initramfs, folder.join("initramfs.img"))?;
        Ok(self.definition(&mount.join(&self.name)))
    }

    /// Makes the files of its local disks on a host.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn make_local_disks(&self, host: &Host) -> anyhow::Result<()> {
        for (index, disk) in self.disks.iter().enumerate().filter(|(_, disk)| disk.place == Place::Local) {
            let path = host.file(&self.local_folder().join(file_name(index, disk)).display().to_string());
            fs::create_dir_all(path.parent().context("A file is in a folder")?)?;
            self.make_disk(index, disk, &path)?;
        }
        Ok(())
    }

    fn make_disk(&self, index: usize, disk: &Disk, path: &Path) -> anyhow::Result<()> {
        if self.debian && index == 0 { disk.copy(&debian::image()?, path) } else { disk.make(path) }
    }

    /// Where its UEFI variables are, on its first host: libvirt's own place.
    pub fn uefi_variables(&self) -> String {
        format!("/var/lib/libvirt/qemu/nvram/{}_VARS.fd", self.name)
    }

    /// Where its local disks are made.
    fn local_folder(&self) -> PathBuf {
        Path::new(local::FOLDER).join(&self.name)
    }

    /// Asks something of the guest, once: `flip`, `crash` (its main module says what that does).
    ///
    /// # Errors
    /// When no datagram can be sent.
    pub fn ask(&self, lab: &Lab, request: &str) -> anyhow::Result<()> {
        ask(lab, &self.ip(), request)
    }

    /// Its definition, with its files on the share in `folder`.
    pub fn definition(&self, folder: &Path) -> String {
        let Self {
            name, uuid, memory_mib, pattern_mib, dirty_mib_per_s, writes_per_s, slower, kernel, stride_kib, ..
        } = self;
        let disks: String =
            self.disks.iter().enumerate().map(|(index, disk)| self.disk_xml(index, disk, folder)).collect();
        let root = if self.debian {
            format!(" ticker.root=/dev/vda ticker.disks={}", debian::DATA_FILE)
        } else {
            String::new()
        };
        let uefi = if self.uefi {
            let variables = self.uefi_variables();
            format!(
                "
    <loader readonly='yes' type='pflash'>{UEFI_CODE}</loader>
    <nvram template='{UEFI_VARIABLES}'>{variables}</nvram>"
            )
        } else {
            String::new()
        };
        let (on_crash, panic) =
            if self.stays_after_crash { ("preserve", "<panic model='isa'/>") } else { ("destroy", "") };
        let folder = folder.display();
        let mac = format!("52:54:00:77:00:{:02x}", self.address);
        format!(
            "<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>{memory_mib}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>{uefi}
    <kernel>{folder}/vmlinuz</kernel>
    <initrd>{folder}/initramfs.img</initrd>
    <cmdline>console=ttyS0 quiet panic=1 {BOOT_OPTIONS} {kernel} ticker.name={name} ticker.ip={ip} ticker.memory_mib={pattern_mib} ticker.dirty_mib_per_s={dirty_mib_per_s} ticker.writes_per_s={writes_per_s} ticker.slower={slower} ticker.stride_kib={stride_kib}{root}</cmdline>
  </os>
  <features><acpi/></features>
  <on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>{on_crash}</on_crash>
  <devices>
{disks}    <interface type='bridge'><source bridge='br0'/><mac address='{mac}'/><model type='virtio'/></interface>
    <serial type='file'><source path='/var/log/libvirt/qemu/{name}.serial'/><target port='0'/></serial>
    <memballoon model='none'/>{panic}
  </devices>
</domain>
",
            ip = self.ip(),
        )
    }

    fn disk_xml(&self, index: usize, disk: &Disk, share_folder: &Path) -> String {
        let folder = match disk.place {
            Place::Share => share_folder.to_owned(),
            Place::Local => self.local_folder(),
        };
        format!(
            "    <disk type='file' device='disk'>
      <driver name='qemu' type='{format}' cache='none' error_policy='stop' discard='unmap' detect_zeroes='unmap'/>
      <source file='{file}'/><target dev='{device}' bus='virtio'/>
    </disk>
",
            format = disk.format.name(),
            file = folder.join(file_name(index, disk)).display(),
            device = device(index),
        )
    }
}

/// Asks every guest of a lab, as [`Ticker::ask`] asks one.
///
/// # Errors
/// When no datagram can be sent.
pub fn ask_all(lab: &Lab, request: &str) -> anyhow::Result<()> {
    ask(lab, &format!("{NETWORK}.255"), request)
}

fn ask(lab: &Lab, address: &str, request: &str) -> anyhow::Result<()> {
    in_fabric(lab, || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_broadcast(true)?;
        socket.send_to(request.as_bytes(), (address, PORT))?;
        Ok(())
    })
}

/// A definition that [`Ticker::prepare`] gave, with its disk `file` as a volume of the storage pool `vms`, and its interface
/// in the network `lan`.
///
/// # Errors
/// When it has no such disk or interface.
pub fn of_pool_and_network(definition: &str, file: &Path) -> anyhow::Result<String> {
    let (disk, interface) = (format!("<source file='{}'/>", file.display()), "type='bridge'><source bridge='br0'/>");
    ensure!(definition.contains(&disk) && definition.contains(interface), "{definition}");
    Ok(definition
        .replace("<disk type='file'", "<disk type='volume'")
        .replace(&disk, "<source pool='vms' volume='disk.raw'/>")
        .replace(interface, "type='network'><source network='lan'/>"))
}

/// The name of a guest's disk: vda, vdb, …
fn device(index: usize) -> String {
    format!("vd{}", char::from(b'a' + index as u8))
}

/// The file of a guest's disk.
fn file_name(index: usize, disk: &Disk) -> String {
    let format = disk.format.name();
    if index == 0 { format!("disk.{format}") } else { format!("disk-{}.{format}", device(index)) }
}
