//! WebSockets, certificates that change, and why a hub is not reached.

use rcgen::ExtendedKeyUsagePurpose;
use rustls::pki_types::CertificateDer;

use super::*;

const WEB: &str = "transport = \"websocket\"\n";

/// Replaces the site's own certificate by a new one for `name`, good until `days` from now.
fn issue(site: &Scratch, name: &str, days: i64) {
    let pem = |file: &str| fs::read_to_string(site.0.join(file)).unwrap();
    let issuer = Issuer::new(ca_params(), KeyPair::from_pem(&pem("ca.key")).unwrap());
    let key = KeyPair::generate().unwrap();
    let mut own = CertificateParams::new([name.to_owned()]).unwrap();
    own.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let day = |days: i64| {
        let seconds = Duration::from_secs(days.unsigned_abs() * 86_400);
        if days < 0 { SystemTime::now() - seconds } else { SystemTime::now() + seconds }
    };
    own.not_before = day(-30).into();
    own.not_after = day(days).into();
    fs::write(site.0.join("own.pem"), own.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    fs::write(site.0.join("own.key"), key.serialize_pem()).unwrap();
}

fn secure(port: u16, more: &str) -> String {
    connector(TRUST, "localhost", port, &format!("ssl_profile = \"p\"\n{more}"))
}

#[tokio::test]
async fn a_websocket_with_tls_and_without() {
    let site = site();
    let (listener, port) = listen().await;
    let tls = acceptor(&site, OWN, "websocket = true\n");
    let (client, server) = meet(&hub(&site, &secure(port, WEB)), &listener, &tls).await.unwrap();
    assert!(matches!((&client, &server), (Stream::WebSocket(_), Stream::WebSocket(_))));
    assert!(client.peer_certificates().is_some() && server.peer_certificates().is_none());
    let plain = "[[listener]]\nport = 0\nwebsocket = true\n";
    let plain = Acceptor::new(&config(&site, plain).listeners[0]).unwrap();
    let met = meet(&hub(&site, &connector("", "localhost", port, WEB)), &listener, &plain).await;
    assert!(matches!(met.unwrap().1, Stream::WebSocket(_)));
    // The same listener takes AMQP as it is.
    let direct = hub(&site, &secure(port, ""));
    let speak = async {
        let (mut stream, _) = direct.connect(0).await.unwrap();
        stream.write_all(b"AMQP\0\x01\0\0").await.unwrap();
        stream.flush().await.unwrap();
        stream
    };
    let hear = async {
        let mut stream = tls.accept(listener.accept().await.unwrap().0, PATIENCE).await.unwrap();
        let mut heard = [0; 8];
        stream.read_exact(&mut heard).await.unwrap();
        assert!(matches!(stream, Stream::Tls(_)) && &heard == b"AMQP\0\x01\0\0");
    };
    tokio::join!(speak, hear);
}

#[tokio::test]
async fn a_certificate_is_shown_inside_of_a_websocket_as_well() {
    let site = site();
    let (listener, port) = listen().await;
    let asks = acceptor(&site, &format!("{OWN}client_certificates = \"required\"\n"), "websocket = true\n");
    let hub = hub(&site, &connector(OWN, "localhost", port, &format!("ssl_profile = \"p\"\n{WEB}")));
    let (_, server) = meet(&hub, &listener, &asks).await.unwrap();
    assert_eq!(server.peer_certificates().unwrap().len(), 1);
}

#[tokio::test]
async fn why_it_is_no_websocket_is_said() {
    let site = site();
    let (listener, port) = listen().await;
    let tls = acceptor(&site, OWN, "websocket = true\n");
    let lost = hub(&site, &secure(port, &format!("{WEB}websocket_path = \"/elsewhere\"\n")));
    let error = meet(&lost, &listener, &tls).await.unwrap_err();
    assert!(
        error.starts_with(&format!(
            "no WebSocket at localhost:{port}/elsewhere: it answers 404 (Not Found); "
        )),
        "{error}"
    );
    // An AMQP listener that takes no WebSocket answers in AMQP, or not at all.
    let deaf = hub(&site, &connector("", "localhost", port, WEB));
    let (error, accepted) = tokio::join!(deaf.connect(0), async {
        let mut stream = listener.accept().await.unwrap().0;
        stream.write_all(b"AMQP\0\x01\0\0AMQP\0\x01\0\0\r\n\r\n").await.unwrap();
        stream
    });
    drop(accepted);
    let error = error.unwrap_err().to_string();
    assert!(error.contains("not HTTP") && error.contains("`websocket_path`"), "{error}");
}

#[tokio::test]
async fn why_tls_fails_is_said_with_what_to_do() {
    let site = site();
    let (listener, port) = listen().await;
    let own = |site: &Scratch| acceptor(site, OWN, "");
    let ours = hub(&site, &secure(port, ""));
    let refused = async |acceptor: &Acceptor| meet(&ours, &listener, acceptor).await.unwrap_err();

    issue(&site, "other.example", 30);
    let error = refused(&own(&site)).await;
    assert!(error.contains("is for other.example and not for localhost; connect by a name"), "{error}");
    issue(&site, "localhost", -2);
    let error = refused(&own(&site)).await;
    assert!(error.contains("has expired") && error.contains("clock"), "{error}");
    let error = refused(&own(&super::site())).await;
    assert!(error.contains("nobody who is trusted here") && error.contains("`ca_file`"), "{error}");
    issue(&site, "localhost", 30);
    let asks = acceptor(&site, &format!("{OWN}client_certificates = \"required\"\n"), "");
    // In TLS 1.3 it comes when something is read; the words are those of the lost connection.
    let (_, lost) = tokio::join!(
        async {
            let accepted = asks.accept(listener.accept().await.unwrap().0, PATIENCE).await;
            assert!(accepted.is_err());
        },
        async {
            let error = ours.connect(0).await.unwrap().0.read(&mut [0]).await.unwrap_err();
            tls::in_words(&error)
        }
    );
    assert!(lost.contains("asks for a client certificate") && lost.contains("`cert_file`"), "{lost}");
    let plain = acceptor(&site, OWN, "require_ssl = false\n");
    let (answer, error) = tokio::join!(
        async {
            let mut stream = listener.accept().await.unwrap().0;
            stream.write_all(b"AMQP\0\x01\0\0").await.unwrap();
            stream
        },
        ours.connect(0)
    );
    drop((answer, plain));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("does not speak TLS; is the port right?"), "{error}");
    let (_, error) = tokio::join!(async { drop(listener.accept().await.unwrap()) }, ours.connect(0));
    let error = error.unwrap_err().to_string();
    assert!(error.starts_with(&format!("TLS with localhost:{port} failed: ")), "{error}");
}

#[tokio::test]
async fn a_proxy_that_says_nothing_is_not_waited_for() {
    let site = site();
    let (listener, port) = listen().await;
    let text = format!(
        "[[connector]]\nname = \"A\"\nhost = \"hub.example\"\nallow_plain_text = true\nconnect_time_out = \"1s\"\n\
         proxy = \"http://u:hidden@127.0.0.1:{port}\"\n"
    );
    let silent = hub(&site, &text);
    let (error, _accepted) = tokio::join!(silent.connect(0), listener.accept());
    let error = error.unwrap_err().to_string();
    assert_eq!(
        error,
        format!("no answer from hub.example:5672 through the proxy 127.0.0.1:{port} within 1 s")
    );
    let dead = deaf_port().await;
    let error = hub(&site, &text.replace(&port.to_string(), &dead.to_string())).connect(0).await.unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains(&format!("through the proxy 127.0.0.1:{dead}: no TCP connection to it")),
        "{error}"
    );
}

/// Files are looked at twice before they count.
fn look(files: impl Iterator<Item = Arc<dyn tls::Follow>> + Clone) {
    for _ in 0..2 {
        files.clone().for_each(|file| file.look());
    }
}

#[tokio::test]
async fn new_connections_have_the_new_certificates_and_old_ones_go_on() {
    let site = site();
    let (listener, port) = listen().await;
    let asks = acceptor(&site, &format!("{OWN}client_certificates = \"required\"\n"), "");
    let hub = hub(&site, &connector(OWN, "localhost", port, "ssl_profile = \"p\"\n"));
    let shown =
        |stream: &Stream| -> CertificateDer<'static> { stream.peer_certificates().unwrap()[0].clone() };
    let (mut client, mut server) = meet(&hub, &listener, &asks).await.unwrap();
    let before = shown(&client);
    assert_eq!(before, shown(&server));

    issue(&site, "localhost", 30);
    // Not until somebody has looked.
    assert_eq!(shown(&meet(&hub, &listener, &asks).await.unwrap().0), before);
    let server_files: Vec<_> = asks.files().into_iter().collect();
    look(server_files.iter().cloned());
    let (mixed, other) = meet(&hub, &listener, &asks).await.unwrap();
    assert_ne!(shown(&mixed), before, "the listener's is new");
    assert_eq!(shown(&other), before, "the connector's is not yet");
    let files: Vec<_> = hub.files().collect();
    look(files.iter().cloned());
    let (new, other) = meet(&hub, &listener, &asks).await.unwrap();
    assert!(shown(&new) == shown(&other) && shown(&new) != before);

    // Half a pair, and no pair at all: the last good one stays.
    let good = shown(&new);
    fs::write(site.0.join("own.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    look(files.iter().chain(&server_files).cloned());
    assert_eq!(shown(&meet(&hub, &listener, &asks).await.unwrap().0), good);
    fs::write(site.0.join("own.pem"), "nothing").unwrap();
    look(files.iter().chain(&server_files).cloned());
    assert_eq!(shown(&meet(&hub, &listener, &asks).await.unwrap().0), good);

    // Another CA: who has the old one's certificate does not come in any more, who is in stays.
    let next = super::site();
    for file in ["ca.pem", "own.pem", "own.key"] {
        fs::copy(next.0.join(file), site.0.join(file)).unwrap();
    }
    look(server_files.iter().cloned());
    assert!(meet(&hub, &listener, &asks).await.is_err());
    look(files.iter().cloned());
    meet(&hub, &listener, &asks).await.unwrap();
    client.write_all(b"still").await.unwrap();
    client.flush().await.unwrap();
    let mut heard = [0; 5];
    server.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"still");
}
