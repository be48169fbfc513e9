//! Frames of the peer once SASL is through (2.4 to 2.7). A function for each performative; each gives at most one
//! event.
//!
//! Faults have three reaches: `Err` closes the connection, `fail_session` ends the session, `fail_link` detaches
//! the link.

use bytes::Bytes;

use super::event::{Event, LinkId, SessionId};
use super::{Connection, Phase, Step, encode};
use crate::error::{AmqpError, DecodeFault, Violation};
use crate::frame::{Frame, FrameKind};
use crate::link::{Half, Link};
use crate::performative::{
    self, Attach, Begin, Close, Detach, DetachOut, Disposition, End, Flow, Open, Role, Transfer, descriptor,
};
use crate::session::Session;
use crate::window::Taken;

impl Connection {
    pub(crate) fn on_frame(&mut self, frame: Frame) -> Result<Step, Violation> {
        let Frame { kind, channel, body } = frame;
        if kind != FrameKind::Amqp {
            return Err(Violation::FrameType(FrameKind::Sasl as u8));
        }
        if body.is_empty() {
            return Ok(Step::Again); // 2.4.5: a heartbeat.
        }
        let code = performative::code(&body)?;
        match self.phase {
            Phase::Running => self.on_performative(code, channel, body),
            Phase::Open if code == descriptor::OPEN => self.on_open(Open::decode(body)?),
            Phase::Open => Err(Violation::IllegalState("open must come first")),
            _ => {
                // 2.4.6: after our close everything but the peer's is discarded.
                if code == descriptor::CLOSE {
                    self.on_close(None);
                }
                Ok(Step::Again)
            }
        }
    }

    fn on_performative(&mut self, code: u64, channel: u16, body: Bytes) -> Result<Step, Violation> {
        let event = match code {
            descriptor::TRANSFER => self.on_transfer(channel, body.len(), Transfer::decode(body)?)?,
            descriptor::DISPOSITION => self.on_disposition(channel, Disposition::decode(body)?)?,
            descriptor::FLOW => self.on_flow(channel, Flow::decode(body)?)?,
            descriptor::ATTACH => self.on_attach(channel, Attach::decode(body)?)?,
            descriptor::DETACH => self.on_detach(channel, Detach::decode(body)?)?,
            descriptor::BEGIN => self.on_begin(channel, Begin::decode(body)?)?,
            descriptor::END => self.on_end(channel, &End::decode(body)?)?,
            descriptor::CLOSE => {
                self.on_close(Close::decode(body)?.error());
                None
            }
            descriptor::OPEN => return Err(Violation::IllegalState("open came twice")),
            _ => return Err(Violation::Decode(DecodeFault::Descriptor.at(0))),
        };
        Ok(event.into())
    }

    /// The session of a frame; `None` where we have ended it and only the peer's end counts.
    fn session_of(&self, channel: u16) -> Result<Option<usize>, Violation> {
        let place = self.remote_channels.get(channel.into()).ok_or(Violation::Channel(channel))? as usize;
        Ok((self.sessions[place].local != Half::Ended).then_some(place))
    }

    pub(crate) fn session_id(&self, place: usize) -> SessionId {
        SessionId { place: place as u32, stamp: self.sessions[place].stamp }
    }

    pub(crate) fn link_id(&self, place: usize) -> LinkId {
        LinkId { place: place as u32, stamp: self.links[place].stamp }
    }

    fn on_begin(&mut self, channel: u16, begin: Begin) -> Result<Option<Event>, Violation> {
        if channel > self.config.channel_max {
            return Err(Violation::ChannelMax(channel));
        }
        if self.remote_channels.get(channel.into()).is_some() {
            return Err(Violation::IllegalState("begin on a channel that has a session"));
        }
        let answered = begin.remote_channel();
        let place = match answered {
            None => {
                let session = self.new_session();
                session.ok_or(Violation::Limit("no channel is left to answer the begin"))?
            }
            Some(ours) => self
                .channels
                .get(ours.into())
                .map(|place| place as usize)
                .filter(|&place| self.sessions[place].remote == Half::Idle)
                .filter(|&place| self.sessions[place].local != Half::Idle)
                .ok_or(Violation::InvalidField("remote-channel names no begin of ours"))?,
        };
        let first_transfer_id = self.config.first_transfer_id;
        let session = &mut self.sessions[place];
        session.remote = Half::Open;
        session.remote_channel = channel;
        session.next_incoming_id = begin.next_outgoing_id();
        session.remote_handle_max = begin.handle_max();
        session.remote_window(None, begin.incoming_window(), first_transfer_id);
        self.remote_channels.insert(channel.into(), place as u32);
        self.release_backlog(place);
        if self.sessions[place].defunct || self.sessions[place].local == Half::Ended {
            return Ok(None); // We have ended it meanwhile; the peer's end is still to come.
        }
        let session = self.session_id(place);
        Ok(Some(Event::SessionBegun { session, begin, by_peer: answered.is_none() }))
    }

    fn on_end(&mut self, channel: u16, end: &End) -> Result<Option<Event>, Violation> {
        let place = self.remote_channels.get(channel.into()).ok_or(Violation::Channel(channel))? as usize;
        let id = self.session_id(place);
        let session = &self.sessions[place];
        let known = !session.defunct;
        let ours = session.channel;
        if session.local == Half::Idle {
            self.write_begin(place);
        }
        if self.sessions[place].local == Half::Open || self.sessions[place].has_backlog() {
            // Not ended by us, or the end still waits behind transfers that nobody will take any more.
            encode::put_end(self.output.frames(), ours, None);
        }
        self.drop_links(place);
        self.remote_channels.remove(channel.into());
        self.channels.free(ours.into());
        self.sessions.remove(place);
        self.shrink();
        Ok(known.then(|| Event::SessionEnded { session: id, error: end.error() }))
    }

    fn on_attach(&mut self, channel: u16, attach: Attach) -> Result<Option<Event>, Violation> {
        let handle = attach.handle();
        if handle > self.config.handle_max {
            return Err(Violation::HandleMax(handle));
        }
        let Some(at) = self.session_of(channel)? else { return Ok(None) };
        if self.sessions[at].remote_handles.get(handle).is_some() {
            return Ok(self.fail_session(at, &Violation::HandleInUse(handle)));
        }
        // A name is a link's key together with the role, so that both directions may use the same one (2.6.1).
        let role = attach.role().other();
        let (place, by_peer) = match self.find_link(at, attach.name(), role) {
            Some(place) if self.links[place].remote == Half::Idle => (place, false),
            Some(_) => {
                let violation = Violation::NotAllowed("a link of this name and role is attached already");
                return Ok(self.fail_session(at, &violation));
            }
            None => match self.new_link(at, attach.name(), role) {
                Ok(place) => (place, true),
                Err(_) => return Ok(self.fail_session(at, &Violation::Limit("too many links"))),
            },
        };
        let link = &mut self.links[place];
        link.remote = Half::Open;
        link.remote_handle = handle;
        if role == Role::Receiver {
            // 2.7.3: a sender must say it; one that does not is taken to start at 0.
            let initial = attach.initial_delivery_count().unwrap_or(0);
            link.initial_delivery_count = initial;
            link.delivery_count = initial;
        }
        let known = !link.defunct;
        self.sessions[at].remote_handles.insert(handle, place as u32);
        if !known {
            return Ok(None); // Detached by the engine meanwhile; the peer's detach is still to come.
        }
        let (link, session) = (self.link_id(place), self.session_id(at));
        Ok(Some(Event::Attached { link, session, attach, by_peer }))
    }

    /// The link of a session that an attach of the peer can only mean: one that waits for it comes first, since the
    /// peer answers in the order in which we attached.
    fn find_link(&self, session: usize, name: &str, role: Role) -> Option<usize> {
        let same = |place: &usize| {
            let link = &self.links[*place];
            link.role == role && link.remote != Half::Ended && *link.name == *name
        };
        self.links_of(session).filter(same).min_by_key(|&place| {
            let link = &self.links[place];
            (link.remote != Half::Idle, link.local != Half::Ended, link.stamp)
        })
    }

    pub(crate) fn links_of(&self, session: usize) -> impl Iterator<Item = usize> + '_ {
        self.sessions[session].handles.places().map(|place| place as usize)
    }

    fn on_detach(&mut self, channel: u16, detach: Detach) -> Result<Option<Event>, Violation> {
        let Some(at) = self.session_of(channel)? else { return Ok(None) };
        let handle = detach.handle();
        let Some(place) = self.sessions[at].remote_handles.remove(handle) else {
            // Some clients answer a refused attach with two detaches. What is not there cannot be hurt by it.
            return Ok(None);
        };
        let place = place as usize;
        let (id, session) = (self.link_id(place), self.session_id(at));
        let link = &mut self.links[place];
        link.remote = Half::Ended;
        let answered = link.local == Half::Ended;
        let known = !link.defunct;
        self.drop_link_if_done(place);
        Ok(known.then_some(Event::Detached { link: id, session, detach, answered }))
    }

    fn on_flow(&mut self, channel: u16, flow: Flow) -> Result<Option<Event>, Violation> {
        let place = self.remote_channels.get(channel.into()).ok_or(Violation::Channel(channel))?;
        let at = place as usize;
        let first_transfer_id = self.config.first_transfer_id;
        let session = &mut self.sessions[at];
        // 2.5.6: both are taken over as they come.
        session.next_incoming_id = flow.next_outgoing_id;
        session.remote_window(flow.next_incoming_id, flow.incoming_window, first_transfer_id);
        self.release_backlog(at);
        if self.sessions[at].local == Half::Ended {
            return Ok(None); // It was only about the transfers that our end waits for.
        }
        let Some(handle) = flow.handle else {
            if flow.echo {
                self.write_session_flow(at, false);
            }
            return Ok(Some(Event::Flow { link: None, session: self.session_id(at), flow }));
        };
        let Some(place) = self.sessions[at].remote_handles.get(handle) else {
            return Ok(self.fail_session(at, &Violation::UnattachedHandle(handle)));
        };
        let link = &mut self.links[place as usize];
        match (link.role, flow.delivery_count) {
            (Role::Sender, count) => link.credited(count, flow.link_credit.unwrap_or(0), flow.drain),
            (Role::Receiver, Some(count)) => link.counted(count),
            (Role::Receiver, None) => {}
        }
        if link.local == Half::Ended {
            return Ok(None);
        }
        let (link, session) = (Some(self.link_id(place as usize)), self.session_id(at));
        Ok(Some(Event::Flow { link, session, flow }))
    }

    fn on_transfer(
        &mut self,
        channel: u16,
        frame_bytes: usize,
        transfer: Transfer,
    ) -> Result<Option<Event>, Violation> {
        let Some(at) = self.session_of(channel)? else { return Ok(None) };
        let session = &mut self.sessions[at];
        let taken = session.incoming_window.take(frame_bytes, &self.config);
        if taken == Taken::Violation {
            return Ok(self.fail_session(at, &Violation::Window));
        }
        session.next_incoming_id = session.next_incoming_id.wrapping_add(1);
        let Some(place) = session.remote_handles.get(transfer.handle) else {
            return Ok(self.fail_session(at, &Violation::UnattachedHandle(transfer.handle)));
        };
        let place = place as usize;
        let link = &mut self.links[place];
        let (delivery_id, first) = match next_delivery(session, link, &transfer) {
            Ok(next) => next,
            Err(violation) => return Ok(self.fail_session(at, &violation)),
        };
        let in_credit = !first || link.begin_delivery();
        link.delivery = (transfer.more && !transfer.aborted).then_some(delivery_id);
        let local = link.local;
        if taken == Taken::FlowDue {
            self.write_session_flow(at, false);
        }
        if local == Half::Ended {
            return Ok(None); // Sent before the peer knew of our detach.
        }
        if !in_credit {
            return Ok(self.fail_link(place, &Violation::Credit));
        }
        let (link, session) = (self.link_id(place), self.session_id(at));
        Ok(Some(Event::Transfer { link, session, delivery_id, first, transfer }))
    }

    fn on_disposition(&mut self, channel: u16, disposition: Disposition) -> Result<Option<Event>, Violation> {
        let Some(at) = self.session_of(channel)? else { return Ok(None) };
        Ok(Some(Event::Disposition { session: self.session_id(at), disposition }))
    }

    /// Ends a session because the peer broke a rule of it. The application is told at once; what remains until the
    /// peer's end is only the channel.
    #[cold]
    pub(crate) fn fail_session(&mut self, place: usize, violation: &Violation) -> Option<Event> {
        let error = AmqpError::from(violation);
        let session = self.session_id(place);
        self.end_now(place, Some(&error));
        self.sessions[place].defunct = true;
        Some(Event::SessionEnded { session, error: Some(error) })
    }

    /// Detaches a link because the peer broke a rule of it. The application is told at once.
    #[cold]
    pub(crate) fn fail_link(&mut self, place: usize, violation: &Violation) -> Option<Event> {
        let error = AmqpError::from(violation);
        let (link, at) = (self.link_id(place), self.links[place].session as usize);
        if self.links[place].local == Half::Idle {
            // Not attached at our end yet, so there is nothing to detach.
            return self.fail_session(at, violation);
        }
        let handle = self.links[place].handle;
        self.detach_now(place, true, Some(&error));
        self.links[place].defunct = true;
        let detach = DetachOut { handle, closed: true, error: Some(&error) }.build();
        Some(Event::Detached { link, session: self.session_id(at), detach, answered: true })
    }
}

/// The delivery that a transfer belongs to, and whether it begins with it (2.6.14, 2.7.5).
#[inline]
fn next_delivery(session: &mut Session, link: &Link, transfer: &Transfer) -> Result<(u32, bool), Violation> {
    if link.role == Role::Sender {
        return Err(Violation::NotAllowed("a transfer came from the receiver of a link"));
    }
    match (link.delivery, transfer.delivery_id) {
        (Some(current), None) => Ok((current, false)),
        (Some(current), Some(id)) if current == id => Ok((current, false)),
        (Some(_), Some(_)) => Err(Violation::InvalidField("delivery-id changes inside a delivery")),
        (None, None) => Err(Violation::InvalidField("a delivery begins without a delivery-id")),
        (None, Some(_)) if transfer.delivery_tag().is_none() => {
            Err(Violation::InvalidField("a delivery begins without a delivery-tag"))
        }
        (None, Some(id)) => {
            // Delivery-ids only rise, in serial arithmetic.
            if let Some(last) = session.last_delivery_id
                && !(1..1 << 31).contains(&id.wrapping_sub(last))
            {
                return Err(Violation::InvalidField("delivery-id does not rise"));
            }
            session.last_delivery_id = Some(id);
            Ok((id, true))
        }
    }
}
