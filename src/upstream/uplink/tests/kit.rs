//! The bench: an uplink, the hub at the other end of two streams, a clock that only the test moves, and the books.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fieldgate_amqp::connection::{ClientSecurity, Connection, ConnectionConfig};
use fieldgate_amqp::performative::ACCEPTED;
use fieldgate_mappings::address::{Address, DeviceId};
use fieldgate_mappings::message::{Direction, Message};
use fieldgate_mappings::outcome::{Outcome, Rejection, Report, Verdict};

use crate::config::{Access, Target, Upstream};
use crate::testing::{Random, Stream};
use crate::upstream::target::OwnToken;
use crate::upstream::uplink::{Notice, Uplink};
use crate::upstream::{Command, CommandSink, Hears, Patience};

use super::hub::{Hub, Records, Script};

/// Who is told the outcomes.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    outcomes: RefCell<HashMap<u64, Outcome>>,
    unwanted: RefCell<HashSet<u64>>,
}

impl Report for Ledger {
    fn report(&self, ticket: u64, outcome: Outcome) {
        let former = self.outcomes.borrow_mut().insert(ticket, outcome);
        assert_eq!(former, None, "message {ticket} was reported twice");
    }

    fn is_wanted(&self, ticket: u64) -> bool {
        !self.unwanted.borrow().contains(&ticket)
    }
}

impl Ledger {
    pub(super) fn get(&self, ticket: u64) -> Option<Outcome> {
        self.outcomes.borrow().get(&ticket).cloned()
    }

    /// The device of this message is gone.
    pub(super) fn desert(&self, ticket: u64) {
        self.unwanted.borrow_mut().insert(ticket);
    }

    pub(super) fn len(&self) -> usize {
        self.outcomes.borrow().len()
    }
}

/// A device's subscription, as an adapter would keep it.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    pub(super) commands: RefCell<Vec<Command>>,
    pub(super) ended: RefCell<Vec<Option<Rejection>>>,
}

impl CommandSink for Inbox {
    fn command(&self, command: Command) {
        self.commands.borrow_mut().push(command);
    }

    fn ended(&self, refused: Option<Rejection>) {
        self.ended.borrow_mut().push(refused);
    }
}

/// What differs between benches.
pub(super) struct Setup {
    pub(super) max_in_flight: usize,
    /// Whether the gateway has to put a token.
    pub(super) token: bool,
    pub(super) gateway: ConnectionConfig,
    pub(super) hub: ConnectionConfig,
    pub(super) script: Script,
}

impl Default for Setup {
    fn default() -> Self {
        let config = ConnectionConfig {
            channel_max: 200,
            idle_time_out: None,
            container_id: String::from("test"),
            // The hub's window is a matter of frames here.
            incoming_window_bytes: 1 << 30,
            ..ConnectionConfig::default()
        };
        Self {
            max_in_flight: 1000,
            token: true,
            gateway: config.clone(),
            hub: config,
            script: Script::default(),
        }
    }
}

pub(super) struct Bench {
    pub(super) now: Instant,
    pub(super) uplink: Uplink,
    /// While there is a connection.
    pub(super) hub: Option<Hub>,
    /// A hub that does not listen: bytes for it stay under way.
    pub(super) deaf: bool,
    pub(super) setup: Setup,
    pub(super) records: Records,
    pub(super) ledger: Rc<Ledger>,
    /// Why connections were lost.
    pub(super) losses: Vec<String>,
    pub(super) sent: u64,
    /// Whether the driver has said that it is ready.
    ready: bool,
    up: Stream,
    down: Stream,
}

pub(super) const TOKEN_LIFE: Duration = Duration::from_secs(1000);

impl Bench {
    /// Gateway and hub, not connected.
    pub(super) fn apart(setup: Setup) -> Self {
        let config = Upstream {
            target: Target::Embedded,
            access: Access::default(),
            hold: Duration::from_secs(60),
            idle_time_out: Duration::from_secs(120),
            connect_time_out: Duration::from_secs(10),
            retry_max: Duration::from_secs(30),
            token_ttl: TOKEN_LIFE,
            max_in_flight: NonZeroUsize::new(setup.max_in_flight).expect("at least one"),
        };
        Self {
            now: Instant::now(),
            uplink: Uplink::new(&config),
            hub: None,
            deaf: false,
            setup,
            records: Records::default(),
            ledger: Rc::default(),
            losses: Vec::new(),
            sent: 0,
            ready: false,
            up: Stream::default(),
            down: Stream::default(),
        }
    }

    /// Gateway and hub, connected and ready.
    pub(super) fn ready(setup: Setup) -> Self {
        let mut bench = Self::apart(setup);
        bench.connect();
        bench.run();
        assert!(bench.ready);
        bench
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ready
    }

    /// Makes a connection.
    pub(super) fn connect(&mut self) {
        let config = Arc::new(self.setup.gateway.clone());
        let open = config.open();
        self.uplink.connected(Connection::client(config, ClientSecurity::Anonymous, open, self.now));
        self.hub = Some(Hub::new(&self.setup.hub, self.now));
        (self.up, self.down) = Default::default();
    }

    /// The connection breaks; bytes under way are gone.
    pub(super) fn disconnect(&mut self) {
        self.uplink.lost();
        self.hub = None;
        self.ready = false;
    }

    /// Moves a piece of the bytes each way, and lets both ends handle what they have. False when all is quiet.
    pub(super) fn step(&mut self, pieces: impl FnMut() -> usize) -> bool {
        let mut pieces = pieces;
        let (Some(hub), Some(machine)) = (&mut self.hub, &mut self.uplink.connection) else { return false };
        self.up.take(machine);
        self.down.take(&mut hub.machine);
        let mut moved = self.down.give(machine, self.now, pieces());
        if !self.deaf {
            moved |= self.up.give(&mut hub.machine, self.now, pieces());
            moved |= hub.run(&self.setup.script, &mut self.records);
        }
        self.uplink.handle_events(self.now);
        moved | self.notices()
    }

    /// Does what the driver does with notices.
    fn notices(&mut self) -> bool {
        let notices = self.uplink.take_notices();
        let any = !notices.is_empty();
        for notice in notices {
            match notice {
                Notice::Opened | Notice::TokenDue if self.setup.token => {
                    let token = OwnToken {
                        name: String::from("hub"),
                        text: String::from("secret"),
                        renew_in: TOKEN_LIFE * 4 / 5,
                    };
                    self.uplink.authorise(token, self.now);
                }
                Notice::Opened | Notice::TokenDue | Notice::Authorised => {
                    if !self.ready {
                        self.ready = true;
                        self.uplink.ready(self.now);
                    }
                }
                Notice::Lost(why) => {
                    self.losses.push(why);
                    self.disconnect();
                    break;
                }
            }
        }
        any
    }

    /// Runs until nothing more happens at this time.
    pub(super) fn run(&mut self) {
        while self.step(|| usize::MAX) {}
    }

    /// Lets time pass, with every timer going off when it should.
    pub(super) fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        self.run();
        while let Some(due) = self.uplink.poll_timeout().filter(|due| *due <= end) {
            assert!(due > self.now, "a timer that does not move on");
            self.now = due;
            self.tick();
            self.run();
        }
        self.now = end;
        self.tick();
        self.run();
    }

    /// Tells both machines the time.
    pub(super) fn tick(&mut self) {
        self.uplink.handle_timeout(self.now);
        self.notices();
    }

    /// Sends a message of a device, and gives its ticket.
    pub(super) fn send(&mut self, device: &str) -> u64 {
        self.send_with(device, "events", 0, self.patience(60, true))
    }

    pub(super) fn patience(&self, seconds: u64, through_outage: bool) -> Patience {
        Patience {
            until: self.now + Duration::from_secs(seconds),
            through_outage,
            in_order: false,
            hears: Hears::Everything,
        }
    }

    /// Sends a message with so many bytes behind its ticket.
    pub(super) fn send_with(&mut self, device: &str, kind: &str, more: usize, patience: Patience) -> u64 {
        let ticket = self.sent;
        self.sent += 1;
        let mut body = ticket.to_be_bytes().to_vec();
        body.resize(8 + more, 0);
        let message = Message::new(id(device), Direction::Uplink, node(device, kind), Bytes::from(body));
        let verdict = Verdict::new(Rc::clone(&self.ledger) as Rc<dyn Report>, ticket);
        self.uplink.send(&message, patience, verdict, self.now);
        ticket
    }

    pub(super) fn subscribe(&mut self, device: &str, credit: u32) -> (Rc<Inbox>, u64) {
        let inbox = Rc::new(Inbox::default());
        let sink = Rc::clone(&inbox) as Rc<dyn CommandSink>;
        let serial = self.uplink.subscribe(&id(device), node(device, "commands"), credit, sink, self.now);
        (inbox, serial)
    }

    /// The hub accepts all that it has and that follows from it.
    pub(super) fn accept_all(&mut self) {
        self.run();
        while self.hub.as_ref().is_some_and(|hub| !hub.pending.is_empty()) {
            self.hub().judge(0, Some(ACCEPTED), true);
            self.run();
        }
    }

    /// The tickets of messages that the hub has, oldest first.
    pub(super) fn received(&self) -> Vec<u64> {
        self.records.received.iter().map(|(_, ticket)| *ticket).collect()
    }

    /// The hub, which must be there.
    pub(super) fn hub(&mut self) -> &mut Hub {
        self.hub.as_mut().expect("connected")
    }

    pub(super) fn outcome(&self, ticket: u64) -> Option<Outcome> {
        self.ledger.get(ticket)
    }

    /// Nothing is under way, and nothing is kept that is not needed.
    pub(super) fn assert_empty(&self) {
        let uplink = &self.uplink;
        assert_eq!(self.ledger.len() as u64, self.sent, "a message without an outcome");
        assert_eq!((uplink.load.in_flight(), uplink.load.waiting_bytes()), (0, 0));
        assert_eq!((uplink.devices.len(), uplink.sessions.len(), uplink.links.len()), (0, 0, 0));
        assert_eq!((uplink.stalled.len(), uplink.crowded_out.len(), uplink.ending.len()), (0, 0, 0));
        assert_eq!(uplink.sweep_at, None);
    }
}

pub(super) fn id(device: &str) -> DeviceId {
    DeviceId::new(device).expect("a device's name")
}

pub(super) fn node(device: &str, kind: &str) -> Address {
    Address::parse(&format!("devices/{device}/messages/{kind}")).expect("an address")
}

/// A piece of a stream: mostly short, sometimes all that there is.
pub(super) fn piece(random: &mut Random) -> usize {
    match random.below(6) {
        0 => 0,
        1 => usize::MAX,
        2 => 1 + random.below(10),
        _ => 1 + random.below(2000),
    }
}
