//! VMs of a host: their power, and how large their files are.

use serde::{Deserialize, Serialize};

use crate::units::ByteCount;

/// What a VM shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// Run.
    Start,
    /// Ask the guest to shut itself down.
    Shutdown,
}

/// Start or shut down a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerRequest {
    /// What it shall do.
    pub power: Power,
}

/// A disk of a running VM and its sizes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSize {
    /// The disk's name in the definition, `vda`.
    pub device: String,
    /// What the guest sees.
    pub virtual_size: ByteCount,
    /// What the image takes on its file system, as far as that tells.
    pub allocated: ByteCount,
}

/// A file of a VM that is shut off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSize {
    /// The device's name in the definition, or `nvram`, `kernel`, `initrd`, `dtb`.
    pub device: String,
    /// Its length.
    pub length: ByteCount,
    /// What it takes on its file system, as far as that tells.
    pub allocated: ByteCount,
}
