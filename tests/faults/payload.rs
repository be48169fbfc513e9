//! What travels: which device, which message of it, and for the how-many-th time that the device sent anything.

use std::fmt;

/// The bytes of a message where a scenario does not want others; at least those of the head.
pub(crate) const BYTES: usize = 200;
const HEAD: usize = 16;

/// Names a sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) device: u32,
    pub(crate) number: u32,
    pub(crate) serial: u32,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} number {} serial {}", name(self.device), self.number, self.serial)
    }
}

/// The identity of a device.
pub(crate) fn name(device: u32) -> String {
    format!("dev{device}")
}

/// Where its messages go to.
pub(crate) fn address(device: u32) -> String {
    format!("devices/{}/messages/events", name(device))
}

/// The message of a sending, of so many bytes: no two are alike, and no part of one is one.
pub(crate) fn write(key: Key, bytes: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(bytes);
    for word in [key.device, key.number, key.serial, bytes as u32] {
        body.extend(word.to_be_bytes());
    }
    let seed = key.device.wrapping_mul(31).wrapping_add(key.serial);
    body.extend((HEAD as u32..bytes as u32).map(|place| (place.wrapping_mul(7) ^ seed) as u8));
    body
}

/// The sending that a message is of, if it is one of ours and whole.
pub(crate) fn read(body: &[u8]) -> Option<Key> {
    let word = |at: usize| body.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes);
    let key = Key { device: word(0)?, number: word(4)?, serial: word(8)? };
    (write(key, body.len()) == body).then_some(key)
}
