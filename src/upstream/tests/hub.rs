//! A hub that does what a test tells it, on the engine's server side.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use fieldgate_amqp::codec::{Limits, Value};
use fieldgate_amqp::connection::{Connection, ConnectionConfig, Event, LinkId, SessionId};
use fieldgate_amqp::endpoint::{
    CBS_NODE, CreditPolicy, OutgoingMessage, Receiver, ReceiverConfig, SendError, Sender, Unsettled,
};
use fieldgate_amqp::error::{AmqpError, Misuse};
use fieldgate_amqp::message::{
    Body, PropertiesOut, Sections, put_amqp_value, put_application_properties, put_data, put_properties,
};
use fieldgate_amqp::performative::{
    Attach, AttachOut, Condition, DeliveryState, DispositionOut, OpenOut, Role, SourceOut,
};
use fieldgate_amqp::sasl::{Mechanism, SaslCode};

/// What the hub does with tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cbs {
    Accepts,
    Refuses,
    GivesNoCredit,
    SaysNothing,
}

/// What the hub does without being told.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) cbs: Cbs,
    /// Credit for tokens, given once.
    pub(super) cbs_credit: u32,
    /// Credit for each link that a device attaches.
    pub(super) credit: u32,
    /// The condition that attaches are refused with.
    pub(super) refuses: Option<&'static str>,
    /// Attaches of devices' links are not answered at all.
    pub(super) ignores: bool,
    pub(super) max_message_bytes: Option<u64>,
    /// Audiences whose tokens are refused, with this status.
    pub(super) unwanted: Vec<(String, i32)>,
    /// The hub offers to relay.
    pub(super) relays: bool,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            cbs: Cbs::Accepts,
            cbs_credit: 10_000,
            credit: 100,
            refuses: None,
            ignores: false,
            max_message_bytes: None,
            unwanted: Vec::new(),
            relays: false,
        }
    }
}

/// What happened at the hub, over all its connections.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// Node and ticket of each message, in the order in which they came whole.
    pub(super) received: Vec<(String, u64)>,
    /// The tickets of messages whose first bytes came.
    pub(super) touched: Vec<u64>,
    /// What the hub said of a message.
    pub(super) said: HashMap<u64, Said>,
    /// What the gateway said of a command.
    pub(super) commands: Vec<(u64, Option<String>)>,
    pub(super) tokens: usize,
    /// The audience of each token.
    pub(super) audiences: Vec<String>,
    /// What was put, without the gateway's own.
    pub(super) texts: Vec<String>,
    /// Attaches of devices' links.
    pub(super) attaches: usize,
}

/// The hub's word on a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Accepted,
    /// Rejected, with a condition.
    Rejected(&'static str),
    NotTaken,
    /// Something that is no outcome, or settled without one.
    Vague,
}

/// A message that waits for the hub's word.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) session: SessionId,
    pub(super) link: LinkId,
    pub(super) delivery_id: u32,
    pub(super) ticket: u64,
}

/// Where messages come in.
#[derive(Debug)]
pub(super) struct Inlet {
    pub(super) session: SessionId,
    pub(super) node: String,
    receiver: Receiver,
}

/// Where commands go out.
#[derive(Debug)]
pub(super) struct CommandLink {
    pub(super) session: SessionId,
    pub(super) node: String,
    pub(super) sender: Sender,
}

pub(super) struct Hub {
    pub(super) machine: Connection,
    pub(super) inlets: Vec<Inlet>,
    pub(super) commands: Vec<CommandLink>,
    pub(super) pending: Vec<Pending>,
    unsettled: HashMap<SessionId, Unsettled<u64>>,
    /// The links of `$cbs`.
    tokens: Option<Receiver>,
    cbs: Option<Sender>,
    answers: Unsettled<()>,
}

impl Hub {
    pub(super) fn new(config: &ConnectionConfig, now: Instant) -> Self {
        Self {
            machine: Connection::server(Arc::new(config.clone()), &Mechanism::ALL, true, now),
            inlets: Vec::new(),
            commands: Vec::new(),
            pending: Vec::new(),
            unsettled: HashMap::new(),
            tokens: None,
            cbs: None,
            answers: Unsettled::new(),
        }
    }

    /// Handles what has come. True if there was something.
    pub(super) fn run(&mut self, script: &Script, records: &mut Records) -> bool {
        let mut any = false;
        while let Some(event) = self.machine.poll_event() {
            any = true;
            self.handle(event, script, records);
        }
        any
    }

    fn handle(&mut self, event: Event, script: &Script, records: &mut Records) {
        let machine = &mut self.machine;
        match event {
            Event::SaslInit { .. } => machine.sasl_outcome(SaslCode::Ok),
            Event::Opened(_) => {
                let config = machine.config();
                let offered: &[&str] = if script.relays { &["ANONYMOUS-RELAY"] } else { &[] };
                let open = OpenOut {
                    container_id: &config.container_id,
                    max_frame_size: config.max_frame_bytes,
                    channel_max: config.channel_max,
                    offered_capabilities: offered,
                    ..OpenOut::default()
                };
                let open = open.build();
                machine.open(open);
            }
            Event::SessionBegun { session, .. } => machine.accept_begin(session),
            Event::Attached { link, session, attach, .. } => {
                self.attached(link, session, &attach, script, records)
            }
            Event::Transfer { link, delivery_id, transfer, .. }
                if self.tokens.as_ref().is_some_and(|receiver| receiver.link() == link) =>
            {
                let Some(receiver) = &mut self.tokens else { return };
                if let Ok(Some(delivery)) = receiver.on_transfer(machine, &transfer, delivery_id) {
                    receiver.accept(machine, delivery_id, delivery_id);
                    records.tokens += 1;
                    self.judge_token(&delivery.payload, script, records);
                }
            }
            Event::Transfer { link, session, delivery_id, first, transfer } => {
                let Some(inlet) = self.inlets.iter_mut().find(|inlet| inlet.receiver.link() == link) else {
                    return;
                };
                if first {
                    records.touched.extend(ticket(&transfer.payload(), inlet.node.is_empty()));
                }
                let Ok(Some(delivery)) = inlet.receiver.on_transfer(machine, &transfer, delivery_id) else {
                    return;
                };
                let relayed = inlet.node.is_empty();
                let ticket = ticket(&delivery.payload, relayed).expect("a message of the test's own");
                let node = if relayed { to(&delivery.payload) } else { inlet.node.clone() };
                records.received.push((node, ticket));
                self.pending.push(Pending { session, link, delivery_id, ticket });
            }
            Event::Flow { link: Some(link), flow, .. } => {
                let senders = self.commands.iter_mut().map(|command| &mut command.sender);
                if let Some(sender) = senders.chain(&mut self.cbs).find(|sender| sender.link() == link) {
                    sender.on_flow(machine, &flow);
                    sender.drained(machine);
                }
                let mut receivers = self.inlets.iter_mut().map(|inlet| &mut inlet.receiver);
                if let Some(receiver) = receivers.find(|receiver| receiver.link() == link) {
                    receiver.on_flow(machine, &flow);
                }
            }
            Event::Disposition { session, disposition } => {
                if let Some(unsettled) = self.unsettled.get_mut(&session) {
                    unsettled.on_disposition(machine, session, &disposition, |settled| {
                        let state = settled.state.map(|state| match state {
                            DeliveryState::Rejected(_) => String::from("Rejected"),
                            state => format!("{state:?}"),
                        });
                        records.commands.push((settled.value, state));
                    });
                }
            }
            Event::Detached { link, answered, .. } => {
                if !answered {
                    machine.detach(link, true, None);
                }
                self.forget(|of| of != link);
            }
            Event::SessionEnded { session, .. } => self.forget_session(session),
            Event::Flow { link: None, .. } | Event::Authenticated | Event::Closed(_) => {}
        }
    }

    fn attached(
        &mut self,
        link: LinkId,
        session: SessionId,
        attach: &Attach,
        script: &Script,
        records: &mut Records,
    ) {
        let node = match attach.role() {
            Role::Sender => attach.target(),
            Role::Receiver => attach.source(),
        };
        let node = node.expect("a node").address().map(str::to_owned);
        assert!(node.is_some() || script.relays, "a hub that does not relay wants names");
        // The one that leads anywhere has none.
        let node = node.unwrap_or_default();
        let is_cbs = node == CBS_NODE;
        records.attaches += usize::from(!is_cbs);
        if let (false, Some(condition)) = (is_cbs, script.refuses) {
            let error = AmqpError::new(&Condition::from(condition), Some("scripted"));
            return self.machine.refuse_attach(link, error);
        }
        if script.ignores && !is_cbs {
            return;
        }
        let (source, target) = (attach.source(), attach.target());
        let nothing = SourceOut::default().build();
        let answer = AttachOut {
            role: attach.role().other(),
            source: source.as_ref(),
            target: target.as_ref(),
            initial_delivery_count: Some(0),
            max_message_size: script.max_message_bytes.filter(|_| !is_cbs),
            ..AttachOut::receiver(attach.name(), &nothing, &nothing)
        };
        self.machine.answer_attach(link, &answer.build());
        match (attach.role(), is_cbs) {
            (Role::Sender, _) => {
                let config = ReceiverConfig {
                    credit: CreditPolicy::Manual,
                    max_message_bytes: 8 * 1024 * 1024,
                    ..ReceiverConfig::default()
                };
                let mut receiver = Receiver::new(link, config);
                let credit = match (is_cbs, script.cbs) {
                    (true, Cbs::GivesNoCredit) => 0,
                    (true, _) => script.cbs_credit,
                    (false, _) => script.credit,
                };
                if credit > 0 {
                    receiver.give_credit(&mut self.machine, credit, false);
                }
                if is_cbs {
                    self.tokens = Some(receiver);
                } else {
                    self.inlets.push(Inlet { session, node, receiver });
                }
            }
            (Role::Receiver, true) => self.cbs = Some(Sender::new(link)),
            (Role::Receiver, false) => {
                self.unsettled.entry(session).or_default();
                self.commands.push(CommandLink { session, node, sender: Sender::new(link) });
            }
        }
    }

    fn judge_token(&mut self, request: &Bytes, script: &Script, records: &mut Records) {
        let request = Sections::parse(request, &Limits::WIRE).expect("a sound request");
        let name = request.application_properties().find(|(key, _)| key.as_str() == Some("name"));
        let name = name.and_then(|(_, value)| value.as_str().map(str::to_owned)).expect("an audience");
        if let Body::Value(text) = request.body()
            && let Some(text) = text.as_str().filter(|text| *text != "secret")
        {
            records.texts.push(text.to_owned());
        }
        records.audiences.push(name.clone());
        let unwanted = script.unwanted.iter().find(|(of, _)| *of == name).map(|(_, status)| *status);
        let status = match (script.cbs, unwanted) {
            (Cbs::Accepts, None) => 200,
            (Cbs::Accepts, Some(status)) => status,
            (Cbs::Refuses, _) => 401,
            (Cbs::GivesNoCredit | Cbs::SaysNothing, _) => return,
        };
        let correlation_id = request.properties().message_id();
        let mut out = BytesMut::new();
        put_properties(&mut out, &PropertiesOut { correlation_id, ..PropertiesOut::default() });
        put_application_properties(&mut out, [("status-code", Value::Int(status))]);
        put_amqp_value(&mut out, &Value::Null);
        let message = OutgoingMessage { message: &out, ..OutgoingMessage::default() };
        let sender = self.cbs.as_mut().expect("the answer's link was attached first");
        match sender.send(&mut self.machine, &mut self.answers, message, ()) {
            // The gateway has ended the session meanwhile.
            Ok(_) | Err(SendError { reason: Misuse::State | Misuse::UnknownLink, .. }) => {}
            Err(error) => panic!("credit for an answer: {error:?}"),
        }
    }

    /// Gives credit on an inlet.
    pub(super) fn credit(&mut self, inlet: usize, credit: u32, drain: bool) {
        self.inlets[inlet].receiver.give_credit(&mut self.machine, credit, drain);
    }

    /// The link of an inlet.
    pub(super) fn link(&self, inlet: usize) -> LinkId {
        self.inlets[inlet].receiver.link()
    }

    /// Says something of one of the pending messages.
    pub(super) fn judge(&mut self, at: usize, state: Option<&[u8]>, settled: bool) -> u64 {
        let Pending { session, delivery_id, ticket, .. } = self.pending[at];
        if settled {
            self.pending.swap_remove(at);
        }
        let (first, last) = (delivery_id, delivery_id);
        let disposition =
            DispositionOut { role: Role::Receiver, first, last, settled, state, batchable: false };
        self.machine.disposition(session, disposition);
        ticket
    }

    /// Sends a command over a link, if the device takes it.
    pub(super) fn command(&mut self, at: usize, number: u64) -> bool {
        let CommandLink { session, sender, .. } = &mut self.commands[at];
        let unsettled = self.unsettled.get_mut(session).expect("made with the link");
        let mut message = BytesMut::new();
        put_data(&mut message, &number.to_be_bytes());
        let message = OutgoingMessage { message: &message, ..OutgoingMessage::default() };
        sender.send(&mut self.machine, unsettled, message, number).is_ok()
    }

    /// As [`command`](Self::command), settled.
    pub(super) fn settled_command(&mut self, at: usize, number: u64) -> bool {
        let mut message = BytesMut::new();
        put_data(&mut message, &number.to_be_bytes());
        let message = OutgoingMessage { message: &message, ..OutgoingMessage::default() };
        self.commands[at].sender.send_settled(&mut self.machine, message).is_ok()
    }

    /// Detaches one of the devices' links.
    pub(super) fn detach(&mut self, link: LinkId, condition: Option<&str>) {
        let error = condition.map(|condition| AmqpError::new(&condition.into(), Some("scripted")));
        self.machine.detach(link, true, error);
        self.forget(|of| of != link);
    }

    /// Ends a session.
    pub(super) fn end(&mut self, session: SessionId, condition: Option<&str>) {
        let error = condition.map(|condition| AmqpError::new(&condition.into(), Some("scripted")));
        self.machine.end(session, error);
        self.forget_session(session);
    }

    fn forget(&mut self, keep: impl Fn(LinkId) -> bool) {
        self.inlets.retain(|inlet| keep(inlet.receiver.link()));
        self.commands.retain(|command| keep(command.sender.link()));
        self.pending.retain(|pending| keep(pending.link));
    }

    fn forget_session(&mut self, session: SessionId) {
        self.inlets.retain(|inlet| inlet.session != session);
        self.commands.retain(|command| command.session != session);
        self.pending.retain(|pending| pending.session != session);
        self.unsettled.remove(&session);
    }
}

/// The number at the start of a message's body, as far as the message has come. `has_to`: its properties hold where
/// it goes.
fn ticket(message: &Bytes, has_to: bool) -> Option<u64> {
    let sections = Sections::parse(message, &Limits::WIRE);
    let body = match sections.as_ref().map(Sections::body) {
        Ok(Body::Data(data)) => data,
        // The first frame of a longer one: a data section of 32-bit length, behind 8 bytes of head; and behind the
        // properties, whose length is their fifth byte, where there are any.
        _ if has_to || message.starts_with(b"\x00\x53\x73") => {
            let properties = 5 + usize::from(*message.get(4)?);
            message.slice((properties + 8).min(message.len())..)
        }
        _ => message.slice(8.min(message.len())..),
    };
    body.first_chunk().map(|number| u64::from_be_bytes(*number))
}

/// Where a message says that it goes.
fn to(message: &Bytes) -> String {
    let sections = Sections::parse(message, &Limits::WIRE).expect("a sound message");
    sections.properties().to().expect("a relayed message says where it goes").to_owned()
}
