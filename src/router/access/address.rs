//! Addresses of terminuses, brought to one form.
//!
//! The form that is checked is the form that is sent: whatever a hub may make of escapes, of dots or of a host name, it
//! gets to read nothing that was not judged. An address that could be read in two ways is not guessed at but refused.

use std::borrow::Cow;

use fieldgate_mappings::Address;
use fieldgate_mappings::address::InvalidAddress;

/// An address of the hub.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Canonical<'a> {
    /// The host that an absolute address names.
    pub(crate) host: Option<&'a str>,
    /// The node, for comparing.
    pub(crate) path: Address,
    /// The node, for sending: as the device wrote it where that is all in order, else the same as `path`.
    pub(crate) text: Cow<'a, str>,
}

/// Why a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AddressFault {
    /// Its path.
    #[error("{0}")]
    Path(#[from] InvalidAddress),
    /// A slash or backslash inside a segment: some hubs would cut there.
    #[error("the address has an encoded slash in a segment")]
    Separator,
    /// Another scheme than AMQP's.
    #[error("the scheme of an absolute address is amqp or amqps")]
    Scheme,
    /// Credentials, a port that is no number, or letters that are in no host name.
    #[error("an absolute address names a host and at most a port before its path")]
    Authority,
}

/// Reads an address: `devices/d1/messages/events`, with a slash before it or not, or absolute. Whether the host of an
/// absolute one is known here is not judged.
///
/// # Errors
/// Where there could be a doubt what it means.
pub(crate) fn canonical(address: &str) -> Result<Canonical<'_>, AddressFault> {
    let (host, path) = match address.split_once("://") {
        None => (None, address),
        Some((scheme, rest)) => {
            if !scheme.eq_ignore_ascii_case("amqps") && !scheme.eq_ignore_ascii_case("amqp") {
                return Err(AddressFault::Scheme);
            }
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            (Some(host_of(authority)?), path)
        }
    };
    let node = Address::parse(path)?;
    if node.as_str().contains("%2F") || node.as_str().contains("%5C") {
        return Err(AddressFault::Separator);
    }
    // The canonical path differs from what was written in the case of the hub's words, or in escapes.
    let is_plain = host.is_none()
        && !path.contains('%')
        && path.strip_prefix('/').unwrap_or(path).eq_ignore_ascii_case(node.as_str());
    let text = if is_plain { Cow::Borrowed(path) } else { Cow::Owned(node.as_str().to_owned()) };
    Ok(Canonical { host, path: node, text })
}

/// The host in an authority, without its port and without the brackets of an IPv6 address.
fn host_of(authority: &str) -> Result<&str, AddressFault> {
    let (host, port, is_fine): (&str, &str, fn(u8) -> bool) = match authority.strip_prefix('[') {
        Some(bracketed) => {
            let (host, port) = bracketed.split_once(']').ok_or(AddressFault::Authority)?;
            (host, port, |byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.'))
        }
        None => {
            let (host, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
            (host, port, |byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
        }
    };
    let is_port = match port.strip_prefix(':') {
        Some(number) => number.bytes().all(|byte| byte.is_ascii_digit()) && number.parse::<u16>().is_ok(),
        None => port.is_empty(),
    };
    if host.is_empty() || !host.bytes().all(is_fine) || !is_port {
        return Err(AddressFault::Authority);
    }
    Ok(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(address: &str) -> (Option<&str>, String, String) {
        let Canonical { host, path, text } = canonical(address).expect(address);
        (host, path.as_str().to_owned(), text.into_owned())
    }

    #[test]
    fn what_is_in_order_is_sent_as_it_was_written() {
        for (address, path) in [
            ("devices/d1/messages/events", "devices/d1/messages/events"),
            ("/devices/d1/messages/deviceBound", "devices/d1/messages/devicebound"),
            ("/DEVICES/Pump:1@x=y/Messages/Events", "devices/Pump:1@x=y/messages/events"),
            ("devices/d1/modules/M1/twin", "devices/d1/modules/M1/twin"),
            ("$cbs", "$cbs"),
            ("/$CBS", "$CBS"),
        ] {
            let (host, canonical, text) = read(address);
            assert_eq!((host, &*canonical, &*text), (None, path, address));
        }
    }

    #[test]
    fn what_can_be_written_in_two_ways_is_sent_in_one() {
        for (address, path) in [
            ("devices/%64ev1/x", "devices/dev1/x"),
            ("%44evices/d/X", "devices/d/x"),
            ("devices/a%3Ab", "devices/a:b"),
            ("devices/a%3ab", "devices/a:b"),
            // The identity a%2Fb is legal, and this is how it is written.
            ("devices/a%252Fb", "devices/a%252Fb"),
            ("devices/a%252fb", "devices/a%252fb"),
            ("devices/a#b?c", "devices/a%23b%3Fc"),
            ("devices/ünï", "devices/%C3%BCn%C3%AF"),
            ("devices/%C3%BCn%C3%AF", "devices/%C3%BCn%C3%AF"),
            ("%24cbs", "$cbs"),
        ] {
            let (host, canonical, text) = read(address);
            assert_eq!((host, &*canonical, &*text), (None, path, path), "{address}");
        }
    }

    #[test]
    fn an_absolute_address_is_its_path_and_its_host() {
        for (address, host) in [
            ("amqps://Hub.example/devices/d/X", "Hub.example"),
            ("AMQP://hub.example:5671/devices/d/X", "hub.example"),
            ("amqps://[::1]:5671/devices/d/x", "::1"),
            ("amqps://10.0.0.1/devices/d/x", "10.0.0.1"),
            ("amqps://my_gateway-1:0/devices/d/x", "my_gateway-1"),
        ] {
            let (found, path, text) = read(address);
            assert_eq!((found, &*path, &*text), (Some(host), "devices/d/x", "devices/d/x"), "{address}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for (address, fault) in [
            ("", AddressFault::Path(InvalidAddress::EmptySegment)),
            ("/", AddressFault::Path(InvalidAddress::EmptySegment)),
            ("//hub/devices/d", AddressFault::Path(InvalidAddress::EmptySegment)),
            ("devices//d", AddressFault::Path(InvalidAddress::EmptySegment)),
            ("devices/d/", AddressFault::Path(InvalidAddress::EmptySegment)),
            ("devices/d1/../d2", AddressFault::Path(InvalidAddress::DotSegment)),
            ("devices/d1/./x", AddressFault::Path(InvalidAddress::DotSegment)),
            ("devices/d1/%2e%2E/d2", AddressFault::Path(InvalidAddress::DotSegment)),
            ("devices/d1/.%2e/d2", AddressFault::Path(InvalidAddress::DotSegment)),
            ("devices/dev1%2F..", AddressFault::Separator),
            ("devices/dev1%2f..%2fdev2", AddressFault::Separator),
            ("devices%2Fd2", AddressFault::Separator),
            ("devices/d1\\..\\d2", AddressFault::Separator),
            ("devices/d1%5C..", AddressFault::Separator),
            ("devices/100%", AddressFault::Path(InvalidAddress::Escape)),
            ("devices/%zz", AddressFault::Path(InvalidAddress::Escape)),
            ("devices/%c0%af", AddressFault::Path(InvalidAddress::Escape)),
            ("devices/%ff", AddressFault::Path(InvalidAddress::Escape)),
            ("devices/d\0", AddressFault::Path(InvalidAddress::Control)),
            ("devices/d%00", AddressFault::Path(InvalidAddress::Control)),
            ("devices/d%0a", AddressFault::Path(InvalidAddress::Control)),
            ("devices/d\u{85}", AddressFault::Path(InvalidAddress::Control)),
            ("sb://hub.example/devices/d", AddressFault::Scheme),
            ("https://hub.example/devices/d", AddressFault::Scheme),
            ("://hub.example/devices/d", AddressFault::Scheme),
            ("x/amqps://hub.example/devices/d", AddressFault::Scheme),
            ("amqps:///devices/d", AddressFault::Authority),
            ("amqps://:5671/devices/d", AddressFault::Authority),
            ("amqps://user@hub.example/devices/d", AddressFault::Authority),
            ("amqps://user:pass@hub.example/devices/d", AddressFault::Authority),
            ("amqps://hub.example@evil/devices/d", AddressFault::Authority),
            ("amqps://hub.example:5671@evil/devices/d", AddressFault::Authority),
            ("amqps://hub.example:/devices/d", AddressFault::Authority),
            ("amqps://hub.example:65536/devices/d", AddressFault::Authority),
            ("amqps://hub.example:+5/devices/d", AddressFault::Authority),
            ("amqps://hub.example:1:2/devices/d", AddressFault::Authority),
            ("amqps://hub%2eexample/devices/d", AddressFault::Authority),
            ("amqps://hub.example\\devices/d", AddressFault::Authority),
            ("amqps://hub.example?x/devices/d", AddressFault::Authority),
            ("amqps://hüb/devices/d", AddressFault::Authority),
            ("amqps://[::1/devices/d", AddressFault::Authority),
            ("amqps://[::1]x/devices/d", AddressFault::Authority),
            ("amqps://[hub]/devices/d", AddressFault::Authority),
            ("amqps://hub.example", AddressFault::Path(InvalidAddress::EmptySegment)),
            ("amqps://hub.example//devices/d", AddressFault::Path(InvalidAddress::EmptySegment)),
        ] {
            assert_eq!(canonical(address), Err(fault), "{address}");
        }
        let long = format!("devices/{}", "d".repeat(2000));
        assert_eq!(canonical(&long), Err(AddressFault::Path(InvalidAddress::TooLong)));
    }

    /// Whatever is read once is read the same again, and what was written as it is sent.
    #[test]
    fn reading_is_a_projection() {
        let mut random = crate::testing::Random::new(11);
        let pieces = [
            "devices", "/", "%", "2F", "%2f", "%25", "d1", ".", "..", "$cbs", "é", ":", "amqps://", "h", "@",
        ];
        let mut read = 0;
        for _ in 0..20_000 {
            let length = random.below(8);
            let address: String = (0..length).map(|_| *random.pick(&pieces)).collect();
            let Ok(once) = canonical(&address) else { continue };
            read += 1;
            for again in [&*once.text, once.path.as_str()] {
                let again = canonical(again).expect(&address);
                assert_eq!((&again.path, again.host), (&once.path, None), "{address}");
            }
        }
        assert!(read > 1000, "{read}");
    }
}
