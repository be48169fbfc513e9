//! Two connected machines, and what is read out of messages.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use fieldgate_amqp::codec::{Limits, Value};
use fieldgate_amqp::connection::{ClientSecurity, Connection, ConnectionConfig, Event};
use fieldgate_amqp::endpoint::SAS_TOKEN;
use fieldgate_amqp::message::{
    PropertiesOut, Sections, put_amqp_value, put_application_properties, put_properties,
};
use fieldgate_amqp::performative::{Attach, AttachOut, SourceOut, TargetOut};

use crate::testing::Stream;

/// The client's machine and the server's, both open.
pub(super) struct Wire {
    pub(super) now: Instant,
    pub(super) client: Connection,
    pub(super) server: Connection,
    streams: [Stream; 2],
}

pub(super) fn config() -> ConnectionConfig {
    ConnectionConfig { idle_time_out: None, ..ConnectionConfig::default() }
}

impl Wire {
    pub(super) fn new(client: ConnectionConfig, server: ConnectionConfig) -> Self {
        let now = Instant::now();
        let open = client.open();
        let client = Connection::client(Arc::new(client), ClientSecurity::Bare, open, now);
        let server = Connection::server(Arc::new(server), &[], true, now);
        let mut wire = Self { now, client, server, streams: Default::default() };
        wire.run(
            |_, _| {},
            |server, event| {
                if let Event::Opened(_) = event {
                    let open = server.config().open();
                    server.open(open);
                }
            },
        );
        assert!(wire.client.is_open() && wire.server.is_open());
        wire
    }

    /// Carries bytes until nobody has any more to say.
    pub(super) fn run(
        &mut self,
        mut on_client: impl FnMut(&mut Connection, Event),
        mut on_server: impl FnMut(&mut Connection, Event),
    ) {
        loop {
            while let Some(event) = self.client.poll_event() {
                on_client(&mut self.client, event);
            }
            while let Some(event) = self.server.poll_event() {
                on_server(&mut self.server, event);
            }
            let [up, down] = &mut self.streams;
            up.take(&mut self.client);
            down.take(&mut self.server);
            let moved = up.give(&mut self.server, self.now, usize::MAX);
            if !(down.give(&mut self.client, self.now, usize::MAX) || moved) {
                return;
            }
        }
    }
}

pub(super) fn sender(name: &str, target: &str) -> Attach {
    let source = SourceOut::default().build();
    let target = TargetOut { address: Some(target), ..TargetOut::default() }.build();
    AttachOut::sender(name, &source, &target).build()
}

pub(super) fn receiver(name: &str, own: Option<&str>) -> Attach {
    let source = SourceOut { address: Some("$cbs"), ..SourceOut::default() }.build();
    let target = TargetOut { address: own, ..TargetOut::default() }.build();
    AttachOut::receiver(name, &source, &target).build()
}

/// A message to `$cbs` with this operation, and a token as its body.
pub(super) fn request(
    id: Option<Value<'_>>,
    reply_to: Option<&str>,
    operation: &str,
    token: &Value<'_>,
) -> Bytes {
    let mut out = BytesMut::new();
    put_properties(&mut out, &PropertiesOut { message_id: id, reply_to, ..PropertiesOut::default() });
    let pairs = [
        ("operation", Value::Str(operation)),
        ("type", Value::Str(SAS_TOKEN)),
        ("name", Value::Str("hub/devices/d")),
    ];
    put_application_properties(&mut out, pairs);
    put_amqp_value(&mut out, token);
    out.freeze()
}

pub(super) fn put_token(id: Value<'_>) -> Bytes {
    request(Some(id), None, "put-token", &Value::Str("the token"))
}

/// The encoded correlation-id, the status and the description of an answer.
pub(super) type Said = (Option<Vec<u8>>, i32, String);

pub(super) fn read_answer(message: &Bytes) -> Said {
    let sections = Sections::parse(message, &Limits::WIRE).expect("a message");
    let id = sections.properties().correlation_id().map(encoded);
    let pairs: Vec<_> = sections.application_properties().collect();
    let [
        (Value::Str("status-code"), Value::Int(status)),
        (Value::Str("status-description"), Value::Str(words)),
    ] = pairs[..]
    else {
        panic!("{pairs:?}");
    };
    (id, status, words.to_owned())
}

pub(super) fn encoded(value: Value<'_>) -> Vec<u8> {
    let mut out = BytesMut::new();
    value.write(&mut out);
    out.to_vec()
}
