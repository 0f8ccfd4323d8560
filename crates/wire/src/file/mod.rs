//! Copies a file that is not being written to another host. Only blocks that differ from the destination's file are
//! sent, holes stay holes, and the whole file is verified before the copy counts.
//!
//! ```text
//! destination: what it holds: a content index ([`crate::content::index`]) of its first blocks, which tells how the file is
//!              divided into blocks; what the index does not have of these is zeroes, and the others are not known
//! source:      1 · block u32 · length u32 · bytes              a block that differs
//!              2 · block u32                                   a block of zeroes where the destination has data
//!              3 · length u64 · hash 32                        the end: of the whole file, by its blocks' hashes
//! destination: 2 …                                             while it syncs the file and reads it again
//!              0 | 1 · length u16 · why not
//! ```
//! Before version 4 the destination lists its hashes: blocks u32 · for each: 0 (zeroes) | 1 · hash 32; the rest is zeroes.
//!
//! Hashes are BLAKE3. TLS authenticates both ends before any of this is sent. An end that has nothing to send for a
//! while sends a keep-alive: the destination an empty run of its index, later its 2; the source a block that the
//! destination already has.

mod blocks;
mod existing;
mod protocol;
mod receiver;
mod sender;

pub use blocks::FILE_BYTES_MAX;
pub use protocol::{FileMeter, Form};
pub use receiver::{compare, receive};
pub use sender::{send, send_same};

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        os::unix::fs::{FileExt as _, MetadataExt as _},
        sync::Arc,
        time::Duration,
    };

    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::{
        blocks::{READ_BYTES, slow::A_READ_TAKES},
        protocol::SILENCE_MAX,
        *,
    };
    use crate::{
        WireError,
        content::{
            index::{BLOCK_BYTES, Hashing},
            sparse::{PAGE_BYTES, all_zero, next_data},
        },
    };

    const PIECE_BYTES: usize = PAGE_BYTES as usize;
    /// The forms, and the size of a block in each.
    const FORMS: [(Form, u64); 2] = [(Form::List, Hashing::EARLIER.block_bytes), (Form::Index, BLOCK_BYTES)];

    fn file(content: &[u8]) -> File {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(content.len() as u64).expect("grown");
        for (index, piece) in content.chunks(PIECE_BYTES).enumerate().filter(|(_, piece)| !all_zero(piece)) {
            file.write_all_at(piece, (index * PIECE_BYTES) as u64).expect("written");
        }
        file
    }

    fn content(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; file.metadata().expect("there").len() as usize];
        file.read_exact_at(&mut bytes, 0).expect("read");
        bytes
    }

    /// Copies a file; returns the bytes sent and both outcomes.
    async fn copy(
        form: Form,
        from: &File,
        to: &File,
        length: u64,
    ) -> (u64, Result<(), WireError>, Result<(), WireError>) {
        let (mut one, mut other) = tokio::io::duplex(1 << 16);
        let (meter, meter_there) = (Arc::<FileMeter>::default(), Arc::<FileMeter>::default());
        let (from, to) = (from.try_clone().expect("cloned"), to.try_clone().expect("cloned"));
        let sending = async {
            let outcome = send(&mut one, form, from, Arc::clone(&meter)).await;
            drop(one);
            outcome
        };
        let receiving = async {
            let outcome = receive(&mut other, form, to, length, Arc::clone(&meter_there)).await;
            drop(other);
            outcome
        };
        let (sent, received) = tokio::join!(sending, receiving);
        if sent.is_ok() {
            assert_eq!((meter.examined(), meter_there.examined()), (length, length));
        }
        (meter.sent(), sent, received)
    }

    #[tokio::test]
    async fn a_file_arrives_whole_and_thin_and_again_with_what_differs() {
        for (form, block_bytes) in FORMS {
            let block = block_bytes as usize;
            let mut bytes = vec![0; 40 * block + 777];
            bytes[5 * block..9 * block].fill(7);
            bytes[20 * block + 9] = 1;
            let last = bytes.len() - 1;
            bytes[last] = 3;
            let (from, to) = (file(&bytes), tempfile::tempfile().expect("a file"));
            let length = bytes.len() as u64;
            let (sent, one, other) = copy(form, &from, &to, length).await;
            one.and(other).expect("copied");
            assert_eq!(sent, 5 * block_bytes + 777);
            assert!(content(&to) == bytes, "the same bytes");
            let (takes, took) = (to.metadata().expect("there").blocks(), from.metadata().expect("there").blocks());
            assert!(takes * 512 <= took * 512 + 16 * 1024, "{takes} and {took} sectors");

            // Data that become zeroes, zeroes that become data, and data that change.
            bytes[6 * block..7 * block].fill(0);
            bytes[30 * block] = 4;
            bytes[last] = 9;
            let from = file(&bytes);
            let (sent, one, other) = copy(form, &from, &to, length).await;
            one.and(other).expect("copied");
            assert_eq!(sent, block_bytes + 777);
            assert!(content(&to) == bytes, "the same bytes");
            let takes = to.metadata().expect("there").blocks() * 512;
            assert!(takes <= from.metadata().expect("there").blocks() * 512 + 16 * 1024, "{takes} bytes");
        }
    }

    #[tokio::test]
    async fn a_peer_of_an_earlier_version_hears_its_own_words() {
        for (version, form) in [(1, Form::List), (3, Form::List), (4, Form::Index)] {
            assert_eq!(Form::of(version), form);
        }
        let block = Hashing::EARLIER.block_bytes as usize;
        let bytes = [vec![7; block], vec![0; block], vec![9; 5]].concat();
        let (mut one, mut other) = tokio::io::duplex(1 << 16);
        let (existing, length) = (file(&bytes), bytes.len() as u64);
        let receiving = async { receive(&mut other, Form::List, existing, length, Arc::default()).await };
        let listening = async {
            let mut listed = vec![0; 4 + 33 + 1 + 33];
            one.read_exact(&mut listed).await.expect("its list");
            let whole = [*blake3::hash(&bytes[..block]).as_bytes(), [0; 32], *blake3::hash(&[9; 5]).as_bytes()];
            let end = [&[3][..], &length.to_le_bytes(), blake3::hash(&whole.concat()).as_bytes()].concat();
            one.write_all(&end).await.expect("there is room");
            let mut verdict = Vec::new();
            while verdict.last().is_none_or(|byte| *byte == 2) {
                verdict.push(one.read_u8().await.expect("an answer"));
            }
            (listed, verdict.last().copied())
        };
        let (received, (listed, verdict)) = tokio::join!(receiving, listening);
        received.expect("it is the same");
        let [first, last] = [&bytes[..block], &[9; 5]].map(blake3::hash);
        let expected = [&[3, 0, 0, 0, 1][..], first.as_bytes(), &[0, 1], last.as_bytes()];
        assert_eq!((listed, verdict), (expected.concat(), Some(0)));
    }

    #[tokio::test(start_paused = true)]
    async fn hosts_that_read_for_hours_what_they_have_in_common_hear_of_each_other() {
        // Data, and zeroes that are not holes: on a slow disk, the source finds nothing to send for longer than a peer
        // waits.
        let mut bytes = vec![7; (30 * READ_BYTES) as usize];
        bytes[8 * READ_BYTES as usize..24 * READ_BYTES as usize].fill(0);
        let written = || {
            let file = file(&[]);
            file.write_all_at(&bytes, 0).expect("written");
            file
        };
        for (form, _) in FORMS {
            let (from, to, length) = (written(), written(), bytes.len() as u64);
            A_READ_TAKES.set(SILENCE_MAX / 8);
            let (_, one, other) = copy(form, &from, &to, length).await;
            A_READ_TAKES.set(Duration::ZERO);
            one.and(other).expect("copied");
            assert!(content(&to) == bytes, "the same bytes");
            assert_eq!(to.metadata().expect("there").len(), length);
        }
    }

    #[tokio::test]
    async fn what_a_large_thin_file_does_not_hold_is_not_read() {
        for (form, block_bytes) in FORMS {
            let (from, to) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
            let length = 64 << 30;
            for file in [&from, &to] {
                file.set_len(length).expect("grown");
                file.write_all_at(&[3; 5000], 40 << 30).expect("written");
            }
            from.write_all_at(&[4; 5000], 50 << 30).expect("written");
            to.write_all_at(&[5; 5000], 20 << 30).expect("written");
            assert_eq!(next_data(&from, 0, length) >> 30, 40, "the file system of this test tells of holes");
            let (sent, one, other) = copy(form, &from, &to, length).await;
            one.and(other).expect("copied");
            assert_eq!(sent, block_bytes);
            let mut there = [1; 5000];
            for (at, byte) in [(20 << 30, 0), (40 << 30, 3), (50 << 30, 4)] {
                to.read_exact_at(&mut there, at).expect("read");
                assert_eq!(there, [byte; 5000], "{at}");
            }
        }
    }

    #[tokio::test]
    async fn a_file_that_is_there_is_compared_and_never_written_to() {
        let bytes: Vec<u8> = (0..3 * Hashing::EARLIER.block_bytes + 9).map(|at| (at / 4096) as u8).collect();
        let mut other = bytes.clone();
        other[2 * Hashing::EARLIER.block_bytes as usize + 5] ^= 1;
        let there = [(&bytes, true), (&other, false), (&bytes[..9].to_vec(), false)];
        for ((form, _), (there, is_same)) in FORMS.into_iter().flat_map(|form| there.map(|there| (form, there))) {
            let (from, to) = (file(&bytes), file(there));
            let (mut one, mut two) = tokio::io::duplex(1 << 16);
            let (from, kept) = (from.try_clone().expect("cloned"), to.try_clone().expect("cloned"));
            let sending = async {
                let outcome = send_same(&mut one, form, from, Arc::default()).await;
                drop(one);
                outcome
            };
            let comparing = async {
                let outcome = compare(&mut two, form, to, bytes.len() as u64, Arc::default()).await;
                drop(two);
                outcome
            };
            let (sent, compared) = tokio::join!(sending, comparing);
            assert_eq!((sent.is_ok(), compared.is_ok()), (is_same, is_same), "{sent:?} {compared:?}");
            assert!(content(&kept) == *there, "untouched");
        }
        // A source that sends the difference although the destination only compares.
        let (from, to) = (file(&bytes), file(&other));
        let (mut one, mut two) = tokio::io::duplex(1 << 22);
        let kept = to.try_clone().expect("cloned");
        let (_, compared) = tokio::join!(
            send(&mut one, Form::Index, from, Arc::default()),
            compare(&mut two, Form::Index, to, bytes.len() as u64, Arc::default())
        );
        assert!(matches!(compared, Err(WireError::Differs)), "{compared:?}");
        assert!(content(&kept) == other, "untouched");
    }

    #[tokio::test]
    async fn nothing_and_a_little_arrive() {
        let lengths = [0, 1, BLOCK_BYTES, BLOCK_BYTES + 1, READ_BYTES, READ_BYTES + 1];
        for ((form, _), length) in FORMS.into_iter().flat_map(|form| lengths.map(|length| (form, length))) {
            let bytes = vec![5; length as usize];
            let (from, to) = (file(&bytes), file(&[9; 300]));
            let (_, one, other) = copy(form, &from, &to, length).await;
            one.and(other).expect("copied");
            assert!(content(&to) == bytes, "{length}");
        }
    }

    #[tokio::test]
    async fn a_file_of_another_length_is_refused_at_both_ends() {
        for (form, _) in FORMS {
            let (from, to) = (file(&[1; 9]), tempfile::tempfile().expect("a file"));
            let (_, one, other) = copy(form, &from, &to, 8).await;
            assert!(matches!(one, Err(WireError::Aborted(_) | WireError::Peer(_))), "{one:?}");
            assert!(matches!(other, Err(WireError::Protocol(_))), "{other:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn whatever_is_held_the_bytes_arrive(
            from in proptest::collection::vec((0_u32..12, any::<u8>()), 0..12),
            existing in proptest::collection::vec((0_u32..12, any::<u8>()), 0..12),
            odd in 1_usize..5000,
            (form, block_bytes) in proptest::sample::select(&FORMS[..]),
        ) {
            let length = 11 * block_bytes as usize + odd;
            let make = |blocks: &[(u32, u8)]| {
                let mut bytes = vec![0; length];
                for (block, byte) in blocks {
                    let start = *block as usize * block_bytes as usize;
                    let end = (start + 9000).min(length);
                    bytes[start..end].fill(*byte);
                }
                bytes
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("built");
            let content_at_source = make(&from);
            let (source, destination) = (file(&content_at_source), file(&make(&existing)));
            let (_, one, other) = runtime.block_on(copy(form, &source, &destination, length as u64));
            one.and(other).expect("copied");
            prop_assert!(content(&destination) == content_at_source);
        }

        #[test]
        fn random_bytes_of_a_peer_end_it_and_nothing_else(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("built");
            runtime.block_on(async {
                for (is_source, (form, _)) in [true, false].into_iter().flat_map(|end| FORMS.map(|form| (end, form))) {
                    let (mut one, mut other) = tokio::io::duplex(1 << 20);
                    other.write_all(&bytes).await.expect("room");
                    other.shutdown().await.expect("ended");
                    let meter = Arc::default();
                    let outcome = match is_source {
                        true => send(&mut one, form, file(&[1; 900]), meter).await,
                        false => receive(&mut one, form, tempfile::tempfile().expect("a file"), 900, meter).await,
                    };
                    assert!(outcome.is_err() || is_source, "{outcome:?}");
                }
            });
        }
    }
}
