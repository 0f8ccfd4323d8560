//! Programs and their tests are built from the same crates.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use super::{built::FEATURES, root};

/// Crates of which no program is made: the structure tests use it to read sources, and macros have their own.
const OF_TESTS_ALONE: [&str; 1] = ["proc-macro2"];

/// Each crate that is built for the kinds of dependencies, with its sets of features.
fn crates(kinds: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut command = Command::new(env!("CARGO"));
    command.args(["tree", "--locked", "--offline", "--workspace", "--features", FEATURES, "-e", kinds]);
    let output = command.args(["--prefix", "none", "-f", "{p} | {f}"]).current_dir(root()).output().expect("cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut crates = BTreeMap::<_, BTreeSet<_>>::new();
    for line in String::from_utf8(output.stdout).expect("UTF-8").lines() {
        if let Some((name, features)) = line.split_once(" | ") {
            crates.entry(name.to_owned()).or_default().insert(features.trim_end_matches(" (*)").to_owned());
        }
    }
    crates
}

/// A crate with other features is another crate, and all that depend on it are built again: that was five minutes of
/// each run.
#[test]
fn tests_turn_on_no_feature_of_a_crate_that_programs_lack() {
    let (programs, tests) = (crates("normal,build"), crates("normal,build,dev"));
    let differ = |(name, features): &(&String, &BTreeSet<String>)| {
        !OF_TESTS_ALONE.iter().any(|alone| name.starts_with(alone)) && tests.get(*name) != Some(*features)
    };
    let found: Vec<_> = programs.iter().filter(differ).map(|(name, _)| name).collect();
    assert!(found.is_empty(), "turn these on in ferry-lab's feature `lab` as well: {found:?}");
    assert!(programs.len() > 100, "it looked at {} crates", programs.len());
}
