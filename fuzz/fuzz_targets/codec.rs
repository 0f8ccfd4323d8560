//! Any bytes are decoded or refused, in bounded memory, whatever frames came before on the same lane.
#![no_main]

use ferry_wire::{
    codec::Decoders,
    frame::{Codec, DATA_BYTES_MAX},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|frames: Vec<(u8, u32, Vec<u8>)>| {
    let mut decoders = Decoders::new(8);
    for (codec, plain, coded) in frames {
        let codec = Codec::ALL[usize::from(codec) % Codec::ALL.len()];
        let mut plain = vec![0; plain as usize % (DATA_BYTES_MAX + 1)];
        if !decoders.decode(codec, &coded, &mut plain) {
            return;
        }
    }
});
