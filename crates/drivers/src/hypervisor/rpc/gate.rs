//! Lets through only the calls of one move of one VM.

use std::path::PathBuf;

use thiserror::Error;

use super::{
    calls::{FinishCall, PrepareCall, text_parameter},
    definition::{DefinitionError, DefinitionPolicy, check_cookie, check_definition},
    flags::{
        FLAG_ABORT_ON_ERROR, FLAG_AUTO_CONVERGE, FLAG_CHANGE_PROTECTION, FLAG_LIVE, FLAG_NON_SHARED_DISK, FLAG_PAUSED,
        FLAG_PEER2PEER, FLAG_PERSIST_DEST, FLAG_SYNCHRONOUS_WRITES, FLAG_UNSAFE,
    },
    message::{
        AUTH_LIST, CLOSE, FINISH, Header, KEEPALIVE_PROGRAM, Kind, LengthError, Message, OPEN, PREPARE,
        PROGRAM_VERSION, REGISTER_CLOSE_CALLBACK, REMOTE_PROGRAM, SUPPORTS_FEATURE, Splitter,
        UNREGISTER_CLOSE_CALLBACK,
    },
    xdr::{Reader, TypedParameter, TypedValue, XdrError},
};

pub(super) const FLAGS_NEEDED: u32 = FLAG_LIVE | FLAG_PEER2PEER | FLAG_PAUSED;
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
    OutOfOrder,
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
enum GateState {
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
    state: GateState,
    calls: Splitter,
}

impl Gate {
    /// A gate for one connection.
    pub fn new(policy: GatePolicy) -> Self {
        Self { policy, state: GateState::Opening, calls: Splitter::default() }
    }

    /// Takes `bytes` from the source's libvirtd and appends the messages that may go to this host's libvirt to `out`.
    ///
    /// # Errors
    /// The first call that is refused. The content of `out` came before it and may be written; then the reply in the
    /// refusal goes to the source. With a reply, continue by calling this with no bytes, then with further input: the
    /// source's libvirt reports the refusal with its own message only if it can still close its connection. Give it a
    /// few seconds. Without a reply the stream can no longer be parsed: close both connections.
    pub fn pass(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        if self.state == GateState::Lost {
            return Err(Refusal { procedure: 0, reason: RefusalReason::Closed, reply: Vec::new() });
        }
        let Self { policy, state, calls } = self;
        let result = calls.push::<Refusal>(bytes, |message| {
            admit(message, policy, state).map_err(|reason| refusal(message.header, reason))?;
            out.extend_from_slice(message.bytes);
            Ok(())
        });
        if let Err(refusal) = &result {
            self.state = if refusal.reply.is_empty() { GateState::Lost } else { GateState::Refused };
        }
        result
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
fn admit(message: Message<'_>, policy: &GatePolicy, state: &mut GateState) -> Result<(), RefusalReason> {
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
        _ if *state == GateState::Refused => Err(RefusalReason::Closed),
        SUPPORTS_FEATURE | AUTH_LIST | REGISTER_CLOSE_CALLBACK => Ok(()),
        OPEN => check_open(message.body),
        PREPARE if *state == GateState::Opening => {
            check_prepare(&PrepareCall::parse(message.body)?, policy)?;
            *state = GateState::Prepared;
            Ok(())
        }
        FINISH if *state == GateState::Prepared => {
            check_finish(&FinishCall::parse(message.body)?, policy)?;
            *state = GateState::Finished;
            Ok(())
        }
        PREPARE | FINISH => Err(RefusalReason::OutOfOrder),
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
