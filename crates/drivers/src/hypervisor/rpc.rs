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

pub mod definition;
pub mod message;
pub mod xdr;

use std::path::PathBuf;

use ferry_core::id::VmId;
use thiserror::Error;

use definition::{DefinitionError, DefinitionPolicy, check_cookie, check_definition};
use message::{
    AUTH_LIST, CLOSE, FINISH, Header, KEEPALIVE_PROGRAM, Kind, LengthError, Message, OPEN, PREPARE, PROGRAM_VERSION,
    REGISTER_CLOSE_CALLBACK, REMOTE_PROGRAM, STATUS_OK, SUPPORTS_FEATURE, Splitter, UNREGISTER_CLOSE_CALLBACK,
};
use xdr::{Reader, TypedParameter, TypedValue, XdrError};

/// `VIR_MIGRATE_LIVE`
pub const FLAG_LIVE: u32 = 1 << 0;
/// `VIR_MIGRATE_PEER2PEER`
pub const FLAG_PEER2PEER: u32 = 1 << 1;
/// `VIR_MIGRATE_PERSIST_DEST`
pub const FLAG_PERSIST_DEST: u32 = 1 << 3;
/// `VIR_MIGRATE_PAUSED`
pub const FLAG_PAUSED: u32 = 1 << 5;
/// `VIR_MIGRATE_NON_SHARED_DISK`: disks are migrated.
pub const FLAG_NON_SHARED_DISK: u32 = 1 << 6;
/// `VIR_MIGRATE_CHANGE_PROTECTION`: libvirt's own lock against changes during the move.
pub const FLAG_CHANGE_PROTECTION: u32 = 1 << 8;
/// `VIR_MIGRATE_UNSAFE`: the source's libvirt does not check that files are shared. No effect at a destination.
pub const FLAG_UNSAFE: u32 = 1 << 9;
/// `VIR_MIGRATE_ABORT_ON_ERROR`
pub const FLAG_ABORT_ON_ERROR: u32 = 1 << 12;
/// `VIR_MIGRATE_AUTO_CONVERGE`
pub const FLAG_AUTO_CONVERGE: u32 = 1 << 13;
/// `VIR_MIGRATE_NON_SHARED_SYNCHRONOUS_WRITES`
pub const FLAG_SYNCHRONOUS_WRITES: u32 = 1 << 18;

const FLAGS_NEEDED: u32 = FLAG_LIVE | FLAG_PEER2PEER | FLAG_PAUSED;
const FLAGS_ALLOWED: u32 =
    FLAGS_NEEDED | FLAG_PERSIST_DEST | FLAG_CHANGE_PROTECTION | FLAG_UNSAFE | FLAG_ABORT_ON_ERROR | FLAG_AUTO_CONVERGE;
/// Additional flags when disks are migrated.
const FLAGS_OF_DISKS: u32 = FLAG_NON_SHARED_DISK | FLAG_SYNCHRONOUS_WRITES;

/// What one session may do to this host's libvirt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatePolicy {
    /// The VM that the calls must concern, and what its definition may use.
    pub definition: DefinitionPolicy,
    /// Where QEMU must listen: libvirtd lets QEMU unlink and bind that path.
    pub memory_socket: PathBuf,
    /// Where QEMU must listen for migrated disks.
    pub disk_socket: PathBuf,
    /// The migrated disks, by their names in the definition: libvirtd lets the source write their files.
    pub disks: Vec<String>,
}

/// Why a call was refused.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum RefusalReason {
    /// Not one of the calls of a plain move.
    #[error("The call is not part of a live move")]
    NotPartOfAMove,
    /// A stream, or a call with file descriptors.
    #[error("Messages of kind {0:?} are not part of a live move")]
    Kind(Kind),
    /// Another program, or another version of it.
    #[error("Program {program:#x} version {version} is not part of a live move")]
    Program {
        /// The program.
        program: u32,
        /// Its version.
        version: u32,
    },
    /// An invalid keepalive message.
    #[error("It claims to be a keepalive and is none")]
    Keepalive,
    /// A message length out of bounds.
    #[error(transparent)]
    Length(#[from] LengthError),
    /// Unreadable arguments.
    #[error(transparent)]
    Arguments(#[from] XdrError),
    /// A connection to another hypervisor, or one with other flags.
    #[error("It opens {0:?}, not qemu:///system")]
    Hypervisor(String),
    /// Two Prepare calls, or Finish without Prepare.
    #[error("It comes out of turn")]
    OutOfTurn,
    /// Flags that a paused live move does not have, or a lack of those that it must have.
    #[error("Its flags are {found:#x}; a paused live move has {needed:#x} and at most {allowed:#x}")]
    Flags {
        /// The flags of the call.
        found: u32,
        /// Required flags.
        needed: u32,
        /// Allowed flags.
        allowed: u32,
    },
    /// A migration parameter that a plain move does not set, or sets to something else.
    #[error("Its parameter {field} is {found:?}")]
    Parameter {
        /// The field.
        field: String,
        /// Its value; empty if it is missing.
        found: String,
    },
    /// The definition in the call is refused.
    #[error(transparent)]
    Definition(#[from] DefinitionError),
    /// The gate has refused an earlier call.
    #[error("The session was refused before")]
    Closed,
}

/// A refused call. The session is over: whatever passes afterwards only ends the connection.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("Refused libvirt call {procedure}{} from the source: {reason}", name(*.procedure))]
pub struct Refusal {
    /// Number of the procedure.
    pub procedure: u32,
    /// The reason.
    pub reason: RefusalReason,
    /// libvirt's error reply, to be written to the source. Empty if there was no call.
    pub reply: Vec<u8>,
}

/// The state of the move, as far as the calls that passed show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Opening,
    Prepared,
    Finished,
    /// A call was refused; the source may still close its connection.
    Refused,
    /// The stream can no longer be parsed.
    Lost,
}

/// Passes the calls of one move of one VM to this host's libvirt, and nothing else.
#[derive(Debug)]
pub struct Gate {
    policy: GatePolicy,
    turn: Turn,
    calls: Splitter,
}

impl Gate {
    /// A gate for one connection.
    pub fn new(policy: GatePolicy) -> Self {
        Self { policy, turn: Turn::Opening, calls: Splitter::default() }
    }

    /// Takes `bytes` from the source's libvirtd and appends the messages that may go to this host's libvirt to `out`.
    ///
    /// # Errors
    /// The first call that is refused. The content of `out` came before it and may be written; then the reply in the
    /// refusal goes to the source. With a reply, continue by calling this with no bytes, then with further input: the
    /// source's libvirt reports the refusal with its own message only if it can still close its connection. Give it a
    /// few seconds. Without a reply the stream can no longer be parsed: close both connections.
    pub fn pass(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        if self.turn == Turn::Lost {
            return Err(Refusal { procedure: 0, reason: RefusalReason::Closed, reply: Vec::new() });
        }
        let Self { policy, turn, calls } = self;
        let result = calls.push::<Refusal>(bytes, |message| {
            admit(message, policy, turn).map_err(|reason| refusal(message.header, reason))?;
            out.extend_from_slice(message.bytes);
            Ok(())
        });
        if let Err(refusal) = &result {
            self.turn = if refusal.reply.is_empty() { Turn::Lost } else { Turn::Refused };
        }
        result
    }
}

/// The outcome of the call that ends the hand-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FinishReply {
    /// Whether the destination has the VM: the call did not cancel, and the reply is not an error. Once the source's
    /// libvirtd has read that, it ends the source's copy and cannot be made to run that copy again.
    pub destination_has_it: bool,
    header: Header,
    /// Start and end of the reply in the buffer it was appended to.
    place: (usize, usize),
}

impl FinishReply {
    /// Replaces the reply by a libvirt error with this message, in the `out` that the reply was appended to. The
    /// source's libvirtd then keeps its copy and resumes it.
    pub fn refuse(&self, out: &mut Vec<u8>, message: &str) {
        let (start, end) = self.place;
        out.splice(start..end, self.header.refusal_reply(message));
    }
}

/// Follows both directions of the channel and reports when the reply to Finish passes.
#[derive(Debug, Default)]
pub struct Tap {
    calls: Splitter,
    replies: Splitter,
    /// Serial of the Finish call, and whether the call cancels the migration.
    finish: Option<(u32, bool)>,
    passed: Passed,
}

/// How many whole messages a [`Tap`] has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Messages from the source's libvirtd.
    pub calls: u32,
    /// Messages to the source's libvirtd.
    pub replies: u32,
}

impl Tap {
    /// The messages that it has seen so far.
    pub fn passed(&self) -> Passed {
        self.passed
    }

    /// Whether the source's libvirtd has called Finish.
    pub fn has_seen_finish(&self) -> bool {
        self.finish.is_some()
    }

    /// Parses bytes from the source's libvirtd, which pass unchanged.
    ///
    /// # Errors
    /// The bytes are not valid messages.
    pub fn calls(&mut self, bytes: &[u8]) -> Result<(), LengthError> {
        let Self { calls, finish, passed, .. } = self;
        calls.push(bytes, |message| {
            passed.calls += 1;
            let header = message.header;
            if (header.program, header.procedure, header.kind) == (REMOTE_PROGRAM, FINISH, Kind::Call) {
                // An unreadable Finish is not taken for one that ends the source's copy.
                let cancelled = FinishCall::parse(message.body).map_or(true, |finish| finish.cancelled);
                *finish = Some((header.serial, cancelled));
            }
            Ok(())
        })
    }

    /// Takes bytes for the source's libvirtd and appends each whole message to `out`. Ok contains the reply to Finish
    /// if it is among them; the reply is delivered once `out` is written.
    ///
    /// # Errors
    /// The bytes are not valid messages.
    pub fn replies(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Option<FinishReply>, LengthError> {
        let Self { replies, finish, passed, .. } = self;
        let mut seen = None;
        replies.push::<LengthError>(bytes, |message| {
            passed.replies += 1;
            let header = message.header;
            if let Some((serial, cancelled)) = *finish
                && (header.program, header.procedure, header.kind) == (REMOTE_PROGRAM, FINISH, Kind::Reply)
                && header.serial == serial
            {
                seen = Some(FinishReply {
                    destination_has_it: header.status == STATUS_OK && !cancelled,
                    header,
                    place: (out.len(), out.len() + message.bytes.len()),
                });
            }
            out.extend_from_slice(message.bytes);
            Ok(())
        })?;
        Ok(seen)
    }
}

impl From<LengthError> for Refusal {
    fn from(error: LengthError) -> Self {
        Self { procedure: 0, reason: error.into(), reply: Vec::new() }
    }
}

fn refusal(header: Header, reason: RefusalReason) -> Refusal {
    let reply = match header.kind {
        Kind::Call | Kind::Other(_) => header
            .refusal_reply(&format!("The destination's agent refused libvirt call {}: {reason}", header.procedure)),
        Kind::Reply | Kind::Message => Vec::new(),
    };
    Refusal { procedure: header.procedure, reason, reply }
}

/// ` (NAME)` for the procedures that an administrator may find in a log, otherwise empty.
fn name(procedure: u32) -> &'static str {
    match procedure {
        OPEN => " (open)",
        CLOSE => " (close)",
        SUPPORTS_FEATURE => " (supports feature)",
        AUTH_LIST => " (auth list)",
        PREPARE => " (migrate prepare)",
        FINISH => " (migrate finish)",
        REGISTER_CLOSE_CALLBACK => " (register close callback)",
        UNREGISTER_CLOSE_CALLBACK => " (unregister close callback)",
        _ => "",
    }
}

/// Decides whether a message from the source may pass, and updates the state of the move.
fn admit(message: Message<'_>, policy: &GatePolicy, turn: &mut Turn) -> Result<(), RefusalReason> {
    let Header { program, version, procedure, kind, .. } = message.header;
    match (program, version, kind) {
        (KEEPALIVE_PROGRAM, PROGRAM_VERSION, Kind::Message) if message.body.is_empty() => return Ok(()),
        (KEEPALIVE_PROGRAM, PROGRAM_VERSION, _) => return Err(RefusalReason::Keepalive),
        (REMOTE_PROGRAM, PROGRAM_VERSION, Kind::Call) => {}
        (REMOTE_PROGRAM, PROGRAM_VERSION, kind) => return Err(RefusalReason::Kind(kind)),
        _ => return Err(RefusalReason::Program { program, version }),
    }
    match procedure {
        CLOSE | UNREGISTER_CLOSE_CALLBACK => Ok(()),
        _ if *turn == Turn::Refused => Err(RefusalReason::Closed),
        SUPPORTS_FEATURE | AUTH_LIST | REGISTER_CLOSE_CALLBACK => Ok(()),
        OPEN => check_open(message.body),
        PREPARE if *turn == Turn::Opening => {
            check_prepare(&PrepareCall::parse(message.body)?, policy)?;
            *turn = Turn::Prepared;
            Ok(())
        }
        FINISH if *turn == Turn::Prepared => {
            check_finish(&FinishCall::parse(message.body)?, policy)?;
            *turn = Turn::Finished;
            Ok(())
        }
        PREPARE | FINISH => Err(RefusalReason::OutOfTurn),
        _ => Err(RefusalReason::NotPartOfAMove),
    }
}

fn check_open(body: &[u8]) -> Result<(), RefusalReason> {
    let mut reader = Reader::new(body);
    let uri = reader.optional_text()?.unwrap_or_default();
    let flags = reader.u32()?;
    reader.end()?;
    if uri == "qemu:///system" && flags == 0 { Ok(()) } else { Err(RefusalReason::Hypervisor(uri.to_owned())) }
}

/// Arguments of `DOMAIN_MIGRATE_PREPARE3_PARAMS`: begin to receive a VM.
#[derive(Clone, Debug, PartialEq)]
pub struct PrepareCall {
    /// Migration parameters, the definition among them.
    pub parameters: Vec<TypedParameter>,
    /// XML that the two daemons exchange.
    pub cookie: Vec<u8>,
    /// `VIR_MIGRATE_*`
    pub flags: u32,
}

impl PrepareCall {
    /// Reads the arguments.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn parse(body: &[u8]) -> Result<Self, XdrError> {
        let mut reader = Reader::new(body);
        let call = Self { parameters: reader.parameters()?, cookie: reader.opaque()?.to_vec(), flags: reader.u32()? };
        reader.end()?;
        Ok(call)
    }

    /// The body of this call.
    pub fn body(&self) -> Vec<u8> {
        xdr::Writer::new().parameters(&self.parameters).opaque(&self.cookie).u32(self.flags).finish()
    }
}

/// Arguments of `DOMAIN_MIGRATE_FINISH3_PARAMS`: take over the VM, or drop it.
#[derive(Clone, Debug, PartialEq)]
pub struct FinishCall {
    /// Migration parameters.
    pub parameters: Vec<TypedParameter>,
    /// XML that the two daemons exchange; carries the persistent definition.
    pub cookie: Vec<u8>,
    /// `VIR_MIGRATE_*`
    pub flags: u32,
    /// Whether the source failed, so that the destination's copy must be dropped.
    pub cancelled: bool,
}

impl FinishCall {
    /// Reads the arguments.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn parse(body: &[u8]) -> Result<Self, XdrError> {
        let mut reader = Reader::new(body);
        let call = Self {
            parameters: reader.parameters()?,
            cookie: reader.opaque()?.to_vec(),
            flags: reader.u32()?,
            cancelled: reader.i32()? != 0,
        };
        reader.end()?;
        Ok(call)
    }

    /// The body of this call.
    pub fn body(&self) -> Vec<u8> {
        xdr::Writer::new()
            .parameters(&self.parameters)
            .opaque(&self.cookie)
            .u32(self.flags)
            .i32(i32::from(self.cancelled))
            .finish()
    }
}

/// The string parameter `field` of a call.
pub fn text_parameter<'a>(parameters: &'a [TypedParameter], field: &str) -> Option<&'a str> {
    parameters.iter().find(|parameter| parameter.field == field).and_then(|parameter| {
        let TypedValue::Text(text) = &parameter.value else { return None };
        Some(text.as_str())
    })
}

fn check_prepare(call: &PrepareCall, policy: &GatePolicy) -> Result<(), RefusalReason> {
    check_flags(call.flags, policy)?;
    check_parameters(&call.parameters, policy)?;
    for field in ["destination_xml", "migrate_uri"] {
        if text_parameter(&call.parameters, field).is_none() {
            return Err(RefusalReason::Parameter { field: field.to_owned(), found: String::new() });
        }
    }
    // Without the list libvirtd would let the source write every disk.
    if call.flags & FLAG_NON_SHARED_DISK != 0 {
        let named = |device: &String| {
            let is_it = |parameter: &TypedParameter| {
                parameter.field == "migrate_disks" && parameter.value == TypedValue::Text(device.clone())
            };
            call.parameters.iter().any(is_it)
        };
        let missing = policy.disks.iter().find(|device| !named(device));
        if missing.is_some() || text_parameter(&call.parameters, "disks_uri").is_none() {
            return Err(RefusalReason::Parameter { field: "migrate_disks".to_owned(), found: String::new() });
        }
    }
    Ok(check_cookie(&call.cookie, &policy.definition)?)
}

fn check_finish(call: &FinishCall, policy: &GatePolicy) -> Result<(), RefusalReason> {
    check_flags(call.flags, policy)?;
    check_parameters(&call.parameters, policy)?;
    if text_parameter(&call.parameters, "destination_name").is_none() {
        return Err(RefusalReason::Parameter { field: "destination_name".to_owned(), found: String::new() });
    }
    Ok(check_cookie(&call.cookie, &policy.definition)?)
}

/// PAUSED is required in both calls: without it in Finish, libvirt would resume the copy by itself.
fn check_flags(found: u32, policy: &GatePolicy) -> Result<(), RefusalReason> {
    let (needed, allowed) = match policy.disks.is_empty() {
        true => (FLAGS_NEEDED, FLAGS_ALLOWED),
        false => (FLAGS_NEEDED | FLAG_NON_SHARED_DISK, FLAGS_ALLOWED | FLAGS_OF_DISKS),
    };
    if found & needed == needed && found & !allowed == 0 {
        return Ok(());
    }
    Err(RefusalReason::Flags { found, needed, allowed })
}

fn check_parameters(parameters: &[TypedParameter], policy: &GatePolicy) -> Result<(), RefusalReason> {
    for (index, parameter) in parameters.iter().enumerate() {
        // A list is a field that is repeated with other values.
        let repeated = parameters[..index].iter().any(|earlier| {
            earlier.field == parameter.field && (parameter.field != "migrate_disks" || earlier.value == parameter.value)
        });
        let allowed = !repeated
            && match (parameter.field.as_str(), &parameter.value) {
                ("destination_name", TypedValue::Text(name)) => *name == policy.definition.name,
                ("migrate_uri", TypedValue::Text(uri)) => {
                    uri.strip_prefix("unix://").is_some_and(|path| policy.memory_socket.as_os_str() == path)
                }
                ("disks_uri", TypedValue::Text(uri)) if !policy.disks.is_empty() => {
                    uri.strip_prefix("unix://").is_some_and(|path| policy.disk_socket.as_os_str() == path)
                }
                ("migrate_disks", TypedValue::Text(device)) => policy.disks.contains(device),
                ("destination_xml" | "persistent_xml", TypedValue::Text(xml)) => {
                    check_definition(xml, &policy.definition)?;
                    true
                }
                ("bandwidth" | "bandwidth.avail.switchover", TypedValue::Ulong(_)) => true,
                ("auto_converge.initial" | "auto_converge.increment", TypedValue::Int(_)) => true,
                _ => false,
            };
        if !allowed {
            const SHOWN_CHARS_MAX: usize = 200;
            let found = if let TypedValue::Text(text) = &parameter.value {
                text.chars().take(SHOWN_CHARS_MAX).collect()
            } else {
                format!("{:?}", parameter.value)
            };
            return Err(RefusalReason::Parameter { field: parameter.field.clone(), found });
        }
    }
    Ok(())
}

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
