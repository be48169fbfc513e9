//! `[[listener]]` with `protocol = "mqtt"`: where MQTT devices connect by TLS or WebSocket, or under rules of their own.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;

use super::{Here, ListenerSection, Protocol, SECTION};
use crate::config::error::{ConfigError, Source};
use crate::config::names::Names;
use crate::config::profiles::{ClientCertificates, SslProfile};
use crate::config::sections::MqttConfig;

/// A place where MQTT devices connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MqttListener {
    /// What logs and metrics call it.
    pub name: Arc<str>,
    /// Where it listens.
    pub address: SocketAddr,
    /// Certificate and TLS versions; absent: plain TCP.
    pub tls: Option<Arc<SslProfile>>,
    /// With `tls`: a device that does not begin with TLS is not heard.
    pub require_ssl: bool,
    /// MQTT over WebSocket is taken on the same port.
    pub websocket: bool,
    /// Whether a device is who it says it is.
    pub allow_anonymous: bool,
    /// Connections over all workers.
    pub max_connections: NonZeroUsize,
    /// It is one of `[mqtt] listen`.
    short: bool,
}

impl MqttListener {
    /// What in the configuration it is, for a person.
    #[must_use]
    pub fn setting(&self) -> String {
        match self.short {
            true => "[mqtt] listen".into(),
            false => format!("[[listener]] `{}`", self.name),
        }
    }
}

/// The listeners that are written, after those of `[mqtt] listen`.
pub(in crate::config) fn resolve(
    source: &Source<'_>,
    sections: &[ListenerSection],
    mqtt: &MqttConfig,
    profiles: &[Arc<SslProfile>],
) -> Result<Vec<MqttListener>, ConfigError> {
    let ours = |section: &ListenerSection| section.protocol == Protocol::Mqtt;
    let short = match &mqtt.listen {
        None if sections.iter().any(ours) => &[],
        _ => mqtt.listen(),
    };
    let mut listeners: Vec<MqttListener> = short
        .iter()
        .map(|address| MqttListener {
            name: format!("mqtt {address}").into(),
            address: *address,
            tls: None,
            require_ssl: false,
            websocket: false,
            allow_anonymous: mqtt.allow_anonymous(),
            max_connections: mqtt.max_connections,
            short: true,
        })
        .collect();
    let mut names = Names::new(source, SECTION);
    for (at, section) in sections.iter().enumerate().filter(|(_, section)| ours(section)) {
        let at = at.to_string();
        let here = Here { source, at: &at, section };
        let listener = here.mqtt(&mut names, mqtt, profiles)?;
        let taken = |other: &&MqttListener| other.address == listener.address && other.address.port() != 0;
        if let Some(other) = listeners.iter().find(taken) {
            let what = format!("listener `{}` has {} already", other.name, other.address);
            return Err(here.wrong("port", what).with_help("another port, or one of the two"));
        }
        listeners.push(listener);
    }
    Ok(listeners)
}

impl Here<'_> {
    fn mqtt(
        &self,
        names: &mut Names<'_>,
        mqtt: &MqttConfig,
        profiles: &[Arc<SslProfile>],
    ) -> Result<MqttListener, ConfigError> {
        self.refuse_keys_of_amqp()?;
        let section = self.section;
        let tls = self.tls(profiles)?;
        let require_ssl = self.require_ssl(tls.is_some())?;
        let usual_port = if tls.is_some() && require_ssl { 8883 } else { 1883 };
        let address = SocketAddr::new(self.host()?, section.port.unwrap_or(usual_port));
        let name = names.take(self.at, section.name.as_deref().unwrap_or(&address.to_string()))?;
        let certified = require_ssl
            && tls.as_ref().is_some_and(|tls| tls.client_certificates == ClientCertificates::Required);
        Ok(MqttListener {
            name,
            address,
            tls,
            require_ssl,
            websocket: section.websocket,
            allow_anonymous: self.believes(address, certified)?,
            max_connections: section.max_connections.unwrap_or(mqtt.max_connections),
            short: false,
        })
    }

    /// What is asked of links, sessions and SASL means nothing here.
    fn refuse_keys_of_amqp(&self) -> Result<(), ConfigError> {
        let section = self.section;
        let written = [
            ("authenticate_peer", section.authenticate_peer),
            ("sasl_mechanisms", section.sasl_mechanisms.is_some()),
            ("connector", section.connector.is_some()),
            ("authorise", section.authorise.is_some()),
            ("max_frame_bytes", section.max_frame_bytes.is_some()),
            ("max_sessions", section.max_sessions.is_some()),
            ("max_links", section.max_links.is_some()),
            ("idle_time_out", section.idle_time_out.is_some()),
        ];
        match written.into_iter().find(|(_, written)| *written) {
            None => Ok(()),
            Some((key, _)) => Err(self
                .wrong(key, format!("`{key}` is for AMQP, and this listener is for MQTT"))
                .with_help("leave it out; bounds for MQTT stand under [mqtt], and `allow_anonymous` here")),
        }
    }

    /// Whether devices are who they say they are: only where this machine alone can connect, if nothing is written.
    fn believes(&self, address: SocketAddr, certified: bool) -> Result<bool, ConfigError> {
        let loopback = address.ip().is_loopback();
        if let Some(written) = self.section.allow_anonymous {
            return Ok(written);
        }
        if !loopback && !certified {
            let key = if self.section.host.is_some() { "host" } else { "port" };
            let what = format!(
                "the listener is on {address}, which other machines can reach, and devices there could say that they are any device"
            );
            return Err(self.wrong(key, what).with_help(
                "`allow_anonymous = false` if they are registered (`fieldgate device`) and prove themselves, or an \
                 ssl_profile that requires client certificates; or `allow_anonymous = true` if everybody who reaches \
                 that address may speak for any device",
            ));
        }
        Ok(loopback && !certified)
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse("f.toml", text, None).map_err(|error| error.to_string())
    }

    const PROFILE: &str =
        "[[ssl_profile]]\nname = \"s\"\ncert_file = \"c\"\nprivate_key_file = \"k\"\nca_cert_file = \"a\"\n";
    const MQTT: &str = "[[listener]]\nprotocol = \"mqtt\"\n";

    #[test]
    fn the_usual_places() {
        let addresses = |text: &str| -> Vec<String> {
            let config = parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            config.mqtt_listeners.iter().map(|listener| listener.address.to_string()).collect()
        };
        assert_eq!(addresses(""), ["127.0.0.1:1883"]);
        assert_eq!(addresses("[mqtt]\nlisten = []"), [""; 0]);
        assert_eq!(addresses("[[listener]]\n"), ["127.0.0.1:1883"], "that one is for AMQP");
        assert_eq!(addresses(&format!("{MQTT}port = 7")), ["127.0.0.1:7"], "instead of the short form");
        assert_eq!(
            addresses(&format!("[mqtt]\nlisten = \"127.0.0.1:1\"\n{MQTT}")),
            ["127.0.0.1:1", "127.0.0.1:1883"]
        );
        assert_eq!(addresses(&format!("{PROFILE}{MQTT}ssl_profile = \"s\"")), ["127.0.0.1:8883"]);
        let both = format!("{PROFILE}{MQTT}ssl_profile = \"s\"\nrequire_ssl = false");
        assert_eq!(addresses(&both), ["127.0.0.1:1883"]);
        let amqp = parse(&format!("{MQTT}websocket = true\nmax_connections = 3")).unwrap();
        assert_eq!(amqp.listeners.len(), 1, "AMQP's short form stands");
        let listener = &amqp.mqtt_listeners[0];
        assert!(listener.websocket && listener.allow_anonymous && !listener.require_ssl);
        assert_eq!(
            (listener.max_connections.get(), &*listener.setting()),
            (3, "[[listener]] `127.0.0.1:1883`")
        );
    }

    #[test]
    fn who_may_reach_it_decides_what_has_to_be_said() {
        let certified = PROFILE.to_owned() + "client_certificates = \"required\"\n";
        let anonymous = |text: &str| parse(text).unwrap().mqtt_listeners[0].allow_anonymous;
        assert!(!anonymous(&format!("{certified}{MQTT}host = \"0.0.0.0\"\nssl_profile = \"s\"")));
        assert!(!anonymous(&format!("{certified}{MQTT}ssl_profile = \"s\"")));
        assert!(anonymous(&format!("{MQTT}host = \"0.0.0.0\"\nallow_anonymous = true")));
        assert!(!anonymous(&format!("{MQTT}host = \"0.0.0.0\"\nallow_anonymous = false")));
        let error = parse(&format!("{MQTT}host = \"0.0.0.0\"")).unwrap_err();
        assert!(error.starts_with("f.toml:3:8: the listener is on 0.0.0.0:1883"), "{error}");
        assert!(error.contains("`allow_anonymous = false`"), "{error}");
    }

    #[test]
    fn what_means_nothing_here_is_refused() {
        for (line, message) in [
            ("connector = \"upstream\"", "f.toml:3:13: `connector` is for AMQP"),
            ("sasl_mechanisms = [\"PLAIN\"]", "f.toml:3:19: `sasl_mechanisms` is for AMQP"),
            ("authorise = \"token\"", "f.toml:3:13: `authorise` is for AMQP"),
            ("max_links = 1", "f.toml:3:13: `max_links` is for AMQP"),
            ("require_ssl = true", "f.toml:3:15: TLS is required"),
            ("ssl_profile = \"s\"", "f.toml:3:15: "),
        ] {
            let error = parse(&format!("{MQTT}{line}")).unwrap_err();
            assert!(error.starts_with(message), "{line}: {error}");
        }
        let error = parse(&format!("{MQTT}port = 1\n{MQTT}name = \"b\"\nport = 1")).unwrap_err();
        assert!(error.contains("listener `127.0.0.1:1` has 127.0.0.1:1 already"), "{error}");
        assert!(parse("[[listener]]\nprotocol = \"coap\"").is_err());
    }
}
