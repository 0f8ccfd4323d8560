//! Any bytes parse as a stream of events, independent of how they are divided into pieces, or are too long.
#![no_main]

use ferry_client::events::{Parser, Received};
use libfuzzer_sys::fuzz_target;

fn parse(stream: &[u8], piece_bytes: usize) -> Vec<Received> {
    let mut parser = Parser::default();
    let mut events = Vec::new();
    for piece in stream.chunks(piece_bytes) {
        if parser.push(piece).is_err() {
            break;
        }
        events.extend(std::iter::from_fn(|| parser.pop()));
    }
    events
}

fuzz_target!(|bytes: &[u8]| {
    let Some((piece_bytes, stream)) = bytes.split_first() else { return };
    let whole = parse(stream, usize::MAX);
    assert_eq!(whole, parse(stream, usize::from(*piece_bytes).max(1)));
    for event in &whole {
        assert!(event.data.len() <= 3 * stream.len(), "a byte that is no text becomes three at the most");
    }
});
