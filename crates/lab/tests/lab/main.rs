//! Tests with real hosts: namespaces, libvirt, QEMU, Samba, and guests that notice what a move did to them. One program,
//! because its many types are compiled once.
#![cfg(feature = "lab")]

mod agents;
mod broken_disk;
mod chaos;
mod debian;
mod handover;
mod hosts;
mod jobs;
mod libvirt;
mod moves;
mod networks;
mod offline;
mod promises;
mod storage;
mod storage_failures;
mod storage_kills;
mod storage_pairs;
mod with_disks;
