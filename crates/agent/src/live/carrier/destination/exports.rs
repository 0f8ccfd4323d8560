//! Which disk is behind a channel, and what is known about its file: a channel has a number, while the export that QEMU
//! requests has a name and a size.

use std::sync::Arc;

use ferry_wire::{
    content::index::ContentKey,
    control::Message,
    nbd::{ImageCatalog, ImageContent},
};
use tracing::{error, info, warn};

use super::state::Shared;
use crate::{files::incoming::IncomingImage, lock::lock};

/// What is known about a file before it is read.
pub(super) fn known_at_first(incoming_disk: &IncomingImage) -> Option<ImageContent> {
    Some(match incoming_disk.lifecycle.partial() {
        None => ImageContent::Zeroes,
        Some(partial) => ImageContent::Partial { key: ContentKey(partial.key.0), data: None },
    })
}

/// The files of incoming disks, as seen by one channel.
pub(super) struct Files {
    /// The disk's index, once the export is known.
    place: Option<usize>,
    shared: Arc<Shared>,
}

impl Files {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { place: None, shared }
    }
}

impl ImageCatalog for Files {
    fn content(&mut self, export: &str, size_bytes: u64) -> ImageContent {
        let Some(place) = which(&self.shared.incoming_disks, export, size_bytes) else {
            warn!(export, size_bytes, "Which disk is behind this export is not known: all of it is written");
            return ImageContent::Unknown;
        };
        self.place = Some(place);
        let mut content = lock(&self.shared.contents);
        let content = content.get_mut(place).and_then(Option::take);
        info!(
            export,
            disk = self.shared.incoming_disks[place].device,
            known = content.is_some(),
            "A disk's copy begins"
        );
        content.unwrap_or_default()
    }

    fn changed(&mut self, offset: u64) {
        let device = self
            .place
            .and_then(|place| self.shared.incoming_disks.get(place))
            .map_or("", |incoming_disk| incoming_disk.device.as_str());
        error!(disk = device, offset, "The unfinished copy was changed while it was used");
        let reason =
            format!("The unfinished copy of disk {device} was changed meanwhile: something else writes to its file");
        let control = lock(&self.shared.control).clone();
        if let Some(control) = control {
            control.send_now(Message::GaveUp { reason: reason.clone() });
        }
        self.shared.board.update(|known| known.error = Some(reason));
    }
}

/// Finds the disk behind an export: by the export's name, or else the only disk of its size. The order of channels says
/// nothing: of two disks of one size either may be behind it. `None` if it is unknown.
fn which(incoming_disks: &[IncomingImage], export: &str, size_bytes: u64) -> Option<usize> {
    let has_size = |incoming_disk: &IncomingImage| incoming_disk.virtual_size.0 == size_bytes;
    if let Some(device) = device_of(export) {
        return incoming_disks
            .iter()
            .position(|incoming_disk| incoming_disk.device == device && has_size(incoming_disk));
    }
    let mut of_size = incoming_disks.iter().enumerate().filter(|(_, incoming_disk)| has_size(incoming_disk));
    match (of_size.next(), of_size.next()) {
        (Some((place, _)), None) => Some(place),
        (None, _) | (Some(_), Some(_)) => None,
    }
}

/// The disk that libvirt means by an export's name, if it shows: `drive-virtio-disk` and its number (libvirt 11.3,
/// `qemuAliasDiskDriveFromDisk`). Names of disks on other buses give their address instead.
fn device_of(export: &str) -> Option<String> {
    let mut number: u32 = export.strip_prefix("drive-virtio-disk")?.parse().ok()?;
    // vda to vdz, vdaa and so on.
    let mut letters = Vec::new();
    loop {
        letters.push(b'a' + (number % 26) as u8);
        number = match number / 26 {
            0 => break,
            rest => rest - 1,
        };
    }
    letters.reverse();
    Some(format!("vd{}", String::from_utf8(letters).expect("they are letters")))
}

#[cfg(test)]
mod tests {
    use ferry_core::{units::ByteCount, vm::DiskFormat};

    use super::*;
    use crate::files::new_file::Lifecycle;

    #[test]
    fn an_export_is_the_disk_that_its_name_tells_or_the_only_one_of_its_size_and_never_one_at_its_place() {
        let incoming_disk = |device: &str, mib| IncomingImage {
            device: device.into(),
            path: std::path::PathBuf::from("/x"),
            format: DiskFormat::Raw,
            virtual_size: ByteCount::mib(mib),
            lifecycle: Lifecycle::Planned,
        };
        let incoming_disks = [
            incoming_disk("vda", 64),
            incoming_disk("vdc", 32),
            incoming_disk("sda", 16),
            incoming_disk("sdb", 8),
            incoming_disk("sdc", 8),
        ];
        for (export, mib, expected) in [
            ("drive-virtio-disk0", 64, Some(0)),
            ("drive-virtio-disk2", 32, Some(1)),
            ("drive-virtio-disk1", 32, None),
            ("drive-virtio-disk0", 65, None),
            ("drive-scsi0-0-0-0", 16, Some(2)),
            ("drive-ua-mine", 32, Some(1)),
            ("", 64, Some(0)),
            ("drive-scsi0-0-0-1", 8, None),
            ("drive-scsi0-0-0-2", 8, None),
            ("drive-scsi0-0-0-9", 9, None),
        ] {
            assert_eq!(which(&incoming_disks, export, mib << 20), expected, "{export} {mib}");
        }
        for (number, device) in [(0, "vda"), (25, "vdz"), (26, "vdaa"), (27, "vdab"), (701, "vdzz"), (702, "vdaaa")] {
            assert_eq!(device_of(&format!("drive-virtio-disk{number}")).as_deref(), Some(device));
        }
        assert_eq!((device_of("drive-virtio-disk"), device_of("drive-virtio-disk-1")), (None, None));
    }
}
