//! Writing the frames of sessions and links, and the tables that they stand in: what commands and incoming frames
//! have in common.

use bytes::{Bytes, BytesMut};

use super::encode;
use super::{Connection, Phase};
use crate::error::{AmqpError, Condition, Misuse};
use crate::frame::{FrameKind, put_frame};
use crate::link::{Half, Link};
use crate::performative::{
    Attach, AttachOut, Begin, DeliveryState, FlowOut, Patch, RcvSettleMode, Role, SndSettleMode, modified,
    rejected,
};
use crate::session::{Held, HeldFlow, HeldKind, Session};

impl Connection {
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
        session.local = Half::Open;
        encode::put_begin(
            self.output.frames(),
            session.channel,
            session.answered_channel(),
            session.next_outgoing_id,
            session.incoming_window.begin(&self.config),
            self.config.handle_max,
        );
    }

    /// Writes a begin as somebody else said it, but for what is ours to say, unless it is larger than a frame of the
    /// peer.
    pub(crate) fn write_begin_as(&mut self, place: usize, begin: &Begin) -> Result<(), Misuse> {
        let session = &mut self.sessions[place];
        let patches = [
            (0, session.answered_channel().map_or(Patch::Null, Patch::U16)),
            (1, Patch::U32(session.next_outgoing_id)),
            (2, Patch::U32(session.incoming_window.begin(&self.config))),
            (3, Patch::U32(encode::OUTGOING_WINDOW)),
            (4, Patch::U32(self.config.handle_max)),
        ];
        let out = self.output.frames();
        let start = out.len();
        put_frame(out, FrameKind::Amqp, session.channel, |out| begin.write_patched(out, &patches));
        if out.len() - start > self.peer_max_frame_bytes as usize && self.phase == Phase::Running {
            out.truncate(start);
            return Err(Misuse::FrameTooLarge);
        }
        session.local = Half::Open;
        Ok(())
    }

    /// Writes the attach of a link, unless it is larger than a frame of the peer.
    pub(crate) fn write_attach(&mut self, place: usize, attach: &Attach) -> Result<(), Misuse> {
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

    pub(crate) fn write_link_flow(&mut self, place: usize, flow: HeldFlow, properties: Option<&[u8]>) {
        let (at, handle) = (self.links[place].session as usize, self.links[place].handle);
        // All the numbers of a flow take less than 80 bytes.
        let properties = properties.filter(|map| map.len() + 80 <= self.peer_max_frame_bytes as usize);
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

    /// The session's part of a flow. Every flow opens our incoming-window again, unless it is stalled.
    fn session_numbers(&mut self, place: usize) -> FlowOut<'static> {
        let session = &mut self.sessions[place];
        FlowOut {
            next_incoming_id: (session.remote != Half::Idle).then_some(session.next_incoming_id),
            incoming_window: session.incoming_window.announce(&self.config),
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
                    HeldKind::Transfer { .. } => self.sessions[session].transferred(),
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

    pub(crate) fn drop_link(&mut self, place: usize) {
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

/// What the fields of a detach, end, close or disposition take at most, beside an error or a state.
const HEAD_BYTES: usize = 40;

/// An error as it fits into a frame of the peer: where it is too large, without its info and with less of its
/// description.
pub(crate) fn fit_error(error: Option<AmqpError>, max_frame_bytes: u32) -> Option<AmqpError> {
    let room = max_frame_bytes as usize - HEAD_BYTES;
    let error = error?;
    if error.encoded().len() <= room {
        return Some(error);
    }
    // A symbol of the specification takes 40 bytes at most; one that fills a frame says nothing.
    let condition = match error.condition() {
        condition if condition.len() <= room / 2 => Condition::from(condition),
        _ => Condition::InternalError,
    };
    // Head, lengths and the absent info of the error itself take less than 32 bytes.
    let left = room - condition.as_str().len() - 32;
    let description = error.description().map(|text| &text[..text.floor_char_boundary(left)]);
    Some(AmqpError::new(&condition, description))
}

/// A delivery state as it fits into a frame of the peer; `None` where there is no shorter way to say it.
#[cold]
pub(crate) fn fit_state(state: &[u8], max_frame_bytes: u32) -> Option<Bytes> {
    match DeliveryState::decode(state).ok()? {
        // The state around the error takes less than 16 bytes.
        DeliveryState::Rejected(error) => Some(rejected(fit_error(error, max_frame_bytes - 16).as_ref())),
        DeliveryState::Modified { delivery_failed, undeliverable_here, .. } => {
            Some(modified(delivery_failed, undeliverable_here, None))
        }
        _ => None,
    }
}

/// Whether a state may stand in a disposition as it is.
pub(crate) fn state_fits(state: Option<&[u8]>, max_frame_bytes: u32) -> bool {
    state.is_none_or(|state| state.len() + HEAD_BYTES <= max_frame_bytes as usize)
}

/// The attach that answers one without giving it a terminus.
pub(crate) fn refusal(link: &Link) -> Attach {
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
