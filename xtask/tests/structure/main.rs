//! Checks the shape of the crates by reading their sources: no import cycle, no long file, no import of a higher layer.

#[path = "../../src/features.rs"]
mod built;
mod circles;
mod features;
mod modules;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use modules::Tree;

/// Limit of lines of product code in one file.
const LINES_MAX: usize = 500;

/// Crates that still have a cycle. A crate is removed from this list with its last cycle.
const CIRCULAR: [&str; 0] = [];

/// Layers of crates, from the bottom up, as module paths: a file may only name modules of its own layer or below.
/// Modules that are not listed may name all others, and be named by them.
const LAYERS: [(&str, &[&str]); 2] = [
    ("cli", &["failure", "output", "render", "progress", "cmd"]),
    (
        "server",
        &[
            "clock",
            "store",
            "failure",
            "events",
            "plan",
            "inventory",
            "preflight",
            "jobs::running",
            "view",
            "saga",
            "jobs::queue",
            "jobs::driver",
            "app",
            "http",
        ],
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace").to_owned()
}

/// Each crate's name, and its library and programs.
fn crates() -> Vec<(String, Vec<Tree>)> {
    let root = root();
    let mut folders: Vec<PathBuf> =
        root.join("crates").read_dir().expect("crates").map(|entry| entry.expect("read").path()).collect();
    folders.sort();
    folders.extend([root.join("xtask"), root.join("guests/ticker")]);
    let trees = |folder: &Path| {
        let programs = folder.join("src/bin").read_dir().into_iter().flatten().map(|entry| entry.expect("read").path());
        let roots = [folder.join("src/lib.rs"), folder.join("src/main.rs")].into_iter().chain(programs);
        roots.filter(|file| file.is_file()).map(|file| Tree::read(&root, &file)).collect::<Vec<_>>()
    };
    let name = |folder: &Path| folder.file_name().expect("a name").to_str().expect("UTF-8").to_owned();
    folders.iter().map(|folder| (name(folder), trees(folder))).collect()
}

#[test]
fn no_imports_go_in_a_circle() {
    let mut circular = BTreeSet::new();
    let mut surprises = Vec::new();
    for (name, trees) in crates() {
        let found: Vec<String> = trees.iter().flat_map(circles::circles).collect();
        if found.is_empty() {
            continue;
        }
        if !CIRCULAR.contains(&name.as_str()) {
            surprises.push(format!("{} circles in {name}, the shortest first:\n{}", found.len(), found.join("\n\n")));
        }
        circular.insert(name);
    }
    assert!(
        surprises.is_empty(),
        "Files import each other: what both need goes below them\n{}",
        surprises.join("\n\n")
    );
    let cured: Vec<_> = CIRCULAR.into_iter().filter(|name| !circular.contains(*name)).collect();
    assert!(cured.is_empty(), "No circle is left here, so these leave the list CIRCULAR: {cured:?}");
}

#[test]
fn no_file_is_long() {
    let crates = crates();
    let files = crates.iter().flat_map(|(_, trees)| trees).flat_map(|tree| &tree.files);
    let long = files.filter(|file| file.lines > LINES_MAX);
    let listed: Vec<_> = long.map(|file| format!("{} lines: {}", file.lines, file.path)).collect();
    assert!(listed.is_empty(), "A file has at most {LINES_MAX} lines besides its tests\n{}", listed.join("\n"));
}

#[test]
fn no_file_names_a_higher_layer() {
    let crates = crates();
    let mut surprises = Vec::new();
    for (name, layers) in LAYERS {
        let (_, trees) = crates.iter().find(|(found, _)| found == name).unwrap_or_else(|| panic!("no crate {name}"));
        // The layer of a module is that of the longest listed path that contains it.
        let layer = |module: &[String]| {
            let module = module.join("::");
            let is_of = |layer: &str| module == layer || module.starts_with(&format!("{layer}::"));
            let of = layers.iter().enumerate().filter(|(_, layer)| is_of(layer));
            of.max_by_key(|(_, layer)| layer.len()).map(|(height, _)| height)
        };
        let files = || trees.iter().flat_map(|tree| &tree.files);
        for (height, listed) in layers.iter().enumerate() {
            assert!(files().any(|file| layer(&file.module) == Some(height)), "{name} has no layer {listed} any more");
        }
        for tree in trees {
            for (from, file) in tree.files.iter().enumerate() {
                for edge in tree.edges(from) {
                    let to = &tree.files[edge.to];
                    if let (Some(low), Some(high)) = (layer(&file.module), layer(&to.module))
                        && low < high
                    {
                        surprises.push(format!("{}:{} names {} of {}", file.path, edge.line, edge.path, to.path));
                    }
                }
            }
        }
    }
    assert!(surprises.is_empty(), "A file names only its own layer and those below it\n{}", surprises.join("\n"));
}

/// A crate of three files in a folder of its own.
fn sample(files: [(&str, &str); 3]) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).expect("written");
    }
    circles::circles(&Tree::read(folder.path(), &folder.path().join("lib.rs")))
}

#[test]
fn a_circle_is_told_file_by_file_and_through_names_that_are_passed_on() {
    let lib = ("lib.rs", "mod a; mod b; pub use b::thing;");
    let found = sample([lib, ("a.rs", "use crate::thing;"), ("b.rs", "pub fn thing() {\n    crate::a::other();\n}")]);
    assert_eq!(found, ["  a.rs:1 names crate::thing of\n  b.rs:2 names crate::a::other of\n  a.rs"]);
}

#[test]
fn tests_and_what_is_only_passed_on_make_no_circle() {
    let lib = ("lib.rs", "mod a; mod b; pub use a::A; pub const C: u8 = 1;");
    let b = "use super::C;\n#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}\n// crate::a::A\nconst T: &str = \"crate::a::A\";";
    assert_eq!(sample([lib, ("a.rs", "use super::{b, C}; pub struct A(b::B);"), ("b.rs", b)]), [""; 0]);
}
