//! Listeners, connectors, profiles and routes: what they come to, and what is refused.

use fieldgate_amqp::sasl::Mechanism;

use super::*;

const HUB: &str = "[[ssl_profile]]\nname = \"tls\"\n[[connector]]\nname = \"HUB\"\nhost = \"hub.example.net\"\nssl_profile = \"tls\"\n";

const SITE: &str = "[[ssl_profile]]\nname = \"site\"\nca_cert_file = \"ca.pem\"\ncert_file = \"c.pem\"\nprivate_key_file = \"k.pem\"\n\
                    client_certificates = \"optional\"\n";

fn with_hub(text: &str) -> Config {
    parse(&format!("{HUB}{text}")).unwrap_or_else(|error| panic!("{error}"))
}

fn hosts(connector: &Connector) -> &Hosts {
    match &connector.reach {
        Reach::Hosts(hosts) => hosts,
        Reach::Upstream => panic!("{} is [upstream]", connector.name),
    }
}

#[test]
fn without_a_word_there_is_the_hub_of_upstream() {
    let config = Config::default();
    let [connector] = config.connectors.as_slice() else { panic!() };
    assert_eq!((&*connector.name, &connector.reach), ("upstream", &Reach::Upstream));
    assert_eq!((connector.mode, connector.connect), (Mode::Shared, Connect::OnDemand));
    assert_eq!(connector.hold, Duration::from_secs(60));
    assert_eq!(connector.devices_per_connection.get(), 500);
    let route = |prefix: &str| LinkRoute {
        address: RouteAddress::Prefix(prefix.into()),
        direction: Direction::Both,
        connector: 0,
    };
    assert_eq!(config.link_routes, [route("$cbs"), route("devices")]);
    let [listener] = config.listeners.as_slice() else { panic!() };
    assert_eq!(listener.address, "127.0.0.1:5672".parse().unwrap());
    assert_eq!(
        (listener.tls.as_ref(), listener.require_ssl, listener.authenticate_peer),
        (None, false, false)
    );
    assert_eq!(listener.sasl_mechanisms, [Mechanism::Anonymous, Mechanism::Mssbcbs]);
    assert_eq!((listener.connector, listener.authorise), (None, Authorise::Any));
    assert_eq!(listener.limits.window_bytes, 1 << 20);
    assert!(config.needs_upstream() && config.runs_hub());

    let own = parse("[upstream]\nmode = \"per-connection\"\nhold = \"2m\"").unwrap();
    assert_eq!((own.connectors[0].mode, own.connectors[0].hold), (Mode::PerConnection, Duration::ZERO));
    assert_eq!(own.upstream.hold, Duration::from_secs(120), "mapped devices are held all the same");
}

#[test]
fn a_hub_of_its_own_needs_no_other() {
    let config = with_hub("[mqtt]\nlisten = []\n[coap]\nlisten = []\n[http]\nlisten = []\n");
    assert!(!config.needs_upstream() && !config.runs_hub() && config.require_hub().is_ok());
    let [connector] = config.connectors.as_slice() else { panic!() };
    let hosts = hosts(connector);
    assert_eq!(hosts.addresses, [HostPort { host: "hub.example.net".into(), port: 5671 }]);
    assert_eq!((&*hosts.hub_name, &hosts.sasl), ("hub.example.net", &Sasl::Anonymous));
    assert_eq!(hosts.tls.as_ref().unwrap().protocols, [TlsVersion::V1_2, TlsVersion::V1_3]);
    assert_eq!(config.link_routes.len(), 2, "those of [amqp] link_routes");

    let both = with_hub("[[link_route]]\nprefix = \"a\"\nconnector = \"upstream\"\n");
    assert_eq!(
        both.connectors.iter().map(|connector| &*connector.name).collect::<Vec<_>>(),
        ["HUB", "upstream"]
    );
    let routes: Vec<_> =
        both.link_routes.iter().map(|route| (route.address.to_string(), route.connector)).collect();
    assert_eq!(routes, [("a".into(), 1), ("$cbs".into(), 0), ("devices".into(), 0)]);
    assert!(both.needs_upstream());
    assert!(with_hub("[mqtt]\nlisten = []\n").needs_upstream(), "CoAP devices have a hub too");
}

#[test]
fn everything_that_can_be_said_of_a_connector() {
    let scratch = Scratch::new();
    let secret = scratch.0.join("pw");
    fs::write(&secret, "hidden\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let text = format!(
        "{SITE}protocols = [\"TLSv1.3\"]\n[[connector]]\nname = \"A\"\nhost = \"::1\"\nport = 1\nfailover = [\"b.example\", \"[::2]:7\"]\n\
         hub_name = \"hub.example\"\nssl_profile = \"site\"\nsasl_mechanisms = [\"PLAIN\", \"EXTERNAL\"]\nsasl_username = \"u\"\n\
         sasl_password_file = \"pw\"\nmode = \"shared\"\nconnect = \"start\"\nhold = \"5s\"\ndevices_per_connection = 7\n\
         max_connections = 8\nmax_pending = 9\nidle_time_out = \"10s\"\nconnect_time_out = \"11s\"\nretry_max = \"12s\"\n\
         max_frame_bytes = 1024\nmax_sessions = 13\nverify_hostname = true\n"
    );
    let config = Config::parse("f.toml", &text, Some(&scratch.0)).unwrap_or_else(|error| panic!("{error}"));
    let connector = &config.connectors[0];
    let hosts = hosts(connector);
    let addresses: Vec<_> = hosts.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["[::1]:1", "b.example:5671", "[::2]:7"]);
    assert_eq!(hosts.sasl, Sasl::Plain { user: "u".into(), password: Secret::new("hidden") });
    assert!(!format!("{config:?}").contains("hidden"));
    let profile = hosts.tls.as_ref().unwrap();
    assert_eq!(profile.ca_cert_file, Some(scratch.0.join("ca.pem")));
    assert_eq!(profile.identity.as_ref().unwrap().private_key_file, scratch.0.join("k.pem"));
    assert_eq!(profile.protocols, [TlsVersion::V1_3]);
    assert_eq!(connector.connect, Connect::Start);
    let seconds = [connector.hold, connector.idle_time_out, connector.connect_time_out, connector.retry_max];
    assert_eq!(seconds.map(|time| time.as_secs()), [5, 10, 11, 12]);
    let counts = [connector.devices_per_connection, connector.max_connections, connector.max_pending];
    assert_eq!(counts.map(NonZeroUsize::get), [7, 8, 9]);
    assert_eq!((connector.max_frame_bytes, connector.max_sessions.get()), (1024, 13));

    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    let open = Config::parse("f.toml", &text, Some(&scratch.0)).unwrap_err().to_string();
    assert!(open.contains("pw: holds a key") && open.contains("chmod 600"), "{open}");
}

#[test]
fn the_first_mechanism_with_a_credential_counts() {
    let sasl = |text: &str| {
        let text = format!(
            "{SITE}[[connector]]\nname = \"A\"\nhost = \"127.0.0.1\"\nssl_profile = \"site\"\n{text}"
        );
        let config = parse(&text).unwrap_or_else(|error| panic!("{error}"));
        hosts(&config.connectors[0]).sasl.clone()
    };
    let user = "sasl_username = \"u\"\nsasl_password = \"p\"\n";
    let plain = Sasl::Plain { user: "u".into(), password: Secret::new("p") };
    assert_eq!(sasl(""), Sasl::Anonymous);
    assert_eq!(sasl(user), plain);
    assert_eq!(sasl(&format!("{user}sasl_mechanisms = [\"ANONYMOUS\"]")), Sasl::Anonymous);
    assert_eq!(sasl("sasl_mechanisms = [\"PLAIN\", \"EXTERNAL\"]"), Sasl::External);
    assert_eq!(sasl("sasl_mechanisms = \"mssbcbs\""), Sasl::Mssbcbs);
}

#[test]
fn everything_that_can_be_said_of_a_listener() {
    let text = format!(
        "{SITE}{HUB}[[listener]]\nname = \"floor\"\nhost = \"[::]\"\nport = 0\nssl_profile = \"site\"\nauthenticate_peer = true\n\
         sasl_mechanisms = [\"PLAIN\", \"EXTERNAL\", \"PLAIN\"]\nconnector = \"HUB\"\nmax_connections = 1\nmax_frame_bytes = \"1MiB\"\n\
         max_sessions = 2\nmax_links = 3\nidle_time_out = \"30s\"\n"
    );
    let config = parse(&text).unwrap_or_else(|error| panic!("{error}"));
    let [listener] = config.listeners.as_slice() else { panic!("the short form is off") };
    assert_eq!((&*listener.name, listener.address.to_string().as_str()), ("floor", "[::]:0"));
    assert_eq!(&*listener.tls.as_ref().unwrap().name, "site");
    assert!(listener.require_ssl && listener.authenticate_peer);
    assert_eq!(listener.sasl_mechanisms, [Mechanism::Plain, Mechanism::External]);
    assert_eq!((listener.connector, listener.authorise), (Some(0), Authorise::Token));
    let limits = listener.limits;
    assert_eq!((limits.max_connections.get(), limits.max_sessions.get(), limits.max_links.get()), (1, 2, 3));
    assert_eq!((limits.max_frame_bytes, limits.window_bytes), (1 << 20, 1 << 20));
    assert_eq!((limits.idle_time_out.as_secs(), limits.open_time_out.as_secs()), (30, 10));

    let port = |text: &str| {
        parse(&format!("{SITE}[[listener]]\nssl_profile = \"site\"\n{text}")).unwrap().listeners[0]
            .address
            .port()
    };
    assert_eq!((port(""), port("require_ssl = false")), (5671, 5672));
    let usual =
        parse(&format!("{SITE}[[listener]]\nssl_profile = \"site\"\nauthenticate_peer = true")).unwrap();
    assert_eq!(usual.listeners[0].sasl_mechanisms, [Mechanism::External, Mechanism::Mssbcbs]);
    let both = parse("[amqp]\nlisten = \"127.0.0.1:1\"\n[[listener]]\nport = 2").unwrap();
    assert_eq!(both.listeners.iter().map(|listener| listener.address.port()).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn who_may_come_from_the_network() {
    let off = |text: &str| parse(&format!("{SITE}[[listener]]\nhost = \"0.0.0.0\"\n{text}"));
    let error = off("").unwrap_err().to_string();
    assert!(error.starts_with("f.toml:8:8: the listener is on 0.0.0.0:5672"), "{error}");
    for word in
        ["authorise = \"token\"", "authenticate_peer = true", "allow_anonymous = true", "client certificates"]
    {
        assert!(error.contains(word), "{word}: {error}");
    }
    for (good, authorise) in [
        ("authorise = \"token\"", Authorise::Token),
        ("allow_anonymous = true", Authorise::Any),
        ("allow_anonymous = true\nauthorise = \"token\"", Authorise::Token),
        ("authenticate_peer = true", Authorise::Token),
    ] {
        assert_eq!(off(good).unwrap().listeners[0].authorise, authorise, "{good}");
    }
    let tls = "ssl_profile = \"site\"\n";
    assert!(off(tls).is_err(), "a certificate that may be left out proves nothing");
    let required = SITE.replace("optional", "required");
    let certified = format!("{required}[[listener]]\nhost = \"0.0.0.0\"\n{tls}");
    assert_eq!(parse(&certified).unwrap().listeners[0].authorise, Authorise::Token);
    assert!(parse(&format!("{certified}require_ssl = false")).is_err(), "plain text asks for no certificate");
    let word = refused("[[listener]]\nallow_anonymous = false\nauthorise = \"any\"");
    assert!(word.starts_with("f.toml:3:13: ") && word.contains("keep one"), "{word}");
}

#[test]
fn routes_have_one_form() {
    let routes = |text: &str| with_hub(text).link_routes;
    for written in ["devices/", "devices", "/devices", "devices."] {
        let routes = routes(&format!("[[link_route]]\nprefix = \"{written}\"\ndirection = \"out\""));
        let expected = LinkRoute {
            address: RouteAddress::Prefix("devices".into()),
            direction: Direction::Out,
            connector: 0,
        };
        assert_eq!(routes, [expected], "{written}");
    }
    let pattern = &routes("[[link_route]]\npattern = \"a/*/b.#\"")[0];
    assert_eq!(
        (&pattern.address, pattern.direction),
        (&RouteAddress::Pattern("a/*/b.#".into()), Direction::Both)
    );
    let apart = "[[link_route]]\nprefix = \"a\"\ndirection = \"in\"\n[[link_route]]\nprefix = \"a\"\ndirection = \"out\"";
    assert_eq!(routes(apart).len(), 2);
}

#[test]
fn what_does_not_go_together_is_refused_at_its_place() {
    let plain_text = "[[connector]]\nname = \"B\"\nhost = \"localhost\"\n";
    for (text, place, rights) in [
        // Names and references.
        (
            format!("{HUB}[[connector]]\nname = \"HUB\"\nhost = \"h\""),
            "8:8",
            &["a second connector", "line 4"][..],
        ),
        (
            "[[ssl_profile]]\nname = \"a\"\n[[ssl_profile]]\nname = \"a\"".into(),
            "4:8",
            &["a second ssl_profile", "line 2"],
        ),
        (
            "[[listener]]\nname = \"a\"\n[[listener]]\nname = \"a\"\nport = 1".into(),
            "4:8",
            &["a second listener"],
        ),
        ("[[connector]]\nname = \"upstream\"\nhost = \"::1\"".into(), "2:8", &["[upstream]"]),
        ("[[connector]]\nname = \"a\\u0007\"\nhost = \"::1\"".into(), "2:8", &["not fit for a name"]),
        ("[[connector]]\nhost = \"::1\"".into(), "1:1", &["missing field `name`"]),
        (
            "[[connector]]\nname = \"a\"\nhots = \"::1\"".into(),
            "3:1",
            &["`hots` in [connector]", "did you mean `host`?"],
        ),
        (
            format!("{HUB}[[listener]]\nconnector = \"HUP\""),
            "8:13",
            &["no connector called `HUP`", "did you mean `HUB`?"],
        ),
        (
            format!("{HUB}[[link_route]]\nprefix = \"a\"\nconnector = \"x\""),
            "9:13",
            &["no connector called `x`", "`HUB`"],
        ),
        (
            HUB.replace("= \"tls\"\n[[", "= \"tsl\"\n[["),
            "6:15",
            &["no ssl_profile called `tls`", "did you mean `tsl`?"],
        ),
        ("[[listener]]\nssl_profile = \"x\"".into(), "2:15", &["[[ssl_profile]]"]),
        // Profiles.
        ("[[ssl_profile]]\nname = \"a\"\ncert_file = \"c\"".into(), "3:13", &["`private_key_file`"]),
        ("[[ssl_profile]]\nname = \"a\"\nprivate_key_file = \"c\"".into(), "3:20", &["`cert_file`"]),
        (
            "[[ssl_profile]]\nname = \"a\"\nclient_certificates = \"required\"".into(),
            "3:23",
            &["`ca_cert_file`"],
        ),
        ("[[ssl_profile]]\nname = \"a\"\nprotocols = []".into(), "3:13", &["TLSv1.2"]),
        (
            "[[ssl_profile]]\nname = \"a\"\nprotocols = [\"TLSv1.1\"]".into(),
            "3:14",
            &["unknown value `TLSv1.1`", "TLSv1.2"],
        ),
        // Connectors.
        (
            "[[connector]]\nname = \"a\"\nhost = \"h\"".into(),
            "3:8",
            &["h:5672 in plain text", "allow_plain_text = true"],
        ),
        (format!("{plain_text}failover = [\"h:1\"]"), "3:8", &["h:1 in plain text"]),
        ("[[connector]]\nname = \"a\"\nhost = \"h:1\"".into(), "3:8", &["neither a host name", "`port`"]),
        (format!("{plain_text}failover = [\"h:x\"]"), "4:13", &["host and a port"]),
        (HUB.replace("hub.example.net", "hub_.-"), "5:8", &["certificate"]),
        (format!("{HUB}verify_hostname = false"), "7:19", &["host names are always checked"]),
        (
            format!("{plain_text}mode = \"per-connection\"\nhold = \"1s\""),
            "5:8",
            &["`hold` is for shared connections"],
        ),
        (
            format!("{plain_text}mode = \"per-connection\"\nconnect = \"start\""),
            "5:11",
            &["`connect` is for shared"],
        ),
        (
            format!("{plain_text}mode = \"per-connection\"\ndevices_per_connection = 1"),
            "5:26",
            &["is for shared"],
        ),
        (format!("{plain_text}mode = \"single\""), "4:8", &["`shared`, `per-connection`"]),
        (format!("{plain_text}sasl_username = \"u\""), "4:17", &["sasl_password_file"]),
        (format!("{plain_text}sasl_password = \"hidden\""), "4:17", &["nobody's", "sasl_username"]),
        (format!("{plain_text}sasl_password_file = \"nowhere\""), "4:22", &["nowhere cannot be read"]),
        (
            format!("{plain_text}sasl_password = \"hidden\"\nsasl_password_file = \"f\""),
            "4:17",
            &["given twice"],
        ),
        (format!("{plain_text}sasl_mechanisms = [\"PLAIN\"]"), "4:19", &["no credential", "sasl_username"]),
        (format!("{plain_text}sasl_mechanisms = []"), "4:19", &["leave the key out"]),
        (format!("{plain_text}sasl_mechanisms = [\"PLANE\"]"), "4:20", &["did you mean PLAIN?"]),
        (format!("{plain_text}hold = \"2h\""), "4:8", &["from 0ns to 3600s"]),
        (format!("{plain_text}max_frame_bytes = 511"), "4:19", &["from 512 to"]),
        (format!("{plain_text}devices_per_connection = 0"), "4:26", &["from 1 on"]),
        // Listeners.
        ("[[listener]]\nhost = \"localhos\"".into(), "2:8", &["not an IP address", "0.0.0.0"]),
        ("[[listener]]\n[[listener]]\nname = \"b\"".into(), "2:", &["has 127.0.0.1:5672 already"]),
        (
            format!("{HUB}[[listener]]\nssl_profile = \"tls\""),
            "8:15",
            &["no certificate to show", "`cert_file`"],
        ),
        ("[[listener]]\nrequire_ssl = true".into(), "2:15", &["`ssl_profile`"]),
        (
            "[[listener]]\nsasl_mechanisms = \"EXTERNAL\"".into(),
            "2:19",
            &["speaks no TLS", "client_certificates"],
        ),
        (
            format!(
                "{}[[listener]]\nssl_profile = \"site\"\nsasl_mechanisms = \"EXTERNAL\"",
                SITE.replace("optional", "none")
            ),
            "9:19",
            &["asks for none", "ca_cert_file"],
        ),
        (
            "[[listener]]\nauthenticate_peer = true\nsasl_mechanisms = \"ANONYMOUS\"".into(),
            "3:19",
            &["MSSBCBS"],
        ),
        (
            format!("{HUB}{plain_text}[[listener]]\nsasl_mechanisms = \"PLAIN\""),
            "11:19",
            &["connector `B` (line 7) reaches it without TLS", "`connector` here names one with TLS"],
        ),
        (
            format!("{plain_text}[[listener]]\nsasl_mechanisms = \"PLAIN\"\nconnector = \"B\""),
            "5:19",
            &["connector `B` (line 1)", "or no PLAIN here"],
        ),
        ("[[listener]]\nmax_frame_bytes = 1".into(), "2:19", &["from 512 to"]),
        ("[amqp]\nwindow_bytes = \"64KiB\"".into(), "2:16", &["from 131072 to"]),
        // Routes.
        ("[[link_route]]\nconnector = \"upstream\"".into(), "1:1", &["no address", "`prefix"]),
        ("[[link_route]]\nprefix = \"a\"\npattern = \"b\"".into(), "1:1", &["one address"]),
        ("[[link_route]]\nprefix = \"a/*\"".into(), "2:10", &["`pattern`"]),
        ("[[link_route]]\npattern = \"a/b*\"".into(), "2:11", &["whole segments"]),
        ("[[link_route]]\nprefix = \"a//b\"".into(), "2:10", &["empty segment"]),
        ("[[link_route]]\nprefix = \"/\"".into(), "2:10", &["no address"]),
        ("[amqp]\nlink_routes = [\"a\", \"b//c\"]".into(), "2:21", &["empty segment"]),
        ("[[link_route]]\nprefix = \"a\"\ndirection = \"inn\"".into(), "3:13", &["did you mean `in`?"]),
        (
            format!("{HUB}{plain_text}[[link_route]]\nprefix = \"a\""),
            "10:1",
            &["which connector", "`HUB`, `B`"],
        ),
        (
            "[[link_route]]\nprefix = \"a/\"\n[[link_route]]\nprefix = \"a\"\ndirection = \"in\"".into(),
            "4:10",
            &["stands in line 1 already"],
        ),
    ] {
        let error = refused(&text);
        assert!(error.starts_with(&format!("f.toml:{place}")), "{place}: {error}\n{text}");
        for right in rights {
            assert!(error.contains(right), "{right}: {error}");
        }
        assert!(!error.contains("hidden"), "{error}");
    }
}

#[test]
fn plain_is_good_where_every_way_has_tls() {
    let plain_text = "[[connector]]\nname = \"B\"\nhost = \"localhost\"\n";
    let bound = format!("{HUB}{plain_text}[[listener]]\nsasl_mechanisms = \"PLAIN\"\nconnector = \"HUB\"");
    assert_eq!(parse(&bound).unwrap().listeners[0].connector, Some(0));
    assert!(parse("[[listener]]\nsasl_mechanisms = \"PLAIN\"").is_ok(), "[upstream] is reached over TLS");
    assert!(with_hub("[[listener]]\nsasl_mechanisms = \"PLAIN\"").connectors[0].is_tls());
}

#[test]
fn plain_text_over_a_network_must_stand_there_in_words() {
    let config = parse("[[connector]]\nname = \"a\"\nhost = \"h\"\nallow_plain_text = true").unwrap();
    assert!(!config.connectors[0].is_tls());
    for host in ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost", "LocalHost"] {
        assert!(parse(&format!("[[connector]]\nname = \"a\"\nhost = \"{host}\"")).is_ok(), "{host}");
    }
    assert!(parse("[[connector]]\nname = \"a\"\nhost = \"localhost.example\"").is_err());
}

#[test]
fn a_password_in_the_file_makes_it_a_secret() {
    let scratch = Scratch::new();
    let path = scratch.0.join("f.toml");
    let text =
        "[[connector]]\nname = \"a\"\nhost = \"::1\"\nsasl_username = \"u\"\nsasl_password = \"hidden\"";
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(Config::load(&path).unwrap_err().to_string().contains("chmod 600"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(Config::load(&path).is_ok());
}

#[test]
fn the_example_in_the_readme_is_good() {
    let readme = include_str!("../../../README.md");
    let section = readme.split("\n## Connectors, listeners and link routes").nth(1).unwrap();
    let example = section.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let config = parse(example).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((config.listeners.len(), config.connectors.len(), config.link_routes.len()), (1, 1, 2));
    assert_eq!(config.listeners[0].authorise, Authorise::Token);
    // Every word of a section is in its rows of the table.
    for section in ["ssl_profile", "listener", "connector", "link_route"] {
        let error = parse(&format!("[[{section}]]\nno_such_key = 1")).unwrap_err();
        for key in error.help.unwrap().split('`').skip(1).step_by(2) {
            let told = ["name", "verify_hostname", "sasl_password"].contains(&key)
                || readme.contains(&format!("`{key}`"));
            assert!(told || readme.contains(&format!("`{key} = ")), "{section}.{key}");
        }
    }
}
