//! zstd: each frame on its own, or with a long window over the earlier frames of the lane.
//!
//! With the usual windows (0.5 to 8 MiB) earlier frames are worth -5 to +8 % (ADR 0026), which is not worth the state
//! that both ends would have to keep in step. A window over most of what a guest writes again and again is: resent pages
//! shrink to nearly nothing.

use zstd::zstd_safe::{
    CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer, ResetDirective, compress_bound,
    zstd_sys::ZSTD_EndDirective,
};

/// Largest window of all lanes of a channel together: 128 MiB. Each end keeps as much.
const WINDOW_LOG_MAX: u32 = 27;

/// The window of each of so many lanes, as a power of two.
pub(super) fn window_log(lanes: u8) -> u32 {
    WINDOW_LOG_MAX - u32::from(lanes.max(1)).next_power_of_two().ilog2()
}

/// Encodes frames on their own.
#[derive(Default)]
pub(super) struct Encoder(Option<CCtx<'static>>);

impl Encoder {
    /// Replaces `coded` by `plain`; `false` if that fails.
    pub(super) fn encode(&mut self, level: i8, plain: &[u8], coded: &mut Vec<u8>) -> bool {
        let Some(context) = made(&mut self.0, CCtx::try_create) else { return false };
        // A frame that does not shrink does not fit, and need not.
        coded.reserve(plain.len());
        context.compress(coded, plain, i32::from(level)).is_ok()
    }
}

/// Decodes frames on their own.
#[derive(Default)]
pub(super) struct Decoder(Option<DCtx<'static>>);

impl Decoder {
    /// Fills `plain`; `false` if `coded` is not valid or of another length.
    pub(super) fn decode(&mut self, coded: &[u8], plain: &mut [u8]) -> bool {
        let length = plain.len();
        made(&mut self.0, DCtx::try_create).is_some_and(|context| context.decompress(plain, coded) == Ok(length))
    }
}

/// The first byte of a frame with a long window: whether it refers to earlier ones.
const GOES_ON: u8 = 0;
const BEGINS: u8 = 1;

/// Encodes frames with a long window.
pub(super) struct LongEncoder {
    window_log: u32,
    /// With its level; from its first frame on.
    context: Option<(i8, CCtx<'static>)>,
}

impl LongEncoder {
    pub(super) fn new(window_log: u32) -> Self {
        Self { window_log, context: None }
    }

    /// Appends `plain` to `coded`, which is empty; `false` if that fails or takes more than `bytes_max`. Another level than
    /// before begins with an empty window.
    pub(super) fn encode(&mut self, level: i8, plain: &[u8], coded: &mut Vec<u8>, bytes_max: usize) -> bool {
        let goes_on = self.context.as_ref().is_some_and(|(before, _)| *before == level);
        if !goes_on {
            self.context = self.begin(level).map(|context| (level, context));
        }
        let Some((_, context)) = &mut self.context else { return false };
        coded.push(if goes_on { GOES_ON } else { BEGINS });
        coded.reserve(compress_bound(plain.len()) + bytes_max - plain.len());
        let is_whole = flush(context, plain, coded) && coded.len() <= bytes_max;
        if !is_whole {
            // The other end will not see this frame.
            self.context = None;
        }
        is_whole
    }

    fn begin(&self, level: i8) -> Option<CCtx<'static>> {
        let mut context = CCtx::try_create()?;
        for parameter in [
            CParameter::CompressionLevel(i32::from(level)),
            CParameter::WindowLog(self.window_log),
            CParameter::EnableLongDistanceMatching(true),
        ] {
            context.set_parameter(parameter).ok()?;
        }
        Some(context)
    }
}

/// Appends `plain` to `coded` so that it can be decoded at once; `false` if that fails or there is not enough room.
fn flush(context: &mut CCtx<'static>, plain: &[u8], coded: &mut Vec<u8>) -> bool {
    let at = coded.len();
    let (mut from, mut to) = (InBuffer::around(plain), OutBuffer::around_pos(coded, at));
    let left = context.compress_stream2(&mut to, &mut from, ZSTD_EndDirective::ZSTD_e_flush);
    left == Ok(0) && from.pos() == plain.len()
}

/// Decodes frames with a long window.
pub(super) struct LongDecoder {
    window_log: u32,
    context: Option<DCtx<'static>>,
}

impl LongDecoder {
    pub(super) fn new(window_log: u32) -> Self {
        Self { window_log, context: None }
    }

    /// Fills `plain`; `false` if `coded` is not valid, is of another length, or asks for a larger window.
    pub(super) fn decode(&mut self, coded: &[u8], plain: &mut [u8]) -> bool {
        let window_log = self.window_log;
        let bounded = || {
            let mut context = DCtx::try_create()?;
            context.set_parameter(DParameter::WindowLogMax(window_log)).ok()?;
            Some(context)
        };
        let Some(context) = made(&mut self.context, bounded) else { return false };
        let Some((first, coded)) = coded.split_first() else { return false };
        let can_begin = match *first {
            GOES_ON => true,
            BEGINS => context.reset(ResetDirective::SessionOnly).is_ok(),
            2.. => false,
        };
        can_begin && fill(context, coded, plain)
    }
}

fn fill(context: &mut DCtx<'static>, coded: &[u8], plain: &mut [u8]) -> bool {
    let length = plain.len();
    let (mut from, mut to) = (InBuffer::around(coded), OutBuffer::around(plain));
    loop {
        let before = (from.pos(), to.pos());
        if context.decompress_stream(&mut to, &mut from).is_err() {
            return false;
        }
        let is_whole = to.pos() == length && from.pos() == coded.len();
        if is_whole || (from.pos(), to.pos()) == before {
            return is_whole;
        }
    }
}

/// What is in the slot, made if it is not there yet.
fn made<T>(slot: &mut Option<T>, make: impl FnOnce() -> Option<T>) -> Option<&mut T> {
    if slot.is_none() {
        *slot = make();
    }
    slot.as_mut()
}
