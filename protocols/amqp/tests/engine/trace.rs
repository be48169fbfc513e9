//! What the frame trace shows, line by line, and what it must not show.

use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use fieldgate_amqp::codec::{
    put_binary, put_int, put_list, put_map, put_null, put_str, put_symbol, put_timestamp, put_ubyte, put_uuid,
};
use fieldgate_amqp::connection::{ClientSecurity, ConnectionConfig, Event, LinkFlow};
use fieldgate_amqp::error::{AmqpError, Condition};
use fieldgate_amqp::frame::{Frame, FrameKind, HEARTBEAT};
use fieldgate_amqp::performative::{
    ACCEPTED, AttachOut, DispositionOut, OpenOut, Role, SourceOut, TargetOut, TransferOut, modified, rejected,
};
use fieldgate_amqp::trace::{Direction, Line, Trace};

use crate::pair::{Pair, attach, config};
use crate::raw::Raw;
use crate::transfers::{grant, message};

#[derive(Debug, Default)]
struct Lines(Mutex<Vec<String>>);

impl Trace for Lines {
    fn trace(&self, line: &Line<'_>) {
        self.0.lock().unwrap().push(line.to_string());
    }
}

impl Lines {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// A raw connection with a session, and its trace from then on.
fn traced() -> (Raw, Arc<Lines>) {
    let lines = Arc::new(Lines::default());
    let mut raw = Raw::with_session();
    raw.connection.set_trace(Some(Arc::<Lines>::clone(&lines)));
    (raw, lines)
}

#[test]
fn a_connection_from_the_first_byte_on() {
    let security = ClientSecurity::Plain { user: "me".into(), password: "very secret".into() };
    let settings = ConnectionConfig { hostname: Some("hub.example".into()), idle_time_out: None, ..config() };
    let mut pair = Pair::silent(security, settings, config());
    let lines = Arc::new(Lines::default());
    pair.client.connection.set_trace(Some(Arc::<Lines>::clone(&lines)));
    pair.run();
    pair.client.connection.close(None);
    pair.run();
    assert_eq!(
        lines.take(),
        [
            "SASL:FRAME:  -> SASL",
            "SASL:FRAME:  <- SASL",
            "SASL:FRAME:0 <- @sasl-mechanisms(64) [sasl-server-mechanisms=@<symbol>[:ANONYMOUS, :PLAIN, :EXTERNAL, :MSSBCBS]]",
            "SASL:FRAME:0 -> @sasl-init(65) [mechanism=:PLAIN, initial-response=(15), hostname=\"hub.example\"]",
            "SASL:FRAME:0 <- @sasl-outcome(68) [code=0x0]",
            "AMQP:FRAME:  -> AMQP",
            "AMQP:FRAME:0 -> @open(16) [container-id=\"test\", hostname=\"hub.example\", max-frame-size=0x10000, \
             channel-max=0xff]",
            "AMQP:FRAME:  <- AMQP",
            "AMQP:FRAME:0 <- @open(16) [container-id=\"test\", max-frame-size=0x10000, channel-max=0xff, \
             idle-time-out=0x1d4c0]",
            "AMQP:FRAME:0 -> @close(24) []",
            "AMQP:FRAME:0 <- @close(24) []",
        ]
    );
}

#[test]
fn links_and_deliveries() {
    let (mut raw, lines) = traced();
    let events = raw.attach("l", Role::Receiver, 3);
    let Event::Attached { link, session, .. } = events[0] else { panic!("{events:?}") };
    raw.output();
    assert_eq!(
        lines.take(),
        [
            "AMQP:FRAME:0 <- @attach(18) [name=\"l\", handle=0x3, role=true, snd-settle-mode=0x2, \
             rcv-settle-mode=0x0, source=@source(40) [address=\"q\", durable=0x0, expiry-policy=:session-end, \
             timeout=0x0, dynamic=false], target=@target(41) [address=\"q\", durable=0x0, \
             expiry-policy=:session-end, timeout=0x0, dynamic=false], incomplete-unsettled=false]",
            "AMQP:FRAME:0 -> @attach(18) [name=\"l\", handle=0x0, role=false, snd-settle-mode=0x2, \
             rcv-settle-mode=0x0, source=@source(40) [address=\"q\", durable=0x0, expiry-policy=:session-end, \
             timeout=0x0, dynamic=false], target=@target(41) [address=\"q\", durable=0x0, \
             expiry-policy=:session-end, timeout=0x0, dynamic=false], incomplete-unsettled=false, \
             initial-delivery-count=0x0]",
        ]
    );
    let payload = b"\x00\x53\x77\xa1\x07private";
    raw.connection.transfer(link, message(b"t\x01\"'\\"), payload).unwrap();
    let piece = TransferOut { more: true, batchable: true, ..message(b"u") };
    raw.connection.transfer(link, piece, b"").unwrap();
    raw.connection.transfer(link, TransferOut { aborted: true, ..TransferOut::default() }, b"").unwrap();
    raw.output();
    raw.connection.flow(link, LinkFlow { link_credit: 9, drain: true, ..LinkFlow::default() });
    let error = AmqpError::new(&Condition::NotFound, Some("no such \"node\""));
    let annotations = {
        let mut map = BytesMut::new();
        put_map(&mut map, |out| {
            put_symbol(out, "x-opt");
            put_binary(out, &[0, 255]);
            1
        });
        map
    };
    let states = [
        (0, Some(Bytes::from_static(ACCEPTED))),
        (1, Some(rejected(Some(&error)))),
        (2, Some(modified(true, false, Some(&annotations)))),
        (3, None),
    ];
    for (id, state) in &states {
        let out = DispositionOut {
            role: Role::Sender,
            first: *id,
            last: *id + 1,
            settled: true,
            state: state.as_deref(),
            batchable: false,
        };
        raw.connection.disposition(session, out);
    }
    raw.connection.detach(link, true, Some(error));
    raw.output();
    let shown = lines.take();
    let expected = [
        "AMQP:FRAME:0 -> @transfer(20) [handle=0x0, delivery-id=0x0, delivery-tag=b\"t\\x01\\x22\\x27\\x5c\", \
         message-format=0x0, settled=false, more=false, resume=false, aborted=false, batchable=false] (12)",
        "AMQP:FRAME:0 -> @transfer(20) [handle=0x0, delivery-id=0x1, delivery-tag=b\"u\", message-format=0x0, \
         settled=false, more=true, resume=false, aborted=false, batchable=true]",
        "AMQP:FRAME:0 -> @transfer(20) [handle=0x0, more=false, resume=false, aborted=true, batchable=false]",
        "AMQP:FRAME:0 -> @flow(19) [next-incoming-id=0x0, incoming-window=0x20, next-outgoing-id=0x3, \
         outgoing-window=0x7fffffff, handle=0x0, delivery-count=0x2, link-credit=0x9, drain=true, echo=false]",
        "AMQP:FRAME:0 -> @disposition(21) [role=false, first=0x0, last=0x1, settled=true, state=@accepted(36) [], batchable=false]",
        "AMQP:FRAME:0 -> @disposition(21) [role=false, first=0x1, last=0x2, settled=true, state=@rejected(37) \
         [error=@error(29) [condition=:\"amqp:not-found\", description=\"no such \\x22node\\x22\"]], batchable=false]",
        "AMQP:FRAME:0 -> @disposition(21) [role=false, first=0x2, last=0x3, settled=true, state=@modified(39) \
         [delivery-failed=true, undeliverable-here=false, message-annotations={:x-opt=b\"\\x00\\xff\"}], batchable=false]",
        "AMQP:FRAME:0 -> @disposition(21) [role=false, first=0x3, last=0x4, settled=true, batchable=false]",
        "AMQP:FRAME:0 -> @detach(22) [handle=0x0, closed=true, error=@error(29) [condition=:\"amqp:not-found\", \
         description=\"no such \\x22node\\x22\"]]",
    ];
    for (line, expected) in shown.iter().zip(expected) {
        assert_eq!(line, expected);
    }
    assert_eq!(shown.len(), expected.len());
}

#[test]
fn heartbeats_strangers_and_broken_frames() {
    let (mut raw, lines) = traced();
    raw.bytes(&HEARTBEAT);
    assert_eq!(lines.take(), ["AMQP:FRAME:0 <- (EMPTY FRAME)"]);
    raw.frame(7, |out| out.extend_from_slice(b"\x00\x53\x12\xc0\x7f\x01"));
    let shown = lines.take();
    assert!(shown[0].starts_with("AMQP:FRAME:7 <- (MALFORMED FRAME of 6 bytes: "), "{shown:?}");

    let mut stranger = Raw::unopened(config());
    stranger.connection.set_trace(Some(Arc::<Lines>::clone(&lines)));
    stranger.bytes(b"GET / HTTP/1.1\r\n");
    stranger.connection.poll_transmit();
    assert_eq!(lines.take(), ["  IO:FRAME:  <- \"GET / HT\"", "SASL:FRAME:  -> SASL"]);
}

/// The line of an attach with these link properties and this address.
fn line_of(address: &str, properties: &[(&str, &str)]) -> String {
    let source = SourceOut { address: Some(address), ..SourceOut::default() }.build();
    let target = TargetOut::default().build();
    let mut map = BytesMut::new();
    put_map(&mut map, |out| {
        for (key, value) in properties {
            put_symbol(out, key);
            put_str(out, value);
        }
        properties.len()
    });
    let attach = AttachOut { properties: Some(&map), ..AttachOut::receiver("l", &source, &target) }.build();
    let body = Bytes::copy_from_slice(attach.encoded());
    Line::frame(Direction::In, &Frame { kind: FrameKind::Amqp, channel: 0, body }).to_string()
}

#[test]
fn nothing_that_looks_like_a_secret_is_shown() {
    let token = "SharedAccessSignature sr=hub%2Fdevices%2Fd1&sig=c2lnbmF0dXJl&se=1";
    for secret in [
        token,
        "sharedaccesskey=c2lnbmF0dXJl",
        "https://h/c?sv=1&sig=c2lnbmF0dXJl",
        "Bearer c2lnbmF0dXJl",
        "eyJc2lnbmF0dXJl",
        "amqps://me:c2lnbmF0dXJl@hub/q",
        "HostName=h;Password=c2lnbmF0dXJl",
    ] {
        let line = line_of(secret, &[("note", secret), ("kind", "d")]);
        assert!(!line.contains("c2lnbmF0dXJl"), "{line}");
        assert!(line.contains("properties={:note=(hidden), :kind=\"d\"}"), "{line}");
    }
    let line = line_of("q", &[("access_token", "1234"), ("Password", "1234"), ("config=1", "a config=2")]);
    let properties = "properties={:access_token=(hidden), :Password=(hidden), :\"config=1\"=\"a config=2\"}]";
    assert!(line.ends_with(properties), "{line}");
}

#[test]
fn long_values_and_long_lines_are_cut() {
    let long = "x".repeat(5000);
    let line = line_of(&long, &[]);
    let cut = format!("address=\"{}…\"(5000)", "x".repeat(128));
    assert!(line.contains(&cut), "{line}");
    let many: Vec<_> = (0..2000).map(|_| ("key", "value")).collect();
    let line = line_of("q", &many);
    assert!(line.len() < 4300 && line.ends_with('…'), "{}", line.len());
}

#[test]
fn no_bytes_make_it_fail() {
    let attach = attach("l", Role::Sender);
    let whole = attach.encoded();
    for at in 0..whole.len() {
        for byte in [0x00, 0x40, 0x45, 0x53, 0xc0, 0xe0, 0xff, whole[at] ^ 1] {
            let mut body = BytesMut::from(whole);
            body[at] = byte;
            let frame = Frame { kind: FrameKind::Amqp, channel: 0, body: body.freeze() };
            assert!(Line::frame(Direction::In, &frame).to_string().len() < 5000);
        }
    }
}

#[test]
fn an_open_with_a_vendors_values_is_shown_as_proton_does() {
    let mut properties = BytesMut::new();
    put_map(&mut properties, |out| {
        put_symbol(out, "u");
        put_uuid(out, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5]);
        put_symbol(out, "t");
        put_timestamp(out, 12_345);
        put_str(out, "l");
        put_list(out, |out| {
            put_int(out, -1);
            put_str(out, "");
            put_null(out);
            3
        });
        put_symbol(out, "d");
        out.extend_from_slice(b"\x00\xa3\x03v:w");
        put_ubyte(out, 2);
        4
    });
    let open = OpenOut { container_id: "c", properties: Some(&properties), ..OpenOut::default() }.build();
    let frame = Frame { kind: FrameKind::Amqp, channel: 0, body: Bytes::copy_from_slice(open.encoded()) };
    assert_eq!(
        Line::frame(Direction::In, &frame).to_string(),
        "AMQP:FRAME:0 <- @open(16) [container-id=\"c\", max-frame-size=0xffffffff, channel-max=0xffff, \
         properties={:u=UUID(00000000-0000-0000-0000-000000000005), :t=12345, \"l\"=[-1, \"\", null], \
         :d=@:\"v:w\"0x2}]"
    );
}

#[test]
fn it_can_be_switched_off() {
    let mut pair = Pair::open();
    let lines = Arc::new(Lines::default());
    pair.server.connection.set_trace(Some(Arc::<Lines>::clone(&lines)));
    let (session, _) = pair.session();
    assert!(!lines.take().is_empty());
    pair.server.connection.set_trace(None);
    let (_, remote) = pair.link(session, "l", Role::Sender);
    grant(&mut pair.server, remote, 1);
    pair.run();
    assert!(lines.take().is_empty());
}
