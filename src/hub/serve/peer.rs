//! One peer of the hub: its connection machine, what its tokens allow, its links and what was lent over them.
//!
//! No I/O here: [`super::connection`] feeds the machine and sends what it says. A turn is [`Peer::handle_events`]
//! and [`Peer::pump`].

use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fieldgate_amqp::connection::{
    CloseReason, Connection, ConnectionConfig, Event, LinkFlow, LinkId, SessionId,
};
use fieldgate_amqp::endpoint::{CreditPolicy, Receiver, ReceiverConfig, Sender, Settlements};
use fieldgate_amqp::error::{AmqpError, Condition};
use fieldgate_amqp::performative::{Attach, Disposition, Flow, Open, Role, Transfer};
use fieldgate_amqp::sasl::{Mechanism, PlainCredentials, SaslCode};

use super::super::address::Node;
use super::super::auth::Grants;
use super::super::cbs;
use super::super::state::Refusal;
use super::super::telemetry::{
    CommandQueued, ConnectionNumber, DeviceRegistered, EventsAppended, LinkDetached, LinkReason, LinkRefused,
    MessageKind, MessageRefused, SessionFailed, TokenAccepted, TokenRefused,
};
use super::super::time::Now;
use super::attach;
use super::lent::Loans;
use super::links::{Kind, Link, Links};
use super::send::{end_loan, give_back};
use super::shared::{Shared, Signal, Topic};
use crate::table::Table;
use crate::telemetry::emit;

/// What clients may authenticate with. Most bring no identity here and put tokens afterwards.
pub(super) const MECHANISMS: [Mechanism; 3] = [Mechanism::Mssbcbs, Mechanism::Anonymous, Mechanism::Plain];

/// The most tokens of a connection: one for each device behind a gateway.
const MAX_TOKENS: usize = 1024;
/// How long a connection may stay without a good token.
const PROOF_TIME_OUT: Duration = Duration::from_secs(60);
/// Deliveries that a device or service may have on the way to us.
const CREDIT: u32 = 1000;
/// Requests to `$cbs` that may be on the way, and answers that wait for the peer to give credit.
const MAX_REQUESTS: u32 = 100;
/// Bytes of deliveries of one connection that have not come whole.
const MAX_PARTIAL_BYTES: usize = 8 * 1024 * 1024;

/// What every connection of the hub is told.
pub(super) fn connection_config(container_id: String) -> ConnectionConfig {
    ConnectionConfig {
        container_id,
        // A worker of a gateway has a session for each of its devices, and as many of them as it may have connections.
        channel_max: 8191,
        max_links: 4 * 8192,
        // Announced as 4 minutes, as IoT Hub does; twice that ends a silent connection.
        idle_time_out: Some(Duration::from_secs(240)),
        ..ConnectionConfig::default()
    }
}

/// One peer.
pub(super) struct Peer {
    pub(super) machine: Connection,
    pub(super) signal: Rc<Signal>,
    pub(super) number: ConnectionNumber,
    pub(super) shared: Rc<Shared>,
    grants: Grants,
    /// The identity came by SASL, so the connection ends with the token.
    is_plain: bool,
    /// Since when no token is good.
    unproven_since: Option<Instant>,
    pub(super) links: Links,
    pub(super) loans: Table<SessionId, Loans>,
    settlements: Settlements,
    /// Answers of `$cbs` that wait for credit.
    pub(super) answers: VecDeque<Bytes>,
    /// The delivery-tag of the next answer.
    pub(super) next_tag: u32,
    partial_bytes: usize,
    /// Links that have something to send, once what is written has gone out.
    pub(super) stalled: BTreeSet<LinkId>,
    /// Links that have something to send, once the peer has opened a session's window.
    pub(super) shut_out: BTreeSet<LinkId>,
    /// Sessions with frames that wait for their window.
    pub(super) held: BTreeSet<SessionId>,
    /// Why the connection is over.
    pub(super) reason: Option<CloseReason>,
}

impl Peer {
    /// A peer that has just connected.
    pub(super) fn new(
        config: Arc<ConnectionConfig>,
        number: ConnectionNumber,
        shared: Rc<Shared>,
        now: Instant,
    ) -> Self {
        Self {
            machine: Connection::server(config, &MECHANISMS, true, now),
            signal: Rc::default(),
            number,
            shared,
            grants: Grants::new(MAX_TOKENS),
            is_plain: false,
            unproven_since: Some(now),
            links: Links::default(),
            loans: Table::default(),
            settlements: Settlements::new(),
            answers: VecDeque::new(),
            next_tag: 0,
            partial_bytes: 0,
            stalled: BTreeSet::new(),
            shut_out: BTreeSet::new(),
            held: BTreeSet::new(),
            reason: None,
        }
    }

    /// Handles all that has come, and what others have done to this peer.
    pub(super) fn handle_events(&mut self, now: Now) {
        while let Some(event) = self.machine.poll_event() {
            self.handle_event(now, event);
        }
        for link in self.signal.take_evicted() {
            let condition = Condition::Other("com.microsoft:link-creation-conflict".into());
            let refusal = Refusal::new(condition, "another link receives this device's commands now");
            self.detach(link, LinkReason::Conflict, &refusal);
        }
        self.expire(now);
        self.settlements.flush(&mut self.machine);
    }

    /// Sends what there is to send on links that were woken, as long as there is room; `unwritten_bytes` have left
    /// the machine and not yet the process.
    pub(super) fn pump(&mut self, now: Now, unwritten_bytes: usize) {
        let mut links = self.signal.take_ready();
        links.append(&mut self.stalled);
        if !self.machine.is_open() {
            self.shut_out.clear();
            return;
        }
        for link in links {
            self.pump_link(now, link, unwritten_bytes);
        }
    }

    /// Whether there is more to send once what is written has gone out.
    pub(super) fn is_stalled(&self) -> bool {
        !self.stalled.is_empty()
    }

    /// When this must be called again although nothing has come.
    pub(super) fn deadline(&self, now: Now) -> Option<Instant> {
        if self.machine.is_closed() {
            return None;
        }
        let proof = self.unproven_since.map(|since| since + PROOF_TIME_OUT);
        let expiry = self.grants.next_expiry().and_then(|expiry| {
            let left =
                Duration::from_secs(expiry).saturating_sub(Duration::from_millis(now.wall.0.unsigned_abs()));
            now.instant.checked_add(left)
        });
        [proof, expiry].into_iter().flatten().min()
    }

    /// The stream is gone: nobody will say any more what came of loans.
    pub(super) fn lose(&mut self) {
        self.forget_links(|_| true);
    }

    fn handle_event(&mut self, now: Now, event: Event) {
        match event {
            Event::SaslInit { mechanism, plain, .. } => self.on_sasl_init(now, mechanism, plain.as_ref()),
            Event::Opened(_) => {
                let open: Open = self.machine.config().open();
                self.machine.open(open);
            }
            Event::SessionBegun { session, .. } => self.machine.accept_begin(session),
            Event::SessionEnded { session, error } => {
                if let Some(error) = &error {
                    emit(SessionFailed { connection: self.number, error });
                }
                self.held.remove(&session);
                self.stalled.append(&mut self.shut_out);
                self.forget_links(|link| link.session == session);
                self.loans.remove(session);
            }
            Event::Attached { link, session, attach, .. } => self.on_attach(now, link, session, &attach),
            Event::Detached { link, detach, answered, .. } => {
                if !answered {
                    self.machine.detach(link, detach.closed(), None);
                }
                self.forget(link);
            }
            Event::Flow { link, flow, .. } => self.on_flow(link, &flow),
            Event::Transfer { link, delivery_id, transfer, .. } => {
                self.on_transfer(now, link, delivery_id, &transfer);
            }
            Event::Disposition { session, disposition } => self.on_disposition(now, session, &disposition),
            // Only a client hears this.
            Event::Authenticated => {}
            Event::Closed(reason) => {
                self.reason = Some(reason);
                self.lose();
            }
        }
    }

    fn on_sasl_init(&mut self, now: Now, mechanism: Mechanism, plain: Option<&PlainCredentials>) {
        let code = match (mechanism, plain) {
            (Mechanism::Anonymous | Mechanism::Mssbcbs, _) => SaslCode::Ok,
            (Mechanism::Plain, Some(plain)) => {
                let state = self.shared.state.borrow();
                match state.authority.judge_plain(&plain.user, &plain.password, now.unix_seconds()) {
                    Ok(grant) => {
                        emit(TokenAccepted { connection: self.number, grant: &grant });
                        self.is_plain = true;
                        self.unproven_since = None;
                        match self.grants.put(grant) {
                            Ok(()) => SaslCode::Ok,
                            Err(_) => SaslCode::SysTemp,
                        }
                    }
                    Err(error) => {
                        emit(TokenRefused { connection: self.number, error: &error });
                        SaslCode::Auth
                    }
                }
            }
            (Mechanism::Plain, None) | (Mechanism::External, _) => SaslCode::Auth,
        };
        self.machine.sasl_outcome(code);
    }

    fn on_attach(&mut self, now: Now, id: LinkId, session: SessionId, attach: &Attach) {
        let result = attach::node(attach).and_then(|node| {
            let kind = self.admit(now, id, &node, attach)?;
            Ok((node, kind))
        });
        match result {
            Ok((node, mut kind)) => {
                self.machine.answer_attach(id, &attach::answer(attach, &node));
                if let Some(receiver) = kind.receiver() {
                    receiver.on_attached(&mut self.machine);
                }
                self.links.insert(id, Link { session, node, kind, partial_bytes: 0 });
            }
            Err(refusal) => {
                let address = attach::address(attach);
                let reason = reason(&refusal);
                emit(LinkRefused {
                    connection: self.number,
                    address: address.as_deref(),
                    reason,
                    refusal: &refusal,
                });
                self.machine.refuse_attach(id, AmqpError::from(&refusal));
            }
        }
    }

    /// What a link will do, if it may.
    fn admit(&mut self, now: Now, id: LinkId, node: &Node, attach: &Attach) -> Result<Kind, Refusal> {
        let config = ReceiverConfig {
            credit: CreditPolicy::Prefetch(CREDIT),
            max_message_bytes: attach::max_message_bytes(node),
            ..ReceiverConfig::default()
        };
        if *node == Node::Cbs {
            return self.admit_to_cbs(id, attach, config);
        }
        let grant = self.grants.find(node, now.unix_seconds()).ok_or_else(|| attach::unauthorized(node))?;
        let origin = match node.device() {
            None => None,
            Some(device) => {
                let (origin, is_new) = self.shared.state.borrow_mut().admit(now.wall, device, grant)?;
                if is_new {
                    emit(DeviceRegistered { device });
                }
                Some(origin)
            }
        };
        let subscribe = |topic| {
            self.shared.subscribe(topic, &self.signal, id).map_err(|_| {
                Refusal::new(
                    Condition::ResourceLimitExceeded,
                    "the partition has as many readers in this consumer group as it may",
                )
            })
        };
        Ok(match (node, origin) {
            (Node::DeviceEvents(_), Some(origin)) => {
                Kind::Telemetry { receiver: Receiver::new(id, config), origin }
            }
            (Node::DeviceCommands(device), Some(_)) => Kind::Device {
                sender: Sender::new(id),
                device: device.clone(),
                _subscription: subscribe(Topic::Commands(device.clone()))?,
            },
            (Node::Commands, _) => Kind::Commands(Receiver::new(id, config)),
            (Node::Feedback, _) => {
                Kind::Feedback { sender: Sender::new(id), _subscription: subscribe(Topic::Feedback)? }
            }
            (Node::Events { group, partition }, _) => {
                let position = attach::position(attach)?;
                let next = {
                    let state = self.shared.state.borrow();
                    if !state.log.has_partition(*partition) {
                        let description = format!("the hub has no partition {partition}");
                        return Err(Refusal::new(Condition::NotFound, description));
                    }
                    state.log.seek(*partition, position)
                };
                Kind::Events {
                    sender: Sender::new(id),
                    partition: *partition,
                    next,
                    settled: attach::sends_settled(attach),
                    _subscription: subscribe(Topic::Events(*partition, group.clone()))?,
                }
            }
            (Node::Cbs | Node::Missing(_) | Node::DeviceEvents(_) | Node::DeviceCommands(_), _) => {
                return Err(Refusal::new(Condition::InternalError, "the node was not admitted"));
            }
        })
    }

    fn admit_to_cbs(&mut self, id: LinkId, attach: &Attach, config: ReceiverConfig) -> Result<Kind, Refusal> {
        let role = attach.role();
        let is_taken = self.links.iter_mut().any(|(_, link)| match link.kind {
            Kind::TokenRequests(_) => role == Role::Sender,
            Kind::TokenResponses { .. } => role == Role::Receiver,
            _ => false,
        });
        if is_taken {
            return Err(Refusal::new(
                Condition::NotAllowed,
                "the connection has a link to $cbs in this direction",
            ));
        }
        Ok(match role {
            Role::Sender => {
                let credit = CreditPolicy::Prefetch(MAX_REQUESTS);
                Kind::TokenRequests(Receiver::new(id, ReceiverConfig { credit, ..config }))
            }
            Role::Receiver => {
                Kind::TokenResponses { sender: Sender::new(id), settled: attach::sends_settled(attach) }
            }
        })
    }

    fn on_flow(&mut self, link: Option<LinkId>, flow: &Flow) {
        // Whichever session's window has opened, the links that waited look again.
        self.stalled.append(&mut self.shut_out);
        let Some(id) = link else { return };
        let Some(link) = self.links.get_mut(id) else { return };
        if let Some(sender) = link.kind.sender() {
            sender.on_flow(&mut self.machine, flow);
            self.stalled.insert(id);
        } else if flow.echo
            && let Some(info) = self.machine.link(id)
        {
            let link_credit = info.credit;
            self.machine.flow(id, LinkFlow { link_credit, ..LinkFlow::default() });
        }
    }

    fn on_transfer(&mut self, now: Now, id: LinkId, delivery_id: u32, transfer: &Transfer) {
        let Some(link) = self.links.get_mut(id) else { return };
        let Some(receiver) = link.kind.receiver() else { return };
        let taken = receiver.on_transfer(&mut self.machine, transfer, delivery_id);
        let delivery = match taken {
            Ok(None) if !transfer.aborted => return self.hold_partial(id, transfer.payload_slice().len()),
            Ok(whole) => {
                self.partial_bytes -= std::mem::take(&mut link.partial_bytes);
                let Some(delivery) = whole else { return };
                delivery
            }
            // The receiver has detached the link.
            Err(violation) => {
                let refusal = Refusal::new(Condition::from(&violation), violation.to_string());
                emit(LinkDetached { connection: self.number, reason: reason(&refusal), refusal: &refusal });
                return self.forget(id);
            }
        };
        let result = match &mut link.kind {
            Kind::TokenRequests(_) => {
                self.on_request(now, &delivery.payload);
                Ok(())
            }
            Kind::Telemetry { origin, .. } => {
                let appended = self.shared.state.borrow_mut().append(
                    now.wall,
                    origin,
                    delivery.message_format,
                    &delivery.payload,
                );
                appended
                    .map(|appended| {
                        emit(EventsAppended { device: &origin.device, appended });
                        self.shared.wake_readers(appended.partition);
                    })
                    .inspect_err(|refusal| {
                        let (connection, kind) = (self.number, MessageKind::Event);
                        emit(MessageRefused { connection, kind, device: Some(&origin.device), refusal });
                    })
            }
            Kind::Commands(_) => {
                let queued =
                    self.shared.state.borrow_mut().queue(now, delivery.message_format, &delivery.payload);
                queued
                    .map(|device| {
                        emit(CommandQueued { device: &device });
                        self.shared.wake_device(&device);
                        self.shared.changed.notify_one();
                    })
                    .inspect_err(|refusal| {
                        let (connection, kind) = (self.number, MessageKind::Command);
                        emit(MessageRefused { connection, kind, device: None, refusal });
                    })
            }
            Kind::TokenResponses { .. }
            | Kind::Device { .. }
            | Kind::Feedback { .. }
            | Kind::Events { .. } => Ok(()),
        };
        if delivery.settled {
            return;
        }
        let Some(receiver) = self.links.get_mut(id).and_then(|link| link.kind.receiver()) else { return };
        match result {
            Ok(()) => self.settlements.accept(&mut self.machine, receiver, delivery_id),
            Err(refusal) => {
                let error = AmqpError::from(&refusal);
                receiver.reject(&mut self.machine, delivery_id, delivery_id, Some(&error));
            }
        }
    }

    /// Counts the bytes of deliveries that have not come whole; too many of them end the link.
    fn hold_partial(&mut self, id: LinkId, bytes: usize) {
        let Some(link) = self.links.get_mut(id) else { return };
        link.partial_bytes += bytes;
        self.partial_bytes += bytes;
        if self.partial_bytes > MAX_PARTIAL_BYTES {
            let description = "too many deliveries of this connection have begun and not ended";
            let refusal = Refusal::new(Condition::ResourceLimitExceeded, description);
            self.detach(id, LinkReason::Limit, &refusal);
        }
    }

    fn on_request(&mut self, now: Now, request: &Bytes) {
        let (answer, result) = {
            let state = self.shared.state.borrow();
            cbs::handle(&state.authority, &mut self.grants, now.unix_seconds(), request)
        };
        match result {
            Ok(grant) => {
                self.unproven_since = None;
                emit(TokenAccepted { connection: self.number, grant: &grant });
            }
            Err(error) => emit(TokenRefused { connection: self.number, error: &error }),
        }
        // A peer that takes no answers gets the latest.
        if self.answers.len() >= MAX_REQUESTS as usize {
            self.answers.pop_front();
        }
        self.answers.push_back(answer);
        let answering =
            self.links.iter_mut().find(|(_, link)| matches!(link.kind, Kind::TokenResponses { .. }));
        if let Some((id, _)) = answering {
            self.stalled.insert(id);
        }
    }

    fn on_disposition(&mut self, now: Now, session: SessionId, disposition: &Disposition) {
        let Some(loans) = self.loans.get_mut(session) else { return };
        let shared = &self.shared;
        loans.on_disposition(&mut self.machine, session, disposition, |loan, how| {
            end_loan(shared, now, loan, how)
        });
    }

    /// Ends what rests on tokens that have expired.
    fn expire(&mut self, now: Now) {
        if self.machine.is_closed() {
            return;
        }
        if self.grants.expire(now.unix_seconds()) {
            if self.is_plain {
                let error = AmqpError::new(&Condition::UnauthorizedAccess, Some("the token has expired"));
                return self.machine.close(Some(error));
            }
            let unproven: Vec<(LinkId, Refusal)> = self
                .links
                .iter_mut()
                .filter(|(_, link)| link.node != Node::Cbs)
                .filter(|(_, link)| self.grants.find(&link.node, now.unix_seconds()).is_none())
                .map(|(id, link)| (id, attach::unauthorized(&link.node)))
                .collect();
            for (id, refusal) in unproven {
                self.detach(id, LinkReason::Unauthorized, &refusal);
            }
            if self.grants.next_expiry().is_none() {
                self.unproven_since = Some(now.instant);
            }
        }
        if self.unproven_since.is_some_and(|since| since + PROOF_TIME_OUT <= now.instant) {
            self.unproven_since = None;
            let error =
                AmqpError::new(&Condition::UnauthorizedAccess, Some("no valid token was put to $cbs"));
            self.machine.close(Some(error));
        }
    }

    pub(super) fn detach(&mut self, id: LinkId, reason: LinkReason, refusal: &Refusal) {
        if self.links.get(id).is_none() {
            return;
        }
        emit(LinkDetached { connection: self.number, reason, refusal });
        self.machine.detach(id, true, Some(AmqpError::from(refusal)));
        self.forget(id);
    }

    /// Forgets a link; what was lent over it goes back.
    fn forget(&mut self, id: LinkId) {
        let Some(link) = self.links.remove(id) else { return };
        self.partial_bytes -= link.partial_bytes;
        if let Some(loans) = self.loans.get_mut(link.session) {
            let mut returned = Vec::new();
            loans.lose_link(id, |loan| returned.push((loan.token, loan.lender.clone())));
            if loans.is_empty() {
                self.loans.remove(link.session);
            }
            // The subscription ends first, so that whoever is woken is whoever is left.
            drop(link);
            for (token, lender) in returned {
                give_back(&self.shared, token, &lender);
            }
        }
    }

    fn forget_links(&mut self, gone: impl Fn(&Link) -> bool) {
        let ids: Vec<LinkId> =
            self.links.iter_mut().filter(|(_, link)| gone(link)).map(|(id, _)| id).collect();
        ids.into_iter().for_each(|id| self.forget(id));
    }
}

fn reason(refusal: &Refusal) -> LinkReason {
    match refusal.condition {
        Condition::UnauthorizedAccess => LinkReason::Unauthorized,
        Condition::NotFound => LinkReason::NotFound,
        Condition::ResourceLimitExceeded => LinkReason::Limit,
        _ => LinkReason::Invalid,
    }
}
