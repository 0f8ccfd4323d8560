//! VMs of a host: their power, and the sizes of their files.

use serde::{Deserialize, Serialize};

use crate::units::ByteCount;

/// A change of a VM's power state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// Start it.
    Start,
    /// Ask the guest to shut itself down.
    Shutdown,
}

/// Start or shut down a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerRequest {
    /// The change.
    pub power: Power,
}

/// A disk of a running VM and its sizes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSize {
    /// The disk's name in the definition, `vda`.
    pub device: String,
    /// The size that the guest sees.
    pub virtual_size: ByteCount,
    /// The space that the image occupies, as far as its file system reports.
    pub allocated: ByteCount,
}

/// A file of a VM that is shut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSize {
    /// The device's name in the definition, or `nvram`, `kernel`, `initrd`, `dtb`.
    pub device: String,
    /// Its length.
    pub length: ByteCount,
    /// The space that it occupies, as far as its file system reports.
    pub allocated: ByteCount,
}
