//! The bench: an uplink, the hub at the other end of two streams, a clock that only the test moves, and the books.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fieldgate_amqp::connection::{ClientSecurity, Connection, ConnectionConfig};
use fieldgate_amqp::performative::ACCEPTED;
use fieldgate_mappings::address::{Address, DeviceId};
use fieldgate_mappings::delivery::{Ack, Delivery, NORMAL_PRIORITY, OnError};
use fieldgate_mappings::message::{Direction, Message};
use fieldgate_mappings::outcome::{Outcome, Rejection, Report, Verdict};

use crate::config::{Config, Connector, Profile};
use crate::devices::{Changes, Registry, SpeaksWith};
use crate::testing::{Random, Stream};
use crate::upstream::fleet::{Counts, Fleet, Line};
use crate::upstream::hubs::{Belongs, HubSettings, MappedHub, MappedHubs, OwnToken, Roster};
use crate::upstream::lanes::Priority;
use crate::upstream::pace::Pace;
use crate::upstream::target;
use crate::upstream::uplink::{Kind, Notice, Uplink};
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

    fn is_wanted(&self, ticket: u64, _: bool) -> bool {
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
    pub(super) profile: Profile,
    pub(super) max_links: usize,
    pub(super) devices_per_connection: usize,
    pub(super) max_connections: usize,
    pub(super) per_second: Option<NonZeroU32>,
    /// Where devices belong, where not to the first hub by its policy.
    pub(super) roster: Roll,
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
            profile: Profile::AzureIotHub,
            max_links: 200,
            devices_per_connection: 500,
            max_connections: 1,
            per_second: None,
            roster: Roll::default(),
        }
    }
}

/// A roster that a test can change.
#[derive(Clone, Debug, Default)]
pub(super) struct Roll(Arc<Mutex<HashMap<String, Option<Belongs>>>>);

impl Roll {
    pub(super) fn set(&self, device: &str, hub: Option<&str>, speaks: SpeaksWith) {
        let belongs = Belongs { hub: hub.map(Arc::from), speaks };
        self.0.lock().expect("no panic").insert(device.to_owned(), Some(belongs));
    }

    pub(super) fn disable(&self, device: &str) {
        self.0.lock().expect("no panic").insert(device.to_owned(), None);
    }
}

impl Roster for Roll {
    fn belongs(&self, device: &DeviceId) -> Option<Belongs> {
        self.0
            .lock()
            .expect("no panic")
            .get(device.as_str())
            .cloned()
            .unwrap_or_else(|| Some(Belongs::default()))
    }

    fn changes(&self) -> Changes {
        Registry::empty().changes()
    }
}

/// One connection to one of the hubs.
pub(super) struct End {
    pub(super) line: Line,
    /// While it is connected.
    pub(super) hub: Option<Hub>,
    /// Whether the driver has said that it is ready.
    pub(super) ready: bool,
    up: Stream,
    down: Stream,
}

pub(super) struct Bench {
    pub(super) now: Instant,
    pub(super) fleet: Fleet,
    pub(super) ends: Vec<End>,
    /// Whether whoever wants a connection gets one.
    reachable: bool,
    /// Hubs that do not listen: bytes for them stay under way.
    pub(super) deaf: bool,
    pub(super) setup: Setup,
    pub(super) records: Records,
    pub(super) ledger: Rc<Ledger>,
    /// Why connections were lost.
    pub(super) losses: Vec<String>,
    pub(super) sent: u64,
    /// The seconds that the wall clock is ahead.
    pub(super) ahead: u64,
    started: Instant,
}

pub(super) const TOKEN_LIFE: Duration = Duration::from_secs(1000);
/// The time when a bench starts.
pub(super) const START: u64 = 1_800_000_000;
/// A device's session is ended that was idle for so long.
pub(super) const IDLE: Duration = Duration::from_secs(300);

const CONFIG: &str = "[[connector]]\nname = \"a\"\nhost = \"127.0.0.1\"\nhub_name = \"hub-a.example\"\n\
    [[connector]]\nname = \"b\"\nhost = \"127.0.0.1\"\nhub_name = \"hub-b.example\"\n";

impl Bench {
    /// Gateway and hubs, not connected.
    pub(super) fn apart(setup: Setup) -> Self {
        let config = Config::parse("test.toml", CONFIG, None).expect("two connectors");
        let hub = |(at, connector): (usize, &Connector)| MappedHub {
            hub: Arc::new(target::Hub::for_connector(connector, &config, None).expect("plain text")),
            settings: HubSettings {
                name: if at == 0 { "upstream".into() } else { "b".into() },
                profile: setup.profile,
                address_prefix: "".into(),
                max_links: setup.max_links,
                devices_per_connection: setup.devices_per_connection,
                max_connections: setup.max_connections,
                max_in_flight: setup.max_in_flight,
                idle: IDLE,
                token_ttl: TOKEN_LIFE,
                at_start: at == 0,
                idle_time_out: Duration::from_secs(120),
                connect_time_out: Duration::from_secs(10),
                retry_max: Duration::from_secs(30),
                pace: None,
            },
        };
        let now = Instant::now();
        let mut hubs: Vec<MappedHub> = config.connectors.iter().enumerate().map(hub).collect();
        hubs[0].settings.pace = setup.per_second.map(|rate| Arc::new(Pace::new(rate, now)));
        let hubs = Arc::new(MappedHubs { hubs, roster: Arc::new(setup.roster.clone()) });
        let mut fleet = Fleet::new(&hubs, now, START, 1);
        fleet.start();
        let mut bench = Self {
            now,
            fleet,
            ends: Vec::new(),
            reachable: false,
            deaf: false,
            setup,
            records: Records::default(),
            ledger: Rc::default(),
            losses: Vec::new(),
            sent: 0,
            ahead: 0,
            started: now,
        };
        bench.make_wanted();
        bench
    }

    /// Gateway and hub, connected and ready.
    pub(super) fn ready(setup: Setup) -> Self {
        let mut bench = Self::apart(setup);
        bench.connect();
        bench.run();
        assert!(bench.is_ready());
        bench
    }

    pub(super) fn is_ready(&self) -> bool {
        self.ends.iter().any(|end| end.ready)
    }

    pub(super) fn is_connected(&self) -> bool {
        self.ends.iter().any(|end| end.hub.is_some())
    }

    fn make_wanted(&mut self) -> bool {
        let wanted = self.fleet.take_wanted();
        let any = !wanted.is_empty();
        for line in wanted {
            let end = End { line, hub: None, ready: false, up: Stream::default(), down: Stream::default() };
            self.ends.push(end);
            if self.reachable {
                self.connect_end(self.ends.len() - 1);
            }
        }
        any
    }

    fn connect_end(&mut self, at: usize) {
        let unix = self.unix();
        let end = &mut self.ends[at];
        let config = Arc::new(self.setup.gateway.clone());
        let open = config.open();
        let machine = Connection::client(config, ClientSecurity::Anonymous, open, self.now);
        self.fleet.drive(end.line, self.now, |uplink| uplink.connected(machine));
        self.fleet.note_connection(self.now, unix);
        end.hub = Some(Hub::new(&self.setup.hub, self.now));
        (end.up, end.down, end.ready) = Default::default();
    }

    /// Makes all connections that are wanted, and from now on each that will be.
    pub(super) fn connect(&mut self) {
        self.reachable = true;
        for at in 0..self.ends.len() {
            if self.ends[at].hub.is_none() {
                self.connect_end(at);
            }
        }
    }

    /// All connections break; bytes under way are gone.
    pub(super) fn disconnect(&mut self) {
        self.reachable = false;
        for at in (0..self.ends.len()).rev() {
            self.disconnect_end(at);
        }
    }

    /// One of the connections breaks.
    pub(super) fn disconnect_end(&mut self, at: usize) {
        let line = self.ends[at].line;
        self.fleet.drive(line, self.now, Uplink::lost);
        self.ends[at].hub = None;
        self.ends[at].ready = false;
        if self.fleet.uplink(line).is_none_or(|uplink| uplink.is_closing()) {
            self.fleet.ended(line);
            self.ends.remove(at);
        }
    }

    /// Moves a piece of the bytes each way, and lets both ends handle what they have. False when all is quiet.
    pub(super) fn step(&mut self, mut pieces: impl FnMut() -> usize) -> bool {
        let mut moved = self.make_wanted();
        for at in 0..self.ends.len() {
            // A connection that is lost is out of the list.
            let Some(end) = self.ends.get_mut(at) else { break };
            let Some(hub) = &mut end.hub else { continue };
            let Some(machine) = self.fleet.uplink(end.line).and_then(|uplink| uplink.connection.as_mut())
            else {
                continue;
            };
            end.up.take(machine);
            end.down.take(&mut hub.machine);
            moved |= end.down.give(machine, self.now, pieces());
            if !self.deaf {
                moved |= end.up.give(&mut hub.machine, self.now, pieces());
                moved |= hub.run(&self.setup.script, &mut self.records);
            }
            let (line, now) = (end.line, self.now);
            while self.fleet.drive(line, now, |uplink| uplink.handle_event(now)) == Some(true) {}
            moved |= self.notices(line);
        }
        moved
    }

    /// Does what the driver does with notices.
    fn notices(&mut self, line: Line) -> bool {
        let now = self.now;
        let Some(uplink) = self.fleet.uplink(line) else { return false };
        let (kind, notices) = (uplink.kind, uplink.take_notices());
        let any = !notices.is_empty();
        for notice in notices {
            let Some(at) = self.ends.iter().position(|end| end.line == line) else { break };
            match notice {
                Notice::Opened | Notice::TokenDue if self.setup.token && kind == Kind::Policy => {
                    let token = target::OwnToken {
                        name: String::from("hub"),
                        text: String::from("secret"),
                        renew_in: TOKEN_LIFE * 4 / 5,
                        life: TOKEN_LIFE,
                    };
                    self.fleet.drive(line, now, |uplink| uplink.authorise(token, now));
                    self.fleet.note_connection(now, self.unix());
                }
                Notice::Opened | Notice::TokenDue | Notice::Authorised => {
                    if !self.ends[at].ready {
                        self.ends[at].ready = true;
                        self.fleet.drive(line, now, |uplink| uplink.ready(now));
                    }
                }
                Notice::Lost(why) => {
                    self.losses.push(why);
                    self.disconnect_end(at);
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
        while let Some(due) = self.fleet.poll_timeout().filter(|due| *due <= end) {
            assert!(due > self.now, "a timer that does not move on");
            self.now = due;
            self.tick();
            self.run();
        }
        self.now = end;
        self.tick();
        self.run();
    }

    /// What time the gateway believes it is.
    fn unix(&self) -> u64 {
        START + self.ahead + (self.now - self.started).as_secs()
    }

    /// Tells the machine the time.
    pub(super) fn tick(&mut self) {
        self.fleet.handle_timeout(self.now, self.unix());
        let lines: Vec<Line> = self.ends.iter().map(|end| end.line).collect();
        for line in lines {
            self.notices(line);
        }
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
        self.send_urgent(device, kind, more, patience, NORMAL_PRIORITY)
    }

    /// The same, with a priority.
    pub(super) fn send_urgent(
        &mut self,
        device: &str,
        kind: &str,
        more: usize,
        patience: Patience,
        priority: Priority,
    ) -> u64 {
        let ticket = self.sent;
        self.sent += 1;
        let mut body = ticket.to_be_bytes().to_vec();
        body.resize(8 + more, 0);
        let mut message = Message::new(id(device), Direction::Uplink, node(device, kind), Bytes::from(body));
        let verdict = Verdict::new(Rc::clone(&self.ledger) as Rc<dyn Report>, ticket);
        let rule = Delivery {
            rule: "test".into(),
            ack: Ack::default(),
            priority,
            when_offline: None,
            on_error: OnError::default(),
        };
        message.delivery = (priority != NORMAL_PRIORITY).then(|| Arc::new(rule));
        self.fleet.send(&message, patience, verdict, self.now);
        ticket
    }

    /// A device waits for what the hub says to its token.
    pub(super) fn prove(&mut self, device: &str, token: OwnToken) -> u64 {
        let ticket = self.sent;
        self.sent += 1;
        let verdict = Verdict::new(Rc::clone(&self.ledger) as Rc<dyn Report>, ticket);
        self.fleet.prove(&id(device), token, verdict, self.now);
        ticket
    }

    pub(super) fn subscribe(&mut self, device: &str, credit: u32) -> (Rc<Inbox>, u64) {
        let inbox = Rc::new(Inbox::default());
        let sink = Rc::clone(&inbox) as Rc<dyn CommandSink>;
        let serial = self.fleet.subscribe(&id(device), node(device, "commands"), credit, sink, self.now);
        (inbox, serial)
    }

    /// The hubs accept all that they have and that follows from it.
    pub(super) fn accept_all(&mut self) {
        self.run();
        let pending = |end: &End| end.hub.as_ref().is_some_and(|hub| !hub.pending.is_empty());
        while self.ends.iter().any(pending) {
            for hub in self.ends.iter_mut().filter_map(|end| end.hub.as_mut()) {
                if !hub.pending.is_empty() {
                    hub.judge(0, Some(ACCEPTED), true);
                }
            }
            self.run();
        }
    }

    /// The tickets of messages that the hub has, oldest first.
    pub(super) fn received(&self) -> Vec<u64> {
        self.records.received.iter().map(|(_, ticket)| *ticket).collect()
    }

    /// The first hub that is connected.
    pub(super) fn hub(&mut self) -> &mut Hub {
        self.ends.iter_mut().find_map(|end| end.hub.as_mut()).expect("connected")
    }

    /// One of the hubs that are connected.
    pub(super) fn any_hub(&mut self, at: usize) -> Option<&mut Hub> {
        let connected = self.ends.iter().filter(|end| end.hub.is_some()).count();
        let mut hubs = self.ends.iter_mut().filter_map(|end| end.hub.as_mut());
        hubs.nth(at % connected.max(1))
    }

    /// The hub that has a message.
    pub(super) fn judge(&mut self, ticket: u64, state: &[u8]) {
        for hub in self.ends.iter_mut().filter_map(|end| end.hub.as_mut()) {
            if let Some(at) = hub.pending.iter().position(|pending| pending.ticket == ticket) {
                hub.judge(at, Some(state), true);
                return;
            }
        }
        panic!("no hub has message {ticket}");
    }

    /// The one connection's machine.
    pub(super) fn uplink(&mut self) -> &mut Uplink {
        let line = self.ends[0].line;
        self.fleet.uplink(line).expect("there")
    }

    /// How many connections are ready.
    pub(super) fn connections(&self) -> usize {
        self.ends.iter().filter(|end| end.ready).count()
    }

    pub(super) fn outcome(&self, ticket: u64) -> Option<Outcome> {
        self.ledger.get(ticket)
    }

    /// Nothing is under way, and nothing is kept that is not needed.
    pub(super) fn assert_empty(&self) {
        assert_eq!(self.ledger.len() as u64, self.sent, "a message without an outcome");
        assert_eq!(self.fleet.counts(), Counts::default());
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
