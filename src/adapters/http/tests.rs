//! A device that writes its bytes itself, the connection, and a hub of the test's own; and real sockets where the
//! system's are the matter.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::{Notify, oneshot};
use tokio::task::{JoinHandle, LocalSet};

use super::*;
use crate::adapters::testing::{Running, config, gate, rules};
use crate::config::Config;
use crate::devices::{Gate, GateSettings, Known, LimitSettings, PasswordHash, Registry, Roster};
use crate::sas::{SharedKey, Signer};
use crate::state::tests::Scratch;

const EVENTS: &str = "POST /devices/d1/messages/events?api-version=2021-04-12 HTTP/1.1\r\nHost: gate\r\n";

/// What the hub has and has not answered.
#[derive(Default)]
struct Hub {
    messages: RefCell<VecDeque<(Message, Patience, Verdict)>>,
    came: Notify,
}

impl Hub {
    async fn next(&self) -> (Message, Patience, Verdict) {
        loop {
            if let Some(next) = self.messages.borrow_mut().pop_front() {
                return next;
            }
            self.came.notified().await;
        }
    }

    /// Answers for the next messages, one outcome each.
    async fn answer(&self, outcomes: impl IntoIterator<Item = Outcome>) {
        for outcome in outcomes {
            self.next().await.2.report(outcome);
        }
    }
}

struct Bench {
    device: DuplexStream,
    hub: Rc<Hub>,
    stop: Option<oneshot::Sender<()>>,
    connection: JoinHandle<()>,
}

impl Bench {
    fn new() -> Self {
        Self::with(Config::default())
    }

    fn with(config: Config) -> Self {
        Self::of(config, Roster::new(&gate()))
    }

    fn of(config: Config, roster: Rc<Roster>) -> Self {
        let (device, stream) = tokio::io::duplex(64 * 1024);
        let hub = Rc::<Hub>::default();
        let (stop, stopped) = oneshot::channel();
        let peer = SocketAddr::from(([127, 0, 0, 1], 40_000));
        let config = Arc::new(config);
        let toward_hub = Rc::clone(&hub);
        let send = move |message, patience, verdict| {
            toward_hub.messages.borrow_mut().push_back((message, patience, verdict));
            toward_hub.came.notify_one();
        };
        let requests = Requests::new(Arc::clone(&config), rules(), roster, send, Box::new(|_| {}), peer);
        let connection = tokio::task::spawn_local(async move {
            // Should the test drop its side, there is no stop.
            let stop = async {
                if stopped.await.is_err() {
                    std::future::pending().await
                }
            };
            converse(stream, peer, &config.http, requests, stop).await;
        });
        Self { device, hub, stop: Some(stop), connection }
    }

    async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.device.write_all(bytes.as_ref()).await.unwrap();
    }

    /// One response: status line and header fields in lower case, and the body.
    async fn read(&mut self) -> (String, String) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.device.read_u8().await.expect("a response"));
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let length = head
            .split("content-length: ")
            .nth(1)
            .map_or(0, |rest| rest.split("\r\n").next().unwrap().parse().unwrap());
        let mut body = vec![0; length];
        self.device.read_exact(&mut body).await.unwrap();
        (head, String::from_utf8(body).unwrap())
    }

    async fn ask(&mut self, request: impl AsRef<[u8]>) -> (String, String) {
        self.write(request).await;
        self.read().await
    }

    /// Waits for the end of the connection; nothing may come before it.
    async fn ended(mut self) {
        let mut rest = Vec::new();
        self.device.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"", "{}", String::from_utf8_lossy(&rest));
        self.connection.await.unwrap();
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(20), test).await.expect("the test hangs");
    });
}

fn events(fields: &str, body: &str) -> String {
    format!("{EVENTS}{fields}Content-Length: {}\r\n\r\n{body}", body.len())
}

fn status(head: &str) -> &str {
    head.split(' ').nth(1).unwrap()
}

fn rejected(reason: Reason) -> Outcome {
    Outcome::Rejected(Rejection::new(reason, "no"))
}

#[test]
fn a_message_reaches_the_hub_and_its_outcome_the_device() {
    run(async {
        let mut bench = Bench::new();
        for body in ["21.5", ""] {
            bench.write(events("iothub-app-Unit: C\r\niothub-messageid: m1\r\n", body)).await;
            let (message, patience, verdict) = bench.hub.next().await;
            assert_eq!(message.device.as_str(), "d1");
            assert_eq!(message.address.as_str(), "devices/d1/messages/events");
            assert_eq!(&message.body[..], body.as_bytes());
            assert_eq!(message.application_property("unit").and_then(|value| value.as_str()), Some("C"));
            assert!(!patience.through_outage);
            verdict.report(Outcome::Accepted);
            let (head, _) = bench.read().await;
            assert_eq!(status(&head), "204", "{head}");
        }
    });
}

#[test]
fn every_outcome_has_its_status() {
    run(async {
        let mut bench = Bench::new();
        for (outcome, code, field) in [
            (rejected(Reason::Credentials), "401", "\r\nwww-authenticate: sharedaccesssignature, basic "),
            (rejected(Reason::NotPermitted), "403", ""),
            (rejected(Reason::NoSuchAddress), "404", ""),
            (rejected(Reason::TooLarge), "413", ""),
            (
                rejected(Reason::Quota { retry_after: Some(Duration::from_secs(77)) }),
                "429",
                "\r\nretry-after: 77\r\n",
            ),
            (rejected(Reason::Content), "400", ""),
            (Outcome::Released, "503", "\r\nretry-after: 10\r\n"),
            (Outcome::Unknown, "504", ""),
            (Outcome::Accepted, "204", ""),
        ] {
            bench.write(events("", "1")).await;
            bench.hub.answer([outcome]).await;
            let (head, _) = bench.read().await;
            assert_eq!(status(&head), code);
            assert!(head.contains(field), "{head}");
        }
        // A verdict that is lost says so, too.
        bench.write(events("", "1")).await;
        drop(bench.hub.next().await);
        assert_eq!(status(&bench.read().await.0), "503");
    });
}

#[test]
fn a_silent_hub_is_answered_for_and_its_late_outcome_is_nobodys() {
    let mut config = Config::default();
    config.http.answer_time_out = Duration::from_millis(40);
    run(async {
        let mut bench = Bench::with(config);
        let (head, body) = bench.ask(events("", "1")).await;
        assert_eq!(status(&head), "504");
        assert!(body.contains("\"unknown\""), "{body}");
        bench.hub.answer([Outcome::Accepted]).await;
        bench.write(events("", "2")).await;
        bench.hub.answer([Outcome::Accepted]).await;
        assert_eq!(status(&bench.read().await.0), "204");
    });
}

#[test]
fn a_device_that_leaves_takes_nothing_back() {
    run(async {
        let mut bench = Bench::new();
        bench.write(events("", "1")).await;
        let (message, _, verdict) = bench.hub.next().await;
        assert_eq!(&message.body[..], b"1");
        drop(bench.device);
        bench.connection.await.unwrap();
        verdict.report(Outcome::Accepted);
    });
}

#[test]
fn what_no_rule_maps_is_refused_without_the_hub() {
    run(async {
        let mut bench = Bench::new();
        for (request, code, field) in [
            ("POST /devices/d1/nowhere", "404", ""),
            ("GET /", "404", ""),
            ("GET /devices/d1/messages/deviceBound", "404", ""),
            ("GET /devices/d1/messages/events", "405", "\r\nallow: post\r\n"),
            ("PUT /devices/d1/messages/events", "405", "\r\nallow: post\r\n"),
            ("POST /devices/d%201/messages/events", "400", ""),
        ] {
            let (head, body) =
                bench.ask(format!("{request} HTTP/1.1\r\nHost: gate\r\nContent-Length: 1\r\n\r\n1")).await;
            assert_eq!(status(&head), code, "{request}");
            assert!(head.contains(field) && body.starts_with("{\"error\":"), "{head}{body}");
        }
        assert!(bench.hub.messages.borrow().is_empty());
        bench.write(events("", "1")).await;
        bench.hub.answer([Outcome::Accepted]).await;
        assert_eq!(status(&bench.read().await.0), "204", "the connection goes on");
    });
}

#[test]
fn without_anonymous_access_nobody_is_served() {
    run(async {
        let mut bench = Bench::with(config("[http]\nallow_anonymous = false\n"));
        // Before the body is there.
        let (head, _) = bench.ask(format!("{EVENTS}Content-Length: 10\r\n\r\n")).await;
        assert_eq!(status(&head), "401");
        assert!(head.contains("\r\nwww-authenticate: sharedaccesssignature, basic "), "{head}");
        assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
        bench.write("0123456789").await;
        bench.ended().await;
    });
}

#[test]
fn a_token_for_another_device_is_refused() {
    let signer = Signer::new(None, SharedKey::from_bytes(b"key").unwrap());
    let field = |resource: &str| format!("Authorization: {}\r\n", signer.token(resource, 4_000_000_000));
    run(async {
        let mut bench = Bench::new();
        let (head, body) = bench.ask(events(&field("hub/devices/d2"), "1")).await;
        assert_eq!(status(&head), "401");
        assert!(head.contains("\r\nwww-authenticate: sharedaccesssignature, basic "), "{head}");
        assert!(!body.contains("sig="), "{body}");
        assert!(bench.hub.messages.borrow().is_empty());
        for fields in [field("hub/devices/d1"), field("hub"), "Authorization: Basic ZDE6eA==\r\n".into()] {
            bench.write(events(&fields, "1")).await;
            bench.hub.answer([Outcome::Accepted]).await;
            assert_eq!(status(&bench.read().await.0), "204");
        }
    });
}

#[test]
fn a_body_over_the_limit_is_refused_by_its_length_or_where_it_passes_it() {
    run(async {
        let mut bench = Bench::new();
        let (head, _) = bench.ask(format!("{EVENTS}Content-Length: 262145\r\n\r\n")).await;
        assert_eq!(status(&head), "413");
        let mut bench = Bench::new();
        bench.write(format!("{EVENTS}Transfer-Encoding: chunked\r\n\r\n")).await;
        for _ in 0..5 {
            bench.write(format!("10000\r\n{}\r\n", "x".repeat(0x10000))).await;
        }
        assert_eq!(status(&bench.read().await.0), "413");
        let mut bench = Bench::new();
        let most = "x".repeat(262_144);
        bench.write(events("", &most)).await;
        let (message, _, verdict) = bench.hub.next().await;
        assert_eq!(message.body.len(), most.len());
        verdict.report(Outcome::Accepted);
        assert_eq!(status(&bench.read().await.0), "204");
    });
}

#[test]
fn chunks_are_one_body() {
    run(async {
        let mut bench = Bench::new();
        bench
            .write(format!(
                "{EVENTS}Transfer-Encoding: chunked\r\n\r\n2\r\n21\r\n2\r\n.5\r\n0\r\nX: y\r\n\r\n"
            ))
            .await;
        let (message, _, verdict) = bench.hub.next().await;
        assert_eq!(&message.body[..], b"21.5");
        verdict.report(Outcome::Accepted);
        assert_eq!(status(&bench.read().await.0), "204");
        let (head, _) = bench.ask(format!("{EVENTS}Transfer-Encoding: chunked\r\n\r\nno chunk\r\n")).await;
        assert_eq!(status(&head), "400");
        bench.ended().await;
    });
}

#[test]
fn a_body_is_asked_for_only_where_it_is_wanted() {
    run(async {
        let mut bench = Bench::new();
        let (head, _) = bench.ask(format!("{EVENTS}Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")).await;
        assert_eq!(status(&head), "100");
        bench.write("21").await;
        bench.hub.answer([Outcome::Accepted]).await;
        assert_eq!(status(&bench.read().await.0), "204");
        let (head, _) =
            bench.ask(format!("{EVENTS}Expect: 100-continue\r\nContent-Length: 9999999\r\n\r\n")).await;
        assert_eq!(status(&head), "413", "no 100 goes before it");
        bench.ended().await;
    });
}

#[test]
fn malformed_requests_are_answered_and_end_the_connection() {
    run(async {
        for (request, code) in [
            ("no http at all\r\n\r\n", "400"),
            ("POST /devices/%ZZ/messages/events HTTP/1.1\r\nHost: gate\r\n\r\n", "400"),
            ("POST /devices/d1/messages/events HTTP/1.1\r\n\r\n", "400"),
            ("POST /devices/d1/messages/events HTTP/1.1\r\nHost: gate\r\nContent-Length: x\r\n\r\n", "400"),
            ("POST /devices/../d1/messages/events HTTP/1.1\r\nHost: gate\r\n\r\n", "400"),
            ("OPTIONS * HTTP/1.1\r\nHost: gate\r\n\r\n", "400"),
        ] {
            let mut bench = Bench::new();
            let (head, _) = bench.ask(request).await;
            assert_eq!(status(&head), code, "{request}");
            assert!(bench.hub.messages.borrow().is_empty());
            bench.ended().await;
        }
        let mut bench = Bench::new();
        let (head, _) = bench.ask(events(&format!("X: {}\r\n", "y".repeat(17_000)), "1")).await;
        assert_eq!(status(&head), "431");
        let text = crate::telemetry::render();
        for reason in ["malformed", "escape", "host", "dot-segment", "target"] {
            assert!(
                text.contains(&format!("fieldgate_http_violations_total{{reason=\"{reason}\"}}")),
                "{text}"
            );
        }
    });
}

#[test]
fn slow_devices_are_not_waited_for() {
    let mut config = Config::default();
    config.http.header_time_out = Duration::from_millis(40);
    config.http.body_time_out = Duration::from_millis(40);
    run(async {
        // Nothing at all, and half a head.
        for begun in ["", EVENTS] {
            let mut bench = Bench::with(config.clone());
            bench.write(begun).await;
            bench.ended().await;
        }
        // Half a body.
        let mut bench = Bench::with(config.clone());
        let (head, _) = bench.ask(format!("{EVENTS}Content-Length: 10\r\n\r\nhalf")).await;
        assert_eq!(status(&head), "408");
        assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
        assert!(bench.hub.messages.borrow().is_empty());
    });
}

#[test]
fn a_device_that_does_not_read_is_not_waited_for() {
    let mut config = Config::default();
    let http = &mut config.http;
    for time_out in [&mut http.header_time_out, &mut http.body_time_out, &mut http.answer_time_out] {
        *time_out = Duration::from_millis(40);
    }
    run(async {
        let mut bench = Bench::with(config);
        let requests = "GET / HTTP/1.1\r\nHost: gate\r\n\r\n".repeat(10_000);
        // More answers than fit on the way: writing ends when the connection does.
        bench.device.write_all(requests.as_bytes()).await.unwrap_err();
        bench.connection.await.unwrap();
        let text = crate::telemetry::render();
        assert!(text.contains("fieldgate_http_connections_stalled_total 1\n"), "{text}");
    });
}

#[test]
fn a_stop_waits_for_the_request_under_way() {
    run(async {
        let mut bench = Bench::new();
        bench.write(events("", "1")).await;
        let (_, _, verdict) = bench.hub.next().await;
        bench.stop.take().unwrap().send(()).unwrap();
        tokio::task::yield_now().await;
        verdict.report(Outcome::Accepted);
        let (head, _) = bench.read().await;
        assert_eq!(status(&head), "204");
        assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
        bench.ended().await;

        let mut bench = Bench::new();
        bench.stop.take().unwrap().send(()).unwrap();
        bench.ended().await;
    });
}

/// All that is answered on a connection to its end.
fn answered(to: SocketAddr, request: &[u8]) -> String {
    let mut stream = std::net::TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

#[test]
fn a_socket_answers_while_the_hub_is_away() {
    let running = Running::start("");
    let close = "Connection: close\r\n";
    let away = answered(running.http, events(close, "21.5").as_bytes());
    assert!(away.starts_with("HTTP/1.1 503 ") && away.contains("\r\nretry-after: 10\r\n"), "{away}");
    let unmapped =
        answered(running.http, format!("POST /x HTTP/1.1\r\nHost: gate\r\n{close}\r\n").as_bytes());
    assert!(unmapped.starts_with("HTTP/1.1 404 "), "{unmapped}");
    // The whole body is there before the answer is read: a reset would take the answer away.
    let large = answered(running.http, events("", &"x".repeat(700_000)).as_bytes());
    assert!(large.starts_with("HTTP/1.1 413 "), "{large}");
    running.stop();
}

#[test]
fn who_is_disabled_while_it_sends_its_body_is_not_heard() {
    run(async {
        let scratch = Scratch::new();
        let path = scratch.0.join("devices.toml");
        let (password, hash) = PasswordHash::generate().unwrap();
        let write = |rest: &str| {
            let text = format!("[[device]]\nid = \"d1\"\npasswords = \"{}\"\n{rest}", hash.as_str());
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        };
        write("");
        let registry = Registry::load(&path, Known::default()).unwrap_or_else(|error| panic!("{error}"));
        let limits = LimitSettings { per_device: 3, per_address: 20, longest: Duration::from_secs(60) };
        let gate = Gate::new(Arc::clone(&registry), GateSettings { hosts: Vec::new(), limits });
        let roster = Roster::new(&gate);
        tokio::task::spawn_local(Rc::clone(&roster).keep());
        let mut bench = Bench::of(config("[http]\nallow_anonymous = false\n"), roster);
        let field = format!("Authorization: Basic {}\r\n", BASE64.encode(format!("d1:{password}")));
        let head = format!("{EVENTS}{field}Expect: 100-continue\r\nContent-Length: 4\r\n\r\n");
        for (rest, told) in [("", "204"), ("enabled = false", "403")] {
            // The body is asked for once the device was let in.
            assert_eq!(status(&bench.ask(&head).await.0), "100");
            write(rest);
            registry.reload().unwrap_or_else(|error| panic!("{error}"));
            bench.write("21.5").await;
            if told == "204" {
                bench.hub.answer([Outcome::Accepted]).await;
            }
            assert_eq!(status(&bench.read().await.0), told);
        }
        assert!(bench.hub.messages.borrow().is_empty());
    });
}
