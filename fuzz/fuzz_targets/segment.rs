//! Any bytes are no segment of another agent, whatever they hold; and what was closed opens as it was, in its place alone.
#![no_main]

use ferry_core::{id::SessionId, pin::Secret};
use ferry_wire::transport::spool::segment::{Direction, HEADER_BYTES, Keys, Kind, PipeId, opened_pipe, sequence_of};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let pipe = PipeId(Default::default());
    let seal = Keys::new(SessionId(Default::default()), &Secret([3; 32])).seal(pipe, Direction::ToSource);
    assert!(seal.open(0, bytes.to_vec()).is_err());
    let name = String::from_utf8_lossy(bytes);
    let _ = (opened_pipe(&name), sequence_of(&seal.prefix(), &name));

    let Some((&at, plain)) = bytes.split_first() else { return };
    let file = seal.close(5, Kind::Last, [&[0; HEADER_BYTES], plain].concat());
    assert_eq!(seal.open(5, file.clone()).expect("it was closed so").plain(), plain);
    assert!(seal.open(6, file.clone()).is_err());
    let mut changed = file;
    let place = usize::from(at) % changed.len();
    changed[place] ^= 1;
    assert!(seal.open(5, changed).is_err());
});
