//! Stock hosts: whole Debian systems as hosts of a lab, with Debian's own kernel, systemd, AppArmor and libvirt.
//!
//! ```text
//! fabric namespace   br0 10.77.0.254 · Samba · ferry-server · observers      br1 (migration network)
//!   ├─ s1n0 ── stock1  Debian 13, emulated: br0 with its guests ·  mig0 ───────┤
//!   ├─ s2n0 ── stock2  …                                          mig0 ───────┤
//! ```
//! They are slow (emulated processors, whose guests are emulated once more), but show what namespace hosts cannot:
//! confinement, units, the kernel's SMB and NFS clients, delay on a link. Ferry is installed from its packages.
//!
//! Machines, and guests on them, are booted once: their state is then saved in the cache, and later runs continue from
//! there (`docs/adr/0020`).

pub mod demo;
pub mod emulator;
pub mod guest_agent;
pub mod image;
pub mod machine;
mod modular;
mod qmp;
pub mod site;
