//! Bytes that nobody should send. The laws: no panic, no endless loop, what the server writes is legal, what it
//! lets through is legal, and a closed connection says nothing more.

use std::time::Duration;

use bytes::BytesMut;
use fieldgate_mqtt::{
    Accept, Config, ConnectRefusal, Event, OutgoingPublish, PublishProperties, PublishReply, QoS,
    SubscribeRefusal, UnsubscribeReply, Version, Violation, Will,
    client::{self, ConnectOptions, Decoder},
    is_topic_filter, is_topic_name,
};

use crate::support::{BOTH, Random, Server, id};

/// One of each packet that a client may send, in an order that is legal.
fn session(version: Version) -> Vec<Vec<u8>> {
    let properties = PublishProperties {
        payload_is_utf8: Some(false),
        message_expiry_interval: Some(Duration::from_secs(5)),
        content_type: Some("c".into()),
        response_topic: Some("r".into()),
        correlation_data: Some(b"\x01"[..].into()),
        user_properties: vec![("k".into(), "v".into())],
        subscription_identifiers: Vec::new(),
    };
    let will = Will {
        topic: "w".into(),
        payload: b"gone"[..].into(),
        qos: QoS::AtLeastOnce,
        retain: false,
        delay: Duration::from_secs(1),
        properties: properties.clone(),
    };
    let packet = |write: &dyn Fn(&mut BytesMut)| {
        let mut out = BytesMut::new();
        write(&mut out);
        out.to_vec()
    };
    let publish = |qos| OutgoingPublish {
        topic: "a/b",
        payload: b"12",
        qos,
        dup: false,
        retain: false,
        properties: Some(&properties),
    };
    let options = ConnectOptions {
        username: Some("u"),
        password: Some(b"p"),
        will: Some(&will),
        session_expiry_seconds: 1,
        receive_maximum: Some(2),
        max_packet_bytes: Some(64),
        ..ConnectOptions::new(version, "d")
    };
    vec![
        packet(&|out| client::put_connect(&options, out).expect("can be said")),
        packet(&|out| {
            let filters = [("a/#", QoS::AtLeastOnce), ("+/b", QoS::AtMostOnce)];
            client::put_subscribe(version, id(1), &filters, out).expect("can be said");
        }),
        packet(&|out| {
            client::put_publish(version, id(2), &publish(QoS::AtLeastOnce), out).expect("can be said");
        }),
        packet(&|out| {
            client::put_publish(version, id(2), &publish(QoS::AtMostOnce), out).expect("can be said");
        }),
        packet(&|out| client::put_puback(version, id(1), PublishReply::Unspecified, out)),
        packet(&|out| {
            client::put_publish(version, id(4), &publish(QoS::ExactlyOnce), out).expect("can be said");
        }),
        packet(&|out| client::put_pubrel(id(4), out)),
        packet(&|out| client::put_pubrec(id(9), out)),
        packet(&|out| client::put_pingreq(out)),
        packet(&|out| client::put_unsubscribe(version, id(3), &["a/#"], out).expect("can be said")),
        packet(&|out| client::put_disconnect(version, true, out)),
    ]
}

/// A server that answers everything, checks what it hears, and checks what it says.
struct Driven {
    server: Server,
    events: Vec<Event>,
    written: Vec<u8>,
}

impl Driven {
    fn new() -> Self {
        Self { server: Server::new(Config::default()), events: Vec::new(), written: Vec::new() }
    }

    fn give(&mut self, bytes: &[u8]) {
        self.server.input(bytes);
        while let Some(event) = self.server.machine.poll_event() {
            let ends = matches!(event, Event::Violation(_) | Event::Disconnected(_) | Event::TimedOut(_));
            self.act(&event);
            self.events.push(event);
            assert_eq!(ends, self.server.machine.is_closed());
        }
        self.written.extend(self.server.written());
    }

    fn act(&mut self, event: &Event) {
        let Server { machine, now } = &mut self.server;
        match event {
            Event::Connect(connect) => {
                assert!(connect.will.as_ref().is_none_or(|will| is_topic_name(&will.topic)));
                machine.accept(*now, Accept::default()).expect("waits");
                machine
                    .publish(&OutgoingPublish {
                        topic: "c",
                        payload: b"",
                        qos: QoS::AtLeastOnce,
                        dup: false,
                        retain: false,
                        properties: None,
                    })
                    .ok();
            }
            Event::Publish(publish) => {
                assert!(is_topic_name(&publish.topic));
                if let Some(token) = publish.token {
                    machine.acknowledge(token, PublishReply::NotAuthorised);
                }
            }
            Event::Subscribe(subscribe) => {
                assert!(subscribe.filters.iter().all(|filter| is_topic_filter(&filter.filter)));
                let replies = vec![Err(SubscribeRefusal::TopicFilterInvalid); subscribe.filters.len()];
                machine.suback(subscribe.packet_id, &replies).expect("waits");
            }
            Event::Unsubscribe(unsubscribe) => {
                assert!(unsubscribe.filters.iter().all(|filter| is_topic_filter(filter)));
                let replies = vec![UnsubscribeReply::NotAuthorised; unsubscribe.filters.len()];
                machine.unsuback(unsubscribe.packet_id, &replies).expect("waits");
            }
            // The guard is meant to leave the codec nothing to refuse.
            Event::Violation(Violation::Malformed(what)) => assert!(!what.contains("the codec"), "{what}"),
            _ => {}
        }
    }

    /// Everything that was written is a sequence of whole packets of the version.
    fn judge_output(&self, version: Version) {
        let mut decoder = Decoder::new(version);
        decoder.push(&self.written);
        let mut length = 0;
        while let Some(packet) = decoder.next_packet().expect("a legal packet") {
            length += format!("{packet:?}").len();
        }
        assert_eq!(length == 0, self.written.is_empty(), "{:x?}", self.written);
    }
}

#[test]
fn a_stream_means_the_same_wherever_it_is_cut() {
    for version in BOTH {
        let stream = session(version).concat();
        let mut whole = Driven::new();
        whole.give(&stream);
        assert_eq!(
            whole.events.len(),
            8,
            "one for each packet but PUBREL, PUBREC, PINGREQ: {:?}",
            whole.events
        );
        assert!(matches!(whole.events.last(), Some(Event::Disconnected(_))));
        whole.judge_output(version);
        for cut in 0..=stream.len() {
            let mut cut_once = Driven::new();
            cut_once.give(&stream[..cut]);
            assert!(!cut_once.events.iter().any(|event| matches!(event, Event::Violation(_))), "{cut}");
            cut_once.give(&stream[cut..]);
            assert_eq!(cut_once.events, whole.events, "cut at {cut}");
            assert_eq!(cut_once.written, whole.written);
        }
        let mut bytewise = Driven::new();
        stream.chunks(1).for_each(|byte| bytewise.give(byte));
        assert_eq!((bytewise.events, bytewise.written), (whole.events, whole.written));
    }
}

#[test]
fn a_packet_cut_short_with_a_length_that_says_so() {
    for version in BOTH {
        let packets = session(version);
        for (index, packet) in packets.iter().enumerate() {
            // The payload of PUBLISH and the end of PUBACK and DISCONNECT may be missing; nothing else may.
            for length in 0..packet.len() - 2 {
                let mut driven = Driven::new();
                packets[..index].iter().for_each(|before| driven.give(before));
                let heard = driven.events.len();
                let mut short = vec![packet[0], u8::try_from(length).expect("short packets")];
                short.extend_from_slice(&packet[2..2 + length]);
                driven.give(&short);
                let legal = match packet[0] >> 4 {
                    3 => packet.len() - 2 - length <= 2,
                    4 => length >= 2,
                    8 | 10 => false,
                    14 => true,
                    _ => false,
                };
                // A list of filters may end after each of them.
                let whole_filter = packet[0] >> 4 == 8
                    && matches!(driven.events.last(), Some(Event::Subscribe(got)) if got.filters.len() == 1);
                let refused = matches!(driven.events[heard..], [Event::Violation(_)]);
                assert_eq!(refused, !legal && !whole_filter, "{version:?} {short:x?} {:?}", driven.events);
            }
        }
    }
}

#[test]
fn mutations() {
    for seed in 0..20_000 {
        let mut random = Random(seed);
        let version = BOTH[random.below(2)];
        let packets = session(version);
        let mut stream = packets[0].clone();
        let connect = if random.below(4) == 0 { 0 } else { stream.len() };
        for _ in 0..random.below(8) {
            stream.extend_from_slice(&packets[random.below(packets.len())]);
        }
        if stream.len() > connect {
            for _ in 0..=random.below(4) {
                let at = connect + random.below(stream.len() - connect);
                match random.below(5) {
                    0 => stream[at] = random.next().to_le_bytes()[0],
                    1 => stream[at] ^= 1 << random.below(8),
                    2 => stream.insert(at, random.next().to_le_bytes()[0]),
                    3 if stream.len() > connect + 1 => drop(stream.remove(at)),
                    _ => stream.truncate(at.max(connect + 1)),
                }
            }
        }
        let mut driven = Driven::new();
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(1 + random.below(rest.len()));
            driven.give(piece);
            rest = after;
        }
        let said = driven.events.iter().find_map(|event| match event {
            Event::Connect(connect) => Some(connect.version),
            _ => None,
        });
        if let Some(version) = said {
            driven.judge_output(version);
        }
        assert!(
            driven.written.len() <= 64 + 2 * stream.len(),
            "an answer is not larger than what it answers"
        );
        if driven.server.machine.is_closed() {
            let heard = driven.events.len();
            driven.give(&stream);
            driven.server.pass(Duration::from_secs(1_000_000));
            driven.give(&[]);
            assert_eq!(driven.events.len(), heard, "seed {seed}");
            assert!(driven.server.machine.refuse(ConnectRefusal::Banned).is_err());
        }
    }
}

#[test]
fn noise_after_connect() {
    for seed in 0..20_000 {
        let mut random = Random(seed ^ 0x5EED);
        let version = BOTH[random.below(2)];
        let mut driven = Driven::new();
        driven.give(&session(version)[0]);
        let mut noise = vec![0; 1 + random.below(60)];
        noise.iter_mut().for_each(|byte| *byte = random.next().to_le_bytes()[0]);
        // A first byte and a length that are legal lead deeper into the packet.
        noise[0] = [0x30, 0x32, 0x3A, 0x40, 0x82, 0xA2, 0xC0, 0xE0][random.below(8)];
        if let [_, length, rest @ ..] = &mut noise[..] {
            *length = u8::try_from(rest.len()).expect("short");
        }
        driven.give(&noise);
        driven.judge_output(version);
    }
}

#[test]
fn the_client_side_survives_noise_as_well() {
    for seed in 0..20_000 {
        let mut random = Random(seed);
        let mut decoder = Decoder::new(BOTH[random.below(2)]);
        let mut noise = vec![0; 2 + random.below(40)];
        noise.iter_mut().for_each(|byte| *byte = random.next().to_le_bytes()[0]);
        noise[0] = [0x20, 0x30, 0x32, 0x40, 0x90, 0xB0, 0xD0, 0xE0][random.below(8)];
        noise[1] = u8::try_from(noise.len() - 2).expect("short");
        decoder.push(&noise);
        // A whole packet is either decoded or refused, never waited for.
        assert_ne!(decoder.next_packet(), Ok(None), "{noise:x?}");
    }
}
