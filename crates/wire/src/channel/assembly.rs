//! Puts the frames of one stream back in order, whichever lane each of them arrived on.

use std::collections::BTreeMap;

use crate::{
    WireError,
    frame::{Chain, Codec, Header},
};

/// Lanes per channel. One carries everything that links have delivered so far.
pub(crate) const LANES: u8 = 1;
/// Upper bound of the peer's window, in plain bytes; a peer that sends more breaks the protocol. Coded frames are never
/// longer than plain ones.
pub(crate) const INBOUND_BYTES_MAX: u64 = crate::window::BUDGET_BYTES + crate::window::WINDOW_BYTES_MIN;

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
    /// Length of the stream received without a gap.
    whole: u64,
    chain: Chain,
    early: BTreeMap<u64, (Frame, Vec<u8>)>,
    end: Option<(u64, u64)>,
}

impl Assembly {
    pub(crate) fn new(lanes: u8) -> Self {
        Self { lanes, whole: 0, chain: Chain::default(), early: BTreeMap::new(), end: None }
    }

    /// Whether the whole stream has arrived.
    pub(crate) fn is_complete(&self) -> bool {
        self.end.is_some_and(|(total, _)| total == self.whole)
    }

    /// Checks that a frame is acceptable before its payload is read; `delivered` bytes of the stream were already
    /// delivered.
    ///
    /// # Errors
    /// [`WireError::Protocol`] for a frame beyond the end, out of order, repeated, or beyond the window.
    pub(crate) fn expects(&self, frame: &Frame, delivered: u64) -> Result<(), WireError> {
        let end = frame.offset.saturating_add(u64::from(frame.plain));
        if self.end.is_some_and(|(total, _)| end > total || self.is_complete()) {
            return Err(broken("data after the end of the stream"));
        }
        let follows = self
            .early
            .range(..end)
            .next_back()
            .is_none_or(|(offset, (early, _))| offset + u64::from(early.plain) <= frame.offset);
        if frame.offset < self.whole || (frame.offset > self.whole && self.lanes == 1) || !follows {
            return Err(broken(&format!("a frame at offset {} where {} was expected", frame.offset, self.whole)));
        }
        if end - delivered > INBOUND_BYTES_MAX {
            return Err(broken("more bytes than the window allows"));
        }
        Ok(())
    }

    /// Accepts the payload of an expected frame and passes everything now contiguous to `next`.
    ///
    /// # Errors
    /// Those of `next`; [`WireError::Protocol`] if the stream is complete but does not match its End frame.
    pub(crate) fn take(
        &mut self,
        frame: Frame,
        payload: Vec<u8>,
        mut next: impl FnMut((Frame, Vec<u8>)) -> Result<(), WireError>,
    ) -> Result<(), WireError> {
        if frame.offset != self.whole {
            self.early.insert(frame.offset, (frame, payload));
            return Ok(());
        }
        let mut ready = Some((frame, payload));
        while let Some((frame, payload)) = ready {
            self.whole += u64::from(frame.plain);
            self.chain.push(frame.checksum);
            next((frame, payload))?;
            ready = self.early.remove(&self.whole);
        }
        self.compare()
    }

    /// Records the length of the stream and the final value of its chain.
    ///
    /// # Errors
    /// [`WireError::Protocol`] if the stream does not match them.
    pub(crate) fn ends(&mut self, total: u64, checksum: u64) -> Result<(), WireError> {
        let is_short = self.lanes == 1 && total != self.whole;
        if self.end.is_some() || total < self.whole || is_short {
            return Err(broken("an end that does not fit the stream"));
        }
        self.end = Some((total, checksum));
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
            order in prop::collection::vec(any::<usize>(), 41),
        ) {
            let (mut left, chain) = frames(&lengths);
            let total = lengths.iter().map(|length| u64::from(*length)).sum();
            let expected: Vec<u8> = left.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
            let (mut assembly, mut got) = (Assembly::new(4), Vec::new());
            let end_at = order[40] % (left.len() + 1);
            for (turn, pick) in order.iter().enumerate().take(lengths.len() + 1) {
                if turn == end_at {
                    assembly.ends(total, chain.value()).expect("it fits");
                }
                if left.is_empty() {
                    break;
                }
                prop_assert!(!assembly.is_complete());
                let (frame, bytes) = left.swap_remove(pick % left.len());
                assembly.expects(&frame, 0).expect("it came once");
                assembly.take(frame, bytes, |(_, bytes)| { got.extend(bytes); Ok(()) }).expect("it fits");
                prop_assert!(assembly.expects(&frame, 0).is_err(), "a frame twice");
            }
            prop_assert!(assembly.is_complete());
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn one_lane_keeps_the_order_and_several_keep_to_the_window() {
        let (frames, chain) = frames(&[10, 10, 10]);
        let (mut one, mut four) = (Assembly::new(1), Assembly::new(4));
        assert!(one.expects(&frames[1].0, 0).is_err(), "a gap on one lane");
        assert!(four.expects(&frames[1].0, 0).is_ok());
        let beyond = Frame { offset: INBOUND_BYTES_MAX - 9, ..frames[0].0 };
        assert!(four.expects(&beyond, 0).is_err(), "beyond the window");
        assert!(four.expects(&beyond, 1).is_ok());
        assert!(one.ends(30, chain.value()).is_err(), "bytes that did not come");
        assert!(four.ends(30, chain.value()).is_ok());
        assert!(four.expects(&beyond, 1).is_err(), "behind the end");
        let overlap = Frame { offset: 15, ..frames[0].0 };
        four.take(frames[1].0, frames[1].1.clone(), |_| Ok(())).expect("early");
        assert!(four.expects(&overlap, 0).is_err() && four.expects(&frames[0].0, 0).is_ok());
    }
}
