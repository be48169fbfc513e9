//! The thread: it takes what the workers hand in, and sends what the spool holds to the hub over a connection of its
//! own, so that live messages keep theirs.
//!
//! The log's writes block this thread, which is what groups messages: while one batch is synced the next one gathers.

use std::cell::RefCell;
use std::io;
use std::mem;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fieldgate_mappings::address::DeviceId;
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection, Report, Verdict};
use thiserror::Error;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::{JoinHandle, LocalSet};

use crate::config::{Config, SpoolConfig};
use crate::console::{Component, Health, Status};
use crate::output;
use crate::shutdown::Shutdown;
use crate::state::{StateDir, StateError};
use crate::store::{self, Files, FilesError};
use crate::telemetry::emit;
use crate::upstream::{Hears, MappedHubs, Patience, Upstream};

use super::handle::Shared;
use super::keeper::{Hubs, Keeper, KeeperError, Now, Sending, Settings};
use super::queues::Bounds;
use super::telemetry::MeantForAnother;
use super::{Spool, ask, dead::DeadBounds};

/// Messages of one device and priority that are in flight: what is sent again after one of them was not taken.
const WINDOW: usize = 64;
/// Bytes of all that is in flight. They may all lie in the connection's output.
const MAX_IN_FLIGHT_BYTES: u64 = 8 * 1024 * 1024;
/// Messages that are sent before somebody else has a turn.
const TURN: usize = 128;
/// How long a message may wait for the hub's credit. Too long does no harm: what waits blocks its own queue only.
const PATIENCE: Duration = Duration::from_secs(600);
/// How long what was stored for one hub waits when its device belongs to another: it is nobody else's, and may come back.
const ELSEWHERE: Duration = Duration::from_secs(30);
/// How long the hub may answer for what is in flight when the stop was asked for. What it has not answered for stays in
/// the log, and is sent again after the next start, marked.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// The spool's name in the state directory.
const DIRECTORY: &str = "spool";
/// Threads that look up the hub's name.
const MAX_RESOLVERS: usize = 1;

/// The spool cannot start.
#[derive(Debug, Error)]
pub enum SpoolError {
    /// The directory cannot be used.
    #[error("the spool cannot be used: {0}")]
    Files(#[from] FilesError),
    /// What is in it cannot be used.
    #[error("the spool in {directory} cannot be used: {what}")]
    Content {
        /// Where it is.
        directory: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// A tool that changes it would leave files behind that the gateway cannot open.
    #[error(
        "the spool in {directory} is that of user {owner}, and this is user {user}: run it as that one, for example with \
         `sudo -u '#{owner}'`"
    )]
    NotOurs {
        /// Where it is.
        directory: String,
        /// Whose it is.
        owner: u32,
        /// Who asks.
        user: u32,
    },
    /// The system refused a thread or a timer.
    #[error("the system refused what the spool needs: {0}")]
    System(#[from] io::Error),
    /// A bug.
    #[error("the spool failed; this is a bug, please report what the log says")]
    Panicked,
}

/// A spool that runs.
#[derive(Debug)]
pub(crate) struct Running {
    spool: Spool,
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<io::Result<()>>,
}

/// What the thread is made of.
pub(crate) struct Setup {
    /// The thread's number among those with a connection to the hub: behind the workers.
    pub(crate) index: usize,
    pub(crate) config: Arc<Config>,
    pub(crate) mapped: Arc<MappedHubs>,
    pub(crate) health: Arc<Health>,
    pub(crate) shutdown: Shutdown,
    /// Told when the thread ends, however it does.
    pub(crate) ended: Arc<Notify>,
}

/// Reads a directory's spool. It is held until the keeper is closed.
pub(super) fn open(directory: &Path, config: &SpoolConfig) -> Result<(Keeper<Files>, Spool), SpoolError> {
    let files = Files::open(directory)?;
    let settings = Settings {
        bounds: Bounds {
            max_bytes: config.message_bytes(),
            max_records: config.max_records.get(),
            device_max_bytes: config.device_max_bytes,
            device_max_records: config.device_max_records.get(),
            window: WINDOW,
            max_in_flight: config.max_in_flight.get(),
            max_in_flight_bytes: MAX_IN_FLIGHT_BYTES,
        },
        dead: DeadBounds {
            max_bytes: config.dead_letter_max_bytes,
            max_records: config.dead_letter_max_records.get(),
            max_age: config.dead_letter_max_age.as_secs(),
        },
        max_age: config.max_age,
        commit_delay: config.commit_delay,
    };
    let log = store::Settings::new(config.max_bytes);
    Keeper::open(files, log, settings, now()).map_err(|error: KeeperError| SpoolError::Content {
        directory: directory.display().to_string(),
        what: error.to_string(),
    })
}

impl Running {
    /// Opens the spool and starts its thread. What is in it is known to the handle when this returns.
    ///
    /// # Errors
    /// When the directory, or what is in it, cannot be used.
    pub(crate) fn start(directory: &Path, setup: Setup) -> Result<Self, SpoolError> {
        let (keeper, spool) = open(directory, &setup.config.spool)?;
        setup.health.set(Component::Spool, Status::Up);
        let (stop, stopped) = oneshot::channel();
        let shared = Arc::clone(spool.shared());
        let thread = thread::Builder::new().name("spool".into()).spawn(move || {
            let _last = Last { shared, ended: Arc::clone(&setup.ended) };
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .max_blocking_threads(MAX_RESOLVERS)
                .build()?;
            // Made inside, because it spawns its connection's task.
            LocalSet::new().block_on(&runtime, async { Service::new(keeper, &setup).run(stopped).await });
            Ok(())
        })?;
        Ok(Self { spool, stop, thread })
    }

    /// What the workers hold of it.
    pub(crate) fn spool(&self) -> &Spool {
        &self.spool
    }

    /// Ends the thread, when nobody hands in anything any more. All that was handed in has its answer.
    ///
    /// # Errors
    /// When it had failed.
    pub(crate) fn stop(self) -> Result<(), SpoolError> {
        // The thread may be gone: then it says why.
        let _ = self.stop.send(());
        self.thread.join().map_err(|_| SpoolError::Panicked)??;
        Ok(())
    }
}

/// A spool that no process runs, held by a tool.
pub(crate) struct Offline {
    keeper: Keeper<Files>,
}

impl Offline {
    /// Takes hold of a directory; nothing if there is no spool in it.
    ///
    /// # Errors
    /// When it cannot be used; a process that has it is named.
    pub(crate) fn open(directory: &Path, config: &SpoolConfig) -> Result<Option<Self>, SpoolError> {
        Self::open_as(rustix::process::geteuid().as_raw(), directory, config)
    }

    fn open_as(user: u32, directory: &Path, config: &SpoolConfig) -> Result<Option<Self>, SpoolError> {
        if !directory.try_exists()? {
            return Ok(None);
        }
        let owner = directory.metadata()?.uid();
        if owner != user {
            let directory = directory.display().to_string();
            return Err(SpoolError::NotOurs { directory, owner, user });
        }
        let (keeper, _) = open(directory, config)?;
        Ok(Some(Self { keeper }))
    }

    /// Answers.
    pub(crate) fn ask(&mut self, ask: &ask::Ask) -> ask::Answer {
        self.keeper.answer(ask, Hubs::Nobody, now())
    }

    /// Lets it go.
    pub(crate) fn close(self) {
        self.keeper.close(now());
    }
}

/// Whatever ends the thread, nobody waits for it.
struct Last {
    shared: Arc<Shared>,
    ended: Arc<Notify>,
}

impl Drop for Last {
    fn drop(&mut self) {
        self.shared.close();
        self.ended.notify_one();
    }
}

/// Both clocks, read anew: the wall's may have been set since.
fn now() -> Now {
    Now { at: Instant::now(), unix_ms: u64::try_from(output::unix_millis()).unwrap_or(0) }
}

/// Where the outcomes of what was sent gather.
#[derive(Default)]
struct Ledger {
    outcomes: RefCell<Vec<(u64, Outcome)>>,
    came: Notify,
}

impl Report for Ledger {
    fn report(&self, ticket: u64, outcome: Outcome) {
        self.outcomes.borrow_mut().push((ticket, outcome));
        self.came.notify_one();
    }
}

/// The thread's loop.
struct Service {
    keeper: Keeper<Files>,
    shared: Arc<Shared>,
    ledger: Rc<Ledger>,
    upstream: Upstream,
    connection: JoinHandle<()>,
    health: Arc<Health>,
    shutdown: Shutdown,
}

impl Service {
    fn new(keeper: Keeper<Files>, setup: &Setup) -> Self {
        // The workers' connections are theirs to tell of, and nobody asks about these.
        let health = Arc::new(Health::default());
        let (upstream, connection) =
            Upstream::start(setup.index, &setup.mapped, health, setup.shutdown.clone());
        Self {
            shared: Arc::clone(keeper.shared()),
            keeper,
            ledger: Rc::default(),
            upstream,
            connection,
            health: Arc::clone(&setup.health),
            shutdown: setup.shutdown.clone(),
        }
    }

    async fn run(mut self, stopped: oneshot::Receiver<()>) {
        let (stop, mut stopping) = watch::channel(false);
        tokio::task::spawn_local(async move {
            // An error means that whoever could stop it is gone.
            let _ = stopped.await;
            stop.send_replace(true);
        });
        while !*stopping.borrow() {
            let more = self.turn();
            if more {
                tokio::task::yield_now().await;
                continue;
            }
            let deadline = tokio::time::Instant::from_std(self.keeper.poll_timeout());
            tokio::select! {
                () = self.shared.came.notified() => {}
                () = self.ledger.came.notified() => {}
                () = self.upstream.changed() => {}
                () = tokio::time::sleep_until(deadline) => {}
                _ = stopping.changed() => {}
            }
        }
        self.finish().await;
    }

    /// Does all that can be done now. True if there is more.
    fn turn(&mut self) -> bool {
        self.take();
        self.report();
        for (hub, open) in self.upstream.hubs() {
            self.keeper.set_open(&hub, open);
        }
        let now = now();
        let more = self.keeper.handle_timeout(now);
        let sent_all = self.send();
        let status = match self.keeper.disk() {
            ask::Disk::Failing => Status::Down,
            ask::Disk::Good | ask::Disk::Full => Status::Up,
        };
        if self.health.get(Component::Spool) != status {
            self.health.set(Component::Spool, status);
        }
        more || !sent_all
    }

    fn take(&mut self) {
        let inbox = self.shared.take();
        let now = now();
        for (ask, answer) in self.keeper.take(inbox, now) {
            // Whoever asked may have gone.
            let hub_of = |device: &DeviceId| self.upstream.hub_of(device);
            let _ = answer.send(self.keeper.answer(&ask, Hubs::Of(&hub_of), now));
        }
    }

    fn report(&mut self) {
        let outcomes = mem::take(&mut *self.ledger.outcomes.borrow_mut());
        let now = now();
        for (flight, outcome) in outcomes {
            self.keeper.report(flight, outcome, now);
        }
    }

    /// Sends a turn's worth. True if that was all.
    fn send(&mut self) -> bool {
        let now = now();
        let until = now.at + PATIENCE;
        let patience = Patience { until, through_outage: false, in_order: true, hears: Hears::Nothing };
        for _ in 0..TURN {
            let Some(sending) = self.keeper.next(now) else { return true };
            let Sending { flight, device, hub, address, encoded } = sending;
            if self.upstream.hub_of(&device) != hub {
                emit(MeantForAnother { device: &device, hub: &hub });
                let later = Reason::Quota { retry_after: Some(ELSEWHERE) };
                let outcome = Outcome::Rejected(Rejection::new(later, "its device belongs to another hub"));
                self.keeper.report(flight, outcome, now);
                continue;
            }
            let verdict = Verdict::new(Rc::clone(&self.ledger) as Rc<dyn Report>, flight);
            self.upstream.send_encoded(&device, &address, encoded, patience, verdict);
        }
        false
    }

    /// Nothing more is sent. What is in flight may still be answered; what is not stays in the log.
    async fn finish(mut self) {
        self.health.set(Component::Spool, Status::Draining);
        self.take();
        self.upstream.close();
        tokio::select! {
            // An error is a panic, which is counted and logged where it happens.
            _ = &mut self.connection => {}
            () = self.shutdown.aborting() => {}
            () = tokio::time::sleep(STOP_GRACE) => {}
        }
        self.report();
        self.keeper.close(now());
    }
}

/// Where the spool of a configuration is.
///
/// # Errors
/// When nothing says where the state is.
pub(crate) fn directory(config: &Config) -> Result<PathBuf, StateError> {
    if let Some(directory) = &config.spool.directory {
        return Ok(directory.clone());
    }
    Ok(StateDir::locate(config.state.directory.as_deref())?.path().join(DIRECTORY))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::Scratch;

    #[test]
    fn only_its_owner_may_look_into_a_spool_that_no_gateway_has() {
        let scratch = Scratch::new();
        let directory = scratch.0.join("spool");
        std::fs::create_dir(&directory).unwrap();
        let config = Config::default().spool;
        let owner = directory.metadata().unwrap().uid();
        let Err(refused) = Offline::open_as(owner + 1, &directory, &config) else { panic!("it was opened") };
        let said = refused.to_string();
        assert!(said.contains(&format!("`sudo -u '#{owner}'`")), "{said}");
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0, "who is refused leaves nothing behind");
        Offline::open_as(owner, &directory, &config).unwrap().expect("there is a directory").close();
        assert!(std::fs::read_dir(&directory).unwrap().count() > 0);
    }
}
