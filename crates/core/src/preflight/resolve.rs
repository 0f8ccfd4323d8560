//! Finds the VM that a reference means.

use std::collections::BTreeSet;

use crate::{
    finding::{Action, ByHand, Command, Finding, FindingId, Message},
    id::VmId,
    text::AllOf,
    vm::VmState,
};

/// A VM on a host, as the inventory knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The host's name.
    pub host: String,
    /// The VM's id.
    pub id: VmId,
    /// The VM's name.
    pub name: String,
    /// Whether it runs there.
    pub state: VmState,
}

/// Finds the VM that `reference` means: a name, a UUID, or `HOST/NAME`. Returns an index into `placed`.
///
/// If several hosts define a VM, the one with a process counts; if none has a process, a plain name is ambiguous.
///
/// # Errors
/// `vm.unknown`, `vm.ambiguous` (with the list of `HOST/NAME`), `vm.runs-twice`.
pub fn resolve_vm(reference: &str, placed: &[Placed]) -> Result<usize, Finding> {
    let (host, name) = match reference.split_once('/') {
        Some((host, name)) => (Some(host), name),
        None => (None, reference),
    };
    let id: Option<VmId> = name.parse().ok();
    let mut matches: Vec<usize> = (0..placed.len())
        .filter(|&index| {
            let vm = &placed[index];
            (vm.name == name || Some(vm.id) == id) && host.is_none_or(|host| vm.host == host)
        })
        .collect();
    let ids: BTreeSet<VmId> = matches.iter().map(|&index| placed[index].id).collect();
    if ids.len() == 1 && matches.len() > 1 {
        let alive: Vec<usize> =
            matches.iter().copied().filter(|&index| placed[index].state != VmState::ShutOff).collect();
        let running = alive.iter().filter(|&&index| placed[index].state == VmState::Running).count();
        if running > 1 {
            return Err(runs_twice(&placed[matches[0]].name, &hosts_of(&alive, placed)));
        }
        if !alive.is_empty() {
            matches = vec![*alive.iter().find(|&&index| placed[index].state == VmState::Running).unwrap_or(&alive[0])];
        }
    }
    match matches[..] {
        [] => Err(Finding::blocks(
            FindingId::VmUnknown,
            reference,
            Message::VmUnknown { vm: reference.to_owned() },
            Action::ListVms,
        )),
        [one] => Ok(one),
        _ => {
            let list: Vec<String> =
                matches.iter().map(|&index| format!("{}/{}", placed[index].host, placed[index].name)).collect();
            Err(Finding::blocks(
                FindingId::VmAmbiguous,
                reference,
                Message::VmAmbiguous { vm: reference.to_owned(), which: list.iter().collect() },
                ByHand::SayWhich { example: list[0].clone() },
            ))
        }
    }
}

/// The finding of a VM that runs on several hosts.
pub fn runs_twice(vm: &str, hosts: &[String]) -> Finding {
    Finding::blocks(
        FindingId::VmRunsTwice,
        vm,
        Message::VmRunsTwice { vm: vm.to_owned(), hosts: AllOf(hosts.to_vec()) },
        Command::DestroyCopies,
    )
}

fn hosts_of(indices: &[usize], placed: &[Placed]) -> Vec<String> {
    indices.iter().map(|&index| placed[index].host.clone()).collect()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn placed(host: &str, id: u128, name: &str, state: VmState) -> Placed {
        Placed { host: host.into(), id: VmId(Uuid::from_u128(id)), name: name.into(), state }
    }

    #[test]
    fn a_reference_finds_one_vm_or_says_why_not() {
        let inventory = [
            placed("kvm1", 1, "web01", VmState::Running),
            placed("kvm1", 2, "db", VmState::Running),
            placed("kvm2", 3, "db", VmState::ShutOff),
            // An earlier move left it behind: the one with a process counts.
            placed("kvm2", 1, "web01", VmState::ShutOff),
            placed("kvm1", 5, "twin", VmState::Running),
            placed("kvm2", 5, "twin", VmState::Running),
        ];
        let uuid = Uuid::from_u128(2).to_string();
        for (reference, expected) in [
            ("web01", Ok(0)),
            ("kvm2/web01", Ok(3)),
            ("db", Err(FindingId::VmAmbiguous)),
            ("kvm2/db", Ok(2)),
            (uuid.as_str(), Ok(1)),
            ("nope", Err(FindingId::VmUnknown)),
            ("kvm3/web01", Err(FindingId::VmUnknown)),
            ("", Err(FindingId::VmUnknown)),
            ("twin", Err(FindingId::VmRunsTwice)),
        ] {
            assert_eq!(resolve_vm(reference, &inventory).map_err(|finding| finding.id), expected, "{reference}");
        }
        let ambiguous = resolve_vm("db", &inventory).expect_err("two of that name");
        assert!(ambiguous.message.to_string().contains("kvm1/db, kvm2/db"), "{}", ambiguous.message);
    }
}
