//! What serde cannot see: values out of their range, and values that do not go together.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use rustls::pki_types::ServerName;

use super::Document;
use super::error::{ConfigError, Source};
use super::sections::{AmqpSection, Authorise, HubConfig};

/// Reads the text and checks what can be checked without other files.
pub(super) fn read(source: &Source<'_>) -> Result<Document, ConfigError> {
    let document: Document = toml::from_str(source.text).map_err(|error| source.unreadable(&error))?;
    ranges(source, &document)?;
    let Document { amqp, mqtt, coap, http, admin, hub, .. } = &document;
    amqp_authorisation(source, amqp)?;
    let network = [
        ("mqtt", "MQTT", mqtt.listen(), mqtt.allow_anonymous),
        ("coap", "CoAP", &*coap.listen, coap.allow_anonymous),
        ("http", "HTTP", &*http.listen, http.allow_anonymous),
    ];
    for (section, protocol, listen, allowed) in network {
        if let Some((at, address)) = off_loopback(listen)
            && allowed.is_none()
        {
            let registered = "; `allow_anonymous = false` if they are registered (`fieldgate device`) and prove themselves";
            return Err(anonymous(source, section, protocol, at, address, registered));
        }
    }
    if let Some((at, address)) = off_loopback(&admin.listen) {
        let what = format!(
            "[admin] listens on {address}, which other machines can reach, and it asks nobody who they are"
        );
        return Err(source.wrong(&["admin", "listen", &at.to_string()], what).with_help(
            "listen on 127.0.0.1 or [::1]; if others must see it, put a proxy with a login before it",
        ));
    }
    hub_registration(source, hub)?;
    Ok(document)
}

/// AMQP alone can ask a device for a token, so its listener may leave loopback by either of two words.
fn amqp_authorisation(source: &Source<'_>, amqp: &AmqpSection) -> Result<(), ConfigError> {
    if amqp.authorise == Some(Authorise::Any) && amqp.allow_anonymous == Some(false) {
        let what =
            "`authorise = \"any\"` lets everybody in, `allow_anonymous = false` nobody without a token";
        return Err(source.wrong(&["amqp", "authorise"], what).with_help("keep one of the two"));
    }
    if amqp.authorise == Some(Authorise::Registry) && amqp.allow_anonymous == Some(true) {
        let what =
            "`authorise = \"registry\"` asks for a registered device, `allow_anonymous = true` for nobody";
        return Err(source.wrong(&["amqp", "authorise"], what).with_help("keep one of the two"));
    }
    match off_loopback(amqp.listen()) {
        Some((at, address))
            if matches!(amqp.authorise, None | Some(Authorise::Any))
                && amqp.allow_anonymous != Some(true) =>
        {
            Err(anonymous(
                source,
                "amqp",
                "AMQP",
                at,
                address,
                "; `authorise = \"token\"` if they bring tokens, or \"registry\" if they are registered (`fieldgate device`)",
            ))
        }
        _ => Ok(()),
    }
}

fn anonymous(
    source: &Source<'_>,
    section: &str,
    protocol: &str,
    at: usize,
    address: &SocketAddr,
    instead: &str,
) -> ConfigError {
    let what = format!(
        "[{section}] listens on {address}, which other machines can reach, and {protocol} devices there could say that they are any device"
    );
    source.wrong(&[section, "listen", &at.to_string()], what).with_help(format!(
        "write `allow_anonymous = true` under [{section}] if everybody who reaches that address may do so{instead}; otherwise listen on 127.0.0.1 or [::1]"
    ))
}

fn hub_registration(source: &Source<'_>, hub: &HubConfig) -> Result<(), ConfigError> {
    if ServerName::try_from(hub.name.as_str()).is_err() {
        return Err(source
            .wrong(&["hub", "name"], format!("`{}` is not a host name", hub.name))
            .with_help("letters, digits, hyphens and dots, as in \"hub.example.org\""));
    }
    match off_loopback(&hub.listen) {
        Some((_, address)) if hub.register_unknown_devices == Some(true) => {
            let what = format!(
                "[hub] listens on {address}, which other machines can reach, and would register every device that speaks up"
            );
            Err(source
                .wrong(&["hub", "register_unknown_devices"], what)
                .with_help("listen on 127.0.0.1 or [::1], or leave `register_unknown_devices` out"))
        }
        _ => Ok(()),
    }
}

fn off_loopback(addresses: &[SocketAddr]) -> Option<(usize, &SocketAddr)> {
    addresses.iter().enumerate().find(|(_, address)| !address.ip().is_loopback())
}

fn ranges(source: &Source<'_>, document: &Document) -> Result<(), ConfigError> {
    let Document { runtime, amqp, mqtt, coap, http, devices, hub, upstream, .. } = document;
    let within = Within(source);
    within.number(&["runtime", "workers"], runtime.workers, 0..=256)?;
    within.number(&["amqp", "max_frame_bytes"], amqp.max_frame_bytes, FRAME_BYTES)?;
    // Two frames of the greatest size at least, or a peer stops after each.
    within.number(&["amqp", "window_bytes"], amqp.window_bytes, 2 * amqp.max_frame_bytes..=1 << 30)?;
    within.number(&["mqtt", "max_packet_bytes"], mqtt.max_packet_bytes, 256..=16 << 20)?;
    // RFC 7252 4.6 suggests 1,152 bytes for a message; a UDP datagram holds 65,507.
    within.number(&["coap", "max_datagram_bytes"], coap.max_datagram_bytes, 128..=65_507)?;
    within.number(&["http", "max_body_bytes"], http.max_body_bytes, 0..=16 << 20)?;
    within.number(&["http", "max_head_bytes"], http.max_head_bytes, 1_024..=1 << 20)?;
    within.number(&["hub", "partitions"], hub.partitions.get(), 1..=1_024)?;
    within.number(&["hub", "retain_bytes"], hub.retain_bytes, 1 << 20..=usize::MAX)?;
    for (section, key, value) in [
        ("amqp", "idle_time_out", amqp.idle_time_out),
        ("mqtt", "connect_time_out", mqtt.connect_time_out),
        ("coap", "answer_time_out", coap.answer_time_out),
        ("http", "header_time_out", http.header_time_out),
        ("http", "body_time_out", http.body_time_out),
        ("http", "answer_time_out", http.answer_time_out),
        ("upstream", "idle_time_out", upstream.idle_time_out),
        ("upstream", "connect_time_out", upstream.connect_time_out),
        ("upstream", "retry_max", upstream.retry_max),
        ("upstream", "idle_session", upstream.idle_session),
    ] {
        within.some_duration(&[section, key], Some(value), SECOND_TO_HOUR)?;
    }
    within.some_duration(
        &["amqp", "open_time_out"],
        Some(amqp.open_time_out),
        Duration::from_millis(100)..=Duration::from_secs(3_600),
    )?;
    let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
    within.duration(
        &["devices", "longest_wait"],
        devices.longest_wait,
        second,
        Duration::from_secs(3_600),
    )?;
    within.duration(&["runtime", "drain"], runtime.drain, Duration::ZERO, Duration::from_secs(3_600))?;
    // Keep Alive is 16 bits of seconds (MQTT 5 3.1.2.10).
    // Session Expiry Interval is 32 bits of seconds (MQTT 5 3.1.2.11.2); nothing outlives the process.
    within.duration(&["mqtt", "session_expiry_max"], mqtt.session_expiry_max, Duration::ZERO, 30 * day)?;
    within.duration(&["mqtt", "keep_alive_max"], mqtt.keep_alive_max, second, Duration::from_secs(65_535))?;
    // Later than ACK_TIMEOUT (2 s, RFC 7252 4.8) the device has sent its request again.
    within.duration(&["coap", "ack_delay"], coap.ack_delay, Duration::ZERO, Duration::from_millis(1_900))?;
    within.duration(&["hub", "command_ttl"], hub.command_ttl, second, 2 * day)?;
    within.duration(&["hub", "lock"], hub.lock, second, Duration::from_secs(300))?;
    within.duration(
        &["hub", "feedback_delay"],
        hub.feedback_delay,
        Duration::ZERO,
        Duration::from_secs(60),
    )?;
    within.duration(&["hub", "feedback_ttl"], hub.feedback_ttl, second, 2 * day)?;
    within.duration(&["upstream", "hold"], upstream.hold, Duration::ZERO, Duration::from_secs(3_600))?;
    within.duration(&["upstream", "token_ttl"], upstream.token_ttl, Duration::from_secs(10), 365 * day)
}

/// Checks values against their ranges.
pub(super) struct Within<'a>(pub(super) &'a Source<'a>);

/// A bound in time that is neither none nor for ever.
pub(super) const SECOND_TO_HOUR: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3_600);
/// AMQP 1.0 2.4.1: a peer must take frames of 512 bytes.
pub(super) const FRAME_BYTES: RangeInclusive<u32> = 512..=16 << 20;

impl Within<'_> {
    /// As [`duration`](Self::duration), of what may be left out.
    pub(super) fn some_duration(
        &self,
        path: &[&str],
        value: Option<Duration>,
        range: RangeInclusive<Duration>,
    ) -> Result<(), ConfigError> {
        value.map_or(Ok(()), |value| self.duration(path, value, *range.start(), *range.end()))
    }

    /// As [`number`](Self::number), of what may be left out.
    pub(super) fn some_number<N: PartialOrd + Display>(
        &self,
        path: &[&str],
        value: Option<N>,
        range: RangeInclusive<N>,
    ) -> Result<(), ConfigError> {
        value.map_or(Ok(()), |value| self.number(path, value, range))
    }

    pub(super) fn number<N: PartialOrd + Display>(
        &self,
        path: &[&str],
        value: N,
        range: RangeInclusive<N>,
    ) -> Result<(), ConfigError> {
        if range.contains(&value) {
            return Ok(());
        }
        Err(self.outside(path, &value.to_string(), &range.start().to_string(), &range.end().to_string()))
    }

    fn duration(
        &self,
        path: &[&str],
        value: Duration,
        least: Duration,
        most: Duration,
    ) -> Result<(), ConfigError> {
        if (least..=most).contains(&value) {
            return Ok(());
        }
        Err(self.outside(path, &format!("{value:?}"), &format!("{least:?}"), &format!("{most:?}")))
    }

    fn outside(&self, path: &[&str], value: &str, least: &str, most: &str) -> ConfigError {
        let name = path.last().copied().unwrap_or_default();
        self.0.wrong(path, format!("`{name}` is {value}")).with_help(format!("from {least} to {most}"))
    }
}
