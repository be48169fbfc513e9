//! An outage of the hub under load, and the account of it. Devices, hub and what stands between gateway and hub are all
//! here; the gateway is another process.
//!
//! It prints `HUB <port> <CA file>`, where the gateway finds its hub, reads a line with the gateway's port for AMQP
//! devices, and prints one line of JSON at the end. Exit status 0: every promise was kept:
//!
//! - no device is detached,
//! - what a device is told was accepted, the hub has accepted, whole and once,
//! - what has no outcome at the cut has one before the end of the outage: released, modified, or an acceptance that was
//!   on its way,
//! - nothing that is told released has come to the hub, not even in part,
//! - nobody has credit while the hub is away, and everybody can send again when it is back.

#![allow(missing_docs, reason = "a program, not an interface")]

#[path = "../../common/cutter.rs"]
mod cutter;
mod device;
#[path = "../../common/hub.rs"]
mod hub;
mod ledger;
#[path = "../../common/party.rs"]
mod party;
mod thinker;

use std::cell::RefCell;
use std::error::Error;
use std::io::{self, BufRead as _};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Parser;
use fieldgate::state::StateDir;
use fieldgate::tls;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

use self::cutter::{Cutter, How, Line};
use self::device::{Device, Orders, PACE};
use self::ledger::{Ledger, Verdict};
use self::thinker::Thinker;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How often the account is looked at while something is awaited.
const LOOK: Duration = Duration::from_millis(20);

/// How long anything may take that is not the outage itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// Takes the hub away from a gateway under load, and judges what its devices were told.
#[derive(Debug, Parser)]
struct Options {
    /// For certificates.
    #[arg(long)]
    directory: PathBuf,
    #[arg(long, default_value_t = 200)]
    devices: usize,
    /// Messages a second of all devices together.
    #[arg(long, default_value_t = 4000)]
    rate: u32,
    /// Seconds without the hub.
    #[arg(long, default_value_t = 60.0)]
    cut: f64,
    /// Seconds of load before each cut.
    #[arg(long, default_value_t = 3.0)]
    load: f64,
    /// How many times.
    #[arg(long, default_value_t = 1)]
    times: usize,
    #[arg(long, value_enum, default_value_t = How::Reset)]
    how: How,
}

/// A run under way.
struct Run {
    options: Options,
    ledger: Rc<RefCell<Ledger>>,
    orders: Rc<Orders>,
    line: watch::Sender<Line>,
}

impl Run {
    async fn whole(&self, gateway: u16) -> Result<Verdict> {
        let start = Instant::now();
        self.start_devices(gateway).await?;
        self.orders.send.set(true);
        self.until("all devices are attached", |it| it.attached_devices() == self.options.devices).await;
        self.until("all devices are heard", |it| it.all_working_since(start)).await;
        for _ in 0..self.options.times {
            sleep(Duration::from_secs_f64(self.options.load)).await;
            self.ledger.borrow_mut().cut(Instant::now());
            self.line.send(Some(self.options.how))?;
            sleep(Duration::from_secs_f64(self.options.cut)).await;
            let restored = Instant::now();
            self.ledger.borrow_mut().restored(restored);
            self.line.send(None)?;
            self.until("all devices work again", |it| it.all_working_since(restored)).await;
        }
        sleep(Duration::from_secs_f64(self.options.load)).await;
        self.orders.send.set(false);
        self.until("everything has its outcome", |it| it.open() == 0).await;
        let verdict = self.ledger.borrow().verdict();
        self.orders.close.set(true);
        sleep(2 * PACE).await;
        Ok(verdict)
    }

    async fn start_devices(&self, gateway: u16) -> Result<()> {
        let each = f64::from(self.options.rate) * PACE.as_secs_f64() / self.options.devices as f64;
        for number in 0..self.options.devices {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, gateway)).await?;
            stream.set_nodelay(true)?;
            let (ledger, orders) = (Rc::clone(&self.ledger), Rc::clone(&self.orders));
            spawn_local(async move {
                let mut device =
                    Device::new(number, each.round().max(1.0) as u32, Rc::clone(&ledger), Rc::clone(&orders));
                let machine = device.machine();
                let end = party::drive(stream, machine, &mut device).await;
                if !orders.close.get() {
                    ledger.borrow_mut().lost(number, format_args!("the connection is over: {end}"));
                }
            });
            // Their paces are spread over time.
            sleep(PACE / 100).await;
        }
        Ok(())
    }

    /// Waits until the account says so, in vain where it takes too long: the verdict tells what is missing.
    async fn until(&self, what: &str, is_it: impl Fn(&Ledger) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_it(&self.ledger.borrow()) {
            if Instant::now() > deadline || self.ledger.borrow().is_broken() {
                return say(io::stderr(), &format!("waited in vain until {what}"));
            }
            sleep(LOOK).await;
        }
    }
}

async fn run(options: Options) -> Result<bool> {
    let state = StateDir::locate(Some(&options.directory.join("outage-hub")))?;
    let locked = state.lock()?;
    let tls = TlsAcceptor::from(tls::server(locked.hub_identity("localhost")?)?);
    let ledger = Rc::new(RefCell::new(Ledger::new(options.devices)));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let (line, orders) = watch::channel(None);
    let cutter = Cutter::new(listener.local_addr()?, orders)?;
    say(io::stdout(), &format!("HUB {} {}", cutter.port, state.ca_file().display()));
    let noting = Rc::clone(&ledger);
    spawn_local(hub::serve(listener, tls, move || Thinker::new(Rc::clone(&noting))));
    spawn_local(async move {
        if let Err(error) = cutter.run().await {
            say(io::stderr(), &format!("the line to the hub: {error}"));
        }
    });
    let gateway = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line).map(|_| line)
    });
    let gateway = gateway.await??.trim().parse()?;
    let run = Run { options, ledger, orders: Rc::default(), line };
    let verdict = run.whole(gateway).await?;
    say(io::stdout(), &verdict.json());
    Ok(verdict.broken.is_empty())
}

fn say(mut out: impl io::Write, line: &str) {
    // Nothing is left to do if nobody listens.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn main() -> ExitCode {
    let options = Options::parse();
    let done = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(LocalSet::new().run_until(run(options))));
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(io::stderr(), &format!("outage: {error}"));
            ExitCode::FAILURE
        }
    }
}
