//! Checks ARCHITECTURE.md's list of what is deliberately absent, by reading manifests and sources.
//!
//! They are read as text: a crate that must not depend on another must not even name it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_owned()
}

/// The names below `[dependencies]` of a crate, without dev-dependencies.
fn dependencies(name: &str) -> BTreeSet<String> {
    let manifest = root().join("crates").join(name).join("Cargo.toml");
    let text = fs::read_to_string(&manifest).unwrap_or_else(|error| panic!("{}: {error}", manifest.display()));
    let mut inside = false;
    let mut found = BTreeSet::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line == "[dependencies]";
        } else if inside
            && !line.starts_with('#')
            && let Some(name) = line.split(['=', '.', ' ']).next().filter(|name| !name.is_empty())
        {
            found.insert(name.to_owned());
        }
    }
    assert!(!found.is_empty() || name == "core", "{} lists no dependency: is it read rightly?", manifest.display());
    found
}

fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("sources are UTF-8");
                files.push((path, text));
            }
        }
    }
    assert!(!files.is_empty(), "{} holds no source", folder.display());
    files
}

fn crate_sources(name: &str) -> Vec<(PathBuf, String)> {
    sources(&root().join("crates").join(name).join("src"))
}

/// Lines of code that contain one of `words`; comments, and everything after the start of the file's own tests, are
/// skipped.
fn lines_with(files: &[(PathBuf, String)], words: &[&str]) -> Vec<String> {
    let mut hits = Vec::new();
    for (path, text) in files {
        for (number, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("#[cfg(test)]") {
                break;
            }
            let code = line.split("//").next().unwrap_or_default();
            if words.iter().any(|word| code.contains(word)) {
                hits.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    hits
}

#[track_caller]
fn none(hits: &[String], rule: &str) {
    assert!(hits.is_empty(), "{rule}\n{}", hits.join("\n"));
}

#[test]
fn crates_depend_only_along_the_arrows() {
    for (name, allowed) in [
        ("core", &[][..]),
        ("manual", &[]),
        ("trust", &["ferry-core"]),
        ("wire", &["ferry-core", "ferry-trust"]),
        ("drivers", &["ferry-core"]),
        ("client", &["ferry-core", "ferry-trust"]),
        ("agent", &["ferry-core", "ferry-trust", "ferry-wire", "ferry-drivers", "ferry-manual"]),
        ("server", &["ferry-core", "ferry-trust", "ferry-client", "ferry-manual"]),
        ("texts", &["ferry-core"]),
        ("cli", &["ferry-core", "ferry-trust", "ferry-client", "ferry-manual", "ferry-texts"]),
    ] {
        for dependency in dependencies(name) {
            assert!(
                !dependency.starts_with("ferry-") || allowed.contains(&dependency.as_str()),
                "{name} must not depend on {dependency}"
            );
        }
    }
}

#[test]
fn core_is_pure() {
    for banned in ["tokio", "tracing", "axum", "reqwest", "nix", "log"] {
        assert!(!dependencies("core").contains(banned), "core must not depend on {banned}");
    }
    let core = crate_sources("core");
    none(
        &lines_with(
            &core,
            &["async fn", "::now(", "std::fs", "std::net::Tcp", "std::process", "std::thread", "println!"],
        ),
        "core decides; it does not act, and time is an argument",
    );
}

#[test]
fn what_is_said_has_a_key() {
    for name in ["core", "drivers", "client", "agent", "server", "cli"] {
        let mut files = crate_sources(name);
        // What the version before says is defined and read there; the last is a model.
        let are_exempt = [
            "core/src/finding/mod.rs",
            "core/src/finding/message.rs",
            "core/src/finding/fix.rs",
            "server/src/saga/models/world.rs",
        ];
        files.retain(|(path, _)| !are_exempt.iter().any(|exempt| path.ends_with(exempt)));
        files.retain(|(path, _)| !path.to_string_lossy().contains("tests"));
        let rule = "a finding is a sentence with a key: see core/src/finding";
        none(&lines_with(&files, &["Finding::of_text(", "Message::Text {", "ByHand::Text {"]), rule);
    }
}

#[test]
fn only_drivers_link_libvirt_and_run_mounts() {
    for name in ["core", "trust", "wire", "client", "agent", "server", "cli"] {
        let found = dependencies(name);
        for banned in ["virt-sys", "virt", "roxmltree", "xot"] {
            assert!(!found.contains(banned), "{name} must not depend on {banned}");
        }
        // Setup and its checks of the host name the programs and packages to install.
        let files: Vec<_> = crate_sources(name)
            .into_iter()
            .filter(|(path, _)| !path.ends_with("setup.rs") && !path.ends_with("checks.rs"))
            .collect();
        none(
            &lines_with(&files, &["\"mount\"", "\"umount\"", "\"smbclient\"", "\"smbnetfs\"", "\"crm_"]),
            "mounts and cluster commands are run by drivers alone",
        );
    }
}

#[test]
fn unsafe_code_sits_in_one_folder() {
    let mut allowed = Vec::new();
    for name in ["core", "trust", "wire", "client", "agent", "server", "cli", "drivers"] {
        for (path, text) in crate_sources(name) {
            if text.contains("allow(unsafe_code)") {
                allowed.push(path);
            }
        }
    }
    assert_eq!(allowed.len(), 1, "one folder talks to libvirt's C interface: {allowed:?}");
    assert!(allowed[0].starts_with(root().join("crates/drivers/src/hypervisor/libvirt/ffi")), "{allowed:?}");
}

#[test]
fn the_server_sees_no_guest_bytes_and_only_it_opens_the_database() {
    let server = dependencies("server");
    for banned in ["ferry-wire", "ferry-drivers"] {
        assert!(!server.contains(banned), "server must not depend on {banned}");
    }
    for name in ["core", "trust", "wire", "drivers", "client", "agent", "cli"] {
        assert!(!dependencies(name).contains("sqlx"), "{name} must not open a database");
    }
}

#[test]
fn agents_never_call_the_server() {
    let agent = dependencies("agent");
    for banned in ["ferry-client", "ferry-server", "reqwest"] {
        assert!(!agent.contains(banned), "agent must not depend on {banned}");
    }
}

#[test]
fn wire_knows_nothing_of_vms() {
    none(
        &lines_with(&crate_sources("wire"), &["VmId", "ferry_core::vm", "libvirt", "domain_"]),
        "wire moves bytes between two sockets and reports",
    );
}

#[test]
fn only_the_command_line_and_set_up_commands_print() {
    for name in ["core", "manual", "trust", "wire", "drivers", "client", "agent", "server"] {
        let files: Vec<_> = crate_sources(name)
            .into_iter()
            .filter(|(path, _)| {
                // Entry points of programs and the setup command may print.
                !path.ends_with("main.rs")
                    && !path.ends_with("setup.rs")
                    && !path.components().any(|part| part.as_os_str() == "setup")
            })
            .collect();
        none(&lines_with(&files, &["println!", "eprintln!", "print!(", "dbg!"]), "only cli and set-up commands print");
    }
}

#[test]
fn mount_points_do_not_appear_above_drivers() {
    none(
        &lines_with(&crate_sources("core"), &["std::path", "PathBuf"]),
        "files are named by Location everywhere above drivers",
    );
}

#[test]
fn errors_are_logged_with_their_causes() {
    for name in ["trust", "wire", "drivers", "client", "agent", "server", "cli"] {
        none(
            &lines_with(&crate_sources(name), &["%error", "?error", "as &dyn std::error::Error", "{error:#}\")"]),
            "ferry_core::error::chain tells an error: error = %chain(&error)",
        );
    }
}

/// Files whose tests may sleep, each with the reason.
const NAPS: [(&str, &str); 4] = [
    ("crates/server/tests/component/support.rs", "looks again and again for a condition, up to a deadline"),
    ("crates/wire/tests/component/link/mod.rs", "is a link with a latency and a rate"),
    ("crates/wire/tests/component/spool.rs", "is about time, which is a model's there"),
    ("crates/server/src/jobs", "is about time, which is a model's there"),
];

#[test]
fn no_test_naps() {
    let naps = ["thread::sleep(", "time::sleep(", "sleep_until("];
    let mut hits = Vec::new();
    for name in ["core", "trust", "wire", "drivers", "client", "agent", "server", "cli", "lab", "manual"] {
        let folder = root().join("crates").join(name);
        let mut files: Vec<_> = crate_sources(name).into_iter().map(|(path, text)| (path, its_tests(&text))).collect();
        if folder.join("tests").is_dir() {
            files.extend(sources(&folder.join("tests")));
        }
        hits.extend(lines_with(&files, &naps));
    }
    let is_listed = |hit: &String| NAPS.iter().any(|(path, _)| hit.contains(path));
    let unlisted: Vec<String> = hits.iter().filter(|hit| !is_listed(hit)).cloned().collect();
    none(&unlisted, "a test waits for a condition with a deadline");
    let unused: Vec<_> = NAPS.iter().filter(|(path, _)| !hits.iter().any(|hit| hit.contains(path))).collect();
    assert!(unused.is_empty(), "these nap no more: {unused:?}");
}

/// The part of a file that is compiled only for tests, with empty lines in place of the rest.
fn its_tests(text: &str) -> String {
    let tests = text.lines().position(|line| line.trim_start().starts_with("#[cfg(test)]"));
    let skipped = tests.map_or(usize::MAX, |line| line + 1);
    text.lines()
        .enumerate()
        .map(|(number, line)| if number < skipped { "\n" } else { line }.to_owned() + "\n")
        .collect()
}

#[test]
fn messages_of_logs_begin_as_sentences() {
    let names = ["libvirt", "systemd"];
    for name in ["trust", "wire", "drivers", "client", "agent", "server", "cli"] {
        let mut hits = Vec::new();
        for (path, text) in crate_sources(name) {
            for logged in ["warn!(\"", "info!(\"", "error!(\"", "debug!(\"", "trace!(\""] {
                for (at, _) in text.match_indices(logged) {
                    let message = &text[at + logged.len()..];
                    let is_name = names.iter().any(|name| message.starts_with(name));
                    if message.starts_with(char::is_lowercase) && !is_name {
                        let line = text[..at].lines().count();
                        hits.push(format!("{}:{line}", path.display()));
                    }
                }
            }
        }
        none(&hits, "a message of a log is a sentence without a full stop; what varies is in fields");
    }
}

#[test]
fn every_file_that_the_page_of_the_architecture_names_is_there() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("the page");
    let names: BTreeSet<&str> =
        page.split('`').skip(1).step_by(2).filter(|name| name.contains('/') && name.ends_with(".rs")).collect();
    assert!(names.len() > 30, "the page names few files: is it read rightly? {names:?}");
    let missing: Vec<&&str> = names
        .iter()
        .filter(|name| {
            let in_a_crate =
                name.split_once('/').map(|(name, path)| root().join("crates").join(name).join("src").join(path));
            !root().join(name).is_file() && !in_a_crate.is_some_and(|path| path.is_file())
        })
        .collect();
    assert!(missing.is_empty(), "ARCHITECTURE.md names files that are not there: {missing:?}");
}
