//! Why a connection, a packet or a filter is refused, and the number that says so on the wire.
//!
//! MQTT 5 has a reason code for almost everything (MQTT 5 2.4); MQTT 3.1.1 has five numbers in CONNACK, one in
//! SUBACK and otherwise only the closed connection. What a number becomes for an older client is decided here.

use crate::packet::{QoS, Version};

/// The peer broke a rule of the protocol. The connection ends with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The bytes are not a packet of the specification (0x81).
    #[error("malformed packet: {0}")]
    Malformed(&'static str),
    /// A well-formed packet that may not stand here (0x82).
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    /// CONNECT of a protocol version that is not served; holds the protocol level (0x84).
    #[error("protocol level {0} is not served")]
    UnsupportedVersion(u8),
    /// An empty client identifier without clean session in MQTT 3.1.1 (3.1.3-8), or a control character in it.
    #[error("client identifier not valid")]
    ClientIdentifierNotValid,
    /// Extended authentication is not offered (0x8C).
    #[error("authentication method not offered")]
    BadAuthenticationMethod,
    /// The packet exceeds the size that was announced (0x95).
    #[error("packet of {0} bytes is too large")]
    PacketTooLarge(usize),
    /// A topic name with a wildcard, a control character or nothing in it (0x90).
    #[error("topic name not valid")]
    TopicNameInvalid,
    /// A topic filter that is empty, or has a wildcard where none may stand or a control character (0x8F).
    #[error("topic filter not valid")]
    TopicFilterInvalid,
    /// More unacknowledged PUBLISH packets than the Receive Maximum (0x93).
    #[error("receive maximum exceeded")]
    ReceiveMaximumExceeded,
    /// A topic alias that is zero or above the maximum that we announce (0x94).
    #[error("topic alias not valid")]
    TopicAliasInvalid,
    /// A payload that is said to be UTF-8 and is not, where the packet has no acknowledgement to say so (0x99).
    #[error("the payload is not the text that it is said to be")]
    PayloadFormatInvalid,
    /// More of something than one packet may bring here; holds of what (0x97).
    #[error("too many {0}")]
    Quota(&'static str),
}

/// Reason in a DISCONNECT of ours (MQTT 5 3.14.2.1). MQTT 3.1.1 only closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names of MQTT 5 3.14.2.1")]
pub enum DisconnectReason {
    Normal = 0x00,
    Unspecified = 0x80,
    MalformedPacket = 0x81,
    ProtocolError = 0x82,
    ImplementationSpecific = 0x83,
    NotAuthorised = 0x87,
    ServerBusy = 0x89,
    ServerShuttingDown = 0x8B,
    KeepAliveTimeout = 0x8D,
    SessionTakenOver = 0x8E,
    TopicFilterInvalid = 0x8F,
    TopicNameInvalid = 0x90,
    ReceiveMaximumExceeded = 0x93,
    TopicAliasInvalid = 0x94,
    PacketTooLarge = 0x95,
    MessageRateTooHigh = 0x96,
    QuotaExceeded = 0x97,
    AdministrativeAction = 0x98,
    PayloadFormatInvalid = 0x99,
    QosNotSupported = 0x9B,
    UseAnotherServer = 0x9C,
    ConnectionRateExceeded = 0x9F,
    MaximumConnectTime = 0xA0,
    SubscriptionIdentifiersNotSupported = 0xA1,
}

impl DisconnectReason {
    /// The reason code on the wire.
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl From<&Violation> for DisconnectReason {
    fn from(violation: &Violation) -> Self {
        match violation {
            Violation::Malformed(_) => Self::MalformedPacket,
            // The last three are judged on CONNECT, which is answered by CONNACK and never by DISCONNECT.
            Violation::Protocol(_)
            | Violation::UnsupportedVersion(_)
            | Violation::ClientIdentifierNotValid
            | Violation::BadAuthenticationMethod => Self::ProtocolError,
            Violation::PacketTooLarge(_) => Self::PacketTooLarge,
            Violation::TopicNameInvalid => Self::TopicNameInvalid,
            Violation::TopicFilterInvalid => Self::TopicFilterInvalid,
            Violation::ReceiveMaximumExceeded => Self::ReceiveMaximumExceeded,
            Violation::TopicAliasInvalid => Self::TopicAliasInvalid,
            Violation::PayloadFormatInvalid => Self::PayloadFormatInvalid,
            Violation::Quota(_) => Self::QuotaExceeded,
        }
    }
}

/// Why a CONNECT is refused (MQTT 3.1.1 3.2.2.3, MQTT 5 3.2.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names of MQTT 5 3.2.2.2")]
pub enum ConnectRefusal {
    Unspecified,
    MalformedPacket,
    ProtocolError,
    UnsupportedVersion,
    ClientIdentifierNotValid,
    BadUserNameOrPassword,
    NotAuthorised,
    ServerUnavailable,
    ServerBusy,
    Banned,
    BadAuthenticationMethod,
    TopicNameInvalid,
    PacketTooLarge,
    QuotaExceeded,
    PayloadFormatInvalid,
    QosNotSupported,
    ConnectionRateExceeded,
}

impl ConnectRefusal {
    /// The number in CONNACK, or `None` where MQTT 3.1.1 knows none and the connection is closed without one.
    pub fn code(self, version: Version) -> Option<u8> {
        match version {
            Version::V5 => Some(self.code_v5()),
            Version::V311 => match self {
                Self::UnsupportedVersion => Some(1),
                Self::ClientIdentifierNotValid => Some(2),
                Self::ServerUnavailable
                | Self::ServerBusy
                | Self::QuotaExceeded
                | Self::ConnectionRateExceeded
                | Self::Unspecified => Some(3),
                Self::BadUserNameOrPassword => Some(4),
                Self::NotAuthorised | Self::Banned => Some(5),
                // MQTT 3.1.1 4.8: a violation is answered by closing.
                Self::MalformedPacket
                | Self::ProtocolError
                | Self::BadAuthenticationMethod
                | Self::TopicNameInvalid
                | Self::PacketTooLarge
                | Self::PayloadFormatInvalid
                | Self::QosNotSupported => None,
            },
        }
    }

    fn code_v5(self) -> u8 {
        match self {
            Self::Unspecified => 0x80,
            Self::MalformedPacket => 0x81,
            Self::ProtocolError => 0x82,
            Self::UnsupportedVersion => 0x84,
            Self::ClientIdentifierNotValid => 0x85,
            Self::BadUserNameOrPassword => 0x86,
            Self::NotAuthorised => 0x87,
            Self::ServerUnavailable => 0x88,
            Self::ServerBusy => 0x89,
            Self::Banned => 0x8A,
            Self::BadAuthenticationMethod => 0x8C,
            Self::TopicNameInvalid => 0x90,
            Self::PacketTooLarge => 0x95,
            Self::QuotaExceeded => 0x97,
            Self::PayloadFormatInvalid => 0x99,
            Self::QosNotSupported => 0x9B,
            Self::ConnectionRateExceeded => 0x9F,
        }
    }
}

impl From<&Violation> for ConnectRefusal {
    fn from(violation: &Violation) -> Self {
        match violation {
            Violation::Malformed(_) => Self::MalformedPacket,
            Violation::UnsupportedVersion(_) => Self::UnsupportedVersion,
            Violation::ClientIdentifierNotValid => Self::ClientIdentifierNotValid,
            Violation::BadAuthenticationMethod => Self::BadAuthenticationMethod,
            Violation::PacketTooLarge(_) => Self::PacketTooLarge,
            Violation::TopicNameInvalid => Self::TopicNameInvalid,
            Violation::PayloadFormatInvalid => Self::PayloadFormatInvalid,
            Violation::Quota(_) => Self::QuotaExceeded,
            // The rest cannot be said of a CONNECT by a name of its own.
            Violation::Protocol(_)
            | Violation::TopicFilterInvalid
            | Violation::ReceiveMaximumExceeded
            | Violation::TopicAliasInvalid => Self::ProtocolError,
        }
    }
}

/// The answer to a PUBLISH of QoS 1 or 2: PUBACK (MQTT 5 3.4.2.1) or PUBREC (3.5.2.1). MQTT 3.1.1 has one of each
/// only, so there every reply is the same packet: who must not acknowledge a refused message there disconnects instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names of MQTT 5 3.4.2.1")]
pub enum PublishReply {
    Success = 0x00,
    NoMatchingSubscribers = 0x10,
    Unspecified = 0x80,
    ImplementationSpecific = 0x83,
    NotAuthorised = 0x87,
    TopicNameInvalid = 0x90,
    QuotaExceeded = 0x97,
    PayloadFormatInvalid = 0x99,
}

impl PublishReply {
    /// The reason code on the wire of MQTT 5.
    pub fn code(self) -> u8 {
        self as u8
    }
}

/// Why one topic filter is not granted (MQTT 5 3.9.3). MQTT 3.1.1 says 0x80 for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names of MQTT 5 3.9.3")]
pub enum SubscribeRefusal {
    Unspecified = 0x80,
    ImplementationSpecific = 0x83,
    NotAuthorised = 0x87,
    TopicFilterInvalid = 0x8F,
    QuotaExceeded = 0x97,
    SharedSubscriptionsNotSupported = 0x9E,
    WildcardSubscriptionsNotSupported = 0xA2,
}

impl SubscribeRefusal {
    /// The code in SUBACK.
    pub fn code(self, version: Version) -> u8 {
        match version {
            Version::V311 => 0x80,
            Version::V5 => self as u8,
        }
    }
}

/// The answer for one filter of an UNSUBSCRIBE (MQTT 5 3.11.3). MQTT 3.1.1 says nothing per filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names of MQTT 5 3.11.3")]
pub enum UnsubscribeReply {
    Success = 0x00,
    NoSubscriptionExisted = 0x11,
    Unspecified = 0x80,
    ImplementationSpecific = 0x83,
    NotAuthorised = 0x87,
    TopicFilterInvalid = 0x8F,
}

/// One answer in SUBACK: the QoS that is granted, or why none is.
pub type SubscribeReply = Result<QoS, SubscribeRefusal>;

/// A command that the machine cannot carry out as it stands: our fault, not the peer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// The connection is not open: before `accept`, or after its end.
    #[error("the connection is not open")]
    NotOpen,
    /// No CONNECT is waiting for an answer.
    #[error("no CONNECT is waiting for an answer")]
    NotConnecting,
    /// No message of an earlier connection waits under this packet identifier to be sent again.
    #[error("no earlier message has this packet identifier")]
    UnknownMessage,
    /// No SUBSCRIBE or UNSUBSCRIBE with this packet identifier is waiting.
    #[error("no request with this packet identifier is waiting")]
    UnknownRequest,
    /// There must be as many answers as filters.
    #[error("the request has {expected} filters, not {given}")]
    AnswerCount {
        /// Filters of the request.
        expected: usize,
        /// Answers that were given.
        given: usize,
    },
    /// The topic name is empty, has a wildcard or a control character, or is longer than 65,535 bytes.
    #[error("the topic name is not valid")]
    TopicNameInvalid,
    /// A string or a list of properties is longer than the wire can say, or a string has a NUL.
    #[error("the properties do not fit the packet, or have a NUL in them")]
    Properties,
    /// QoS 2 is not sent.
    #[error("quality of service 2 is not sent")]
    QosNotSupported,
}

/// Why a PUBLISH toward the device was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The in-flight window or the outgoing buffer is full: try again after a `PublishAcknowledged`, or after
    /// `poll_transmit`.
    #[error("the outgoing window is full")]
    Full,
    /// The packet is larger than the client's Maximum Packet Size; it must never be sent (MQTT 5 3.1.2-24).
    #[error("a packet of {0} bytes is larger than the client takes")]
    TooLarge(usize),
    /// The call itself is wrong.
    #[error(transparent)]
    Misuse(#[from] Misuse),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_client_gets_one_of_its_five_numbers_or_none() {
        assert_eq!(ConnectRefusal::NotAuthorised.code(Version::V311), Some(5));
        assert_eq!(ConnectRefusal::NotAuthorised.code(Version::V5), Some(0x87));
        assert_eq!(ConnectRefusal::ServerBusy.code(Version::V311), Some(3));
        assert_eq!(ConnectRefusal::MalformedPacket.code(Version::V311), None);
        assert_eq!(SubscribeRefusal::NotAuthorised.code(Version::V311), 0x80);
        assert_eq!(SubscribeRefusal::NotAuthorised.code(Version::V5), 0x87);
    }

    #[test]
    fn a_violation_names_its_own_disconnect() {
        for (violation, code) in [
            (Violation::Malformed("x"), 0x81),
            (Violation::Protocol("x"), 0x82),
            (Violation::TopicFilterInvalid, 0x8F),
            (Violation::TopicNameInvalid, 0x90),
            (Violation::ReceiveMaximumExceeded, 0x93),
            (Violation::TopicAliasInvalid, 0x94),
            (Violation::PacketTooLarge(1), 0x95),
            (Violation::Quota("x"), 0x97),
            (Violation::PayloadFormatInvalid, 0x99),
        ] {
            assert_eq!(DisconnectReason::from(&violation).code(), code, "{violation}");
        }
    }
}
