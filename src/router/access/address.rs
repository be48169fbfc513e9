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
