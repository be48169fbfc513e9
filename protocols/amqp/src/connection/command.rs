//! What the application tells a connection to do with sessions and links.
//!
//! A command for something that the peer, or the engine, has just ended does nothing: its event tells. Where the
//! caller has to know, the command gives [`Misuse`].

use super::encode::{self, FRAME_HEADER};
use super::event::{LinkId, LinkInfo, SessionId};
use super::{Connection, Phase, write};
use crate::error::{AmqpError, Condition, Misuse, Violation};
use crate::link::Half;
use crate::performative::{Attach, Begin, DispositionOut, Role, TransferOut};
use crate::session::{HeldFlow, HeldKind};

/// The most bytes of a delivery-tag (2.8.7).
const MAX_TAG_BYTES: usize = 32;

/// A flow of a link. The session's numbers are the engine's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkFlow<'a> {
    /// `None`: what the engine has counted. A sender that drains moves it ahead.
    pub delivery_count: Option<u32>,
    /// Deliveries that may come after `delivery_count`.
    pub link_credit: u32,
    /// Deliveries that the sender has waiting.
    pub available: Option<u32>,
    /// The sender shall use the credit up or give it back.
    pub drain: bool,
    /// The peer shall answer with its own flow.
    pub echo: bool,
    /// An encoded map.
    pub properties: Option<&'a [u8]>,
}

impl Connection {
    /// Begins a session. The answer comes as [`Event::SessionBegun`](super::Event::SessionBegun); links may be
    /// attached before it, and the begin given before the connection is open.
    ///
    /// # Errors
    /// `NoChannel` above the channel-max of either side, which is taken to be 0 until the peer's open has come.
    pub fn begin(&mut self) -> Result<SessionId, Misuse> {
        self.check_open()?;
        let place = self.new_session().ok_or(Misuse::NoChannel)?;
        self.write_begin(place);
        Ok(self.session_id(place))
    }

    /// As [`begin`](Self::begin), saying what `begin` says: capabilities, properties and whatever else it holds go
    /// out as they are. Channel, ids, windows and handle-max are the engine's.
    ///
    /// # Errors
    /// As `begin`; and `FrameTooLarge`.
    pub fn begin_as(&mut self, begin: &Begin) -> Result<SessionId, Misuse> {
        self.check_open()?;
        let place = self.new_session().ok_or(Misuse::NoChannel)?;
        if let Err(misuse) = self.write_begin_as(place, begin) {
            let channel = self.sessions.remove(place).channel;
            self.channels.free(channel.into());
            self.shrink();
            return Err(misuse);
        }
        Ok(self.session_id(place))
    }

    /// As [`accept_begin`](Self::accept_begin), saying what `begin` says, as [`begin_as`](Self::begin_as) does. One
    /// that does not fit into a frame of the peer becomes an end with `amqp:frame-size-too-small`.
    pub fn accept_begin_as(&mut self, session: SessionId, begin: &Begin) {
        let Ok(place) = self.session_place(session) else { return };
        if self.sessions[place].local == Half::Idle && self.write_begin_as(place, begin).is_err() {
            self.end_now(place, Some(&AmqpError::new(&Condition::FrameSizeTooSmall, None)));
        }
    }

    /// Answers the peer's begin.
    pub fn accept_begin(&mut self, session: SessionId) {
        if let Ok(place) = self.session_place(session)
            && self.sessions[place].local == Half::Idle
        {
            self.write_begin(place);
        }
    }

    /// Ends a session, or refuses the peer's begin. Its links are gone and their ids invalid at once. Without an
    /// error the end goes behind transfers that wait for the peer's window; with one they are dropped.
    pub fn end(&mut self, session: SessionId, error: Option<AmqpError>) {
        let Ok(place) = self.session_place(session) else { return };
        let error = write::fit_error(error, self.peer_max_frame_bytes);
        if error.is_some() || !self.sessions[place].has_backlog() {
            return self.end_now(place, error.as_ref());
        }
        for link in self.links_of(place).collect::<Vec<_>>() {
            self.links[link].defunct = true;
        }
        let session = &mut self.sessions[place];
        session.local = Half::Ended;
        let channel = session.channel;
        session.hold(None, HeldKind::End, |out| encode::put_end(out, channel, None));
    }

    /// Attaches a link. `attach` is written as it is, but for the handle, and the initial-delivery-count of a sender
    /// that has none. The answer comes as [`Event::Attached`](super::Event::Attached).
    ///
    /// # Errors
    /// `NameInUse` where the session has a link of this name and role; `NoHandle` above the peer's handle-max or our
    /// bound of links; `FrameTooLarge`; `UnknownSession`; `State` before the peer's begin is accepted.
    pub fn attach(&mut self, session: SessionId, attach: &Attach) -> Result<LinkId, Misuse> {
        self.check_open()?;
        let at = self.session_place(session)?;
        if self.sessions[at].local == Half::Idle {
            return Err(Misuse::State);
        }
        let role = attach.role();
        let in_use = self.links_of(at).any(|place| {
            let link = &self.links[place];
            link.role == role
                && *link.name == *attach.name()
                && link.local != Half::Ended
                && link.remote != Half::Ended
        });
        if in_use {
            return Err(Misuse::NameInUse);
        }
        let place = self.new_link(at, attach.name(), role)?;
        if let Err(misuse) = self.write_attach(place, attach) {
            self.drop_link(place);
            return Err(misuse);
        }
        Ok(self.link_id(place))
    }

    /// Answers the peer's attach. Name and role are those of the link, whatever `attach` says. An answer that does
    /// not fit into a frame of the peer becomes a refusal with `amqp:frame-size-too-small`.
    pub fn answer_attach(&mut self, link: LinkId, attach: &Attach) {
        let Ok(place) = self.link_place(link) else { return };
        if self.links[place].local != Half::Idle {
            return;
        }
        self.accept_begin(self.session_id(self.links[place].session as usize));
        if self.write_attach(place, attach).is_err() {
            let error = AmqpError::new(&Condition::FrameSizeTooSmall, None);
            self.refuse_attach(link, error);
        }
    }

    /// Refuses the peer's attach: an attach without our terminus, then a detach with the error (2.6.3).
    pub fn refuse_attach(&mut self, link: LinkId, error: AmqpError) {
        self.detach(link, true, Some(error));
    }

    /// Detaches a link, or answers the peer's detach. An attach of the peer that was not answered is refused. The
    /// detach goes behind transfers of the link that wait for the peer's window.
    pub fn detach(&mut self, link: LinkId, closed: bool, error: Option<AmqpError>) {
        let Ok(place) = self.link_place(link) else { return };
        if self.links[place].local == Half::Ended {
            return;
        }
        if self.links[place].local == Half::Idle {
            let refusal = write::refusal(&self.links[place]);
            let at = self.links[place].session as usize;
            self.accept_begin(self.session_id(at));
            if self.write_attach(place, &refusal).is_err() {
                // The name alone is larger than the peer's frames: there is no way to answer.
                let error = AmqpError::new(&Condition::FrameSizeTooSmall, None);
                return self.end_now(at, Some(&error));
            }
        }
        let error = write::fit_error(error, self.peer_max_frame_bytes);
        self.detach_now(place, closed, error.as_ref());
    }

    /// Sends a flow of a link. For a receiver it gives credit. For a sender it answers an echo or a drain, and goes
    /// behind its transfers that wait for the peer's window.
    pub fn flow(&mut self, link: LinkId, flow: LinkFlow<'_>) {
        let Ok(place) = self.link_place(link) else { return };
        let link = &mut self.links[place];
        if link.local != Half::Open || link.remote == Half::Ended {
            return;
        }
        let stated = flow.delivery_count.unwrap_or(link.delivery_count);
        if link.role == Role::Receiver {
            link.grant(stated, flow.link_credit);
        } else {
            link.delivery_count = stated;
            link.credit = flow.link_credit;
        }
        // 2.7.4: a receiver that has not seen the sender's attach does not know the delivery-count.
        let known = link.role == Role::Sender || link.remote == Half::Open;
        let numbers = HeldFlow {
            delivery_count: known.then_some(stated),
            link_credit: flow.link_credit,
            available: flow.available,
            drain: flow.drain,
            echo: flow.echo,
        };
        if link.held > 0 {
            link.held += 1;
            let properties = flow.properties.unwrap_or_default();
            let at = link.session as usize;
            self.sessions[at]
                .hold(Some(place), HeldKind::Flow(numbers), |out| out.extend_from_slice(properties));
            return self.judge_asides(at);
        }
        self.write_link_flow(place, numbers, flow.properties);
    }

    /// Sends a flow of the session alone.
    pub fn session_flow(&mut self, session: SessionId, echo: bool) {
        if let Ok(place) = self.session_place(session)
            && self.sessions[place].local == Half::Open
        {
            self.write_session_flow(place, echo);
        }
    }

    /// What comes in this session cannot be passed on: its incoming-window is not opened again until
    /// [`resume`](Self::resume), whatever flows go out meanwhile. What the peer was granted before still comes.
    pub fn stall(&mut self, session: SessionId) {
        if let Ok(place) = self.session_place(session) {
            self.sessions[place].incoming_window.stall();
        }
    }

    /// Ends what [`stall`](Self::stall) began. The peer hears of it where half of the window is used up.
    pub fn resume(&mut self, session: SessionId) {
        if let Ok(place) = self.session_place(session)
            && self.sessions[place].incoming_window.resume()
            && self.sessions[place].local == Half::Open
        {
            self.write_session_flow(place, false);
        }
    }

    /// Sends a piece of a delivery, and gives the delivery-id. The fields go out as they are, but handle and
    /// delivery-id, which are the engine's: as long as `more` was true, the next call of this link continues the
    /// delivery. A payload larger than a frame of the peer is split. What the peer's incoming-window does not allow
    /// yet is held back, in order; see [`session_backlog_bytes`](Self::session_backlog_bytes). Credit is not
    /// checked: whoever routes has reasons to know better. An aborted transfer carries no payload.
    ///
    /// # Errors
    /// `NotAttached`, `WrongRole` for a receiver, `Tag` where a delivery begins without a tag or with one of more
    /// than 32 bytes, `Backlog` where too much is held back already, `FrameTooLarge`. Nothing has been sent then.
    pub fn transfer(
        &mut self,
        link: LinkId,
        transfer: TransferOut<'_>,
        payload: &[u8],
    ) -> Result<u32, Misuse> {
        self.check_open()?;
        let place = self.link_place(link)?;
        let link = &mut self.links[place];
        if link.role != Role::Sender {
            return Err(Misuse::WrongRole);
        }
        if link.local != Half::Open || link.remote == Half::Ended {
            return Err(Misuse::NotAttached);
        }
        let session = &mut self.sessions[link.session as usize];
        if session.backlog_bytes() > self.config.max_backlog_bytes {
            return Err(Misuse::Backlog);
        }
        match transfer.delivery_tag {
            Some(tag) if tag.len() > MAX_TAG_BYTES => return Err(Misuse::Tag),
            None if link.delivery.is_none() => return Err(Misuse::Tag),
            _ => {}
        }
        let payload = if transfer.aborted { &[] } else { payload };
        let first = link.delivery.is_none();
        let id = link.delivery.unwrap_or(session.next_delivery_id);
        let mut piece = TransferOut { handle: link.handle, delivery_id: first.then_some(id), ..transfer };
        let max = self.peer_max_frame_bytes as usize;
        let mut rest = payload;
        let mut room = max.saturating_sub(FRAME_HEADER + piece.encoded_len());
        if room == 0 && !rest.is_empty() || FRAME_HEADER + piece.encoded_len() > max {
            return Err(Misuse::FrameTooLarge);
        }
        if first {
            session.next_delivery_id = id.wrapping_add(1);
            link.delivery_count = link.delivery_count.wrapping_add(1);
            link.credit = link.credit.saturating_sub(1);
        }
        link.delivery = (transfer.more && !transfer.aborted).then_some(id);
        loop {
            let (part, after) = rest.split_at(rest.len().min(room));
            rest = after;
            piece.more = transfer.more || !rest.is_empty();
            if session.may_transfer() {
                encode::put_transfer(self.output.frames(), session.channel, &piece, part);
                session.transferred();
            } else {
                link.held += 1;
                let channel = session.channel;
                let begins = piece.delivery_id;
                session.hold(Some(place), HeldKind::Transfer { begins }, |out| {
                    encode::put_transfer(out, channel, &piece, part);
                });
            }
            if rest.is_empty() {
                return Ok(id);
            }
            // 2.7.5: what the first frame has said need not be said again.
            piece = TransferOut {
                delivery_id: None,
                delivery_tag: None,
                message_format: None,
                rcv_settle_mode: None,
                state: None,
                ..piece
            };
            room = max - (FRAME_HEADER + piece.encoded_len());
        }
    }

    /// Sends a disposition over the delivery-ids `first` to `last`. A sender's goes behind transfers that wait for
    /// the peer's window, since it may speak of them. A state that does not fit into a frame of the peer is cut to
    /// its outcome. Flow properties, errors and descriptions are cut in the same way.
    pub fn disposition(&mut self, session: SessionId, disposition: DispositionOut<'_>) {
        let Ok(place) = self.session_place(session) else { return };
        if !write::state_fits(disposition.state, self.peer_max_frame_bytes) {
            let state = disposition.state.and_then(|it| write::fit_state(it, self.peer_max_frame_bytes));
            return self.disposition(session, DispositionOut { state: state.as_deref(), ..disposition });
        }
        let session = &mut self.sessions[place];
        if session.local != Half::Open {
            return;
        }
        let channel = session.channel;
        if disposition.role == Role::Sender && session.has_backlog() {
            session.hold(None, HeldKind::Disposition, |out| {
                encode::put_disposition(out, channel, &disposition);
            });
            self.judge_asides(place);
        } else {
            encode::put_disposition(self.output.frames(), channel, &disposition);
        }
    }

    /// Closes the connection of a peer that shuts its window and goes on asking for what can only follow behind it.
    fn judge_asides(&mut self, session: usize) {
        if self.sessions[session].aside_bytes() > self.config.max_backlog_bytes {
            self.fail(Violation::Limit("too much waits for the incoming-window of a session"));
        }
    }

    /// Bytes of a session that wait for the peer's incoming-window.
    pub fn session_backlog_bytes(&self, session: SessionId) -> usize {
        self.session_place(session).map_or(0, |place| self.sessions[place].backlog_bytes())
    }

    /// The delivery-id of the first delivery of ours none of whose frames has been written, since all of them wait
    /// for the peer's incoming-window. It and all later deliveries of the session never went out. `None` where
    /// there is none. Of a session that was there when the connection ended, the answer stays.
    pub fn unsent_from(&self, session: SessionId) -> Option<u32> {
        match self.sessions.get(session.place as usize) {
            Some(known) if known.stamp == session.stamp => known.unsent_from(),
            _ => self.unsent.iter().find(|(stamp, _)| *stamp == session.stamp).map(|&(_, id)| id),
        }
    }

    /// What the engine knows of a link; `None` once its id is invalid.
    pub fn link(&self, link: LinkId) -> Option<LinkInfo<'_>> {
        let place = self.link_place(link).ok()?;
        let link = &self.links[place];
        Some(LinkInfo {
            name: &link.name,
            role: link.role,
            session: self.session_id(link.session as usize),
            local: link.local,
            remote: link.remote,
            initial_delivery_count: link.initial_delivery_count,
            delivery_count: link.delivery_count,
            credit: link.credit,
            drain: link.drain,
            delivery: link.delivery,
        })
    }

    /// The session of a link.
    pub fn session_of_link(&self, link: LinkId) -> Option<SessionId> {
        self.link(link).map(|link| link.session)
    }

    /// The links of a session, in the order of our handles.
    pub fn session_links(&self, session: SessionId) -> impl Iterator<Item = LinkId> + '_ {
        let place = self.session_place(session).ok();
        place
            .into_iter()
            .flat_map(|place| self.links_of(place))
            .filter(|&place| !self.links[place].is_gone())
            .map(|place| self.link_id(place))
    }

    /// How many sessions there are, those included that wait for the peer's end.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// How many links there are, those included that wait for the peer's detach.
    pub fn links(&self) -> usize {
        self.links.len()
    }

    fn check_open(&self) -> Result<(), Misuse> {
        match self.phase {
            Phase::Closing | Phase::Closed => Err(Misuse::Closed),
            _ => Ok(()),
        }
    }

    fn session_place(&self, id: SessionId) -> Result<usize, Misuse> {
        match self.sessions.get(id.place as usize) {
            Some(session) if session.stamp == id.stamp && session.local != Half::Ended => {
                Ok(id.place as usize)
            }
            _ => Err(Misuse::UnknownSession),
        }
    }

    fn link_place(&self, id: LinkId) -> Result<usize, Misuse> {
        match self.links.get(id.place as usize) {
            Some(link) if link.stamp == id.stamp && !link.is_gone() => Ok(id.place as usize),
            _ => Err(Misuse::UnknownLink),
        }
    }
}
