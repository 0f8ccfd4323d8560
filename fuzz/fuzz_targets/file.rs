//! Whatever the peer sends, either end of a file's copy ends with an error or with the announced file.
#![no_main]

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    sync::{Arc, LazyLock},
};

use ferry_wire::{
    content::index::BLOCK_BYTES,
    file::{Form, compare, receive, send, send_same},
};
use libfuzzer_sys::fuzz_target;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
    runtime::Runtime,
};

/// Limit of what one end sends: hashes of its blocks, or all of its file.
const ANSWER_BYTES_MAX: usize = 16 * BLOCK_BYTES as usize;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread().enable_time().max_blocking_threads(1).build().expect("a runtime")
});

fuzz_target!(|bytes: &[u8]| {
    let Some(([kind, size, content], peer)) = bytes.split_first_chunk::<3>() else { return };
    // Near the ends of blocks, and between them.
    let length = u64::from(size >> 4) * BLOCK_BYTES / 2 + u64::from(size & 15) * 17;
    let form = if kind & 8 == 0 { Form::Index } else { Form::List };
    let file = file(if kind & 4 == 0 { length } else { 0 }, *content);
    let kept = file.try_clone().expect("cloned");
    RUNTIME.block_on(async {
        let (mut ours, mut theirs) = duplex(ANSWER_BYTES_MAX + peer.len());
        theirs.write_all(peer).await.expect("there is room");
        theirs.shutdown().await.expect("it is open");
        let meter = Arc::default();
        let (outcome, takes) = match kind & 3 {
            0 => (send(&mut ours, form, file, meter).await, false),
            1 => (send_same(&mut ours, form, file, meter).await, false),
            2 => (receive(&mut ours, form, file, length, meter).await, true),
            _ => (compare(&mut ours, form, file, length, meter).await, true),
        };
        drop(ours);
        let mut answers = Vec::new();
        theirs.read_to_end(&mut answers).await.expect("it ended");
        if takes && outcome.is_ok() {
            assert_eq!(kept.metadata().expect("there").len(), length);
            assert_eq!(answers.last(), Some(&0), "the source hears that it has arrived");
        }
        if kind & 3 == 3 {
            let before = if kind & 4 == 0 { length } else { 0 };
            assert!(read(&kept) == content_of(before, *content), "a file was written to that is only compared");
        }
    });
});

fn content_of(length: u64, content: u8) -> Vec<u8> {
    (0..length).map(|at| if at / 5000 % 3 == 0 { content } else { 0 }).collect()
}

/// An unnamed file with this content.
fn file(length: u64, content: u8) -> File {
    let path = format!("/dev/shm/ferry-fuzz-{}", std::process::id());
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).expect("memory");
    std::fs::remove_file(&path).expect("it was made");
    file.write_all_at(&content_of(length, content), 0).expect("memory");
    file
}

fn read(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().expect("there").len() as usize];
    file.read_exact_at(&mut bytes, 0).expect("read");
    bytes
}
