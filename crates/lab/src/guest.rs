//! Guests: the ticker's definition and files.

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

/// The port for requests to a guest, and of its heartbeats.
const PORT: u16 = 7007;
/// Options that save work for an emulated guest's kernel: on a stock host it boots in 77 s with them, and in 97 s
/// without.
const BOOT_OPTIONS: &str = "nokaslr no_timer_check mitigations=off";
/// Debian's firmware, and the initial content of its variables.
const UEFI_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const UEFI_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// A ticker to be defined.
#[derive(Clone, Debug)]
pub struct Ticker {
    /// libvirt's name, and the name in its heartbeats.
    pub name: String,
    /// libvirt's UUID.
    pub uuid: Uuid,
    /// Memory.
    pub memory_mib: u32,
    /// Memory with a pattern, which is dirtied.
    pub pattern_mib: u32,
    /// The rate of dirtying.
    pub dirty_mib_per_s: u32,
    /// Upper limit of sectors written to each disk per second.
    pub writes_per_s: u32,
    /// Factor by which it beats, dirties and verifies more slowly: at least 1.
    pub slower: u32,
    /// Further options of its kernel.
    pub kernel: &'static str,
    /// Distance between two written sectors: with 4 they are adjacent, larger values distribute the 128 sectors over
    /// the disks.
    pub stride_kib: u32,
    /// Last part of its IP address, 100 to 199.
    pub address: u8,
    /// Its disks vda, vdb, …: it writes and verifies each.
    pub disks: Vec<Disk>,
    /// Whether it boots Debian from its first disk, and writes and verifies a file there instead of the disks
    /// themselves.
    pub debian: bool,
    /// Whether it has a panic device, and its process stays after a crash.
    pub stays_after_crash: bool,
    /// Whether it boots by UEFI, with variables in a file of its host.
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

    /// A Debian guest of 512 MiB with its disk, 4 GiB, on the share.
    pub fn debian(name: &str, address: u8) -> Self {
        Self { pattern_mib: 32, dirty_mib_per_s: 2, debian: true, ..Self::new(name, address) }
    }

    /// Its IP address.
    pub fn ip(&self) -> String {
        format!("{NETWORK}.{}", self.address)
    }

    /// Creates its files in `backing`, the share's backing folder, and returns its definition for a host with the share
    /// mounted at `mount`. Kernel and initramfs are on the share as well, because libvirt changes their owner.
    /// [`Self::make_local_disks`] creates local disks.
    ///
    /// # Errors
    /// They cannot be created.
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

    /// Creates the files of its local disks on a host.
    ///
    /// # Errors
    /// They cannot be created.
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

    /// The path of its UEFI variables on its first host, in libvirt's own folder.
    pub fn uefi_variables(&self) -> String {
        format!("/var/lib/libvirt/qemu/nvram/{}_VARS.fd", self.name)
    }

    /// The folder of its local disks.
    fn local_folder(&self) -> PathBuf {
        Path::new(local::FOLDER).join(&self.name)
    }

    /// Sends a request to the guest, once: `flip` or `crash` (see the guest's main module).
    ///
    /// # Errors
    /// No datagram can be sent.
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

/// Sends a request to every guest of a lab, as [`Ticker::ask`] does to one.
///
/// # Errors
/// No datagram can be sent.
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

/// Changes a definition from [`Ticker::prepare`], so that its disk `file` is a volume of the storage pool `vms`, and
/// its interface is in the network `lan`.
///
/// # Errors
/// It has no such disk or interface.
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
