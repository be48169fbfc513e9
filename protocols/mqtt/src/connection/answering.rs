//! The driver's answers to what the client has asked for.

use crate::{
    answers::{self, Words},
    packet::{AckKind, PacketId, PublishToken, QoS, Version},
    reason::{DisconnectReason, Misuse, PublishReply, SubscribeReply, UnsubscribeReply},
};

use super::{Connection, Peer, State};

impl Connection {
    /// Answers a PUBLISH. Answers may come in any order; each PUBACK or PUBREC leaves after those of earlier
    /// PUBLISHes.
    ///
    /// The first answer counts. One that comes after the connection's end is kept for
    /// [`Connection::take_session`](super::Connection::take_session), and after that is dropped.
    pub fn acknowledge(&mut self, token: PublishToken, reply: PublishReply) {
        self.acknowledge_because(token, reply, None);
    }

    /// Answers a PUBLISH, and says why in words, which MQTT 5 has room for beside a refusal.
    pub fn acknowledge_because(&mut self, token: PublishToken, reply: PublishReply, words: Option<&str>) {
        let words = match self.state {
            State::Open(Peer { version: Version::V5, wants_words: true, .. }) => words,
            _ => None,
        };
        self.incoming.settle(token, reply, words);
        if let State::Open(peer) = self.state {
            self.answer_publishes(peer);
        }
    }

    /// Says that nobody has a message and that this is no reason to refuse it: it is never answered, and neither is what
    /// was published behind it. Once the connection is over, the client sends it again, and then it is a new message.
    pub fn withhold(&mut self, token: PublishToken) {
        self.incoming.withhold(token);
    }

    /// Whether a message of QoS 2 that was published over an earlier connection of the session has no verdict.
    pub fn awaits_earlier(&self) -> bool {
        self.incoming.awaits_earlier()
    }

    /// Whether a message of an earlier connection of the session, which has no answer, has been published again over
    /// this one: then the client waits for the answer, and else nobody does.
    pub fn is_repeated(&self, token: PublishToken) -> bool {
        self.incoming.is_repeated(token)
    }

    /// Writes the PUBACKs and PUBRECs that may leave.
    pub(super) fn answer_publishes(&mut self, peer: Peer) {
        let refusals_end = peer.version == Version::V5;
        while let Some(answer) = self.incoming.pop(refusals_end) {
            let kind = if answer.qos == QoS::ExactlyOnce { AckKind::PubRec } else { AckKind::PubAck };
            let words = Words::new(answer.words.as_deref(), peer.max_packet_bytes);
            let code = answer.reply.code();
            answers::put_ack(peer.version, kind, answer.packet_id, code, words, &mut self.out);
        }
    }

    /// Answers a SUBSCRIBE, each filter in its order. QoS 2 is granted as QoS 1.
    ///
    /// # Errors
    /// [`Misuse`] if no such SUBSCRIBE waits, or the number of answers is not that of its filters.
    pub fn suback(&mut self, packet_id: PacketId, replies: &[SubscribeReply]) -> Result<(), Misuse> {
        self.suback_because(packet_id, replies, None)
    }

    /// Answers a SUBSCRIBE, and says in words why filters are not granted, which MQTT 5 has room for.
    ///
    /// # Errors
    /// As [`Connection::suback`].
    pub fn suback_because(
        &mut self,
        packet_id: PacketId,
        replies: &[SubscribeReply],
        words: Option<&str>,
    ) -> Result<(), Misuse> {
        let peer = self.take_request(packet_id, replies.len())?;
        let before = self.out.len();
        let words = Words::new(words.filter(|_| peer.wants_words), peer.max_packet_bytes);
        answers::put_suback(peer.version, packet_id, replies, words, &mut self.out);
        self.judge_answer(peer, before);
        Ok(())
    }

    /// Answers an UNSUBSCRIBE, each filter in its order.
    ///
    /// # Errors
    /// [`Misuse`] if no such UNSUBSCRIBE waits, or the number of answers is not that of its filters.
    pub fn unsuback(&mut self, packet_id: PacketId, replies: &[UnsubscribeReply]) -> Result<(), Misuse> {
        let peer = self.take_request(packet_id, replies.len())?;
        let before = self.out.len();
        answers::put_unsuback(peer.version, packet_id, replies, Words::default(), &mut self.out);
        self.judge_answer(peer, before);
        Ok(())
    }

    fn take_request(&mut self, packet_id: PacketId, given: usize) -> Result<Peer, Misuse> {
        let State::Open(peer) = self.state else { return Err(Misuse::NotOpen) };
        let index = self.requests.iter().position(|request| request.packet_id == packet_id);
        let index = index.ok_or(Misuse::UnknownRequest)?;
        let expected = self.requests[index].filters;
        if expected != given {
            return Err(Misuse::AnswerCount { expected, given });
        }
        self.requests.swap_remove(index);
        if self.requests.is_empty() {
            self.requests = Vec::new();
        }
        Ok(peer)
    }

    /// An answer that grows with its request may be larger than the client takes; then it is not sent.
    fn judge_answer(&mut self, peer: Peer, before: usize) {
        if self.out.len() - before > peer.max_packet_bytes {
            self.out.truncate(before);
            self.disconnect(DisconnectReason::PacketTooLarge);
        }
    }
}
