//! One site: a gateway, the hub behind a line that can be cut, and devices; and the judgement at the end.

use std::cell::RefCell;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_local};

use super::Result;
use super::cutter::{How, Line};
use super::device::{Device, Nature, Orders, Speaks};
use super::gateway::{Gateway, Setup};
use super::laws::Law;
use super::ledger::{Kind, Ledger, Shared};
use super::options::Options;
use super::payload::BYTES;
use super::rng::Rng;
use super::sink::{Manner, Sink};

/// How long the end of a run may take: everything acknowledged, and everything at the hub.
const PATIENCE: Duration = Duration::from_secs(90);

/// And where it is to come to no end, because what is waited for was taken away on purpose.
const PATIENCE_WITH_SABOTAGE: Duration = Duration::from_secs(15);

/// What a scenario wants.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) devices: usize,
    /// Messages a second, of all devices.
    pub(crate) rate: f64,
    /// Messages of one MQTT device that may be without an answer.
    pub(crate) window: usize,
    /// Of each message.
    pub(crate) bytes: usize,
    pub(crate) manner: Manner,
    /// Lines of `[upstream]` besides where the hub is.
    pub(crate) upstream: String,
    /// Sections of the configuration.
    pub(crate) sections: String,
    /// A connection string for `[upstream]`, with the hub's port in the place of `PORT`.
    pub(crate) connection_string: Option<String>,
    pub(crate) environment: Vec<(String, String)>,
    /// Where the gateway's state is, unless it is with the rest.
    pub(crate) state: Option<PathBuf>,
}

impl Plan {
    pub(crate) fn new(devices: usize, rate: f64) -> Self {
        Self {
            devices,
            rate,
            window: 8,
            bytes: BYTES,
            manner: Manner {
                thought: Duration::from_millis(5),
                pace: Duration::ZERO,
                keys: None,
                sabotage: None,
            },
            upstream: String::new(),
            sections: String::new(),
            connection_string: None,
            environment: Vec::new(),
            state: None,
        }
    }
}

/// A site that runs.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) gateway: Gateway,
    pub(crate) sink: Sink,
    pub(crate) ledger: Shared,
    pub(crate) rng: Rng,
    pub(crate) kinds: Vec<Kind>,
    patience: Duration,
    orders: watch::Sender<Orders>,
    devices: Vec<JoinHandle<()>>,
    begun: Instant,
    events: RefCell<File>,
}

impl Site {
    /// Everything is there, and the gateway does not run yet.
    pub(crate) fn new(options: &Options, directory: &Path, plan: &Plan) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        let mut rng = Rng::new(options.seed);
        let kinds = options.kinds.clone();
        let natures = natures(plan, &kinds);
        let of_each: Vec<Kind> = natures.iter().map(|nature| nature.kind).collect();
        let ledger = Shared::new(&of_each);
        let manner = Manner { sabotage: options.sabotage, ..plan.manner.clone() };
        let sink = Sink::start(&directory.join("hub"), ledger.clone(), manner)?;
        let (port, ca_file) = (sink.port, &sink.ca_file);
        let hub = match &plan.connection_string {
            Some(text) => {
                let file = directory.join("hub.secret");
                secret(&file, &text.replace("PORT", &port.to_string()))?;
                format!("connection_string_file = {file:?}\nca_file = {ca_file:?}")
            }
            None => format!("url = \"amqps://localhost:{port}\"\nca_file = {ca_file:?}"),
        };
        let setup = Setup {
            binary: options.binary.clone(),
            directory: directory.into(),
            state: plan.state.clone().unwrap_or_else(|| directory.join("state")),
            kinds: kinds.iter().map(|kind| (*kind, delivery(*kind))).collect(),
            upstream: format!("{hub}\n{}", plan.upstream),
            sections: plan.sections.clone(),
            environment: plan.environment.clone(),
        };
        let gateway = Gateway::new(setup)?;
        let (orders, receiver) = watch::channel(Orders { make: true, close: false });
        let devices = natures
            .into_iter()
            .map(|nature| {
                let own = Rng::new(rng.next());
                let device = Device::new(nature, gateway.ports, ledger.clone(), receiver.clone(), own);
                spawn_local(device.run(gateway.life()))
            })
            .collect();
        let events = RefCell::new(File::create(directory.join("events.log"))?);
        let begun = Instant::now();
        let patience = if options.sabotage.is_some() { PATIENCE_WITH_SABOTAGE } else { PATIENCE };
        Ok(Self { gateway, sink, ledger, rng, kinds, patience, orders, devices, begun, events })
    }

    /// Notes what is done to the site, for whoever looks for the cause of something.
    pub(crate) fn note(&self, what: std::fmt::Arguments<'_>) {
        let at = self.begun.elapsed().as_secs_f64();
        // Without its notes the run is judged all the same.
        let _ = writeln!(self.events.borrow_mut(), "{at:10.3} {what}");
    }

    pub(crate) fn cut(&self, line: Line) {
        self.note(format_args!("line: {line:?}"));
        self.sink.line(line);
    }

    /// Ends the gateway's life at once. What it sent is read when this returns.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.gateway.kill()?;
        self.note(format_args!("killed"));
        self.sink.hung_up().await
    }

    /// One of the ways in which the line is cut.
    pub(crate) fn any_cut(&mut self) -> How {
        *self.rng.pick(&[How::Reset, How::Close, How::Silence])
    }

    pub(crate) fn broken(&self, law: Law, case: String) {
        self.ledger.lock().broken.add(law, || case);
    }

    /// Notes a broken law unless this holds.
    pub(crate) fn demand(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.broken(Law::Scenario, what());
        }
    }

    /// Waits until the ledger says so; that it does not, in time, is a law broken.
    pub(crate) async fn until(&self, what: &str, is_it: impl Fn(&Ledger) -> bool) -> bool {
        let in_time = tokio::select! {
            in_time = self.ledger.until(self.patience, is_it) => in_time,
            // Whoever kills it next hears how it ended.
            () = self.gateway.ended() => false,
        };
        self.demand(in_time, || {
            let ledger = self.ledger.lock();
            format!(
                "waited in vain until {what} (at most {} s): {} not acknowledged, {} not at the hub",
                self.patience.as_secs(),
                ledger.open(),
                ledger.missing()
            )
        });
        in_time
    }

    /// New messages are made, or not.
    pub(crate) fn make(&self, make: bool) {
        self.note(format_args!("devices make new messages: {make}"));
        self.orders.send_modify(|orders| orders.make = make);
    }

    /// Lets everything come to its end, with the hub there, and judges the run. The gateway runs.
    pub(crate) async fn finish(&mut self) -> Result<()> {
        self.make(false);
        self.cut(None);
        let all = self.until("everything is acknowledged", |it| it.open() == 0).await;
        if all {
            self.until("everything acknowledged is at the hub", |it| it.missing() == 0).await;
        }
        self.note(format_args!("the end"));
        self.orders.send_modify(|orders| orders.close = true);
        for device in self.devices.drain(..) {
            // A device's panic ends the program.
            device.await?;
        }
        if let Err(error) = self.gateway.stop().await {
            self.broken(Law::Scenario, error.to_string());
        }
        for complaint in self.gateway.complaints() {
            self.broken(Law::Scenario, complaint);
        }
        let mut ledger = self.ledger.lock();
        ledger.close();
        let kinds = self.kinds.iter().map(|kind| (*kind, ledger.acknowledged(*kind))).collect::<Vec<_>>();
        for (kind, acknowledged) in kinds {
            if acknowledged == 0 {
                ledger.broken.add(Law::Scenario, || {
                    format!("nothing {kind:?} was acknowledged: the run shows nothing")
                });
            }
        }
        Ok(())
    }
}

/// Devices of every kind over every protocol.
fn natures(plan: &Plan, kinds: &[Kind]) -> Vec<Nature> {
    let protocols = [Speaks::Mqtt311, Speaks::Coap, Speaks::Mqtt5, Speaks::Http];
    let pace = Duration::from_secs_f64(plan.devices as f64 / plan.rate);
    (0..plan.devices)
        .map(|number| {
            let speaks = protocols[number % protocols.len()];
            let window = match speaks {
                Speaks::Mqtt311 | Speaks::Mqtt5 => plan.window,
                Speaks::Coap | Speaks::Http => 1,
            };
            let kind = kinds[number / protocols.len() % kinds.len()];
            Nature { number: number as u32, kind, speaks, pace, window, bytes: plan.bytes }
        })
        .collect()
}

/// The lines of a rule that make it of this kind.
fn delivery(kind: Kind) -> String {
    match kind {
        Kind::Direct => String::new(),
        Kind::OnStore => "delivery.ack = \"on-store\"".into(),
        Kind::WhenOffline => {
            "delivery.when_offline = { max_bytes = \"1GiB\", max_age = \"24h\", full = \"refuse-new\" }"
                .into()
        }
    }
}

/// A file that only its owner reads.
pub(crate) fn secret(path: &Path, text: &str) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}
