//! The client's PUBLISH packets of QoS 1 and 2 that are not through: without PUBACK or PUBREC, and of QoS 2 without
//! PUBREL.

use std::{collections::VecDeque, mem};

use crate::{
    packet::{PacketId, PublishToken, QoS},
    reason::{PublishReply, Violation},
    session::{Session, Undecided},
};

/// Entries that an empty queue keeps room for, 6 bytes each.
const KEPT: usize = 32;

/// PUBLISH packets from the client, in the order of their arrival.
///
/// Answers come in any order; PUBACKs and PUBRECs leave in the order of the PUBLISHes (MQTT 5 4.6.0-2, 4.6.0-3).
///
/// ```text
///            PUBLISH                answer below 0x80, PUBREC            PUBREL, PUBCOMP
///   unknown ---------> waiting ----------------------------> unreleased ---------> unknown
///                         | PUBACK, or PUBREC of 0x80 and above             (QoS 2 only)
///                         +------------------------------------------------------> unknown
/// ```
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    waiting: VecDeque<Waiting>,
    /// Number of the token of the first one waiting.
    first: u64,
    /// Made with the first PUBLISH of QoS 2 or the first refusal in words: most clients have neither.
    rare: Option<Box<Rare>>,
}

#[derive(Debug, Default)]
struct Rare {
    /// Sorted by their identifiers.
    unreleased: Vec<Unreleased>,
    /// How many of them count in the Receive Maximum.
    counted: usize,
    /// Published over an earlier connection, and undecided.
    earlier: Vec<Earlier>,
    /// Reason strings for answers that cannot leave yet.
    words: Vec<(PublishToken, Box<str>)>,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    packet_id: PacketId,
    qos: QoS,
    answer: Answer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Undecided,
    /// The answer of the driver.
    Reply(PublishReply),
    /// A repetition of a message that was taken before: PUBREC once more.
    Again,
    /// The repetition's PUBREL came first: nothing is left to be said.
    Through,
    /// Nobody has it and nothing is said, until the client sends it again over another connection.
    Withheld,
}

/// Taken, and told so by PUBREC.
#[derive(Debug, Clone, Copy)]
struct Unreleased {
    packet_id: PacketId,
    /// Published over this connection: the Receive Maximum starts anew with each (MQTT 5 4.9).
    counts: bool,
}

#[derive(Debug)]
struct Earlier {
    undecided: Undecided,
    /// The token under which it waits now, if it has been published again.
    again: Option<PublishToken>,
}

/// What becomes of a PUBLISH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrived {
    /// A message that nobody has.
    New(PublishToken),
    /// The answer to the first one is the answer to this one as well.
    Known,
}

/// An answer that is to be written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) packet_id: PacketId,
    pub(crate) qos: QoS,
    pub(crate) reply: PublishReply,
    pub(crate) words: Option<Box<str>>,
}

impl Incoming {
    /// Goes on with the state of an earlier connection.
    pub(crate) fn resume(&mut self, session: &mut Session) {
        self.first = session.next_token;
        if session.unreleased.is_empty() && session.undecided.is_empty() {
            return;
        }
        let rare = self.rare();
        rare.unreleased = mem::take(&mut session.unreleased)
            .into_iter()
            .map(|packet_id| Unreleased { packet_id, counts: false })
            .collect();
        rare.unreleased.sort_unstable_by_key(|unreleased| unreleased.packet_id);
        rare.earlier = mem::take(&mut session.undecided)
            .into_iter()
            .map(|undecided| Earlier { undecided, again: None })
            .collect();
    }

    /// Whether an earlier connection's message has no verdict.
    pub(crate) fn awaits_earlier(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| !rare.earlier.is_empty())
    }

    /// Gives the state to a session; nothing is left.
    pub(crate) fn leave(&mut self, session: &mut Session) {
        let waiting = mem::take(&mut self.waiting);
        let rare = self.rare.take().map(|rare| *rare).unwrap_or_default();
        session.next_token = self.first + waiting.len() as u64;
        session.unreleased = rare.unreleased.iter().map(|unreleased| unreleased.packet_id).collect();
        for earlier in &rare.earlier {
            // What was published again waits under both tokens, of which the driver knows the first.
            session.undecided.push(earlier.undecided);
        }
        for (waiting, number) in waiting.iter().zip(self.first..) {
            let token = PublishToken::from_number(number);
            let known = rare.earlier.iter().any(|earlier| earlier.again == Some(token));
            match waiting.answer {
                _ if waiting.qos != QoS::ExactlyOnce || known => {}
                Answer::Undecided => {
                    session.undecided.push(Undecided { packet_id: waiting.packet_id, token });
                }
                // Decided, and not told: the client publishes it again, and then hears of it.
                Answer::Reply(reply) if reply.code() >= 0x80 => {}
                Answer::Reply(_) | Answer::Again => session.unreleased.push(waiting.packet_id),
                Answer::Through | Answer::Withheld => {}
            }
        }
    }

    /// Packets without PUBACK or PUBREC.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// What counts in the Receive Maximum (MQTT 5 4.9): QoS 2 until PUBCOMP.
    pub(crate) fn counted(&self) -> usize {
        self.waiting.len() + self.rare.as_ref().map_or(0, |rare| rare.counted)
    }

    /// Packets of QoS 2 that were answered by PUBREC and are not released.
    pub(crate) fn unreleased(&self) -> usize {
        self.rare.as_ref().map_or(0, |rare| rare.unreleased.len())
    }

    /// Takes notice of a PUBLISH.
    pub(crate) fn arrive(
        &mut self,
        packet_id: PacketId,
        qos: QoS,
        dup: bool,
        repeats: Repeats,
    ) -> Result<Arrived, Violation> {
        const IN_USE: Violation = Violation::Protocol("a packet identifier that is in use");
        if let Some(first) = self.waiting.iter().find(|waiting| waiting.packet_id == packet_id) {
            // One answer for both. Without DUP it is another message under the same identifier.
            let may = dup && first.qos == qos && (qos == QoS::ExactlyOnce || repeats == Repeats::AtAnyTime);
            return if may { Ok(Arrived::Known) } else { Err(IN_USE) };
        }
        if let Some(rare) = &mut self.rare
            && let Some(unreleased) = rare.take(packet_id)
        {
            // Until PUBREL the identifier stands for the same message (MQTT 5 4.3.3-10).
            if qos == QoS::ExactlyOnce {
                self.waiting.push_back(Waiting { packet_id, qos, answer: Answer::Again });
                return Ok(Arrived::Known);
            }
            if unreleased.counts {
                return Err(IN_USE);
            }
            // A client that has lost its state, and not said so, begins anew.
        }
        let token = PublishToken::from_number(self.first + self.waiting.len() as u64);
        self.waiting.push_back(Waiting { packet_id, qos, answer: Answer::Undecided });
        if let Some(rare) = &mut self.rare
            && qos == QoS::ExactlyOnce
            && let Some(earlier) =
                rare.earlier.iter_mut().find(|earlier| earlier.undecided.packet_id == packet_id)
        {
            earlier.again = Some(token);
            return Ok(Arrived::Known);
        }
        Ok(Arrived::New(token))
    }

    /// Whether a message of an earlier connection has been published again over this one.
    pub(crate) fn is_repeated(&self, token: PublishToken) -> bool {
        let rare = self.rare.as_ref();
        let earlier =
            rare.and_then(|rare| rare.earlier.iter().find(|earlier| earlier.undecided.token == token));
        earlier.is_some_and(|earlier| earlier.again.is_some())
    }

    /// Keeps the answer for a PUBLISH; the first answer counts, and an unknown token changes nothing.
    pub(crate) fn settle(&mut self, token: PublishToken, reply: PublishReply, words: Option<&str>) {
        let is_taken = reply.code() < 0x80;
        if let Some(token) = self.decide(token, Answer::Reply(reply), is_taken)
            && let Some(words) = words
        {
            self.rare().words.push((token, words.into()));
        }
    }

    /// Nobody has the message, and its answer never leaves.
    pub(crate) fn withhold(&mut self, token: PublishToken) {
        self.decide(token, Answer::Withheld, false);
    }

    /// Says under which token the PUBLISH waits, if it does.
    fn decide(&mut self, token: PublishToken, answer: Answer, is_taken: bool) -> Option<PublishToken> {
        let is_earlier = token.number() < self.first;
        let token = if is_earlier { self.decide_earlier(token, is_taken)? } else { token };
        let index = usize::try_from(token.number().checked_sub(self.first)?).ok()?;
        let waiting = self.waiting.get_mut(index).filter(|waiting| waiting.answer == Answer::Undecided)?;
        waiting.answer = answer;
        Some(token)
    }

    /// The answer to a PUBLISH of an earlier connection; says under which token it waits here.
    fn decide_earlier(&mut self, token: PublishToken, is_taken: bool) -> Option<PublishToken> {
        let rare = self.rare.as_mut()?;
        let at = rare.earlier.iter().position(|earlier| earlier.undecided.token == token)?;
        let earlier = rare.earlier.swap_remove(at);
        if earlier.again.is_none() && is_taken {
            rare.insert(Unreleased { packet_id: earlier.undecided.packet_id, counts: false });
        }
        earlier.again
    }

    /// The next PUBACK or PUBREC that may leave; a PUBREC of MQTT 5 with 0x80 and above ends the exchange.
    pub(crate) fn pop(&mut self, refusals_end: bool) -> Option<Reply> {
        loop {
            let Waiting { packet_id, qos, answer } = *self.waiting.front()?;
            let (reply, refused) = match answer {
                Answer::Undecided | Answer::Withheld => return None,
                Answer::Reply(reply) => (Some(reply), refusals_end && reply.code() >= 0x80),
                Answer::Again => (Some(PublishReply::Success), false),
                Answer::Through => (None, false),
            };
            let token = PublishToken::from_number(self.first);
            self.waiting.pop_front();
            self.first += 1;
            if self.waiting.is_empty() && self.waiting.capacity() > KEPT {
                self.waiting = VecDeque::new();
            }
            let Some(reply) = reply else { continue };
            if qos == QoS::ExactlyOnce && !refused {
                self.rare().insert(Unreleased { packet_id, counts: true });
            }
            let words = self.rare.as_mut().and_then(|rare| {
                let at = rare.words.iter().position(|(of, _)| *of == token)?;
                Some(rare.words.swap_remove(at).1)
            });
            return Some(Reply { packet_id, qos, reply, words });
        }
    }

    /// PUBREL: whether the identifier was known.
    pub(crate) fn release(&mut self, packet_id: PacketId) -> Result<bool, Violation> {
        let known = self.waiting.iter_mut().find(|waiting| waiting.packet_id == packet_id);
        if let Some(waiting) = known {
            return match waiting.answer {
                Answer::Again | Answer::Through => {
                    waiting.answer = Answer::Through;
                    Ok(true)
                }
                Answer::Undecided | Answer::Withheld | Answer::Reply(_) => {
                    Err(Violation::Protocol("PUBREL before PUBREC")) // MQTT 5 4.3.3-5
                }
            };
        }
        Ok(self.rare.as_mut().is_some_and(|rare| rare.take(packet_id).is_some()))
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }
}

impl Rare {
    fn insert(&mut self, unreleased: Unreleased) {
        let at = self.unreleased.binary_search_by_key(&unreleased.packet_id, |known| known.packet_id);
        self.counted += usize::from(unreleased.counts);
        match at {
            // An identifier stands once: whoever inserts has taken it out, or has never seen it.
            Ok(at) => {
                self.counted -= usize::from(self.unreleased[at].counts);
                self.unreleased[at] = unreleased;
            }
            Err(at) => self.unreleased.insert(at, unreleased),
        }
    }

    fn take(&mut self, packet_id: PacketId) -> Option<Unreleased> {
        let at = self.unreleased.binary_search_by_key(&packet_id, |known| known.packet_id).ok()?;
        let taken = self.unreleased.remove(at);
        self.counted -= usize::from(taken.counts);
        Some(taken)
    }
}

/// When a client may send again what has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeats {
    /// MQTT 3.1 told clients to, after a while, and clients of 3.1.1 still do.
    AtAnyTime,
    /// MQTT 5 4.4.0-1: over the next connection only. Of QoS 2 a repetition is harmless, and 4.3.3-10 wants it answered.
    AfterReconnect,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u16) -> PacketId {
        PacketId::new(number).expect("not zero")
    }

    fn arrive(incoming: &mut Incoming, number: u16, qos: QoS) -> PublishToken {
        match incoming.arrive(id(number), qos, false, Repeats::AfterReconnect) {
            Ok(Arrived::New(token)) => token,
            other => panic!("{other:?}"),
        }
    }

    fn pop(incoming: &mut Incoming) -> Option<(PacketId, PublishReply)> {
        incoming.pop(true).map(|reply| (reply.packet_id, reply.reply))
    }

    #[test]
    fn answers_out_of_order_leave_in_order() {
        let mut incoming = Incoming::default();
        let qos = [QoS::AtLeastOnce, QoS::ExactlyOnce, QoS::AtLeastOnce];
        let tokens: Vec<_> =
            [7, 3, 9].into_iter().zip(qos).map(|(number, qos)| arrive(&mut incoming, number, qos)).collect();
        incoming.settle(tokens[2], PublishReply::Success, None);
        incoming.settle(tokens[1], PublishReply::QuotaExceeded, Some("full"));
        assert_eq!(pop(&mut incoming), None);
        incoming.settle(tokens[0], PublishReply::Success, None);
        incoming.settle(tokens[0], PublishReply::NotAuthorised, Some("never said"));
        assert_eq!(pop(&mut incoming), Some((id(7), PublishReply::Success)));
        let refused = incoming.pop(true).expect("answered");
        assert_eq!((refused.reply, refused.words.as_deref()), (PublishReply::QuotaExceeded, Some("full")));
        incoming.settle(tokens[0], PublishReply::NotAuthorised, None);
        incoming.settle(PublishToken::from_number(99), PublishReply::NotAuthorised, None);
        assert_eq!(pop(&mut incoming), Some((id(9), PublishReply::Success)));
        assert_eq!((pop(&mut incoming), incoming.len(), incoming.counted()), (None, 0, 0));
        assert_eq!(arrive(&mut incoming, 7, QoS::AtLeastOnce).number(), 3, "a token is never used twice");
    }

    #[test]
    fn what_is_unreleased_counts_until_it_is_released() {
        let mut incoming = Incoming::default();
        for number in [5, 2, 9] {
            let token = arrive(&mut incoming, number, QoS::ExactlyOnce);
            incoming.settle(token, PublishReply::Success, None);
            assert!(pop(&mut incoming).is_some());
        }
        assert_eq!((incoming.len(), incoming.counted(), incoming.unreleased()), (0, 3, 3));
        assert_eq!(incoming.release(id(2)), Ok(true));
        assert_eq!(incoming.release(id(2)), Ok(false));
        assert_eq!(incoming.counted(), 2);
        let mut session = Session::default();
        incoming.leave(&mut session);
        let mut next = Incoming::default();
        next.resume(&mut session);
        assert_eq!((next.counted(), next.unreleased()), (0, 2), "the Receive Maximum begins anew");
        assert_eq!(next.arrive(id(9), QoS::ExactlyOnce, true, Repeats::AfterReconnect), Ok(Arrived::Known));
        assert_eq!(next.counted(), 1);
        assert_eq!(pop(&mut next), Some((id(9), PublishReply::Success)));
        assert_eq!(next.counted(), 1);
        assert_eq!(arrive(&mut next, 5, QoS::AtLeastOnce).number(), 4, "the client has lost its state");
        assert_eq!(next.unreleased(), 1);
    }

    #[test]
    fn a_queue_that_was_long_gives_its_memory_back() {
        let mut incoming = Incoming::default();
        let tokens: Vec<_> =
            (1..=100).map(|number| arrive(&mut incoming, number, QoS::AtLeastOnce)).collect();
        tokens.iter().for_each(|token| incoming.settle(*token, PublishReply::Success, None));
        assert_eq!(std::iter::from_fn(|| pop(&mut incoming)).count(), 100);
        assert_eq!(incoming.waiting.capacity(), 0);
        assert!(incoming.rare.is_none());
    }

    #[test]
    fn what_is_withheld_is_never_answered_and_is_new_when_it_comes_again() {
        let mut incoming = Incoming::default();
        let withheld = arrive(&mut incoming, 7, QoS::ExactlyOnce);
        let behind = arrive(&mut incoming, 8, QoS::ExactlyOnce);
        incoming.withhold(withheld);
        incoming.settle(behind, PublishReply::Success, None);
        incoming.settle(withheld, PublishReply::Success, None);
        assert_eq!(pop(&mut incoming), None);
        assert!(incoming.release(id(7)).is_err(), "PUBREL before PUBREC");
        let mut session = Session::default();
        incoming.leave(&mut session);
        let mut next = Incoming::default();
        next.resume(&mut session);
        assert_eq!(next.release(id(8)), Ok(true));
        let undecided = arrive(&mut next, 7, QoS::ExactlyOnce);
        // The same over one more connection.
        next.leave(&mut session);
        let mut last = Incoming::default();
        last.resume(&mut session);
        let again = last.arrive(id(7), QoS::ExactlyOnce, true, Repeats::AfterReconnect);
        assert_eq!(again, Ok(Arrived::Known));
        last.withhold(undecided);
        assert_eq!(pop(&mut last), None);
        last.leave(&mut session);
        assert!(session.is_empty());
    }
}
