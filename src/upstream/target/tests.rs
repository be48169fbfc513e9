//! Hubs by connector against listeners by configuration, over real sockets.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::state::tests::Scratch;
use crate::tls::Acceptor;

mod ways;

/// Nothing here takes anywhere near as long.
const PATIENCE: Duration = Duration::from_secs(10);

fn ca_params() -> CertificateParams {
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.distinguished_name.push(DnType::CommonName, "Site CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca
}

/// A directory with a CA, and a certificate for `localhost` and 127.0.0.1 that it has signed.
fn site() -> Scratch {
    let scratch = Scratch::new();
    let ca_key = KeyPair::generate().unwrap();
    let ca = ca_params();
    let key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let write = |name: &str, text: &str| {
        let path = scratch.0.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    };
    write("ca.pem", &ca.self_signed(&ca_key).unwrap().pem());
    write("ca.key", &ca_key.serialize_pem());
    let issuer = Issuer::new(ca, ca_key);
    write("own.pem", &own.signed_by(&key, &issuer).unwrap().pem());
    write("own.key", &key.serialize_pem());
    scratch
}

/// A profile that trusts the site's CA.
const TRUST: &str = "[[ssl_profile]]\nname = \"p\"\nca_cert_file = \"ca.pem\"\n";
/// The same with the site's certificate.
const OWN: &str = "[[ssl_profile]]\nname = \"p\"\nca_cert_file = \"ca.pem\"\ncert_file = \"own.pem\"\nprivate_key_file = \"own.key\"\n";

fn config(site: &Scratch, text: &str) -> Config {
    Config::parse("f.toml", text, Some(&site.0)).unwrap_or_else(|error| panic!("{error}"))
}

fn hub(site: &Scratch, text: &str) -> Hub {
    let config = config(site, text);
    Hub::for_connector(&config.connectors[0], &config, None).unwrap_or_else(|error| panic!("{error}"))
}

fn connector(profile: &str, host: &str, port: u16, more: &str) -> String {
    format!(
        "{profile}[[connector]]\nname = \"A\"\nhost = \"{host}\"\nport = {port}\nconnect_time_out = \"5s\"\n{more}"
    )
}

fn acceptor(site: &Scratch, profile: &str, more: &str) -> Acceptor {
    let text = format!("{profile}[[listener]]\nport = 0\nssl_profile = \"p\"\n{more}");
    Acceptor::new(&config(site, &text).listeners[0]).unwrap_or_else(|error| panic!("{error}"))
}

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A port that nobody listens on.
async fn deaf_port() -> u16 {
    listen().await.1
}

/// Both ends, or what the hub's end said, once the other end has heard it.
async fn meet(hub: &Hub, listener: &TcpListener, acceptor: &Acceptor) -> Result<(Stream, Stream), String> {
    let server = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream, PATIENCE).await.map_err(|error| error.to_string())?;
        stream.write_all(b"hello").await.map_err(|error| error.to_string())?;
        stream.flush().await.map_err(|error| error.to_string())?;
        Ok::<_, String>(stream)
    };
    let client = async {
        let (mut stream, _) = hub.connect(0).await.map_err(|error| error.to_string())?;
        // TLS 1.3 tells a client only afterwards that its certificate was not good.
        let mut heard = [0; 5];
        stream.read_exact(&mut heard).await.map_err(|error| error.to_string())?;
        assert_eq!(&heard, b"hello");
        Ok::<_, String>(stream)
    };
    let (client, server) = tokio::join!(client, server);
    Ok((client?, server?))
}

#[tokio::test]
async fn the_first_address_that_answers_is_taken() {
    let site = site();
    let (dead, (listener, port)) = (deaf_port().await, listen().await);
    let hub = hub(&site, &connector("", "localhost", dead, &format!("failover = [\"127.0.0.1:{port}\"]\n")));
    assert_eq!(hub.address(), format!("localhost:{dead}, 127.0.0.1:{port}"));
    assert_eq!(&**hub.name(), "localhost");
    let (stream, accepted) = tokio::join!(hub.connect(0), listener.accept());
    assert!(matches!(stream.unwrap(), (Stream::Plain(_), 1)) && accepted.is_ok());
}

#[tokio::test]
async fn the_address_that_is_to_be_first_is_tried_first_and_the_others_are_tried_after_it() {
    let site = site();
    let ((one, port), (two, next), dead) = (listen().await, listen().await, deaf_port().await);
    let more = format!("failover = [\"127.0.0.1:{next}\", \"127.0.0.1:{dead}\"]\n");
    let hub = hub(&site, &connector("", "127.0.0.1", port, &more));
    for (first, taken) in [(0, 0), (1, 1), (2, 0), (3, 0)] {
        let listener = [&one, &two][taken];
        let (connected, accepted) = tokio::join!(hub.connect(first), listener.accept());
        assert_eq!((connected.unwrap().1, accepted.is_ok()), (taken, true), "{first}");
    }
}

#[tokio::test]
async fn every_address_that_does_not_answer_is_named() {
    let site = site();
    let dead = [deaf_port().await, deaf_port().await];
    let error = hub(&site, &connector("", "127.0.0.1", dead[0], "")).connect(0).await.unwrap_err();
    assert!(
        error.to_string().starts_with(&format!("no TCP connection to 127.0.0.1:{}: ", dead[0])),
        "{error}"
    );
    let more = format!("failover = [\"localhost:{}\"]\n", dead[1]);
    let error =
        hub(&site, &connector("", "127.0.0.1", dead[0], &more)).connect(0).await.unwrap_err().to_string();
    assert!(error.contains(&format!("127.0.0.1:{}: ", dead[0])), "{error}");
    assert!(error.contains(&format!("; no TCP connection to localhost:{}: ", dead[1])), "{error}");
}

#[tokio::test]
async fn the_certificate_must_be_for_the_host_of_each_address() {
    let site = site();
    let (listener, port) = listen().await;
    let acceptor = acceptor(&site, OWN, "");
    for host in ["localhost", "127.0.0.1"] {
        let hub =
            hub(&site, &connector(TRUST, host, port, "ssl_profile = \"p\"\nhub_name = \"cloud.example\"\n"));
        let (_, server) = meet(&hub, &listener, &acceptor).await.unwrap();
        let Stream::Tls(server) = server else { panic!("plain") };
        assert!(server.get_ref().1.peer_certificates().is_none());
        assert_eq!(&**hub.name(), "cloud.example", "the name in tokens is another matter");
    }
    let other = hub(&site, &connector(TRUST, "127.0.0.2", port, "ssl_profile = \"p\"\n"));
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 2], port))).await.unwrap();
    let error = meet(&other, &listener, &acceptor).await.unwrap_err();
    assert!(error.starts_with(&format!("TLS with 127.0.0.2:{port} failed: ")), "{error}");
}

#[tokio::test]
async fn only_the_versions_of_the_profile_are_spoken() {
    let site = site();
    let (listener, port) = listen().await;
    let only = |profile: &str, version: &str| format!("{profile}protocols = [\"{version}\"]\n");
    for (ours, theirs) in
        [("TLSv1.2", "TLSv1.2"), ("TLSv1.3", "TLSv1.3"), ("TLSv1.2", "TLSv1.3"), ("TLSv1.3", "TLSv1.2")]
    {
        let hub = hub(&site, &connector(&only(TRUST, ours), "localhost", port, "ssl_profile = \"p\"\n"));
        let met = meet(&hub, &listener, &acceptor(&site, &only(OWN, theirs), "")).await;
        assert_eq!(met.is_ok(), ours == theirs, "{ours} {theirs}: {:?}", met.err());
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_one_is_asked_for() {
    let site = site();
    let (listener, port) = listen().await;
    let asked = |word: &str| acceptor(&site, &format!("{OWN}client_certificates = \"{word}\"\n"), "");
    let with = |profile: &str| {
        hub(
            &site,
            &connector(profile, "localhost", port, "ssl_profile = \"p\"\nsasl_mechanisms = \"ANONYMOUS\"\n"),
        )
    };
    for (word, profile, comes, shows) in [
        ("required", OWN, true, true),
        ("required", TRUST, false, false),
        ("optional", OWN, true, true),
        ("optional", TRUST, true, false),
        ("none", OWN, true, false),
    ] {
        let met = meet(&with(profile), &listener, &asked(word)).await;
        assert_eq!(met.is_ok(), comes, "{word}: {:?}", met.err());
        if let Ok((_, Stream::Tls(server))) = met {
            assert_eq!(server.get_ref().1.peer_certificates().is_some(), shows, "{word}");
        }
    }
    // One that another CA signed is worse than none.
    let stranger = self::site();
    fs::copy(site.0.join("ca.pem"), stranger.0.join("ca.pem")).unwrap();
    let hub = hub(&stranger, &connector(OWN, "localhost", port, "ssl_profile = \"p\"\n"));
    assert!(meet(&hub, &listener, &asked("optional")).await.is_err());
}

#[tokio::test]
async fn one_port_may_take_both() {
    let site = site();
    let (listener, port) = listen().await;
    let both = acceptor(&site, OWN, "require_ssl = false\n");
    let tls = hub(&site, &connector(TRUST, "localhost", port, "ssl_profile = \"p\"\n"));
    assert!(matches!(meet(&tls, &listener, &both).await, Ok((_, Stream::Tls(_)))));
    let speak = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(b"AMQP").await.unwrap();
        stream
    };
    let hear = async {
        let mut stream = both.accept(listener.accept().await.unwrap().0, PATIENCE).await.unwrap();
        assert!(matches!(stream, Stream::Plain(_)));
        let mut heard = [0; 4];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"AMQP", "what was looked at is still there");
    };
    tokio::join!(speak, hear);
    let strict = acceptor(&site, OWN, "");
    let (mut stream, accepted) =
        tokio::join!(async { TcpStream::connect(("127.0.0.1", port)).await.unwrap() }, listener.accept());
    stream.write_all(b"AMQP\0\x01\0\0").await.unwrap();
    assert!(strict.accept(accepted.unwrap().0, PATIENCE).await.is_err());
}

#[test]
fn what_the_connection_proves_itself_with() {
    let site = site();
    let security = |more: &str| {
        hub(&site, &connector(OWN, "localhost", 1, &format!("ssl_profile = \"p\"\n{more}"))).security()
    };
    assert_eq!(security(""), ClientSecurity::Anonymous);
    assert_eq!(security("sasl_mechanisms = \"MSSBCBS\""), ClientSecurity::Mssbcbs);
    assert_eq!(security("sasl_mechanisms = \"EXTERNAL\""), ClientSecurity::External);
    assert_eq!(
        security("sasl_username = \"u\"\nsasl_password = \"p\""),
        ClientSecurity::Plain { user: "u".into(), password: "p".into() }
    );
}

#[test]
fn what_cannot_be_used_names_its_section() {
    let site = site();
    let config = config(
        &site,
        &connector(&TRUST.replace("ca.pem", "nowhere.pem"), "localhost", 1, "ssl_profile = \"p\""),
    );
    let error = Hub::for_connector(&config.connectors[0], &config, None).unwrap_err().to_string();
    assert!(
        error.starts_with("connector `A`, ssl_profile `p`: ") && error.contains("nowhere.pem"),
        "{error}"
    );

    let open = |mode| fs::set_permissions(site.0.join("own.key"), fs::Permissions::from_mode(mode)).unwrap();
    open(0o644);
    let text = format!("{OWN}[[listener]]\nssl_profile = \"p\"");
    let listener = self::config(&site, &text).listeners.remove(0);
    let error = Acceptor::new(&listener).unwrap_err().to_string();
    assert!(error.contains("own.key: holds a key") && error.contains("chmod 600"), "{error}");
    open(0o600);
    assert!(Acceptor::new(&listener).is_ok());
    fs::copy(site.0.join("own.pem"), site.0.join("own.key")).unwrap();
    let error = Acceptor::new(&listener).unwrap_err().to_string();
    assert!(error.contains("own.key: holds no private key"), "{error}");
}
