//! The bench: a device, the gateway's two machines with the router between them, a hub, and four streams.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use fieldgate_amqp::codec::{self, put_composite, put_descriptor, put_list, put_map};
use fieldgate_amqp::connection::{ClientSecurity, Connection, ConnectionConfig, Event, LinkId, SessionId};
use fieldgate_amqp::error::AmqpError;
use fieldgate_amqp::frame::{FrameKind, put_frame};
use fieldgate_amqp::performative::{
    Attach, AttachOut, Condition, Detach, Disposition, Flow, Role, SourceOut, TargetOut, Transfer, descriptor,
};
use fieldgate_amqp::sasl::{Mechanism, SaslCode};

use crate::router::access::{Hubs, Rules};
use crate::router::routes::Routes;
use crate::router::{Authorise, DeviceKey, Policy, Router, TrunkKey};
use crate::testing::Stream;

/// One of the two outer ends, and what it was told.
pub(super) struct Peer {
    pub(super) machine: Connection,
    pub(super) events: Vec<Event>,
    /// Answers attaches and detaches in kind.
    pub(super) answers: bool,
}

impl Peer {
    pub(super) fn new(machine: Connection) -> Self {
        Self { machine, events: Vec::new(), answers: true }
    }

    pub(super) fn drain(&mut self) {
        while let Some(event) = self.machine.poll_event() {
            self.answer(&event);
            self.events.push(event);
        }
    }

    fn answer(&mut self, event: &Event) {
        let machine = &mut self.machine;
        match event {
            Event::SaslInit { .. } => machine.sasl_outcome(SaslCode::Ok),
            Event::Opened(_) => {
                let open = machine.config().open();
                machine.open(open);
            }
            Event::SessionBegun { session, by_peer: true, .. } => machine.accept_begin(*session),
            Event::Attached { link, attach: theirs, by_peer: true, .. } if self.answers => {
                machine.answer_attach(*link, &attach(theirs.name(), theirs.role().other()));
            }
            Event::Detached { link, detach, answered: false, .. } if self.answers => {
                machine.detach(*link, detach.closed(), None);
            }
            _ => {}
        }
    }

    pub(super) fn take(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// What was said in transfers since the last call.
    pub(super) fn transfers(&mut self) -> Vec<(u32, Transfer)> {
        let transfers = self.take().into_iter().filter_map(|event| match event {
            Event::Transfer { delivery_id, transfer, .. } => Some((delivery_id, transfer)),
            _ => None,
        });
        transfers.collect()
    }

    /// What was said in dispositions since the last call.
    pub(super) fn dispositions(&mut self) -> Vec<Disposition> {
        let dispositions = self.take().into_iter().filter_map(|event| match event {
            Event::Disposition { disposition, .. } => Some(disposition),
            _ => None,
        });
        dispositions.collect()
    }

    /// What was said in flows of links since the last call.
    pub(super) fn flows(&mut self) -> Vec<Flow> {
        let flows = self.take().into_iter().filter_map(|event| match event {
            Event::Flow { link: Some(_), flow, .. } => Some(flow),
            _ => None,
        });
        flows.collect()
    }

    /// What was said in detaches since the last call.
    pub(super) fn detaches(&mut self) -> Vec<(Detach, bool)> {
        let detaches = self.take().into_iter().filter_map(|event| match event {
            Event::Detached { detach, answered, .. } => Some((detach, answered)),
            _ => None,
        });
        detaches.collect()
    }

    /// The last link that the other end has attached or answered for.
    pub(super) fn attached(&self) -> Option<(LinkId, Attach)> {
        self.events.iter().rev().find_map(|event| match event {
            Event::Attached { link, attach, .. } => Some((*link, attach.clone())),
            _ => None,
        })
    }

    /// The last session that was begun.
    pub(super) fn begun(&self) -> SessionId {
        let begun = self.events.iter().rev().find_map(|event| match event {
            Event::SessionBegun { session, .. } => Some(*session),
            _ => None,
        });
        begun.expect("a session")
    }
}

/// The settings of the four machines.
#[derive(Clone)]
pub(super) struct Setup {
    pub(super) device: ConnectionConfig,
    pub(super) down: ConnectionConfig,
    pub(super) up: ConnectionConfig,
    pub(super) hub: ConnectionConfig,
}

impl Default for Setup {
    fn default() -> Self {
        let config = ConnectionConfig { idle_time_out: None, ..ConnectionConfig::default() };
        Self { device: config.clone(), down: config.clone(), up: config.clone(), hub: config }
    }
}

pub(super) struct Bench {
    pub(super) now: Instant,
    pub(super) device: Peer,
    pub(super) router: Router,
    down: DeviceKey,
    up: TrunkKey,
    pub(super) hub: Peer,
    /// Device to gateway, gateway to device, gateway to hub, hub to gateway.
    streams: [Stream; 4],
    /// The most bytes that the gateway has had to say at one time, downstream and upstream.
    pub(super) most: [usize; 2],
}

impl Bench {
    /// All four, open.
    pub(super) fn new(setup: Setup) -> Self {
        Self::with_policy(setup, policy())
    }

    pub(super) fn with_policy(setup: Setup, policy: Policy) -> Self {
        let now = Instant::now();
        let client = |config: ConnectionConfig| {
            let open = config.open();
            Connection::client(Arc::new(config), ClientSecurity::Bare, open, now)
        };
        let server = |config: ConnectionConfig| {
            Connection::server(Arc::new(config), &[Mechanism::Anonymous], true, now)
        };
        let mut router = router();
        let (down, up) =
            router.add_pair(server(setup.down), client(setup.up), policy, 100_000, Instant::now());
        let mut bench = Self {
            now,
            device: Peer::new(client(setup.device)),
            router,
            down,
            up,
            hub: Peer::new(server(setup.hub)),
            streams: Default::default(),
            most: [0; 2],
        };
        bench.run();
        assert!(bench.device.machine.is_open() && bench.hub.machine.is_open());
        bench.device.take();
        bench.hub.take();
        bench
    }

    /// The gateway's machine toward the device.
    pub(super) fn down(&mut self) -> &mut Connection {
        &mut self.router.device(self.down).expect("the device is there").machine
    }

    /// The gateway's machine toward the hub.
    pub(super) fn up(&mut self) -> &mut Connection {
        &mut self.router.trunk(self.up).expect("the trunk is there").machine
    }

    /// Moves a piece of what is under way on each stream. False when all is quiet.
    pub(super) fn step(&mut self, mut piece: impl FnMut() -> usize) -> bool {
        let now = self.now;
        self.most =
            [self.most[0].max(self.down().output_bytes()), self.most[1].max(self.up().output_bytes())];
        let Self { device, router, down, up, hub, streams: [a, b, c, d], .. } = self;
        // As the tasks do: who is not heard is not read either.
        let (hears_device, hears_hub) = (router.hears_device(*down), router.hears_trunk(*up));
        a.take(&mut device.machine);
        d.take(&mut hub.machine);
        let machine = &mut router.device(*down).expect("the device is there").machine;
        b.take(machine);
        let mut moved = hears_device && a.give(machine, now, piece());
        let machine = &mut router.trunk(*up).expect("the trunk is there").machine;
        c.take(machine);
        moved |= hears_hub && d.give(machine, now, piece());
        moved |= b.give(&mut device.machine, now, piece()) | c.give(&mut hub.machine, now, piece());
        self.pump();
        self.device.drain();
        self.hub.drain();
        moved
    }

    /// Bytes from the device that wait for the hub's windows.
    pub(super) fn held_up(&self) -> usize {
        self.router.held_up(self.down)
    }

    /// Lets the device say what its machine would not.
    pub(super) fn inject(&mut self, body: impl FnOnce(&mut BytesMut)) {
        let now = self.now;
        let machine = &mut self.router.device(self.down).expect("the device is there").machine;
        self.streams[0].take(&mut self.device.machine);
        while self.streams[0].give(machine, now, usize::MAX) {}
        let mut frame = BytesMut::new();
        put_frame(&mut frame, FrameKind::Amqp, 0, body);
        machine.handle_input(now, frame.freeze());
        self.pump();
    }

    /// Runs until nothing more happens.
    pub(super) fn run(&mut self) {
        while self.step(|| usize::MAX) {}
    }

    fn pump(&mut self) {
        self.router.handle_device(self.down, self.now);
        self.router.handle_trunk(self.up, self.now);
    }

    /// A session, begun by the device: its id at the device and at the hub.
    pub(super) fn session(&mut self) -> (SessionId, SessionId) {
        let at_device = self.device.machine.begin().expect("a free channel");
        self.run();
        (at_device, self.hub.begun())
    }

    /// A link, attached by the device and answered by the hub: its id at the device and at the hub. What was told
    /// until then is forgotten.
    pub(super) fn link(&mut self, session: SessionId, name: &str, role: Role) -> (LinkId, LinkId) {
        let at_device = self.device.machine.attach(session, &attach(name, role)).expect("attached");
        self.run();
        let (at_hub, _) = self.hub.attached().expect("the attach went through");
        self.device.take();
        self.hub.take();
        (at_device, at_hub)
    }

    /// The router keeps nothing.
    pub(super) fn assert_empty(&mut self) {
        assert_eq!(self.router.kept(), (0, 0, 0), "sessions, links, deliveries");
        assert_eq!((self.down().sessions(), self.down().links()), (0, 0));
        assert_eq!((self.up().sessions(), self.up().links()), (0, 0));
        for machine in [&self.device.machine, &self.hub.machine] {
            assert_eq!((machine.sessions(), machine.links()), (0, 0));
        }
    }
}

/// A router without shared connections.
fn router() -> Router {
    let rules =
        Rules { routes: Routes::new([]), hubs: Hubs::new::<&str>(Vec::<[&str; 0]>::new()), registrar: None };
    Router::new(Vec::new(), Arc::new(rules), 0)
}

/// Everything is routed.
pub(super) fn policy() -> Policy {
    Policy::new(Authorise::Any, Arc::new(Routes::new([])), "hub.example.net".into(), Some("gate.local"))
}

/// An attach of a link to or from the node `q`.
pub(super) fn attach(name: &str, role: Role) -> Attach {
    let source = SourceOut { address: Some("q"), ..SourceOut::default() }.build();
    let target = TargetOut { address: Some("q"), ..TargetOut::default() }.build();
    match role {
        Role::Sender => AttachOut::sender(name, &source, &target).build(),
        Role::Receiver => AttachOut::receiver(name, &source, &target).build(),
    }
}

/// An attach with something in every field, and a field of a later version behind them.
pub(super) fn full_attach(name: &str, role: Role, salt: u32) -> Attach {
    let mut out = BytesMut::new();
    put_composite(&mut out, descriptor::ATTACH, |out| {
        codec::put_str(out, name);
        codec::put_uint(out, 0);
        codec::put_bool(out, role.is_receiver());
        codec::put_ubyte(out, 1);
        codec::put_ubyte(out, 1);
        put_composite(out, descriptor::SOURCE, |out| {
            codec::put_str(out, "amqps://some.host/a%20b");
            codec::put_uint(out, 2);
            codec::put_symbol(out, "never");
            codec::put_uint(out, 77);
            codec::put_bool(out, false);
            codec::put_null(out);
            codec::put_symbol(out, "copy");
            put_map(out, |out| {
                codec::put_symbol(out, "apache.org:selector-filter:string");
                put_descriptor(out, 0x0000_468C_0000_0004);
                codec::put_str(out, "x > 1");
                codec::put_symbol(out, "vendor");
                codec::put_symbol(out, "as it is");
                2
            });
            put_composite(out, descriptor::RELEASED, |_| 0);
            codec::put_symbols(out, &["amqp:accepted:list", "vendor:odd"]);
            codec::put_symbol(out, "queue");
            codec::put_str(out, "a field of a later version");
            12
        });
        // A target of a vendor's own type.
        put_descriptor(out, 0xFEED_0000_0000_0001);
        put_list(out, |out| {
            codec::put_ulong(out, salt.into());
            1
        });
        put_map(out, |out| {
            codec::put_binary(out, b"tag");
            put_composite(out, descriptor::RECEIVED, |out| {
                codec::put_uint(out, 0);
                codec::put_ulong(out, 10);
                2
            });
            1
        });
        codec::put_bool(out, true);
        match role {
            Role::Sender => codec::put_uint(out, u32::MAX - salt),
            Role::Receiver => codec::put_null(out),
        }
        codec::put_ulong(out, 1 << 40);
        codec::put_symbols(out, &["offered", "more"]);
        codec::put_symbol(out, "desired");
        put_map(out, |out| {
            codec::put_symbol(out, "com.microsoft:channel-correlation-id");
            codec::put_str(out, "3f");
            1
        });
        codec::put_str(out, "beyond");
        15
    });
    Attach::decode(out.freeze()).expect("an attach")
}

/// The fields of an attach that are not per side, as they are encoded.
pub(super) fn fields(attach: &Attach) -> Vec<Option<Bytes>> {
    let composite = attach.composite();
    (0..16).filter(|field| *field != Attach::HANDLE).map(|field| composite.raw_bytes(field)).collect()
}

/// An error with all that there may be in one.
pub(super) fn error(what: &str) -> AmqpError {
    let mut info = BytesMut::new();
    put_map(&mut info, |out| {
        codec::put_symbol(out, "com.microsoft:tracking-id");
        codec::put_str(out, what);
        1
    });
    let error = AmqpError::new(&Condition::from("vendor:trouble"), Some("at random"));
    error.with_info(&info).expect("a map")
}
