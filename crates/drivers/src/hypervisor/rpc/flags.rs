//! `VIR_MIGRATE_*`: how libvirt is asked to move a VM.

/// `VIR_MIGRATE_LIVE`
pub const FLAG_LIVE: u32 = 1 << 0;
/// `VIR_MIGRATE_PEER2PEER`
pub const FLAG_PEER2PEER: u32 = 1 << 1;
/// `VIR_MIGRATE_PERSIST_DEST`
pub const FLAG_PERSIST_DEST: u32 = 1 << 3;
/// `VIR_MIGRATE_PAUSED`
pub const FLAG_PAUSED: u32 = 1 << 5;
/// `VIR_MIGRATE_NON_SHARED_DISK`: disks are migrated.
pub const FLAG_NON_SHARED_DISK: u32 = 1 << 6;
/// `VIR_MIGRATE_CHANGE_PROTECTION`: libvirt's own lock against changes during the move.
pub const FLAG_CHANGE_PROTECTION: u32 = 1 << 8;
/// `VIR_MIGRATE_UNSAFE`: the source's libvirt does not check that files are shared. No effect at a destination.
pub const FLAG_UNSAFE: u32 = 1 << 9;
/// `VIR_MIGRATE_ABORT_ON_ERROR`
pub const FLAG_ABORT_ON_ERROR: u32 = 1 << 12;
/// `VIR_MIGRATE_AUTO_CONVERGE`
pub const FLAG_AUTO_CONVERGE: u32 = 1 << 13;
/// `VIR_MIGRATE_NON_SHARED_SYNCHRONOUS_WRITES`
pub const FLAG_SYNCHRONOUS_WRITES: u32 = 1 << 18;
