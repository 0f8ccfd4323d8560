//! One stock host: a whole emulated machine, with its network interfaces on the lab's bridges.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use uuid::Uuid;

use super::{
    emulator::{BOOT_WITHIN, EMULATOR, Image, LINE_WITHIN, emulated, qmp_socket},
    guest_agent::GuestAgent,
    image::{self, Release},
    qmp::Qmp,
};
use crate::{
    cache,
    fabric::{FABRIC_IP, NETWORK, SECOND_BRIDGE, SECOND_NETWORK},
    lab::Lab,
    observe::now,
    program::Program,
    run::{DEADLINE, ProgramOutput, checked, run, wait_for},
};

/// How long the guest agent may take to answer while a machine boots.
const PING_WITHIN: Duration = Duration::from_secs(3);
/// Base of the machines' UUIDs.
const UUIDS: u128 = 0x7d1f_3a52_8c0e_4b6d_9a41_5e2f_0b3c_9700;
/// How long saving a machine's state may take.
const SAVE_WITHIN: Duration = Duration::from_secs(120);
/// Increased when the steps before saving a state change, so that a cached state is created again.
const STATE: u32 = 3;

/// A machine that runs as long as its lab.
pub struct Machine {
    /// stock1, stock2, …
    pub name: String,
    /// Its address in the network of server and guests.
    pub ip: String,
    /// Its address in the migration network.
    pub migration_ip: String,
    /// Its port in the fabric's `br0`, where guests' heartbeats are observed.
    pub port: String,
    /// Its Debian release.
    pub release: Release,
    /// The folder that the machine mounts as `/lab`.
    pub folder: PathBuf,
    agent: GuestAgent,
    program: Program,
}

impl Machine {
    /// Starts a machine; [`Machine::wait_up`] waits until libvirt answers there. The machine continues from the saved
    /// state of a booted machine of its kind; if there is none, one is booted and saved.
    ///
    /// # Errors
    /// What could not be created or started.
    pub fn start(lab: &Lab, index: u8, release: Release) -> anyhow::Result<Self> {
        let name = format!("stock{index}");
        let (ip, migration_ip) = (format!("{NETWORK}.{}", 30 + index), format!("{SECOND_NETWORK}.{}", 30 + index));
        let folder = lab.folder.join(&name);
        fs::create_dir(&folder)?;
        let nics = [Nic::add(lab, index, 0)?, Nic::add(lab, index, 1)?];
        let script = boot_script(&nics, &ip, &migration_ip);
        fs::write(folder.join("boot"), &script)?;
        let image = image::image(release)?;
        let frame = Frame {
            lab,
            name,
            ip,
            migration_ip,
            folder,
            release,
            uuid: Uuid::from_u128(UUIDS + u128::from(index)),
            nics,
            image,
        };
        let (kept, what) = (format!("stock-{}-{index}", release.name()), format!("{} as it has booted", frame.name));
        let recipe = frame.recipe(&script)?;
        let is_whole = |place: &Path| Booted::of(place).is_whole();
        let booted = Booted::of(&cache::kept(&kept, &what, &recipe, is_whole, |work| frame.boot_and_save(work))?);
        let overlay = lab.folder.join(format!("{}.qcow2", frame.name));
        add_layer(&overlay, &booted.disk, "qcow2")?;
        frame.run(&overlay, Some(&booted.state))
    }

    /// Waits until the machine and its libvirt answer.
    ///
    /// # Errors
    /// They do not in time; contains the last lines of the machine's console.
    pub fn wait_up(&mut self) -> anyhow::Result<()> {
        self.wait_booted()?;
        // Its folder is another one than before the state was saved, and its clock stopped at that time.
        self.run(&format!("mount -t 9p -o {} lab /lab && date -s @{}", image::FOLDER_OPTIONS, now().as_secs()))?;
        self.run("virsh -q -c qemu:///system list").map(drop)
    }

    /// Waits until all services of the machine have started.
    fn wait_booted(&mut self) -> anyhow::Result<()> {
        let (agent, program) = (&self.agent, &mut self.program);
        let answered = wait_for(&format!("{} has booted", self.name), BOOT_WITHIN, || {
            (!program.runs() || agent.answers(PING_WITHIN)).then_some(())
        });
        answered.with_context(|| self.console())?;
        ensure!(self.program.runs(), "{} does not run: {}", self.name, self.program.output());
        // `is-system-running` waits for all services that start at boot, including libvirt's.
        let output = self.try_run("systemctl is-system-running --wait", BOOT_WITHIN)?;
        ensure!(output.out.contains("running"), "{} is {}: {}", self.name, output.out.trim(), self.failed_units());
        Ok(())
    }

    /// Saves the machine's state to a file, and ends the machine.
    fn save(self, state: &Path) -> anyhow::Result<()> {
        // QEMU saves no machine while a shared folder is mounted. Timers are stopped, because all of them would fire
        // when the machine continues days later. libvirt caches the capabilities of each QEMU, as on every host that
        // has run a VM.
        self.run(
            "virsh -q -c qemu:///system capabilities >/dev/null && systemctl stop '*.timer' && sync && umount /lab",
        )?;
        let mut qmp = Qmp::connect(&qmp_socket(&self.folder), DEADLINE)?;
        // The machine keeps running until the state is complete: a state saved while stopped would stay stopped when it
        // is loaded.
        qmp.ask("migrate-set-parameters", serde_json::json!({"max-bandwidth": 8_u64 << 30}))?;
        qmp.ask("migrate", serde_json::json!({"uri": format!("exec:cat >'{}'", state.display())}))?;
        wait_for(&format!("{} is saved", self.name), SAVE_WITHIN, || {
            let info = qmp.ask("query-migrate", serde_json::json!({}));
            let status = info.map(|info| info["status"].as_str().unwrap_or_default().to_owned());
            match status.as_deref() {
                Ok("completed") => Some(Ok(())),
                Ok("failed" | "cancelled") | Err(_) => Some(Err(anyhow::anyhow!("{}: {status:?}", self.name))),
                Ok(_) => None,
            }
        })?
    }

    /// Runs a shell command in the machine; it must succeed within [`LINE_WITHIN`].
    ///
    /// # Errors
    /// Its output.
    pub fn run(&self, line: &str) -> anyhow::Result<String> {
        let output = self.try_run(line, LINE_WITHIN)?;
        ensure!(output.ok(), "{}: {line:?} ended with {:?}: {}{}", self.name, output.code, output.out, output.err);
        Ok(output.out)
    }

    /// Runs a shell command in the machine; it may fail.
    ///
    /// # Errors
    /// It has not ended at the deadline.
    pub fn try_run(&self, line: &str, deadline: Duration) -> anyhow::Result<ProgramOutput> {
        self.agent.run(line, deadline).with_context(|| format!("{} runs {line:?}", self.name))
    }

    /// Sets a queueing discipline of the kernel (tc(8)) for the machine's traffic to the migration network, by its kind
    /// and options.
    ///
    /// # Errors
    /// The message of `tc`.
    pub fn shape(&self, discipline: &str) -> anyhow::Result<()> {
        self.run(&format!("tc qdisc replace dev mig0 root {discipline}")).map(drop)
    }

    /// Removes the queueing discipline.
    ///
    /// # Errors
    /// The message of `tc`, also if none is set.
    pub fn unshape(&self) -> anyhow::Result<()> {
        self.run("tc qdisc del dev mig0 root").map(drop)
    }

    /// The socket of the machine's guest agent.
    pub fn socket(&self) -> PathBuf {
        self.folder.with_extension("sock")
    }

    /// Copies a file to the machine; returns its path there.
    ///
    /// # Errors
    /// It cannot be copied.
    pub fn give(&self, file: &Path) -> anyhow::Result<String> {
        let name = file.file_name().and_then(|name| name.to_str()).context("A file has a name")?;
        fs::copy(file, self.folder.join(name)).with_context(|| format!("Could not copy {}", file.display()))?;
        Ok(format!("/lab/{name}"))
    }

    /// AppArmor denials in the kernel's audit log since the machine booted, one line each.
    ///
    /// # Errors
    /// The machine cannot be queried.
    pub fn denials(&self) -> anyhow::Result<Vec<String>> {
        let log = self.run("journalctl -q -b -k --no-pager -o cat --grep 'apparmor=\"DENIED\"' || true")?;
        Ok(log.lines().map(str::to_owned).collect())
    }

    /// The last lines of the machine's console.
    fn console(&self) -> String {
        let text = fs::read(self.folder.with_extension("console")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let last: Vec<&str> = text.lines().rev().take(20).collect();
        last.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    fn failed_units(&self) -> String {
        let output = self.try_run(
            "systemctl --failed --no-legend --plain; journalctl -q -b -u lab -n 20; journalctl -q -b -p err -n 20",
            LINE_WITHIN,
        );
        output.map(|output| output.out).unwrap_or_else(|error| format!("{error:#}"))
    }
}

/// A booted machine: its disk, and its saved state.
struct Booted {
    disk: PathBuf,
    state: PathBuf,
}

impl Booted {
    fn of(folder: &Path) -> Self {
        Self { disk: folder.join("disk.qcow2"), state: folder.join("state") }
    }

    fn is_whole(&self) -> bool {
        self.disk.is_file() && self.state.is_file()
    }
}

/// The settings of a machine before it runs.
struct Frame<'a> {
    lab: &'a Lab,
    name: String,
    ip: String,
    migration_ip: String,
    folder: PathBuf,
    release: Release,
    uuid: Uuid,
    nics: [Nic; 2],
    image: Image,
}

impl Frame<'_> {
    /// Everything that a saved state depends on.
    fn recipe(&self, script: &str) -> anyhow::Result<String> {
        let version = run(EMULATOR, &["--version"])?;
        let nowhere = Path::new("/");
        let arguments = emulated(&self.image, &self.name, self.uuid, nowhere, nowhere).join(" ");
        // The image is never written: another modification time means another image.
        let made = fs::metadata(&self.image.disk)?.modified()?;
        Ok(format!("{STATE} {made:?}\n{version}{arguments}\n{script}"))
    }

    /// Boots the machine, and saves its state. Tries once more if its QEMU fails an assertion: 10.0 did so once
    /// (`iotlb_to_section`) while emulating a boot.
    fn boot_and_save(&self, work: &Path) -> anyhow::Result<()> {
        self.boot_and_save_once(work).or_else(|error| match format!("{error:#}").contains("Assertion") {
            true => {
                eprintln!("{} boots again: {error:#}", self.name);
                self.boot_and_save_once(work)
            }
            false => Err(error),
        })
    }

    fn boot_and_save_once(&self, work: &Path) -> anyhow::Result<()> {
        let booted = Booted::of(work);
        add_layer(&booted.disk, &self.image.disk, "raw")?;
        let mut machine = self.run(&booted.disk, None)?;
        machine.wait_booted()?;
        machine.save(&booted.state)
    }

    /// Runs the machine, by booting it or from a saved state.
    fn run(&self, disk: &Path, state: Option<&Path>) -> anyhow::Result<Machine> {
        let socket = self.folder.with_extension("sock");
        let mut command = self.lab.in_fabric(EMULATOR);
        command.args(emulated(&self.image, &self.name, self.uuid, &self.folder, &socket));
        // The disk is discarded with the lab, so writes need not be flushed.
        command.arg("-drive").arg(format!("file={},if=virtio,format=qcow2,cache=unsafe", disk.display()));
        for nic in &self.nics {
            command.arg("-netdev").arg(format!("tap,id={0},ifname={0},script=no,downscript=no", nic.tap));
            command.arg("-device").arg(format!("virtio-net-pci,netdev={},mac={}", nic.tap, nic.mac));
        }
        if let Some(state) = state {
            command.arg("-incoming").arg(format!("exec:cat '{}'", state.display()));
        }
        let program = Program::start(&self.name, command, &self.lab.folder.join(format!("{}.log", self.name)))?;
        Ok(Machine {
            name: self.name.clone(),
            ip: self.ip.clone(),
            migration_ip: self.migration_ip.clone(),
            port: self.nics[0].tap.clone(),
            release: self.release,
            folder: self.folder.clone(),
            agent: GuestAgent::new(&socket),
            program,
        })
    }
}

/// Creates an overlay for writes over a disk that is no longer written.
fn add_layer(disk: &Path, over: &Path, format: &str) -> anyhow::Result<()> {
    let (disk, over) = (disk.display().to_string(), over.display().to_string());
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", format, "-b", &over, &disk]).map(drop)
}

/// A network interface of a machine: a tap device on one of the fabric's bridges.
struct Nic {
    tap: String,
    mac: String,
}

impl Nic {
    fn add(lab: &Lab, machine: u8, number: u8) -> anyhow::Result<Self> {
        let tap = format!("s{machine}n{number}");
        let bridge = if number == 0 { "br0" } else { SECOND_BRIDGE };
        let fabric = lab.namespace();
        for line in [format!("tuntap add {tap} mode tap"), format!("link set {tap} master {bridge} up")] {
            let mut command = Command::new("ip");
            command.args(["-n", &fabric]).args(line.split(' ')).stdin(Stdio::null());
            checked(command, DEADLINE)?;
        }
        Ok(Self { tap, mac: format!("02:77:01:{number:02x}:00:{machine:02x}") })
    }
}

/// A machine's script before its network is up: creates a bridge for guests as administrators do, gives the second
/// interface an address in the migration network, and sets the lab's host names. It waits for the kernel to find the
/// interfaces, which takes 30 s if several machines boot at the same time.
fn boot_script(nics: &[Nic; 2], ip: &str, migration_ip: &str) -> String {
    let [first, second] = nics;
    let names: String =
        (1..=9).map(|index| format!("{NETWORK}.{} stock{index}.ferry.lab stock{index}\\n", 30 + index)).collect();
    format!(
        "set -e
named() {{
    for _ in $(seq 1200); do
        for nic in /sys/class/net/*; do
            if [ \"$(cat \"$nic/address\")\" = \"$1\" ] && [ -e \"$nic/device\" ]; then basename \"$nic\"; return; fi
        done
        sleep 0.1
    done
    exit 1
}}
ip link set lo up
ip link add br0 address {bridge_mac} type bridge forward_delay 0
nic=$(named {first_mac})
ip link set \"$nic\" master br0 up
ip link set br0 up
ip addr add {ip}/24 dev br0
nic=$(named {second_mac})
ip link set \"$nic\" name mig0
ip link set mig0 up
ip addr add {migration_ip}/24 dev mig0
printf '127.0.0.1 localhost\\n{names}{FABRIC_IP} fs1.ferry.lab server.ferry.lab\\n' >/etc/hosts
",
        bridge_mac = first.mac.replace("02:77:01", "02:77:02"),
        first_mac = first.mac,
        second_mac = second.mac,
    )
}
