//! The inbound direction of a pipe: read, open, hand over, delete. Mirror of `sender.rs`.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures_util::stream::{FuturesOrdered, StreamExt as _};
use tokio::{sync::mpsc, task::JoinSet, time::Instant};

use super::{
    error::{Fault, SpoolError},
    segment::{Kind, Opened, RESET_SEQUENCE, Seal, SegmentError, sequence_of},
    session::Spool,
};

/// Segments that are read at once: one travels while another is opened and handed over.
const READS_MAX: usize = 2;
/// How often files are looked for that should not be there, or should.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// A segment that is not there although later ones are, for so long, was removed by somebody else.
const MISSING_AFTER: Duration = Duration::from_secs(60);
/// How long deletions may take when the pipe is gone.
const LAST_DELETIONS: Duration = Duration::from_secs(5);

/// Hands over what arrives, in order, until the last segment, an error, or the end of the pipe.
pub(super) async fn receive(inbox: mpsc::Sender<Result<Opened, Fault>>, spool: Arc<Spool>, seal: Seal) {
    let mut deletions = JoinSet::new();
    let closed = inbox.clone();
    let outcome = tokio::select! {
        outcome = read_all(&inbox, &spool, &seal, &mut deletions) => outcome,
        () = closed.closed() => Ok(()),
    };
    if let Err(fault) = outcome {
        let _ = inbox.send(Err(fault)).await;
    }
    // What is left is removed with the session.
    let _ = tokio::time::timeout(LAST_DELETIONS, async { while deletions.join_next().await.is_some() {} }).await;
}

async fn read_all(
    inbox: &mpsc::Sender<Result<Opened, Fault>>,
    spool: &Arc<Spool>,
    seal: &Seal,
    deletions: &mut JoinSet<Result<(), Fault>>,
) -> Result<(), Fault> {
    let view = spool.view();
    let mut changes = view.subscribe();
    let mut reads = FuturesOrdered::new();
    // The next to hand over, and the next to read.
    let (mut due, mut next) = (0_u64, 0_u64);
    let mut sweep_at = Instant::now() + SWEEP_EVERY;
    let mut missing_since = None;
    loop {
        if let Some(fault) = view.fault() {
            return Err(fault);
        }
        while reads.len() < READS_MAX && view.has(&seal.file_name(next)) {
            let name = seal.file_name(next);
            reads.push_back(async move { spool.read(&name).await });
            next += 1;
        }
        if reads.is_empty() && view.has(&seal.file_name(RESET_SEQUENCE)) {
            return Err(reset(spool, seal).await?);
        }
        tokio::select! {
            Some(read) = reads.next(), if !reads.is_empty() => match read? {
                Some(file) => {
                    let name = seal.file_name(due);
                    let opened = seal.open(due, file).map_err(|source| changed(spool, &name, source))?;
                    let is_last = opened.kind == Kind::Last;
                    if opened.kind == Kind::Reset || inbox.send(Ok(opened)).await.is_err() {
                        return Err(given_up(spool));
                    }
                    // Deleted when the segment before it is used up: that keeps the other end's pace.
                    let spool = Arc::clone(spool);
                    deletions.spawn(async move { spool.delete(&name).await });
                    due += 1;
                    if is_last {
                        return Ok(());
                    }
                }
                // It was there, and is not: read from there again if it comes.
                None => {
                    view.forget(&seal.file_name(due));
                    reads = FuturesOrdered::new();
                    next = due;
                }
            },
            Some(deleted) = deletions.join_next(), if !deletions.is_empty() => {
                deleted.unwrap_or(Ok(()))?;
            }
            _ = changes.changed() => {}
            () = tokio::time::sleep_until(sweep_at) => {
                sweep_at = Instant::now() + SWEEP_EVERY;
                let (old, later) = others(spool, seal, due);
                for name in old {
                    view.forget(&name);
                    let spool = Arc::clone(spool);
                    deletions.spawn(async move { spool.delete(&name).await });
                }
                if later && reads.is_empty() {
                    let since = *missing_since.get_or_insert_with(Instant::now);
                    if since.elapsed() >= MISSING_AFTER {
                        return Err(missing(spool, seal.file_name(due)));
                    }
                } else {
                    missing_since = None;
                }
            }
        }
    }
}

/// Segments before the one that is due, which a repeated publication has brought back; and whether there are later ones.
fn others(spool: &Spool, seal: &Seal, due: u64) -> (VecDeque<String>, bool) {
    let prefix = seal.prefix();
    let mut old = VecDeque::new();
    let mut later = false;
    for name in spool.view().beginning(&prefix) {
        match sequence_of(&prefix, &name) {
            Some(sequence) if sequence < due => old.push_back(name),
            Some(sequence) => later |= sequence > due && sequence != RESET_SEQUENCE,
            None => {}
        }
    }
    (old, later)
}

/// The error of a pipe whose other end gave it up, if it was the other end that said so.
async fn reset(spool: &Spool, seal: &Seal) -> Result<Fault, Fault> {
    let name = seal.file_name(RESET_SEQUENCE);
    let file = spool.read(&name).await?.unwrap_or_default();
    seal.open(RESET_SEQUENCE, file).map_err(|source| changed(spool, &name, source))?;
    spool.delete(&name).await?;
    Ok(given_up(spool))
}

fn given_up(spool: &Spool) -> Fault {
    Arc::new(SpoolError::Reset { share: spool.share_name() })
}

fn changed(spool: &Spool, name: &str, source: SegmentError) -> Fault {
    Arc::new(SpoolError::Changed { share: spool.share_name(), name: name.to_owned(), source })
}

fn missing(spool: &Spool, name: String) -> Fault {
    Arc::new(SpoolError::Missing { share: spool.share_name(), name })
}
