//! The same words in two vocabularies: the numbers that the mapping answers with and the machine's names for them, the
//! properties of a PUBLISH on the wire and in the model.

use bytes::Bytes;
use fieldgate_mappings::ByteString;
use fieldgate_mappings::mqtt::{self, connack_3, connack_5, suback_5};
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection};
use fieldgate_mqtt::{
    ConnectRefusal, DisconnectReason, PublishProperties, PublishReply, SubscribeRefusal, Text, Version,
};

/// PUBACK with this reason code (MQTT 5 3.4.2.1).
pub(super) fn puback(code: u8) -> PublishReply {
    match code {
        0x00 => PublishReply::Success,
        0x87 => PublishReply::NotAuthorised,
        0x90 => PublishReply::TopicNameInvalid,
        0x97 => PublishReply::QuotaExceeded,
        0x99 => PublishReply::PayloadFormatInvalid,
        _ => PublishReply::Unspecified,
    }
}

/// DISCONNECT with this reason code (MQTT 5 3.14.2.1).
pub(super) fn disconnect(code: u8) -> DisconnectReason {
    match code {
        0x83 => DisconnectReason::ImplementationSpecific,
        0x87 => DisconnectReason::NotAuthorised,
        0x89 => DisconnectReason::ServerBusy,
        0x8F => DisconnectReason::TopicFilterInvalid,
        0x95 => DisconnectReason::PacketTooLarge,
        0x97 => DisconnectReason::QuotaExceeded,
        _ => DisconnectReason::Unspecified,
    }
}

/// SUBACK for a filter that is not granted.
pub(super) fn suback(reason: &Reason) -> SubscribeRefusal {
    match suback_5(reason) {
        0x83 => SubscribeRefusal::ImplementationSpecific,
        0x87 => SubscribeRefusal::NotAuthorised,
        0x8F => SubscribeRefusal::TopicFilterInvalid,
        0x97 => SubscribeRefusal::QuotaExceeded,
        _ => SubscribeRefusal::Unspecified,
    }
}

/// DISCONNECT for a subscription that was granted and that the hub refuses.
pub(super) fn unsubscribed(reason: &Reason) -> DisconnectReason {
    disconnect(suback_5(reason))
}

/// CONNACK for a client that is not let in.
pub(super) fn connack(version: Version, rejection: &Rejection) -> ConnectRefusal {
    let outcome = Outcome::Rejected(rejection.clone());
    let code = match version {
        Version::V311 => connack_3(&outcome),
        Version::V5 => connack_5(&outcome),
    };
    match code {
        2 | 0x85 => ConnectRefusal::ClientIdentifierNotValid,
        5 | 0x87 => ConnectRefusal::NotAuthorised,
        0x86 => ConnectRefusal::BadUserNameOrPassword,
        0x95 => ConnectRefusal::PacketTooLarge,
        0x97 => ConnectRefusal::QuotaExceeded,
        _ => ConnectRefusal::ServerUnavailable,
    }
}

/// CONNACK for a client whose will cannot be sent. MQTT 5 has a name for a topic that is not accepted; MQTT 3.1.1 has
/// none for anything about wills.
pub(super) fn connack_for_will(version: Version, rejection: &Rejection) -> ConnectRefusal {
    match (version, &rejection.reason) {
        (Version::V5, Reason::NoSuchAddress) => ConnectRefusal::TopicNameInvalid,
        (Version::V5, _) => connack(version, rejection),
        (Version::V311, _) => ConnectRefusal::NotAuthorised,
    }
}

/// What MQTT 5 says beside the topic, in the model. The texts go on sharing their memory.
pub(super) fn read(properties: PublishProperties) -> mqtt::PublishProperties {
    let PublishProperties {
        payload_is_utf8,
        message_expiry_interval,
        content_type,
        response_topic,
        correlation_data,
        user_properties,
        subscription_identifiers: _,
    } = properties;
    mqtt::PublishProperties {
        payload_is_text: payload_is_utf8 == Some(true),
        content_type: content_type.map(byte_string),
        response_topic: response_topic.map(byte_string),
        correlation_data,
        message_expiry: message_expiry_interval,
        user_properties: user_properties
            .into_iter()
            .map(|(name, value)| (byte_string(name), byte_string(value)))
            .collect(),
    }
}

/// The same with memory of its own, for what is kept.
pub(super) fn read_copy(properties: &PublishProperties) -> mqtt::PublishProperties {
    let copy = |text: &Text| ByteString::from(text.as_str());
    mqtt::PublishProperties {
        payload_is_text: properties.payload_is_utf8 == Some(true),
        content_type: properties.content_type.as_ref().map(copy),
        response_topic: properties.response_topic.as_ref().map(copy),
        correlation_data: properties.correlation_data.as_deref().map(Bytes::copy_from_slice),
        message_expiry: properties.message_expiry_interval,
        user_properties: properties
            .user_properties
            .iter()
            .map(|(name, value)| (copy(name), copy(value)))
            .collect(),
    }
}

/// What the model says beside the topic, for MQTT 5; nothing where it says nothing.
pub(super) fn write(properties: &mqtt::PublishProperties) -> Option<PublishProperties> {
    if *properties == mqtt::PublishProperties::default() {
        return None;
    }
    Some(PublishProperties {
        payload_is_utf8: properties.payload_is_text.then_some(true),
        message_expiry_interval: properties.message_expiry,
        content_type: properties.content_type.as_ref().map(text),
        response_topic: properties.response_topic.as_ref().map(text),
        correlation_data: properties.correlation_data.clone(),
        user_properties: properties
            .user_properties
            .iter()
            .map(|(name, value)| (text(name), text(value)))
            .collect(),
        subscription_identifiers: Vec::new(),
    })
}

fn byte_string(text: Text) -> ByteString {
    ByteString::try_from(text.into_bytes()).expect("a text of the machine is UTF-8")
}

fn text(string: &ByteString) -> Text {
    Text::try_from(string.as_bytes().clone()).expect("a byte string is UTF-8")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fieldgate_mappings::mqtt::{Reply5, reply_5};

    use super::*;

    const REASONS: [Reason; 8] = [
        Reason::Credentials,
        Reason::NotPermitted,
        Reason::NoSuchAddress,
        Reason::TooLarge,
        Reason::Quota { retry_after: None },
        Reason::Content,
        Reason::Full { retry_after: None },
        Reason::Disk { retry_after: None },
    ];

    #[test]
    fn no_number_changes_on_the_way_to_the_wire() {
        for reason in REASONS {
            let rejection = Rejection::new(reason, "no");
            let outcome = Outcome::Rejected(rejection.clone());
            let connack = |version| connack(version, &rejection).code(version);
            assert_eq!(connack(Version::V311), Some(connack_3(&outcome)), "{reason:?}");
            assert_eq!(connack(Version::V5), Some(connack_5(&outcome)), "{reason:?}");
            assert_eq!(suback(&reason).code(Version::V5), suback_5(&reason), "{reason:?}");
            assert_eq!(unsubscribed(&reason).code(), suback_5(&reason), "{reason:?}");
            match reply_5(&outcome) {
                Reply5::Acknowledge(code) => assert_eq!(puback(code).code(), code),
                Reply5::Disconnect(code) => assert_eq!(disconnect(code).code(), code),
                Reply5::Pause => panic!("a rejection is no reason to wait"),
            }
            assert!(connack_for_will(Version::V311, &rejection).code(Version::V311).is_some());
        }
        assert_eq!(reply_5(&Outcome::Accepted), Reply5::Acknowledge(puback(0).code()));
        assert_eq!(reply_5(&Outcome::Unknown), Reply5::Disconnect(disconnect(mqtt::SERVER_BUSY).code()));
    }

    #[test]
    fn properties_survive_both_ways() {
        let said = PublishProperties {
            payload_is_utf8: Some(true),
            message_expiry_interval: Some(Duration::from_secs(3)),
            content_type: Some("text/plain".into()),
            response_topic: Some("answers".into()),
            correlation_data: Some(Bytes::from_static(b"\xff")),
            user_properties: vec![("a".into(), "1".into()), ("a".into(), "2".into())],
            subscription_identifiers: Vec::new(),
        };
        let model = read(said.clone());
        assert_eq!(model, read_copy(&said));
        assert_eq!(write(&model), Some(said));
        assert_eq!(write(&read(PublishProperties::default())), None);
    }
}
