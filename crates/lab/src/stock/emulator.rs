//! What runs machines: QEMU without virtualisation.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use uuid::Uuid;

/// Memory of a machine: libvirt, an agent, and some guests of 128 MiB. MiB.
const MEMORY_MIB: u32 = 2048;
/// How long a machine may take until libvirt answers there: 50 s alone, more where several boot at once.
pub(super) const BOOT_WITHIN: Duration = Duration::from_secs(420);
/// How long a shell line may take there unless said otherwise.
pub const LINE_WITHIN: Duration = Duration::from_secs(120);

/// What a machine boots from.
#[derive(Clone, Debug)]
pub struct Image {
    /// The root disk, raw. Never written: each machine has an overlay over it.
    pub disk: PathBuf,
    /// Debian's kernel.
    pub kernel: PathBuf,
    /// Its first file system.
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

/// What runs machines.
pub(super) const EMULATOR: &str = "qemu-system-x86_64";

/// What the emulator is told of a machine but for its disk and its network. The machine sees `folder` as what it mounts at
/// `/lab`; beside `folder` lies its console.
pub(super) fn emulated(image: &Image, name: &str, uuid: Uuid, folder: &Path, socket: &Path) -> Vec<String> {
    let memory = MEMORY_MIB.to_string();
    // Without virtualisation of its own: QEMU emulates AMD's, and guests boot by KVM in the machine, but its kernel crashed
    // under it ("corrupted stack end"), and guests stood still. libvirt need not probe each QEMU twice either. Four levels
    // of page tables are walked faster than five.
    let processor = ["-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max,svm=off,la57=off", "-smp", "2"];
    let kernel = image.kernel.display().to_string();
    let initrd = image.initrd.display().to_string();
    // Interfaces keep the names by which the boot script finds them: udev would rename them while it does.
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

/// Where QEMU is told what to do with a machine.
pub(super) fn qmp_socket(folder: &Path) -> PathBuf {
    folder.with_extension("qmp")
}
