//! Puts the frames of one stream back in order, whichever lane each of them arrives on.

use std::collections::BTreeMap;

use crate::{
    WireError,
    frame::{Chain, Codec, Header},
};

/// Upper bound of the peer's window, in plain bytes; a peer that sends more breaks the protocol. Coded frames are hardly
/// longer than plain ones ([`Header`]).
pub(crate) const INBOUND_BYTES_MAX: u64 = crate::window::BUDGET_BYTES + crate::window::WINDOW_BYTES_MIN;

/// Limit of frames in flight, and so of chunks that wait for the local socket: the largest window in frames of 16 KiB.
/// Deframing checks the byte limits.
pub(crate) const FRAMES_MAX: usize = 1 << 14;

/// What the header of a Data frame states about its payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) codec: Codec,
    pub(crate) plain: u32,
    pub(crate) coded: u32,
    pub(crate) offset: u64,
    pub(crate) checksum: u64,
}

/// Puts frames in order. On one lane they arrive in order, and any other order breaks the protocol; with several lanes,
/// early frames wait here, within the window.
#[derive(Debug)]
pub(crate) struct Assembly {
    lanes: u8,
    /// Length of the stream that was passed on.
    whole: u64,
    chain: Chain,
    /// The frames after that whose headers have arrived, by offset. They do not overlap.
    coming: BTreeMap<u64, Coming>,
    /// The stream's length and the final value of its chain.
    end: Option<(u64, u64)>,
    lanes_ended: u8,
}

#[derive(Debug)]
struct Coming {
    plain: u32,
    checksum: u64,
    /// Once they have arrived.
    bytes: Option<Vec<u8>>,
}

impl Assembly {
    pub(crate) fn new(lanes: u8) -> Self {
        Self { lanes, whole: 0, chain: Chain::default(), coming: BTreeMap::new(), end: None, lanes_ended: 0 }
    }

    /// Whether the whole stream was passed on.
    pub(crate) fn is_complete(&self) -> bool {
        self.end.is_some_and(|(total, _)| total == self.whole)
    }

    /// Accepts a frame before its payload is read; `delivered` bytes of the stream were already delivered.
    ///
    /// # Errors
    /// [`WireError::Protocol`] for a frame beyond the end, out of order, repeated, or beyond the window.
    pub(crate) fn expect(&mut self, frame: &Frame, delivered: u64) -> Result<(), WireError> {
        let end = frame.offset.saturating_add(u64::from(frame.plain));
        if self.end.is_some_and(|(total, _)| end > total) {
            return Err(broken("data after the end of the stream"));
        }
        // What ends last of what begins before this frame's end.
        let before = self.coming.range(..end).next_back().map_or(self.whole, |(offset, early)| early.end(*offset));
        if frame.offset < before || (self.lanes == 1 && frame.offset > before) {
            return Err(broken(&format!("a frame at offset {} where {before} was expected", frame.offset)));
        }
        if end - delivered > INBOUND_BYTES_MAX {
            return Err(broken("more bytes than the window allows"));
        }
        if self.coming.len() >= FRAMES_MAX {
            return Err(broken("too many frames in flight"));
        }
        self.coming.insert(frame.offset, Coming { plain: frame.plain, checksum: frame.checksum, bytes: None });
        Ok(())
    }

    /// Accepts the plain bytes of the expected frame at `offset`, and passes everything now contiguous to `next`.
    ///
    /// # Errors
    /// Those of `next`; [`WireError::Protocol`] if the stream is complete but does not match its End frame.
    pub(crate) fn take(
        &mut self,
        offset: u64,
        bytes: Vec<u8>,
        mut next: impl FnMut(Vec<u8>) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        self.coming.get_mut(&offset).expect("it was expected").bytes = Some(bytes);
        while let Some(first) = self.coming.first_entry()
            && *first.key() == self.whole
            && first.get().bytes.is_some()
        {
            let Coming { plain, checksum, bytes } = first.remove();
            self.whole += u64::from(plain);
            self.chain.push(checksum);
            next(bytes.unwrap_or_default())?;
        }
        self.compare()
    }

    /// Records that a lane carries no more data: the length of the stream and the final value of its chain. To be called
    /// once for each lane.
    ///
    /// # Errors
    /// [`WireError::Protocol`] if the stream, or the end on another lane, does not match them.
    pub(crate) fn end(&mut self, total: u64, checksum: u64) -> Result<(), WireError> {
        let expected = self.coming.last_key_value().map_or(self.whole, |(offset, last)| last.end(*offset));
        if total < expected || self.end.is_some_and(|end| end != (total, checksum)) {
            return Err(broken("an end that does not fit the stream"));
        }
        self.end = Some((total, checksum));
        self.lanes_ended += 1;
        let announced = self.whole + self.coming.values().map(|early| u64::from(early.plain)).sum::<u64>();
        if self.lanes_ended == self.lanes && announced != total {
            return Err(broken("an end before all of the stream was sent"));
        }
        self.compare()
    }

    fn compare(&self) -> Result<(), WireError> {
        match self.end {
            Some((total, checksum)) if total == self.whole && checksum != self.chain.value() => {
                Err(broken("an end that does not fit the stream"))
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl Coming {
    fn end(&self, offset: u64) -> u64 {
        offset + u64::from(self.plain)
    }
}

impl Frame {
    /// The frame that a Data header describes.
    pub(crate) fn of(header: &Header) -> Option<Self> {
        match *header {
            Header::Data { codec, plain, coded, offset, checksum } => {
                Some(Self { codec, plain, coded, offset, checksum })
            }
            Header::Ack { .. } | Header::End { .. } | Header::Abort { .. } => None,
        }
    }
}

pub(super) fn broken(what: &str) -> WireError {
    WireError::Protocol(what.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Splits a stream into frames of these lengths.
    fn frames(lengths: &[u32]) -> (Vec<(Frame, Vec<u8>)>, Chain) {
        let (mut offset, mut chain, mut frames) = (0, Chain::default(), Vec::new());
        for (number, length) in lengths.iter().enumerate() {
            let bytes = vec![number as u8; *length as usize];
            let frame = Frame::of(&Header::raw_data(&bytes, offset)).expect("data");
            chain.push(frame.checksum);
            offset += u64::from(*length);
            frames.push((frame, bytes));
        }
        (frames, chain)
    }

    proptest! {
        #[test]
        fn frames_of_several_lanes_are_one_stream_in_whatever_order_they_come(
            lengths in prop::collection::vec(1..50_u32, 1..40),
            order in prop::collection::vec(any::<usize>(), 80),
            ends in prop::collection::vec(any::<usize>(), 3),
        ) {
            let (mut left, chain) = frames(&lengths);
            let total = lengths.iter().map(|length| u64::from(*length)).sum();
            let expected: Vec<u8> = left.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
            let (mut assembly, mut got, mut announced) = (Assembly::new(4), Vec::new(), Vec::new());
            // Three lanes end sometime, the fourth at last.
            let ends: Vec<usize> = ends.iter().map(|end| end % (2 * lengths.len())).collect();
            for (at, pick) in order.iter().enumerate().take(2 * lengths.len()) {
                for _ in ends.iter().filter(|end| **end == at) {
                    assembly.end(total, chain.value()).expect("it fits");
                }
                // A header, or the payload of one whose header came.
                let is_header = announced.is_empty() || (!left.is_empty() && pick % 2 == 0);
                if is_header {
                    let (frame, bytes) = left.swap_remove(pick / 2 % left.len());
                    assembly.expect(&frame, 0).expect("it came once");
                    prop_assert!(assembly.expect(&frame, 0).is_err(), "a frame twice");
                    announced.push((frame, bytes));
                } else {
                    let (frame, bytes) = announced.swap_remove(pick / 2 % announced.len());
                    assembly.take(frame.offset, bytes, |bytes| { got.extend(bytes); Ok(()) }).expect("it fits");
                    prop_assert!(assembly.expect(&frame, 0).is_err(), "a frame twice");
                }
            }
            assembly.end(total, chain.value()).expect("it fits");
            prop_assert!(assembly.is_complete());
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn one_lane_keeps_the_order_and_several_keep_to_the_window() {
        let (frames, chain) = frames(&[10, 10, 10]);
        let (mut one, mut four) = (Assembly::new(1), Assembly::new(4));
        assert!(one.expect(&frames[1].0, 0).is_err(), "a gap on one lane");
        assert!(one.expect(&frames[0].0, 0).is_ok() && one.expect(&frames[1].0, 0).is_ok(), "no payload has come yet");
        let beyond = Frame { offset: INBOUND_BYTES_MAX - 9, ..frames[0].0 };
        assert!(four.expect(&beyond, 0).is_err(), "beyond the window");
        assert!(four.expect(&beyond, 1).is_ok());
        assert!(one.end(30, chain.value()).is_err(), "bytes that did not come");
        let mut four = Assembly::new(4);
        assert!(four.expect(&frames[1].0, 0).is_ok());
        assert!(four.end(30, chain.value()).is_ok());
        assert!(four.end(31, chain.value()).is_err(), "another end");
        assert!(four.expect(&beyond, 1).is_err(), "behind the end");
        let overlap = Frame { offset: 15, ..frames[0].0 };
        four.take(frames[1].0.offset, frames[1].1.clone(), |_| Ok(())).expect("early");
        assert!(four.expect(&overlap, 0).is_err() && four.expect(&frames[0].0, 0).is_ok());
    }

    #[test]
    fn a_stream_of_which_bytes_are_missing_does_not_end() {
        let (frames, chain) = frames(&[10, 10]);
        let mut two = Assembly::new(2);
        two.expect(&frames[1].0, 0).expect("on a lane");
        two.end(20, chain.value()).expect("another lane may have the rest");
        assert!(two.end(20, chain.value()).is_err(), "no lane has the rest");
    }

    #[test]
    fn the_number_of_frames_that_wait_is_bounded() {
        let mut two = Assembly::new(2);
        let frame = Frame::of(&Header::raw_data(&[1], 1)).expect("data");
        let early = |number: usize| Frame { offset: 1 + number as u64, ..frame };
        (0..FRAMES_MAX).for_each(|number| two.expect(&early(number), 0).expect("within the limit"));
        assert!(two.expect(&early(FRAMES_MAX), 0).is_err());
    }
}
