//! `fieldgate check`: everything that can be wrong before the start, and what the configuration means.

use std::net::SocketAddr;
use std::path::Path;

use thiserror::Error;

use super::CliError;
use crate::config::{Authorise, Config, MappingsError, Target};
use crate::output::say;
use crate::tls::{self, Roots, TlsError};

/// What a start would stumble over.
#[derive(Debug, Error)]
pub(super) enum Wrong {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Mappings(#[from] MappingsError),
}

/// Checks, and prints what the configuration comes to.
pub(super) fn run(file: Option<&Path>) -> Result<(), CliError> {
    let config = match file {
        Some(file) => Config::load(file)?,
        None => Config::default(),
    };
    config.require_hub()?;
    if let Some(file) = &config.upstream.ca_file {
        tls::client(&Roots::File(file.clone())).map_err(Wrong::from)?;
    }
    config.mappings.load().map_err(Wrong::from)?;
    let name = file.map_or_else(|| "the defaults".into(), |file| file.display().to_string());
    say(&format!("{name}: good"))?;
    for (what, meaning) in summary(&config) {
        say(&format!("  {what:<9}{meaning}"))?;
    }
    Ok(())
}

fn summary(config: &Config) -> Vec<(&'static str, String)> {
    let anonymous = |allowed: bool| {
        if allowed { "devices are who they say they are" } else { "no device gets in without credentials" }
    };
    let tokens = match config.amqp.authorise() {
        Authorise::Token => "devices bring tokens to the hub; the configured addresses are routed",
        Authorise::Any => "devices bring tokens to the hub; every address is routed",
    };
    let hub = match &config.upstream.target {
        Target::Embedded => "the embedded hub".into(),
        Target::ConnectionString(hub) => match hub.port {
            Some(port) => format!("{}:{port}", hub.host),
            None => hub.host.clone(),
        },
        Target::Url(url) => format!("{}:{}", url.host, url.port),
    };
    let mut lines = vec![
        (
            "AMQP",
            listener(&config.listeners.iter().map(|listener| listener.address).collect::<Vec<_>>(), tokens),
        ),
        ("MQTT", listener(&config.mqtt.listen, anonymous(config.mqtt.allow_anonymous()))),
        ("CoAP", listener(&config.coap.listen, anonymous(config.coap.allow_anonymous()))),
        ("HTTP", listener(&config.http.listen, anonymous(config.http.allow_anonymous()))),
        ("admin", listener(&config.admin.listen, "/metrics and /healthz")),
        ("hub", hub),
    ];
    if config.runs_hub() {
        let registers = if config.hub.register_unknown_devices() {
            "registers unknown devices"
        } else {
            "knows registered devices only"
        };
        lines.push((
            "",
            listener(&config.hub.listen, &format!("AMQP over TLS as `{}`; {registers}", config.hub.name)),
        ));
    }
    let mappings = match config.mappings.files.as_slice() {
        [] => "the built-in azure-iot-hub.toml".into(),
        files => files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", "),
    };
    lines.push(("mappings", mappings));
    lines
}

fn listener(addresses: &[SocketAddr], what: &str) -> String {
    if addresses.is_empty() {
        return "off".into();
    }
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    format!("{}   {what}", addresses.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_what_runs_where() {
        let text = "[coap]\nlisten = []\n[amqp]\nlisten = \"0.0.0.0:5672\"\nauthorise = \"token\"\n\
                    [upstream]\nurl = \"amqps://u:hidden@hub.example\"";
        let config = Config::parse("f", text, None).unwrap();
        let lines = summary(&config);
        let line = |what: &str| &lines.iter().find(|(name, _)| *name == what).unwrap().1;
        assert_eq!(
            line("AMQP"),
            "0.0.0.0:5672   devices bring tokens to the hub; the configured addresses are routed"
        );
        assert_eq!(line("MQTT"), "127.0.0.1:1883   devices are who they say they are");
        assert_eq!(line("CoAP"), "off");
        assert_eq!(line("hub"), "hub.example:5671");
        assert_eq!(lines.len(), 7, "no line for an embedded hub that does not run");
    }
}
