//! Random lives of MQTT clients against a small model of the specification's session state (MQTT 3.1.1 3.1.2.4 and 4.1,
//! MQTT 5 4.1): clients connect, publish at all QoS, vanish in the middle, come back, take over from themselves and take
//! commands, while the hub answers late, refuses and gives back. Each side checks what it sees as it goes: [`device`] what
//! the gateway says, [`hub`] what it delivers; in the end the hub is friendly, and everything has to come to its end.
//!
//! The seed decides what is done and not how fast: a failure may take some runs to come back. `FIELDGATE_TEST_SEED` is the
//! seed of the first life, `FIELDGATE_TEST_LIVES` how many there are.

#[path = "mqtt_sessions/client.rs"]
mod client;
#[path = "mqtt_sessions/device.rs"]
mod device;
#[path = "mqtt_sessions/hub.rs"]
mod hub;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::panic;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::{JoinSet, LocalSet};

use self::device::Device;
use self::hub::Book;
use super::hub::Hub;
use super::rng::Rng;
use super::world::{Gateway, Lines};

/// Lives of an ordinary run: some seconds.
const LIVES: u64 = 8;
const DEVICES: usize = 4;
/// What each device does before it comes to rest.
const STEPS: usize = 150;
/// Nothing in a life takes anywhere near as long.
const PATIENCE: Duration = Duration::from_secs(15);
/// Lines of the log that are kept, and those of them that a failure tells.
const LOG_LINES: usize = 20_000;
const TOLD_LINES: usize = 120;
/// What has to have happened in an ordinary run, or the test tests nothing.
const HAPPENINGS: [&str; 14] = [
    "a session went on",
    "a session was over",
    "a clean start",
    "PUBLISH again",
    "PUBREL again",
    "PUBLISH of QoS 2 again that the hub had accepted",
    "taken over in MQTT 5",
    "taken over in MQTT 3.1.1",
    "gone in the middle of a packet",
    "gone without PUBREL",
    "refused by the hub",
    "given back by the hub",
    "a command again",
    "a command refused",
];

/// What the devices and the hub of one life share.
struct World {
    seed: u64,
    address: SocketAddr,
    workers: u32,
    /// Every client keeps to this many messages on their way, told or not.
    window: usize,
    book: RefCell<Book>,
    happened: RefCell<BTreeMap<&'static str, u32>>,
    log: RefCell<VecDeque<String>>,
    since: Instant,
    /// A failure was told; what else falls over is not.
    failed: Cell<bool>,
}

impl World {
    fn say(&self, who: &str, what: &str) {
        let mut log = self.log.borrow_mut();
        if log.len() == LOG_LINES {
            log.pop_front();
        }
        log.push_back(format!("{:>9} us  {who}  {what}", self.since.elapsed().as_micros()));
    }

    fn happened(&self, what: &'static str) {
        assert!(HAPPENINGS.contains(&what), "{what}");
        *self.happened.borrow_mut().entry(what).or_default() += 1;
    }

    /// Ends the test with what the device and the hub did last.
    fn fail(&self, device: &str, what: &str) -> ! {
        if self.failed.replace(true) {
            panic!("after a failure");
        }
        let log = self.log.borrow();
        let lines: Vec<&str> = log.iter().filter(|line| line.contains(device)).map(|line| &**line).collect();
        let told = &lines[lines.len().saturating_sub(TOLD_LINES)..];
        panic!("seed {}, {device}: {what}\n{}", self.seed, told.join("\n"));
    }
}

#[tokio::test]
async fn sessions_are_what_the_specification_says() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let first: u64 = number("FIELDGATE_TEST_SEED").unwrap_or(1);
    let lives = number("FIELDGATE_TEST_LIVES");
    let mut happened: BTreeMap<_, u32> = BTreeMap::new();
    for seed in first..first + lives.unwrap_or(LIVES) {
        for (what, times) in LocalSet::new().run_until(live(seed)).await {
            *happened.entry(what).or_default() += times;
        }
    }
    if lives.is_none() {
        let missing = HAPPENINGS.iter().filter(|what| !happened.contains_key(*what));
        assert_eq!(missing.collect::<Vec<_>>(), [&""; 0], "{happened:?}");
    }
}

/// One gateway, one hub, some devices; what happened, and how often.
async fn live(seed: u64) -> BTreeMap<&'static str, u32> {
    let mut rng = Rng::new(seed);
    let mut hub = Hub::start();
    // Few messages may wait at the hub, so that some wait in the gateway.
    hub.behave(|manner| manner.credit = *rng.pick(&[3, 1000]));
    let workers = *rng.pick(&[1, 2]);
    let window = *rng.pick(&[4, 100]);
    let lines = Lines {
        runtime: if workers == 1 { "workers = 1" } else { "workers = 2" },
        mqtt: &format!("publish_window = {window}"),
        upstream: "hold = \"50ms\"",
        ..Lines::NONE
    };
    let gateway = Gateway::scripted(&hub, lines).await;
    let world = Rc::new(World {
        seed,
        address: gateway.ports.mqtt,
        workers,
        window: window.min(8),
        book: RefCell::default(),
        happened: RefCell::default(),
        log: RefCell::default(),
        since: Instant::now(),
        failed: Cell::new(false),
    });
    let mut devices = JoinSet::new();
    for number in 0..DEVICES {
        let device = Device::new(number, Rc::clone(&world), Rng::new(rng.next()));
        devices.spawn_local(device.live());
    }
    let all = async {
        while let Some(ended) = devices.join_next().await {
            if let Err(error) = ended {
                panic::resume_unwind(error.into_panic());
            }
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, async {
        tokio::select! {
            () = all => {}
            () = hub::run(&mut hub, &world, Rng::new(rng.next())) => {}
        }
    });
    if in_time.await.is_err() {
        let waiting = world.book.borrow().waiting();
        world.fail(&waiting, "has not come to its end");
    }
    world.happened.take()
}
