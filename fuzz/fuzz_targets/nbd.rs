//! Any bytes from client, server or the other carrier pass an NBD recogniser in bounded memory, or end the channel.
//! Any bytes are an index of blocks, or an error.
#![no_main]

use std::sync::Arc;

use ferry_wire::{
    channel::Inspect,
    nbd::{
        self, Held, Image,
        seed::{SeedIndex, SeedKey},
    },
};
use libfuzzer_sys::fuzz_target;

const KEY: SeedKey = SeedKey([7; 32]);
/// What one pass may let out beyond what came in and a piece that was held: a request for each part in flight.
const OUT_BYTES_MAX: usize = (1 << 20) + 28 * (1 << 17);

fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, bytes)) = bytes.split_first() else { return };
    if kind & 0x80 != 0 {
        if let Ok(index) = SeedIndex::decode(bytes) {
            assert_eq!(SeedIndex::decode(&index.encode()).expect("its own bytes"), index);
        }
        return;
    }
    let (image, held) = match kind & 3 {
        0 => (Image::Unknown, Held::Unknown),
        1 => (Image::Zeroes, Held::Zeroes),
        2 => (Image::Seed(index()), Held::Seed(KEY)),
        _ => (Image::Seed(index()), Held::Zeroes),
    };
    let (mut near_requests, mut near_replies) = nbd::source(image, Arc::default());
    let (mut far_requests, mut far_replies) = nbd::destination(held, Arc::default());
    let mut feed = |which: u8, bytes: &[u8]| -> Result<(), String> {
        match which & 3 {
            0 => pass(&mut near_requests, bytes).and_then(|out| pass(&mut far_requests, &out)),
            1 => pass(&mut far_replies, bytes).and_then(|out| pass(&mut near_replies, &out)),
            2 => pass(&mut far_requests, bytes),
            _ => pass(&mut near_replies, bytes),
        }
        .map(drop)
    };
    if kind & 4 == 0 {
        for (which, bytes) in handshake() {
            feed(which, &bytes).expect("nothing is wrong yet");
        }
    }
    let mut rest = bytes;
    while let [which, count, more @ ..] = rest {
        let (chunk, more) = more.split_at(usize::from(*count).min(more.len()));
        // The channel ends.
        if feed(*which, chunk).is_err() {
            return;
        }
        rest = more;
    }
});

fn pass(inspect: &mut impl Inspect, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    inspect.pass(bytes, &mut out)?;
    assert!(out.len() <= 2 * bytes.len() + OUT_BYTES_MAX, "{} bytes became {}", bytes.len(), out.len());
    Ok(out)
}

fn index() -> SeedIndex {
    let mut bytes = b"FerryS\0\x01".to_vec();
    bytes.extend_from_slice(&KEY.0);
    bytes.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    bytes.extend_from_slice(&[1; 32]);
    SeedIndex::decode(&bytes).expect("well formed")
}

/// Until the first request: who speaks, and what.
fn handshake() -> Vec<(u8, Vec<u8>)> {
    let option_reply = |kind: u32, data: &[u8]| {
        let mut bytes = 0x0003_e889_0455_65a9_u64.to_be_bytes().to_vec();
        for word in [7, kind, data.len() as u32] {
            bytes.extend_from_slice(&word.to_be_bytes());
        }
        bytes.extend_from_slice(data);
        bytes
    };
    // A disk of 1 MiB whose server takes everything.
    let export = [0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0x05, 0x7d];
    vec![
        (1, b"NBDMAGICIHAVEOPT\0\x03".to_vec()),
        (0, b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0".to_vec()),
        (1, option_reply(3, &export)),
        (1, option_reply(1, &[])),
    ]
}
