//! `fieldgate demo` as a person or a script starts it: the program itself, on free ports, with a state directory of
//! its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

/// A configuration and a state directory that go away with the test.
struct Place(PathBuf);

impl Place {
    /// `mqtt` is the port of the MQTT listener; all others are chosen by the system.
    fn new(name: &str, mqtt: u16) -> Self {
        let path = std::env::temp_dir().join(format!("fieldgate-demo-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        let section = |name: &str, port: u16| format!("[{name}]\nlisten = [\"127.0.0.1:{port}\"]\n");
        let free = ["amqp", "coap", "http", "hub", "admin"].map(|name| section(name, 0)).concat();
        fs::write(path.join("demo.toml"), free + &section("mqtt", mqtt)).unwrap();
        Self(path)
    }

    fn demo(&self, options: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_fieldgate"))
            .arg("demo")
            .args(["--config".as_ref(), self.0.join("demo.toml").as_os_str()])
            .args(["--state-dir".as_ref(), self.0.join("state").as_os_str()])
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn texts(output: &Output) -> (String, String) {
    (String::from_utf8_lossy(&output.stdout).into(), String::from_utf8_lossy(&output.stderr).into())
}

#[test]
fn every_protocol_delivers_and_commands_are_accepted() {
    let place = Place::new("everything", 0);
    let output = place.demo(&["--messages", "1", "--for", "60s"]).wait_with_output().unwrap();
    let (shown, complaints) = texts(&output);
    assert!(output.status.success(), "{shown}\n{complaints}");
    assert_eq!(complaints, "", "nothing to complain about");
    let has = |parts: &[&str]| shown.lines().any(|line| parts.iter().all(|part| line.contains(part)));
    for parts in [
        ["  hub    mqtt-boiler  MQTT 3.1.1", "\"celsius\":", "zone=cellar"],
        ["  hub    coap-soil    CoAP CON", "\"moisture\":", "zone=garden"],
        ["  hub    http-meter   HTTP", "\"watts\":", "phase=L1"],
        ["  hub    amqp-press   AMQP 1.0", "\"bar\":", "hall=2"],
        ["  device mqtt-boiler  MQTT 3.1.1", "accepted after", "(PUBACK)"],
        ["  device coap-soil    CoAP CON", "accepted after", "(2.04)"],
        ["  device http-meter   HTTP", "accepted after", "(204 No Content)"],
        ["  device amqp-press   AMQP 1.0", "accepted after", "(disposition)"],
        ["  sender mqtt-valve   MQTT 5", "command \"open 20 %\"", "sent to the hub"],
        ["  device mqtt-valve   MQTT 5", "command \"open 20 %\"", "received, accepted (PUBACK)"],
        ["  sender mqtt-valve   MQTT 5", "feedback Success", "after the command"],
        ["  device amqp-press   AMQP 1.0", "command \"pressure 170 bar\"", "received, accepted"],
        ["  sender amqp-press   AMQP 1.0", "feedback Success", "after the command"],
    ] {
        assert!(has(&parts), "{parts:?}\n{shown}");
    }
    assert!(!shown.contains("REFUSED") && !shown.contains("DISCONNECTED"), "{shown}");
}

#[test]
fn too_short_a_time_tells_what_is_missing() {
    let place = Place::new("short", 0);
    let output = place.demo(&["--for", "10ms"]).wait_with_output().unwrap();
    let (shown, complaints) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{shown}\n{complaints}");
    assert!(complaints.contains("CoAP: 0 of 1 messages accepted"), "{complaints}");
    assert!(complaints.contains("MQTT: no command accepted"), "{complaints}");
    assert!(shown.contains("messages accepted   seen at the hub"), "{shown}");
}

#[test]
fn an_interrupt_ends_it_in_order_with_a_summary() {
    let place = Place::new("interrupt", 0);
    let mut demo = place.demo(&[]);
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines().map(Result::unwrap);
    let first = lines.find(|line| line.contains("  hub    mqtt-")).unwrap();
    assert!(first.contains("MQTT 3.1.1 {"), "{first}");
    let interrupted = Command::new("kill").args(["-INT", &demo.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    let rest: Vec<String> = lines.collect();
    let output = demo.wait_with_output().unwrap();
    let (_, complaints) = texts(&output);
    assert!(output.status.success() && complaints.is_empty(), "{complaints}\n{}", rest.join("\n"));
    let mqtt = rest.iter().find(|line| line.starts_with("MQTT ")).unwrap();
    let counts: Vec<&str> = mqtt.split_whitespace().collect();
    assert_eq!(counts, ["MQTT", "1", "1", "0"], "{mqtt}");
}

#[test]
fn a_busy_port_names_itself_and_the_setting() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let place = Place::new("busy", port);
    let output = place.demo(&["--for", "10s"]).wait_with_output().unwrap();
    let (shown, complaints) = texts(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(complaints.starts_with(&format!("error: port {port} is in use")), "{complaints}");
    assert!(complaints.contains("[mqtt] listen"), "{complaints}");
    assert_eq!(shown, "", "nothing is promised that does not run");
}
