//! Store and forward on real files and sockets: a hub that goes and comes back, a gateway that is started anew, and
//! what the tools say of it through the control socket and without one.

use std::path::Path;
use std::process::{Command, Output};

use fieldgate_mqtt::Version::V5;
use serde_json::Value;

use super::hub::{Answer, Hub, Message};
use super::mqtt::Told;
use super::world::{Directory, Gateway, Lines, within};

/// The built-in mapping, with messages kept while the hub is away.
struct Mapping(Directory);

impl Mapping {
    fn new() -> Self {
        let directory = Directory::new();
        std::fs::create_dir_all(directory.path()).unwrap();
        let text = include_str!("../../mappings/azure-iot-hub.toml");
        let delivery =
            "\n[rule.delivery]\nwhen_offline = { max_age = \"1h\" }\n\n[[rule]]\nname = \"commands\"";
        let text = text.replace("\n[[rule]]\nname = \"commands\"", delivery);
        assert!(text.contains("when_offline"), "the built-in file has changed");
        std::fs::write(directory.path().join("m.toml"), text).unwrap();
        Self(directory)
    }

    fn lines(&self, spool: &Path) -> String {
        let file = self.0.path().join("m.toml");
        format!(
            "[mappings]\nfiles = [{file:?}]\n[spool]\ndirectory = {spool:?}\nmax_bytes = \"32MiB\"\ndead_letter_max_bytes = \"4MiB\""
        )
    }
}

/// What the tool prints and how it ends.
async fn tool(arguments: &[&str], config: &Path, state: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fieldgate"));
    command.args(arguments).arg("--config").arg(config).arg("--state-dir").arg(state);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

/// The messages that come, each accepted.
async fn take(hub: &mut Hub, count: usize) -> Vec<String> {
    let mut bodies = Vec::new();
    for _ in 0..count {
        let message: Message = hub.message().await;
        hub.settle(&message, &Answer::Accept);
        bodies.push(String::from_utf8(message.body.to_vec()).unwrap());
    }
    bodies
}

#[tokio::test]
async fn an_outage_and_a_restart_lose_nothing_and_keep_the_order() {
    within(async {
        let (mapping, spool) = (Mapping::new(), Directory::new());
        let more = mapping.lines(spool.path());
        let config = spool.path().with_extension("toml");
        std::fs::write(&config, &more).unwrap();
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines { more: &more, ..Lines::NONE }).await;
        // One connection is the worker's, the other the spool's.
        let connections = [hub.opened().await, hub.opened().await];
        let (mut http, mut mqtt) = (gateway.http().await, gateway.mqtt(V5, "pump").await);
        http.event("pump", b"straight").await;
        assert_eq!(take(&mut hub, 1).await, ["straight"]);
        assert_eq!(http.answer().await.status, 204);

        hub.behave(|manner| manner.takes = 0);
        connections.iter().for_each(|connection| hub.cut(*connection));
        gateway.until_health(503).await;
        for body in ["one", "two"] {
            http.event("pump", body.as_bytes()).await;
            assert_eq!(http.answer().await.status, 204, "the disk has it");
        }
        let packet = mqtt.event("pump", b"three").await;
        assert_eq!(mqtt.told(packet).await, Told::PubAck(0));
        let status = json(&tool(&["spool", "status", "--json"], &config, gateway.state.path()).await);
        assert_eq!(
            (&status["records"], &status["devices"], &status["disk"]),
            (&3.into(), &1.into(), &"good".into())
        );
        assert_eq!(status["hubs"][0]["connected"], false);
        drop((http, mqtt));
        gateway.stop().await;

        let offline = tool(&["spool", "status"], &config, spool.path()).await;
        let text = String::from_utf8(offline.stdout).unwrap();
        assert!(text.contains("3 of 1 device") && text.contains("no gateway runs"), "{text}");
        // Only root can give it away, and only root would take what is not its own.
        let give = |owner| std::os::unix::fs::chown(spool.path(), Some(owner), None).is_ok();
        if give(65_534) {
            let refused = tool(&["spool", "status"], &config, spool.path()).await;
            let text = String::from_utf8(refused.stderr).unwrap();
            assert!(!refused.status.success() && text.contains("is that of user 65534"), "{text}");
            assert!(give(0));
        }

        let gateway = Gateway::away(&hub, Lines { more: &more, ..Lines::NONE }).await;
        let mut http = gateway.http().await;
        http.event("pump", b"four").await;
        assert_eq!(http.answer().await.status, 204, "behind the others");
        hub.behave(|manner| manner.takes = usize::MAX);
        assert_eq!(take(&mut hub, 4).await, ["one", "two", "three", "four"]);
        assert_eq!(gateway.until_spooled(0).await["disk"], "good");
        http.event("pump", b"straight again").await;
        assert_eq!(take(&mut hub, 1).await, ["straight again"]);
        assert_eq!(http.answer().await.status, 204);
    })
    .await;
}

#[tokio::test]
async fn what_the_hub_refuses_can_be_seen_and_sent_again() {
    within(async {
        let (mapping, spool) = (Mapping::new(), Directory::new());
        let more = mapping.lines(spool.path());
        let config = spool.path().with_extension("toml");
        std::fs::write(&config, &more).unwrap();
        let mut hub = Hub::start();
        hub.behave(|manner| manner.takes = 0);
        let gateway = Gateway::away(&hub, Lines { more: &more, ..Lines::NONE }).await;
        gateway.until_health(503).await;
        let mut http = gateway.http().await;
        http.event("pump", b"odd").await;
        assert_eq!(http.answer().await.status, 204);
        hub.behave(|manner| manner.takes = usize::MAX);
        let message = hub.message().await;
        hub.settle(&message, &Answer::Reject("amqp:decode-error"));

        let state = gateway.state.path();
        let letter = loop {
            let listed = json(&tool(&["dead-letter", "list", "--json"], &config, state).await);
            if listed != Value::Null {
                break listed;
            }
        };
        assert_eq!((&letter["device"], &letter["reason"]), (&"pump".into(), &"content".into()));
        let number = letter["seq"].to_string();
        let shown = tool(&["dead-letter", "show", &number], &config, state).await;
        let text = String::from_utf8(shown.stdout).unwrap();
        assert!(text.contains("content: the test says so") && text.contains("body         odd"), "{text}");

        let replayed = tool(&["dead-letter", "replay", &number], &config, state).await;
        assert!(replayed.status.success(), "{replayed:?}");
        assert_eq!(take(&mut hub, 1).await, ["odd"]);
        let none = tool(&["dead-letter", "show", &number], &config, state).await;
        assert!(!none.status.success());
        let nothing = tool(&["dead-letter", "drop", "--all"], &config, state).await;
        assert!(!nothing.status.success(), "there is none left");
        gateway.until_spooled(0).await;
    })
    .await;
}
