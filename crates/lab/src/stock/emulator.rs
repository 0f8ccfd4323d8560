//! The emulator of stock machines: QEMU without virtualisation.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use uuid::Uuid;

/// Memory of a machine, enough for libvirt, an agent, and several guests of 128 MiB. MiB.
const MEMORY_MIB: u32 = 2048;
/// How long a machine may take until libvirt answers there: 50 s alone, more if several boot at the same time.
pub(super) const BOOT_WITHIN: Duration = Duration::from_secs(900);
/// Default time limit of a shell command on a machine.
pub const LINE_WITHIN: Duration = Duration::from_secs(120);

/// What a machine boots from.
#[derive(Clone, Debug)]
pub struct Image {
    /// The root disk, raw. Never written: each machine has an overlay over it.
    pub disk: PathBuf,
    /// Debian's kernel.
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initrd: PathBuf,
}

impl Image {
    pub(super) fn of(folder: &Path) -> Self {
        Self { disk: folder.join("disk.raw"), kernel: folder.join("vmlinuz"), initrd: folder.join("initrd.img") }
    }

    pub(super) fn is_whole(&self) -> bool {
        [&self.disk, &self.kernel, &self.initrd].iter().all(|path| path.is_file())
    }
}

/// The emulator program.
pub(super) const EMULATOR: &str = "qemu-system-x86_64";

/// The emulator's arguments for a machine, except its disk and its network. The machine sees `folder` as the file
/// system that it mounts at `/lab`; the machine's console log is beside `folder`.
pub(super) fn emulated(image: &Image, name: &str, uuid: Uuid, folder: &Path, socket: &Path) -> Vec<String> {
    let memory = MEMORY_MIB.to_string();
    // Without nested virtualisation: QEMU emulates AMD's, and guests boot by KVM in the machine, but its kernel crashed
    // under it ("corrupted stack end"), and guests hung. It also saves libvirt from probing each QEMU twice. Four
    // levels of page tables are walked faster than five.
    let processor = ["-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max,svm=off,la57=off", "-smp", "2"];
    let kernel = image.kernel.display().to_string();
    let initrd = image.initrd.display().to_string();
    // Interfaces keep the names that the boot script expects: otherwise udev would rename them while the script runs.
    let line = format!("root=LABEL=root ro console=ttyS0 quiet mitigations=off net.ifnames=0 systemd.hostname={name}");
    let uuid = uuid.to_string();
    let machine = ["-m", &memory, "-uuid", &uuid, "-kernel", &kernel, "-initrd", &initrd, "-append", &line];
    let shared = format!("local,path={},mount_tag=lab,security_model=none", folder.display());
    let channel = format!("socket,id=agent,path={},server=on,wait=off", socket.display());
    let agent = "virtserialport,chardev=agent,name=org.qemu.guest_agent.0";
    let console = format!("file:{}", folder.with_extension("console").display());
    let devices = ["-virtfs", &shared, "-device", "virtio-serial", "-chardev", &channel, "-device", agent];
    let qmp = format!("unix:{},server=on,wait=off", qmp_socket(folder).display());
    let ends =
        ["-serial", &console, "-qmp", &qmp, "-monitor", "none", "-display", "none", "-nic", "none", "-no-reboot"];
    [&processor[..], &machine[..], &devices[..], &ends[..]].concat().into_iter().map(str::to_owned).collect()
}

/// The socket of a machine's QEMU monitor.
pub(super) fn qmp_socket(folder: &Path) -> PathBuf {
    folder.with_extension("qmp")
}
