//! Real hosts on one machine.
//!
//! ```text
//! fabric namespace   bridge 10.77.0.254 · Samba (fs1.ferry.lab) · ferry-server · observers on each port
//!   ├─ port h1 ── kvm1  own network, mount, UTS, IPC and PID namespace · libvirtd · QEMU · ferry-agent
//!   └─ port h2 ── kvm2  …
//! ```
//! Everything is in namespaces of the lab: the machine's libvirt, Samba, network and files are never touched, and
//! several labs may exist at the same time. A guardian process takes a lab down when its owner ends, however it ends.

pub mod bench;
pub mod broken_disk;
pub mod cable;
pub mod cache;
pub mod chaos;
pub mod clones;
pub mod debian;
pub mod demo;
pub mod demo_storage;
pub mod fabric;
pub mod ferry;
pub mod guard;
pub mod guest;
pub mod host;
pub mod images;
pub mod lab;
pub mod local;
pub mod observe;
pub mod program;
pub mod record;
pub mod run;
pub mod samba;
pub mod site;
pub mod stock;
pub mod warnings;
