//! The convention `hono`: the property bag that devices of Eclipse Hono put at the end of an MQTT topic,
//! `telemetry/?content-type=text%2Fplain&site=ber`. Over CoAP and HTTP such devices say nothing that templates and the
//! protocols themselves do not.

use std::time::Duration;

use bytestring::ByteString;

use crate::address::percent_decode_into;
use crate::azure;
use crate::message::{Message, Value};
use crate::outcome::{Reason, Rejection};

/// The most items of one bag: a bound on the work for one topic.
const MAX_ITEMS: usize = 100;
/// How long an event is worth keeping, in seconds.
const TTL: &str = "hono-ttl";
/// How long the device waits for a command; over MQTT commands come by subscription.
const TTD: &str = "hono-ttd";

/// Reads the rest of a topic: nothing, or a question mark and the properties. The first `own` application properties
/// of the message are the rule's.
pub(crate) fn read_bag(message: &mut Message, own: usize, rest: &str) -> Result<(), Rejection> {
    if rest.is_empty() {
        return Ok(());
    }
    let Some(bag) = rest.strip_prefix('?') else {
        return Err(Rejection::new(
            Reason::NoSuchAddress,
            "no rule maps this topic: after it only `?` and properties may follow",
        ));
    };
    for item in bag.split('&').filter(|item| !item.is_empty()).enumerate() {
        let (index, item) = item;
        if index == MAX_ITEMS {
            return Err(content("too many properties"));
        }
        let (key, value) = item.split_once('=').unwrap_or((item, ""));
        set(message, own, decode(key)?, decode(value)?)?;
    }
    Ok(())
}

fn set(message: &mut Message, own: usize, key: ByteString, value: ByteString) -> Result<(), Rejection> {
    match &*key {
        "content-type" => message.properties.content_type = Some(azure::symbol(value)?),
        TTL => {
            let seconds: u32 = value.parse().map_err(|_| content("`hono-ttl` is a number of seconds"))?;
            message.ttl = Some(Duration::from_secs(seconds.into()));
        }
        TTD => {}
        _ => azure::add_property(message, own, key, Value::String(value))?,
    }
    Ok(())
}

/// The encoding of HTML forms: `+` is a space.
fn decode(text: &str) -> Result<ByteString, Rejection> {
    let mut decoded = Vec::with_capacity(text.len());
    percent_decode_into(&mut decoded, &text.replace('+', " "))
        .ok_or_else(|| content("a malformed escape in the property bag"))?;
    String::from_utf8(decoded)
        .map(ByteString::from)
        .map_err(|_| content("a property in the bag is not UTF-8"))
}

fn content(description: &'static str) -> Rejection {
    Rejection::new(Reason::Content, description)
}
