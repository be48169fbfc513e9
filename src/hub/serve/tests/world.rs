//! A hub, clients of our own engine, and the bytes between them.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fieldgate_amqp::codec::{Limits, Value};
use fieldgate_amqp::connection::{
    ClientSecurity, Connection, ConnectionConfig, Event, LinkFlow, LinkId, SessionId, TransferOut,
};
use fieldgate_amqp::message::{
    PropertiesOut, Sections, put_amqp_value, put_application_properties, put_data, put_properties,
};
use fieldgate_amqp::performative::{
    ACCEPTED, Attach, AttachOut, Detach, Disposition, DispositionOut, RcvSettleMode, Role, SndSettleMode,
    SourceOut, TargetOut,
};
use fieldgate_mappings::{DeviceId, Timestamp};

use crate::config::Config;
use crate::hub::registry::device_key;
use crate::hub::serve::peer::{Peer, connection_config};
use crate::hub::serve::shared::Shared;
use crate::hub::state::HubState;
use crate::hub::telemetry::ConnectionNumber;
use crate::hub::time::Now;
use crate::sas::{SharedKey, Signer};

pub(super) const HOUR: u64 = 3600;

/// A hub and its clock.
pub(super) struct World {
    pub(super) now: Now,
    pub(super) shared: Rc<Shared>,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with("")
    }

    /// A hub with these lines in its section of the configuration.
    pub(super) fn with(lines: &str) -> Self {
        let text = format!("[hub]\nregister_unknown_devices = true\n{lines}");
        let config = Config::parse("test", &text, None).unwrap();
        let state = HubState::new(&config.hub, &["localhost".into()], owner());
        Self { now: Now::test(), shared: Rc::new(Shared::new(state)) }
    }

    /// Lets time pass, in the queues; connections see it at their next turn.
    pub(super) fn pass(&mut self, time: Duration) {
        self.now = self.now.plus(time);
        self.shared.elapse(self.now);
    }

    pub(super) fn unix(&self) -> u64 {
        self.now.unix_seconds()
    }

    /// A connection that has opened and begun a session.
    pub(super) fn connect(&self) -> Client {
        self.connect_with(ClientSecurity::Anonymous, ConnectionConfig::default())
    }

    pub(super) fn connect_with(&self, security: ClientSecurity, config: ConnectionConfig) -> Client {
        let hub = Arc::new(connection_config("hub".into()));
        let peer = Peer::new(hub, ConnectionNumber(1), Rc::clone(&self.shared), self.now.instant);
        let config = Arc::new(config);
        let open = config.open();
        let machine = Connection::client(config, security, open, self.now.instant);
        let mut client = Client { machine, peer, session: None, events: Vec::new(), deliveries: Vec::new() };
        client.turn(self);
        if client.machine.is_open() {
            client.session = Some(client.machine.begin().unwrap());
            client.turn(self);
        }
        client
    }

    /// A connection with a token of the policy `iothubowner`.
    pub(super) fn service(&self) -> Client {
        let mut client = self.connect();
        assert_eq!(
            client.put_token(self, &token("iothubowner", "localhost", self.unix() + HOUR), "localhost"),
            200
        );
        client
    }

    /// A connection with a device's own token.
    pub(super) fn device(&self, id: &str) -> Client {
        let mut client = self.connect();
        let resource = format!("localhost/devices/{id}");
        assert_eq!(client.put_token(self, &device_token(id, self.unix() + HOUR), &resource), 200);
        client
    }
}

pub(super) fn owner() -> SharedKey {
    SharedKey::from_bytes(b"owner").unwrap()
}

pub(super) fn token(policy: &str, resource: &str, expiry: u64) -> String {
    Signer::new(Some(policy.into()), crate::hub::policy_key(&owner(), policy)).token(resource, expiry)
}

pub(super) fn device_token(id: &str, expiry: u64) -> String {
    let key = device_key(&owner(), &DeviceId::new(id).unwrap());
    Signer::new(None, key).token(&format!("localhost/devices/{id}"), expiry)
}

/// A message that a client has got.
#[derive(Debug)]
pub(super) struct Got {
    pub(super) link: LinkId,
    pub(super) id: u32,
    pub(super) tag: Bytes,
    pub(super) settled: bool,
    whole: bool,
    bytes: BytesMut,
}

impl Got {
    pub(super) fn sections(&self) -> Sections {
        Sections::parse(&Bytes::copy_from_slice(&self.bytes), &Limits::WIRE).unwrap()
    }

    pub(super) fn body(&self) -> Vec<u8> {
        match self.sections().body() {
            fieldgate_amqp::message::Body::Data(data) => data.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    /// A message annotation, as text.
    pub(super) fn annotation(&self, name: &str) -> Option<String> {
        let sections = self.sections();
        sections.message_annotations().find(|(key, _)| key.as_str() == Some(name)).map(|(_, value)| {
            match value {
                Value::Str(text) | Value::Symbol(text) => text.to_owned(),
                other => format!("{other:?}"),
            }
        })
    }
}

/// A client, and the hub's end of its connection.
pub(super) struct Client {
    pub(super) machine: Connection,
    pub(super) peer: Peer,
    pub(super) session: Option<SessionId>,
    /// What has come and is no transfer.
    pub(super) events: Vec<Event>,
    pub(super) deliveries: Vec<Got>,
}

impl Client {
    /// Carries bytes both ways until both sides are quiet.
    pub(super) fn turn(&mut self, world: &World) {
        loop {
            let up = self.machine.poll_transmit();
            let quiet = up.is_none();
            if let Some(bytes) = up {
                self.peer.machine.handle_input(world.now.instant, bytes);
            }
            self.peer.handle_events(world.now);
            self.peer.pump(world.now, 0);
            let down = self.peer.machine.poll_transmit();
            let quiet = quiet && down.is_none() && !self.peer.is_stalled();
            if let Some(bytes) = down {
                self.machine.handle_input(world.now.instant, bytes);
            }
            self.drain();
            if quiet && self.machine.output_bytes() == 0 {
                return;
            }
        }
    }

    fn drain(&mut self) {
        while let Some(event) = self.machine.poll_event() {
            match event {
                Event::Transfer { link, delivery_id, first, transfer, .. } => {
                    if first {
                        let tag = Bytes::copy_from_slice(transfer.delivery_tag().unwrap());
                        let settled = transfer.settled.unwrap_or(false);
                        self.deliveries.push(Got {
                            link,
                            id: delivery_id,
                            tag,
                            settled,
                            whole: false,
                            bytes: BytesMut::new(),
                        });
                    }
                    let got = self.deliveries.iter_mut().find(|got| got.link == link && !got.whole).unwrap();
                    got.bytes.extend_from_slice(transfer.payload_slice());
                    got.whole = !transfer.more;
                }
                Event::Detached { link, ref detach, answered, .. } => {
                    if !answered {
                        self.machine.detach(link, detach.closed(), None);
                    }
                    self.events.push(event);
                }
                event => self.events.push(event),
            }
        }
    }

    /// Puts a token, over links that are made at the first time; gives the status.
    pub(super) fn put_token(&mut self, world: &World, token: &str, name: &str) -> i32 {
        let links = ["cbs-out", "cbs-in"].map(|name| self.find(name));
        let [out, back] = match links {
            [Some(out), Some(back)] => [out, back],
            _ => {
                let out = self.sender(world, "cbs-out", "$cbs").unwrap();
                let back = self.receiver(world, "cbs-in", "$cbs", 10).unwrap();
                [out, back]
            }
        };
        let mut request = BytesMut::new();
        let properties = PropertiesOut { message_id: Some(Value::Str("q")), ..PropertiesOut::default() };
        put_properties(&mut request, &properties);
        let form = [("operation", "put-token"), ("type", "servicebus.windows.net:sastoken"), ("name", name)];
        put_application_properties(&mut request, form.map(|(name, value)| (name, Value::Str(value))));
        put_amqp_value(&mut request, &Value::Str(token));
        self.send(out, &request);
        self.give(world, back, 10);
        let at = self.deliveries.iter().position(|got| got.link == back).expect("$cbs answers");
        let answer = self.deliveries.remove(at);
        let sections = answer.sections();
        assert_eq!(sections.properties().correlation_id(), Some(Value::Str("q")));
        sections
            .application_properties()
            .find_map(|(name, value)| match (name, value) {
                (Value::Str("status-code"), Value::Int(status)) => Some(status),
                _ => None,
            })
            .unwrap()
    }

    fn find(&self, name: &str) -> Option<LinkId> {
        let links = self.machine.session_links(self.session.unwrap());
        links.into_iter().find(|link| self.machine.link(*link).is_some_and(|info| info.name == name))
    }

    /// Attaches a sender; the hub's condition when it refuses.
    pub(super) fn sender(&mut self, world: &World, name: &str, address: &str) -> Result<LinkId, String> {
        let target = TargetOut { address: Some(address), ..TargetOut::default() }.build();
        let source = SourceOut::default().build();
        self.attach(world, &AttachOut::sender(name, &source, &target).build())
    }

    /// Attaches a receiver and gives it credit.
    pub(super) fn receiver(
        &mut self,
        world: &World,
        name: &str,
        address: &str,
        credit: u32,
    ) -> Result<LinkId, String> {
        self.receiver_with(world, name, address, credit, SndSettleMode::Mixed, RcvSettleMode::First)
    }

    pub(super) fn receiver_with(
        &mut self,
        world: &World,
        name: &str,
        address: &str,
        credit: u32,
        snd_settle_mode: SndSettleMode,
        rcv_settle_mode: RcvSettleMode,
    ) -> Result<LinkId, String> {
        let source = SourceOut { address: Some(address), ..SourceOut::default() }.build();
        let target = TargetOut::default().build();
        let attach =
            AttachOut { snd_settle_mode, rcv_settle_mode, ..AttachOut::receiver(name, &source, &target) };
        let link = self.attach(world, &attach.build())?;
        self.give(world, link, credit);
        Ok(link)
    }

    pub(super) fn attach(&mut self, world: &World, attach: &Attach) -> Result<LinkId, String> {
        let link = self.machine.attach(self.session.unwrap(), attach).unwrap();
        self.turn(world);
        match self.take_detach(link) {
            None => Ok(link),
            Some(detach) => {
                // A refusal is an attach without the terminus, then a detach that closes.
                assert!(detach.closed());
                let answer = self.take_attach(link).expect("the attach is answered");
                let ours = if attach.role() == Role::Sender { answer.target() } else { answer.source() };
                assert!(ours.is_none(), "a refusal gives no terminus");
                Err(detach.error().expect("a refusal has an error").condition().to_owned())
            }
        }
    }

    pub(super) fn take_attach(&mut self, link: LinkId) -> Option<Attach> {
        let is = |event: &Event| matches!(event, Event::Attached { link: of, .. } if *of == link);
        match self.events.remove(self.events.iter().position(is)?) {
            Event::Attached { attach, .. } => Some(attach),
            _ => None,
        }
    }

    pub(super) fn take_detach(&mut self, link: LinkId) -> Option<Detach> {
        let is = |event: &Event| matches!(event, Event::Detached { link: of, .. } if *of == link);
        match self.events.remove(self.events.iter().position(is)?) {
            Event::Detached { detach, .. } => Some(detach),
            _ => None,
        }
    }

    /// Why the hub detached a link.
    pub(super) fn detached(&mut self, link: LinkId) -> Option<String> {
        Some(self.take_detach(link)?.error()?.condition().to_owned())
    }

    /// Why the hub closed the connection.
    pub(super) fn closed(&mut self) -> Option<String> {
        self.events.iter().find_map(|event| match event {
            Event::Closed(fieldgate_amqp::connection::CloseReason::Remote(error)) => {
                Some(error.as_ref().map_or("", |error| error.condition()).to_owned())
            }
            _ => None,
        })
    }

    pub(super) fn give(&mut self, world: &World, link: LinkId, credit: u32) {
        self.machine.flow(link, LinkFlow { link_credit: credit, ..LinkFlow::default() });
        self.turn(world);
    }

    /// Sends a message whole; the delivery-id.
    pub(super) fn send(&mut self, link: LinkId, message: &[u8]) -> u32 {
        self.send_as(link, 0, false, message)
    }

    pub(super) fn send_as(&mut self, link: LinkId, format: u32, settled: bool, message: &[u8]) -> u32 {
        let fields = TransferOut {
            delivery_tag: Some(b"tag"),
            message_format: Some(format),
            settled: Some(settled),
            ..TransferOut::default()
        };
        self.machine.transfer(link, fields, message).unwrap()
    }

    /// Sends a message with this body; what the hub makes of it: nothing is accepted, else the condition.
    pub(super) fn ask(&mut self, world: &World, link: LinkId, message: &[u8]) -> Result<(), String> {
        let id = self.send(link, message);
        self.turn(world);
        let disposition = self.disposition_of(id).expect("the hub says what became of it");
        assert!(disposition.settled && disposition.role == Role::Receiver);
        match fieldgate_amqp::performative::DeliveryState::decode(disposition.state().unwrap()).unwrap() {
            fieldgate_amqp::performative::DeliveryState::Accepted => Ok(()),
            fieldgate_amqp::performative::DeliveryState::Rejected(error) => {
                Err(error.expect("with a reason").condition().to_owned())
            }
            other => panic!("{other:?}"),
        }
    }

    /// The last disposition over a delivery.
    pub(super) fn disposition_of(&self, id: u32) -> Option<&Disposition> {
        self.events.iter().rev().find_map(|event| match event {
            Event::Disposition { disposition, .. }
                if (disposition.first..=disposition.last).contains(&id) =>
            {
                Some(disposition)
            }
            _ => None,
        })
    }

    /// Says what became of a delivery.
    pub(super) fn settle(&mut self, world: &World, id: u32, settled: bool, state: Option<&[u8]>) {
        let disposition =
            DispositionOut { role: Role::Receiver, first: id, last: id, settled, state, batchable: false };
        self.machine.disposition(self.session.unwrap(), disposition);
        self.turn(world);
    }

    pub(super) fn accept(&mut self, world: &World, id: u32) {
        self.settle(world, id, true, Some(ACCEPTED));
    }

    pub(super) fn take_deliveries(&mut self) -> Vec<Got> {
        std::mem::take(&mut self.deliveries)
    }
}

/// A message with this body.
pub(super) fn event(body: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    put_data(&mut out, body);
    out.freeze()
}

/// A command.
pub(super) fn command(device: &str, id: &str, ack: &str, body: &[u8]) -> Bytes {
    command_until(device, id, ack, body, None)
}

pub(super) fn command_until(
    device: &str,
    id: &str,
    ack: &str,
    body: &[u8],
    expiry: Option<Timestamp>,
) -> Bytes {
    let mut out = BytesMut::new();
    let to = format!("/devices/{device}/messages/devicebound");
    let properties = PropertiesOut {
        message_id: Some(Value::Str(id)),
        to: Some(&to),
        absolute_expiry_time: expiry.map(|expiry| expiry.0),
        ..PropertiesOut::default()
    };
    put_properties(&mut out, &properties);
    put_application_properties(&mut out, [("iothub-ack", Value::Str(ack))]);
    put_data(&mut out, body);
    out.freeze()
}

/// Whether a configuration lets a client hold the hub's frames back.
pub(super) fn narrow_window(incoming_window: u32) -> ConnectionConfig {
    ConnectionConfig { incoming_window, ..ConnectionConfig::default() }
}
