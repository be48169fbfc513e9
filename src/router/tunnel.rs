//! A device connection and the hub connection that is its alone, paired.
//!
//! Sessions and links are paired one to one; what is said on one is said on the other, in
//! the raw form in which it came. Only what belongs to a side is written anew: channels,
//! handles, delivery ids and counts, session windows. The tunnel grants no credit, settles
//! nothing and invents no answer.
//!
//! ```text
//!  device ──attach──▶ this │ tunnel │ other ──attach──▶ hub
//!  device ◀─attach─── this │        │ other ◀─attach─── hub      the hub's answer is the device's
//!  device ──detach──▶ this │        │ other ──detach──▶ hub
//!  device ◀─detach─── this │        │ other ◀─detach─── hub      then the pair is forgotten
//! ```

use fieldgate_amqp::connection::{Connection, Event, LinkFlow, LinkId, SessionId};
use fieldgate_amqp::error::{AmqpError, Condition, Misuse};
use fieldgate_amqp::performative::{Attach, Detach, Disposition, DispositionOut, Flow, Role, Transfer};

use crate::table::Table;
use crate::telemetry::emit;

use super::deliveries::{Deliveries, Run};
use super::policy::Policy;
use super::telemetry::{DeliveriesExceeded, LinkRefused, LinkRouted, deliveries};

/// The most deliveries under way in one direction of a session: 24 bytes each.
///
/// Credit bounds them, but credit is the peers' affair.
const MAX_DELIVERIES: usize = 100_000;

/// Which connection of the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    /// The device's.
    Downstream,
    /// The hub's.
    Upstream,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Downstream => Self::Upstream,
            Self::Upstream => Self::Downstream,
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Downstream => 0,
            Self::Upstream => 1,
        }
    }
}

/// One end of a session pair.
#[derive(Debug)]
struct SessionEnd {
    peer: SessionId,
    /// Deliveries that came in on this end and went out on the other.
    passed: Deliveries<LinkId>,
}

/// One end of a link pair.
#[derive(Debug)]
struct LinkEnd {
    peer: LinkId,
    session: SessionId,
}

/// The ends of one side, by the ids of its connection.
#[derive(Debug, Default)]
struct Ends {
    sessions: Table<SessionId, SessionEnd>,
    links: Table<LinkId, LinkEnd>,
}

/// The paired sessions and links of two connections.
#[derive(Debug)]
pub(crate) struct Tunnel {
    ends: [Ends; 2],
    policy: Policy,
    runs: Vec<Run>,
}

impl Tunnel {
    /// A tunnel without sessions; `policy` says which addresses the device's links may name.
    pub(crate) fn new(policy: Policy) -> Self {
        Self { ends: [Ends::default(), Ends::default()], policy, runs: Vec::new() }
    }

    /// Passes on what happened on `this` (the connection of `side`) to `other`.
    ///
    /// `Opened`, `SaslInit` and `Closed` belong to whoever drives the connections and are not expected here.
    pub(crate) fn pass(&mut self, side: Side, event: Event, this: &mut Connection, other: &mut Connection) {
        match event {
            Event::SessionBegun { session, by_peer: true, .. } => self.begun(side, session, this, other),
            Event::SessionBegun { by_peer: false, .. } => {}
            Event::SessionEnded { session, error } => self.ended(side, session, error, other),
            Event::Attached { link, session, attach, by_peer: true } => {
                self.attached(side, link, session, &attach, this, other);
            }
            Event::Attached { link, attach, by_peer: false, .. } => self.answered(side, link, &attach, other),
            Event::Detached { link, detach, answered, .. } => {
                self.detached(side, link, &detach, answered, other)
            }
            Event::Flow { link: Some(link), flow, .. } => self.flow(side, link, &flow, this, other),
            Event::Flow { link: None, .. } => {}
            Event::Transfer { link, session, delivery_id, first, transfer } => {
                self.transfer(side, link, session, &transfer, delivery_id, first, this, other);
            }
            Event::Disposition { session, disposition } => {
                self.disposition(side, session, &disposition, this, other)
            }
            Event::SaslInit { .. } | Event::Authenticated | Event::Opened(_) | Event::Closed(_) => {}
        }
    }

    /// Bytes that wait until the peer of `side` opens the windows of its sessions.
    pub(crate) fn held_bytes(&self, side: Side, connection: &Connection) -> usize {
        let sessions = self.ends[side.index()].sessions.iter();
        sessions.map(|(session, _)| connection.session_backlog_bytes(session)).sum()
    }

    /// Sessions, links and deliveries that are kept, those of both sides.
    #[cfg(test)]
    pub(super) fn kept(&self) -> (usize, usize, usize) {
        let sessions = self.ends.iter().map(|ends| ends.sessions.len()).sum();
        let links = self.ends.iter().map(|ends| ends.links.len()).sum();
        let ends = self.ends.iter().flat_map(|ends| ends.sessions.iter());
        (sessions, links, ends.map(|(_, end)| end.passed.len()).sum())
    }

    fn ends(&mut self, side: Side) -> &mut Ends {
        &mut self.ends[side.index()]
    }

    fn begun(&mut self, side: Side, session: SessionId, this: &mut Connection, other: &mut Connection) {
        match other.begin() {
            Ok(peer) => {
                this.accept_begin(session);
                self.ends(side).sessions.insert(session, SessionEnd { peer, passed: Deliveries::default() });
                let end = SessionEnd { peer: session, passed: Deliveries::default() };
                self.ends(side.other()).sessions.insert(peer, end);
            }
            Err(misuse) => {
                this.accept_begin(session);
                this.end(session, Some(reason(misuse)));
            }
        }
    }

    fn ended(&mut self, side: Side, session: SessionId, error: Option<AmqpError>, other: &mut Connection) {
        let Some(end) = self.ends(side).sessions.remove(session) else { return };
        self.ends(side).links.retain(|_, link| link.session != session);
        let peers = self.ends(side.other());
        if peers.sessions.remove(end.peer).is_some() {
            peers.links.retain(|_, link| link.session != end.peer);
            other.end(end.peer, error);
        }
    }

    fn attached(
        &mut self,
        side: Side,
        link: LinkId,
        session: SessionId,
        attach: &Attach,
        this: &mut Connection,
        other: &mut Connection,
    ) {
        let refusal = match self.ends[side.index()].sessions.get(session) {
            // The session has ended on the other side: the end frame is on its way to the peer.
            None => return,
            Some(end) => match self.policy.admit(side, attach) {
                Err(error) => error,
                Ok(attach) => match other.attach(end.peer, &attach) {
                    Ok(peer) => {
                        let peer_session = end.peer;
                        self.ends(side).links.insert(link, LinkEnd { peer, session });
                        self.ends(side.other())
                            .links
                            .insert(peer, LinkEnd { peer: link, session: peer_session });
                        emit(LinkRouted { side, attach: &attach });
                        return;
                    }
                    Err(misuse) => reason(misuse),
                },
            },
        };
        emit(LinkRefused { error: &refusal });
        this.refuse_attach(link, refusal);
    }

    fn answered(&mut self, side: Side, link: LinkId, attach: &Attach, other: &mut Connection) {
        if let Some(end) = self.ends[side.index()].links.get(link) {
            let attach = self.policy.answer(side, attach);
            other.answer_attach(end.peer, &attach);
        }
    }

    fn detached(
        &mut self,
        side: Side,
        link: LinkId,
        detach: &Detach,
        answered: bool,
        other: &mut Connection,
    ) {
        let Some(end) = self.ends[side.index()].links.get(link) else { return };
        let (peer, session) = (end.peer, end.session);
        other.detach(peer, detach.closed(), detach.error());
        if !answered {
            return;
        }
        // Both peers have spoken: the second detach has just been passed on.
        self.ends(side).links.remove(link);
        let peer_session = self.ends(side.other()).links.remove(peer).map(|end| end.session);
        if let Some(end) = self.ends(side).sessions.get_mut(session) {
            end.passed.forget_link(peer);
        }
        if let Some(end) = peer_session.and_then(|session| self.ends(side.other()).sessions.get_mut(session))
        {
            end.passed.forget_link(link);
        }
    }

    fn flow(&mut self, side: Side, link: LinkId, flow: &Flow, this: &mut Connection, other: &mut Connection) {
        let Some(end) = self.ends[side.index()].links.get(link) else { return };
        let (peer, session) = (end.peer, end.session);
        let Some(known) = other.link(peer) else { return };
        if known.role == Role::Sender && is_overdue(other, known.session) {
            return self.end_both(side, session, reason(Misuse::Backlog), this, other);
        }
        // The tunnel neither adds nor withholds a delivery, so both links count alike from the
        // initial-delivery-count on, and what a peer says of its count holds for the other. One that has not seen
        // the sender's attach says none, and counts from there (AMQP 1.0 2.6.7).
        let numbers = LinkFlow {
            delivery_count: flow.delivery_count.or(Some(known.initial_delivery_count)),
            link_credit: flow.link_credit.unwrap_or(0),
            available: flow.available,
            drain: flow.drain,
            echo: flow.echo,
            properties: flow.properties(),
        };
        other.flow(peer, numbers);
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one event and the two connections it lies between"
    )]
    fn transfer(
        &mut self,
        side: Side,
        link: LinkId,
        session: SessionId,
        transfer: &Transfer,
        delivery_id: u32,
        first: bool,
        this: &mut Connection,
        other: &mut Connection,
    ) {
        let ends = &mut self.ends[side.index()];
        let Some(end) = ends.links.get(link) else { return };
        let id_out = match other.transfer(end.peer, transfer.fields(), transfer.payload_slice()) {
            Ok(id_out) => id_out,
            // The link is being detached on the other side, and this side is about to hear of it.
            Err(Misuse::UnknownLink | Misuse::NotAttached) => return,
            Err(Misuse::Backlog) => {
                return self.end_both(side, session, reason(Misuse::Backlog), this, other);
            }
            // A gap in a link that goes on would be a lost message.
            Err(misuse) => {
                let peer = end.peer;
                this.detach(link, true, Some(reason(misuse)));
                return other.detach(peer, true, Some(reason(misuse)));
            }
        };
        if first {
            deliveries().inc();
        }
        let Some(pair) = ends.sessions.get_mut(session) else { return };
        if transfer.settled == Some(true) || transfer.aborted {
            if !first {
                pair.passed.forget_in(delivery_id);
            }
        } else if first {
            let noted = pair.passed.passed(delivery_id, id_out, end.peer);
            if !noted || pair.passed.len() > MAX_DELIVERIES {
                emit(DeliveriesExceeded { side });
                let why = "too many unsettled deliveries";
                let error = AmqpError::new(&Condition::ResourceLimitExceeded, Some(why));
                self.end_both(side, session, error, this, other);
            }
        }
    }

    /// Ends a session that the tunnel itself cannot carry on, on both sides.
    fn end_both(
        &mut self,
        side: Side,
        session: SessionId,
        error: AmqpError,
        this: &mut Connection,
        other: &mut Connection,
    ) {
        this.end(session, Some(error.clone()));
        self.ended(side, session, Some(error), other);
    }

    fn disposition(
        &mut self,
        side: Side,
        session: SessionId,
        disposition: &Disposition,
        this: &mut Connection,
        other: &mut Connection,
    ) {
        let Some(end) = self.ends[side.index()].sessions.get_mut(session) else { return };
        let peer = end.peer;
        if disposition.role == Role::Sender && is_overdue(other, peer) {
            return self.end_both(side, session, reason(Misuse::Backlog), this, other);
        }
        let out = disposition.fields();
        let DispositionOut { role, first, last, settled, .. } = out;
        match role {
            // A receiver speaks of what came out here: the other side knows it by its incoming ids.
            Role::Receiver => {
                if let Some(end) = self.ends[side.other().index()].sessions.get_mut(peer) {
                    end.passed.in_ids(first, last, settled, &mut self.runs);
                }
            }
            Role::Sender => end.passed.out_ids(first, last, settled, &mut self.runs),
        }
        for run in self.runs.drain(..) {
            other.disposition(peer, DispositionOut { first: run.first, last: run.last, ..out });
        }
    }
}

/// Whether more waits for the window of a peer's session than may: the machine itself refuses transfers then.
fn is_overdue(connection: &Connection, session: SessionId) -> bool {
    connection.session_backlog_bytes(session) > connection.config().max_backlog_bytes
}

/// What a peer is told when the other side cannot carry on what it began.
fn reason(misuse: Misuse) -> AmqpError {
    let condition = match misuse {
        Misuse::Tag => Condition::InvalidField,
        Misuse::FrameTooLarge => Condition::FrameSizeTooSmall,
        Misuse::Backlog | Misuse::NoHandle | Misuse::NoChannel => Condition::ResourceLimitExceeded,
        _ => Condition::InternalError,
    };
    AmqpError::new(&condition, Some(&misuse.to_string()))
}
