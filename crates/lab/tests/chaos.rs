//! Each kind of fault once, in the middle of a move: no VM is lost, split or damaged, and no job is left without words.
//! `cargo xtask chaos` does the same as often as is asked for.
#![cfg(feature = "lab")]

use ferry_lab::chaos::{Broken, Kind, Options, Sabotage, run};

/// Any will do: of this one's twelve plans nine are aimed at the hand-over, and nothing is away for long.
const SEED: u64 = 382;

/// Plays each kind once and looks at nothing but what was broken.
fn survive(kinds: &[Kind]) {
    let runs = kinds.len() as u64;
    let options = Options { runs, seed: Some(SEED), kinds: kinds.to_vec(), sabotage: None, storage: false };
    let report = run(&options).expect("every run is played");
    assert!(report.is_good(), "{}{}", report.table(), report.findings());
}

#[test]
fn no_vm_is_lost_when_a_program_is_killed_and_started_again() {
    survive(&[
        Kind::Server,
        Kind::SourceAgent,
        Kind::DestinationAgent,
        Kind::SourceLibvirtd,
        Kind::DestinationLibvirtd,
        Kind::Smbd,
    ]);
}

#[test]
fn no_vm_is_lost_when_a_carrier_a_receiver_a_link_or_a_host_fails() {
    survive(&[
        Kind::SourceCarrier,
        Kind::DestinationCarrier,
        Kind::DestinationQemu,
        Kind::Link,
        Kind::SourceHost,
        Kind::DestinationHost,
    ]);
}

#[test]
fn each_broken_promise_is_reported_and_no_other() {
    for sabotage in [Sabotage::Lost, Sabotage::Split, Sabotage::Corrupt, Sabotage::Stuck] {
        let options =
            Options { runs: 1, seed: Some(SEED), kinds: Vec::new(), sabotage: Some(sabotage), storage: false };
        let report = run(&options).expect("the run is played");
        for broken in [Broken::Lost, Broken::Split, Broken::Corrupt, Broken::Stuck] {
            let expected = broken == sabotage.broken();
            assert_eq!(report.count(broken) > 0, expected, "{sabotage:?}: {broken}: {}", report.findings());
        }
    }
}
