//! Copies a file that is not being written to another host. Only blocks that differ from the destination's file are
//! sent, holes stay holes, and the whole file is verified before the copy counts.
//!
//! ```text
//! destination: blocks u32 · for each: 0 | 1 · hash 32          what it holds; the rest is zeroes
//! source:      1 · block u32 · length u32 · bytes              a block that differs
//!              2 · block u32                                   a block of zeroes where the destination has data
//!              3 · length u64 · hash 32                        the end: of the whole file, by its blocks' hashes
//! destination: 2 …                                             while it syncs the file and reads it again
//!              0 | 1 · length u16 · why not
//! ```
//! Hashes are BLAKE3. TLS authenticates both ends before any of this is sent. An end that has nothing to send for a
//! while sends a keep-alive: the destination its 2, the source a block that the destination already has.

mod blocks;
mod protocol;
mod receiver;
mod sender;

pub use blocks::{BLOCK_BYTES, FILE_BYTES_MAX};
pub use protocol::FileMeter;
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
    use tokio::io::AsyncWriteExt as _;

    use super::{blocks::slow::A_READ_TAKES, protocol::SILENCE_MAX, *};
    use crate::{
        WireError,
        content::sparse::{PAGE_BYTES, all_zero, next_data},
    };

    const PIECE_BYTES: usize = PAGE_BYTES as usize;

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
    async fn copy(from: &File, to: &File, length: u64) -> (u64, Result<(), WireError>, Result<(), WireError>) {
        let (mut one, mut other) = tokio::io::duplex(1 << 16);
        let (meter, meter_there) = (Arc::<FileMeter>::default(), Arc::<FileMeter>::default());
        let (from, to) = (from.try_clone().expect("cloned"), to.try_clone().expect("cloned"));
        let sending = async {
            let outcome = send(&mut one, from, Arc::clone(&meter)).await;
            drop(one);
            outcome
        };
        let receiving = async {
            let outcome = receive(&mut other, to, length, Arc::clone(&meter_there)).await;
            drop(other);
            outcome
        };
        let (sent, received) = tokio::join!(sending, receiving);
        if sent.is_ok() {
            assert_eq!((meter.looked_at(), meter_there.looked_at()), (length, length));
        }
        (meter.sent(), sent, received)
    }

    #[tokio::test]
    async fn a_file_arrives_whole_and_thin_and_again_with_what_differs() {
        let mut bytes = vec![0; (40 * BLOCK_BYTES + 777) as usize];
        bytes[5 * BLOCK_BYTES as usize..9 * BLOCK_BYTES as usize].fill(7);
        bytes[20 * BLOCK_BYTES as usize + 9] = 1;
        let last = bytes.len() - 1;
        bytes[last] = 3;
        let (from, to) = (file(&bytes), tempfile::tempfile().expect("a file"));
        let length = bytes.len() as u64;
        let (sent, one, other) = copy(&from, &to, length).await;
        one.and(other).expect("copied");
        assert_eq!(sent, 5 * BLOCK_BYTES + 777);
        assert!(content(&to) == bytes, "the same bytes");
        let (takes, took) = (to.metadata().expect("there").blocks(), from.metadata().expect("there").blocks());
        assert!(takes * 512 <= took * 512 + 16 * 1024, "{takes} and {took} sectors");

        // Data that become zeroes, zeroes that become data, and data that change.
        bytes[6 * BLOCK_BYTES as usize..7 * BLOCK_BYTES as usize].fill(0);
        bytes[30 * BLOCK_BYTES as usize] = 4;
        let from = file(&bytes);
        let (sent, one, other) = copy(&from, &to, length).await;
        one.and(other).expect("copied");
        assert_eq!(sent, BLOCK_BYTES);
        assert!(content(&to) == bytes, "the same bytes");
        let takes = to.metadata().expect("there").blocks() * 512;
        assert!(takes <= from.metadata().expect("there").blocks() * 512 + 16 * 1024, "{takes} bytes");
    }

    #[tokio::test(start_paused = true)]
    async fn hosts_that_read_for_hours_what_they_have_in_common_hear_of_each_other() {
        // Data, and zeroes that are not holes: on a slow disk, the source finds nothing to send for longer than a peer
        // waits.
        let mut bytes = vec![7; (30 * BLOCK_BYTES) as usize];
        bytes[8 * BLOCK_BYTES as usize..24 * BLOCK_BYTES as usize].fill(0);
        let written = || {
            let file = file(&[]);
            file.write_all_at(&bytes, 0).expect("written");
            file
        };
        let (from, to, length) = (written(), written(), bytes.len() as u64);
        A_READ_TAKES.set(SILENCE_MAX / 8);
        let (_, one, other) = copy(&from, &to, length).await;
        A_READ_TAKES.set(Duration::ZERO);
        one.and(other).expect("copied");
        assert!(content(&to) == bytes, "the same bytes");
        assert_eq!(to.metadata().expect("there").len(), length);
    }

    #[tokio::test]
    async fn what_a_large_thin_file_does_not_hold_is_not_read() {
        let (from, to) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
        let length = 64 << 30;
        for file in [&from, &to] {
            file.set_len(length).expect("grown");
            file.write_all_at(&[3; 5000], 40 << 30).expect("written");
        }
        from.write_all_at(&[4; 5000], 50 << 30).expect("written");
        to.write_all_at(&[5; 5000], 20 << 30).expect("written");
        assert_eq!(next_data(&from, 0, length) >> 30, 40, "the file system of this test tells of holes");
        let (sent, one, other) = copy(&from, &to, length).await;
        one.and(other).expect("copied");
        assert_eq!(sent, BLOCK_BYTES);
        let mut there = [1; 5000];
        for (at, byte) in [(20 << 30, 0), (40 << 30, 3), (50 << 30, 4)] {
            to.read_exact_at(&mut there, at).expect("read");
            assert_eq!(there, [byte; 5000], "{at}");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_there_is_compared_and_never_written_to() {
        let bytes: Vec<u8> = (0..3 * BLOCK_BYTES + 9).map(|at| (at / 4096) as u8).collect();
        let mut other = bytes.clone();
        other[2 * BLOCK_BYTES as usize + 5] ^= 1;
        for (there, is_same) in [(&bytes, true), (&other, false), (&bytes[..9].to_vec(), false)] {
            let (from, to) = (file(&bytes), file(there));
            let (mut one, mut two) = tokio::io::duplex(1 << 16);
            let (from, kept) = (from.try_clone().expect("cloned"), to.try_clone().expect("cloned"));
            let sending = async {
                let outcome = send_same(&mut one, from, Arc::default()).await;
                drop(one);
                outcome
            };
            let comparing = async {
                let outcome = compare(&mut two, to, bytes.len() as u64, Arc::default()).await;
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
            send(&mut one, from, Arc::default()),
            compare(&mut two, to, bytes.len() as u64, Arc::default())
        );
        assert!(matches!(compared, Err(WireError::Differs)), "{compared:?}");
        assert!(content(&kept) == other, "untouched");
    }

    #[tokio::test]
    async fn nothing_and_a_little_arrive() {
        for length in [0, 1, BLOCK_BYTES, BLOCK_BYTES + 1] {
            let bytes = vec![5; length as usize];
            let (from, to) = (file(&bytes), file(&[9; 300]));
            let (_, one, other) = copy(&from, &to, length).await;
            one.and(other).expect("copied");
            assert!(content(&to) == bytes, "{length}");
        }
    }

    #[tokio::test]
    async fn a_file_of_another_length_is_refused_at_both_ends() {
        let (from, to) = (file(&[1; 9]), tempfile::tempfile().expect("a file"));
        let (_, one, other) = copy(&from, &to, 8).await;
        assert!(matches!(one, Err(WireError::Aborted(_) | WireError::Peer(_))), "{one:?}");
        assert!(matches!(other, Err(WireError::Protocol(_))), "{other:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn whatever_is_held_the_bytes_arrive(
            from in proptest::collection::vec((0_u32..12, any::<u8>()), 0..12),
            held in proptest::collection::vec((0_u32..12, any::<u8>()), 0..12),
            odd in 1_usize..5000,
        ) {
            let length = 11 * BLOCK_BYTES as usize + odd;
            let make = |blocks: &[(u32, u8)]| {
                let mut bytes = vec![0; length];
                for (block, byte) in blocks {
                    let start = *block as usize * BLOCK_BYTES as usize;
                    let end = (start + 9000).min(length);
                    bytes[start..end].fill(*byte);
                }
                bytes
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("built");
            let wanted = make(&from);
            let (source, destination) = (file(&wanted), file(&make(&held)));
            let (_, one, other) = runtime.block_on(copy(&source, &destination, length as u64));
            one.and(other).expect("copied");
            prop_assert!(content(&destination) == wanted);
        }

        #[test]
        fn random_bytes_of_a_peer_end_it_and_nothing_else(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("built");
            runtime.block_on(async {
                for is_source in [true, false] {
                    let (mut one, mut other) = tokio::io::duplex(1 << 20);
                    other.write_all(&bytes).await.expect("room");
                    other.shutdown().await.expect("ended");
                    let meter = Arc::default();
                    let outcome = match is_source {
                        true => send(&mut one, file(&[1; 900]), meter).await,
                        false => receive(&mut one, tempfile::tempfile().expect("a file"), 900, meter).await,
                    };
                    assert!(outcome.is_err() || is_source, "{outcome:?}");
                }
            });
        }
    }
}
