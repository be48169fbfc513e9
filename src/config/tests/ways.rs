//! How hubs are reached: WebSocket, proxies, certificates and SASL of `[upstream]` and of connectors.

use super::*;

const TLS: &str = "[[ssl_profile]]\nname = \"tls\"\ncert_file = \"c.pem\"\nprivate_key_file = \"k.pem\"\n";
const POLICY_LINE: &str = "connection_string = \"HostName=hub.example;SharedAccessKeyName=iothubowner;SharedAccessKey=c2VjcmV0LXNlY3JldA==\"\n";
const URL: &str = "url = \"amqps://hub.example\"\n";

fn access(lines: &str) -> Access {
    parse(&format!("{TLS}[upstream]\n{lines}")).unwrap_or_else(|error| panic!("{error}")).upstream.access
}

fn hosts(lines: &str) -> Hosts {
    let text = format!("{TLS}[[connector]]\nname = \"A\"\nhost = \"127.0.0.1\"\n{lines}");
    let config = parse(&text).unwrap_or_else(|error| panic!("{error}"));
    match &config.connectors[0].reach {
        Reach::Hosts(hosts) => hosts.clone(),
        Reach::Upstream => panic!("{config:?}"),
    }
}

#[test]
fn what_carries_amqp() {
    let web = |path: &str| Transport::WebSocket { path: path.into(), subprotocol: "AMQPWSB10" };
    assert_eq!(access("").transport, Transport::Tcp);
    assert_eq!(
        access(&format!("{POLICY_LINE}transport = \"websocket\"")).transport,
        web("/$iothub/websocket")
    );
    assert_eq!(access("transport = \"websocket\"\nwebsocket_path = \"/a?b\"").transport, web("/a?b"));
    let amqp = hosts("transport = \"websocket\"\nwebsocket_protocol = \"amqp\"\nwebsocket_path = \"/\"");
    assert_eq!(amqp.transport, Transport::WebSocket { path: "/".into(), subprotocol: "amqp" });
    assert_eq!(access("url = \"wss://h\"\nwebsocket_protocol = \"amqp\"").subprotocol, "amqp");
    for (lines, port) in [
        ("transport = \"websocket\"", 80),
        ("transport = \"websocket\"\nssl_profile = \"tls\"", 443),
        ("transport = \"websocket\"\nssl_profile = \"tls\"\nport = 8443", 8443),
        ("transport = \"tcp\"\nssl_profile = \"tls\"", 5671),
    ] {
        let hosts = hosts(lines);
        assert_eq!(hosts.addresses[0].port, port, "{lines}");
        assert_eq!(hosts.transport == Transport::Tcp, lines.contains("tcp"));
    }
}

#[test]
fn the_certificates_of_upstream() {
    let files = "ca_file = \"ca.pem\"\ncert_file = \"c.pem\"\nprivate_key_file = \"k.pem\"\n";
    let config = Config::parse("f", &format!("[upstream]\n{URL}{files}"), Some(Path::new("/etc"))).unwrap();
    let files: Vec<PathBuf> = config.upstream.access.tls.files();
    assert_eq!(files, ["/etc/ca.pem", "/etc/c.pem", "/etc/k.pem"].map(PathBuf::from));
    assert_eq!(&*access("ssl_profile = \"tls\"").tls.name, "tls");
}

#[test]
fn what_upstream_proves_itself_with() {
    let plain = |password: &str| Some(Sasl::Plain { user: "u".into(), password: Secret::new(password) });
    let user = "sasl_username = \"u\"\nsasl_password = \"p\"\n";
    let certified = "ssl_profile = \"tls\"\n";
    for (lines, sasl) in [
        (URL.to_owned(), None),
        (format!("{URL}sasl_mechanisms = \"none\""), Some(Sasl::Bare)),
        (format!("{URL}sasl_mechanisms = [\"MSSBCBS\"]"), Some(Sasl::Mssbcbs)),
        (format!("{URL}{user}"), plain("p")),
        (format!("{URL}{user}{certified}sasl_mechanisms = [\"EXTERNAL\", \"PLAIN\"]"), Some(Sasl::External)),
        (format!("{URL}{user}sasl_mechanisms = [\"EXTERNAL\", \"PLAIN\"]"), plain("p")),
        ("url = \"amqps://u:q@hub.example\"\n".into(), plain("q")),
        ("url = \"amqps://u:q@hub.example\"\nsasl_mechanisms = \"ANONYMOUS\"".into(), Some(Sasl::Anonymous)),
        (format!("{POLICY_LINE}sasl_mechanisms = \"MSSBCBS\""), Some(Sasl::Mssbcbs)),
        (format!("{POLICY_LINE}sasl_mechanisms = \"NONE\""), Some(Sasl::Bare)),
    ] {
        assert_eq!(access(&lines).sasl, sasl, "{lines}");
    }
    assert_eq!(hosts("sasl_mechanisms = [\"NONE\"]").sasl, Sasl::Bare);
    // A password is for the hub that it was written for.
    let mut config = parse(&format!("[upstream]\n{URL}{user}")).unwrap();
    config.set_hub("--hub", "amqps://elsewhere.example").unwrap();
    assert_eq!(config.upstream.access.sasl, None);
}

#[test]
fn a_proxy_and_where_its_password_is() {
    let scratch = Scratch::new();
    let file = scratch.0.join("pw");
    fs::write(&file, "hidden\n").unwrap();
    let mode = |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    let text = format!("[upstream]\n{URL}proxy = \"http://u@p.example:3128\"\nproxy_password_file = \"pw\"");
    let load = || Config::parse("f.toml", &text, Some(&scratch.0));
    mode(0o644);
    let open = load().unwrap_err().to_string();
    assert!(open.contains("pw: holds a key") && open.contains("chmod 600"), "{open}");
    mode(0o600);
    let config = load().unwrap();
    assert!(!format!("{config:?}").contains("hidden"));
    let proxy = config.upstream.access.proxy.unwrap();
    assert_eq!(proxy.at.to_string(), "p.example:3128");
    assert_eq!(proxy.credentials, Some(("u".into(), Secret::new("hidden"))));
    assert_eq!(hosts("proxy = \"http://p:1\"").proxy.unwrap().credentials, None);
    assert_eq!(hosts("").proxy, None);

    // In the file itself it makes the file a secret.
    for text in [
        "[upstream]\nproxy = \"http://u:p@h:1\"",
        "[[connector]]\nname = \"A\"\nhost = \"::1\"\nproxy = \"http://u:p@h:1\"",
    ] {
        let path = scratch.0.join("f.toml");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Config::load(&path).unwrap_err().to_string().contains("chmod 600"));
    }
}

#[test]
fn what_does_not_go_together_is_said_without_secrets() {
    for (lines, place, right) in [
        ("transport = \"web\"", "2:13", "`tcp`, `websocket`"),
        ("websocket_path = \"/x\"", "2:18", "`transport = \"websocket\"`"),
        ("websocket_protocol = \"amqp\"", "2:22", "leave `websocket_protocol` out"),
        ("websocket_protocol = \"mqtt\"", "2:22", "`AMQPWSB10`, `amqp`"),
        ("url = \"amqps://h\"\nwebsocket_protocol = \"amqp\"", "3:22", "wss://host in `url`"),
        ("transport = \"websocket\"\nwebsocket_path = \"x y\"", "3:18", "no path of a URL"),
        ("url = \"amqps://h\"\ntransport = \"websocket\"", "3:13", "wss://host in `url`"),
        ("url = \"wss://h\"\ntransport = \"tcp\"", "3:13", "amqps://host in `url`"),
        ("url = \"wss://h\"\nwebsocket_path = \"/x\"", "3:18", "wss://host/path"),
        ("ssl_profile = \"tsl\"", "2:15", "no ssl_profile called `tsl`"),
        ("ssl_profile = \"x\"\nca_file = \"y\"", "3:11", "keep one of `ssl_profile` and `ca_file`"),
        ("cert_file = \"y\"", "2:13", "`private_key_file`"),
        ("private_key_file = \"y\"", "2:20", "`cert_file`"),
        ("url = \"amqps://h\"\nsasl_mechanisms = \"EXTERNAL\"", "3:19", "a `cert_file`"),
        ("url = \"amqps://h\"\nsasl_mechanisms = \"SCRAM\"", "3:19", "NONE for no SASL"),
        ("url = \"amqps://u:hidden@h\"\nsasl_username = \"u\"", "3:17", "keep one of the two"),
        ("url = \"amqps://h\"\nsasl_username = \"u\"", "3:17", "`sasl_password_file`"),
        ("sasl_username = \"u\"\nsasl_password = \"hidden\"", "2:17", "by tokens"),
        ("proxy = \"https://u:hidden@p\"", "2:9", "write http://host:port"),
        ("proxy = \"http://u:hidden@p/x\"", "2:9", "\"environment\""),
        ("proxy = \"http://u@p\"", "2:9", "`proxy_password_file`"),
        ("proxy = \"http://u:hidden@p\"\nproxy_password_file = \"f\"", "3:23", "the user in the URL"),
        ("proxy = \"http://p\"\nproxy_password_file = \"f\"", "3:23", "names the user"),
        ("proxy_password_file = \"f\"", "2:23", "for no proxy"),
        ("proxy = \"environment\"\nproxy_password_file = \"f\"", "3:23", "the environment names"),
    ] {
        let error = refused(&format!("[upstream]\n{lines}"));
        assert!(error.starts_with(&format!("f.toml:{place}: ")), "{lines}: {error}");
        assert!(error.contains(right) && !error.contains("hidden"), "{right}: {error}");
    }
}
