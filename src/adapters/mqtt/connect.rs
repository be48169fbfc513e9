//! Who a client is: what CONNECT says about that, and what it shows. Who is let in the gate decides
//! ([`crate::devices`]).

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use fieldgate_mappings::address::DeviceId;
use fieldgate_mappings::message::Message;
use fieldgate_mappings::mqtt::Publish;
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection, Report, Verdict};
use fieldgate_mappings::rules::RuleSet;
use fieldgate_mqtt::{Connect, Will};
use tokio::sync::oneshot;

use crate::devices::{Certificate, Denied, Pass, Pending, Shown};

use super::words;

/// The device that a client says it is: the one of its client identifier, or the one that its user name is the id of,
/// if such a device is registered. Clients that make up a client identifier have no other place for it.
///
/// # Errors
/// Why it cannot be any.
pub(super) fn identify(
    connect: &Connect,
    is_registered: impl FnOnce(&str) -> bool,
) -> Result<DeviceId, Rejection> {
    let user_name = connect.username.as_deref();
    let named = user_name.and_then(named_device);
    let id = match user_name {
        Some(user_name) if named.is_none() && is_registered(user_name) => user_name,
        // MQTT 5 3.1.3-6: the server assigns an identifier, and here a device has one already.
        _ => named.filter(|_| connect.client_id.is_empty()).unwrap_or(&connect.client_id),
    };
    let device = DeviceId::new(id)
        .map_err(|error| Rejection::new(Reason::Content, format!("the client identifier {error}")))?;
    match named {
        Some(named) if named != device.as_str() => {
            Err(Rejection::new(Reason::NotPermitted, "the user name is another device's"))
        }
        _ => Ok(device),
    }
}

/// What a client shows for being that device: its password, or without one the certificate of its TLS connection.
pub(super) fn shown<'a>(connect: &'a Connect, certificate: Option<&'a Certificate>) -> Shown<'a> {
    match (&connect.password, certificate) {
        (Some(password), _) => Shown::Password(password),
        (None, Some(certificate)) => Shown::Certificate(certificate),
        (None, None) => Shown::Nothing,
    }
}

/// A client that waits to be let in or not.
pub(super) struct Judging {
    pub(super) connect: Box<Connect>,
    pub(super) pending: Pending,
    pub(super) answer: Option<Result<Pass, Denied>>,
}

/// A client whose token its hub is to judge.
pub(super) struct Proving {
    pub(super) connect: Box<Connect>,
    pub(super) pass: Pass,
    pub(super) word: oneshot::Receiver<Outcome>,
    pub(super) answer: Option<Outcome>,
    /// When it is not waited for any longer.
    pub(super) until: Instant,
}

/// A verdict, and where it is heard.
pub(super) fn word() -> (Verdict, oneshot::Receiver<Outcome>) {
    let (sender, receiver) = oneshot::channel();
    (Verdict::new(Rc::new(Word(Cell::new(Some(sender)))), 0), receiver)
}

struct Word(Cell<Option<oneshot::Sender<Outcome>>>);

impl Report for Word {
    fn report(&self, _: u64, outcome: Outcome) {
        // An error: the client is gone.
        let _ = self.0.take().map(|sender| sender.send(outcome));
    }
}

/// The device that a user name in Azure's form is about: `hub/device/?api-version=…`, in older clients without the
/// question mark. Any other user name says nothing about a device.
fn named_device(user_name: &str) -> Option<&str> {
    let mut parts = user_name.split('/').skip(1);
    parts.next().filter(|device| !device.is_empty() && !device.starts_with('?'))
}

/// The message that a will becomes, with memory of its own: it is kept as long as the connection.
///
/// # Errors
/// Why the rules do not take it: found out now, while the device can still be told.
pub(super) fn will(rules: &RuleSet, device: &DeviceId, will: &Will) -> Result<Box<Message>, Rejection> {
    let publish = Publish {
        topic: &will.topic,
        payload: Bytes::copy_from_slice(&will.payload),
        qos: will.qos as u8,
        retain: will.retain,
        properties: words::read_copy(&will.properties),
    };
    rules.map_mqtt_will(device, publish).map(Box::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn azures_user_names_name_a_device_and_others_do_not() {
        for (user_name, device) in [
            ("hub.example/dev1/?api-version=2021-04-12", Some("dev1")),
            ("hub.example:8883/dev1/?api-version=2021-04-12&DeviceClientType=x%2Fy", Some("dev1")),
            ("hub.example/dev1/api-version=2016-11-14", Some("dev1")),
            ("hub.example/dev1/module/?api-version=2021-04-12", Some("dev1")),
            ("hub.example/dev1", Some("dev1")),
            ("hub.example/?api-version=2021-04-12", None),
            ("hub.example/", None),
            ("alice", None),
            ("", None),
        ] {
            assert_eq!(named_device(user_name), device, "{user_name}");
        }
    }
}
