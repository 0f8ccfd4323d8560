//! Any bytes are a hello or a control message, or cause an error.
#![no_main]

use ferry_wire::{
    control::read_message,
    hello::{HELLO_BYTES, Hello},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some(hello) = bytes.first_chunk::<HELLO_BYTES>() {
        if let Ok(hello) = Hello::decode(hello) {
            assert_eq!(Hello::decode(&hello.encode()).expect("its own bytes"), hello);
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let mut stream = bytes;
    while runtime.block_on(read_message(&mut stream)).is_ok() {}
});
