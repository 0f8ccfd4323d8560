//! Any bytes are a frame header with bounded lengths that encodes to the same bytes, or cause an error.
#![no_main]

use ferry_wire::frame::{DATA_BYTES_MAX, HEADER_BYTES, Header};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else { return };
    if let Ok(header) = Header::decode(head) {
        assert!(header.payload_bytes() <= DATA_BYTES_MAX);
        assert_eq!(&header.encode(), head);
    }
});
