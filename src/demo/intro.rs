//! What the demo says first: what runs where, and lines to paste for a message of one's own.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use super::fleet::{FLEET, PROTOCOLS, Plan, Speaks, label};
use super::screen::HEADING;
use crate::app::Listening;
use crate::telemetry::Protocol;

/// Where everything is.
#[derive(Debug)]
pub(super) struct Places<'a> {
    /// How this program was called.
    pub(super) program: &'a str,
    /// The state directory, and whether the configuration or the command line names it.
    pub(super) state: &'a Path,
    pub(super) state_is_named: bool,
    /// The hub's host, and its port.
    pub(super) hub: (&'a str, u16),
    pub(super) listening: &'a Listening,
}

/// A listener's address as a client on this machine reaches it.
pub(super) fn reachable(listening: &Listening, protocol: Protocol) -> Option<SocketAddr> {
    let addresses = match protocol {
        Protocol::Amqp => &listening.amqp,
        Protocol::Mqtt => &listening.mqtt,
        Protocol::Coap => &listening.coap,
        Protocol::Http => &listening.http,
    };
    addresses.first().map(|address| match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::new([127, 0, 0, 1].into(), address.port()),
        IpAddr::V6(ip) if ip.is_unspecified() => {
            SocketAddr::new(std::net::Ipv6Addr::LOCALHOST.into(), address.port())
        }
        _ => *address,
    })
}

/// The text.
pub(super) fn text(places: &Places<'_>) -> String {
    [overview(places), first_messages(places), commands(places), below()].join("\n")
}

fn overview(places: &Places<'_>) -> String {
    let mut text = format!(
        "Fieldgate: a gateway, a hub and {} simulated devices, all in this process.\n\n",
        FLEET.iter().filter(|plan| reachable(places.listening, plan.speaks.protocol()).is_some()).count()
    );
    let mut head = "gateway";
    for protocol in PROTOCOLS {
        let Some(address) = reachable(places.listening, protocol) else { continue };
        let transport = if protocol == Protocol::Coap { "/udp" } else { "" };
        let of = |plan: &&Plan| plan.speaks.protocol() == protocol;
        let devices: Vec<String> = FLEET.iter().filter(of).map(named).collect();
        let address = format!("{address}{transport}");
        text += &format!("  {head:<8} {:<9} {address:<20}  {}\n", label(protocol), devices.join(", "));
        head = "";
    }
    let (host, port) = places.hub;
    let hub = format!("{host}:{port}");
    text += &format!("  {:<8} {:<9} {hub:<20}  the gateway connects by AMQP 1.0 over TLS\n", "hub", "AMQPS");
    if let Some(admin) = places.listening.admin.first() {
        text += &format!("  {:<8} http://{admin}/metrics and /healthz\n", "admin");
    }
    text += &format!("  {:<8} {}\n", "keys", places.state.display());
    text
}

fn named(plan: &Plan) -> String {
    let variant = match plan.speaks {
        Speaks::Amqp | Speaks::Http => "",
        Speaks::Mqtt(_) => plan.speaks.label().trim_start_matches("MQTT "),
        Speaks::Coap { .. } => plan.speaks.label().trim_start_matches("CoAP "),
    };
    if variant.is_empty() { plan.id.into() } else { format!("{} ({variant})", plan.id) }
}

fn first_messages(places: &Places<'_>) -> String {
    let mut text =
        "Your own first message, from another terminal; a new device registers itself:\n\n".to_owned();
    if let Some(address) = reachable(places.listening, Protocol::Mqtt) {
        text += &format!(
            "mosquitto_pub{} -i my-mqtt -q 1 -t devices/my-mqtt/messages/events/room=attic -m hello\n",
            mosquitto_at(address)
        );
    }
    if let Some(address) = reachable(places.listening, Protocol::Coap) {
        let at = if address.port() == 5683 { host(address) } else { address.to_string() };
        text += &format!(
            "coap-client-notls -m post -e hello 'coap://{at}/devices/my-coap/messages/events?room=attic'\n"
        );
    }
    if let Some(address) = reachable(places.listening, Protocol::Http) {
        text += &format!(
            "curl -i -d hello -H iothub-app-room:attic http://{address}/devices/my-http/messages/events\n"
        );
    }
    if let Some(address) = reachable(places.listening, Protocol::Amqp) {
        let token = tool(places, "token my-amqp");
        let hub = places.hub.0;
        text += &format!(
            "python3 -c '    # needs python3-qpid-proton
from sys import argv; from proton import Message; from proton.utils import BlockingConnection
c = BlockingConnection(\"{address}\", allowed_mechs=\"ANONYMOUS\")
c.create_sender(\"$cbs\").send(Message(body=argv[1], properties={{\"operation\": \"put-token\",
    \"type\": \"servicebus.windows.net:sastoken\", \"name\": \"{hub}/devices/my-amqp\"}}))
events = c.create_sender(\"devices/my-amqp/messages/events\")
events.send(Message(body=\"hello\", properties={{\"room\": \"attic\"}}))
' \"$({token})\"\n"
        );
    }
    text
}

fn commands(places: &Places<'_>) -> String {
    let mut text = String::new();
    if let Some(address) = reachable(places.listening, Protocol::Mqtt) {
        text += &format!(
            "A command: the first line waits for it; the second, in one more terminal, sends it:\n\n\
             mosquitto_sub{} -i my-valve -q 1 -v -t 'devices/my-valve/messages/devicebound/#'\n{}\n\n",
            mosquitto_at(address),
            tool(places, "send my-valve 'open the valve'"),
        );
    }
    text += &format!("What the hub receives, from all devices:\n\n{}\n", tool(places, "watch"));
    text
}

fn below() -> String {
    format!(
        "Below: `device` lines are what a simulated device did, `hub` lines what the hub received, and\n\
         `sender` lines come from the service that sends commands. Ctrl-C ends it.\n\n{HEADING}"
    )
}

/// A call of the hub's tools that finds this hub.
fn tool(places: &Places<'_>, what: &str) -> String {
    let mut call = format!("{} hub {what}", quoted(places.program));
    if places.state_is_named {
        call += &format!(" --state-dir {}", quoted(&places.state.display().to_string()));
    }
    call
}

/// The options for where, as far as they are not mosquitto's defaults.
fn mosquitto_at(address: SocketAddr) -> String {
    let mut options = String::new();
    if !address.ip().is_loopback() {
        options += &format!(" -h {}", address.ip());
    }
    if address.port() != 1883 {
        options += &format!(" -p {}", address.port());
    }
    options
}

fn host(address: SocketAddr) -> String {
    match address.ip() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

/// A word for a shell (POSIX 2.2.2).
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn listening() -> Listening {
        let Config { listeners, mqtt_listeners, coap, http, admin, .. } = Config::default();
        Listening {
            amqp: listeners.iter().map(|listener| listener.address).collect(),
            mqtt: mqtt_listeners.iter().map(|listener| listener.address).collect(),
            coap: coap.listen,
            http: http.listen,
            admin: admin.listen,
        }
    }

    fn places(listening: &Listening) -> Places<'_> {
        Places {
            program: "target/release/fieldgate",
            state: Path::new("/home/somebody/.local/state/fieldgate"),
            state_is_named: false,
            hub: ("localhost", 5671),
            listening,
        }
    }

    #[test]
    fn with_the_defaults_it_fits_into_a_hundred_columns_and_names_everything() {
        let listening = listening();
        let text = text(&places(&listening));
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{line}");
        }
        for plan in &FLEET {
            assert!(text.contains(plan.id), "{}", plan.id);
        }
        for line in [
            "  gateway  AMQP 1.0  127.0.0.1:5672        amqp-press, amqp-lathe",
            "           CoAP      127.0.0.1:5683/udp    coap-soil (CON), coap-rain (NON)",
            "  hub      AMQPS     localhost:5671        the gateway connects by AMQP 1.0 over TLS",
            "  admin    http://127.0.0.1:9464/metrics and /healthz",
            "mosquitto_pub -i my-mqtt -q 1 -t devices/my-mqtt/messages/events/room=attic -m hello",
            "' \"$(target/release/fieldgate hub token my-amqp)\"",
            "target/release/fieldgate hub watch",
            "c = BlockingConnection(\"127.0.0.1:5672\", allowed_mechs=\"ANONYMOUS\")",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
    }

    #[test]
    fn other_places_stand_in_the_lines_to_paste() {
        let listening = Listening {
            amqp: Vec::new(),
            mqtt: vec!["0.0.0.0:2883".parse().unwrap()],
            coap: vec!["[::1]:5683".parse().unwrap()],
            http: vec!["192.0.2.7:80".parse().unwrap()],
            admin: Vec::new(),
        };
        let state = Path::new("/tmp/the state");
        let text = text(&Places { state, state_is_named: true, ..places(&listening) });
        assert!(text.contains("mosquitto_pub -p 2883 -i my-mqtt"), "{text}");
        assert!(text.contains("'coap://[::1]/devices/my-coap/messages/events?room=attic'"), "{text}");
        assert!(text.contains("http://192.0.2.7:80/devices/my-http/messages/events"), "{text}");
        assert!(text.contains("fieldgate hub watch --state-dir '/tmp/the state'"), "{text}");
        assert!(
            !text.contains("python3") && !text.contains("amqp-press") && !text.contains("admin"),
            "{text}"
        );
        assert!(text.starts_with("Fieldgate: a gateway, a hub and 6 simulated devices"), "{text}");
    }

    #[test]
    fn words_are_quoted_where_a_shell_would_take_them_apart() {
        assert_eq!(quoted("target/release/fieldgate"), "target/release/fieldgate");
        assert_eq!(quoted("it's here"), "'it'\\''s here'");
        assert_eq!(quoted(""), "''");
    }
}
