//! A gateway on addresses of its own, stopped and joined when the test lets go of it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use fieldgate::app::{self, Listening, Started};
use fieldgate::config::Config;
use fieldgate::console::Health;
use fieldgate::shutdown::{self, Trigger};
use fieldgate_mqtt::Version;
use tokio::sync::oneshot;

use super::hub::Hub;
use super::mqtt::Mqtt;
use super::requests::{Coap, Http};

/// Nothing in these tests takes anywhere near this long; a gateway that hangs must not hang the tests.
const PATIENCE: Duration = Duration::from_secs(25);
/// How long a gateway may take to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(8);

/// The whole of a test, within reason.
pub(crate) async fn within<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, test).await.expect("everything is answered in time")
}

/// When a token is to expire.
pub(crate) fn in_an_hour() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() + 3600
}

/// A number for everything in this process that must not meet another.
pub(crate) fn number() -> u64 {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

/// A directory that nobody else uses; it goes with this value.
#[derive(Debug)]
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        let name = format!("gateway-{}-{}", std::process::id(), number());
        Self(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // It may never have been made; one that stays harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Where a gateway listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    pub(crate) amqp: SocketAddr,
    pub(crate) mqtt: SocketAddr,
    pub(crate) coap: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) admin: SocketAddr,
}

impl From<Listening> for Ports {
    fn from(listening: Listening) -> Self {
        let Listening { amqp, mqtt, coap, http, admin } = listening;
        Self { amqp: amqp[0], mqtt: mqtt[0], coap: coap[0], http: http[0], admin: admin[0] }
    }
}

/// A gateway that runs.
pub(crate) struct Gateway {
    pub(crate) ports: Ports,
    /// Where AMQP devices connect: `ports.amqp`, then the listeners in their order.
    pub(crate) amqp: Vec<SocketAddr>,
    /// The same of MQTT devices.
    pub(crate) mqtt: Vec<SocketAddr>,
    pub(crate) health: Arc<Health>,
    pub(crate) state: Arc<Directory>,
    pub(crate) trigger: Trigger,
    /// Closed when the thread is about to end.
    ended: mpsc::Receiver<()>,
    ended_too: oneshot::Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

/// The settings of one gateway, as lines of its sections.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lines<'a> {
    pub(crate) runtime: &'a str,
    pub(crate) amqp: &'a str,
    pub(crate) mqtt: &'a str,
    pub(crate) coap: &'a str,
    pub(crate) http: &'a str,
    pub(crate) hub: &'a str,
    pub(crate) upstream: &'a str,
    /// Sections that there may be several of.
    pub(crate) more: &'a str,
}

impl Lines<'_> {
    /// Nothing but what every test has.
    pub(crate) const NONE: Self =
        Self { runtime: "", amqp: "", mqtt: "", coap: "", http: "", hub: "", upstream: "", more: "" };
}

impl Gateway {
    /// With the embedded hub; waits until devices can be served.
    pub(crate) async fn embedded(lines: Lines<'_>) -> Self {
        let gateway = Self::start(lines).await;
        gateway.health.ready().await;
        gateway
    }

    /// With the test's hub; waits until devices can be served.
    pub(crate) async fn scripted(hub: &Hub, lines: Lines<'_>) -> Self {
        let gateway = Self::away(hub, lines).await;
        gateway.health.ready().await;
        gateway
    }

    /// With the test's hub, which need not be there.
    pub(crate) async fn away(hub: &Hub, lines: Lines<'_>) -> Self {
        let upstream = format!("{}\n{}", hub.settings(), lines.upstream);
        Self::start(Lines { upstream: &upstream, ..lines }).await
    }

    /// With a hub of the lines' own, which need not be there.
    pub(crate) async fn routing(lines: Lines<'_>) -> Self {
        Self::start(lines).await
    }

    /// With the test's hub, which need not be there, and the state that another gateway has left.
    pub(crate) async fn after(state: &Arc<Directory>, hub: &Hub, lines: Lines<'_>) -> Self {
        let upstream = format!("{}\n{}", hub.settings(), lines.upstream);
        Self::start_in(Arc::clone(state), Lines { upstream: &upstream, ..lines }).await
    }

    async fn start(lines: Lines<'_>) -> Self {
        Self::start_in(Arc::new(Directory::new()), lines).await
    }

    async fn start_in(state: Arc<Directory>, lines: Lines<'_>) -> Self {
        let directory = state.path();
        let Lines { runtime, amqp, mqtt, coap, http, hub, upstream, more } = lines;
        let workers = if runtime.contains("workers") { "" } else { "workers = 1" };
        let free = "listen = [\"127.0.0.1:0\"]";
        let text = format!(
            "[runtime]\n{workers}\n{runtime}\n[state]\ndirectory = {directory:?}\n\
             [amqp]\n{free}\n{amqp}\n[mqtt]\n{free}\n{mqtt}\n[coap]\n{free}\n{coap}\n[http]\n{free}\n{http}\n\
             [admin]\n{free}\n[hub]\n{free}\nfeedback_delay = \"20ms\"\npartitions = 1\n{hub}\n\
             [upstream]\nretry_max = \"1s\"\n{upstream}\n{more}\n"
        );
        let config = Config::parse("test", &text, None).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let (trigger, shutdown) = shutdown::channel();
        let (end, ended) = mpsc::channel();
        let (end_too, ended_too) = oneshot::channel();
        let (tell, started) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            // Dropped when this thread has nothing more to do, in whatever way.
            let _ends: (mpsc::Sender<()>, oneshot::Sender<()>) = (end, end_too);
            // An error means that the test has given up.
            app::run_and_tell(config, &shutdown, |started| drop(tell.send(started))).unwrap();
        });
        let Started { health, listening } = started.await.expect("the gateway starts");
        let (amqp, mqtt) = (listening.amqp.clone(), listening.mqtt.clone());
        Self {
            ports: listening.into(),
            amqp,
            mqtt,
            health,
            state,
            trigger,
            ended,
            ended_too,
            thread: Some(thread),
        }
    }

    /// Asks until `/healthz` has this status; gives the answer.
    pub(crate) async fn until_health(&self, status: u16) -> String {
        loop {
            let answer = self.admin("/healthz").await;
            if answer.status == status {
                return answer.body;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// A page of the admin listener.
    pub(crate) async fn admin(&self, path: &str) -> super::requests::HttpAnswer {
        let mut client = Http::connect(self.ports.admin).await;
        client.write(format!("GET {path} HTTP/1.1\r\nHost: admin\r\n\r\n").as_bytes()).await;
        client.answer().await
    }

    /// The value of a metric, by its name and labels as they are printed; 0 if there is none yet.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let text = self.admin("/metrics").await.body;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().unwrap())
    }

    /// Waits until the spool holds so many messages; gives what the tool says then. A metric is that of all gateways of
    /// this process; the tool asks one.
    pub(crate) async fn until_spooled(&self, records: u64) -> serde_json::Value {
        loop {
            let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_fieldgate"));
            command.args(["spool", "status", "--json", "--state-dir"]).arg(self.state.path());
            let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
            assert!(output.status.success(), "{output:?}");
            let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            if status["records"] == records {
                return status;
            }
        }
    }

    pub(crate) async fn mqtt(&self, version: Version, id: &str) -> Mqtt {
        Mqtt::connect(self.ports.mqtt, version, id).await
    }

    pub(crate) async fn coap(&self) -> Coap {
        Coap::connect(self.ports.coap).await
    }

    pub(crate) async fn http(&self) -> Http {
        Http::connect(self.ports.http).await
    }
}

impl Gateway {
    /// Asks for the stop and waits for it while devices of this test go on talking.
    pub(crate) async fn stop(mut self) {
        self.trigger.drain();
        // An error is how it ends: nothing is sent.
        let _ = (&mut self.ended_too).await;
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.trigger.drain();
        let in_time = self.ended.recv_timeout(STOP_PATIENCE) == Err(mpsc::RecvTimeoutError::Disconnected);
        self.trigger.abort();
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            assert!(in_time, "the gateway stops in time");
            ended.expect("the gateway ends without an error");
        }
    }
}
