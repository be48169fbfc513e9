//! Two connections of ours between two peers that are nothing but frames: the smallest thing that routes. What the
//! peers see of each other is what the engine lets through.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use fieldgate_amqp::connection::{
    ClientSecurity, CloseReason, Connection, ConnectionConfig, Event, LinkFlow, LinkId, SessionId,
};
use fieldgate_amqp::frame::ProtocolHeader;
use fieldgate_amqp::performative::{BeginOut, Composite, DispositionOut, OpenOut, Performative};

use crate::pair::{config, start};
use crate::raw::{frame, frames};

/// The device's side, and the hub's.
pub(crate) const DEVICE: usize = 0;
pub(crate) const HUB: usize = 1;

pub(crate) struct Relay {
    now: Instant,
    sides: [Connection; 2],
    sessions: [HashMap<SessionId, SessionId>; 2],
    links: [HashMap<LinkId, LinkId>; 2],
    /// By side on which a delivery came in: what its id became on the other, less what it was.
    shift: [u32; 2],
}

impl Relay {
    /// Both peers have opened, and a session goes through, on channel 0 of both. The first transfer of ours toward
    /// the hub has the id `first_id`.
    pub(crate) fn new(first_id: u32) -> Self {
        Self::with_frames(first_id, 65_536)
    }

    pub(crate) fn with_frames(first_id: u32, hub_max_frame_bytes: u32) -> Self {
        let now = start();
        let upstream = Arc::new(ConnectionConfig { first_transfer_id: first_id, ..config() });
        let device = Connection::server(Arc::new(config()), &[], true, now);
        let hub = Connection::client(Arc::clone(&upstream), ClientSecurity::Bare, upstream.open(), now);
        let mut relay = Self {
            now,
            sides: [device, hub],
            sessions: Default::default(),
            links: Default::default(),
            shift: [0; 2],
        };
        for (side, max_frame_size) in [(DEVICE, 65_536), (HUB, hub_max_frame_bytes)] {
            let open = OpenOut { container_id: "peer", max_frame_size, ..OpenOut::default() }.build();
            relay.bytes(side, &ProtocolHeader::Amqp.bytes());
            relay.say(side, |out| out.extend_from_slice(open.encoded()));
        }
        let begin = |remote_channel| {
            let numbers = BeginOut {
                incoming_window: 1000,
                outgoing_window: 1000,
                handle_max: 255,
                ..BeginOut::default()
            };
            BeginOut { remote_channel, next_outgoing_id: 0, ..numbers }.build()
        };
        relay.say(DEVICE, |out| out.extend_from_slice(begin(None).encoded()));
        relay.say(HUB, |out| out.extend_from_slice(begin(Some(0)).encoded()));
        relay.heard(DEVICE);
        relay.heard(HUB);
        relay
    }

    /// A peer sends a frame, and the relay passes on what comes of it.
    pub(crate) fn say(&mut self, side: usize, body: impl FnOnce(&mut BytesMut)) {
        let bytes = frame(0, body);
        self.bytes(side, &bytes);
    }

    pub(crate) fn bytes(&mut self, side: usize, bytes: &[u8]) {
        self.sides[side].handle_input(self.now, Bytes::copy_from_slice(bytes));
        while let Some(event) = self.sides[side].poll_event() {
            self.pass(side, event);
        }
    }

    /// The frames that a peer has been sent, encoded, with the payloads.
    pub(crate) fn heard(&mut self, side: usize) -> Vec<(Composite, Bytes)> {
        let bytes = self.sides[side].poll_transmit().unwrap_or_default();
        let bodies = crate::raw::bodies(bytes);
        let limits = fieldgate_amqp::codec::Limits::default();
        bodies.into_iter().map(|body| Composite::parse(body, &limits).unwrap()).collect()
    }

    /// The same, as performatives.
    pub(crate) fn heard_frames(&mut self, side: usize) -> Vec<Performative> {
        let bytes = self.sides[side].poll_transmit().unwrap_or_default();
        frames(bytes).into_iter().map(|(_, performative)| performative).collect()
    }

    fn pass(&mut self, side: usize, event: Event) {
        let [device, hub] = &mut self.sides;
        let (this, other) = if side == DEVICE { (device, hub) } else { (hub, device) };
        match event {
            Event::Opened(_) => this.open(config().open()),
            Event::SessionBegun { session, begin, by_peer: true } => {
                let peer = other.begin_as(&begin).unwrap();
                self.sessions[side].insert(session, peer);
                self.sessions[1 - side].insert(peer, session);
                this.accept_begin(session);
            }
            Event::SessionEnded { session, error } => {
                if let Some(peer) = self.sessions[side].remove(&session) {
                    self.sessions[1 - side].remove(&peer);
                    other.end(peer, error);
                }
            }
            Event::Attached { link, session, attach, by_peer: true } => {
                let peer = other.attach(self.sessions[side][&session], &attach).unwrap();
                self.links[side].insert(link, peer);
                self.links[1 - side].insert(peer, link);
            }
            Event::Attached { link, attach, .. } => other.answer_attach(self.links[side][&link], &attach),
            Event::Detached { link, detach, .. } => {
                other.detach(self.links[side][&link], detach.closed(), detach.error());
            }
            Event::Flow { link: Some(link), flow, .. } => {
                let peer = self.links[side][&link];
                let initial = other.link(peer).map(|link| link.initial_delivery_count);
                let numbers = LinkFlow {
                    delivery_count: flow.delivery_count.or(initial),
                    link_credit: flow.link_credit.unwrap_or(0),
                    available: flow.available,
                    drain: flow.drain,
                    echo: flow.echo,
                    properties: flow.properties(),
                };
                other.flow(peer, numbers);
            }
            Event::Transfer { link, delivery_id, first, transfer, .. } => {
                let peer = self.links[side][&link];
                match other.transfer(peer, transfer.fields(), transfer.payload_slice()) {
                    Ok(id) if first => self.shift[side] = id.wrapping_sub(delivery_id),
                    Ok(_) => {}
                    Err(misuse) => {
                        let condition = fieldgate_amqp::error::Condition::InvalidField;
                        let error =
                            fieldgate_amqp::error::AmqpError::new(&condition, Some(&misuse.to_string()));
                        this.detach(link, true, Some(error.clone()));
                        other.detach(peer, true, Some(error));
                    }
                }
            }
            Event::Disposition { session, disposition } => {
                let out = disposition.fields();
                // A receiver speaks of what came in on the other side.
                let shift = match out.role.is_receiver() {
                    true => self.shift[1 - side].wrapping_neg(),
                    false => self.shift[side],
                };
                let (first, last) = (out.first.wrapping_add(shift), out.last.wrapping_add(shift));
                other.disposition(self.sessions[side][&session], DispositionOut { first, last, ..out });
            }
            Event::Closed(CloseReason::Remote(error)) => other.close(error),
            _ => {}
        }
    }
}
