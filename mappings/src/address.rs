//! Who a message is from and where it goes: device identities and hub addresses.
//!
//! Both are checked once, where they are made, and carried as types afterwards, so that no later place has to ask
//! again. Nothing here knows a protocol, and nothing here decides who may use an address.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// A device's identity at its hub: 1 to 128 ASCII characters of IoT Hub's alphabet, compared with regard to case.
///
/// Cheap to clone: the text is shared.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(Arc<str>);

impl DeviceId {
    /// The longest identity in bytes (IoT Hub's limit).
    pub const MAX_BYTES: usize = 128;

    /// Checks `text` against the hub's alphabet: ASCII letters and digits and ``- : . + % _ # * ? ! ( ) , = @ ; $ '``.
    ///
    /// # Errors
    /// The first fault found. `.` and `..` are refused although their characters are legal: an address that holds
    /// one changes its meaning wherever something on the way normalises it.
    pub fn new(text: &str) -> Result<Self, InvalidIdentifier> {
        check_identifier(text)?;
        Ok(Self(text.into()))
    }

    /// The identity as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceId({})", &self.0)
    }
}

impl Borrow<str> for DeviceId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for DeviceId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// What an adapter knows about the sender when it asks for a mapping.
#[derive(Debug, Clone, Copy)]
pub enum Identity<'a> {
    /// The device was identified before: whatever the topic or path says must agree with it.
    Is(&'a DeviceId),
    /// The sender was identified before, and may be a gateway: it is itself, or one that it may act for.
    MayActFor(&'a DeviceId, &'a dyn ActsFor),
    /// Anonymous access: the device is the one that the topic or path names. Only for listeners whose configuration
    /// allows it.
    Claimed,
}

impl<'a> From<&'a DeviceId> for Identity<'a> {
    fn from(device: &'a DeviceId) -> Self {
        Self::Is(device)
    }
}

/// Who knows which gateways may act for which devices.
pub trait ActsFor: fmt::Debug {
    /// Whether `gateway` is of this group, and the group may act for `device`.
    fn may_act(&self, gateway: &DeviceId, group: &str, device: &DeviceId) -> bool;
}

/// Why a text cannot name a device, or stand as one segment of an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIdentifier {
    /// Nothing at all.
    #[error("is empty")]
    Empty,
    /// More than [`DeviceId::MAX_BYTES`].
    #[error("is {0} bytes long, at most {max} are allowed", max = DeviceId::MAX_BYTES)]
    TooLong(usize),
    /// A character outside the hub's alphabet.
    #[error("holds {0:?}, which the hub's identifiers do not allow")]
    Character(char),
    /// `.` or `..`.
    #[error("is a relative path segment")]
    DotSegment,
}

/// Checks one segment against the hub's alphabet for identifiers (see [`DeviceId::new`]).
///
/// # Errors
/// The first fault found.
pub fn check_identifier(text: &str) -> Result<(), InvalidIdentifier> {
    if text.is_empty() {
        return Err(InvalidIdentifier::Empty);
    }
    if text.len() > DeviceId::MAX_BYTES {
        return Err(InvalidIdentifier::TooLong(text.len()));
    }
    if let Some(at) = text.bytes().position(|byte| !is_identifier_byte(byte)) {
        // Every byte before `at` is ASCII, so a character begins there.
        let character = text[at..].chars().next().unwrap_or(char::REPLACEMENT_CHARACTER);
        return Err(InvalidIdentifier::Character(character));
    }
    if text == "." || text == ".." {
        return Err(InvalidIdentifier::DotSegment);
    }
    Ok(())
}

/// A node of the hub in canonical form: `devices/dev1/messages/events`.
///
/// Segments joined by `/`, no leading slash, no scheme and no host. In each segment everything that RFC 3986 does not
/// allow raw (`pchar`, section 3.3) is percent-encoded in upper case, so one node has exactly one spelling and two
/// addresses are the same node if and only if their texts are equal.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(Box<str>);

impl Address {
    /// The longest address in bytes.
    pub const MAX_BYTES: usize = 1024;

    /// Brings a peer's spelling of a path to the canonical form: one leading slash may stand, each segment is
    /// percent-decoded once and encoded again, and below `devices/` the hub's fixed words are lower-cased (clients
    /// write both `devicebound` and `deviceBound`); names keep their case.
    ///
    /// # Errors
    /// Empty, over-long or relative segments, malformed escapes, control characters, text that is not UTF-8.
    pub fn parse(text: &str) -> Result<Self, InvalidAddress> {
        if text.len() > Self::MAX_BYTES {
            return Err(InvalidAddress::TooLong);
        }
        let path = text.strip_prefix('/').unwrap_or(text);
        let mut builder = AddressBuilder::with_capacity(path.len() + 8);
        let mut below_devices = false;
        let mut name_follows = false;
        for (index, raw) in path.split('/').enumerate() {
            let mut segment = percent_decode(raw).ok_or(InvalidAddress::Escape)?;
            if index == 0 && segment.eq_ignore_ascii_case("devices") {
                below_devices = true;
            }
            if below_devices && !name_follows {
                segment.make_ascii_lowercase();
            }
            name_follows = below_devices && !name_follows && matches!(&*segment, "devices" | "modules");
            builder.segment(&segment)?;
        }
        builder.finish()
    }

    /// The canonical text, as it is sent.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The device whose node this is: the second segment below `devices/`. `None` for any other node.
    pub fn device(&self) -> Option<DeviceId> {
        let rest = self.0.strip_prefix("devices/")?;
        let raw = rest.split_once('/').map_or(rest, |(segment, _)| segment);
        DeviceId::new(&percent_decode(raw)?).ok()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({})", &self.0)
    }
}

impl Borrow<str> for Address {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Why a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// Longer than [`Address::MAX_BYTES`].
    #[error("the address is longer than {max} bytes", max = Address::MAX_BYTES)]
    TooLong,
    /// `//`, a trailing slash, or nothing at all.
    #[error("the address has an empty segment")]
    EmptySegment,
    /// `.` or `..`.
    #[error("the address has a relative segment")]
    DotSegment,
    /// A control character, as it stands or behind an escape.
    #[error("the address holds a control character")]
    Control,
    /// `%` without two hexadecimal digits, or escapes that are not UTF-8.
    #[error("the address has a malformed percent escape")]
    Escape,
}

/// Puts an address together from decoded segments.
pub(crate) struct AddressBuilder(String);

impl AddressBuilder {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self(String::with_capacity(bytes))
    }

    /// Appends one decoded segment; a `/` inside it stays inside it.
    pub(crate) fn segment(&mut self, decoded: &str) -> Result<(), InvalidAddress> {
        match decoded {
            "" => return Err(InvalidAddress::EmptySegment),
            "." | ".." => return Err(InvalidAddress::DotSegment),
            _ => {}
        }
        if decoded.chars().any(char::is_control) {
            return Err(InvalidAddress::Control);
        }
        if !self.0.is_empty() {
            self.0.push('/');
        }
        percent_encode_into(&mut self.0, decoded, is_pchar);
        Ok(())
    }

    /// Appends text that is canonical already (the literal parts of a template, checked when it was loaded).
    pub(crate) fn canonical(&mut self, text: &str) {
        if !self.0.is_empty() {
            self.0.push('/');
        }
        self.0.push_str(text);
    }

    pub(crate) fn finish(self) -> Result<Address, InvalidAddress> {
        match self.0.len() {
            0 => Err(InvalidAddress::EmptySegment),
            length if length > Address::MAX_BYTES => Err(InvalidAddress::TooLong),
            _ => Ok(Address(self.0.into_boxed_str())),
        }
    }
}

/// Decodes `%XX` escapes once; `None` for a malformed escape or a result that is not UTF-8. `+` stays `+`.
pub(crate) fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    percent_decode_into(&mut out, text)?;
    String::from_utf8(out).ok()
}

/// The same into a buffer that is at hand. The caller checks the UTF-8.
pub(crate) fn percent_decode_into(out: &mut Vec<u8>, text: &str) -> Option<()> {
    let mut bytes = text.as_bytes();
    while let Some(at) = bytes.iter().position(|&byte| byte == b'%') {
        out.extend_from_slice(&bytes[..at]);
        let high = hex_value(*bytes.get(at + 1)?)?;
        let low = hex_value(*bytes.get(at + 2)?)?;
        out.push(high << 4 | low);
        bytes = &bytes[at + 3..];
    }
    out.extend_from_slice(bytes);
    Some(())
}

/// Appends `text`, every byte that `keep` refuses as `%XX` in upper case.
pub(crate) fn percent_encode_into(out: &mut String, text: &str, keep: impl Fn(u8) -> bool) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut rest = text;
    while let Some(at) = rest.bytes().position(|byte| !keep(byte)) {
        out.push_str(&rest[..at]);
        let character = rest[at..].chars().next().map_or(1, char::len_utf8);
        for &byte in &rest.as_bytes()[at..at + character] {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
        rest = &rest[at + character..];
    }
    out.push_str(rest);
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// RFC 3986 2.3.
pub(crate) fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986 3.3, without the escapes.
fn is_pchar(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(
            byte,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@'
        )
}

fn is_identifier_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-:.+%_#*?!(),=@;$'".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_ids_keep_to_the_hubs_alphabet() {
        for good in ["d", "Dev-1:a.b+c%d_e#f*g?h!(i),j=k@l;m$n'", &"x".repeat(128), "...", "%2e%2e"] {
            assert_eq!(DeviceId::new(good).unwrap().as_str(), good);
        }
        assert_eq!(DeviceId::new(""), Err(InvalidIdentifier::Empty));
        assert_eq!(DeviceId::new(&"x".repeat(129)), Err(InvalidIdentifier::TooLong(129)));
        assert_eq!(DeviceId::new("."), Err(InvalidIdentifier::DotSegment));
        assert_eq!(DeviceId::new(".."), Err(InvalidIdentifier::DotSegment));
        for (bad, character) in
            [("a/b", '/'), ("a b", ' '), ("a\0", '\0'), ("é", 'é'), ("a\"b", '"'), ("a&b", '&'), ("a~", '~')]
        {
            assert_eq!(DeviceId::new(bad), Err(InvalidIdentifier::Character(character)), "{bad:?}");
        }
    }

    #[test]
    fn identities_differ_by_case_and_by_length() {
        assert_ne!(DeviceId::new("dev1").unwrap(), DeviceId::new("Dev1").unwrap());
        assert_ne!(DeviceId::new("dev1").unwrap(), DeviceId::new("dev10").unwrap());
    }

    #[test]
    fn one_node_has_one_spelling() {
        for spelling in [
            "devices/dev1/messages/devicebound",
            "/devices/dev1/messages/deviceBound",
            "Devices/dev1/Messages/DEVICEBOUND",
            "/devices/%64ev1/messages/device%42ound",
        ] {
            let address = Address::parse(spelling).unwrap();
            assert_eq!(address.as_str(), "devices/dev1/messages/devicebound", "{spelling}");
            assert_eq!(address.device().unwrap().as_str(), "dev1");
        }
        assert_eq!(Address::parse("devices/Devices/modules/Modules/Twin").unwrap().as_str(), {
            "devices/Devices/modules/Modules/twin"
        });
        assert_eq!(Address::parse("/messages/deviceBound").unwrap().as_str(), "messages/deviceBound");
    }

    #[test]
    fn an_escaped_slash_stays_in_its_segment() {
        let address = Address::parse("devices/a%2fb/messages/events").unwrap();
        assert_eq!(address.as_str(), "devices/a%2Fb/messages/events");
        assert_eq!(address.device(), None);
    }

    #[test]
    fn characters_with_a_meaning_in_addresses_are_escaped_once() {
        for (id, spelt) in
            [("a#b", "a%23b"), ("a?b", "a%3Fb"), ("100%", "100%25"), ("a%41", "a%2541"), ("x+;=@", "x+;=@")]
        {
            let mut builder = AddressBuilder::with_capacity(0);
            builder.canonical("devices");
            builder.segment(id).unwrap();
            let address = builder.finish().unwrap();
            assert_eq!(address.as_str(), format!("devices/{spelt}"));
            assert_eq!(address.device().unwrap().as_str(), id);
            assert_eq!(Address::parse(address.as_str()).unwrap(), address);
        }
    }

    #[test]
    fn what_is_no_address_says_why() {
        for (text, error) in [
            ("", InvalidAddress::EmptySegment),
            ("/", InvalidAddress::EmptySegment),
            ("//devices", InvalidAddress::EmptySegment),
            ("devices//events", InvalidAddress::EmptySegment),
            ("devices/d/", InvalidAddress::EmptySegment),
            ("devices/../d", InvalidAddress::DotSegment),
            ("devices/%2e%2E/d", InvalidAddress::DotSegment),
            ("devices/%", InvalidAddress::Escape),
            ("devices/%4", InvalidAddress::Escape),
            ("devices/%zz", InvalidAddress::Escape),
            ("devices/%ff", InvalidAddress::Escape),
            ("devices/%00", InvalidAddress::Control),
            ("devices/a\nb", InvalidAddress::Control),
        ] {
            assert_eq!(Address::parse(text), Err(error), "{text:?}");
        }
        assert_eq!(Address::parse(&"x".repeat(1025)), Err(InvalidAddress::TooLong));
        assert_eq!(Address::parse(&"#".repeat(1024)), Err(InvalidAddress::TooLong));
    }

    #[test]
    fn escapes_survive_a_round_trip() {
        for text in ["", "plain", "a b%c/d", "é€😀", "\u{0}\u{7f}"] {
            let mut encoded = String::new();
            percent_encode_into(&mut encoded, text, is_unreserved);
            assert!(encoded.is_ascii());
            assert_eq!(percent_decode(&encoded).as_deref(), Some(text));
        }
        assert_eq!(percent_decode("a+b%2B").as_deref(), Some("a+b+"));
        assert_eq!(percent_decode("%C3"), None);
        assert_eq!(percent_decode("%+1"), None);
    }
}
