//! Checks a program's requirements on the libraries of its target systems.

use std::{path::Path, process::Command};

use anyhow::{Context as _, bail, ensure};

/// A library that programs may be linked to.
struct Library {
    /// Prefix of its file name.
    name: &'static str,
    /// Prefix of its version nodes.
    nodes: &'static str,
    /// The newest node that a program may require.
    newest: &'static [u32],
}

/// Versions that both Debian 12 and Red Hat Enterprise Linux 9 have; the latter has the older C library, the former the
/// older libvirt.
const LIBRARIES: [Library; 6] = [
    Library { name: "ld-linux-", nodes: "GLIBC_", newest: &[2, 34] },
    Library { name: "libc.so.", nodes: "GLIBC_", newest: &[2, 34] },
    Library { name: "libm.so.", nodes: "GLIBC_", newest: &[2, 34] },
    Library { name: "libgcc_s.so.", nodes: "GCC_", newest: &[11, 0, 0] },
    Library { name: "libvirt.so.", nodes: "LIBVIRT_", newest: &[9, 0, 0] },
    // From the same package as the previous one.
    Library { name: "libvirt-qemu.so.", nodes: "LIBVIRT_QEMU_", newest: &[9, 0, 0] },
];

/// Reads a program's libraries with their versions, and checks them.
///
/// # Errors
/// The program would not start on the oldest supported system.
pub(super) fn check(program: &Path) -> anyhow::Result<()> {
    let output = Command::new("objdump").arg("-p").arg(program).output().context("Could not run objdump")?;
    let name = program.display();
    ensure!(output.status.success(), "objdump cannot read {name}: {}", String::from_utf8_lossy(&output.stderr));
    let faults = faults(&String::from_utf8_lossy(&output.stdout));
    if faults.is_empty() {
        return Ok(());
    }
    bail!("{name} does not run on every system that packages are for: {}. Build them on Debian 12", faults.join(", "))
}

/// Libraries that are too new, or not in the list, in the output of `objdump -p`.
fn faults(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut of = "";
    for line in text.lines().map(str::trim) {
        if let Some(library) = line.strip_prefix("NEEDED") {
            if known(library.trim()).is_none() {
                faults.push(format!("it links {}", library.trim()));
            }
        } else if let Some(library) = line.strip_prefix("required from ") {
            of = library.trim_end_matches(':');
        } else if line.starts_with("0x")
            && let Some(node) = line.split_whitespace().nth(3)
            && !is_old_enough(of, node)
        {
            faults.push(format!("it asks {of} for {node}"));
        }
    }
    faults
}

fn known(library: &str) -> Option<&'static Library> {
    LIBRARIES.iter().find(|known| library.starts_with(known.name))
}

/// A node that cannot be parsed, such as a library's private one, does not count as old enough.
fn is_old_enough(library: &str, node: &str) -> bool {
    let Some(library) = known(library) else { return false };
    let Some(version) = node.strip_prefix(library.nodes) else { return false };
    let parts: Result<Vec<u32>, _> = version.split('.').map(str::parse).collect();
    parts.is_ok_and(|parts| parts.as_slice() <= library.newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
Dynamic Section:
  NEEDED               libvirt.so.0
  NEEDED               libvirt-qemu.so.0
  NEEDED               libc.so.6
  NEEDED               ld-linux-x86-64.so.2
  SONAME               x

Version References:
  required from libc.so.6:
    0x069691b6 0x00 05 GLIBC_2.34
    0x09691a75 0x00 03 GLIBC_2.2.5
  required from libvirt.so.0:
    0x0d5c2a22 0x00 02 LIBVIRT_9.0.0
    0x0d5c2a23 0x00 04 LIBVIRT_0.10.2
  required from libvirt-qemu.so.0:
    0x0b5c2a22 0x00 06 LIBVIRT_QEMU_0.8.3
";

    #[test]
    fn a_program_that_asks_for_more_than_the_oldest_systems_have_is_refused() {
        assert_eq!(faults(GOOD), Vec::<String>::new());
        for (old, new, fault) in [
            ("LIBVIRT_9.0.0", "LIBVIRT_9.1.0", "it asks libvirt.so.0 for LIBVIRT_9.1.0"),
            ("LIBVIRT_9.0.0", "LIBVIRT_10.2.0", "it asks libvirt.so.0 for LIBVIRT_10.2.0"),
            ("LIBVIRT_9.0.0", "LIBVIRT_PRIVATE_9.0.0", "it asks libvirt.so.0 for LIBVIRT_PRIVATE_9.0.0"),
            ("QEMU_0.8.3", "QEMU_10.1.0", "it asks libvirt-qemu.so.0 for LIBVIRT_QEMU_10.1.0"),
            ("GLIBC_2.34", "GLIBC_2.38", "it asks libc.so.6 for GLIBC_2.38"),
            ("NEEDED               libc.so.6", "NEEDED               libssl.so.3", "it links libssl.so.3"),
        ] {
            assert_eq!(faults(&GOOD.replace(old, new)), [fault]);
        }
    }

    #[test]
    fn this_very_program_is_read() {
        let own = std::env::current_exe().expect("it runs");
        let output = Command::new("objdump").arg("-p").arg(own).output().expect("objdump runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("NEEDED               libc.so.6") && text.contains("required from libc.so.6:"), "{text}");
    }
}
