//! The guests of a fake host: a definition, and memory that changes while it runs.

use std::{collections::BTreeSet, fmt::Write, path::PathBuf};

use ferry_core::{
    id::VmId,
    units::ByteCount,
    vm::{DiskFeature, DiskFormat, FileRole, NotAFile, VmFacts, VmFile},
};
use uuid::Uuid;

/// A page, as QEMU sends it.
pub(super) const PAGE_BYTES: usize = 4096;

/// A guest to be defined on a fake host.
#[derive(Clone, Debug)]
pub struct FakeGuest {
    /// Its definition. The host sets the state.
    pub facts: VmFacts<PathBuf>,
    /// How much of its memory has content and must be sent.
    pub resident: ByteCount,
    /// Bytes that it dirties while one byte is sent. A migration does not converge at 1 and above.
    pub dirty_ratio: f64,
}

impl FakeGuest {
    /// A persistent guest with 512 MiB, of which 4 MiB are resident, and a disk for each path.
    pub fn new(name: &str, disks: &[PathBuf]) -> Self {
        let disk = |(path, letter): (&PathBuf, char)| VmFile {
            format: Some(DiskFormat::Raw),
            unmaps: true,
            detects_zeroes: true,
            bypasses_cache: true,
            ..VmFile::new(FileRole::Disk, format!("vd{letter}"), path.clone())
        };
        Self {
            facts: VmFacts {
                persistent: true,
                vcpus: 1,
                memory: ByteCount::mib(512),
                machine: Some("pc-q35-10.0".to_owned()),
                ..VmFacts::new(VmId(Uuid::new_v4()), name, disks.iter().zip('a'..='z').map(disk).collect())
            },
            resident: ByteCount::mib(4),
            dirty_ratio: 0.5,
        }
    }
}

/// Content of a guest's memory. The guest's dirty ratio is part of it and travels with it.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    pub(super) bytes: Vec<u8>,
    pub(super) dirty_ratio: f64,
    seed: u64,
}

impl Memory {
    /// Memory after a start: pseudo-random, different for each guest and start.
    pub(super) fn fresh(guest: VmId, resident: ByteCount, dirty_ratio: f64) -> Self {
        let pages = (resident.0 as usize).div_ceil(PAGE_BYTES).max(1);
        let seed = guest.0.as_u64_pair().0 ^ Uuid::new_v4().as_u64_pair().1;
        let mut memory = Self { bytes: vec![0; pages * PAGE_BYTES], dirty_ratio, seed };
        (0..pages).for_each(|page| memory.write(page));
        memory
    }

    /// Memory received from another host.
    pub(super) fn arrived(bytes: Vec<u8>, dirty_ratio: f64) -> Self {
        let seed = checksum(&bytes);
        Self { bytes, dirty_ratio, seed }
    }

    pub(super) fn pages(&self) -> usize {
        self.bytes.len() / PAGE_BYTES
    }

    pub(super) fn page(&self, page: usize) -> &[u8] {
        &self.bytes[page * PAGE_BYTES..][..PAGE_BYTES]
    }

    /// What the guest does while `sent` pages are sent: it dirties some pages.
    pub(super) fn dirty(&mut self, sent: usize) -> BTreeSet<usize> {
        let count = ((sent as f64 * self.dirty_ratio) as usize).min(self.pages());
        (0..count)
            .map(|_| {
                let page = (next(&mut self.seed) % self.pages() as u64) as usize;
                self.write(page);
                page
            })
            .collect()
    }

    fn write(&mut self, page: usize) {
        for word in self.bytes[page * PAGE_BYTES..][..PAGE_BYTES].chunks_exact_mut(8) {
            word.copy_from_slice(&next(&mut self.seed).to_le_bytes());
        }
    }
}

/// SplitMix64: small, and sufficient to distinguish pages.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut value = *seed;
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A checksum that depends on order and content (FNV-1a over words).
pub(super) fn checksum(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(0xcbf2_9ce4_8422_2325, |sum, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23)
    })
}

/// The definition as libvirt would write it, as far as a fake guest has one.
pub(super) fn definition_xml(facts: &VmFacts<PathBuf>) -> String {
    let mut xml = format!(
        "<domain type='{}'><name>{}</name><uuid>{}</uuid><memory unit='b'>{}</memory><vcpu>{}</vcpu><os><type{}>hvm</type>",
        if facts.emulated { "qemu" } else { "kvm" },
        escaped(&facts.name),
        facts.id,
        facts.memory.0,
        facts.vcpus,
        facts.machine.as_deref().map(|machine| format!(" machine='{}'", escaped(machine))).unwrap_or_default()
    );
    let mut devices = String::new();
    for file in &facts.files {
        let path = escaped(&file.place.display().to_string());
        let device = escaped(&file.device);
        // Writing to a String cannot fail.
        let _ = match file.role {
            FileRole::Nvram | FileRole::Boot => write!(xml, "<{device}>{path}</{device}>"),
            FileRole::Disk | FileRole::Media | FileRole::NotAFile => {
                let kind = match file.role {
                    FileRole::NotAFile => file.kind.as_ref().map_or_else(|| "block".to_owned(), NotAFile::to_string),
                    FileRole::Disk | FileRole::Media | FileRole::Nvram | FileRole::Boot => "file".to_owned(),
                };
                let source = match (kind.as_str(), path.split_once('/')) {
                    ("volume", Some((pool, volume))) => format!("pool='{pool}' volume='{volume}'"),
                    ("file", _) => format!("file='{path}'"),
                    _ => format!("dev='{path}'"),
                };
                let chain = file.below.iter().rev().fold("<backingStore/>".to_owned(), |chain, below| {
                    let below = escaped(&below.display().to_string());
                    format!("<backingStore type='file'><source file='{below}'/>{chain}</backingStore>")
                });
                let drive = if file.role == FileRole::Media { "cdrom" } else { "disk" };
                let policy = if file.stops_on_error { " error_policy='stop'" } else { "" };
                let format = file.format.map(|format| format!(" type='{}'", format.name())).unwrap_or_default();
                let discard = if file.unmaps { " discard='unmap'" } else { "" };
                let cache = if file.bypasses_cache { " cache='none'" } else { "" };
                let zeroes = if file.detects_zeroes { " detect_zeroes='unmap'" } else { "" };
                let mark = |set: bool, text: &'static str| if set { text } else { "" };
                write!(
                    devices,
                    "<disk type='{kind}' device='{drive}'><driver name='qemu'{format}{cache}{policy}{discard}{zeroes}/><source {source}/>\
                     {chain}<target dev='{device}'/>{}{}{}{}</disk>",
                    mark(file.shareable, "<shareable/>"),
                    mark(file.read_only, "<readonly/>"),
                    mark(file.has(DiskFeature::Transient), "<transient/>"),
                    mark(file.has(DiskFeature::Encrypted), "<encryption format='luks'/>")
                )
            }
        };
    }
    for network in &facts.networks {
        let _ = write!(devices, "<interface type='bridge'><source bridge='{}'/></interface>", escaped(network));
    }
    let tpm = if facts.tpm { "<tpm model='tpm-crb'/>" } else { "" };
    xml + &format!("</os><devices>{devices}{tpm}</devices></domain>")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::xml::facts::parse;

    #[test]
    fn a_fake_definition_reads_back_as_the_facts_it_was_made_of() {
        let mut guest = FakeGuest::new("a&b", &["/srv/x's.raw".into(), "/srv/<y>.raw".into()]);
        guest.facts.networks.push("br0".to_owned());
        guest.facts.files.push(VmFile::new(FileRole::Nvram, "nvram", "/srv/vars.fd".into()));
        guest.facts.files[1].below = vec!["/srv/b1.qcow2".into(), "/srv/b2.raw".into()];
        guest.facts.files[1].has_backing = true;
        guest.facts.files[1].features = vec![DiskFeature::Encrypted, DiskFeature::Transient];
        let read = parse(&definition_xml(&guest.facts)).expect("parsed");
        assert_eq!(VmFacts { persistent: true, ..read }, guest.facts);
    }

    #[test]
    fn a_running_guest_dirties_in_proportion_to_what_is_sent() {
        let mut memory = Memory::fresh(VmId(Uuid::new_v4()), ByteCount::mib(1), 0.25);
        let before = checksum(&memory.bytes);
        assert!((1..=32).contains(&memory.dirty(128).len()));
        assert_ne!(checksum(&memory.bytes), before);
        assert!(memory.dirty(1).is_empty());
    }
}
