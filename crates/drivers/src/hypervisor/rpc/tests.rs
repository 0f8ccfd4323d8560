use proptest::prelude::*;

use super::{
    gate::FLAGS_NEEDED,
    message::*,
    xdr::{Reader, TypedParameter, TypedValue},
    *,
};

const UUID: &str = "0d7a4d0e-4f57-4f3e-9a80-0c6a4b6ad001";
const GOOD_FILE: &str = "/srv/ferry/vms/web01/disk.raw";
const MEMORY: &str = "/run/ferry/m/1/memory.sock";
const DISKS: &str = "/run/ferry/m/1/disks.sock";

fn policy() -> GatePolicy {
    GatePolicy {
        definition: DefinitionPolicy {
            vm: UUID.parse().expect("a UUID"),
            name: "web01".into(),
            roots: vec!["/srv/ferry/vms".into()],
        },
        memory_socket: MEMORY.into(),
        disk_socket: DISKS.into(),
        disks: Vec::new(),
    }
}

fn definition(uuid: &str, name: &str, file: &str) -> String {
    format!(
        "<domain type='kvm'><name>{name}</name><uuid>{uuid}</uuid><devices>\
         <disk type='file'><source file='{file}'/></disk></devices></domain>"
    )
}

fn good_definition() -> String {
    definition(UUID, "web01", GOOD_FILE)
}

fn cookie(inside: &str) -> Vec<u8> {
    format!("<qemu-migration><name>web01</name><uuid>{UUID}</uuid>{inside}</qemu-migration>\0").into_bytes()
}

fn good_prepare() -> PrepareCall {
    PrepareCall {
        parameters: vec![
            TypedParameter::text("destination_xml", good_definition()),
            TypedParameter::text("migrate_uri", format!("unix://{MEMORY}")),
        ],
        cookie: cookie(""),
        flags: FLAGS_NEEDED | FLAG_PERSIST_DEST,
    }
}

fn good_finish() -> FinishCall {
    FinishCall {
        parameters: vec![
            TypedParameter::text("destination_name", "web01"),
            TypedParameter::text("migrate_uri", format!("unix://{MEMORY}")),
        ],
        cookie: cookie(&good_definition()),
        flags: FLAGS_NEEDED | FLAG_PERSIST_DEST,
        cancelled: false,
    }
}

fn call(procedure: u32, body: &[u8]) -> Vec<u8> {
    Header::call(procedure, 5).message(body)
}

fn open(uri: &str) -> Vec<u8> {
    call(OPEN, &xdr::Writer::new().optional_text(Some(uri)).u32(0).finish())
}

fn keepalive(procedure: u32) -> Vec<u8> {
    Header { program: KEEPALIVE_PROGRAM, kind: Kind::Message, serial: 0, ..Header::call(procedure, 0) }.message(&[])
}

fn supports(feature: u32) -> Vec<u8> {
    call(SUPPORTS_FEATURE, &feature.to_be_bytes())
}

/// All messages that libvirt 11.3 sent in a move with a bandwidth limit, in order.
fn a_whole_move() -> Vec<u8> {
    let bandwidth = TypedParameter { field: "bandwidth".into(), value: TypedValue::Ulong(100) };
    let mut prepare = good_prepare();
    prepare.parameters.push(bandwidth.clone());
    let mut finish = good_finish();
    finish.parameters.insert(0, TypedParameter::text("destination_xml", good_definition()));
    finish.parameters.push(bandwidth);
    [
        call(AUTH_LIST, &[]),
        supports(10),
        open("qemu:///system"),
        supports(14),
        supports(15),
        call(REGISTER_CLOSE_CALLBACK, &[]),
        supports(4),
        supports(6),
        supports(13),
        call(PREPARE, &prepare.body()),
        keepalive(1),
        keepalive(2),
        call(FINISH, &finish.body()),
        call(UNREGISTER_CLOSE_CALLBACK, &[]),
        call(CLOSE, &[]),
    ]
    .concat()
}

/// The reason why the gate refuses the last of `calls`, after accepting the others.
fn refused(calls: &[Vec<u8>]) -> RefusalReason {
    let (mut gate, mut out) = (Gate::new(policy()), Vec::new());
    let refusal = gate.pass(&calls.concat(), &mut out).expect_err("a refusal");
    let before: usize = calls[..calls.len() - 1].iter().map(Vec::len).sum();
    assert_eq!(out.len(), before, "only the calls before it pass: {refusal}");
    refusal.reason
}

#[test]
fn what_a_move_needs_passes_unchanged_in_any_pieces() {
    let stream = a_whole_move();
    for size in [1, 3, 28, 1000, stream.len()] {
        let (mut gate, mut out) = (Gate::new(policy()), Vec::new());
        for piece in stream.chunks(size) {
            gate.pass(piece, &mut out).expect("allowed");
        }
        assert_eq!(out, stream);
    }
}

#[test]
fn calls_that_are_no_part_of_a_move_are_refused() {
    let header = Header::call(OPEN, 5);
    // CONNECT_LIST_ALL_DOMAINS, DOMAIN_DEFINE_XML, MIGRATE_PREPARE3 without parameters, MIGRATE_PREPARE_TUNNEL3_PARAMS
    for procedure in [273, 11, 209, 304] {
        assert_eq!(refused(&[call(AUTH_LIST, &[]), call(procedure, &[])]), RefusalReason::NotPartOfAMove);
    }
    assert_eq!(refused(&[open("test:///default")]), RefusalReason::Hypervisor("test:///default".into()));
    for kind in [Kind::Reply, Kind::Message, Kind::Other(3), Kind::Other(4)] {
        assert_eq!(refused(&[Header { kind, ..header }.message(&[])]), RefusalReason::Kind(kind));
    }
    let other_program = Header { program: 0x2000_8087, ..header }.message(&[]);
    assert!(matches!(refused(&[other_program]), RefusalReason::Program { program: 0x2000_8087, .. }));
    let loud = Header { program: KEEPALIVE_PROGRAM, kind: Kind::Message, ..header }.message(&[0; 8]);
    assert_eq!(refused(&[loud]), RefusalReason::Keepalive);
    assert!(matches!(refused(&[vec![0xff; 28]]), RefusalReason::Length(_)));
    assert!(matches!(refused(&[call(PREPARE, &[0, 0, 0, 9])]), RefusalReason::Arguments(_)));
}

#[test]
fn a_prepare_that_is_not_this_moves_is_refused() {
    let with = |field: &str, value: &str| {
        let mut call = good_prepare();
        call.parameters.retain(|parameter| parameter.field != field);
        call.parameters.push(TypedParameter::text(field, value));
        call
    };
    let rows = [
        with("destination_xml", &definition("11111111-4f57-4f3e-9a80-0c6a4b6ad001", "web01", GOOD_FILE)),
        with("destination_xml", &definition(UUID, "db", GOOD_FILE)),
        with("destination_xml", &definition(UUID, "web01", "/etc/shadow")),
        with("destination_xml", "hello"),
        with("destination_name", "db"),
        with("migrate_uri", "unix:///run/ferry/m/2/memory.sock"),
        with("migrate_uri", "tcp://10.0.0.1:49152"),
        with("listen_address", "0.0.0.0"),
        with("disks_uri", "unix:///run/ferry/m/1/disks.sock"),
        PrepareCall { parameters: Vec::new(), ..good_prepare() },
        PrepareCall { cookie: cookie(&definition(UUID, "web01", "/etc/shadow")), ..good_prepare() },
        // The copy would run at once; storage would be copied; post-copy.
        PrepareCall { flags: FLAG_LIVE | FLAG_PEER2PEER, ..good_prepare() },
        PrepareCall { flags: FLAGS_NEEDED | 1 << 6, ..good_prepare() },
        PrepareCall { flags: FLAGS_NEEDED | 1 << 15, ..good_prepare() },
    ];
    for row in rows {
        let reason = refused(&[call(PREPARE, &row.body())]);
        assert!(
            matches!(
                reason,
                RefusalReason::Definition(_) | RefusalReason::Parameter { .. } | RefusalReason::Flags { .. }
            ),
            "{reason}"
        );
    }
    let mut twice = good_prepare();
    twice.parameters.push(TypedParameter::text("destination_xml", good_definition()));
    assert!(matches!(refused(&[call(PREPARE, &twice.body())]), RefusalReason::Parameter { .. }));
}

#[test]
fn a_finish_that_is_not_this_moves_is_refused() {
    let prepare = call(PREPARE, &good_prepare().body());
    let rows = [
        FinishCall { parameters: vec![TypedParameter::text("destination_name", "db")], ..good_finish() },
        FinishCall { parameters: Vec::new(), ..good_finish() },
        FinishCall { flags: FLAG_LIVE | FLAG_PEER2PEER, ..good_finish() },
        FinishCall { cookie: cookie(&definition(UUID, "web01", "/etc/shadow")), ..good_finish() },
    ];
    for row in rows {
        let reason = refused(&[prepare.clone(), call(FINISH, &row.body())]);
        assert!(!matches!(reason, RefusalReason::OutOfOrder), "{reason}");
    }
}

#[test]
fn disks_move_along_only_where_the_session_says_which() {
    let with_disks = GatePolicy { disks: vec!["vda".into(), "vdb".into()], ..policy() };
    let text = |field: &str, value: &str| TypedParameter::text(field, value);
    let good = || {
        let mut call = good_prepare();
        call.flags |= FLAG_NON_SHARED_DISK | FLAG_SYNCHRONOUS_WRITES;
        call.parameters.extend([
            text("disks_uri", &format!("unix://{DISKS}")),
            text("migrate_disks", "vda"),
            text("migrate_disks", "vdb"),
        ]);
        call
    };
    let admitted = |policy: &GatePolicy, prepare: &PrepareCall| {
        let mut out = Vec::new();
        let calls = [open("qemu:///system"), call(PREPARE, &prepare.body())].concat();
        Gate::new(policy.clone()).pass(&calls, &mut out).map_err(|refusal| refusal.reason)
    };
    assert_eq!(admitted(&with_disks, &good()), Ok(()));
    assert!(matches!(admitted(&policy(), &good()), Err(RefusalReason::Flags { .. })), "no disk was announced");
    assert!(matches!(admitted(&with_disks, &good_prepare()), Err(RefusalReason::Flags { .. })), "disks were announced");
    let changed = |change: fn(&mut PrepareCall)| {
        let mut call = good();
        change(&mut call);
        admitted(&with_disks, &call)
    };
    let refused: [fn(&mut PrepareCall); 5] = [
        // libvirt migrates all disks if none is named.
        |call| call.parameters.retain(|parameter| parameter.field != "migrate_disks"),
        |call| drop(call.parameters.pop()),
        |call| call.parameters.push(TypedParameter::text("migrate_disks", "vdc")),
        |call| call.parameters.push(TypedParameter::text("migrate_disks", "vda")),
        |call| call.parameters[2] = TypedParameter::text("disks_uri", "unix:///run/ferry/m/2/disks.sock"),
    ];
    for change in refused {
        assert!(matches!(changed(change), Err(RefusalReason::Parameter { .. })), "{:?}", changed(change));
    }
}

#[test]
fn prepare_and_finish_pass_once_each_and_in_order() {
    let prepare = call(PREPARE, &good_prepare().body());
    let finish = call(FINISH, &good_finish().body());
    assert_eq!(refused(std::slice::from_ref(&finish)), RefusalReason::OutOfOrder);
    assert_eq!(refused(&[prepare.clone(), prepare.clone()]), RefusalReason::OutOfOrder);
    assert_eq!(refused(&[prepare.clone(), finish.clone(), finish]), RefusalReason::OutOfOrder);
}

#[test]
fn after_a_refusal_the_source_is_told_why_and_may_only_leave() {
    let (mut gate, mut out) = (Gate::new(policy()), Vec::new());
    let leave = [call(UNREGISTER_CLOSE_CALLBACK, &[]), call(CLOSE, &[])].concat();
    let stream = [call(273, &[]), call(PREPARE, &good_prepare().body()), leave.clone()].concat();
    let refusal = gate.pass(&stream, &mut out).expect_err("refused");
    let mut text = String::new();
    Splitter::default()
        .push::<LengthError>(&refusal.reply, |message| {
            assert_eq!((message.header.procedure, message.header.serial, message.header.status), (273, 5, 1));
            let mut reader = Reader::new(message.body);
            let _ = (reader.i32(), reader.i32());
            text = reader.optional_text().expect("a text").expect("there").to_owned();
            Ok(())
        })
        .expect("the reply is a message");
    assert!(text.contains("273"), "{text}");
    let prepare = gate.pass(&[], &mut out).expect_err("the session is over");
    assert_eq!(prepare.reason, RefusalReason::Closed);
    assert_eq!(gate.pass(&[], &mut out), Ok(()));
    assert_eq!(out, leave);
}

#[test]
fn nothing_passes_in_a_stream_that_cannot_be_followed() {
    let (mut gate, mut out) = (Gate::new(policy()), Vec::new());
    assert!(gate.pass(&[0xff; 28], &mut out).expect_err("no message").reply.is_empty());
    assert_eq!(gate.pass(&call(CLOSE, &[]), &mut out).expect_err("lost").reason, RefusalReason::Closed);
    assert!(out.is_empty());
}

#[test]
fn the_tap_tells_who_has_the_vm_after_finish() {
    let reply = |serial, status| Header::call(FINISH, serial).reply(status).message(&[0; 8]);
    let (has_it, has_it_not) = (Some(true), Some(false));
    let outcome = |seen: Result<Option<FinishReply>, LengthError>| {
        seen.map(|reply| reply.map(|reply| reply.destination_has_it)).expect("well formed")
    };
    for (cancelled, serial, status, expected) in
        [(false, 5, 0, has_it), (true, 5, 0, has_it_not), (false, 5, 1, has_it_not), (false, 6, 0, None)]
    {
        let (mut tap, mut out) = (Tap::default(), Vec::new());
        tap.calls(&call(FINISH, &FinishCall { cancelled, ..good_finish() }.body())).expect("well formed");
        let bytes = reply(serial, status);
        let (first, second) = bytes.split_at(30);
        assert_eq!(outcome(tap.replies(first, &mut out)), None);
        assert!(out.is_empty(), "half a message is held back");
        assert_eq!(outcome(tap.replies(second, &mut out)), expected, "{cancelled} {serial} {status}");
        assert_eq!(out, bytes);
    }
}

#[test]
fn a_finish_that_cannot_be_read_is_not_taken_for_a_hand_over() {
    let (mut tap, mut out) = (Tap::default(), Vec::new());
    tap.calls(&call(FINISH, &[0; 5])).expect("well formed");
    let seen = tap.replies(&Header::call(FINISH, 5).reply(STATUS_OK).message(&[]), &mut out);
    assert!(seen.expect("well formed").is_some_and(|reply| !reply.destination_has_it));
}

#[test]
fn a_refused_finish_reply_is_an_error_with_its_words_and_nothing_else_changes() {
    let keepalive = Header { program: KEEPALIVE_PROGRAM, procedure: 2, kind: Kind::Message, ..Header::call(0, 0) };
    let finish = Header::call(FINISH, 5).reply(STATUS_OK).message(&[0; 8]);
    let (mut tap, mut out) = (Tap::default(), Vec::new());
    tap.calls(&call(FINISH, &good_finish().body())).expect("well formed");
    let stream = [keepalive.message(&[]), finish, keepalive.message(&[])].concat();
    let reply = tap.replies(&stream, &mut out).expect("well formed").expect("it is among them");
    assert_eq!((reply.destination_has_it, &out), (true, &stream));
    reply.refuse(&mut out, "Disk vda is locked");
    let (mut source, mut passed, mut words) = (Tap::default(), Vec::new(), Vec::new());
    source.calls(&call(FINISH, &good_finish().body())).expect("well formed");
    let heard = source.replies(&out, &mut passed).expect("well formed").expect("there is a reply to Finish");
    assert!(!heard.destination_has_it, "the source keeps the VM");
    Splitter::default()
        .push::<LengthError>(&passed, |message| {
            let mut reader = Reader::new(message.body);
            let _ = (reader.i32(), reader.i32());
            words.push((message.header.program, reader.optional_text().ok().flatten().map(str::to_owned)));
            Ok(())
        })
        .expect("well formed");
    let outcome = (REMOTE_PROGRAM, Some("Disk vda is locked".to_owned()));
    assert_eq!(words, [(KEEPALIVE_PROGRAM, None), outcome, (KEEPALIVE_PROGRAM, None)]);
}

proptest! {
    #[test]
    fn no_bytes_break_the_parsers(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        fuzz(&bytes);
    }

    #[test]
    fn no_body_breaks_the_checks(
        procedure in prop::sample::select(vec![OPEN, PREPARE, FINISH]),
        body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        fuzz(&call(procedure, &body));
    }

    #[test]
    fn a_spoilt_move_never_breaks_the_parsers(position in any::<prop::sample::Index>(), byte: u8) {
        let mut stream = a_whole_move();
        let position = position.index(stream.len());
        stream[position] = byte;
        fuzz(&stream);
        let mut out = Vec::new();
        let _ = Gate::new(policy()).pass(&stream, &mut out);
        prop_assert!(stream.starts_with(&out));
    }
}
