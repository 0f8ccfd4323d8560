//! The handshake between client and server: forwarded unchanged, except for options that this end could not follow
//! later.
//!
//! ```text
//! server: greeting ─▶ replies to options ─▶ (EXPORT_NAME's answer) ─┐
//! client: flags ─▶ options, the last of them GO or EXPORT_NAME ─────┴▶ transmission
//! either: something else ─▶ opaque, from that byte on
//! ```
//! *Options.* An option that changes the format of requests and replies (structured replies, extended headers, TLS, any
//! unknown one) must not take effect. The source replaces its number with one that no server knows: the server itself
//! rejects it, and the client's number is restored in the reply. So no message has to be inserted into an idle
//! direction.
//!
//! *Flags of the export.* The destination adds its support of `protocol`'s parts, and clears the multi-connection flag,
//! because written ranges are tracked per connection. The source reads and removes the added flags. Only now, when name
//! and size of the export are known, is the destination's keeper asked about its image.
//!
//! The leading magic words of a message are forwarded byte by byte while they match, so that the first bytes of an
//! unknown protocol are never withheld.

use std::collections::VecDeque;

use super::{
    error::NbdError,
    image::{ImageCatalog, ImageContent},
    protocol::{
        CAN_MULTI_CONN, FIXED_NEW_STYLE, GREETING_MAGIC, HOLDS_PARTIAL, INFO_BLOCK_SIZE, INFO_EXPORT, NO_PADDING,
        OPTION_EXPORT_NAME, OPTION_EXTENDED_HEADERS, OPTION_GO, OPTION_INFO, OPTION_MAGIC, OPTION_REPLY_MAGIC,
        OPTION_STARTTLS, OPTION_STRUCTURED_REPLY, READ_ONLY, REPLY_ACK, REPLY_INFO, REPLY_IS_ERROR, SEND_WRITE_ZEROES,
        TAKES_PARTS, gather, pass_on, take, u16_at, u32_at, u64_at,
    },
};
use crate::content::sparse::PAGE_BYTES;

/// Which end it is.
pub(super) enum Role {
    Source,
    Destination(Box<dyn ImageCatalog>),
}

/// What the server announced about the chosen export. All zero before.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Export {
    pub(super) size_bytes: u64,
    /// Including those that the destination added.
    pub(super) flags: u16,
}

pub(super) struct Handshake {
    role: Role,
    phase: Phase,
    client: ClientAt,
    server: ServerAt,
    /// Client bytes withheld until the message is complete.
    client_held: Vec<u8>,
    server_held: Vec<u8>,
    /// Options that await their final reply, by the client's numbers.
    asked: VecDeque<u32>,
    server_flags: u16,
    client_flags: u16,
    /// The payload of the client's last option that chooses an export.
    choice: Vec<u8>,
    export: Export,
    /// Whether the keeper was asked.
    has_asked: bool,
    content: ImageContent,
    block_bytes_min: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Options,
    Opaque,
    Transmission,
}

enum ClientAt {
    Flags(Vec<u8>),
    /// How many bytes of the option's magic word matched so far.
    Magic(usize),
    OptionHead,
    OptionData {
        left: u64,
        option: u32,
    },
    /// After EXPORT_NAME only requests can follow.
    Done,
}

enum ServerAt {
    /// How many bytes of the two greeting words matched so far.
    Greeting(usize),
    Flags(Vec<u8>),
    Magic(usize),
    ReplyHead,
    Info {
        option: u32,
        length: usize,
    },
    ReplyData {
        left: u64,
        then: Then,
    },
    Export,
    Padding {
        left: u64,
    },
}

#[derive(Clone, Copy)]
enum Then {
    MoreReplies,
    NextOption,
    Transmission,
}

/// Options that must not take effect get a number in the range that starts here.
const HIDDEN: u32 = 0x4652_0000;
/// Largest option number that can be hidden.
const HIDDEN_MAX: u32 = 0xffff;
/// Options that do not change the format of requests and replies: EXPORT_NAME, ABORT, LIST, INFO, GO, and the two on
/// metadata, which servers refuse without structured replies.
const PLAIN: [u32; 7] = [OPTION_EXPORT_NAME, 2, 3, OPTION_INFO, OPTION_GO, 9, 10];
/// Limit of options in flight: clients wait for each reply.
const ASKED_MAX: usize = 16;
const EXPORT_BYTES: usize = 10;
const PADDING_BYTES: u64 = 124;
/// Longest information reply that is parsed.
const INFO_BYTES_MAX: u32 = 14;
/// Longest export name, including its length field.
const CHOICE_BYTES_MAX: usize = 4 + 4096;

impl Handshake {
    pub(super) fn new(role: Role) -> Self {
        Self {
            role,
            phase: Phase::Options,
            client: ClientAt::Flags(Vec::new()),
            server: ServerAt::Greeting(0),
            client_held: Vec::new(),
            server_held: Vec::new(),
            asked: VecDeque::new(),
            server_flags: 0,
            client_flags: 0,
            choice: Vec::new(),
            export: Export::default(),
            has_asked: false,
            content: ImageContent::Unknown,
            block_bytes_min: 0,
        }
    }

    pub(super) fn export(&self) -> Export {
        self.export
    }

    /// What is known of the export's image. Can be taken once.
    pub(super) fn take_content(&mut self) -> ImageContent {
        std::mem::take(&mut self.content)
    }

    /// A block named by its hash turned out to be different.
    pub(super) fn changed(&mut self, offset: u64) {
        if let Role::Destination(catalog) = &mut self.role {
            catalog.changed(offset);
        }
    }

    /// Processes bytes of the client. What remains in `bytes` are requests.
    ///
    /// # Errors
    /// If the bytes cannot be parsed and earlier bytes were already changed on the assumption that they could.
    pub(super) fn client(&mut self, bytes: &mut &[u8], out: &mut Vec<u8>) -> Result<(), NbdError> {
        loop {
            match (self.phase, &mut self.client) {
                (Phase::Opaque, _) => {
                    out.append(&mut self.client_held);
                    out.extend_from_slice(std::mem::take(bytes));
                    return Ok(());
                }
                (_, ClientAt::Done) | (Phase::Transmission, ClientAt::Magic(0)) => return Ok(()),
                (Phase::Transmission, _) => return Err(NbdError::LateOption),
                (Phase::Options, ClientAt::OptionData { left: 0, option }) => {
                    self.client = if *option == OPTION_EXPORT_NAME { ClientAt::Done } else { ClientAt::Magic(0) };
                }
                _ if bytes.is_empty() => return Ok(()),
                (Phase::Options, ClientAt::Flags(have)) => {
                    let before = have.len();
                    let whole = gather(have, 4, bytes);
                    out.extend_from_slice(&have[before..]);
                    if whole {
                        self.client_flags = u16_at(have, 2);
                        self.client = ClientAt::Magic(0);
                    }
                }
                (Phase::Options, ClientAt::Magic(right)) => {
                    match follow(&OPTION_MAGIC.to_be_bytes(), right, bytes, out) {
                        Followed::Partly => return Ok(()),
                        Followed::Whole => self.client = ClientAt::OptionHead,
                        Followed::Otherwise => self.give_up("an NBD option")?,
                    }
                }
                (Phase::Options, ClientAt::OptionHead) => {
                    if !gather(&mut self.client_held, 8, bytes) {
                        return Ok(());
                    }
                    self.option(out)?;
                }
                (Phase::Options, ClientAt::OptionData { left, option }) => {
                    let passed = take(left, bytes);
                    out.extend_from_slice(passed);
                    if matches!(*option, OPTION_GO | OPTION_EXPORT_NAME) {
                        let room = CHOICE_BYTES_MAX.saturating_sub(self.choice.len());
                        self.choice.extend_from_slice(&passed[..passed.len().min(room)]);
                    }
                }
            }
        }
    }

    fn option(&mut self, out: &mut Vec<u8>) -> Result<(), NbdError> {
        let (option, length) = (u32_at(&self.client_held, 0), u32_at(&self.client_held, 4));
        let hidden = self.is_source() && !PLAIN.contains(&option);
        if self.asked.len() >= ASKED_MAX || (hidden && option > HIDDEN_MAX) {
            return self.give_up("an NBD option that is known");
        }
        self.client_held.clear();
        if matches!(option, OPTION_GO | OPTION_EXPORT_NAME) {
            self.choice.clear();
        }
        let number = if hidden { HIDDEN | option } else { option };
        out.extend_from_slice(&number.to_be_bytes());
        out.extend_from_slice(&length.to_be_bytes());
        self.asked.push_back(option);
        self.client = ClientAt::OptionData { left: u64::from(length), option };
        Ok(())
    }

    /// Processes bytes of the server. What remains in `bytes` are replies to requests.
    ///
    /// # Errors
    /// As [`Self::client`].
    pub(super) fn server(&mut self, bytes: &mut &[u8], out: &mut Vec<u8>) -> Result<(), NbdError> {
        loop {
            match (self.phase, &mut self.server) {
                (Phase::Opaque, _) => {
                    out.append(&mut self.server_held);
                    out.extend_from_slice(std::mem::take(bytes));
                    return Ok(());
                }
                (Phase::Transmission, _) => return Ok(()),
                (Phase::Options, ServerAt::ReplyData { left: 0, then }) => {
                    let then = *then;
                    self.reply_ended(then)?;
                }
                (Phase::Options, ServerAt::Padding { left: 0 }) => self.phase = Phase::Transmission,
                _ if bytes.is_empty() => return Ok(()),
                (Phase::Options, ServerAt::Greeting(right)) => {
                    let words = u128::from(GREETING_MAGIC) << 64 | u128::from(OPTION_MAGIC);
                    match follow(&words.to_be_bytes(), right, bytes, out) {
                        Followed::Partly => return Ok(()),
                        Followed::Whole => self.server = ServerAt::Flags(Vec::new()),
                        Followed::Otherwise => self.give_up("an NBD server of the new style")?,
                    }
                }
                (Phase::Options, ServerAt::Flags(have)) => {
                    let before = have.len();
                    let whole = gather(have, 2, bytes);
                    out.extend_from_slice(&have[before..]);
                    if whole {
                        self.server_flags = u16_at(have, 0);
                        self.server = ServerAt::Magic(0);
                        if self.server_flags & FIXED_NEW_STYLE == 0 {
                            self.give_up("an NBD server of the fixed new style")?;
                        }
                    }
                }
                (Phase::Options, ServerAt::Magic(0)) if self.asked.front() == Some(&OPTION_EXPORT_NAME) => {
                    self.server = ServerAt::Export;
                }
                (Phase::Options, ServerAt::Magic(right)) => {
                    match follow(&OPTION_REPLY_MAGIC.to_be_bytes(), right, bytes, out) {
                        Followed::Partly => return Ok(()),
                        Followed::Whole => self.server = ServerAt::ReplyHead,
                        Followed::Otherwise => self.give_up("a reply to an NBD option")?,
                    }
                }
                (Phase::Options, ServerAt::ReplyHead) => {
                    if !gather(&mut self.server_held, 12, bytes) {
                        return Ok(());
                    }
                    self.reply(out)?;
                }
                (Phase::Options, ServerAt::Info { option, length }) => {
                    if !gather(&mut self.server_held, *length, bytes) {
                        return Ok(());
                    }
                    let option = *option;
                    self.info(option, out);
                }
                (Phase::Options, ServerAt::ReplyData { left, .. } | ServerAt::Padding { left }) => {
                    pass_on(left, bytes, out);
                }
                (Phase::Options, ServerAt::Export) => {
                    if !gather(&mut self.server_held, EXPORT_BYTES, bytes) {
                        return Ok(());
                    }
                    self.export_after_name(out);
                }
            }
        }
    }

    fn reply(&mut self, out: &mut Vec<u8>) -> Result<(), NbdError> {
        let (number, kind, length) =
            (u32_at(&self.server_held, 0), u32_at(&self.server_held, 4), u32_at(&self.server_held, 8));
        let is_hidden = self.is_source() && number & !HIDDEN_MAX == HIDDEN;
        let option = if is_hidden { number & HIDDEN_MAX } else { number };
        if self.asked.front() != Some(&option) {
            return self.give_up("the reply to an NBD option that was asked");
        }
        if !PLAIN.contains(&option) && kind & REPLY_IS_ERROR == 0 {
            // The other end did not hide the option, or this server knows one that none should.
            return self.give_up("the refusal of an NBD option that changes requests or replies");
        }
        self.server_held.clear();
        for word in [option, kind, length] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        let has_info = matches!(option, OPTION_GO | OPTION_INFO) && kind == REPLY_INFO;
        self.server = if has_info && (2..=INFO_BYTES_MAX).contains(&length) {
            ServerAt::Info { option, length: length as usize }
        } else {
            let then = match kind {
                REPLY_ACK if option == OPTION_GO => Then::Transmission,
                _ if kind == REPLY_ACK || kind & REPLY_IS_ERROR != 0 => Then::NextOption,
                _ => Then::MoreReplies,
            };
            ServerAt::ReplyData { left: u64::from(length), then }
        };
        Ok(())
    }

    fn reply_ended(&mut self, then: Then) -> Result<(), NbdError> {
        self.server = ServerAt::Magic(0);
        match then {
            Then::MoreReplies => {}
            Then::NextOption => {
                self.asked.pop_front();
                // The announced block size belonged to another export, or to none.
                self.block_bytes_min = 0;
            }
            Then::Transmission => {
                self.asked.pop_front();
                if !self.asked.is_empty() {
                    return self.give_up("an NBD client that waits for the reply to GO");
                }
                if self.export.flags & TAKES_PARTS != 0 && !self.is_fine_grained() {
                    return Err(NbdError::LateBlockSize);
                }
                self.phase = Phase::Transmission;
            }
        }
        Ok(())
    }

    fn info(&mut self, option: u32, out: &mut Vec<u8>) {
        match (u16_at(&self.server_held, 0), self.server_held.len()) {
            (INFO_EXPORT, 12) => {
                let (size_bytes, flags) = (u64_at(&self.server_held, 2), u16_at(&self.server_held, 10));
                if option == OPTION_GO {
                    // The name's length comes first.
                    let choice = std::mem::take(&mut self.choice);
                    let (length, name) = choice.split_at_checked(4).unwrap_or_default();
                    let length = if length.is_empty() { 0 } else { u32_at(length, 0) as usize };
                    self.ask_catalog(&name[..name.len().min(length)], size_bytes);
                }
                let (known, shown) = self.flags(flags);
                self.server_held[10..].copy_from_slice(&shown.to_be_bytes());
                if option == OPTION_GO {
                    self.export = Export { size_bytes, flags: known };
                }
            }
            (INFO_BLOCK_SIZE, 14) => self.block_bytes_min = u32_at(&self.server_held, 2),
            _ => {}
        }
        out.append(&mut self.server_held);
        self.server = ServerAt::Magic(0);
    }

    fn export_after_name(&mut self, out: &mut Vec<u8>) {
        let (size_bytes, flags) = (u64_at(&self.server_held, 0), u16_at(&self.server_held, 8));
        let name = std::mem::take(&mut self.choice);
        self.ask_catalog(&name, size_bytes);
        let (known, shown) = self.flags(flags);
        self.server_held[8..].copy_from_slice(&shown.to_be_bytes());
        self.export = Export { size_bytes, flags: known };
        out.append(&mut self.server_held);
        let no_padding = self.server_flags & self.client_flags & NO_PADDING != 0;
        self.server = ServerAt::Padding { left: if no_padding { 0 } else { PADDING_BYTES } };
    }

    /// The client has chosen an export. For a second choice on the same connection nothing is known.
    fn ask_catalog(&mut self, name: &[u8], size_bytes: u64) {
        self.content = match &mut self.role {
            Role::Destination(catalog) if !self.has_asked => {
                catalog.content(&String::from_utf8_lossy(name), size_bytes)
            }
            Role::Destination(_) | Role::Source => ImageContent::Unknown,
        };
        self.has_asked = true;
    }

    /// The export's flags: as this end sees them, and as it forwards them.
    fn flags(&self, announced: u16) -> (u16, u16) {
        let plain = announced & !(TAKES_PARTS | HOLDS_PARTIAL);
        match self.role {
            Role::Source => (announced, plain),
            Role::Destination(_) => {
                let mut flags = plain & !CAN_MULTI_CONN;
                if flags & SEND_WRITE_ZEROES != 0 && flags & READ_ONLY == 0 && self.is_fine_grained() {
                    flags |= TAKES_PARTS
                        | if matches!(self.content, ImageContent::Partial { .. }) { HOLDS_PARTIAL } else { 0 };
                }
                (flags, flags)
            }
        }
    }

    fn is_source(&self) -> bool {
        matches!(self.role, Role::Source)
    }

    /// Whether single pages may be read and written.
    pub(super) fn is_fine_grained(&self) -> bool {
        u64::from(self.block_bytes_min) <= PAGE_BYTES
    }

    /// Makes the connection opaque: from here on everything is forwarded unchanged.
    fn give_up(&mut self, expected: &'static str) -> Result<(), NbdError> {
        let was_changed = self.is_source() && self.asked.iter().any(|option| !PLAIN.contains(option));
        if was_changed || matches!(self.client, ClientAt::Done) {
            return Err(NbdError::Unexpected(expected));
        }
        tracing::warn!(expected, "An NBD connection is not understood and is carried as it is");
        self.phase = Phase::Opaque;
        Ok(())
    }
}

enum Followed {
    Partly,
    Whole,
    Otherwise,
}

/// Forwards bytes while they match `words`, of which `right` bytes have already matched.
fn follow(words: &[u8], right: &mut usize, bytes: &mut &[u8], out: &mut Vec<u8>) -> Followed {
    while *right < words.len() {
        let Some((first, rest)) = bytes.split_first() else { return Followed::Partly };
        if *first != words[*right] {
            return Followed::Otherwise;
        }
        out.push(*first);
        *bytes = rest;
        *right += 1;
    }
    Followed::Whole
}

/// Checks that every option which changes the format of requests and replies is hidden.
const _: () = {
    let mut at = 0;
    while at < PLAIN.len() {
        assert!(
            PLAIN[at] != OPTION_STARTTLS
                && PLAIN[at] != OPTION_STRUCTURED_REPLY
                && PLAIN[at] != OPTION_EXTENDED_HEADERS
        );
        at += 1;
    }
};
