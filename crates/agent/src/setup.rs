//! `ferry-agent setup`: prepares a host, reports what it did and what is missing, and prints the enrolment token.

use std::{fs, io, net::SocketAddr, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use anyhow::Context as _;
use ferry_core::vm::VmState;
use ferry_drivers::hypervisor::{Domains, Hypervisor, libvirt::Libvirt};
use ferry_trust::KeyPair;

use crate::{checks, config::Config, confinement, enrolment::Enrolment, hold, hook, qemu_conf::with_shared, records};

/// The monolithic daemon, and the modular one for QEMU: one of them serves a host's VMs.
const LIBVIRT_UNITS: [&str; 2] = ["libvirtd.service", "virtqemud.service"];
/// Runs setup. Prints its actions to stderr, and the token as the last line of stdout. With `restart`, libvirt is
/// restarted if it must read changes.
///
/// # Errors
/// What could not be done; repeating the command continues from there.
pub fn run(config_path: &Path, listen: Option<SocketAddr>, restart: bool) -> anyhow::Result<()> {
    let config = configuration(config_path, listen)?;
    make_folders(&config)?;
    let shared = ensure_shared(&config)?;
    let hooked = ensure_hook(&config)?;
    confinement::ensure(&config)?.iter().for_each(|done| eprintln!("✓ {done}"));
    if shared || hooked {
        restart_libvirt(restart);
    }
    for check in checks::all(&config, &Libvirt::new(&config.libvirt_uri)) {
        eprintln!("{check}");
    }
    let key = KeyPair::load_or_create(&config.key_path())?;
    let token = Enrolment::load(&config)?.new_token(key.pin())?;
    eprintln!("\nStart the agent (`systemctl start ferry-agent`), then add this host with:");
    eprintln!("  ferry host add {} --name NAME --token TOKEN\nThe token, good for one use:", config.listen);
    println!("{token}");
    Ok(())
}

fn make_folders(config: &Config) -> anyhow::Result<()> {
    records::ensure_private_dir(&config.state_dir)?;
    records::ensure_private_dir(&config.journal_dir())?;
    // Without the folder, the hook vetoes every start.
    records::ensure_private_dir(&config.holds_dir())?;
    for dir in [&config.run_dir, &config.sessions_dir(), &config.share_root] {
        fs::create_dir_all(dir).with_context(|| format!("Could not make {}", dir.display()))?;
    }
    // QEMU passes through to its session's folder; neither folder can be listed.
    for dir in [&config.run_dir, &config.sessions_dir()] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o711))?;
    }
    Ok(())
}

/// Whether qemu.conf was changed.
fn ensure_shared(config: &Config) -> anyhow::Result<bool> {
    let (path, root) = (config.qemu_conf.display(), config.share_root.display().to_string());
    let conf = match fs::read_to_string(&config.qemu_conf) {
        Ok(conf) => conf,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("Could not read {path}")),
    };
    let Some(edited) = with_shared(&conf, &root)? else {
        eprintln!("✓ {path} lists {root} in shared_filesystems");
        return Ok(false);
    };
    fs::write(&config.qemu_conf, edited).with_context(|| format!("Could not write {path}"))?;
    eprintln!("✓ {path} now lists {root} in shared_filesystems");
    Ok(true)
}

/// Whether the hook was installed now.
fn ensure_hook(config: &Config) -> anyhow::Result<bool> {
    if hook::is_installed(config) {
        eprintln!("✓ the hook that vetoes a second start is installed");
        return Ok(false);
    }
    let path = hook::install(config)?;
    eprintln!("✓ the hook that vetoes a second start is installed as {}", path.display());
    Ok(true)
}

/// Running VMs continue while libvirt is restarted.
fn restart_libvirt(restart: bool) {
    let systemctl = |arguments: &[&str]| Command::new("systemctl").args(arguments).output();
    let shown = systemctl(&["show", "--property=Id,LoadState,ActiveState", LIBVIRT_UNITS[0], LIBVIRT_UNITS[1]]);
    let shown = shown.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let (running, idle) = (units(&shown, "ActiveState=active"), units(&shown, "LoadState=loaded"));
    if running.is_empty() && !idle.is_empty() {
        eprintln!("✓ {} does not run now, and reads both when it is started", idle.join(" or "));
        return;
    }
    let names = if running.is_empty() { LIBVIRT_UNITS.join(" or ") } else { running.join(" and ") };
    if !restart || running.is_empty() {
        eprintln!("! restart {names} now, so that it reads both; running VMs go on");
        return;
    }
    match systemctl(&[&["restart"], &running[..]].concat()) {
        Ok(output) if output.status.success() => eprintln!("✓ {names} was restarted, and has read both"),
        Ok(_) | Err(_) => eprintln!("! {names} could not be restarted: see `systemctl status {}`", running.join(" ")),
    }
}

/// The units whose `systemctl show` output contains `line`: lines `NAME=VALUE`, with an empty line between two units.
fn units<'a>(shown: &'a str, line: &str) -> Vec<&'a str> {
    let such = shown.split("\n\n").filter(|unit| unit.lines().any(|property| property == line));
    such.filter_map(|unit| unit.lines().find_map(|property| property.strip_prefix("Id="))).collect()
}

/// Removes what [`run`] wrote outside the agent's own folders, except the line in qemu.conf: VMs may use shares without
/// Ferry, and need it for that.
///
/// # Errors
/// While a VM is held: without the hook it could be started twice. Otherwise what could not be removed; may be
/// repeated.
pub fn remove(config: &Config) -> anyhow::Result<()> {
    let held: Vec<String> = hold::all(&config.holds_dir())?.iter().map(|(vm, _)| vm.to_string()).collect();
    anyhow::ensure!(
        held.is_empty(),
        "VMs are held, and could be started twice without the hook: {}; see `ferry-agent holds`",
        held.join(", ")
    );
    confinement::remove(config)?.iter().for_each(|done| eprintln!("✓ {done}"));
    let hook = hook::path_of(config);
    match fs::remove_file(&hook) {
        Ok(()) => eprintln!("✓ {} was removed", hook.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("Could not remove {}", hook.display())),
    }
    eprintln!("Restart libvirtd or virtqemud, so that it knows; {} stays as it is", config.qemu_conf.display());
    Ok(())
}

/// Prints the held VMs, one line each: UUID, name, and reason. Names are shown if libvirt answers.
///
/// # Errors
/// If the holds cannot be read.
pub fn print_holds(config: &Config, hypervisor: &dyn Domains) -> anyhow::Result<()> {
    let held = hold::all(&config.holds_dir())?;
    if held.is_empty() {
        eprintln!("No VM is held on this host");
        return Ok(());
    }
    let known = hypervisor.vms().unwrap_or_default();
    for (vm, why) in held {
        let name = known.iter().find(|facts| facts.id == vm).map_or("-", |facts| &facts.name);
        println!("{vm}  {name}  {}", why.trim());
    }
    Ok(())
}

/// Releases a held VM, by its name or UUID: for a host whose server is gone, so that it cannot report any more how a
/// move ended. The caller must know that the VM runs nowhere else.
///
/// # Errors
/// If it is not held; if libvirt does not answer; while libvirt is moving it.
pub fn release_hold(config: &Config, hypervisor: &dyn Hypervisor, reference: &str) -> anyhow::Result<()> {
    let known = hypervisor.vms().context("Could not ask libvirt whether it moves the VM; its hold stays")?;
    let found = known.iter().find(|facts| facts.name == reference || facts.id.to_string() == reference);
    let vm = found.map(|facts| facts.id).or_else(|| reference.parse().ok());
    let vm = vm.filter(|vm| hold::is_held(&config.holds_dir(), *vm));
    let vm =
        vm.with_context(|| format!("VM {reference} is not held here; `ferry-agent holds` lists those that are"))?;
    let name = found.map_or_else(|| vm.to_string(), |facts| facts.name.clone());
    let arrives = found.is_some_and(|facts| facts.state == VmState::Incoming);
    anyhow::ensure!(
        !arrives && hypervisor.migration_stats(vm)?.is_none(),
        "libvirt moves VM {name} now, and its hold stays: wait for the end (`virsh domjobinfo {name}`)"
    );
    hold::release(&config.holds_dir(), vm)?;
    eprintln!("✓ VM {name} may be started on this host again: start it only if it runs on no other");
    eprintln!("! if this host shall start it at boot, say so: `virsh autostart {name}`");
    Ok(())
}

/// Prints a new token.
///
/// # Errors
/// If the agent was not set up.
pub fn print_token(config: &Config) -> anyhow::Result<()> {
    records::ensure_private_dir(&config.state_dir)?;
    let key = KeyPair::load_or_create(&config.key_path())?;
    println!("{}", Enrolment::load(config)?.new_token(key.pin())?);
    Ok(())
}

fn configuration(path: &Path, listen: Option<SocketAddr>) -> anyhow::Result<Config> {
    if path.exists() {
        let config = Config::load(path)?;
        eprintln!("✓ configuration {}", path.display());
        return Ok(config);
    }
    let listen = listen.with_context(|| {
        format!(
            "There is no {} yet: say where the agent shall listen, as in `--listen 192.0.2.11:7421`",
            path.display()
        )
    })?;
    anyhow::ensure!(
        !listen.ip().is_unspecified(),
        "Name the address that the server and other hosts reach, not {}",
        listen.ip()
    );
    let config = Config::new(listen);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, toml::to_string(&config)?).with_context(|| format!("Could not write {}", path.display()))?;
    eprintln!("✓ configuration written to {}", path.display());
    Ok(config)
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        process::{Command, Stdio},
    };

    use ferry_core::id::JobId;
    use ferry_drivers::hypervisor::fake::{FakeGuest, FakeHypervisor, World};

    use super::*;
    use crate::qemu_conf::knows_shared;

    #[test]
    fn the_share_root_is_added_once_and_the_rest_stays() {
        let root = "/srv/ferry";
        for (before, after) in [
            ("", "shared_filesystems = [ \"/srv/ferry\" ]\n"),
            ("user = \"x\"", "user = \"x\"\nshared_filesystems = [ \"/srv/ferry\" ]\n"),
            (
                "#shared_filesystems = [ \"/srv/ferry\" ]\nuser = \"x\"\n",
                "#shared_filesystems = [ \"/srv/ferry\" ]\nuser = \"x\"\nshared_filesystems = [ \"/srv/ferry\" ]\n",
            ),
            (
                "shared_filesystems = [\n  \"/a\", # old\n  \"/b\"\n]\nuser = \"x\"\n",
                "shared_filesystems = [ \"/a\", \"/b\", \"/srv/ferry\" ]\nuser = \"x\"\n",
            ),
        ] {
            let edited = with_shared(before, root).expect("possible").expect("an edit");
            assert_eq!(edited, after);
            assert_eq!(with_shared(&edited, root).expect("possible"), None, "twice changes nothing");
        }
        assert!(knows_shared("shared_filesystems = [ \"/srv\" ]", root), "a folder above it will do");
        assert!(!knows_shared("shared_filesystems = [ \"/srv/fer\" ]", root));
    }

    #[test]
    fn the_daemon_that_runs_is_restarted_and_no_other() {
        let one = |name: &str, (load, active): (&str, &str)| {
            format!("Id={name}.service\nLoadState={load}\nActiveState={active}\n")
        };
        let shown = |libvirtd, virtqemud| format!("{}\n{}", one("libvirtd", libvirtd), one("virtqemud", virtqemud));
        let (runs, idle, none) = (("loaded", "active"), ("loaded", "inactive"), ("not-found", "inactive"));
        for (libvirtd, virtqemud, active, loaded) in [
            (runs, none, vec!["libvirtd.service"], vec!["libvirtd.service"]),
            (idle, runs, vec!["virtqemud.service"], vec!["libvirtd.service", "virtqemud.service"]),
            (idle, none, vec![], vec!["libvirtd.service"]),
        ] {
            let shown = shown(libvirtd, virtqemud);
            assert_eq!(units(&shown, "ActiveState=active"), active, "{shown}");
            assert_eq!(units(&shown, "LoadState=loaded"), loaded, "{shown}");
        }
        assert_eq!(units("", "LoadState=loaded"), [""; 0], "without systemd");
    }

    #[test]
    fn what_was_written_is_removed_but_not_while_a_vm_is_held() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = Config {
            state_dir: folder.path().join("state"),
            hooks_dir: folder.path().join("hooks"),
            apparmor_dir: folder.path().join("apparmor.d"),
            ..Config::new("127.0.0.1:1".parse().expect("an address"))
        };
        hook::install(&config).expect("installed");
        let held = config.holds_dir().join("0d7a4d0e-4f57-4f3e-9a80-0c6a4b6ad001");
        fs::create_dir_all(config.holds_dir()).expect("made");
        fs::write(&held, "job 7").expect("held");
        let error = remove(&config).expect_err("it is held").to_string();
        assert!(error.contains("0d7a4d0e") && hook::is_installed(&config), "{error}");
        fs::remove_file(held).expect("released");
        remove(&config).expect("removed");
        assert!(!hook::path_of(&config).exists());
        remove(&config).expect("twice");
    }

    #[test]
    fn the_hook_vetoes_the_start_of_a_held_vm_and_no_other() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = Config {
            state_dir: folder.path().join("state"),
            hooks_dir: folder.path().join("hooks"),
            ..Config::new("127.0.0.1:1".parse().expect("an address"))
        };
        assert!(!hook::is_installed(&config));
        hook::refresh(&config);
        assert!(!hook::path_of(&config).exists(), "only set-up installs it");
        let hook = hook::install(&config).expect("installed");
        fs::write(&hook, format!("#!/bin/sh\n{}\nexit 0\n", hook::VETO_MARKER)).expect("of an earlier version");
        assert!(!hook::is_installed(&config));
        hook::refresh(&config);
        assert!(hook::is_installed(&config));
        let held = "0d7a4d0e-4f57-4f3e-9a80-0c6a4b6ad001";
        let call = |uuid: &str, operation: &str| {
            let mut child = Command::new(&hook)
                .args(["web01", operation, "begin", "-"])
                .stdin(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("runs");
            let xml = format!("<domain type='qemu'>\n  <name>web01</name>\n  <uuid>{uuid}</uuid>\n</domain>\n");
            // The script may end without reading its input.
            let _ = child.stdin.take().expect("piped").write_all(xml.as_bytes());
            let output = child.wait_with_output().expect("ends");
            (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let (allowed, output) = call(held, "prepare");
        assert!(
            !allowed && output.contains("web01") && output.contains("ferry-agent setup"),
            "without the folder: {output}"
        );
        assert!(call(held, "release").0, "only a start is vetoed");
        fs::create_dir_all(config.holds_dir()).expect("made");
        assert!(call(held, "prepare").0, "it is not held");
        fs::write(config.holds_dir().join(held), "job 7").expect("held");
        assert!(!call("", "prepare").0, "without a UUID");
        let (allowed, output) = call(held, "prepare");
        assert!(!allowed && output.contains("job 7") && output.contains("web01"), "{output}");
        assert!(call(held, "release").0, "only a start is vetoed");
        assert!(call("11111111-4f57-4f3e-9a80-0c6a4b6ad001", "prepare").0);
    }

    #[test]
    fn a_hold_is_released_by_hand_by_the_vms_name_or_uuid_if_libvirt_answers() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = Config {
            state_dir: folder.path().join("state"),
            ..Config::new("127.0.0.1:1".parse().expect("an address"))
        };
        let dir = folder.path().join("l");
        fs::create_dir_all(&dir).expect("made");
        let hypervisor = FakeHypervisor::new("kvm1", dir, &World::default()).expect("a host");
        let disk = folder.path().join("web01.raw");
        let vm = hypervisor.define(FakeGuest::new("web01", &[disk])).expect("defined");
        let holds = config.holds_dir();
        for reference in ["web01".to_owned(), vm.to_string()] {
            hold::ensure(&holds, vm, JobId(7)).expect("held");
            assert_eq!(hold::all(&holds).expect("read")[0].0, vm);
            release_hold(&config, &hypervisor, &reference).expect("released");
            assert!(!hold::is_held(&holds, vm), "{reference}");
        }
        let output = release_hold(&config, &hypervisor, "web01").expect_err("it is not held").to_string();
        assert!(output.contains("web01") && output.contains("ferry-agent holds"), "{output}");

        // If it no longer has a definition here, only the UUID is known.
        let gone = "0d7a4d0e-4f57-4f3e-9a80-0c6a4b6ad001";
        hold::ensure(&holds, gone.parse().expect("a UUID"), JobId(8)).expect("held");
        release_hold(&config, &hypervisor, gone).expect("released");

        hold::ensure(&holds, vm, JobId(7)).expect("held");
        hypervisor.set_reachable(false);
        release_hold(&config, &hypervisor, "web01").expect_err("libvirt does not say whether it moves it");
        assert!(hold::is_held(&holds, vm));
    }
}
