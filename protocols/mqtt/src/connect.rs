//! The CONNECT parser: one for both versions, because the version is only known from the packet itself.
//!
//! It is our own and not the codec's: a password may be any bytes, an empty user name is one, and who speaks a
//! version that is not served must be told so in the form of that version.

use std::time::Duration;

use bytes::Bytes;

use crate::{
    packet::{Connect, PublishProperties, QoS, Version, Will},
    properties::{Properties, Property, Scope},
    reason::Violation,
    text::{Text, has_control, is_topic_name},
    wire::Reader,
};

/// A CONNECT that cannot be taken, and the version in which to say so, if that is known.
pub(crate) type ConnectError = (Option<Version>, Violation);

/// Parses one complete CONNECT; `body` is where its variable header starts.
pub(crate) fn parse(frame: &Bytes, body: usize, max_properties: usize) -> Result<Connect, ConnectError> {
    let mut reader = Reader::new(&frame[body..]);
    let (version, level) = version(&mut reader)?;
    let fields = Fields { frame, version, level, max_properties };
    fields.parse(reader).map_err(|violation| (Some(version), violation))
}

/// Which version it is, and the protocol level that says so.
fn version(reader: &mut Reader<'_>) -> Result<(Version, u8), ConnectError> {
    let unknown = |violation| (None, violation);
    let name = reader.binary().map_err(unknown)?;
    let level = reader.u8().map_err(unknown)?;
    match (name, level) {
        (b"MQIsdp", 3) => Ok((Version::V311, level)),
        (b"MQTT", 4) => Ok((Version::V311, level)),
        (b"MQTT", 5) => Ok((Version::V5, level)),
        // Bridges of one broker family set the highest bit; they read the answer of 3.1.1 and try again without.
        (b"MQTT", level) if level & 0x7F > 5 => {
            Err((Some(Version::V5), Violation::UnsupportedVersion(level)))
        }
        // MQTT 3.1.1 3.1.2-2: CONNACK 1.
        (b"MQTT" | b"MQIsdp", level) => Err((Some(Version::V311), Violation::UnsupportedVersion(level))),
        _ => Err((None, Violation::Malformed("a protocol name that is not MQTT"))),
    }
}

const USERNAME: u8 = 0x80;
const PASSWORD: u8 = 0x40;
const WILL_RETAIN: u8 = 0x20;
const WILL_QOS: u8 = 0x18;
const WILL: u8 = 0x04;
const CLEAN_START: u8 = 0x02;
const RESERVED: u8 = 0x01;

struct Fields<'f> {
    frame: &'f Bytes,
    version: Version,
    level: u8,
    max_properties: usize,
}

impl<'f> Fields<'f> {
    fn parse(&self, mut reader: Reader<'f>) -> Result<Connect, Violation> {
        let flags = reader.u8()?;
        self.judge_flags(flags)?;
        let mut connect = Connect {
            version: self.version,
            level: self.level,
            client_id: Text::default(),
            clean_start: flags & CLEAN_START != 0,
            keep_alive: Duration::from_secs(reader.u16()?.into()),
            username: None,
            password: None,
            will: None,
            session_expiry_seconds: 0,
            receive_maximum: u16::MAX,
            max_packet_bytes: None,
            topic_alias_maximum: 0,
            request_response_information: false,
            request_problem_information: true,
            user_properties: Vec::new(),
        };
        if self.version == Version::V5 {
            self.properties(&mut reader, &mut connect)?;
        }
        let client_id = reader.text()?;
        if has_control(client_id) {
            return Err(Violation::ClientIdentifierNotValid); // MQTT 5 3.1.3.1: the server may refuse it
        }
        connect.client_id = self.text(client_id);
        if flags & WILL != 0 {
            connect.will = Some(Box::new(self.will(flags, &mut reader)?));
        }
        // MQTT 3.1, CONNECT, user name flag: the remaining length decides before the flags do.
        let is_there = |reader: &Reader<'_>| self.level > 3 || !reader.is_empty();
        if flags & USERNAME != 0 && is_there(&reader) {
            connect.username = Some(self.text(reader.text()?));
        }
        if flags & PASSWORD != 0 && is_there(&reader) {
            connect.password = Some(self.bytes(reader.binary()?));
        }
        if !reader.is_empty() {
            return Err(Violation::Malformed("bytes after the payload of CONNECT"));
        }
        // MQTT 3.1.1 3.1.3-8. MQTT 5 lets the server assign one in any case (3.1.3-6), MQTT 3.1 in none.
        let assigned = self.level >= 5 || self.level == 4 && connect.clean_start;
        if connect.client_id.is_empty() && !assigned {
            return Err(Violation::ClientIdentifierNotValid);
        }
        Ok(connect)
    }

    fn judge_flags(&self, flags: u8) -> Result<(), Violation> {
        if flags & RESERVED != 0 && self.level > 3 {
            return Err(Violation::Malformed("the reserved flag of CONNECT is set")); // MQTT 3.1.1 3.1.2-3
        }
        let qos = QoS::from_bits((flags & WILL_QOS) >> 3)
            .ok_or(Violation::Malformed("a will of quality of service 3"))?;
        if flags & WILL == 0 && (qos != QoS::AtMostOnce || flags & WILL_RETAIN != 0) {
            return Err(Violation::Malformed("will flags without a will"));
        }
        // MQTT 3.1.1 3.1.2-22; MQTT 5 allows a password alone.
        if self.version == Version::V311 && flags & PASSWORD != 0 && flags & USERNAME == 0 {
            return Err(Violation::Malformed("a password without a user name"));
        }
        Ok(())
    }

    fn properties(&self, reader: &mut Reader<'f>, connect: &mut Connect) -> Result<(), Violation> {
        let mut properties = Properties::read(reader, Scope::Connect, self.max_properties)?;
        let (mut method, mut data) = (false, false);
        while let Some(property) = properties.next()? {
            match property {
                Property::SessionExpiry(seconds) => connect.session_expiry_seconds = seconds,
                Property::ReceiveMaximum(number) => connect.receive_maximum = number,
                Property::MaximumPacketSize(bytes) => connect.max_packet_bytes = Some(bytes),
                Property::TopicAliasMaximum(number) => connect.topic_alias_maximum = number,
                Property::RequestResponseInformation(asked) => connect.request_response_information = asked,
                Property::RequestProblemInformation(asked) => connect.request_problem_information = asked,
                Property::AuthenticationMethod(_) => method = true,
                Property::AuthenticationData(_) => data = true,
                Property::User(name, value) => {
                    connect.user_properties.push((self.text(name), self.text(value)));
                }
                _ => {}
            }
        }
        match (method, data) {
            (true, _) => Err(Violation::BadAuthenticationMethod), // MQTT 5 4.12
            (false, true) => Err(Violation::Protocol("authentication data without a method")),
            (false, false) => Ok(()),
        }
    }

    fn will(&self, flags: u8, reader: &mut Reader<'f>) -> Result<Will, Violation> {
        let mut will = Will {
            topic: Text::default(),
            payload: Bytes::new(),
            qos: QoS::from_bits((flags & WILL_QOS) >> 3).unwrap_or_default(),
            retain: flags & WILL_RETAIN != 0,
            delay: Duration::ZERO,
            properties: PublishProperties::default(),
        };
        if self.version == Version::V5 {
            let mut properties = Properties::read(reader, Scope::Will, self.max_properties)?;
            while let Some(property) = properties.next()? {
                match property {
                    Property::WillDelay(seconds) => will.delay = Duration::from_secs(seconds.into()),
                    property => self.publish_property(property, &mut will.properties)?,
                }
            }
        }
        let topic = reader.text()?;
        if !is_topic_name(topic) {
            return Err(Violation::TopicNameInvalid);
        }
        will.topic = self.text(topic);
        will.payload = self.bytes(reader.binary()?);
        if will.properties.payload_is_utf8 == Some(true) && std::str::from_utf8(&will.payload).is_err() {
            return Err(Violation::PayloadFormatInvalid); // MQTT 5 3.1.3.2.3
        }
        Ok(will)
    }

    fn publish_property(
        &self,
        property: Property<'f>,
        into: &mut PublishProperties,
    ) -> Result<(), Violation> {
        match property {
            Property::PayloadFormat(utf8) => into.payload_is_utf8 = Some(utf8),
            Property::MessageExpiry(seconds) => {
                into.message_expiry_interval = Some(Duration::from_secs(seconds.into()));
            }
            Property::ContentType(text) => into.content_type = Some(self.text(text)),
            Property::ResponseTopic(topic) if !is_topic_name(topic) => {
                return Err(Violation::Protocol("a response topic that is no topic name"));
            }
            Property::ResponseTopic(topic) => into.response_topic = Some(self.text(topic)),
            Property::CorrelationData(data) => into.correlation_data = Some(self.bytes(data)),
            Property::User(name, value) => into.user_properties.push((self.text(name), self.text(value))),
            _ => {}
        }
        Ok(())
    }

    fn bytes(&self, slice: &'f [u8]) -> Bytes {
        self.frame.slice_ref(slice)
    }

    fn text(&self, text: &'f str) -> Text {
        Text::checked(self.bytes(text.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_body(body: &[u8]) -> Result<Connect, ConnectError> {
        parse(&Bytes::copy_from_slice(body), 0, 16)
    }

    /// MQTT 3.1.1 figure 3.6: name and level, with flags, keep alive 10 and a payload of its own.
    fn body(flags: u8, payload: &[u8]) -> Vec<u8> {
        [b"\x00\x04MQTT\x04", &[flags, 0, 10][..], payload].concat()
    }

    #[test]
    fn everything_of_3_1_1() {
        let connect = parse_body(&body(
            0xF6, // user name, password, will retain, will QoS 2, will, clean session
            b"\x00\x02d1\x00\x01w\x00\x02\xFF\x00\x00\x01u\x00\x03\x00\xFEp",
        ))
        .expect("legal");
        assert_eq!(connect.version, Version::V311);
        assert_eq!(connect.client_id, "d1");
        assert!(connect.clean_start);
        assert_eq!(connect.keep_alive, Duration::from_secs(10));
        assert_eq!(connect.username, Some("u".into()));
        assert_eq!(connect.password, Some(Bytes::from_static(b"\x00\xFEp")));
        let will = connect.will.as_deref().expect("a will");
        assert_eq!((will.qos, will.retain, &will.topic), (QoS::ExactlyOnce, true, &"w".into()));
        assert_eq!(will.payload, &b"\xFF\x00"[..]);
        assert!(!format!("{connect:?}").contains("254"), "no password in a log");
    }

    #[test]
    fn everything_of_5() {
        let connect = parse_body(
            b"\x00\x04MQTT\x05\x0E\x00\x3C\
              \x19\x11\x00\x00\x00\x0A\x21\x00\x14\x27\x00\x00\x01\x00\x22\x00\x03\x17\x00\x26\x00\x01k\x00\x01v\
              \x00\x00\
              \x15\x18\x00\x00\x00\x05\x02\x00\x00\x00\x09\x08\x00\x01r\x03\x00\x02ct\x01\x01\
              \x00\x01w\x00\x00",
        )
        .expect("legal");
        assert_eq!(connect.session_expiry_seconds, 10);
        assert_eq!(connect.receive_maximum, 20);
        assert_eq!(connect.max_packet_bytes, Some(256));
        assert_eq!(connect.topic_alias_maximum, 3);
        assert_eq!(connect.user_properties, [("k".into(), "v".into())]);
        assert!(connect.client_id.is_empty());
        let will = connect.will.expect("a will");
        assert_eq!(will.delay, Duration::from_secs(5));
        assert_eq!(will.properties.message_expiry_interval, Some(Duration::from_secs(9)));
        assert_eq!(will.properties.response_topic, Some("r".into()));
        assert_eq!(will.properties.content_type, Some("ct".into()));
        assert_eq!(will.properties.payload_is_utf8, Some(true));
        assert_eq!((will.qos, will.retain), (QoS::AtLeastOnce, false));
    }

    #[test]
    fn flags_that_contradict_themselves() {
        for flags in [0x03, 0x0A, 0x22, 0x1E, 0x42] {
            let refused = parse_body(&body(flags, b"\x00\x01d\x00\x01w\x00\x00\x00\x01p"));
            assert!(
                matches!(refused, Err((Some(Version::V311), Violation::Malformed(_)))),
                "{flags:#x} {refused:?}"
            );
        }
    }

    #[test]
    fn versions_are_told_apart() {
        let refused = |bytes: &[u8]| parse_body(bytes).expect_err("not served");
        assert_eq!(
            refused(b"\x00\x06MQIsdp\x04\x02\x00\x00\x00\x01d"),
            (Some(Version::V311), Violation::UnsupportedVersion(4))
        );
        assert_eq!(refused(b"\x00\x04MQTT\x84").0, Some(Version::V311));
        assert_eq!(refused(b"\x00\x04MQTT\x06"), (Some(Version::V5), Violation::UnsupportedVersion(6)));
        assert_eq!(refused(b"\x00\x04HTTP\x04").0, None);
        assert_eq!(refused(b"\x00\x04MQ").0, None);
    }

    #[test]
    fn an_empty_client_identifier() {
        assert!(parse_body(&body(0x02, b"\x00\x00")).is_ok());
        assert_eq!(
            parse_body(&body(0x00, b"\x00\x00")).expect_err("not clean").1,
            Violation::ClientIdentifierNotValid
        );
        assert!(parse_body(b"\x00\x04MQTT\x05\x00\x00\x00\x00\x00\x00").is_ok(), "5 assigns one");
        assert_eq!(
            parse_body(&body(0x02, b"\x00\x03a\nb")).expect_err("a line break").1,
            Violation::ClientIdentifierNotValid
        );
    }

    #[test]
    fn extended_authentication_is_not_offered() {
        let method = b"\x00\x04MQTT\x05\x02\x00\x00\x04\x15\x00\x01m\x00\x01d";
        assert_eq!(parse_body(method).expect_err("refused").1, Violation::BadAuthenticationMethod);
        let data = b"\x00\x04MQTT\x05\x02\x00\x00\x04\x16\x00\x01m\x00\x01d";
        assert!(matches!(parse_body(data).expect_err("refused").1, Violation::Protocol(_)));
    }

    #[test]
    fn every_truncation_and_one_byte_more_is_malformed() {
        let whole = body(0xC6, b"\x00\x02d1\x00\x01w\x00\x01x\x00\x01u\x00\x01p");
        assert!(parse_body(&whole).is_ok());
        for length in 0..whole.len() {
            assert!(matches!(parse_body(&whole[..length]), Err((_, Violation::Malformed(_)))), "{length}");
        }
        assert!(parse_body(&[&whole[..], b"\0"].concat()).is_err());
    }
}
