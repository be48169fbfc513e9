//! PUBLISH packets toward the client.

use crate::{
    alias::Alias,
    encode::{self, PublishLength},
    packet::{OutgoingPublish, PacketId, QoS},
    reason::{Misuse, PublishError},
};

use super::{Connection, Peer, State};

impl Connection {
    /// How many more PUBLISH packets of QoS 1 the client takes now.
    pub fn publish_window(&self) -> usize {
        match self.state {
            State::Open(peer) => usize::from(self.window(peer)).saturating_sub(self.outgoing.len()),
            _ => 0,
        }
    }

    /// Queues a PUBLISH toward the client. Of QoS 1 it returns the packet identifier, with which
    /// [`Event::PublishAcknowledged`](super::Event::PublishAcknowledged) comes back.
    ///
    /// # Errors
    /// [`PublishError::Full`] if it is to be tried again later; otherwise the message can never be sent here.
    pub fn publish(&mut self, publish: &OutgoingPublish<'_>) -> Result<Option<PacketId>, PublishError> {
        let (peer, length, alias) = self.prepare(publish)?;
        let packet_id = match publish.qos {
            QoS::AtMostOnce => None,
            _ => Some(self.outgoing.allocate(self.window(peer)).ok_or(PublishError::Full)?),
        };
        self.write(peer, packet_id, publish, length, alias);
        Ok(packet_id)
    }

    /// Queues a PUBLISH that was sent over an earlier connection of the session, under the identifier that it had
    /// (MQTT 5 4.4.0-1) and with DUP.
    ///
    /// # Errors
    /// As [`Connection::publish`], and [`Misuse::UnknownMessage`] if nothing waits under this identifier: the client
    /// may have acknowledged it meanwhile.
    pub fn publish_again(
        &mut self,
        packet_id: PacketId,
        publish: &OutgoingPublish<'_>,
    ) -> Result<(), PublishError> {
        let publish = OutgoingPublish { dup: true, qos: QoS::AtLeastOnce, ..*publish };
        let (peer, length, alias) = self.prepare(&publish)?;
        if !self.outgoing.is_earlier(packet_id) {
            return Err(Misuse::UnknownMessage.into());
        }
        if !self.outgoing.repeat(packet_id, self.window(peer)) {
            return Err(PublishError::Full);
        }
        self.write(peer, Some(packet_id), &publish, length, alias);
        Ok(())
    }

    /// Gives up a message of an earlier connection that will not be sent again: its identifier is free.
    pub fn give_up(&mut self, packet_id: PacketId) {
        if self.outgoing.is_earlier(packet_id) {
            self.outgoing.acknowledge(packet_id);
        }
    }

    fn prepare(&self, publish: &OutgoingPublish<'_>) -> Result<(Peer, PublishLength, Alias), PublishError> {
        let State::Open(peer) = self.state else { return Err(Misuse::NotOpen.into()) };
        if publish.qos == QoS::ExactlyOnce {
            return Err(Misuse::QosNotSupported.into());
        }
        let maximum = peer.topic_alias_maximum.min(self.config.outgoing_aliases);
        let mut alias = match &self.aliases {
            Some(aliases) => aliases.outgoing.choose(publish.topic, maximum),
            None => crate::alias::OutgoingAliases::default().choose(publish.topic, maximum),
        };
        let mut length = PublishLength::of(peer.version, publish, alias)?;
        if length.total() > peer.max_packet_bytes && matches!(alias, Alias::New(_)) {
            alias = Alias::None;
            length = PublishLength::of(peer.version, publish, alias)?;
        }
        if length.total() > peer.max_packet_bytes {
            return Err(PublishError::TooLarge(length.total()));
        }
        // One packet always fits, so that a small bound cannot stop a large message for ever.
        if !self.out.is_empty() && self.out.len() + length.total() > self.config.max_outgoing_bytes {
            return Err(PublishError::Full);
        }
        Ok((peer, length, alias))
    }

    fn write(
        &mut self,
        peer: Peer,
        packet_id: Option<PacketId>,
        publish: &OutgoingPublish<'_>,
        length: PublishLength,
        alias: Alias,
    ) {
        if matches!(alias, Alias::New(_)) {
            self.aliases.get_or_insert_default().outgoing.said(publish.topic, alias);
        }
        encode::put_publish(peer.version, packet_id, publish, length, &mut self.out);
    }

    fn window(&self, peer: Peer) -> u16 {
        self.config.outgoing_window.min(peer.receive_maximum)
    }
}
