//! The state of one link endpoint: its handles, both halves of its attachment, and its credit.
//!
//! Not here: what is in a delivery, who settles it, and when credit is given. The endpoint layer or the router
//! decide that; this file only keeps the numbers that both of them need (2.6.7).

use crate::performative::Role;

/// One direction of an endpoint's life: what a side has said about its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Nothing was said yet.
    Idle,
    /// `begin` or `attach` was sent.
    Open,
    /// `end` or `detach` was sent.
    Ended,
}

/// A link of a session, seen from our end.
#[derive(Debug)]
pub(crate) struct Link {
    /// Tells this link from a later one in the same place of the table.
    pub(crate) stamp: u32,
    /// Place of the session in the session table.
    pub(crate) session: u32,
    pub(crate) name: Box<str>,
    /// Our role.
    pub(crate) role: Role,
    /// Our handle; given with the link's creation, also before we have answered an attach.
    pub(crate) handle: u32,
    /// The peer's handle, where `remote` is `Open`.
    pub(crate) remote_handle: u32,
    pub(crate) local: Half,
    pub(crate) remote: Half,
    /// The engine has detached the link for a violation; the application does not know it any more.
    pub(crate) defunct: bool,
    /// Deliveries begun on this link since its initial-delivery-count (serial).
    pub(crate) delivery_count: u32,
    /// Where `delivery_count` started.
    pub(crate) initial_delivery_count: u32,
    /// Deliveries that may still begin: for a sender what the peer's last flow leaves, for a receiver what the
    /// most generous of our flows leaves, since a smaller one may have crossed with transfers.
    pub(crate) credit: u32,
    /// The last flow of the peer asked to drain (our role: sender).
    pub(crate) drain: bool,
    /// The delivery-id of the delivery whose last frame has not come or gone yet.
    pub(crate) delivery: Option<u32>,
    /// Frames of this link that wait for the session's window.
    pub(crate) held: u32,
}

impl Link {
    pub(crate) fn new(stamp: u32, session: u32, name: &str, role: Role, handle: u32) -> Self {
        Self {
            stamp,
            session,
            name: name.into(),
            role,
            handle,
            remote_handle: 0,
            local: Half::Idle,
            remote: Half::Idle,
            defunct: false,
            delivery_count: 0,
            initial_delivery_count: 0,
            credit: 0,
            drain: false,
            delivery: None,
            held: 0,
        }
    }

    /// Whether the application has no business with the link any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.defunct || (self.local == Half::Ended && self.remote == Half::Ended)
    }

    /// We give credit (our role: receiver). `stated` is the delivery-count of the flow, `credit` its link-credit.
    /// The limit only grows: transfers sent under an older, larger credit are legal.
    pub(crate) fn grant(&mut self, stated: u32, credit: u32) {
        let behind = self.delivery_count.wrapping_sub(stated);
        let left = if behind < 1 << 31 {
            credit.saturating_sub(behind)
        } else {
            credit.saturating_add(behind.wrapping_neg())
        };
        self.credit = self.credit.max(left);
    }

    /// The peer gives credit (our role: sender). A delivery-count that was never reached counts as ours.
    pub(crate) fn credited(&mut self, stated: Option<u32>, credit: u32, drain: bool) {
        // 2.6.7: without a delivery-count the receiver has not seen our attach yet.
        let stated = stated.unwrap_or(self.initial_delivery_count);
        let under_way = self.delivery_count.wrapping_sub(stated);
        let under_way = if under_way < 1 << 31 { under_way } else { 0 };
        self.credit = credit.saturating_sub(under_way);
        self.drain = drain;
    }

    /// The sending peer states its delivery-count (our role: receiver), which a drain moves ahead.
    pub(crate) fn counted(&mut self, stated: u32) {
        let ahead = stated.wrapping_sub(self.delivery_count);
        if ahead == 0 || (ahead == u32::MAX && self.delivery.is_some()) {
            // Some senders count a delivery at its last frame, we at its first.
            return;
        }
        self.delivery_count = stated;
        if ahead < 1 << 31 {
            self.credit = self.credit.saturating_sub(ahead);
        }
    }

    /// A delivery begins. False where the credit does not allow it; the count moves all the same.
    pub(crate) fn begin_delivery(&mut self) -> bool {
        self.delivery_count = self.delivery_count.wrapping_add(1);
        match self.credit.checked_sub(1) {
            Some(left) => {
                self.credit = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receiver(delivery_count: u32) -> Link {
        let mut link = Link::new(0, 0, "l", Role::Receiver, 0);
        link.delivery_count = delivery_count;
        link
    }

    #[test]
    fn a_smaller_grant_does_not_take_back_what_may_be_under_way() {
        let mut link = receiver(0);
        link.grant(0, 10);
        assert!(link.begin_delivery());
        link.grant(1, 2);
        assert_eq!(link.credit, 9);
        link.grant(1, 20);
        assert_eq!(link.credit, 20);
    }

    #[test]
    fn a_grant_with_an_old_count_is_a_limit() {
        let mut link = receiver(u32::MAX);
        link.grant(u32::MAX, 3);
        assert!(link.begin_delivery());
        assert!(link.begin_delivery());
        assert_eq!(link.delivery_count, 1);
        link.grant(u32::MAX, 5);
        assert_eq!(link.credit, 3);
    }

    #[test]
    fn credit_beyond_half_the_circle_counts() {
        let mut link = receiver(7);
        link.grant(7, u32::MAX);
        assert_eq!(link.credit, u32::MAX);
        assert!(link.begin_delivery());
        assert_eq!(link.credit, u32::MAX - 1);
    }

    #[test]
    fn a_drained_sender_uses_its_credit_up() {
        let mut link = receiver(5);
        link.grant(5, 10);
        link.counted(15);
        assert_eq!((link.delivery_count, link.credit), (15, 0));
        assert!(!link.begin_delivery());
    }

    #[test]
    fn a_count_that_goes_back_gives_nothing() {
        let mut link = receiver(5);
        link.grant(5, 10);
        link.counted(2);
        assert_eq!((link.delivery_count, link.credit), (2, 10));
    }

    #[test]
    fn credit_for_a_sender_leaves_out_what_is_under_way() {
        let mut link = Link::new(0, 0, "l", Role::Sender, 0);
        link.delivery_count = 4;
        link.credited(Some(2), 10, false);
        assert_eq!(link.credit, 8);
        link.credited(Some(0), 3, true);
        assert_eq!(link.credit, 0);
        assert!(link.drain);
        link.credited(Some(9), 3, false);
        assert_eq!(link.credit, 3);
    }
}
