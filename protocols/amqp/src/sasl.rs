//! The SASL layer of AMQP 1.0 (part 5): mechanisms, credentials of PLAIN, and our own frames.
//!
//! Not here: whether credentials are right. The connection hands them out and is told the outcome.

use std::fmt;

use bytes::BytesMut;

use crate::codec::{put_binary, put_composite, put_null, put_str, put_symbol, put_symbols, put_ubyte};
use crate::connection::ClientSecurity;
use crate::frame::{FrameKind, put_frame};
use crate::performative::descriptor;

/// The largest SASL frame that is read. 5.3.1 says 512; the passwords of IoT hubs are tokens, which take more.
pub(crate) const MAX_FRAME_BYTES: u32 = 4096;

/// A SASL mechanism that is spoken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mechanism {
    /// No identity (RFC 4505).
    Anonymous,
    /// User and password in the clear (RFC 4616).
    Plain,
    /// The identity of the layer below: a TLS client certificate (RFC 4422 appendix A).
    External,
    /// No identity yet: claims follow on the `$cbs` node. What Microsoft's C clients ask for.
    Mssbcbs,
}

impl Mechanism {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Anonymous, Self::Plain, Self::External, Self::Mssbcbs];

    /// Its registered name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Anonymous => "ANONYMOUS",
            Self::Plain => "PLAIN",
            Self::External => "EXTERNAL",
            Self::Mssbcbs => "MSSBCBS",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mechanism| mechanism.name() == name)
    }

    /// What a client of this security asks for; `None` where it skips SASL.
    pub(crate) fn of(security: &ClientSecurity) -> Option<Self> {
        match security {
            ClientSecurity::Bare => None,
            ClientSecurity::Anonymous => Some(Self::Anonymous),
            ClientSecurity::Plain { .. } => Some(Self::Plain),
            ClientSecurity::External => Some(Self::External),
            ClientSecurity::Mssbcbs => Some(Self::Mssbcbs),
        }
    }
}

/// How the exchange ends (5.3.3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SaslCode {
    /// The client is who it says.
    Ok = 0,
    /// The credentials are wrong.
    Auth = 1,
    /// A system error that will not go away by itself, of which the client is not told more.
    Sys = 2,
    /// The same, and an operator has to do something.
    SysPerm = 3,
    /// A passing system error; the client may try again.
    SysTemp = 4,
}

impl SaslCode {
    pub(crate) fn from_wire(code: u8) -> Option<Self> {
        [Self::Ok, Self::Auth, Self::Sys, Self::SysPerm, Self::SysTemp]
            .into_iter()
            .find(|&known| known as u8 == code)
    }
}

/// What PLAIN carries.
#[derive(Clone, PartialEq, Eq)]
pub struct PlainCredentials {
    /// Whom the client wants to act for; mostly empty.
    pub authorization_id: String,
    /// Who the client is.
    pub user: String,
    /// The password.
    pub password: String,
}

impl fmt::Debug for PlainCredentials {
    /// The password is not shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlainCredentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// `[authzid] NUL authcid NUL passwd`, UTF-8 (RFC 4616 2). An empty user or password is refused there.
pub(crate) fn parse_plain(response: &[u8]) -> Option<PlainCredentials> {
    let text = std::str::from_utf8(response).ok()?;
    let mut parts = text.split('\0');
    let (authorization_id, user, password) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || user.is_empty() || password.is_empty() {
        return None;
    }
    Some(PlainCredentials {
        authorization_id: authorization_id.to_owned(),
        user: user.to_owned(),
        password: password.to_owned(),
    })
}

/// Writes the frame sasl-mechanisms.
pub(crate) fn put_mechanisms(out: &mut BytesMut, mechanisms: &[Mechanism]) {
    let names: Vec<&str> = mechanisms.iter().map(|mechanism| mechanism.name()).collect();
    put_sasl(out, descriptor::SASL_MECHANISMS, |out| {
        put_symbols(out, &names);
        1
    });
}

/// Writes the frame sasl-init. `security` is not `Bare`.
pub(crate) fn put_init(out: &mut BytesMut, security: &ClientSecurity, hostname: Option<&str>) {
    let Some(mechanism) = Mechanism::of(security) else { return };
    put_sasl(out, descriptor::SASL_INIT, |out| {
        put_symbol(out, mechanism.name());
        match security {
            ClientSecurity::Plain { user, password } => {
                put_binary(out, format!("\0{user}\0{password}").as_bytes());
            }
            // An empty response, not an absent one: the server would answer that with a challenge.
            _ => put_binary(out, b""),
        }
        match hostname {
            Some(hostname) => put_str(out, hostname),
            None => put_null(out),
        }
        3
    });
}

/// Writes the frame sasl-outcome.
pub(crate) fn put_outcome(out: &mut BytesMut, code: SaslCode) {
    put_sasl(out, descriptor::SASL_OUTCOME, |out| {
        put_ubyte(out, code as u8);
        put_null(out);
        2
    });
}

fn put_sasl(out: &mut BytesMut, code: u64, fields: impl FnOnce(&mut BytesMut) -> usize) {
    put_frame(out, FrameKind::Sasl, 0, |out| put_composite(out, code, fields));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_has_exactly_three_parts() {
        let credentials = parse_plain(b"\0d1@sas.hub\0SharedAccessSignature sr=h").unwrap();
        assert_eq!(credentials.authorization_id, "");
        assert_eq!(credentials.user, "d1@sas.hub");
        assert_eq!(credentials.password, "SharedAccessSignature sr=h");
        assert_eq!(parse_plain(b"a\0b\0c").unwrap().authorization_id, "a");
        for wrong in [&b""[..], b"\0user", b"\0user\0", b"\0\0password", b"a\0b\0c\0d", b"\0\xff\0p"] {
            assert_eq!(parse_plain(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_password_does_not_show() {
        let credentials = parse_plain(b"\0user\0secret").unwrap();
        assert!(!format!("{credentials:?}").contains("secret"));
    }

    #[test]
    fn names_are_found_again() {
        for mechanism in Mechanism::ALL {
            assert_eq!(Mechanism::from_name(mechanism.name()), Some(mechanism));
        }
        assert_eq!(Mechanism::from_name("plain"), None);
    }

    #[test]
    fn frames_are_as_the_specification_writes_them() {
        let mut out = BytesMut::new();
        put_outcome(&mut out, SaslCode::Auth);
        assert_eq!(&out[..], b"\0\0\0\x11\x02\x01\0\0\0\x53\x44\xc0\x04\x02\x50\x01\x40");
        out.clear();
        put_init(&mut out, &ClientSecurity::Anonymous, None);
        assert_eq!(&out[8..], b"\0\x53\x41\xc0\x0f\x03\xa3\x09ANONYMOUS\xa0\0\x40");
    }
}
