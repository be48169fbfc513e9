//! The state of one session endpoint: channels, windows, its links by handle, and the frames that wait for the
//! peer's window (2.5.6).
//!
//! Not here: deciding about sessions. The connection calls these functions and writes the frames.

use std::collections::VecDeque;

use bytes::BytesMut;

use crate::connection::numbers::{NumberMap, NumberPool};
use crate::link::Half;
use crate::window::IncomingWindow;

/// A session of a connection.
#[derive(Debug)]
pub(crate) struct Session {
    /// Tells this session from a later one in the same place of the table.
    pub(crate) stamp: u32,
    /// Our channel.
    pub(crate) channel: u16,
    /// The peer's channel, where `remote` is `Open`.
    pub(crate) remote_channel: u16,
    pub(crate) local: Half,
    pub(crate) remote: Half,
    /// The engine has ended the session for a violation; the application does not know it any more.
    pub(crate) defunct: bool,
    /// Transfer-id of the next transfer frame that we write (serial).
    pub(crate) next_outgoing_id: u32,
    /// Delivery-id of the next delivery that we begin (serial).
    pub(crate) next_delivery_id: u32,
    /// Transfer frames that the peer still takes.
    pub(crate) remote_incoming_window: u32,
    /// Transfer-id that we expect next (serial).
    pub(crate) next_incoming_id: u32,
    /// Transfer frames that the peer may still send. None before our begin.
    pub(crate) incoming_window: IncomingWindow,
    /// Delivery-id that the peer used last.
    pub(crate) last_delivery_id: Option<u32>,
    /// The greatest handle that we may use.
    pub(crate) remote_handle_max: u32,
    /// Our handles, and the links behind them.
    pub(crate) handles: NumberPool,
    /// The peer's handles, and the links behind them.
    pub(crate) remote_handles: NumberMap,
    /// Frames that wait for the peer's window.
    backlog: Option<Box<Backlog>>,
}

#[derive(Debug, Default)]
struct Backlog {
    frames: VecDeque<Held>,
    bytes: BytesMut,
    /// What the flows and dispositions among the frames cost, in bytes.
    asides: usize,
}

/// A frame that waits: its bytes stand in the backlog's buffer, in the same order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// Length of its bytes in the backlog.
    pub(crate) len: u32,
    /// Place of its link in the link table. A link stays there as long as frames of it wait.
    pub(crate) link: Option<u32>,
    pub(crate) kind: HeldKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeldKind {
    /// An encoded transfer frame; the only kind that the window counts. With the delivery-id where it is the first
    /// of its delivery.
    Transfer { begins: Option<u32> },
    /// A flow of a link whose transfers wait. The bytes are its properties, if any; the rest is written when its
    /// turn comes, since session numbers change until then.
    Flow(HeldFlow),
    /// An encoded detach frame.
    Detach,
    /// An encoded disposition of ours as a sender.
    Disposition,
    /// An encoded end frame.
    End,
}

impl Held {
    /// What this costs beyond the transfers, whose bytes are bounded by themselves, and beyond detaches and ends, of
    /// which there is one for each link and session.
    fn aside_bytes(&self) -> usize {
        match self.kind {
            HeldKind::Flow(_) | HeldKind::Disposition => self.len as usize + size_of::<Self>(),
            HeldKind::Transfer { .. } | HeldKind::Detach | HeldKind::End => 0,
        }
    }
}

/// The numbers of a flow that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeldFlow {
    pub(crate) delivery_count: Option<u32>,
    pub(crate) link_credit: u32,
    pub(crate) available: Option<u32>,
    pub(crate) drain: bool,
    pub(crate) echo: bool,
}

impl Session {
    pub(crate) fn new(stamp: u32, channel: u16, first_transfer_id: u32) -> Self {
        Self {
            stamp,
            channel,
            remote_channel: 0,
            local: Half::Idle,
            remote: Half::Idle,
            defunct: false,
            next_outgoing_id: first_transfer_id,
            next_delivery_id: first_transfer_id,
            remote_incoming_window: 0,
            next_incoming_id: 0,
            incoming_window: IncomingWindow::default(),
            last_delivery_id: None,
            remote_handle_max: u32::MAX,
            handles: NumberPool::default(),
            remote_handles: NumberMap::default(),
            backlog: None,
        }
    }

    /// The channel of the peer's begin, where ours answers it.
    pub(crate) fn answered_channel(&self) -> Option<u16> {
        (self.remote == Half::Open).then_some(self.remote_channel)
    }

    /// The peer states its window. `next_incoming_id` is absent as long as the peer has not seen our begin.
    pub(crate) fn remote_window(
        &mut self,
        next_incoming_id: Option<u32>,
        window: u32,
        first_transfer_id: u32,
    ) {
        // 2.5.6: what we have sent since the peer's count is under way and uses the window up.
        let under_way = self.next_outgoing_id.wrapping_sub(next_incoming_id.unwrap_or(first_transfer_id));
        // A peer that counts frames which were never sent is taken to be up to date.
        let under_way = if under_way < 1 << 31 { under_way } else { 0 };
        self.remote_incoming_window = window.saturating_sub(under_way);
    }

    /// May a transfer frame be written at once, before all that waits?
    pub(crate) fn may_transfer(&self) -> bool {
        self.remote_incoming_window > 0 && self.backlog.is_none()
    }

    /// A transfer frame is written.
    pub(crate) fn transferred(&mut self) {
        self.next_outgoing_id = self.next_outgoing_id.wrapping_add(1);
        self.remote_incoming_window = self.remote_incoming_window.saturating_sub(1);
    }

    pub(crate) fn backlog_bytes(&self) -> usize {
        // Flows without properties have no bytes; they take room all the same.
        self.backlog
            .as_ref()
            .map_or(0, |backlog| backlog.bytes.len() + backlog.frames.len() * size_of::<Held>())
    }

    /// What the flows and dispositions cost that wait behind transfers, in bytes.
    pub(crate) fn aside_bytes(&self) -> usize {
        self.backlog.as_ref().map_or(0, |backlog| backlog.asides)
    }

    /// The first delivery none of whose frames has gone, if one waits.
    pub(crate) fn unsent_from(&self) -> Option<u32> {
        let mut frames = self.backlog.as_ref()?.frames.iter();
        // Frames wait in the order of their transfer-ids, in which delivery-ids rise.
        frames.find_map(|held| match held.kind {
            HeldKind::Transfer { begins } => begins,
            _ => None,
        })
    }

    pub(crate) fn has_backlog(&self) -> bool {
        self.backlog.is_some()
    }

    /// Holds a frame back; `write` appends its bytes.
    pub(crate) fn hold(&mut self, link: Option<usize>, kind: HeldKind, write: impl FnOnce(&mut BytesMut)) {
        let link = link.map(|place| place as u32);
        let backlog = self.backlog.get_or_insert_default();
        let before = backlog.bytes.len();
        write(&mut backlog.bytes);
        let len = u32::try_from(backlog.bytes.len() - before).expect("a frame's size fits 32 bits");
        let held = Held { len, link, kind };
        backlog.asides += held.aside_bytes();
        backlog.frames.push_back(held);
    }

    /// The next frame that may go now, with its bytes.
    pub(crate) fn release(&mut self) -> Option<(Held, BytesMut)> {
        let backlog = self.backlog.as_mut()?;
        let front = backlog.frames.front()?;
        if matches!(front.kind, HeldKind::Transfer { .. }) && self.remote_incoming_window == 0 {
            return None;
        }
        let held = backlog.frames.pop_front()?;
        backlog.asides -= held.aside_bytes();
        let bytes = backlog.bytes.split_to(held.len as usize);
        if backlog.frames.is_empty() {
            self.backlog = None;
        }
        Some((held, bytes))
    }

    pub(crate) fn drop_backlog(&mut self) {
        self.backlog = None;
    }
}

#[cfg(test)]
mod tests {
    use bytes::BufMut;

    use super::*;

    fn session() -> Session {
        Session::new(0, 0, u32::MAX - 1)
    }

    #[test]
    fn what_is_under_way_uses_the_window_up_across_the_wrap() {
        let mut session = session();
        session.remote_window(None, 5, u32::MAX - 1);
        assert_eq!(session.remote_incoming_window, 5);
        for _ in 0..3 {
            session.transferred();
        }
        assert_eq!(session.next_outgoing_id, 1);
        session.remote_window(Some(u32::MAX), 5, u32::MAX - 1);
        assert_eq!(session.remote_incoming_window, 3);
        session.remote_window(Some(1), u32::MAX, u32::MAX - 1);
        assert_eq!(session.remote_incoming_window, u32::MAX);
        session.remote_window(Some(77), 4, u32::MAX - 1);
        assert_eq!(session.remote_incoming_window, 4);
    }

    #[test]
    fn only_transfers_wait_for_the_window_and_order_is_kept() {
        let mut session = session();
        let transfer = HeldKind::Transfer { begins: Some(9) };
        session.hold(Some(3), transfer, |bytes| bytes.put_slice(b"one"));
        session.hold(Some(3), HeldKind::Detach, |bytes| bytes.put_slice(b"two"));
        assert_eq!(session.backlog_bytes(), 6 + 2 * size_of::<Held>());
        assert!(session.release().is_none());
        session.remote_window(None, 1, u32::MAX - 1);
        let (held, bytes) = session.release().unwrap();
        assert_eq!((held.kind, &bytes[..]), (transfer, &b"one"[..]));
        session.transferred();
        let (held, bytes) = session.release().unwrap();
        assert_eq!((held.kind, &bytes[..]), (HeldKind::Detach, &b"two"[..]));
        assert!(!session.has_backlog());
    }
}
