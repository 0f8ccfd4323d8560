//! The RPC stream between two libvirt daemons, as far as a live move needs it.
//!
//! A peer-to-peer migration makes the source's libvirtd a root client of the destination's. [`Gate`] runs at the
//! destination and lets through only the calls of one move of one VM; everything else is refused. [`Tap`] runs at both
//! ends, passes everything and reports when the Finish reply passes: its delivery at the source is the point of no
//! return, and at the destination it can still be turned into an error.
//!
//! ```text
//! source's libvirtd ── Tap ══ carriers ══ Gate, Tap ── destination's libvirtd
//! calls, in order:   AuthList · SupportsFeature* · Open · SupportsFeature* · RegisterCloseCallback
//!                    · Prepare … (memory flows) … · Finish · UnregisterCloseCallback · Close   keepalive at any time
//! ```
//! These are all messages that libvirt 11.3 was observed to send between two daemons with a gate in between. Nothing
//! here does I/O. The output consists of whole messages, so a caller may stop between any two outputs.

pub mod calls;
pub mod definition;
mod flags;
pub mod gate;
pub mod message;
pub mod tap;
pub mod xdr;

use ferry_core::id::VmId;

pub use calls::{FinishCall, PrepareCall, text_parameter};
pub use flags::{
    FLAG_ABORT_ON_ERROR, FLAG_AUTO_CONVERGE, FLAG_CHANGE_PROTECTION, FLAG_LIVE, FLAG_NON_SHARED_DISK, FLAG_PAUSED,
    FLAG_PEER2PEER, FLAG_PERSIST_DEST, FLAG_SYNCHRONOUS_WRITES, FLAG_UNSAFE,
};
pub use gate::{Gate, GatePolicy, Refusal, RefusalReason};
pub use tap::{FinishReply, Passed, Tap};

use definition::{DefinitionPolicy, check_cookie};

/// Feeds `bytes` to every parser of this module, whole and cut: for fuzzing. Panics if a cut changes what passes.
pub fn fuzz(bytes: &[u8]) {
    let policy = GatePolicy {
        definition: DefinitionPolicy { vm: VmId(uuid::Uuid::nil()), name: "fuzz".into(), roots: vec!["/srv".into()] },
        memory_socket: "/run/memory.sock".into(),
        disk_socket: "/run/disks.sock".into(),
        disks: vec!["vda".into()],
    };
    let pass = |pieces: &[&[u8]]| {
        let (mut gate, mut passed) = (Gate::new(policy.clone()), Vec::new());
        let mut verdicts = Vec::new();
        for piece in pieces {
            let mut verdict = gate.pass(piece, &mut passed);
            // A lost stream stays lost; a refusal with a reply consumed its message, so this ends.
            while let Err(refusal) = verdict {
                let is_lost = refusal.reply.is_empty();
                verdicts.push(refusal.reason);
                verdict = if is_lost { Ok(()) } else { gate.pass(&[], &mut passed) };
            }
        }
        let (mut tap, mut replied) = (Tap::default(), Vec::new());
        let called = pieces.iter().try_for_each(|piece| tap.calls(piece));
        let seen: Vec<_> = pieces.iter().filter_map(|piece| tap.replies(piece, &mut replied).transpose()).collect();
        (verdicts.first().cloned(), passed, called, seen, replied)
    };
    let whole = pass(&[bytes]);
    let (head, tail) = bytes.split_at(bytes.len() / 2);
    let (verdict, passed, ..) = pass(&[head, tail]);
    assert_eq!((&whole.0, &whole.1), (&verdict, &passed), "a cut of the stream changed what passes");
    assert!(whole.1.len() <= bytes.len() && bytes.starts_with(&whole.4), "bytes were invented");
    let _ = check_cookie(bytes, &policy.definition);
}

#[cfg(test)]
mod tests;
