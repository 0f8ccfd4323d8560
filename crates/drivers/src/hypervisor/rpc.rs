//! The gate for libvirt's RPC channel. A channel that is merely proxied gives the source host root on the
//! destination's libvirt; this one lets through what a migration of one VM needs.
//!
//! ```text
//! message  length u32 (itself included) · program u32 · version u32 · procedure u32 · type u32 · serial u32 · status u32 · body (XDR)
//! ```
//! All big-endian. Pure: bytes in, bytes out. Numbers are those of libvirt's `remote_protocol.x`.

use std::path::{Path, PathBuf};

use ferry_core::id::VmId;
use roxmltree::Document;
use thiserror::Error;

/// libvirt's remote program.
const PROGRAM_REMOTE: u32 = 0x2000_8086;
/// libvirt's keepalive program.
const PROGRAM_KEEPALIVE: u32 = 0x6b65_6570;
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 28;
/// Longest message let through. libvirt allows 32 MiB; a migration's largest holds one VM's definition and cookie.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

const TYPE_CALL: u32 = 0;
const TYPE_REPLY: u32 = 1;
const STATUS_OK: u32 = 0;

/// `CONNECT_OPEN`.
pub const OPEN: u32 = 1;
/// `CONNECT_CLOSE`.
pub const CLOSE: u32 = 2;
/// `CONNECT_SUPPORTS_FEATURE`.
pub const SUPPORTS_FEATURE: u32 = 60;
/// `AUTH_LIST`.
pub const AUTH_LIST: u32 = 66;
/// `DOMAIN_MIGRATE_PREPARE3_PARAMS`.
pub const PREPARE: u32 = 303;
/// `DOMAIN_MIGRATE_FINISH3_PARAMS`.
pub const FINISH: u32 = 306;
/// `CONNECT_REGISTER_CLOSE_CALLBACK`.
pub const REGISTER_CLOSE_CALLBACK: u32 = 360;
/// `CONNECT_UNREGISTER_CLOSE_CALLBACK`.
pub const UNREGISTER_CLOSE_CALLBACK: u32 = 361;

/// `VIR_MIGRATE_PAUSED`: without it libvirt itself would run the VM at the destination.
const FLAG_PAUSED: u32 = 32;

/// Why the channel must end.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// The bytes are not libvirt's RPC.
    #[error("The libvirt channel carries what is not libvirt's protocol: {0}")]
    Malformed(&'static str),
    /// A call that a migration does not need.
    #[error("libvirt call {procedure} is not one that a migration needs")]
    Procedure {
        /// Its number.
        procedure: u32,
    },
    /// A call that a migration needs, but not like this.
    #[error("libvirt call {procedure} is not about this migration: {reason}")]
    Argument {
        /// Its number.
        procedure: u32,
        /// What is wrong with it.
        reason: String,
    },
}

/// The VM that the channel is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Its UUID.
    pub vm: VmId,
    /// Its name.
    pub name: String,
    /// Folders of the destination in which its files may lie.
    pub roots: Vec<PathBuf>,
}

/// Splits a stream of bytes into messages.
#[derive(Debug, Default)]
struct Messages {
    held: Vec<u8>,
}

impl Messages {
    /// Hands each message that `bytes` complete to `each`.
    fn push(
        &mut self,
        bytes: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        self.held.extend_from_slice(bytes);
        let mut start = 0;
        while let Some(length) = self.held[start..].first_chunk().map(|bytes| u32::from_be_bytes(*bytes) as usize) {
            if !(HEADER_BYTES..=MESSAGE_BYTES_MAX).contains(&length) {
                return Err(Refusal::Malformed("a message with a length out of bounds"));
            }
            let Some(message) = self.held.get(start..start + length) else { break };
            each(message)?;
            start += length;
        }
        self.held.drain(..start);
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
struct Header {
    program: u32,
    version: u32,
    procedure: u32,
    kind: u32,
    serial: u32,
    status: u32,
}

fn header(message: &[u8]) -> Header {
    let word = |index: usize| {
        let at = 4 * index;
        u32::from_be_bytes([message[at], message[at + 1], message[at + 2], message[at + 3]])
    };
    Header { program: word(1), version: word(2), procedure: word(3), kind: word(4), serial: word(5), status: word(6) }
}

/// The source → destination direction at the destination: only calls of one VM's migration pass.
#[derive(Debug)]
pub struct Gate {
    bound: Bound,
    messages: Messages,
}

impl Gate {
    /// A gate bound to one VM.
    pub fn new(bound: Bound) -> Self {
        Self { bound, messages: Messages::default() }
    }

    /// Appends the messages that `bytes` complete to `out`.
    ///
    /// # Errors
    /// Why the channel must end; the refused message and what follows is not in `out`.
    pub fn pass(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
        let bound = &self.bound;
        self.messages.push(bytes, |message| {
            judge(message, bound)?;
            out.extend_from_slice(message);
            Ok(())
        })
    }
}

fn judge(message: &[u8], bound: &Bound) -> Result<(), Refusal> {
    let Header { program, version, procedure, kind, .. } = header(message);
    if program == PROGRAM_KEEPALIVE && version == VERSION && message.len() == HEADER_BYTES {
        return Ok(());
    }
    if program != PROGRAM_REMOTE || version != VERSION {
        return Err(Refusal::Malformed("another program than libvirt's"));
    }
    if kind != TYPE_CALL {
        return Err(Refusal::Malformed("something else than a plain call"));
    }
    let mut body = Xdr(&message[HEADER_BYTES..]);
    match procedure {
        AUTH_LIST | SUPPORTS_FEATURE | CLOSE | REGISTER_CLOSE_CALLBACK | UNREGISTER_CLOSE_CALLBACK => Ok(()),
        OPEN => judge_open(&mut body),
        PREPARE => judge_prepare(&mut body, bound),
        FINISH => judge_finish(&mut body, bound),
        procedure => Err(Refusal::Procedure { procedure }),
    }
}

fn judge_open(body: &mut Xdr<'_>) -> Result<(), Refusal> {
    let name = match body.word()? {
        0 => "",
        _ => body.text()?,
    };
    if matches!(name, "" | "qemu:///system") {
        return Ok(());
    }
    Err(Refusal::Argument { procedure: OPEN, reason: format!("it opens {name}") })
}

fn judge_prepare(body: &mut Xdr<'_>, bound: &Bound) -> Result<(), Refusal> {
    let refuse = |reason: String| Err(Refusal::Argument { procedure: PREPARE, reason });
    let mut definitions = 0;
    for (name, value) in body.params()? {
        match (name, value) {
            ("destination_xml", Some(xml)) => {
                definitions += 1;
                if let Err(reason) = judge_definition(xml, bound) {
                    return refuse(reason);
                }
            }
            ("destination_name", Some(name)) if name != bound.name => {
                return refuse(format!("it names the VM {name}, and {} is expected", bound.name));
            }
            _ => {}
        }
    }
    if definitions != 1 {
        return refuse(format!("it holds {definitions} definitions"));
    }
    body.opaque()?;
    if body.word()? & FLAG_PAUSED == 0 {
        return refuse("the VM would run at once".to_owned());
    }
    Ok(())
}

fn judge_definition(xml: &str, bound: &Bound) -> Result<(), String> {
    let document = Document::parse(xml).map_err(|error| format!("its definition is not XML: {error}"))?;
    let domain = document.root_element();
    let texts = |tag: &'static str| {
        domain.children().filter(move |node| node.has_tag_name(tag)).filter_map(|node| node.text()).map(str::trim)
    };
    let uuids: Vec<Option<VmId>> = texts("uuid").map(|uuid| uuid.parse().ok()).collect();
    if uuids != [Some(bound.vm)] {
        return Err(format!("its definition is of another VM than {}", bound.vm));
    }
    let names: Vec<&str> = texts("name").collect();
    if names != [bound.name.as_str()] {
        return Err(format!("its definition is named {names:?}, and {} is expected", bound.name));
    }
    for node in document.descendants().filter(|node| node.has_tag_name("source")) {
        let in_disk = node.parent().is_some_and(|parent| parent.has_tag_name("disk") || parent.has_tag_name("backingStore"));
        let Some(file) = node.attribute("file").filter(|_| in_disk) else { continue };
        let path = Path::new(file);
        let climbs = path.components().any(|part| part == std::path::Component::ParentDir);
        if climbs || !bound.roots.iter().any(|root| path.starts_with(root)) {
            return Err(format!("its file {file} lies outside the shares of this migration"));
        }
    }
    Ok(())
}

fn judge_finish(body: &mut Xdr<'_>, bound: &Bound) -> Result<(), Refusal> {
    for (name, value) in body.params()? {
        if let ("destination_name", Some(name)) = (name, value)
            && name != bound.name
        {
            let reason = format!("it names the VM {name}, and {} is expected", bound.name);
            return Err(Refusal::Argument { procedure: FINISH, reason });
        }
    }
    Ok(())
}

/// The outcome of the call that ends the hand-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FinishReply {
    /// Whether the destination has the VM: the call did not cancel, and the reply is no error.
    pub destination_has_it: bool,
}

/// Follows both directions of the channel at the source and tells when the reply to Finish passes.
#[derive(Debug, Default)]
pub struct Tap {
    calls: Messages,
    replies: Messages,
    /// Serial of the Finish call, and whether it said that the migration was cancelled.
    finish: Option<(u32, bool)>,
}

impl Tap {
    /// Bytes from the source's libvirtd.
    ///
    /// # Errors
    /// When they are not libvirt's protocol.
    pub fn calls(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let finish = &mut self.finish;
        self.calls.push(bytes, |message| {
            let header = header(message);
            if (header.program, header.procedure, header.kind) == (PROGRAM_REMOTE, FINISH, TYPE_CALL) {
                // The last argument: an int that says whether the source cancelled.
                let cancelled = message.last_chunk::<4>().is_none_or(|word| u32::from_be_bytes(*word) != 0);
                *finish = Some((header.serial, cancelled));
            }
            Ok(())
        })
    }

    /// Bytes for the source's libvirtd. Appends the messages they complete to `out`; Ok holds the reply to Finish if
    /// it is among them.
    ///
    /// # Errors
    /// When they are not libvirt's protocol.
    pub fn replies(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<Option<FinishReply>, Refusal> {
        let finish = self.finish;
        let mut seen = None;
        self.replies.push(bytes, |message| {
            let header = header(message);
            if (header.program, header.procedure, header.kind) == (PROGRAM_REMOTE, FINISH, TYPE_REPLY)
                && let Some((serial, cancelled)) = finish
                && serial == header.serial
            {
                seen = Some(FinishReply { destination_has_it: header.status == STATUS_OK && !cancelled });
            }
            out.extend_from_slice(message);
            Ok(())
        })?;
        Ok(seen)
    }
}

/// Reads XDR; every length is checked against what is there.
struct Xdr<'a>(&'a [u8]);

/// Parameters of a call: libvirt sends about ten.
const PARAMS_MAX: u32 = 64;

impl<'a> Xdr<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Refusal> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Refusal::Malformed("a message that ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn word(&mut self) -> Result<u32, Refusal> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn opaque(&mut self) -> Result<&'a [u8], Refusal> {
        let length = self.word()? as usize;
        let bytes = self.take(length)?;
        self.take(length.next_multiple_of(4) - length)?;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<&'a str, Refusal> {
        std::str::from_utf8(self.opaque()?).map_err(|_| Refusal::Malformed("a text that is not UTF-8"))
    }

    /// Typed parameters: names, and values where they are texts.
    fn params(&mut self) -> Result<Vec<(&'a str, Option<&'a str>)>, Refusal> {
        let count = self.word()?;
        if count > PARAMS_MAX {
            return Err(Refusal::Malformed("too many parameters"));
        }
        let mut params = Vec::new();
        for _ in 0..count {
            let name = self.text()?;
            let value = match self.word()? {
                1 | 2 | 6 => self.take(4).map(|_| None)?,
                3..=5 => self.take(8).map(|_| None)?,
                7 => Some(self.text()?),
                _ => return Err(Refusal::Malformed("a parameter of an unknown type")),
            };
            params.push((name, value));
        }
        Ok(params)
    }
}

/// For the fuzzer: no bytes may panic either parser, and a gate lets nothing through that it did not see whole.
pub fn fuzz(bytes: &[u8]) {
    let bound = Bound { vm: VmId(uuid::Uuid::nil()), name: "vm".to_owned(), roots: vec!["/srv".into()] };
    let mut out = Vec::new();
    let mut gate = Gate::new(bound);
    for chunk in bytes.chunks(7) {
        if gate.pass(chunk, &mut out).is_err() {
            break;
        }
    }
    assert!(bytes.starts_with(&out), "the gate invented bytes");
    let (mut tap, mut out) = (Tap::default(), Vec::new());
    let (calls, replies) = bytes.split_at(bytes.len() / 2);
    let _ = tap.calls(calls);
    let _ = tap.replies(replies, &mut out);
    assert!(replies.starts_with(&out), "the tap invented bytes");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UUID: &str = "0d7a4d0e-4f57-4f3e-9a80-0c6a4b6ad001";

    fn bound() -> Bound {
        Bound { vm: UUID.parse().expect("a UUID"), name: "web01".into(), roots: vec!["/srv/ferry/vms".into()] }
    }

    fn message(program: u32, procedure: u32, kind: u32, serial: u32, status: u32, body: &[u8]) -> Vec<u8> {
        let length = (HEADER_BYTES + body.len()) as u32;
        let mut bytes: Vec<u8> =
            [length, program, VERSION, procedure, kind, serial, status].iter().flat_map(|word| word.to_be_bytes()).collect();
        bytes.extend_from_slice(body);
        bytes
    }

    fn call(procedure: u32, body: &[u8]) -> Vec<u8> {
        message(PROGRAM_REMOTE, procedure, TYPE_CALL, 5, 0, body)
    }

    fn text(value: &str) -> Vec<u8> {
        let mut bytes = (value.len() as u32).to_be_bytes().to_vec();
        bytes.extend_from_slice(value.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn params(list: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = (list.len() as u32).to_be_bytes().to_vec();
        for (name, value) in list {
            bytes.extend(text(name));
            bytes.extend(7u32.to_be_bytes());
            bytes.extend(text(value));
        }
        bytes
    }

    fn definition(uuid: &str, name: &str, file: &str) -> String {
        format!("<domain><name>{name}</name><uuid>{uuid}</uuid><devices><disk type='file'><source file='{file}'/></disk></devices></domain>")
    }

    fn prepare(xml: &str, flags: u32) -> Vec<u8> {
        let mut body = params(&[("migrate_uri", "unix:///x"), ("destination_xml", xml)]);
        body.extend(text("<qemu-migration/>"));
        body.extend(flags.to_be_bytes());
        call(PREPARE, &body)
    }

    fn finish(name: &str, cancelled: u32) -> Vec<u8> {
        let mut body = params(&[("destination_name", name)]);
        body.extend(text(""));
        body.extend(0u32.to_be_bytes());
        body.extend(cancelled.to_be_bytes());
        call(FINISH, &body)
    }

    fn open(name: &str) -> Vec<u8> {
        let mut body = 1u32.to_be_bytes().to_vec();
        body.extend(text(name));
        body.extend(0u32.to_be_bytes());
        call(OPEN, &body)
    }

    fn through(bytes: &[u8]) -> Result<Vec<u8>, Refusal> {
        let mut out = Vec::new();
        Gate::new(bound()).pass(bytes, &mut out).map(|()| out)
    }

    const GOOD_FILE: &str = "/srv/ferry/vms/web01/disk.raw";

    #[test]
    fn what_a_migration_needs_passes_unchanged_in_any_pieces() {
        let mut stream = Vec::new();
        for procedure in [AUTH_LIST, SUPPORTS_FEATURE, REGISTER_CLOSE_CALLBACK] {
            stream.extend(call(procedure, &[]));
        }
        stream.extend(open("qemu:///system"));
        stream.extend(message(PROGRAM_KEEPALIVE, 1, 2, 0, 0, &[]));
        stream.extend(prepare(&definition(UUID, "web01", GOOD_FILE), FLAG_PAUSED | 3));
        stream.extend(finish("web01", 0));
        stream.extend(call(CLOSE, &[]));
        for size in [1, 3, 28, 1000, stream.len()] {
            let (mut gate, mut out) = (Gate::new(bound()), Vec::new());
            for piece in stream.chunks(size) {
                gate.pass(piece, &mut out).expect("allowed");
            }
            assert_eq!(out, stream);
        }
    }

    #[test]
    fn everything_else_is_refused_with_its_reason() {
        let other = "11111111-4f57-4f3e-9a80-0c6a4b6ad001";
        let rows = [
            // CONNECT_LIST_ALL_DOMAINS, as `virsh list` calls it.
            ("listing domains", call(273, &[0; 8]), "273"),
            ("defining a domain", call(11, &text("<domain/>")), "11"),
            ("another driver", open("test:///default"), "test:///default"),
            ("another VM", prepare(&definition(other, "web01", GOOD_FILE), FLAG_PAUSED), "another VM"),
            ("another name", prepare(&definition(UUID, "db", GOOD_FILE), FLAG_PAUSED), "db"),
            ("a foreign file", prepare(&definition(UUID, "web01", "/etc/shadow"), FLAG_PAUSED), "/etc/shadow"),
            (
                "a climbing path",
                prepare(&definition(UUID, "web01", "/srv/ferry/vms/../../../etc/shadow"), FLAG_PAUSED),
                "outside",
            ),
            ("not paused", prepare(&definition(UUID, "web01", GOOD_FILE), 3), "run at once"),
            ("no XML", prepare("hello", FLAG_PAUSED), "not XML"),
            ("finish of another VM", finish("db", 0), "db"),
            ("another program", message(1, 1, 0, 0, 0, &[]), "program"),
            ("file descriptors", message(PROGRAM_REMOTE, OPEN, 4, 0, 0, &[]), "plain call"),
            ("a short message", vec![0, 0, 0, 4], "length"),
            ("an endless message", vec![0xff; 28], "length"),
            ("a torn call", call(PREPARE, &[0, 0, 0, 9]), "ends too early"),
        ];
        for (row, bytes, word) in rows {
            let refusal = through(&bytes).expect_err(row);
            assert!(refusal.to_string().contains(word), "{row}: {refusal}");
        }
    }

    #[test]
    fn nothing_after_a_refused_call_passes() {
        let mut stream = call(AUTH_LIST, &[]);
        let allowed = stream.clone();
        stream.extend(call(273, &[]));
        stream.extend(call(CLOSE, &[]));
        let mut out = Vec::new();
        assert!(Gate::new(bound()).pass(&stream, &mut out).is_err());
        assert_eq!(out, allowed);
    }

    #[test]
    fn the_tap_tells_who_has_the_vm_after_finish() {
        let reply = |serial, status| message(PROGRAM_REMOTE, FINISH, TYPE_REPLY, serial, status, &[0; 8]);
        let has_it = Some(FinishReply { destination_has_it: true });
        let has_it_not = Some(FinishReply { destination_has_it: false });
        for (cancelled, serial, status, expected) in
            [(0, 5, 0, has_it), (1, 5, 0, has_it_not), (0, 5, 1, has_it_not), (0, 6, 0, None)]
        {
            let (mut tap, mut out) = (Tap::default(), Vec::new());
            tap.calls(&finish("web01", cancelled)).expect("well formed");
            let bytes = reply(serial, status);
            let (first, second) = bytes.split_at(30);
            assert_eq!(tap.replies(first, &mut out), Ok(None));
            assert!(out.is_empty(), "half a message is held back");
            assert_eq!(tap.replies(second, &mut out), Ok(expected), "{cancelled} {serial} {status}");
            assert_eq!(out, bytes);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_parsers(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            fuzz(&bytes);
        }

        #[test]
        fn no_body_breaks_the_judge(procedure in prop::sample::select(vec![OPEN, PREPARE, FINISH]), body in prop::collection::vec(any::<u8>(), 0..200)) {
            fuzz(&call(procedure, &body));
        }
    }
}
