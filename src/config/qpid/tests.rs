//! The well-known recipe in its spellings, what is left behind, what is wrong, and texts that are nobody's.

use super::reader::{Entry, Section, read as read_form};
use super::*;
use crate::config::{
    Authorise, Config, ConfigError, Connect, Direction, HostPort, Hosts, Level, LinkRoute, Mode, Reach,
    RouteAddress, Sasl, TlsVersion,
};

use fieldgate_amqp::sasl::Mechanism;

const RECIPE: &str = "\
router { mode: standalone  id: site-gateway }
listener { host: 0.0.0.0  port: 5672  authenticatePeer: no  saslMechanisms: ANONYMOUS }
sslProfile { name: hub-tls  caCertFile: ca.pem }
connector { name: HUB  host: hub.example.net  port: 5671  role: route-container  sslProfile: hub-tls  saslMechanisms: ANONYMOUS  idleTimeoutSeconds: 120 }
linkRoute { prefix: $cbs/  connection: HUB  direction: in }
linkRoute { prefix: $cbs/  connection: HUB  direction: out }
linkRoute { prefix: devices/  connection: HUB  direction: in }
linkRoute { prefix: devices/  connection: HUB  direction: out }
";

/// The same in the words of the first versions, on many lines.
const OLD: &str = "\
# The gateway of the site
container {
    worker-threads: 2   # as many as it has cores
    container-name: site-gateway
}

ssl-profile {
    name: hub-tls
    cert-db: ca.pem
}

listener {
    addr: 0.0.0.0
    port: amqp
    sasl-mechanisms: ANONYMOUS
    require-peer-auth: no
}

connector {
    name: HUB
    addr: hub.example.net
    port: amqps
    role: on-demand
    ssl-profile: hub-tls
    sasl-mechanisms: ANONYMOUS
    idle-timeout-seconds: 120
}

linkRoutePattern { prefix: $cbs/  connector: HUB }
link-route {
    prefix: devices/
    connector: HUB
    dir: in
}
link-route {
    prefix: devices/
    connector: HUB
    dir: out
}
";

const JSON: &str = r#"[
    ["router", { "mode": "standalone", "id": "site-gateway" }],
    ["sslProfile", { "name": "hub-tls", "caCertFile": "ca.pem" }],
    ["listener", { "host": "0.0.0.0", "port": 5672, "authenticatePeer": false, "saslMechanisms": "ANONYMOUS" }],
    ["connector", {
        "name": "HUB", "host": "hub.example.net", "port": "amqps", "role": "route-container",
        "sslProfile": "hub-tls", "saslMechanisms": "ANONYMOUS", "idleTimeoutSeconds": 120
    }],
    ["linkRoute", { "prefix": "$cbs/", "connection": "HUB", "direction": "in" }],
    ["linkRoute", { "prefix": "$cbs/", "connection": "HUB", "direction": "out" }],
    ["linkRoute", { "prefix": "devices/", "connection": "HUB", "direction": "in" }],
    ["linkRoute", { "prefix": "devices/", "connection": "HUB", "direction": "out" }]
]
"#;

fn import(text: &str) -> Import {
    Import::read(&Source { name: "q.conf", text }, None).unwrap_or_else(|error| panic!("{error}"))
}

fn config(text: &str) -> Config {
    assert!(is_qpid(text));
    let config = Config::parse("q.conf", text, None);
    config.unwrap_or_else(|error| panic!("{error}\n{}", import(text).text))
}

#[track_caller]
fn refused(text: &str) -> ConfigError {
    Config::parse("q.conf", text, None).expect_err("must be refused")
}

fn remarks(text: &str) -> Vec<String> {
    import(text).remarks.iter().map(ToString::to_string).collect()
}

#[test]
fn the_recipe_means_the_same_in_every_spelling() {
    let one_line = RECIPE.replace('\n', " ");
    let tight = RECIPE.replace(": ", ":").replace("  ", " ").replace(" }", "}").replace(" {", "{");
    let windows = OLD.replace('\n', "\r\n");
    for text in [RECIPE, OLD, JSON, &one_line, &tight, &windows] {
        let config = config(text);
        let [listener] = config.listeners.as_slice() else { panic!("{text}") };
        assert_eq!(listener.address, "0.0.0.0:5672".parse().unwrap(), "{text}");
        assert_eq!((listener.tls.as_ref(), listener.authenticate_peer), (None, false));
        assert_eq!(listener.sasl_mechanisms, [Mechanism::Anonymous]);
        assert_eq!(listener.authorise, Authorise::Token, "$cbs is routed");
        let [connector] = config.connectors.as_slice() else { panic!("{text}") };
        assert_eq!((&*connector.name, connector.mode), ("HUB", Mode::Shared));
        assert_eq!(connector.idle_time_out.as_secs(), 120);
        let Reach::Hosts(Hosts { addresses, tls, hub_name, sasl, .. }) = &connector.reach else { panic!() };
        assert_eq!(addresses, &[HostPort { host: "hub.example.net".into(), port: 5671 }]);
        assert_eq!(tls.as_ref().unwrap().ca_cert_file, Some("ca.pem".into()));
        assert_eq!((&**hub_name, sasl), ("hub.example.net", &Sasl::Anonymous));
        let route = |prefix: &str| LinkRoute {
            address: RouteAddress::Prefix(prefix.into()),
            direction: Direction::Both,
            connector: 0,
        };
        assert_eq!(config.link_routes, [route("$cbs"), route("devices")]);
        assert!(!config.maps() && !config.needs_upstream() && !config.runs_hub());
        config.require_hub().unwrap();
    }
    assert_eq!(config(RECIPE).connectors[0].connect, Connect::Start);
    assert_eq!(config(OLD).connectors[0].connect, Connect::OnDemand);
    assert_eq!(config(OLD).runtime.workers().get(), 2);
}

#[test]
fn the_translation_is_a_file_of_ours() {
    for text in [RECIPE, OLD, JSON] {
        let import = import(text);
        assert!(!is_qpid(&import.text));
        let own = Config::parse("f.toml", &import.text, None).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(Config { remarks: import.remarks.clone(), ..own }, config(text));
        assert_eq!(import.origins.len(), import.text.lines().count());
    }
    let remarks = remarks(RECIPE);
    assert_eq!(remarks.len(), 1, "{remarks:?}");
    assert!(remarks[0].starts_with("line 1: `id` is not carried over"), "{remarks:?}");
}

#[test]
fn a_file_is_known_by_what_is_in_it() {
    for text in [RECIPE, OLD, JSON, "\u{feff}\n# c\nrouter{", "listener\n{", "[[\"listener\", {}]]"] {
        assert!(is_qpid(text), "{text}");
    }
    for text in [
        "",
        "# only { a comment",
        "[amqp]\n",
        "[[listener]]\nport = 1",
        "listener = { port = 1 }",
        "[[\"listener\"]]",
        "{",
    ] {
        assert!(!is_qpid(text), "{text}");
    }
    assert!(!is_qpid(crate::config::sample()));
}

#[test]
fn values_end_where_they_should() {
    // On one line, a word with a colon and a blank behind it begins the next setting; one without blank is a value's.
    let text = "a { saslPassword: my:secret is  name: x y # c\n  pattern: a/#/b  host:::1\n  file: /a b/c.pem }\n\
                b-c {\n\n  hostname: #\n  failoverUrls: amqp://a:1, amqps://b }c { x: {\"y\": {\"z}\": 1}} # }\n k: v}\nd{}";
    let sections = read_form(&Source { name: "q", text }, &["host"]);
    let sections = sections.unwrap_or_else(|error| panic!("{error}"));
    let entry = |key: &str, value: &str, line| Entry { key: key.into(), value: Some(value.into()), line };
    let section = |name: &str, line, entries| Section { name: name.into(), line, entries };
    let expected = [
        section(
            "a",
            1,
            vec![
                entry("saslPassword", "my:secret is", 1),
                entry("name", "x y", 1),
                entry("pattern", "a/#/b", 2),
                entry("host", "::1", 2),
                entry("file", "/a b/c.pem", 3),
            ],
        ),
        section("b-c", 4, vec![entry("hostname", "#", 6), entry("failoverUrls", "amqp://a:1, amqps://b", 7)]),
        section("c", 7, vec![Entry { key: "x".into(), value: None, line: 7 }, entry("k", "v", 8)]),
        section("d", 9, vec![]),
    ];
    assert_eq!(sections, expected);
}

#[test]
fn everything_of_a_broker_s_connector_is_carried_over() {
    let text = "
sslProfile {
    name: t
    certFile: c.pem
    privateKeyFile: k.pem
    caCertFile: ca.pem
    protocols: TLSv1.1 TLSv1.2
    ciphers: ALL
    password: pass:hidden
}
listener {
    name: in
    host: 127.0.0.1
    port: 5671
    sslProfile: t
    requireSsl: yes
    authenticatePeer: yes
    saslMechanisms: EXTERNAL
    maxFrameSize: 16384
    maxSessions: 32768
    maxSessionFrames: 100
    stripAnnotations: no
}
connector {
    name: broker
    host: b1.example
    port: 5671
    role: route-container
    sslProfile: t
    failoverUrls: amqps://b2.example, amqps://b3.example:99
    saslMechanisms: PLAIN DIGEST-MD5 ANONYMOUS
    saslUsername: user
    saslPassword: pass:a \"b\" \\c
    verifyHostname: no
}
linkRoute {
    pattern: queues/*/#
    containerId: broker-1
    direction: out
}
";
    let config = config(text);
    let listener = &config.listeners[0];
    assert!(listener.require_ssl && listener.authenticate_peer);
    assert_eq!(
        (&*listener.name, listener.limits.max_frame_bytes, listener.limits.max_sessions.get()),
        ("in", 16_384, 32_768)
    );
    let profile = listener.tls.as_ref().unwrap();
    assert_eq!(profile.protocols, [TlsVersion::V1_2]);
    assert_eq!(profile.client_certificates, crate::config::ClientCertificates::Required);
    let Reach::Hosts(hosts) = &config.connectors[0].reach else { panic!() };
    let addresses: Vec<_> = hosts.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["b1.example:5671", "b2.example:5671", "b3.example:99"]);
    let Sasl::Plain { user, password } = &hosts.sasl else { panic!() };
    assert_eq!((user.as_str(), password.expose()), ("user", "a \"b\" \\c"));
    assert_eq!(
        config.link_routes,
        [LinkRoute {
            address: RouteAddress::Pattern("queues/*/#".into()),
            direction: Direction::Out,
            connector: 0
        }]
    );
    let remarks = remarks(text);
    for (line, word) in [
        (7, "TLSv1.1"),
        (8, "ciphers"),
        (9, "unencrypted"),
        (21, "window_bytes"),
        (31, "DIGEST-MD5"),
        (34, "verifyHostname"),
        (38, "broker-1"),
    ] {
        assert!(
            remarks
                .iter()
                .any(|remark| remark.starts_with(&format!("line {line}: ")) && remark.contains(word)),
            "{line} {word}: {remarks:#?}"
        );
    }
    assert_eq!(remarks.len(), 7, "{remarks:#?}");
    assert!(!remarks.iter().any(|remark| remark.contains("hidden")));
}

#[test]
fn what_is_left_behind_is_named_with_its_line_and_the_reason() {
    let text = format!(
        "{RECIPE}address {{ prefix: multicast  distribution: multicast }}
fixed-address {{ prefix: / }}
waypoint {{ address: q  connector: HUB }}
autoLink {{ address: q  direction: in  connection: HUB }}
log {{ module: DEFAULT  enable: debug+  outputFile: /var/log/q.log }}
log {{ module: ROUTER  enable: trace+ }}
log {{ module: PROTOCOL  enable: trace+ }}
policy {{ maxConnections: 7  enableVhostPolicy: true }}
vhost {{
    hostname: #
    groups: {{
        $default: {{ users: *  remoteHosts: * }}
    }}
}}
listener {{ role: inter-router  port: 55672 }}
listener {{ http: yes  port: 8672 }}
listener {{ role: route-container  port: 5673 }}
connector {{ name: peer  role: inter-router  host: other }}
linkRoute {{ prefix: peers  connection: peer  direction: in }}
linkRoute {{ prefix: q  addExternalPrefix: x/  connection: HUB  direction: in }}
listner {{ port: 1 }}
listener {{ host: 127.0.0.1  port: 5674  colour: blue  idleTimeoutSecond: 3  maxFrameSize: 99999999  idleTimeoutSeconds: 0 }}
router {{ mode: interior }}
"
    );
    let config = config(&text);
    assert_eq!(
        config.listeners.iter().map(|listener| listener.address.port()).collect::<Vec<_>>(),
        [5672, 5674]
    );
    assert_eq!((config.connectors.len(), config.link_routes.len()), (1, 2));
    assert_eq!(config.listeners[0].limits.max_connections.get(), 7);
    assert_eq!((config.log.level(), config.log.trace_frames), (Level::Debug, false));
    let remarks = remarks(&text);
    for (line, word) in [
        (9, "`address`"),
        (10, "fixed-address"),
        (11, "waypoint"),
        (12, "makes no links"),
        (13, "outputFile"),
        (14, "ROUTER"),
        (15, "--trace-frames"),
        (16, "enableVhostPolicy"),
        (17, "vhost"),
        (23, "network of routers"),
        (24, "WebSockets"),
        (25, "connected to"),
        (26, "`peer` is not carried over"),
        (27, "its connector is not"),
        (28, "not rewritten"),
        (29, "was `listener` meant?"),
        (30, "`colour`"),
        (30, "was `idletimeoutseconds` meant?"),
        (30, "must be noticed"),
        (31, "interior"),
    ] {
        assert!(
            remarks
                .iter()
                .any(|remark| remark.starts_with(&format!("line {line}: ")) && remark.contains(word)),
            "{line} {word}: {remarks:#?}"
        );
    }
}

#[test]
fn who_is_let_in_is_said_in_words() {
    let anonymous = "connector { name: B  host: 127.0.0.1 }\nlistener { port: 5673 }\nlinkRoute { prefix: q  connection: B  direction: in }";
    let listener = &config(anonymous).listeners[0];
    assert_eq!((listener.address.to_string().as_str(), listener.authorise), ("0.0.0.0:5673", Authorise::Any));
    assert!(import(anonymous).text.contains("allow_anonymous = true"), "{}", import(anonymous).text);
    assert!(remarks(anonymous).iter().any(|remark| remark.contains("line 2: everybody who reaches")));

    let asked =
        anonymous.replace("port: 5673", "port: 5673  authenticatePeer: yes  saslMechanisms: ANONYMOUS PLAIN");
    let listener = &config(&asked).listeners[0];
    assert!(listener.authenticate_peer);
    assert_eq!(
        (listener.sasl_mechanisms.as_slice(), listener.authorise),
        (&[Mechanism::Mssbcbs][..], Authorise::Token)
    );
    let remarks = remarks(&asked);
    assert!(
        remarks.iter().any(|remark| remark.contains("PLAIN is not carried over: passwords go on")),
        "{remarks:?}"
    );
    assert!(remarks.iter().any(|remark| remark.contains("ANONYMOUS is not carried over")), "{remarks:?}");

    let tls = "sslProfile { name: t }\nconnector { name: B  host: h  sslProfile: t }\nlistener { host: ::1 saslMechanisms: PLAIN }";
    assert_eq!(config(tls).listeners[0].sasl_mechanisms, [Mechanism::Plain]);
    let remote = "connector { name: B  host: h }";
    assert!(import(remote).text.contains("allow_plain_text = true"));
    assert!(config(remote).listeners.is_empty());
}

#[test]
fn what_is_wrong_is_said_of_the_line_where_it_stands() {
    for (text, place, rights) in [
        ("listener {\n port 5672\n}", "2:2", &["`port` has no colon", "`port: 5672`"][..]),
        ("listener {\n port:\n}", "2:2", &["`port` has no value"]),
        ("listener {\n port: 5672", "1:1", &["does not end", "`}`"]),
        ("listener { port: 1 }\n}", "2:1", &["nothing opened"]),
        ("listener { port: 1 }\nconnector\nport: 1", "2:1", &["`connector` is followed by no brace"]),
        ("listener { ! }", "1:12", &["name of a setting"]),
        ("listener { \"host: 1 }", "1:12", &["does not end on its line"]),
        ("listener { x: { { }", "1:15", &["a map that does not end"]),
        ("listener { port: http }", "1:1", &["`http` of `port` is not a port", "`amqp`"]),
        ("listener { port: 1 }", "1:1", &["no connector", "connector { name"]),
        ("connector { host: ::1 }\nlistener {\n  http: perhaps\n}", "3:3", &["neither yes nor no"]),
        ("connector { host: ::1\n idleTimeoutSeconds: soon }", "2:2", &["not a number"]),
        (
            "connector { name: HUB host: ::1 }\nlinkRoute {\n prefix: a\n connection: HUP\n direction: in\n}",
            "4:2",
            &["`HUP`", "did you mean `HUB`?"],
        ),
        ("connector { name: A host: ::1 }\nlinkRoute { direction: in }", "2:1", &["`prefix` or a `pattern`"]),
        (
            "connector { name: A host: ::1 }\nlinkRoute { prefix: a\n direction: up }",
            "3:2",
            &["no direction", "`in`"],
        ),
        (
            "connector { name: A host: ::1 }\nconnector { name: B host: ::1 }\nlinkRoute { prefix: a }",
            "3:1",
            &["which connector"],
        ),
        (
            "connector { name: A host: ::1 saslUsername: u\n saslPassword: env:SECRET }",
            "2:2",
            &["environment variable SECRET", "file:PATH"],
        ),
        ("connector { name: A host: ::1 }\nlistener { requireSsl: yes }", "2:1", &["no `sslProfile`"]),
        ("connector { name: A host: ::1 }\nsslProfile { caCertFile: x }", "2:1", &["no name"]),
        // What our own rules say, of the line that it comes from.
        (
            "connector { name: A\n  host: ::1 }\nlistener {\n  host: gateway.local\n}",
            "4:3",
            &["`gateway.local` is not an IP address"],
        ),
        ("connector {\n  name: A\n  host: h\n  sslProfile: x\n}", "4:3", &["no ssl_profile called `x`"]),
        ("connector { name: A host: ::1 }\nlinkRoute { prefix: a//b }", "2:1", &["empty segment"]),
        ("connector { name: A host: ::1 }\nconnector { name: A host: ::1 }", "2:1", &["a second connector"]),
        (
            "sslProfile { name: t }\nconnector { name: A host: ::1 }\nlistener { host: ::1  sslProfile: t  saslMechanisms: EXTERNAL }",
            "1:1",
            &["no CA", "caCertFile"],
        ),
        (
            "connector { name: A host: ::1 saslUsername: u\n  saslPassword: file:/nowhere/pw }",
            "2:3",
            &["/nowhere/pw cannot be read"],
        ),
    ] {
        let error = refused(text).to_string();
        assert!(error.starts_with(&format!("q.conf:{place}: ")), "{place}: {error}");
        for right in rights {
            assert!(error.contains(right), "{right}: {error}");
        }
    }
}

#[test]
fn passwords_do_not_show_in_errors() {
    let text = "connector { name: A\n  host: h x\n  saslUsername: u\n  saslPassword: hidden\n}\nlinkRoute { prefix: a//b }";
    let error = refused(text).to_string();
    assert!(!error.contains("hidden"), "{error}");
    let error = refused("connector { name: A host: h:h saslUsername: u saslPassword: hidden }").to_string();
    assert!(error.starts_with("q.conf:1:1: ") && !error.contains("hidden"), "{error}");
    let error = refused("connector {\n saslPassword \"hidden\" }").to_string();
    assert!(error.starts_with("q.conf:2:2: ") && !error.contains("hidden"), "{error}");
}

/// A small generator (SplitMix64), so that every failure comes again.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((mixed ^ (mixed >> 31)) >> 33).expect("31 bits fit") % bound
    }
}

#[test]
fn no_text_makes_it_panic() {
    const PIECES: [&str; 24] = [
        "{",
        "}",
        ":",
        "#",
        "\"",
        "\\",
        "\n",
        "\r\n",
        " ",
        "[",
        "]",
        ",",
        "listener",
        "connector",
        "linkRoute",
        "sslProfile",
        "prefix: ",
        "name: ",
        "port: ",
        "saslMechanisms: ",
        "ä",
        "\u{0}",
        "99999999999999999999",
        "$cbs/",
    ];
    let mut good = 0;
    for seed in 0..4_000 {
        let mut random = Seeded(seed);
        let mut text = [RECIPE, OLD, JSON, ""][random.below(4)].to_owned();
        for _ in 0..=random.below(6) {
            let mut at = random.below(text.len() + 1);
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            let mut end = (at + random.below(12)).min(text.len());
            while !text.is_char_boundary(end) {
                end += 1;
            }
            let piece = if random.below(3) == 0 { "" } else { PIECES[random.below(PIECES.len())] };
            text.replace_range(at..end, piece);
        }
        if random.below(8) == 0 {
            let mut cut = random.below(text.len() + 1);
            while !text.is_char_boundary(cut) {
                cut -= 1;
            }
            text.truncate(cut);
        }
        match Config::parse("q.conf", &text, None) {
            Ok(_) => good += 1,
            Err(error) => assert!(error.to_string().starts_with("q.conf"), "{seed}: {error}"),
        }
        // What can be translated is TOML, whatever else is wrong with it.
        if let Ok(import) = Import::read(&Source { name: "q.conf", text: &text }, None) {
            let read = import.text.parse::<toml::Table>();
            assert!(read.is_ok(), "{seed}: {:?}\n{text}\n{}", read.err(), import.text);
        }
    }
    assert!(good > 100, "{good}");
}
