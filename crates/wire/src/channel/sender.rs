//! The outbound direction: read from the local socket, filter, frame, queue for the lanes. Mirror of `receiver.rs`.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc},
};

use super::{assembly::FRAMES_MAX, shared::Shared};
use crate::{
    WireError,
    filter::Direction,
    frame::{Chain, DATA_BYTES_MAX, Header},
    meter::Wait,
    rate::{RateLimit, Room},
    window::Pace,
};

/// Less room than this in the window counts as none: pending acknowledgements will make more, and a frame of a few
/// bytes costs as much as a full one.
const ROOM_BYTES_MIN: u64 = 16 << 10;

/// A frame on its way to a lane.
pub(super) struct Outgoing {
    pub(super) header: Header,
    pub(super) payload: Bytes,
    /// Its place among those that may be on their way. After `payload`, whose memory is reused when it is free.
    _slot: OwnedSemaphorePermit,
}

/// The frames that wait for a lane. Whichever lane has time takes the next.
#[derive(Clone)]
pub(super) struct Frames(Arc<Mutex<mpsc::Receiver<Outgoing>>>);

impl Frames {
    /// The next frame; `None` at the end of the stream. Cancelling this loses nothing.
    pub(super) async fn next(&self) -> Option<Outgoing> {
        self.0.lock().await.recv().await
    }

    /// As [`Self::next`], on a thread of its own.
    pub(super) fn blocking_next(&self) -> Option<Outgoing> {
        self.0.blocking_lock().blocking_recv()
    }
}

pub(super) struct Sender<R> {
    local: Option<R>,
    shared: Arc<Shared>,
    pace: Pace,
    rate: Option<Arc<RateLimit>>,
    /// Until the stream has ended.
    frames: Option<mpsc::Sender<Outgoing>>,
    /// Allows frames to be on their way, so that nothing is read for which no lane has time: what waits in the local
    /// socket meanwhile becomes one frame.
    slots: Arc<Semaphore>,
    slot: Option<OwnedSemaphorePermit>,
    chunk: BytesMut,
    /// Output of the filter that is still to be sent.
    passed: Bytes,
    /// The longest output of the filter so far.
    passed_bytes_max: usize,
    chain: Chain,
    /// Bytes sent as Data or queued for it.
    sent: u64,
    acked: u64,
    /// Frames in flight: the end offset and send time of each. At most [`FRAMES_MAX`].
    timed: VecDeque<(u64, Duration)>,
}

impl<R: AsyncRead + Unpin> Sender<R> {
    /// A sender with at most `slots` frames on their way to the lanes, which take them from the queue.
    pub(super) fn new(
        local: R,
        pace: Pace,
        rate: Option<Arc<RateLimit>>,
        slots: usize,
        shared: Arc<Shared>,
    ) -> (Self, Frames) {
        let (frames, queue) = mpsc::channel(slots);
        let sender = Self {
            local: Some(local),
            shared,
            pace,
            rate,
            frames: Some(frames),
            slots: Arc::new(Semaphore::new(slots)),
            slot: None,
            chunk: BytesMut::new(),
            passed: Bytes::new(),
            passed_bytes_max: 0,
            chain: Chain::default(),
            sent: 0,
            acked: 0,
            timed: VecDeque::new(),
        };
        (sender, Frames(Arc::new(Mutex::new(queue))))
    }

    /// Sends until the local stream is complete and acknowledged, and the peer's stream is complete.
    pub(super) async fn run(&mut self) -> Result<(), WireError> {
        loop {
            self.take_acks();
            let inbound_done = self.shared.inbound_done.load(Ordering::Acquire);
            if self.frames.is_none() && inbound_done && self.acked == self.sent {
                return Ok(());
            }
            self.take_answers();
            let has_passed = !self.passed.is_empty();
            if self.frames.is_some() && self.local.is_none() && !has_passed {
                self.end();
                // The peer's stream may be complete already, and nobody would wake this again.
                continue;
            }
            let room = self.room();
            let is_held_back = self.local.is_some() && room == 0;
            let sends = (has_passed || self.local.is_some()) && room > 0;
            if is_held_back {
                self.pace.held_back();
                self.shared.held_back.fetch_add(1, Ordering::Relaxed);
            }
            if sends
                && has_passed
                && let Some(slot) = self.slot.take()
            {
                let part = self.passed.split_to(room.min(self.passed.len()));
                self.send(part, slot);
                continue;
            }
            let allowed = self.rate.as_ref().map_or(Room::Bytes(u64::MAX), |rate| rate.room());
            let (room, wait) = match allowed {
                Room::Bytes(bytes) => (room.min(usize::try_from(bytes).unwrap_or(usize::MAX)), None),
                Room::After(wait) => (0, Some(wait)),
            };
            let wants = sends && !has_passed && self.slot.is_some();
            let reads = wants && wait.is_none();
            if reads {
                self.chunk.reserve(DATA_BYTES_MAX);
            }
            let waits_for = match wait {
                _ if is_held_back => Some(Wait::Window),
                _ if sends && self.slot.is_none() => Some(Wait::Lane),
                Some(_) if wants => Some(Wait::Limit),
                Some(_) | None => (reads && self.sent > 0).then_some(Wait::Source),
            };
            let began = self.shared.started.elapsed();
            let (slots, local, chunk) = (&self.slots, &mut self.local, &mut self.chunk);
            tokio::select! {
                biased;
                () = self.shared.sender_due.notified() => {}
                slot = Arc::clone(slots).acquire_owned(), if sends && self.slot.is_none() => {
                    self.slot = Some(slot.expect("it is never closed"));
                }
                () = tokio::time::sleep(wait.unwrap_or_default()), if wants && wait.is_some() => {}
                read = async { local.as_mut().expect("guarded by `reads`").read_buf(&mut chunk.limit(room)).await }, if reads => {
                    match read.map_err(WireError::Local)? {
                        0 => self.local = None,
                        count => {
                            if let Some(rate) = &self.rate {
                                rate.spend(count as u64);
                            }
                            self.send_chunk()?;
                        }
                    }
                }
            }
            if let Some(wait) = waits_for {
                self.waited(wait, began);
            }
        }
    }

    fn waited(&self, wait: Wait, began: Duration) {
        let took = self.shared.started.elapsed().saturating_sub(began);
        let counts = match wait {
            Wait::Source => took.min(Wait::SOURCE_MAX),
            Wait::Lane | Wait::Window | Wait::Limit | Wait::Delivery => took,
        };
        self.shared.meter.add_wait(wait, counts);
    }

    /// How many bytes may be accepted now.
    fn room(&self) -> usize {
        let in_flight = self.sent - self.acked;
        let room = self.pace.window().saturating_sub(in_flight).min(self.shared.traffic.room(in_flight));
        if room < ROOM_BYTES_MIN || self.timed.len() >= FRAMES_MAX {
            0
        } else {
            room.min(DATA_BYTES_MAX as u64) as usize
        }
    }

    /// Sends what was read, or lets the filter take it.
    fn send_chunk(&mut self) -> Result<(), WireError> {
        if self.shared.has_filter {
            let mut passed = Vec::with_capacity(self.passed_bytes_max);
            self.shared.filter(Direction::Outbound, &self.chunk, &mut passed)?;
            self.chunk.clear();
            self.passed_bytes_max = self.passed_bytes_max.max(passed.len());
            self.passed = passed.into();
            return Ok(());
        }
        let chunk = self.chunk.split().freeze();
        let slot = self.slot.take().expect("nothing is read without one");
        self.send(chunk, slot);
        Ok(())
    }

    /// Appends the filter's answers for the peer behind its output. After the end of the stream nothing is appended.
    fn take_answers(&mut self) {
        let mut answers = Vec::new();
        if self.frames.is_some() {
            self.shared.take_answers(Direction::Outbound, &mut answers);
        }
        if !answers.is_empty() {
            self.passed = [&self.passed[..], &answers].concat().into();
        }
    }

    /// Accepts bytes of the stream and queues them for the lanes.
    fn send(&mut self, payload: Bytes, slot: OwnedSemaphorePermit) {
        let header = Header::raw_data(&payload, self.sent);
        if let Header::Data { checksum, .. } = header {
            self.chain.push(checksum);
        }
        let count = payload.len() as u64;
        self.sent += count;
        // Stored before the frame is sent, so that its acknowledgement never arrives first.
        self.shared.sent.store(self.sent, Ordering::Release);
        self.shared.traffic.add_in_flight(count);
        self.shared.meter.add_sent(count);
        self.timed.push_back((self.sent, self.shared.started.elapsed()));
        let frames = self.frames.as_ref().expect("nothing is sent after the end");
        // There is room for each slot. The lanes are gone only after a failure, and its own error ends the channel.
        let _ = frames.try_send(Outgoing { header, payload, _slot: slot });
    }

    /// States the end of the stream, which every lane sends after its last frame.
    fn end(&mut self) {
        self.shared.end.get_or_init(|| (self.sent, self.chain.value()));
        self.frames = None;
    }

    fn take_acks(&mut self) {
        let acked = self.shared.acked.load(Ordering::Acquire);
        if acked == self.acked {
            return;
        }
        let now = self.shared.started.elapsed();
        while let Some(&(offset, at)) = self.timed.front() {
            if offset > acked {
                break;
            }
            self.pace.round_trip(now.saturating_sub(at));
            self.timed.pop_front();
        }
        self.shared.meter.add_acked(acked - self.acked);
        self.acked = acked;
        self.pace.delivered(now, acked, self.shared.traffic.law());
    }
}
