//! The gateway: the real program in a process of its own, which lives as often as a scenario wants.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use super::Result;
use super::ledger::Kind;
use super::rng::Rng;

/// How long a start may take, up to the moment at which it listens.
const START: Duration = Duration::from_secs(20);

/// How long a stop may take that it is asked for.
const STOP: Duration = Duration::from_secs(20);

/// What its log says once everything listens.
const STARTED: &str = "gateway started";

/// Ports are chosen below those that the system gives to outgoing connections.
const PORTS: (u64, u64) = (20_000, 32_000);

/// The gateway's life that devices can talk to, by its number; none between two lives.
pub(crate) type Life = Option<u64>;

/// Where devices find it, in each of its lives.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ports {
    pub(crate) mqtt: SocketAddr,
    pub(crate) coap: SocketAddr,
    pub(crate) http: SocketAddr,
    admin: SocketAddr,
}

impl Ports {
    /// Not of the seed: runs of one seed beside each other would want the same.
    fn free() -> Result<Self> {
        let mut rng = Rng::new(u64::from(std::process::id()));
        let mut port = || -> Result<SocketAddr> {
            for _ in 0..200 {
                let port = PORTS.0 + rng.below(PORTS.1 - PORTS.0);
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port as u16));
                if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
                    return Ok(address);
                }
            }
            Err("found no free port".into())
        };
        Ok(Self { mqtt: port()?, coap: port()?, http: port()?, admin: port()? })
    }
}

/// How the gateway is set up.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    pub(crate) binary: PathBuf,
    /// Of its configuration, its log and, unless told otherwise, its state.
    pub(crate) directory: PathBuf,
    pub(crate) state: PathBuf,
    /// Which rules there are, and the lines that make them so.
    pub(crate) kinds: Vec<(Kind, String)>,
    /// Lines of `[upstream]`.
    pub(crate) upstream: String,
    /// Whole sections.
    pub(crate) sections: String,
    /// What its environment has besides.
    pub(crate) environment: Vec<(String, String)>,
}

/// What was said that should not be said.
type Complaints = Arc<Mutex<Vec<String>>>;

/// The gateway over its lives.
#[derive(Debug)]
pub(crate) struct Gateway {
    setup: Setup,
    pub(crate) ports: Ports,
    config: PathBuf,
    process: Option<Process>,
    lives: u64,
    life: watch::Sender<Life>,
    complaints: Complaints,
}

#[derive(Debug)]
struct Process {
    child: Child,
    started: Option<oneshot::Receiver<()>>,
    reader: JoinHandle<()>,
    /// Closed when it has said its last.
    ended: watch::Receiver<()>,
}

impl Gateway {
    pub(crate) fn new(setup: Setup) -> Result<Self> {
        std::fs::create_dir_all(&setup.directory)?;
        let ports = Ports::free()?;
        let mappings = setup.directory.join("mappings.toml");
        std::fs::write(&mappings, rules(&setup))?;
        let config = setup.directory.join("gateway.toml");
        let Ports { mqtt, coap, http, admin } = ports;
        let text = format!(
            "[runtime]\nworkers = 2\ndrain = \"5s\"\n[amqp]\nlisten = []\n[mqtt]\nlisten = [\"{mqtt}\"]\n\
             [coap]\nlisten = [\"{coap}\"]\nanswer_time_out = \"5s\"\n\
             [http]\nlisten = [\"{http}\"]\nanswer_time_out = \"5s\"\n[admin]\nlisten = [\"{admin}\"]\n\
             [hub]\nenabled = false\n[mappings]\nfiles = [{mappings:?}]\n\
             [upstream]\nretry_max = \"1s\"\nidle_time_out = \"2s\"\n{}\n{}\n",
            setup.upstream, setup.sections
        );
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&config)?;
        file.write_all(text.as_bytes())?;
        let life = watch::Sender::new(None);
        Ok(Self { setup, ports, config, process: None, lives: 0, life, complaints: Complaints::default() })
    }

    pub(crate) fn life(&self) -> watch::Receiver<Life> {
        self.life.subscribe()
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.setup.directory.join("gateway.log")
    }

    /// Begins a life; nobody hears of it before [`started`](Self::started).
    pub(crate) fn spawn(&mut self) -> Result<()> {
        let mut child = Command::new(&self.setup.binary)
            .args(["run", "--config"])
            .arg(&self.config)
            .arg("--state-dir")
            .arg(&self.setup.state)
            .envs(self.setup.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", self.setup.binary.display()))?;
        self.lives += 1;
        let stderr = child.stderr.take().ok_or("the gateway has no standard error")?;
        let mut log = OpenOptions::new().append(true).create(true).open(self.log())?;
        writeln!(log, "--- life {}, process {}", self.lives, child.id())?;
        let (tell, started) = oneshot::channel();
        let complaints = Arc::clone(&self.complaints);
        let (end, ended) = watch::channel(());
        let reader = std::thread::spawn(move || {
            let _end = end;
            read(BufReader::new(stderr), log, tell, &complaints);
        });
        self.process = Some(Process { child, started: Some(started), reader, ended });
        Ok(())
    }

    /// Waits until it listens, and tells the devices.
    pub(crate) async fn started(&mut self) -> Result<()> {
        let process = self.process.as_mut().ok_or("the gateway was not spawned")?;
        if let Some(started) = &mut process.started {
            match tokio::time::timeout(START, started).await {
                Ok(Ok(())) => process.started = None,
                Ok(Err(_)) => return Err(format!("the gateway ended at its start\n{}", self.tail()).into()),
                Err(_) => return Err(format!("the gateway does not start\n{}", self.tail()).into()),
            }
        }
        self.life.send_replace(Some(self.lives));
        Ok(())
    }

    pub(crate) async fn start(&mut self) -> Result<()> {
        self.spawn()?;
        self.started().await
    }

    /// Waits until it ends by itself.
    pub(crate) async fn ended(&self) {
        match &self.process {
            // An error is how it is told.
            Some(process) => drop(process.ended.clone().changed().await),
            None => std::future::pending().await,
        }
    }

    /// Ends its life at once.
    pub(crate) fn kill(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        let before = process.child.try_wait()?;
        process.child.kill()?;
        process.child.wait()?;
        // Devices that find nobody there are told before anybody is there again.
        self.life.send_replace(None);
        // A panic of the reader leaves the log short, and nothing else.
        let _ = process.reader.join();
        match before {
            Some(status) => Err(format!("the gateway ended by itself, {status}\n{}", self.tail()).into()),
            None => Ok(()),
        }
    }

    /// Asks it to end, and waits until it has.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        let id = process.child.id().to_string();
        Command::new("/bin/sh").args(["-c", "kill -TERM \"$1\"", "sh", &id]).status()?;
        let reader = process.reader;
        // Its standard error ends with it.
        let ended = tokio::task::spawn_blocking(move || reader.join());
        let in_time = tokio::time::timeout(STOP, ended).await.is_ok();
        if !in_time {
            process.child.kill()?;
        }
        let status = process.child.wait()?;
        self.life.send_replace(None);
        match (in_time, status.success()) {
            (true, true) => Ok(()),
            (false, _) => Err(format!("the gateway does not stop\n{}", self.tail()).into()),
            (true, false) => Err(format!("the gateway stopped with {status}\n{}", self.tail()).into()),
        }
    }

    /// Memory that is resident now, in bytes.
    pub(crate) fn resident(&self) -> Option<u64> {
        let id = self.process.as_ref()?.child.id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
    }

    /// Panics, of which there are to be none.
    pub(crate) fn complaints(&self) -> Vec<String> {
        self.complaints.lock().map(|complaints| complaints.clone()).unwrap_or_default()
    }

    /// The last lines of its log, for a report.
    pub(crate) fn tail(&self) -> String {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // An error means that it has ended.
            let _ = process.child.kill().and_then(|()| process.child.wait());
        }
    }
}

/// Writes the log, tells of the start, and keeps what must not be there.
fn read(
    from: BufReader<impl std::io::Read>,
    mut log: File,
    tell: oneshot::Sender<()>,
    complaints: &Mutex<Vec<String>>,
) {
    let mut tell = Some(tell);
    for line in from.lines() {
        let Ok(line) = line else { return };
        // Without its log the gateway is judged all the same.
        let _ = writeln!(log, "{line}");
        if line.contains("ended by a panic")
            && let Ok(mut complaints) = complaints.lock()
        {
            complaints.push(line.clone());
        }
        if line.contains(STARTED)
            && let Some(tell) = tell.take()
        {
            // Whoever waited has given up.
            let _ = tell.send(());
        }
    }
}

/// The word of a kind in topics and paths.
pub(crate) fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Direct => "direct",
        Kind::OnStore => "stored",
        Kind::WhenOffline => "offline",
    }
}

/// A mapping file with a rule for each kind of device that there is.
fn rules(setup: &Setup) -> String {
    let mut text = String::from("version = 1\n");
    for (kind, delivery) in &setup.kinds {
        let word = word(*kind);
        text += &format!(
            "[[rule]]\nname = \"{word}\"\ndirection = \"uplink\"\nto.address = \"devices/{{device}}/messages/events\"\n\
             from.mqtt = \"{word}/{{device}}\"\nfrom.coap = \"POST /{word}/{{device}}\"\n\
             from.http = \"POST /{word}/{{device}}\"\n{delivery}\n"
        );
    }
    text
}
