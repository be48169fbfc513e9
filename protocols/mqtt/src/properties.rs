//! The property block of MQTT 5 (2.2.2): which property has which type, and in which packet it may stand.
//!
//! One iterator reads and judges at once: identifiers that the packet does not allow, a second one of what may
//! stand once, values out of their range, and a block that does not end with a property are violations.

use crate::{reason::Violation, wire::Reader};

/// The packet (or part of one) that holds the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Scope {
    Connect = 1 << 0,
    Will = 1 << 1,
    ConnAck = 1 << 2,
    Publish = 1 << 3,
    /// PUBACK, PUBREC, PUBREL and PUBCOMP: they have the same properties.
    PubAck = 1 << 4,
    Subscribe = 1 << 5,
    SubAck = 1 << 6,
    Unsubscribe = 1 << 7,
    UnsubAck = 1 << 8,
    Disconnect = 1 << 9,
}

/// One property. Only what someone asks for has a name of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Property<'a> {
    PayloadFormat(bool),
    MessageExpiry(u32),
    ContentType(&'a str),
    ResponseTopic(&'a str),
    CorrelationData(&'a [u8]),
    SubscriptionIdentifier(u32),
    SessionExpiry(u32),
    AssignedClientIdentifier(&'a str),
    ServerKeepAlive(u16),
    AuthenticationMethod(&'a str),
    AuthenticationData(&'a [u8]),
    WillDelay(u32),
    ReceiveMaximum(u16),
    TopicAliasMaximum(u16),
    TopicAlias(u16),
    MaximumQoS(bool),
    MaximumPacketSize(u32),
    RequestProblemInformation(bool),
    RequestResponseInformation(bool),
    ResponseInformation(&'a str),
    ReasonString(&'a str),
    User(&'a str, &'a str),
    /// Judged, and of no consequence here.
    Other,
}

/// Identifiers as MQTT 5 2.2.2.2 lists them.
pub(crate) mod id {
    pub(crate) const PAYLOAD_FORMAT: u8 = 0x01;
    pub(crate) const MESSAGE_EXPIRY: u8 = 0x02;
    pub(crate) const CONTENT_TYPE: u8 = 0x03;
    pub(crate) const RESPONSE_TOPIC: u8 = 0x08;
    pub(crate) const CORRELATION_DATA: u8 = 0x09;
    pub(crate) const SUBSCRIPTION_IDENTIFIER: u8 = 0x0B;
    pub(crate) const SESSION_EXPIRY: u8 = 0x11;
    pub(crate) const ASSIGNED_CLIENT_IDENTIFIER: u8 = 0x12;
    pub(crate) const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub(crate) const AUTHENTICATION_METHOD: u8 = 0x15;
    pub(crate) const AUTHENTICATION_DATA: u8 = 0x16;
    pub(crate) const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
    pub(crate) const WILL_DELAY: u8 = 0x18;
    pub(crate) const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
    pub(crate) const RESPONSE_INFORMATION: u8 = 0x1A;
    pub(crate) const SERVER_REFERENCE: u8 = 0x1C;
    pub(crate) const REASON_STRING: u8 = 0x1F;
    pub(crate) const RECEIVE_MAXIMUM: u8 = 0x21;
    pub(crate) const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub(crate) const TOPIC_ALIAS: u8 = 0x23;
    pub(crate) const MAXIMUM_QOS: u8 = 0x24;
    pub(crate) const RETAIN_AVAILABLE: u8 = 0x25;
    pub(crate) const USER: u8 = 0x26;
    pub(crate) const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub(crate) const WILDCARD_SUBSCRIPTION_AVAILABLE: u8 = 0x28;
    pub(crate) const SUBSCRIPTION_IDENTIFIER_AVAILABLE: u8 = 0x29;
    pub(crate) const SHARED_SUBSCRIPTION_AVAILABLE: u8 = 0x2A;
}

/// The scopes in which an identifier may stand; none for an unknown one.
fn allowed_in(identifier: u8) -> u16 {
    use Scope::{ConnAck, Connect, Disconnect, PubAck, Publish, SubAck, Subscribe, UnsubAck, Will};
    let scopes: &[Scope] = match identifier {
        id::PAYLOAD_FORMAT
        | id::MESSAGE_EXPIRY
        | id::CONTENT_TYPE
        | id::RESPONSE_TOPIC
        | id::CORRELATION_DATA => &[Publish, Will],
        id::SUBSCRIPTION_IDENTIFIER => &[Publish, Subscribe],
        id::SESSION_EXPIRY => &[Connect, ConnAck, Disconnect],
        id::AUTHENTICATION_METHOD | id::AUTHENTICATION_DATA => &[Connect, ConnAck],
        id::REQUEST_PROBLEM_INFORMATION | id::REQUEST_RESPONSE_INFORMATION => &[Connect],
        id::WILL_DELAY => &[Will],
        id::SERVER_REFERENCE => &[ConnAck, Disconnect],
        id::REASON_STRING => &[ConnAck, PubAck, SubAck, UnsubAck, Disconnect],
        id::RECEIVE_MAXIMUM | id::TOPIC_ALIAS_MAXIMUM | id::MAXIMUM_PACKET_SIZE => &[Connect, ConnAck],
        id::TOPIC_ALIAS => &[Publish],
        id::ASSIGNED_CLIENT_IDENTIFIER
        | id::SERVER_KEEP_ALIVE
        | id::RESPONSE_INFORMATION
        | id::MAXIMUM_QOS
        | id::RETAIN_AVAILABLE
        | id::WILDCARD_SUBSCRIPTION_AVAILABLE
        | id::SUBSCRIPTION_IDENTIFIER_AVAILABLE
        | id::SHARED_SUBSCRIPTION_AVAILABLE => &[ConnAck],
        id::USER => return u16::MAX,
        _ => &[],
    };
    scopes.iter().fold(0, |set, scope| set | *scope as u16)
}

/// The properties of one block, in their order.
pub(crate) struct Properties<'a> {
    reader: Reader<'a>,
    scope: Scope,
    /// One bit for each identifier that has been seen; all are below 64.
    seen: u64,
    left: usize,
}

impl<'a> Properties<'a> {
    /// Takes the length and the block from the front of `packet`; more than `limit` properties are refused.
    pub(crate) fn read(packet: &mut Reader<'a>, scope: Scope, limit: usize) -> Result<Self, Violation> {
        let length = packet.variable()?;
        let block = packet.take(length)?;
        Ok(Self { reader: Reader::new(block), scope, seen: 0, left: limit })
    }

    /// Judges a whole block of whose values none is wanted.
    pub(crate) fn skip(packet: &mut Reader<'a>, scope: Scope, limit: usize) -> Result<(), Violation> {
        let mut properties = Self::read(packet, scope, limit)?;
        while properties.next()?.is_some() {}
        Ok(())
    }

    /// The next property, `None` at the end of the block.
    pub(crate) fn next(&mut self) -> Result<Option<Property<'a>>, Violation> {
        if self.reader.is_empty() {
            return Ok(None);
        }
        self.left = self.left.checked_sub(1).ok_or(Violation::Quota("properties"))?;
        // The identifier is a Variable Byte Integer by its type; all that exist take one byte.
        let identifier = self.reader.u8()?;
        if allowed_in(identifier) & self.scope as u16 == 0 {
            return Err(Violation::Malformed("a property that this packet does not have"));
        }
        // A client hears its subscription identifiers together; everything else but user properties stands once.
        let repeats = identifier == id::USER
            || (identifier == id::SUBSCRIPTION_IDENTIFIER && self.scope == Scope::Publish);
        let bit = 1u64 << (identifier & 63);
        if self.seen & bit != 0 && !repeats {
            return Err(Violation::Protocol("a property that stands twice"));
        }
        self.seen |= bit;
        self.value(identifier).map(Some)
    }

    fn value(&mut self, identifier: u8) -> Result<Property<'a>, Violation> {
        let reader = &mut self.reader;
        Ok(match identifier {
            id::PAYLOAD_FORMAT => Property::PayloadFormat(flag(reader)?),
            id::MESSAGE_EXPIRY => Property::MessageExpiry(reader.u32()?),
            id::CONTENT_TYPE => Property::ContentType(reader.text()?),
            id::RESPONSE_TOPIC => Property::ResponseTopic(reader.text()?),
            id::CORRELATION_DATA => Property::CorrelationData(reader.binary()?),
            id::SUBSCRIPTION_IDENTIFIER => match reader.variable()? {
                0 => return Err(Violation::Protocol("subscription identifier 0")),
                number => Property::SubscriptionIdentifier(
                    u32::try_from(number).expect("a variable byte integer has 28 bits"),
                ),
            },
            id::SESSION_EXPIRY => Property::SessionExpiry(reader.u32()?),
            id::ASSIGNED_CLIENT_IDENTIFIER => Property::AssignedClientIdentifier(reader.text()?),
            id::SERVER_KEEP_ALIVE => Property::ServerKeepAlive(reader.u16()?),
            id::AUTHENTICATION_METHOD => Property::AuthenticationMethod(reader.text()?),
            id::AUTHENTICATION_DATA => Property::AuthenticationData(reader.binary()?),
            id::WILL_DELAY => Property::WillDelay(reader.u32()?),
            id::RECEIVE_MAXIMUM => match reader.u16()? {
                0 => return Err(Violation::Protocol("receive maximum 0")),
                number => Property::ReceiveMaximum(number),
            },
            id::TOPIC_ALIAS_MAXIMUM => Property::TopicAliasMaximum(reader.u16()?),
            id::TOPIC_ALIAS => match reader.u16()? {
                0 => return Err(Violation::TopicAliasInvalid),
                number => Property::TopicAlias(number),
            },
            id::MAXIMUM_QOS => Property::MaximumQoS(flag(reader)?),
            id::MAXIMUM_PACKET_SIZE => match reader.u32()? {
                0 => return Err(Violation::Protocol("maximum packet size 0")),
                number => Property::MaximumPacketSize(number),
            },
            id::USER => Property::User(reader.text()?, reader.text()?),
            id::REQUEST_PROBLEM_INFORMATION => Property::RequestProblemInformation(flag(reader)?),
            id::REQUEST_RESPONSE_INFORMATION => Property::RequestResponseInformation(flag(reader)?),
            id::RESPONSE_INFORMATION => Property::ResponseInformation(reader.text()?),
            id::REASON_STRING => Property::ReasonString(reader.text()?),
            id::SERVER_REFERENCE => {
                reader.text()?;
                Property::Other
            }
            // What is left holds one byte that is 0 or 1.
            _ => {
                flag(reader)?;
                Property::Other
            }
        })
    }
}

fn flag(reader: &mut Reader<'_>) -> Result<bool, Violation> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Violation::Protocol("a flag that is neither 0 nor 1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(block: &[u8], scope: Scope) -> Result<usize, Violation> {
        let mut whole = vec![u8::try_from(block.len()).expect("a short block")];
        whole.extend_from_slice(block);
        let mut reader = Reader::new(&whole);
        let mut properties = Properties::read(&mut reader, scope, 4)?;
        let mut count = 0;
        while properties.next()?.is_some() {
            count += 1;
        }
        assert!(reader.is_empty());
        Ok(count)
    }

    #[test]
    fn the_same_identifier_is_legal_in_one_packet_and_not_in_another() {
        assert_eq!(judge(&[0x23, 0, 1], Scope::Publish), Ok(1));
        assert!(matches!(judge(&[0x23, 0, 1], Scope::Connect), Err(Violation::Malformed(_))));
        assert!(matches!(judge(&[0x7F, 0], Scope::Publish), Err(Violation::Malformed(_))));
        assert!(matches!(judge(&[0x00, 0], Scope::Publish), Err(Violation::Malformed(_))));
        assert!(matches!(judge(&[0x40, 0], Scope::Publish), Err(Violation::Malformed(_))));
    }

    #[test]
    fn only_user_properties_come_again() {
        let user = [0x26, 0, 1, b'a', 0, 1, b'b'];
        assert_eq!(judge(&[user, user].concat(), Scope::Publish), Ok(2));
        assert!(matches!(judge(&[1, 0, 1, 0], Scope::Publish), Err(Violation::Protocol(_))));
        assert_eq!(judge(&[0x0B, 1, 0x0B, 2], Scope::Publish), Ok(2));
        assert!(matches!(judge(&[0x0B, 1, 0x0B, 2], Scope::Subscribe), Err(Violation::Protocol(_))));
        assert_eq!(
            judge(&[user, user, user, user, user].concat(), Scope::Publish),
            Err(Violation::Quota("properties"))
        );
    }

    #[test]
    fn values_out_of_range() {
        assert!(judge(&[0x21, 0, 0], Scope::Connect).is_err());
        assert!(judge(&[0x27, 0, 0, 0, 0], Scope::Connect).is_err());
        assert!(judge(&[0x01, 2], Scope::Publish).is_err());
        assert!(judge(&[0x17, 2], Scope::Connect).is_err());
        assert!(judge(&[0x0B, 0], Scope::Publish).is_err());
        assert_eq!(judge(&[0x23, 0, 0], Scope::Publish), Err(Violation::TopicAliasInvalid));
    }

    #[test]
    fn a_property_stays_inside_its_block() {
        // The block says 3 bytes; the string in it says 9.
        let packet = [3, 0x03, 0, 9, b'x', b'x', b'x', b'x', b'x', b'x', b'x', b'x', b'x'];
        let mut reader = Reader::new(&packet);
        assert!(matches!(Properties::skip(&mut reader, Scope::Publish, 4), Err(Violation::Malformed(_))));
        // The block is longer than the packet.
        assert!(Properties::skip(&mut Reader::new(&[4, 0x01, 0]), Scope::Publish, 4).is_err());
    }
}
