//! The bench of shared connections: devices, one router, and hubs that come and go.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use fieldgate_amqp::codec::Value;
use fieldgate_amqp::connection::{
    ClientSecurity, Connection, ConnectionConfig, Event, LinkFlow, LinkId, SessionId, TransferOut,
};
use fieldgate_amqp::endpoint::SAS_TOKEN;
use fieldgate_amqp::message::{PropertiesOut, put_amqp_value, put_application_properties, put_properties};
use fieldgate_amqp::performative::{Attach, AttachOut, DispositionOut, Role, SourceOut, TargetOut};
use fieldgate_amqp::sasl::Mechanism;

use crate::router::access::{Hubs, Rules};
use crate::router::claims::{CbsNode, Reply, RequestKey};
use crate::router::ends::ConnectorSettings;
use crate::router::routes::{ConnectorIndex, LinkRoute, RouteMatch, Routes};
use crate::router::{Authorise, DeviceInfo, DeviceKey, Router, TrunkKey};
use crate::sas::{SharedKey, Signer, percent_encode};
use crate::testing::Stream;

use super::kit::Peer;

/// How long links are held, unless a test says otherwise.
pub(super) const HOLD: Duration = Duration::from_secs(60);
/// The time of the wall clock when a test begins.
pub(super) const UNIX: u64 = 1_800_000_000;

/// What a hub says to tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tokens {
    Accepts,
    Refuses,
    /// Says that it has no time.
    IsBusy,
    Ignores,
}

/// How hubs answer, now and after they have come back.
pub(super) struct Manners {
    pub(super) tokens: Tokens,
    /// Answers attaches.
    pub(super) answers: bool,
    /// Changes the answer to an attach.
    pub(super) answer: fn(AttachOut<'_>) -> Attach,
    /// The initial delivery-count of the hub's senders.
    pub(super) first_count: u32,
}

/// What a world is made of.
pub(super) struct Setup {
    pub(super) device: ConnectionConfig,
    pub(super) down: ConnectionConfig,
    pub(super) up: ConnectionConfig,
    pub(super) hub: ConnectionConfig,
    pub(super) hold: Duration,
    pub(super) devices_per_connection: usize,
    pub(super) max_connections: usize,
    pub(super) max_pending: usize,
    pub(super) authorise: Authorise,
}

impl Default for Setup {
    fn default() -> Self {
        let config = ConnectionConfig { idle_time_out: None, ..ConnectionConfig::default() };
        Self {
            device: config.clone(),
            down: config.clone(),
            up: config.clone(),
            hub: config,
            hold: HOLD,
            devices_per_connection: 500,
            max_connections: 10,
            max_pending: 1000,
            authorise: Authorise::Any,
        }
    }
}

/// A device at its end of the stream.
pub(super) struct Device {
    pub(super) peer: Peer,
    pub(super) key: DeviceKey,
    /// Takes nothing from its stream, and says nothing.
    pub(super) dead: bool,
    to_gateway: Stream,
    to_device: Stream,
}

/// A hub at its end of a connection.
pub(super) struct Hub {
    pub(super) peer: Peer,
    pub(super) key: TrunkKey,
    pub(super) connector: usize,
    /// All links of devices that were attached, with the attach.
    pub(super) links: Vec<(LinkId, SessionId, Attach)>,
    /// The names of the tokens that were put.
    pub(super) put: Vec<String>,
    /// Requests that were not answered.
    asked: Vec<RequestKey>,
    node: CbsNode,
    to_gateway: Stream,
    to_hub: Stream,
}

impl Hub {
    fn drain(&mut self, manners: &Manners) {
        while let Some(event) = self.peer.machine.poll_event() {
            let machine = &mut self.peer.machine;
            match &event {
                Event::Opened(_) => {
                    let open = machine.config().open();
                    machine.open(open);
                }
                Event::SessionBegun { session, by_peer: true, .. } => machine.accept_begin(*session),
                Event::Attached { link, session, attach, by_peer: true } => {
                    let source = attach.source();
                    let node = match attach.role() {
                        Role::Sender => attach.target(),
                        Role::Receiver => source.clone(),
                    };
                    if node.as_ref().and_then(|node| node.address().map(|it| it == "$cbs")) == Some(true) {
                        self.node.on_attach(machine, *link, *session, attach);
                        continue;
                    }
                    self.links.push((*link, *session, attach.clone()));
                    if manners.answers {
                        machine.answer_attach(*link, &answer(attach, manners));
                    }
                }
                Event::Flow { link: Some(link), flow, .. } if self.node.owns(*link) => {
                    self.node.on_flow(machine, *link, flow);
                    continue;
                }
                Event::Flow { link: None, .. } => self.node.send(machine),
                Event::Transfer { link, delivery_id, transfer, .. } if self.node.owns(*link) => {
                    if let Some(request) = self.node.on_transfer(machine, *link, *delivery_id, transfer) {
                        self.put.push(request.name.clone());
                        match manners.tokens {
                            Tokens::Accepts => {
                                self.node.answer(machine, request.key, &Reply::status(200, "OK"))
                            }
                            Tokens::Refuses => {
                                self.node.answer(machine, request.key, &Reply::status(401, "no"))
                            }
                            Tokens::IsBusy => {
                                self.node.answer(machine, request.key, &Reply::status(503, "later"))
                            }
                            Tokens::Ignores => self.asked.push(request.key),
                        }
                    }
                    continue;
                }
                Event::Disposition { session, disposition } => {
                    self.node.on_disposition(machine, *session, disposition);
                }
                Event::SessionEnded { session, .. } => self.node.on_session_ended(*session),
                Event::Detached { link, detach, answered: false, .. } if self.peer.answers => {
                    machine.detach(*link, detach.closed(), None);
                }
                _ => {}
            }
            self.peer.events.push(event);
        }
    }
}

fn answer(attach: &Attach, manners: &Manners) -> Attach {
    let (source, target) = (attach.source().expect("a source"), attach.target().expect("a target"));
    let answer = match attach.role() {
        Role::Sender => {
            AttachOut { max_message_size: Some(1000), ..AttachOut::receiver(attach.name(), &source, &target) }
        }
        Role::Receiver => AttachOut {
            initial_delivery_count: Some(manners.first_count),
            ..AttachOut::sender(attach.name(), &source, &target)
        },
    };
    (manners.answer)(answer)
}

/// Everything.
pub(super) struct World {
    pub(super) now: Instant,
    pub(super) unix: u64,
    pub(super) setup: Setup,
    pub(super) router: Router,
    pub(super) devices: Vec<Device>,
    pub(super) hubs: Vec<Hub>,
    pub(super) manners: Manners,
    /// Whether hubs can be reached.
    pub(super) is_up: bool,
    connecting: Vec<(TrunkKey, usize)>,
}

impl World {
    /// A router with two hubs, and no devices. Addresses under `other` lead to the second hub.
    pub(super) fn new(setup: Setup) -> Self {
        let connector = |name: &str| ConnectorSettings {
            name: name.into(),
            hold: setup.hold,
            patience: Duration::from_secs(30),
            devices_per_connection: setup.devices_per_connection,
            max_connections: setup.max_connections,
            max_pending: setup.max_pending,
            at_start: false,
        };
        let route = |text: &str, connector| LinkRoute {
            matches: RouteMatch::Prefix(text.into()),
            direction: None,
            connector: ConnectorIndex(connector),
        };
        let rules = Rules {
            routes: Routes::new([route("devices", 0), route("other", 1)]),
            hubs: Hubs::new([vec!["hub.example"], vec!["second.example"]]),
            registrar: None,
        };
        let router = Router::new(vec![connector("hub"), connector("second")], Arc::new(rules), UNIX);
        let manners = Manners {
            tokens: Tokens::Accepts,
            answers: true,
            answer: |attach| attach.build(),
            first_count: 0,
        };
        Self {
            now: Instant::now(),
            unix: UNIX,
            setup,
            router,
            devices: Vec::new(),
            hubs: Vec::new(),
            manners,
            is_up: true,
            connecting: Vec::new(),
        }
    }

    /// A world with so many devices, each with a session.
    pub(super) fn with(setup: Setup, devices: usize) -> Self {
        let mut world = Self::new(setup);
        for _ in 0..devices {
            world.add("device", None);
        }
        world
    }

    /// Adds a device with a container-id, and an identity if it has proved one. Gives its number.
    pub(super) fn add(&mut self, container: &str, identity: Option<&str>) -> usize {
        let info = DeviceInfo {
            container: container.into(),
            identity: identity.map(Into::into),
            dialled: None,
            authorise: self.setup.authorise,
            max_tokens: 8,
            max_unsettled: 1000,
            bound_to: None,
            peer: [127, 0, 0, 1].into(),
            own: None,
        };
        let config = self.setup.device.clone();
        let open = config.open();
        let mut device = Connection::client(Arc::new(config), ClientSecurity::Bare, open, self.now);
        let config = Arc::new(self.setup.down.clone());
        let mut machine = Connection::server(config, &[Mechanism::Anonymous], true, self.now);
        let (mut to_gateway, to_device) = (Stream::default(), Stream::default());
        to_gateway.take(&mut device);
        to_gateway.give(&mut machine, self.now, usize::MAX);
        assert!(matches!(machine.poll_event(), Some(Event::Opened(_))));
        let key = self.router.add_device(machine, info, self.now, self.unix);
        self.devices.push(Device { peer: Peer::new(device), key, dead: false, to_gateway, to_device });
        self.run();
        self.devices.len() - 1
    }

    /// Moves a piece of what is under way on each stream. False when all is quiet.
    pub(super) fn step(&mut self, mut piece: impl FnMut() -> usize) -> bool {
        let now = self.now;
        self.connect();
        let mut moved = false;
        let Self { router, devices, hubs, manners, .. } = self;
        for device in devices.iter_mut().filter(|device| !device.dead) {
            let hears = router.hears_device(device.key);
            let Some(seat) = router.device(device.key) else { continue };
            device.to_gateway.take(&mut device.peer.machine);
            device.to_device.take(&mut seat.machine);
            seat.wire_backlog = device.to_device.len();
            moved |= hears && device.to_gateway.give(&mut seat.machine, now, piece());
            moved |= device.to_device.give(&mut device.peer.machine, now, piece());
            seat.wire_backlog = device.to_device.len();
            router.handle_device(device.key, now);
            device.peer.drain();
        }
        for hub in hubs.iter_mut() {
            let Some(seat) = router.trunk(hub.key) else { continue };
            hub.to_gateway.take(&mut hub.peer.machine);
            hub.to_hub.take(&mut seat.machine);
            moved |= hub.to_gateway.give(&mut seat.machine, now, piece());
            moved |= hub.to_hub.give(&mut hub.peer.machine, now, piece());
            router.handle_trunk(hub.key, now);
            hub.drain(manners);
        }
        moved || self.closed()
    }

    /// Connections that are over are made again, while somebody wants them. True if there were any.
    fn closed(&mut self) -> bool {
        let is_over = |machine: &Connection| machine.is_closed() && machine.output_bytes() == 0;
        let over = |router: &mut Router, hub: &Hub| {
            router.trunk(hub.key).is_none_or(|seat| is_over(&seat.machine))
                || is_over(&hub.peer.machine) && hub.to_gateway.len() == 0
        };
        let Some(at) = (0..self.hubs.len()).find(|at| over(&mut self.router, &self.hubs[*at])) else {
            return false;
        };
        self.cut(at);
        true
    }

    fn connect(&mut self) {
        while let Some(wanted) = self.router.take_wanted() {
            self.connecting.push(wanted);
        }
        if !self.is_up {
            return;
        }
        for (key, connector) in std::mem::take(&mut self.connecting) {
            if !self.router.is_trunk_wanted(key) {
                continue;
            }
            let config = self.setup.up.clone();
            let open = config.open();
            let machine = Connection::client(Arc::new(config), ClientSecurity::Bare, open, self.now);
            self.router.trunk_connected(key, machine);
            let config = Arc::new(self.setup.hub.clone());
            let hub = Connection::server(config, &[Mechanism::Anonymous], true, self.now);
            self.hubs.push(Hub {
                peer: Peer::new(hub),
                key,
                connector,
                links: Vec::new(),
                put: Vec::new(),
                asked: Vec::new(),
                node: CbsNode::new(),
                to_gateway: Stream::default(),
                to_hub: Stream::default(),
            });
        }
    }

    /// Runs until nothing more happens.
    pub(super) fn run(&mut self) {
        while self.step(|| usize::MAX) {}
    }

    /// Lets time pass, a second at a time, as long as there is any.
    pub(super) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now = until.min(self.now + Duration::from_secs(1));
            self.unix += 1;
            self.router.handle_timeout(self.now, self.unix);
            self.run();
        }
    }

    /// The stream of a hub connection is over, at once: what was under way is lost. What the hub was told is given.
    pub(super) fn cut(&mut self, at: usize) -> Hub {
        let hub = self.hubs.remove(at);
        self.router.trunk_lost(hub.key, self.now, "cut");
        if self.router.is_trunk_wanted(hub.key) {
            self.connecting.push((hub.key, hub.connector));
        } else {
            self.router.remove_trunk(hub.key);
        }
        hub
    }

    /// All hubs are away from now on. Gives what they were told.
    pub(super) fn outage(&mut self) -> Vec<Hub> {
        self.is_up = false;
        let mut gone = Vec::new();
        while !self.hubs.is_empty() {
            gone.push(self.cut(0));
        }
        self.run();
        gone
    }

    /// Hubs can be reached again.
    pub(super) fn restore(&mut self) {
        self.is_up = true;
        self.run();
    }

    /// Takes what the gateway has for the hub, but gives the hub no more than so many bytes of it.
    pub(super) fn leak(&mut self, at: usize, most: usize) {
        let hub = &mut self.hubs[at];
        let seat = self.router.trunk(hub.key).expect("connected");
        hub.to_hub.take(&mut seat.machine);
        hub.to_hub.give(&mut hub.peer.machine, self.now, most);
        hub.drain(&self.manners);
    }

    /// What devices have said is handled, and stays in the gateway.
    pub(super) fn hear(&mut self, at: usize) {
        let device = &mut self.devices[at];
        device.to_gateway.take(&mut device.peer.machine);
        let seat = self.router.device(device.key).expect("there");
        device.to_gateway.give(&mut seat.machine, self.now, usize::MAX);
        self.router.handle_device(device.key, self.now);
    }

    /// The device's stream is over.
    pub(super) fn leave(&mut self, at: usize) {
        let device = self.devices.remove(at);
        self.router.device_lost(device.key, self.now);
        self.router.remove_device(device.key);
        self.run();
    }

    pub(super) fn device(&mut self, at: usize) -> &mut Peer {
        &mut self.devices[at].peer
    }

    pub(super) fn hub(&mut self) -> &mut Peer {
        &mut self.hubs[0].peer
    }

    pub(super) fn session(&mut self, device: usize) -> SessionId {
        let session = self.device(device).machine.begin().expect("a session");
        self.run();
        session
    }

    pub(super) fn attach(&mut self, device: usize, session: SessionId, attach: &Attach) -> LinkId {
        let link = self.device(device).machine.attach(session, attach).expect("attached");
        self.run();
        link
    }

    /// A link of a device in a session of its own, at both ends; what both were told is forgotten.
    pub(super) fn link(&mut self, device: usize, role: Role) -> (LinkId, LinkId) {
        let session = self.session(device);
        let address = format!("devices/d{device}/{}", if role == Role::Sender { "up" } else { "down" });
        let link = self.attach(device, session, &attach("link", role, &address));
        let (at_hub, _) = self.at_hub(&address);
        self.forget();
        (link, at_hub)
    }

    /// The last link at a hub that goes to an address.
    pub(super) fn at_hub(&self, address: &str) -> (LinkId, SessionId) {
        let mut links = self.hubs.iter().flat_map(|hub| hub.links.iter().rev());
        let found = links.find(|(_, _, attach)| node(attach).as_deref() == Some(address));
        let (link, session, _) = found.expect("such a link");
        (*link, *session)
    }

    /// Forgets all that was told.
    pub(super) fn forget(&mut self) {
        self.devices.iter_mut().for_each(|device| drop(device.peer.take()));
        self.hubs.iter_mut().for_each(|hub| drop(hub.peer.take()));
    }

    /// Puts a token for a resource, and waits for the answer's status if there is one.
    pub(super) fn put(&mut self, device: usize, resource: &str, life: u64) -> Option<i32> {
        let session = self.session(device);
        let own = format!("own{}", self.unix);
        let name = format!("cbs-{resource}-{life}");
        let sender = self.attach(device, session, &attach(&name, Role::Sender, "$cbs"));
        let receiver = self.attach(device, session, &attach(&name, Role::Receiver, "$cbs"));
        let unix = self.unix;
        let peer = self.device(device);
        peer.machine.flow(receiver, credit(1));
        let key = SharedKey::from_bytes(b"key").expect("a key");
        let token = Signer::new(None, key).token(resource, unix + life);
        let mut out = BytesMut::new();
        let id = Some(Value::Str(&own));
        put_properties(&mut out, &PropertiesOut { message_id: id, ..PropertiesOut::default() });
        let resource = percent_encode(resource);
        let pairs = [
            ("operation", Value::Str("put-token")),
            ("type", Value::Str(SAS_TOKEN)),
            ("name", Value::Str(&resource)),
        ];
        put_application_properties(&mut out, pairs);
        put_amqp_value(&mut out, &Value::Str(&token));
        peer.machine.transfer(sender, tagged(b"put"), &out).expect("credit of the node");
        self.run();
        self.answered(device)
    }

    /// The status of the last answer of `$cbs` that a device has, if any.
    pub(super) fn answered(&mut self, device: usize) -> Option<i32> {
        let answer = self.device(device).transfers().pop()?.1.payload();
        let sections =
            fieldgate_amqp::message::Sections::parse(&answer, &fieldgate_amqp::codec::Limits::WIRE)
                .expect("a message");
        sections.application_properties().find_map(|pair| match pair {
            (Value::Str("status-code"), Value::Int(status)) => Some(status),
            _ => None,
        })
    }
}

/// The address that an attach of a device's side asks for.
pub(super) fn node(attach: &Attach) -> Option<String> {
    let node = match attach.role() {
        Role::Sender => attach.target(),
        Role::Receiver => attach.source(),
    };
    node?.address().map(str::to_owned)
}

/// An attach of a device to an address.
pub(super) fn attach(name: &str, role: Role, address: &str) -> Attach {
    let source = SourceOut { address: Some(address), ..SourceOut::default() }.build();
    let target = TargetOut { address: Some(address), ..TargetOut::default() }.build();
    match role {
        Role::Sender => AttachOut::sender(name, &source, &target).build(),
        Role::Receiver => AttachOut::receiver(name, &source, &target).build(),
    }
}

pub(super) fn credit(link_credit: u32) -> LinkFlow<'static> {
    LinkFlow { link_credit, ..LinkFlow::default() }
}

pub(super) fn tagged(tag: &[u8]) -> TransferOut<'_> {
    TransferOut { delivery_tag: Some(tag), ..TransferOut::default() }
}

pub(super) fn settled(role: Role, id: u32, state: Option<&[u8]>) -> DispositionOut<'_> {
    DispositionOut { role, first: id, last: id, settled: true, state, batchable: false }
}
