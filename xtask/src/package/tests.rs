//! Builds all packages from stand-ins: a program that does nothing, and pages of a dummy command.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::LazyLock,
};

use super::*;

struct Built {
    _folder: tempfile::TempDir,
    inputs: Inputs,
    packages: PathBuf,
    names: Vec<String>,
}

/// Built once per test process.
static BUILT: LazyLock<Built> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    let inputs = inputs(folder.path());
    let packages = folder.path().join("packages");
    let names = build_all(&inputs, &packages).expect("built");
    Built { _folder: folder, inputs, packages, names }
});

fn inputs(folder: &Path) -> Inputs {
    let (programs, manuals) = (folder.join("programs"), folder.join("manuals"));
    fs::create_dir_all(&programs).expect("made");
    let (source, program) = (folder.join("nothing.c"), folder.join("nothing"));
    fs::write(&source, "int main(void) { return 0; }\n").expect("written");
    let compiled = Command::new("gcc").arg("-g").arg("-o").arg(&program).arg(&source).status();
    assert!(compiled.expect("it runs").success());
    for package in &PACKAGES {
        fs::copy(&program, programs.join(package.name)).expect("copied");
        let command =
            clap::Command::new(package.name).version("1").about("Stand in").subcommand(clap::Command::new("run"));
        let section = match package.section {
            1 => ferry_manual::Section::User,
            8 => ferry_manual::Section::Administrator,
            other => panic!("{} is in section {other}", package.name),
        };
        ferry_manual::write(command, section, &manuals.join(package.name)).expect("written");
        manual::check(&manuals.join(package.name)).expect("understood");
    }
    let crates = |krate: &str| Ok(format!("{krate} v1 MIT\n"));
    Inputs { sources: root(), programs, manuals, crates, version: "1.2.3~tested".to_owned(), date: 1_700_000_000 }
}

/// The file of a package in one format.
fn file(name: &str, ending: &str) -> PathBuf {
    let start = if ending == "deb" { format!("{name}_") } else { format!("{name}-1") };
    let found = BUILT.names.iter().find(|file| file.starts_with(&start) && file.ends_with(ending));
    BUILT.packages.join(found.unwrap_or_else(|| panic!("{name}.{ending} is not in {:?}", BUILT.names)))
}

#[track_caller]
fn output_of(program: &str, arguments: &[&str], package: &Path) -> String {
    let output = Command::new(program).args(arguments).arg(package).output().expect("it runs");
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Path → mode and owners, without folders.
fn in_deb(name: &str) -> BTreeMap<String, String> {
    let listed = output_of("dpkg-deb", &["--contents"], &file(name, "deb"));
    let lines = listed.lines().filter(|line| !line.starts_with('d'));
    let entry = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words[5].trim_start_matches('.').to_owned(), format!("{} {}", words[0], words[1].replace('/', " ")))
    };
    lines.map(entry).collect()
}

fn in_rpm(name: &str) -> BTreeMap<String, String> {
    let listed = output_of("rpm", &["-qlvp"], &file(name, "rpm"));
    let entry = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        ((*words.last().expect("a path")).to_owned(), format!("{} {} {}", words[0], words[2], words[3]))
    };
    listed.lines().filter(|line| !line.starts_with('d')).map(entry).collect()
}

/// A field of a `.deb`.
fn field(name: &str, field: &str) -> String {
    let output = Command::new("dpkg-deb").arg("--field").arg(file(name, "deb")).arg(field).output().expect("it runs");
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

#[test]
fn the_agents_packages_hold_these_files_and_no_others() {
    let deb = in_deb("ferry-agent");
    let expected = [
        ("/usr/bin/ferry-agent", "-rwxr-xr-x root root"),
        ("/usr/lib/firewalld/services/ferry-agent.xml", "-rw-r--r-- root root"),
        ("/usr/lib/systemd/system/ferry-agent.service", "-rw-r--r-- root root"),
        ("/usr/lib/tmpfiles.d/ferry-agent.conf", "-rw-r--r-- root root"),
        ("/usr/share/bash-completion/completions/ferry-agent", "-rw-r--r-- root root"),
        ("/usr/share/doc/ferry-agent/CHANGELOG.md.gz", "-rw-r--r-- root root"),
        ("/usr/share/doc/ferry-agent/copyright", "-rw-r--r-- root root"),
        ("/usr/share/doc/ferry-agent/crates.gz", "-rw-r--r-- root root"),
        ("/usr/share/doc/ferry-agent/examples/agent.toml", "-rw-r--r-- root root"),
        ("/usr/share/fish/vendor_completions.d/ferry-agent.fish", "-rw-r--r-- root root"),
        ("/usr/share/man/man8/ferry-agent-run.8.gz", "-rw-r--r-- root root"),
        ("/usr/share/man/man8/ferry-agent.8.gz", "-rw-r--r-- root root"),
        ("/usr/share/zsh/vendor-completions/_ferry-agent", "-rw-r--r-- root root"),
    ];
    let expected: BTreeMap<_, _> = expected.map(|(path, about)| (path.to_owned(), about.to_owned())).into();
    assert_eq!(deb, expected);
}

#[test]
fn both_formats_hold_the_same_and_lie_where_their_systems_look() {
    for package in &PACKAGES {
        let name = package.name;
        let moved = |path: String| {
            path.replace("/zsh/vendor-completions/", "/zsh/site-functions/")
                .replace(&format!("/usr/share/doc/{name}/copyright"), &format!("/usr/share/licenses/{name}/LICENSE"))
        };
        let deb: BTreeMap<_, _> = in_deb(name).into_iter().map(|(path, about)| (moved(path), about)).collect();
        assert_eq!(deb, in_rpm(name));
        let listed = output_of("dpkg-deb", &["--contents"], &file(name, "deb"));
        for line in listed.lines().filter(|line| line.starts_with('d')) {
            assert!(line.starts_with("drwxr-xr-x root/root"), "{line}");
        }
    }
    // RPM removes no folder that belongs to no package.
    let listed = output_of("rpm", &["-qlvp"], &file("ferry-server", "rpm"));
    let folders = listed.lines().filter(|line| line.starts_with('d'));
    let folders: Vec<&str> = folders.filter_map(|line| line.split_whitespace().last()).collect();
    assert_eq!(folders, ["/etc/ferry", "/usr/share/doc/ferry-server", "/usr/share/licenses/ferry-server"]);
}

#[test]
fn what_administrators_change_is_kept() {
    for package in &PACKAGES {
        let expected: BTreeSet<String> = match package.name {
            "ferry-server" => ["/etc/ferry/server.toml".to_owned()].into(),
            _ => BTreeSet::new(),
        };
        let below_etc: BTreeSet<String> =
            in_deb(package.name).into_keys().filter(|path| path.starts_with("/etc/")).collect();
        assert_eq!(below_etc, expected);
        let information = output_of("dpkg-deb", &["--info"], &file(package.name, "deb"));
        assert_eq!(information.contains("conffiles"), !expected.is_empty(), "{information}");
        let configs = output_of("rpm", &["-qcp"], &file(package.name, "rpm"));
        assert_eq!(
            configs.lines().filter(|line| line.starts_with('/')).map(str::to_owned).collect::<BTreeSet<_>>(),
            expected
        );
    }
    let out = tempfile::tempdir().expect("a folder");
    let mut unpack = Command::new("dpkg-deb");
    unpack.arg("--control").arg(file("ferry-server", "deb")).arg(out.path());
    assert!(unpack.status().expect("it runs").success());
    assert_eq!(fs::read_to_string(out.path().join("conffiles")).expect("there"), "/etc/ferry/server.toml\n");
}

#[test]
fn packages_say_what_they_need_and_that_they_are_no_release() {
    for package in &PACKAGES {
        let name = package.name;
        assert_eq!(field(name, "Version"), "1.2.3~tested");
        assert!(field(name, "Depends").contains("libc6 (>= 2."), "{}", field(name, "Depends"));
        let needs = output_of("rpm", &["-qp", "--requires"], &file(name, "rpm"));
        assert!(needs.contains("libc.so.6(GLIBC_2."), "{needs}");
        for need in package.deb.needs {
            assert!(field(name, "Depends").contains(need), "{}", field(name, "Depends"));
        }
        for need in package.rpm.needs {
            assert!(needs.lines().any(|line| line == *need), "{needs}");
        }
        for (query, field_name, deb, rpm) in [
            ("--recommends", "Recommends", package.deb.wants, package.rpm.wants),
            ("--suggests", "Suggests", package.deb.suggests, package.rpm.suggests),
        ] {
            assert_eq!(field(name, field_name), deb.join(", "));
            let listed: BTreeSet<String> =
                output_of("rpm", &["-qp", query], &file(name, "rpm")).lines().map(str::to_owned).collect();
            assert_eq!(listed, rpm.iter().map(|name| (*name).to_owned()).collect());
        }
        for line in package.description {
            assert!(line.len() < 80 && field(name, "Description").contains(line), "{line}");
        }
    }
    let earlier = Command::new("dpkg").args(["--compare-versions", &version(Build::Tested), "lt", VERSION]).status();
    assert!(earlier.expect("it runs").success(), "a release replaces a tested build");
}

#[test]
fn programs_are_stripped_and_pages_can_be_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut unpack = Command::new("dpkg-deb");
    unpack.arg("--extract").arg(file("ferry-agent", "deb")).arg(folder.path());
    assert!(unpack.status().expect("it runs").success());
    let program = folder.path().join("usr/bin/ferry-agent");
    let sections = output_of("objdump", &["-h"], &program);
    assert!(sections.contains(".text") && !sections.contains(".debug_line"), "{sections}");
    let page = output_of("zcat", &[], &folder.path().join("usr/share/man/man8/ferry-agent.8.gz"));
    assert!(page.contains("Stand in"), "{page}");
    let mut sums = Command::new("sh");
    sums.arg("-c").arg("dpkg-deb --ctrl-tarfile \"$0\" | tar -xO ./md5sums | md5sum --check");
    let checked = sums.arg(file("ferry-agent", "deb")).current_dir(folder.path()).output().expect("it runs");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

#[test]
fn the_same_goes_in_and_the_same_comes_out() {
    let folder = tempfile::tempdir().expect("a folder");
    assert_eq!(build_all(&BUILT.inputs, folder.path()).expect("built"), BUILT.names);
    for name in &BUILT.names {
        let same =
            fs::read(folder.path().join(name)).expect("there") == fs::read(BUILT.packages.join(name)).expect("there");
        assert!(same, "{name} differs");
    }
}

#[test]
fn packages_are_made_anew_when_anything_they_are_made_from_changes() {
    let folder = tempfile::tempdir().expect("a folder");
    let inputs = inputs(folder.path());
    let packages = folder.path().join("packages");
    fs::create_dir(&packages).expect("made");
    let names: Vec<String> = (0..2 * PACKAGES.len()).map(|number| format!("package{number}")).collect();
    let write = |stamp: &str| {
        fs::write(packages.join("stamp"), format!("{stamp}{}\n", names.join("\n"))).expect("written");
        names.iter().for_each(|name| fs::write(packages.join(name), "").expect("written"));
    };
    let first = stamp(&inputs).expect("read");
    assert_eq!(unchanged(&packages, &first), None, "nothing is there");
    write(&first);
    assert_eq!(unchanged(&packages, &stamp(&inputs).expect("read")), Some(names.clone()));
    fs::remove_file(packages.join("package3")).expect("removed");
    assert_eq!(unchanged(&packages, &first), None, "one is gone");
    write(&first);
    fs::write(inputs.programs.join("ferry"), "another").expect("written");
    let second = stamp(&inputs).expect("read");
    assert_eq!(unchanged(&packages, &second), None, "a program changed");
    write(&second);
    let inputs = Inputs { version: "9".to_owned(), ..inputs };
    assert_eq!(unchanged(&packages, &stamp(&inputs).expect("read")), None, "the version changed");
    assert!(second.contains("ferry-agent.service ") && second.contains("postrm "), "{second}");
}

#[test]
fn what_shells_and_the_formatter_do_not_understand_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = folder.path().join("x.1");
    fs::write(&page, ".TH x 1\n.SH NAME\nx\n").expect("written");
    manual::check(folder.path()).expect("good");
    fs::write(&page, ".TH x 1\n.NOSUCH NAME\nx\n").expect("written");
    assert!(manual::check(folder.path()).expect_err("a macro that is not there").to_string().contains("x.1"));
    fs::write(&page, ".TH x 1\n.SH NAME\nx\n").expect("written");
    fs::write(folder.path().join("x.bash"), "if true; then\n").expect("written");
    assert!(manual::check(folder.path()).expect_err("no end").to_string().contains("x.bash"));
}

// The units.

fn unit(name: &str) -> BTreeMap<String, Vec<String>> {
    let text = fs::read_to_string(root().join("packaging").join(name).join(format!("{name}.service"))).expect("there");
    let mut settings: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, value) in text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('=')) {
        settings.entry(key.to_owned()).or_default().push(value.to_owned());
    }
    settings
}

#[test]
fn the_agents_mounts_are_seen_by_libvirt_and_its_carriers_outlive_it() {
    let unit = unit("ferry-agent");
    // According to systemd.exec(5), each of these gives a service its own mount namespace.
    let hides = [
        "Private",
        "Protect",
        "ReadWrite",
        "ReadOnly",
        "Inaccessible",
        "Bind",
        "Temporary",
        "Root",
        "Mount",
        "Extension",
        "Exec",
        "NoExec",
        "ProcSubset",
        "DynamicUser",
        "LogNamespace",
        "IPCNamespace",
        "NetworkNamespace",
        "User",
    ];
    for key in unit.keys().filter(|key| !["ExecStart"].contains(&key.as_str())) {
        assert!(!hides.iter().any(|start| key.starts_with(start)), "{key} would hide the agent's mounts from libvirt");
    }
    assert!(!unit.contains_key("RestrictSUIDSGID"), "with it openat2 fails, by which the agent opens files of VMs");
    for (key, value) in [
        ("KillMode", "process"),
        ("RuntimeDirectory", "ferry"),
        ("RuntimeDirectoryMode", "0711"),
        ("RuntimeDirectoryPreserve", "yes"),
        ("OOMPolicy", "continue"),
        ("Type", "notify"),
        ("ConditionPathExists", "/etc/ferry/agent.toml"),
        ("Restart", "on-failure"),
    ] {
        assert_eq!(unit.get(key).map(Vec::as_slice), Some(&[value.to_owned()][..]), "{key}");
    }
    let dropped = unit.get("CapabilityBoundingSet").map(|lines| lines.join(" ")).expect("what it can do without");
    // For mounts; socket buffers on long links; the locks of QEMU's open files; files of VMs that do not belong to
    // root.
    for needed in ["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_CHOWN", "CAP_KILL"] {
        assert!(!dropped.contains(needed), "the agent needs {needed}");
    }
    for key in ["Requires", "BindsTo", "PartOf", "Requisite"] {
        assert!(!unit.contains_key(key), "{key}: a restart of libvirt would be one of the agent");
    }
}

/// The output of `systemd-analyze` for a unit, with an existing program in its program's place.
fn analyzed(name: &str, arguments: &[&str], change: (&str, &str)) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    let file = format!("{name}.service");
    let text = fs::read_to_string(root().join("packaging").join(name).join(&file)).expect("there");
    let own = std::env::current_exe().expect("it runs").display().to_string();
    let text = text.replace(&format!("/usr/bin/{name}"), &own).replace(change.0, change.1);
    fs::write(folder.path().join(&file), text).expect("written");
    let output = Command::new("systemd-analyze").args(arguments).arg(folder.path().join(&file)).output();
    output.expect("it runs")
}

#[test]
fn systemd_understands_the_units() {
    let about = |name: &str, change: (&str, &str)| {
        let output = analyzed(name, &["verify", "--man=no"], change);
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        printed.lines().filter(|line| line.contains(name)).map(str::to_owned).collect::<Vec<_>>()
    };
    for name in ["ferry-agent", "ferry-server"] {
        assert_eq!(about(name, ("", "")), Vec::<String>::new());
        let wrong = about(name, ("RestartSec=", "RestartSecs="));
        assert!(wrong.iter().any(|line| line.contains("RestartSecs")), "what is wrong is seen: {wrong:?}");
    }
}

#[test]
fn the_server_may_do_little() {
    // Tenths of systemd's exposure level; the maximum is 100.
    let arguments = ["security", "--offline=yes", "--no-pager", "--threshold=15"];
    let output = analyzed("ferry-server", &arguments, ("", ""));
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    let more = analyzed("ferry-server", &arguments, ("SystemCallFilter=", "# "));
    assert!(!more.status.success(), "what it may do more is seen");
}

// Runs the scripts of Debian's packages below a folder, with stand-ins for systemd's programs.

struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    fn new(has_systemd: bool) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let machine = Self { folder };
        fs::create_dir(machine.path("bin")).expect("made");
        if has_systemd {
            fs::create_dir_all(machine.path("run/systemd/system")).expect("made");
        }
        for program in ["systemd-sysusers", "systemd-tmpfiles", "deb-systemd-helper", "deb-systemd-invoke"] {
            machine.program(program, "");
        }
        machine.kills("process");
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn put(&self, path: &str, content: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("it has one")).expect("made");
        fs::write(path, content).expect("written");
    }

    /// A stand-in that records its call, and then runs `does`.
    fn program(&self, name: &str, does: &str) {
        let path = format!("bin/{name}");
        let log = self.path("calls");
        self.put(&path, &format!("#!/bin/sh\necho {name} \"$@\" >>{}\n{does}\n", log.display()));
        fs::set_permissions(self.path(&path), fs::Permissions::from_mode(0o755)).expect("set");
    }

    /// Sets systemd's answer about the agent's unit.
    fn kills(&self, mode: &str) {
        self.program("systemctl", &format!("[ \"$1\" != show ] || echo {mode}"));
    }

    /// Runs a script; returns the calls it made, and its output.
    #[track_caller]
    fn run(&self, package: &str, script: &str, arguments: &[&str]) -> (String, String) {
        let _ = fs::remove_file(self.path("calls"));
        let script = root().join("packaging").join(package).join("deb").join(script);
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").expect("set"));
        let mut command = Command::new("sh");
        command.arg(&script).args(arguments).env("PATH", path).env("DPKG_ROOT", self.folder.path());
        let output = command.output().expect("it runs");
        let printed = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{} {arguments:?}: {printed}", script.display());
        (fs::read_to_string(self.path("calls")).unwrap_or_default(), printed)
    }
}

#[test]
fn scripts_are_scripts() {
    let mut checked = 0;
    for package in &PACKAGES {
        for format in ["deb", "rpm"] {
            let Ok(entries) = fs::read_dir(root().join("packaging").join(package.name).join(format)) else { continue };
            for entry in entries {
                let path = entry.expect("an entry").path();
                output_of("sh", &["-n"], &path);
                let name = path.file_name().expect("it has one").to_string_lossy().into_owned();
                if format == "deb" {
                    let information = output_of("dpkg-deb", &["--info"], &file(package.name, "deb"));
                    let line = information.lines().find(|line| line.contains(&format!(" {name} ")));
                    assert!(line.is_some_and(|line| line.contains("#!/bin/sh")), "{name}: {information}");
                } else {
                    let scripts = output_of("rpm", &["-qp", "--scripts"], &file(package.name, "rpm"));
                    let text = fs::read_to_string(&path).expect("there");
                    assert!(scripts.contains(text.trim_end()), "{name}: {scripts}");
                }
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 12);
}

#[test]
fn a_service_is_started_when_it_is_new_and_restarted_when_it_was_there() {
    for name in ["ferry-server", "ferry-agent"] {
        let machine = Machine::new(true);
        let (calls, _) = machine.run(name, "postinst", &["configure", ""]);
        assert!(calls.contains(&format!("deb-systemd-helper enable {name}.service")), "{calls}");
        assert!(calls.contains(&format!("deb-systemd-invoke start {name}.service")), "{calls}");
        let (calls, _) = machine.run(name, "prerm", &["upgrade", "2"]);
        assert_eq!(calls, "", "an upgrade stops nothing beforehand");
        let (calls, _) = machine.run(name, "postrm", &["upgrade", "2"]);
        assert_eq!(calls, "");
        let (calls, _) = machine.run(name, "postinst", &["configure", "1"]);
        assert!(calls.contains(&format!("deb-systemd-invoke restart {name}.service")), "{calls}");
        assert!(calls.find("daemon-reload") < calls.find("restart"), "{calls}");
        let (calls, _) = machine.run(name, "prerm", &["remove"]);
        assert_eq!(calls, format!("deb-systemd-invoke stop {name}.service\n"));
    }
}

#[test]
fn a_service_that_was_disabled_stays_so() {
    for name in ["ferry-server", "ferry-agent"] {
        let machine = Machine::new(true);
        machine.program("deb-systemd-helper", "[ \"$2\" != was-enabled ]");
        let (calls, _) = machine.run(name, "postinst", &["configure", "1"]);
        assert!(!calls.contains("enable ferry"), "{calls}");
    }
}

#[test]
fn the_agent_is_not_restarted_where_that_would_end_moves() {
    let machine = Machine::new(true);
    machine.kills("control-group");
    let (calls, printed) = machine.run("ferry-agent", "postinst", &["configure", "1"]);
    assert!(!calls.contains("restart"), "{calls}");
    assert!(
        printed.contains("KillMode=control-group") && printed.contains("systemctl edit ferry-agent.service"),
        "{printed}"
    );
}

#[test]
fn without_systemd_nothing_is_started_and_nothing_fails() {
    for name in ["ferry-server", "ferry-agent"] {
        let machine = Machine::new(false);
        for (script, arguments) in [
            ("postinst", &["configure", ""][..]),
            ("prerm", &["upgrade", "2"]),
            ("postinst", &["configure", "1"]),
            ("prerm", &["remove"]),
            ("postrm", &["remove"]),
            ("postrm", &["purge"]),
        ] {
            let (calls, _) = machine.run(name, script, arguments);
            assert!(!calls.contains("invoke") && !calls.contains("systemctl"), "{script} {arguments:?}: {calls}");
        }
    }
}

const HOOK: &str =
    "#!/bin/sh\n# ferry: veto a second start of a VM that is being moved\nholds='/var/lib/ferry-agent/holds'\n";
const HELD: &str = "0d7a4d0e-4f57-4f3e-9a80-0c6a4b6ad001";

/// A host after setup, with shares' mounts and a foreign file beside Ferry's.
fn host() -> Machine {
    let machine = Machine::new(true);
    for path in [
        "etc/ferry/agent.toml",
        "var/lib/ferry-agent/agent.key",
        "var/lib/ferry-agent/shares/x/auth",
        "srv/ferry/vms/web01.qcow2",
        "etc/libvirt/qemu.conf",
        "run/ferry/m/0123/memory.sock",
    ] {
        machine.put(path, "");
    }
    machine.put("etc/libvirt/hooks/qemu.d/ferry", HOOK);
    fs::create_dir_all(machine.path("var/lib/ferry-agent/holds")).expect("made");
    machine
}

#[test]
fn removing_the_agent_leaves_everything_that_vms_need() {
    let machine = host();
    machine.run("ferry-agent", "postrm", &["remove"]);
    for path in [
        "etc/ferry/agent.toml",
        "var/lib/ferry-agent/shares/x/auth",
        "srv/ferry/vms/web01.qcow2",
        "etc/libvirt/hooks/qemu.d/ferry",
        "run/ferry/m/0123/memory.sock",
    ] {
        assert!(machine.path(path).exists(), "{path}");
    }
}

#[test]
fn purging_the_agent_removes_its_own_and_nothing_of_vms() {
    let machine = host();
    machine.run("ferry-agent", "postrm", &["purge"]);
    for path in ["etc/ferry", "var/lib/ferry-agent", "etc/libvirt/hooks/qemu.d/ferry"] {
        assert!(!machine.path(path).exists(), "{path}");
    }
    for path in ["srv/ferry/vms/web01.qcow2", "etc/libvirt/qemu.conf", "run/ferry/m/0123/memory.sock"] {
        assert!(machine.path(path).exists(), "{path}");
    }
    machine.put("etc/libvirt/hooks/qemu.d/ferry", "#!/bin/sh\n# mine\n");
    machine.put("etc/ferry/server.toml", "");
    machine.run("ferry-agent", "postrm", &["purge"]);
    assert!(machine.path("etc/libvirt/hooks/qemu.d/ferry").exists(), "it is not Ferry's");
    assert!(machine.path("etc/ferry/server.toml").exists(), "it is the server's");
}

#[test]
fn purging_the_agent_keeps_the_veto_against_a_second_start_while_a_vm_is_held() {
    for holds in ["var/lib/ferry-agent/holds", "data/holds"] {
        let machine = host();
        machine
            .put("etc/libvirt/hooks/qemu.d/ferry", &HOOK.replace("/var/lib/ferry-agent/holds", &format!("/{holds}")));
        machine.put(&format!("{holds}/{HELD}"), "job 7");
        let (_, printed) = machine.run("ferry-agent", "postrm", &["purge"]);
        assert!(printed.contains(HELD), "{printed}");
        for path in ["etc/libvirt/hooks/qemu.d/ferry", "var/lib/ferry-agent/agent.key", &format!("{holds}/{HELD}")] {
            assert!(machine.path(path).exists(), "{path}");
        }
    }
}

#[test]
fn purging_the_agent_takes_back_its_rule_for_apparmor_and_no_other() {
    let machine = host();
    let ours = "# ferry: begin. Written by set-up.\n/run/ferry/m/*/x.sock rw,\n# ferry: end\n";
    let (folder, file) =
        ("etc/apparmor.d/abstractions/libvirt-qemu.d", "etc/apparmor.d/local/abstractions/libvirt-qemu");
    machine.put(&format!("{folder}/ferry"), ours);
    machine.put(&format!("{folder}/mine"), "/mine rw,\n");
    machine.put(file, &format!("/before r,\n{ours}/after r,\n"));
    machine.run("ferry-agent", "postrm", &["remove"]);
    assert!(machine.path(folder).join("ferry").exists());
    machine.run("ferry-agent", "postrm", &["purge"]);
    assert!(!machine.path(folder).join("ferry").exists());
    assert!(machine.path(folder).join("mine").exists());
    assert_eq!(fs::read_to_string(machine.path(file)).expect("there"), "/before r,\n/after r,\n");
}

#[test]
fn purging_the_agent_keeps_what_a_mounted_share_needs() {
    let machine = host();
    let tree = machine.path("var/lib/ferry-agent/shares/x/tree");
    machine.put("proc/mounts", &format!("smbnetfs {} fuse.smbnetfs rw 0 0\n", tree.display()));
    let (_, printed) = machine.run("ferry-agent", "postrm", &["purge"]);
    assert!(printed.contains("shares"), "{printed}");
    assert!(machine.path("var/lib/ferry-agent/shares/x/auth").exists());
    assert!(!machine.path("var/lib/ferry-agent/agent.key").exists());
}

#[test]
fn purging_the_server_removes_its_state_and_removing_it_does_not() {
    let machine = Machine::new(true);
    machine.put("var/lib/ferry-server/ferry.db", "");
    machine.put("etc/ferry/agent.toml", "");
    machine.run("ferry-server", "postrm", &["remove"]);
    assert!(machine.path("var/lib/ferry-server/ferry.db").exists());
    machine.run("ferry-server", "postrm", &["purge"]);
    assert!(!machine.path("var/lib/ferry-server").exists());
    assert!(machine.path("etc/ferry/agent.toml").exists(), "it is the agent's");
}
