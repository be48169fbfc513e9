//! The vocabulary of the message layer: type, code, message ID, token, method.
//! Not a message itself: what travels is bytes, judged by `guard` and read by `codec`.
//! RFC 7252 section 3 and 12.1.

use std::fmt;

/// The type of a message (RFC 7252 section 3, field T).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    Confirmable,
    NonConfirmable,
    Acknowledgement,
    Reset,
}

impl Type {
    /// From the two bits of the first byte of a message.
    pub(crate) fn of(first_byte: u8) -> Self {
        match (first_byte >> 4) & 0b11 {
            0 => Self::Confirmable,
            1 => Self::NonConfirmable,
            2 => Self::Acknowledgement,
            _ => Self::Reset,
        }
    }

    /// The two bits, in place.
    pub(crate) fn bits(self) -> u8 {
        match self {
            Self::Confirmable => 0x00,
            Self::NonConfirmable => 0x10,
            Self::Acknowledgement => 0x20,
            Self::Reset => 0x30,
        }
    }
}

/// What the code of a message makes of it (RFC 7252 section 12.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// 0.00.
    Empty,
    /// 0.01 to 0.31.
    Request,
    /// 2.00 to 5.31, assigned or not.
    Response,
    /// Classes 1, 6 and 7.
    Reserved,
}

impl Class {
    pub(crate) fn of(code: u8) -> Self {
        match (code >> 5, code & 0x1f) {
            (0, 0) => Self::Empty,
            (0, _) => Self::Request,
            (2..=5, _) => Self::Response,
            _ => Self::Reserved,
        }
    }
}

/// The message ID: pairs an ACK or RST with its message, and tells duplicates apart. Not the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct MessageId(pub(crate) u16);

/// The token: pairs a response with its request (RFC 7252 section 5.3.1). At most 8 bytes; never a message ID.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Token {
    length: u8,
    bytes: [u8; 8],
}

impl Token {
    /// A token of at most 8 bytes; what is longer has been refused by the guard before, and is cut here.
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let length = bytes.len().min(8);
        let mut token = Self { length: length as u8, bytes: [0; 8] };
        token.bytes[..length].copy_from_slice(&bytes[..length]);
        token
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x?}", self.as_slice())
    }
}

/// A method that the gateway understands (RFC 7252 section 5.8). Others are answered 4.05 by the message layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// 0.01
    Get,
    /// 0.02
    Post,
    /// 0.03
    Put,
    /// 0.04
    Delete,
}

impl Method {
    /// The method of a request code; `None` for FETCH, PATCH, iPATCH (RFC 8132) and what is unassigned.
    pub(crate) fn of(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Get),
            2 => Some(Self::Post),
            3 => Some(Self::Put),
            4 => Some(Self::Delete),
            _ => None,
        }
    }

    /// The request code.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Get => 1,
            Self::Post => 2,
            Self::Put => 3,
            Self::Delete => 4,
        }
    }

    /// The name as mapping files and logs spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A response code, always of class 2 to 5. Shown as the specifications write it, `2.04`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(u8);

impl Code {
    /// 2.01 Created
    pub const CREATED: Self = Self::of(2, 1);
    /// 2.02 Deleted
    pub const DELETED: Self = Self::of(2, 2);
    /// 2.03 Valid
    pub const VALID: Self = Self::of(2, 3);
    /// 2.04 Changed
    pub const CHANGED: Self = Self::of(2, 4);
    /// 2.05 Content
    pub const CONTENT: Self = Self::of(2, 5);
    /// 4.00 Bad Request
    pub const BAD_REQUEST: Self = Self::of(4, 0);
    /// 4.01 Unauthorized
    pub const UNAUTHORIZED: Self = Self::of(4, 1);
    /// 4.02 Bad Option
    pub const BAD_OPTION: Self = Self::of(4, 2);
    /// 4.03 Forbidden
    pub const FORBIDDEN: Self = Self::of(4, 3);
    /// 4.04 Not Found
    pub const NOT_FOUND: Self = Self::of(4, 4);
    /// 4.05 Method Not Allowed
    pub const METHOD_NOT_ALLOWED: Self = Self::of(4, 5);
    /// 4.06 Not Acceptable
    pub const NOT_ACCEPTABLE: Self = Self::of(4, 6);
    /// 4.12 Precondition Failed
    pub const PRECONDITION_FAILED: Self = Self::of(4, 12);
    /// 4.13 Request Entity Too Large
    pub const REQUEST_ENTITY_TOO_LARGE: Self = Self::of(4, 13);
    /// 4.15 Unsupported Content-Format
    pub const UNSUPPORTED_CONTENT_FORMAT: Self = Self::of(4, 15);
    /// 4.29 Too Many Requests (RFC 8516)
    pub const TOO_MANY_REQUESTS: Self = Self::of(4, 29);
    /// 5.00 Internal Server Error
    pub const INTERNAL_SERVER_ERROR: Self = Self::of(5, 0);
    /// 5.01 Not Implemented
    pub const NOT_IMPLEMENTED: Self = Self::of(5, 1);
    /// 5.02 Bad Gateway
    pub const BAD_GATEWAY: Self = Self::of(5, 2);
    /// 5.03 Service Unavailable
    pub const SERVICE_UNAVAILABLE: Self = Self::of(5, 3);
    /// 5.04 Gateway Timeout
    pub const GATEWAY_TIMEOUT: Self = Self::of(5, 4);
    /// 5.05 Proxying Not Supported
    pub const PROXYING_NOT_SUPPORTED: Self = Self::of(5, 5);

    const fn of(class: u8, detail: u8) -> Self {
        Self(class << 5 | detail)
    }

    /// The code as it stands in the header of a response; `None` where the byte is not a response code.
    pub fn from_byte(byte: u8) -> Option<Self> {
        (Class::of(byte) == Class::Response).then_some(Self(byte))
    }

    pub(crate) fn byte(self) -> u8 {
        self.0
    }

    /// The class: 2 success, 4 the client's error, 5 the server's (3 is unassigned).
    pub fn class(self) -> u8 {
        self.0 >> 5
    }

    /// The two digits after the dot, 0 to 31.
    pub fn detail(self) -> u8 {
        self.0 & 0x1f
    }

    /// Whether this is a success, class 2.
    pub fn is_success(self) -> bool {
        self.class() == 2
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.class(), self.detail())
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_written_as_the_specifications_write_it() {
        assert_eq!(Code::CHANGED.to_string(), "2.04");
        assert_eq!(Code::TOO_MANY_REQUESTS.to_string(), "4.29");
        assert_eq!(Code::CHANGED.byte(), 0x44);
    }

    #[test]
    fn only_classes_two_to_five_are_responses() {
        for byte in 0..=255u8 {
            let response = (64..192).contains(&byte);
            assert_eq!(Code::from_byte(byte).is_some(), response, "{byte:#04x}");
            assert_eq!(Class::of(byte) == Class::Response, response);
        }
        assert_eq!(Class::of(0x00), Class::Empty);
        assert_eq!(Class::of(0x1f), Class::Request);
        assert_eq!(Class::of(0x20), Class::Reserved);
        assert_eq!(Class::of(0xc0), Class::Reserved);
        assert_eq!(Class::of(0xe1), Class::Reserved);
    }

    #[test]
    fn type_bits_are_the_inverse_of_reading_them() {
        for kind in [Type::Confirmable, Type::NonConfirmable, Type::Acknowledgement, Type::Reset] {
            assert_eq!(Type::of(0x4f | kind.bits()), kind);
        }
    }

    #[test]
    fn a_token_keeps_its_length() {
        assert_ne!(Token::new(&[0]), Token::new(&[]));
        assert_eq!(Token::new(&[1, 2, 3]).as_slice(), [1, 2, 3]);
    }
}
