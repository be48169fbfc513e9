//! Commands that were published with QoS 1 and wait for the device's PUBACK, and which of them the hub delivers again.
//!
//! The gateway keeps no command. When a connection ends the hub is told nothing of those without a PUBACK, and
//! delivers them again once the device is back. A client that comes back to its session is to get them under the
//! packet identifiers that they had, with DUP (MQTT 3.1.1 4.4.0-1, MQTT 5 4.4.0-1). So a delivery has to be recognised
//! as one that was there before: by the message-id, which AMQP 1.0 3.2.4 makes unique, together with the device and the
//! body, for a client may throw away what comes under an identifier that it knows. The delivery-tag and the
//! delivery-id are no help: they begin anew with each link. What has no message-id is never recognised: its identifier
//! is given up, and it is a new message.
//!
//! The same holds where the hub's connection is lost and the device's is not. MQTT 5 4.4.0-1 lets nothing be sent again
//! then, and nothing has to be: the PUBACK that is still to come is the answer to the new delivery.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use fieldgate_mappings::address::DeviceId;
use fieldgate_mappings::message::Message;
use fieldgate_mqtt::PacketId;

use crate::upstream::CommandId;

/// By what a command is recognised: a digest, so that a long message-id costs no more than a short one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Print(u64);

impl Print {
    /// The one of a command that has a message-id.
    pub(super) fn of(message: &Message) -> Option<Self> {
        let id = message.properties.message_id.as_ref()?;
        let mut hasher = DefaultHasher::new();
        (&message.device, id, &message.body).hash(&mut hasher);
        Some(Self(hasher.finish()))
    }
}

/// What the session remembers of a command without a PUBACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeptCommand {
    pub(super) packet_id: PacketId,
    print: Print,
}

/// What a delivery is to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// A new message.
    New,
    /// It was sent over an earlier connection, under this identifier.
    Earlier(PacketId),
    /// The client has it already, and is to answer.
    Sent,
}

#[derive(Debug)]
struct Sent {
    packet_id: PacketId,
    print: Option<Print>,
    /// What the hub calls it; nothing while it has not delivered it again.
    delivery: Option<(DeviceId, CommandId)>,
}

/// In the order in which they were sent. At most as many as the window of commands, and what the session remembers.
#[derive(Debug, Default)]
pub(super) struct InFlight(Vec<Sent>);

impl InFlight {
    /// Goes on with what an earlier connection has left.
    pub(super) fn resume(&mut self, kept: Vec<KeptCommand>) {
        let earlier = kept.into_iter();
        let earlier = earlier.map(|KeptCommand { packet_id, print }| Sent {
            packet_id,
            print: Some(print),
            delivery: None,
        });
        self.0.splice(..0, earlier);
    }

    /// What the next connection can recognise, of which `most` are remembered: the newest, for what is older and has not
    /// come again is gone from the hub.
    pub(super) fn leave(&self, most: usize) -> Vec<KeptCommand> {
        let known = self.0.iter().rev();
        let known =
            known.filter_map(|sent| sent.print.map(|print| KeptCommand { packet_id: sent.packet_id, print }));
        let mut kept: Vec<_> = known.take(most).collect();
        kept.reverse();
        kept
    }

    /// The hub has delivered something. What the client has already waits for its answer under this delivery now.
    pub(super) fn recognise(&mut self, print: Option<Print>, delivery: CommandId) -> Known {
        let Some(print) = print else { return Known::New };
        for sent in self.0.iter_mut().filter(|sent| sent.print == Some(print)) {
            match &mut sent.delivery {
                None => return Known::Earlier(sent.packet_id),
                // Two deliveries over one link are two messages, whatever they are called.
                Some((_, former)) if former.is_of_the_link_of(delivery) => {}
                Some((_, former)) => {
                    *former = delivery;
                    return Known::Sent;
                }
            }
        }
        Known::New
    }

    /// It was published under this identifier.
    pub(super) fn sent(&mut self, packet_id: PacketId, print: Option<Print>, of: &DeviceId, id: CommandId) {
        let delivery = Some((of.clone(), id));
        match self.0.iter_mut().find(|sent| sent.packet_id == packet_id) {
            Some(again) => again.delivery = delivery,
            None => self.0.push(Sent { packet_id, print, delivery }),
        }
    }

    /// It is not to come again.
    pub(super) fn forget(&mut self, packet_id: PacketId) {
        self.0.retain(|sent| sent.packet_id != packet_id);
    }

    /// A device's subscription is gone: what is delivered over its next one is new, and an answer is nobody's.
    pub(super) fn lose(&mut self, device: &DeviceId) {
        self.0.retain(|sent| sent.delivery.as_ref().is_none_or(|(of, _)| of != device));
    }

    /// The client has answered. Gives the delivery that waits for it, if there is one.
    pub(super) fn acknowledged(&mut self, packet_id: PacketId) -> Option<(DeviceId, CommandId)> {
        let at = self.0.iter().position(|sent| sent.packet_id == packet_id)?;
        self.0.remove(at).delivery
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use fieldgate_mappings::address::Address;
    use fieldgate_mappings::message::{Direction, MessageId};

    use super::*;

    fn command(device: &str, id: Option<&'static str>, body: &'static str) -> Message {
        let device = DeviceId::new(device).expect("legal");
        let address = Address::parse("devices/d1/messages/devicebound").expect("legal");
        let mut message =
            Message::new(device, Direction::Downlink, address, Bytes::from_static(body.as_bytes()));
        message.properties.message_id = id.map(|id| MessageId::String(id.into()));
        message
    }

    fn id(number: u16) -> PacketId {
        PacketId::new(number).expect("not zero")
    }

    #[test]
    fn a_command_is_known_by_its_device_its_message_id_and_its_body() {
        let print = Print::of(&command("d1", Some("m"), "open"));
        assert_eq!(Print::of(&command("d1", Some("m"), "open")), print);
        for other in
            [command("d2", Some("m"), "open"), command("d1", Some("n"), "open"), command("d1", Some("m"), "")]
        {
            assert_ne!(Print::of(&other), print);
        }
        assert_eq!(Print::of(&command("d1", None, "open")), None);
    }

    #[test]
    fn so_many_are_remembered_and_the_newest() {
        let device = DeviceId::new("d1").expect("legal");
        let mut in_flight = InFlight::default();
        let prints = ["a", "b", "c"].map(|text| Print::of(&command("d1", Some(text), text)));
        for (number, print) in (1..).zip(prints) {
            in_flight.sent(id(number), print, &device, CommandId::numbered(number.into()));
        }
        in_flight.sent(id(4), None, &device, CommandId::numbered(4));
        let kept = in_flight.leave(2);
        assert_eq!(kept.iter().map(|kept| kept.packet_id).collect::<Vec<_>>(), [id(2), id(3)]);
        let mut next = InFlight::default();
        next.resume(kept);
        assert_eq!(next.recognise(prints[0], CommandId::numbered(1)), Known::New);
        assert_eq!(next.recognise(prints[2], CommandId::numbered(2)), Known::Earlier(id(3)));
        next.sent(id(3), prints[2], &device, CommandId::numbered(2));
        assert_eq!(
            next.recognise(prints[2], CommandId::numbered(3)),
            Known::New,
            "one more, by the same link"
        );
        assert_eq!(next.acknowledged(id(3)), Some((device, CommandId::numbered(2))));
        assert_eq!(next.acknowledged(id(2)), None, "the hub has not delivered it again");
    }
}
