//! The outbound direction: read from the local socket, filter, frame, write to the lane. Mirror of `receiver.rs`.

use std::{collections::VecDeque, sync::atomic::Ordering, time::Duration};

use ferry_core::error::chain;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};

use super::{
    coding::Encoding,
    shared::{FRAMES_MAX, Shared},
};
use crate::{
    WireError,
    filter::Direction,
    frame::{Chain, DATA_BYTES_MAX, Header, REASON_BYTES_MAX, checksum_of},
    lane::LaneWriter,
    window::Pace,
};

/// Time limit for the Abort frame to the peer.
const ABORT_DEADLINE: Duration = Duration::from_millis(500);
/// Less room than this in the window counts as none: pending acknowledgements will make more, and a frame of a few
/// bytes costs as much as a full one.
const ROOM_BYTES_MIN: u64 = 16 << 10;

pub(crate) struct Sender<'a, W, R> {
    lane: LaneWriter<W>,
    local: Option<R>,
    shared: &'a Shared,
    pace: Pace,
    chunk: Vec<u8>,
    /// Output of the filter, and how many bytes of it are sent.
    passed: Vec<u8>,
    passed_sent: usize,
    /// The encoding thread, if there is a codec.
    encoding: Option<Encoding>,
    chain: Chain,
    /// Bytes sent as Data or queued for it.
    sent: u64,
    acked: u64,
    acknowledged: u64,
    ended: bool,
    /// Frames in flight: the end offset and send time of each. At most [`FRAMES_MAX`].
    timed: VecDeque<(u64, Duration)>,
}

impl<'a, W, R> Sender<'a, W, R>
where
    W: AsyncWrite + Unpin,
    R: AsyncRead + Unpin,
{
    pub(crate) fn new(
        lane: LaneWriter<W>,
        local: R,
        pace: Pace,
        encoding: Option<Encoding>,
        shared: &'a Shared,
    ) -> Self {
        Self {
            lane,
            local: Some(local),
            shared,
            pace,
            chunk: vec![0; DATA_BYTES_MAX],
            passed: Vec::new(),
            passed_sent: 0,
            encoding,
            chain: Chain::default(),
            sent: 0,
            acked: 0,
            acknowledged: 0,
            ended: false,
            timed: VecDeque::new(),
        }
    }

    /// Sends until the local stream is complete and acknowledged, and the peer's stream is complete.
    pub(crate) async fn run(&mut self) -> Result<(), WireError> {
        loop {
            self.take_acks();
            self.send_ack().await?;
            let inbound_done = self.shared.inbound_done.load(Ordering::Acquire);
            if self.ended && inbound_done && self.acked == self.sent {
                // The last acknowledgement of the peer's stream has been sent; the peer may close after us.
                self.send_ack().await?;
                return self.lane.close().await;
            }
            self.take_answers();
            let has_passed = self.passed_sent < self.passed.len();
            let (encodes, may_encode) =
                self.encoding.as_ref().map_or((false, true), |encoding| (!encoding.is_idle(), encoding.has_room()));
            if self.local.is_none() && !self.ended && !has_passed && !encodes {
                self.end().await?;
                continue;
            }
            let room = self.room();
            if has_passed && room > 0 && may_encode {
                self.send_passed(room).await?;
                continue;
            }
            let reads = self.local.is_some() && !has_passed && room > 0 && may_encode;
            if self.local.is_some() && room == 0 {
                self.pace.held_back();
            }
            let local = &mut self.local;
            let chunk = &mut self.chunk[..room];
            let encoding = &mut self.encoding;
            tokio::select! {
                biased;
                () = self.shared.ack_due.notified() => {}
                () = self.shared.window_open.notified() => {}
                frame = async { encoding.as_mut().expect("guarded by `encodes`").next().await }, if encodes => {
                    let (header, payload) = frame?;
                    self.send(header, &payload).await?;
                    self.tell_filter();
                }
                read = async { local.as_mut().expect("guarded by `reads`").read(chunk).await }, if reads => {
                    match read.map_err(WireError::Local)? {
                        0 => self.local = None,
                        count => self.send_data(count).await?,
                    }
                }
            }
        }
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

    async fn send_data(&mut self, count: usize) -> Result<(), WireError> {
        if !self.shared.has_filter {
            let chunk = std::mem::take(&mut self.chunk);
            let sent = self.send_plain(&chunk[..count]).await;
            self.chunk = chunk;
            return sent;
        }
        self.passed.clear();
        self.passed_sent = 0;
        self.shared.filter(Direction::Outbound, &self.chunk[..count], &mut self.passed)?;
        self.tell_filter();
        Ok(())
    }

    /// Appends the filter's answers for the peer behind its output. After the end of the stream nothing is appended.
    fn take_answers(&mut self) {
        if self.passed_sent == self.passed.len() {
            self.passed.clear();
            self.passed_sent = 0;
        }
        if !self.ended {
            self.shared.take_answers(Direction::Outbound, &mut self.passed);
        }
    }

    /// Sends the next part of the filter's output, which may exceed what was read and what the window holds.
    async fn send_passed(&mut self, room: usize) -> Result<(), WireError> {
        let passed = std::mem::take(&mut self.passed);
        let (start, end) = (self.passed_sent, passed.len().min(self.passed_sent + room));
        let sent = self.send_plain(&passed[start..end]).await;
        (self.passed, self.passed_sent) = (passed, end);
        sent?;
        self.tell_filter();
        Ok(())
    }

    /// Informs the filter when all its output is sent.
    fn tell_filter(&self) {
        if self.passed_sent == self.passed.len() && self.encoding.as_ref().is_none_or(Encoding::is_idle) {
            self.shared.filtered_delivered(Direction::Outbound);
        }
    }

    /// Accepts bytes of the stream and sends them, through the encoder if there is one.
    async fn send_plain(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        let offset = self.sent;
        self.sent += bytes.len() as u64;
        // Stored before the frame is sent, so that its acknowledgement never arrives first.
        self.shared.sent.store(self.sent, Ordering::Release);
        self.shared.traffic.add_in_flight(bytes.len() as u64);
        self.shared.meter.add_sent(bytes.len() as u64);
        self.timed.push_back((self.sent, self.shared.started.elapsed()));
        match &mut self.encoding {
            Some(encoding) => encoding.put(offset, bytes.to_vec()),
            None => self.send(Header::raw_data(bytes, offset), bytes).await,
        }
    }

    async fn send(&mut self, header: Header, payload: &[u8]) -> Result<(), WireError> {
        if let Header::Data { checksum, .. } = header {
            self.chain.push(checksum);
        }
        self.lane.write(header, payload).await
    }

    async fn end(&mut self) -> Result<(), WireError> {
        self.ended = true;
        let header = Header::End { total: self.sent, checksum: self.chain.value() };
        self.lane.write(header, &[]).await
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

    async fn send_ack(&mut self) -> Result<(), WireError> {
        let delivered = self.shared.delivered.load(Ordering::Acquire);
        if delivered == self.acknowledged {
            return Ok(());
        }
        self.acknowledged = delivered;
        self.lane.write(Header::Ack { delivered }, &[]).await
    }

    /// Sends the peer the reason why this end gives up; best effort, bounded in time.
    pub(crate) async fn abort(&mut self, error: &WireError) {
        let reason = chain(error);
        let reason = &reason.as_bytes()[..reason.len().min(REASON_BYTES_MAX)];
        let header = Header::Abort { length: reason.len() as u32, checksum: checksum_of(reason) };
        let last_word = async {
            self.lane.write(header, reason).await?;
            self.lane.close().await
        };
        let _ = tokio::time::timeout(ABORT_DEADLINE, last_word).await;
    }
}
