//! What an error of the hub means: for the message or link that it refused, and for what is sent next.
//!
//! Conditions of AMQP 1.0 2.8.15 to 2.8.18 and of Azure (`com.microsoft:…`), whose description is often JSON with an
//! `errorCode`. A condition that says enough decides; the code decides where the condition is the hub's way of saying
//! "something", and whom a limit is for.

use std::borrow::Cow;
use std::time::Duration;

use fieldgate_amqp::codec::Value;
use fieldgate_amqp::performative::AmqpError;

use crate::outcome::{Outcome, Reason, Rejection};

/// How much of a hub's description is passed on to a device, in bytes: it must fit into one datagram with the rest.
const MAX_DESCRIPTION_BYTES: usize = 256;

/// The longest time that a hub is believed to want to be left alone.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// Whose sending a limit of the hub concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limited {
    /// The device's: it is throttled (429001), or its queue is full (403004).
    Device,
    /// The connection's: it holds as many devices as the hub allows (403005).
    Connection,
    /// Everybody's: the hub's quota is used up (403002), or it is suspended.
    Hub,
}

/// What an error of the hub means for a message that was refused, or for a link that was.
///
/// Where the fault is the hub's own, or that of the moment, the message is good and may be sent again.
pub fn refusal(error: &AmqpError) -> Outcome {
    let reason = match meaning(error) {
        Meaning::Refused(reason) => reason,
        Meaning::TryAgain => return Outcome::Released,
        Meaning::NotKnown => return Outcome::Unknown,
    };
    let description = match error.description() {
        Some(text) => Cow::Owned(text[..text.floor_char_boundary(MAX_DESCRIPTION_BYTES)].to_owned()),
        None => Cow::Borrowed("the hub refused the message"),
    };
    Outcome::Rejected(Rejection { reason, description })
}

/// Whose sending the hub limits with this error; `None` where it is about something else.
pub fn limit(error: &AmqpError) -> Option<Limited> {
    let code = code(error);
    match (error.condition(), code) {
        (_, Some(403_005)) => Some(Limited::Connection),
        (_, Some(403_002)) | ("com.microsoft:quota-exceeded" | "com.microsoft:iot-hub-suspended", _) => {
            Some(Limited::Hub)
        }
        _ => matches!(meaning(error), Meaning::Refused(Reason::Quota { .. })).then_some(Limited::Device),
    }
}

enum Meaning {
    Refused(Reason),
    TryAgain,
    NotKnown,
}

fn meaning(error: &AmqpError) -> Meaning {
    let quota = || Meaning::Refused(Reason::Quota { retry_after: retry_after(error) });
    let refused = Meaning::Refused;
    match error.condition() {
        "amqp:unauthorized-access" => refused(Reason::Credentials),
        "amqp:not-allowed" | "amqp:not-implemented" => refused(Reason::NotPermitted),
        "amqp:not-found" | "com.microsoft:iot-hub-not-found-error" => refused(Reason::NoSuchAddress),
        "amqp:link:message-size-exceeded" => refused(Reason::TooLarge),
        "amqp:resource-limit-exceeded"
        | "com.microsoft:device-container-throttled"
        | "com.microsoft:quota-exceeded"
        | "com.microsoft:server-busy" => quota(),
        "amqp:decode-error"
        | "amqp:invalid-field"
        | "com.microsoft:argument-error"
        | "com.microsoft:argument-out-of-range" => refused(Reason::Content),
        "amqp:resource-locked"
        | "amqp:resource-deleted"
        | "amqp:illegal-state"
        | "amqp:frame-size-too-small"
        | "amqp:connection:forced"
        | "amqp:connection:framing-error"
        | "amqp:connection:redirect"
        | "amqp:session:window-violation"
        | "amqp:session:errant-link"
        | "amqp:session:handle-in-use"
        | "amqp:session:unattached-handle"
        | "amqp:link:detach-forced"
        | "amqp:link:transfer-limit-exceeded"
        | "amqp:link:stolen"
        | "amqp:link:redirect"
        | "com.microsoft:link-creation-conflict"
        | "com.microsoft:message-lock-lost"
        | "com.microsoft:iot-hub-suspended" => Meaning::TryAgain,
        "com.microsoft:timeout" => Meaning::NotKnown,
        // What these and unknown ones are about only the code says.
        "amqp:internal-error" => by_code(error).unwrap_or(Meaning::TryAgain),
        _ => by_code(error).unwrap_or(refused(Reason::Content)),
    }
}

/// The hub's error codes are HTTP's with three digits more.
fn by_code(error: &AmqpError) -> Option<Meaning> {
    let code = code(error)?;
    Some(match code / 1000 {
        400 => Meaning::Refused(Reason::Content),
        401 => Meaning::Refused(Reason::Credentials),
        403 if matches!(code, 403_002 | 403_004 | 403_005) => {
            Meaning::Refused(Reason::Quota { retry_after: retry_after(error) })
        }
        403 => Meaning::Refused(Reason::NotPermitted),
        404 => Meaning::Refused(Reason::NoSuchAddress),
        413 => Meaning::Refused(Reason::TooLarge),
        429 => Meaning::Refused(Reason::Quota { retry_after: retry_after(error) }),
        // The state of a thing at that moment, and the hub's own trouble.
        408 | 409 | 412 | 500..=503 => Meaning::TryAgain,
        504 => Meaning::NotKnown,
        _ => return None,
    })
}

fn code(error: &AmqpError) -> Option<u32> {
    let text = error.description().filter(|text| text.trim_start().starts_with('{'))?;
    member(text, "errorCode")?.parse().ok().filter(|code| (400_000..600_000).contains(code))
}

/// When another attempt makes sense, where the hub says so: in the error's info map, or in its JSON description.
fn retry_after(error: &AmqpError) -> Option<Duration> {
    let said = error.info().into_iter().flatten().find_map(|(key, value)| {
        let key = key.as_str()?;
        let name = key.rsplit_once(':').map_or(key, |(_, name)| name);
        let milliseconds = NAMES_MS.iter().any(|known| name.eq_ignore_ascii_case(known));
        (milliseconds || NAMES.iter().any(|known| name.eq_ignore_ascii_case(known)))
            .then(|| number(&value))?
            .map(|number| if milliseconds { number / 1000.0 } else { number })
    });
    let described = || {
        let text = error.description().filter(|text| text.trim_start().starts_with('{'))?;
        let seconds = |name: &&str| member(text, name).and_then(time);
        let milliseconds = |name: &&str| member(text, name).and_then(time).map(|number| number / 1000.0);
        NAMES.iter().find_map(seconds).or_else(|| NAMES_MS.iter().find_map(milliseconds))
    };
    let seconds = said.or_else(described)?;
    let time = Duration::try_from_secs_f64(seconds).unwrap_or(MAX_RETRY_AFTER).min(MAX_RETRY_AFTER);
    (seconds > 0.0).then_some(time)
}

/// The names that the time has, for lack of one that is specified.
const NAMES: [&str; 5] = ["retry-after", "retryAfter", "RetryAfter", "retryAfterSeconds", "retry_after"];
/// The same in milliseconds.
const NAMES_MS: [&str; 3] = ["retry-after-ms", "retryAfterMs", "retryAfterInMs"];

fn number(value: &Value<'_>) -> Option<f64> {
    match *value {
        Value::Ubyte(value) => Some(value.into()),
        Value::Ushort(value) => Some(value.into()),
        Value::Uint(value) => Some(value.into()),
        Value::Byte(value) => Some(value.into()),
        Value::Short(value) => Some(value.into()),
        Value::Int(value) => Some(value.into()),
        // Beyond 2^53 neither is a time that anybody waits for.
        Value::Ulong(value) => Some(value as f64),
        Value::Long(value) => Some(value as f64),
        Value::Float(value) => Some(value.into()),
        Value::Double(value) => Some(value),
        Value::Str(text) | Value::Symbol(text) => time(text),
        _ => None,
    }
}

/// Seconds, or hours, minutes and seconds as .NET writes them (`00:00:10`).
fn time(text: &str) -> Option<f64> {
    let mut seconds = 0.0;
    for part in text.split(':') {
        let number: f64 = part.parse().ok()?;
        seconds = seconds * 60.0 + number;
    }
    Some(seconds)
}

/// The number or string of the first member of this name, wherever it stands in a JSON text. A name inside a string
/// has its quotes escaped, so it is not found.
fn member<'a>(json: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = json;
    loop {
        let (before, after) = rest.split_once(name)?;
        let value = after.strip_prefix('"').map(str::trim_start).and_then(|after| after.strip_prefix(':'));
        if let (true, Some(value)) = (before.ends_with('"'), value) {
            let value = value.trim_start();
            let value = value.strip_prefix('"').unwrap_or(value);
            let end = value.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | ':')));
            return Some(&value[..end.unwrap_or(value.len())]).filter(|value| !value.is_empty());
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use fieldgate_amqp::codec::{put_map, put_str, put_symbol, put_uint};

    use super::*;

    fn of(condition: &str, description: Option<&str>) -> Result<Reason, Outcome> {
        match refusal(&AmqpError::new(&condition.into(), description)) {
            Outcome::Rejected(rejection) => Ok(rejection.reason),
            other => Err(other),
        }
    }

    const QUOTA: Result<Reason, Outcome> = Ok(Reason::Quota { retry_after: None });

    /// Every condition of the reference, and every one that the specification names.
    #[test]
    fn the_hubs_conditions_have_their_reasons() {
        for (condition, expected, limited) in [
            ("amqp:unauthorized-access", Ok(Reason::Credentials), None),
            ("amqp:not-allowed", Ok(Reason::NotPermitted), None),
            ("amqp:not-implemented", Ok(Reason::NotPermitted), None),
            ("amqp:not-found", Ok(Reason::NoSuchAddress), None),
            ("com.microsoft:iot-hub-not-found-error", Ok(Reason::NoSuchAddress), None),
            ("amqp:link:message-size-exceeded", Ok(Reason::TooLarge), None),
            ("amqp:resource-limit-exceeded", QUOTA, Some(Limited::Device)),
            ("com.microsoft:device-container-throttled", QUOTA, Some(Limited::Device)),
            ("com.microsoft:server-busy", QUOTA, Some(Limited::Device)),
            ("com.microsoft:quota-exceeded", QUOTA, Some(Limited::Hub)),
            ("amqp:decode-error", Ok(Reason::Content), None),
            ("amqp:invalid-field", Ok(Reason::Content), None),
            ("amqp:precondition-failed", Ok(Reason::Content), None),
            ("com.microsoft:precondition-failed", Ok(Reason::Content), None),
            ("com.microsoft:argument-error", Ok(Reason::Content), None),
            ("com.microsoft:argument-out-of-range", Ok(Reason::Content), None),
            ("com.microsoft:device-already-exists", Ok(Reason::Content), None),
            ("vendor:whatever", Ok(Reason::Content), None),
            ("amqp:internal-error", Err(Outcome::Released), None),
            ("amqp:resource-locked", Err(Outcome::Released), None),
            ("amqp:resource-deleted", Err(Outcome::Released), None),
            ("amqp:illegal-state", Err(Outcome::Released), None),
            ("amqp:frame-size-too-small", Err(Outcome::Released), None),
            ("amqp:connection:forced", Err(Outcome::Released), None),
            ("amqp:connection:framing-error", Err(Outcome::Released), None),
            ("amqp:connection:redirect", Err(Outcome::Released), None),
            ("amqp:session:window-violation", Err(Outcome::Released), None),
            ("amqp:session:errant-link", Err(Outcome::Released), None),
            ("amqp:session:handle-in-use", Err(Outcome::Released), None),
            ("amqp:session:unattached-handle", Err(Outcome::Released), None),
            ("amqp:link:detach-forced", Err(Outcome::Released), None),
            ("amqp:link:transfer-limit-exceeded", Err(Outcome::Released), None),
            ("amqp:link:stolen", Err(Outcome::Released), None),
            ("amqp:link:redirect", Err(Outcome::Released), None),
            ("com.microsoft:link-creation-conflict", Err(Outcome::Released), None),
            ("com.microsoft:message-lock-lost", Err(Outcome::Released), None),
            ("com.microsoft:iot-hub-suspended", Err(Outcome::Released), Some(Limited::Hub)),
            ("com.microsoft:timeout", Err(Outcome::Unknown), None),
        ] {
            assert_eq!(of(condition, None), expected, "{condition}");
            assert_eq!(limit(&AmqpError::new(&condition.into(), None)), limited, "{condition}");
        }
    }

    #[test]
    fn a_vague_condition_is_told_by_its_code() {
        for (code, expected, limited) in [
            (400_004, Ok(Reason::Content), None),
            (401_002, Ok(Reason::Credentials), None),
            (403_002, QUOTA, Some(Limited::Hub)),
            (403_004, QUOTA, Some(Limited::Device)),
            (403_005, QUOTA, Some(Limited::Connection)),
            (403_006, Ok(Reason::NotPermitted), None),
            (404_001, Ok(Reason::NoSuchAddress), None),
            (409_002, Err(Outcome::Released), None),
            (412_002, Err(Outcome::Released), None),
            (413_001, Ok(Reason::TooLarge), None),
            (429_001, QUOTA, Some(Limited::Device)),
            (500_001, Err(Outcome::Released), None),
            (503_003, Err(Outcome::Released), None),
            (504_101, Err(Outcome::Unknown), None),
        ] {
            let text = format!(r#"{{"errorCode":{code},"trackingId":"a-G:7","message":"no"}}"#);
            for condition in ["vendor:whatever", "amqp:internal-error"] {
                assert_eq!(of(condition, Some(&text)), expected, "{code}");
                assert_eq!(limit(&AmqpError::new(&condition.into(), Some(&text))), limited, "{code}");
            }
            // What the condition says itself stands.
            assert_eq!(of("amqp:not-found", Some(&text)), Ok(Reason::NoSuchAddress));
        }
        let limited = |text| limit(&AmqpError::new(&"amqp:resource-limit-exceeded".into(), Some(text)));
        assert_eq!(limited(r#"{"errorCode":403002}"#), Some(Limited::Hub));
        assert_eq!(limited(r#"{ "errorCode" : "403005" }"#), Some(Limited::Connection));
        assert_eq!(limited("errorCode 403005"), Some(Limited::Device), "that is no JSON");
    }

    #[test]
    fn the_hub_says_when_to_come_again() {
        let described = |text| match of("com.microsoft:device-container-throttled", Some(text)) {
            Ok(Reason::Quota { retry_after }) => retry_after,
            other => panic!("{other:?}"),
        };
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(described(r#"{"errorCode":429001,"info":{"retryAfter":7}}"#), seconds(7));
        assert_eq!(described(r#"{"retry-after": "00:01:10", "x": 1}"#), seconds(70));
        assert_eq!(described(r#"{"retryAfterMs":1500}"#), Some(Duration::from_millis(1500)));
        assert_eq!(described(r#"{"retryAfter":1e400}"#), seconds(1));
        assert_eq!(described(r#"{"retryAfter":99999999999999999999999999}"#), Some(MAX_RETRY_AFTER));
        for nothing in [
            r#"{"retryAfter":0}"#,
            r#"{"retryAfter":null}"#,
            r#"{"retryAfter"#,
            r#"{"message":"say \"retryAfter\": 9"}"#,
            "retry after 9 s",
            "",
        ] {
            assert_eq!(described(nothing), None, "{nothing}");
        }

        let informed = |put: fn(&mut BytesMut)| {
            let mut info = BytesMut::new();
            put_map(&mut info, |out| {
                put_symbol(out, "com.microsoft:tracking-id");
                put_str(out, "x");
                put(out);
                2
            });
            let error =
                AmqpError::new(&"amqp:resource-limit-exceeded".into(), None).with_info(&info).unwrap();
            let Outcome::Rejected(rejection) = refusal(&error) else { panic!("rejected") };
            let Reason::Quota { retry_after } = rejection.reason else { panic!("{rejection}") };
            retry_after
        };
        let told = informed(|out| {
            put_symbol(out, "com.microsoft:retry-after");
            put_uint(out, 9);
        });
        assert_eq!(told, seconds(9));
        let told = informed(|out| {
            put_str(out, "Retry-After-Ms");
            put_str(out, "250");
        });
        assert_eq!(told, Some(Duration::from_millis(250)));
        let told = informed(|out| {
            put_str(out, "other");
            put_uint(out, 5);
        });
        assert_eq!(told, None);
    }

    #[test]
    fn a_long_description_is_cut_between_characters() {
        let text = format!("x{}", "é".repeat(400));
        let Outcome::Rejected(rejection) = refusal(&AmqpError::new(&"amqp:not-found".into(), Some(&text)))
        else {
            panic!("rejected")
        };
        assert_eq!(rejection.description.len(), 255);
    }
}
