//! What the application tells a connection to do with sessions and links.
//!
//! A command for something that the peer, or the engine, has just ended does nothing: its event tells. Where the
//! caller has to know, the command gives [`Misuse`].

use bytes::BytesMut;

use super::encode::{self, FRAME_HEADER};
use super::event::{LinkId, LinkInfo, SessionId};
use super::{Connection, Phase};
use crate::error::{AmqpError, Condition, Misuse};
use crate::frame::{FrameKind, put_frame};
use crate::link::{Half, Link};
use crate::performative::{
    Attach, AttachOut, DispositionOut, FlowOut, Patch, RcvSettleMode, Role, SndSettleMode, TransferOut,
};
use crate::session::{Held, HeldFlow, HeldKind, Session};

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
            let refusal = refusal(&self.links[place]);
            let at = self.links[place].session as usize;
            self.accept_begin(self.session_id(at));
            // A name that came in a frame fits into one.
            let _ = self.write_attach(place, &refusal);
        }
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
            let session = &mut self.sessions[link.session as usize];
            return session
                .hold(Some(place), HeldKind::Flow(numbers), |out| out.extend_from_slice(properties));
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
                session.hold(Some(place), HeldKind::Transfer, |out| {
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
    /// the peer's window, since it may speak of them.
    pub fn disposition(&mut self, session: SessionId, disposition: DispositionOut<'_>) {
        let Ok(place) = self.session_place(session) else { return };
        let session = &mut self.sessions[place];
        if session.local != Half::Open {
            return;
        }
        let channel = session.channel;
        if disposition.role == Role::Sender && session.has_backlog() {
            session.hold(None, HeldKind::Disposition, |out| {
                encode::put_disposition(out, channel, &disposition);
            });
        } else {
            encode::put_disposition(self.output.frames(), channel, &disposition);
        }
    }

    /// Bytes of a session that wait for the peer's incoming-window.
    pub fn session_backlog_bytes(&self, session: SessionId) -> usize {
        self.session_place(session).map_or(0, |place| self.sessions[place].backlog_bytes())
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
            delivery_count: link.delivery_count,
            credit: link.credit,
            drain: link.drain,
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

    pub(crate) fn new_session(&mut self) -> Option<usize> {
        let place = self.sessions.vacant_key();
        let channel = self.channels.take(place as u32, self.channel_max().into())?;
        let stamp = self.stamp();
        if self.sessions.is_empty() {
            self.sessions.reserve_exact(1);
        }
        // Below channel-max, which has 16 bits.
        self.sessions.insert(Session::new(stamp, channel as u16, self.config.first_transfer_id));
        Some(place)
    }

    pub(crate) fn new_link(&mut self, session: usize, name: &str, role: Role) -> Result<usize, Misuse> {
        if self.links.len() >= self.config.max_links {
            return Err(Misuse::NoHandle);
        }
        let place = self.links.vacant_key();
        let at = &mut self.sessions[session];
        let handle = at.handles.take(place as u32, at.remote_handle_max).ok_or(Misuse::NoHandle)?;
        let stamp = self.stamp();
        if self.links.is_empty() {
            self.links.reserve_exact(1);
        }
        self.links.insert(Link::new(stamp, session as u32, name, role, handle));
        Ok(place)
    }

    pub(crate) fn write_begin(&mut self, place: usize) {
        let session = &mut self.sessions[place];
        let remote_channel = (session.remote == Half::Open).then_some(session.remote_channel);
        session.local = Half::Open;
        session.incoming_window = self.config.incoming_window;
        encode::put_begin(
            self.output.frames(),
            session.channel,
            remote_channel,
            session.next_outgoing_id,
            session.incoming_window,
            self.config.handle_max,
        );
    }

    /// Writes the attach of a link, unless it is larger than a frame of the peer.
    fn write_attach(&mut self, place: usize, attach: &Attach) -> Result<(), Misuse> {
        let link = &mut self.links[place];
        let count = attach.initial_delivery_count().unwrap_or(0);
        let patches = [
            (0, Patch::Str(&link.name)),
            (1, Patch::U32(link.handle)),
            (2, Patch::Bool(link.role.is_receiver())),
            (9, Patch::U32(count)),
        ];
        let sends = link.role == Role::Sender;
        let patches = if sends { &patches[..] } else { &patches[..3] };
        let channel = self.sessions[link.session as usize].channel;
        let out = self.output.frames();
        let start = out.len();
        put_frame(out, FrameKind::Amqp, channel, |out| attach.write_patched(out, patches));
        if out.len() - start > self.peer_max_frame_bytes as usize && self.phase == Phase::Running {
            out.truncate(start);
            return Err(Misuse::FrameTooLarge);
        }
        link.local = Half::Open;
        if sends {
            link.initial_delivery_count = count;
            link.delivery_count = count;
        }
        Ok(())
    }

    /// Writes a detach, or holds it behind the transfers of its link.
    pub(crate) fn detach_now(&mut self, place: usize, closed: bool, error: Option<&AmqpError>) {
        let link = &mut self.links[place];
        link.local = Half::Ended;
        let handle = link.handle;
        let session = &mut self.sessions[link.session as usize];
        let channel = session.channel;
        if link.held > 0 {
            link.held += 1;
            session.hold(Some(place), HeldKind::Detach, |out| {
                encode::put_detach(out, channel, handle, closed, error);
            });
        } else {
            encode::put_detach(self.output.frames(), channel, handle, closed, error);
            self.drop_link_if_done(place);
        }
    }

    /// Writes an end at once, and a begin before it where there was none. Links and held frames are dropped.
    pub(crate) fn end_now(&mut self, place: usize, error: Option<&AmqpError>) {
        if self.sessions[place].local == Half::Idle {
            self.write_begin(place);
        }
        self.drop_links(place);
        let session = &mut self.sessions[place];
        session.local = Half::Ended;
        session.drop_backlog();
        encode::put_end(self.output.frames(), session.channel, error);
    }

    pub(crate) fn write_session_flow(&mut self, place: usize, echo: bool) {
        let numbers = FlowOut { echo, ..self.session_numbers(place) };
        encode::put_flow(self.output.frames(), self.sessions[place].channel, &numbers);
    }

    fn write_link_flow(&mut self, place: usize, flow: HeldFlow, properties: Option<&[u8]>) {
        let (at, handle) = (self.links[place].session as usize, self.links[place].handle);
        let numbers = FlowOut {
            handle: Some(handle),
            delivery_count: flow.delivery_count,
            link_credit: Some(flow.link_credit),
            available: flow.available,
            drain: flow.drain,
            echo: flow.echo,
            properties,
            ..self.session_numbers(at)
        };
        encode::put_flow(self.output.frames(), self.sessions[at].channel, &numbers);
    }

    /// The session's part of a flow. Every flow opens our incoming-window again.
    fn session_numbers(&mut self, place: usize) -> FlowOut<'static> {
        let session = &mut self.sessions[place];
        session.incoming_window = self.config.incoming_window;
        FlowOut {
            next_incoming_id: (session.remote != Half::Idle).then_some(session.next_incoming_id),
            incoming_window: session.incoming_window,
            next_outgoing_id: session.next_outgoing_id,
            outgoing_window: encode::OUTGOING_WINDOW,
            ..FlowOut::default()
        }
    }

    /// Writes the held frames that may go now.
    pub(crate) fn release_backlog(&mut self, place: usize) {
        while let Some((held, bytes)) = self.sessions[place].release() {
            self.release(place, held, &bytes);
        }
    }

    fn release(&mut self, session: usize, held: Held, bytes: &BytesMut) {
        match held.kind {
            HeldKind::Flow(flow) => {
                if let Some(link) = held.link {
                    let properties = (!bytes.is_empty()).then_some(&bytes[..]);
                    self.write_link_flow(link as usize, flow, properties);
                }
            }
            kind => {
                self.output.frames().extend_from_slice(bytes);
                match kind {
                    HeldKind::Transfer => self.sessions[session].transferred(),
                    HeldKind::End => self.drop_links(session),
                    _ => {}
                }
            }
        }
        if let Some(place) = held.link {
            let place = place as usize;
            self.links[place].held -= 1;
            self.drop_link_if_done(place);
        }
    }

    /// Frees a link that both sides have detached and none of whose frames wait.
    pub(crate) fn drop_link_if_done(&mut self, place: usize) {
        let link = &self.links[place];
        if link.local == Half::Ended && link.remote == Half::Ended && link.held == 0 {
            self.drop_link(place);
        }
    }

    fn drop_link(&mut self, place: usize) {
        let link = self.links.remove(place);
        let session = &mut self.sessions[link.session as usize];
        session.handles.free(link.handle);
        if link.remote == Half::Open {
            session.remote_handles.remove(link.remote_handle);
        }
        self.shrink();
    }

    /// Frees all links of a session that is over.
    pub(crate) fn drop_links(&mut self, session: usize) {
        for place in self.links_of(session).collect::<Vec<_>>() {
            self.drop_link(place);
        }
    }

    /// Tables that have become empty hold no memory.
    pub(crate) fn shrink(&mut self) {
        if self.links.is_empty() {
            self.links = slab::Slab::new();
        }
        if self.sessions.is_empty() {
            self.sessions = slab::Slab::new();
        }
    }
}

/// The attach that answers one without giving it a terminus.
fn refusal(link: &Link) -> Attach {
    AttachOut {
        name: &link.name,
        handle: link.handle,
        role: link.role,
        snd_settle_mode: SndSettleMode::default(),
        rcv_settle_mode: RcvSettleMode::default(),
        source: None,
        target: None,
        unsettled: None,
        initial_delivery_count: (link.role == Role::Sender).then_some(0),
        max_message_size: None,
        offered_capabilities: &[],
        desired_capabilities: &[],
        properties: None,
    }
    .build()
}
