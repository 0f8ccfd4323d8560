//! Any bytes are a frame header with bounded lengths that encodes to the same bytes, or cause an error.
#![no_main]

use ferry_wire::frame::{HEADER_BYTES, Header, PAYLOAD_BYTES_MAX};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else { return };
    if let Ok(header) = Header::decode(head) {
        assert!(header.payload_bytes() <= PAYLOAD_BYTES_MAX);
        assert_eq!(&header.encode(), head);
    }
});
