//! A side that does not take what it is sent: the other side is held back, and nothing is forgotten for it.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fieldgate_amqp::connection::{
    ClientSecurity, Connection, ConnectionConfig, Event, LinkFlow, LinkId, SessionId, TransferOut,
};
use fieldgate_amqp::performative::{ACCEPTED, AttachOut, DispositionOut, Role, SourceOut};
use fieldgate_amqp::sasl::Mechanism;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use crate::adapters::testing;
use crate::config::Config;
use crate::router::{Authorise, DeviceKey, Hubs, MAX_BACKLOG_BYTES, Policy, Router, Routes, Rules, TrunkKey};
use crate::testing::Stream;
use crate::wire::READ_BYTES;

use super::end::End;
use super::pair::Pair;
use super::routing::Routing;

const MECHANISMS: [Mechanism; 1] = [Mechanism::Anonymous];

/// Windows are in frames here, so that what is held back is not held back by them.
fn config() -> ConnectionConfig {
    let (max_backlog_bytes, incoming_window_bytes) = (2 * MAX_BACKLOG_BYTES, 1 << 30);
    ConnectionConfig {
        idle_time_out: None,
        max_backlog_bytes,
        incoming_window_bytes,
        ..ConnectionConfig::default()
    }
}

fn client(config: ConnectionConfig) -> Connection {
    let open = config.open();
    Connection::client(Arc::new(config), ClientSecurity::Bare, open, Instant::now())
}

fn server(config: ConnectionConfig) -> Connection {
    Connection::server(Arc::new(config), &MECHANISMS, true, Instant::now())
}

fn policy() -> Policy {
    Policy::new(Authorise::Any, Arc::new(Routes::new([])), "hub".into(), None)
}

/// Nothing is routed: pairs have their own rules.
fn rules() -> Arc<Rules> {
    Arc::new(Rules { routes: Routes::new([]), hubs: Hubs::new([[""; 0]; 0]), registrar: None })
}

/// Device and hub, and the router between them whose bytes the test moves by hand.
struct Bench {
    device: Connection,
    router: Router,
    keys: (DeviceKey, TrunkKey),
    hub: Connection,
    /// What is under way to the router, from the device and from the hub.
    streams: [Stream; 2],
    /// What the outer ends were told.
    heard: [Vec<Event>; 2],
    /// Who does not read: device, hub.
    deaf: [bool; 2],
}

impl Bench {
    fn new(device: ConnectionConfig, hub: ConnectionConfig) -> Self {
        let (mut near, heard) = (server(config()), Default::default());
        let (mut device, hub) = (client(device), server(hub));
        carry(&mut device, &mut near);
        assert!(matches!(near.poll_event(), Some(Event::Opened(_))));
        let mut router = Router::new(Vec::new(), rules(), 0);
        let keys = router.add_pair(near, client(config()), policy(), 100_000, Instant::now());
        let mut bench =
            Self { device, router, keys, hub, streams: Default::default(), heard, deaf: [false; 2] };
        bench.run();
        assert!(bench.device.is_open() && bench.hub.is_open());
        bench
    }

    /// Moves all bytes and handles all events until nothing more happens. Gives the most that had to wait for the hub.
    fn run(&mut self) -> usize {
        let mut most = 0;
        let (device, trunk) = self.keys;
        loop {
            let now = Instant::now();
            let Self { router, streams: [from_device, from_hub], .. } = self;
            from_device.take(&mut self.device);
            from_hub.take(&mut self.hub);
            let near = &mut router.device(device).expect("it is there").machine;
            let mut quiet = self.deaf[0] || !carry(near, &mut self.device);
            // As a turn reads: so much at a time, and only from who is not held back.
            if router.hears_device(device) {
                let near = &mut router.device(device).expect("it is there").machine;
                quiet &= !from_device.give(near, now, READ_BYTES);
            }
            if router.hears_trunk(trunk) {
                let near = &mut router.trunk(trunk).expect("it is there").machine;
                quiet &= !from_hub.give(near, now, READ_BYTES);
            }
            router.handle_device(device, now);
            router.handle_trunk(trunk, now);
            router.handle_device(device, now);
            let near = &mut router.trunk(trunk).expect("it is there").machine;
            most = most.max(near.output_bytes());
            if !self.deaf[1] {
                quiet &= !carry(near, &mut self.hub);
            }
            for (machine, heard) in [&mut self.device, &mut self.hub].into_iter().zip(&mut self.heard) {
                while let Some(event) = machine.poll_event() {
                    answer(machine, &event);
                    heard.push(event);
                }
            }
            if quiet {
                return most;
            }
        }
    }

    /// A session with one link: its ids at the device and at the hub.
    fn link(&mut self, role: Role) -> [(SessionId, LinkId); 2] {
        let session = self.device.begin().expect("a channel");
        let link = attach(&mut self.device, session, role);
        self.run();
        let attached = self.heard[1].iter().find_map(|event| match event {
            Event::Attached { link, session, .. } => Some((*session, *link)),
            _ => None,
        });
        [(session, link), attached.expect("the attach went through")]
    }

    fn transfers(&self, at: usize) -> usize {
        self.heard[at].iter().filter(|event| matches!(event, Event::Transfer { .. })).count()
    }
}

fn carry(from: &mut Connection, to: &mut Connection) -> bool {
    let bytes = from.poll_transmit().unwrap_or_default();
    to.handle_input(Instant::now(), bytes.clone());
    !bytes.is_empty()
}

fn attach(machine: &mut Connection, session: SessionId, role: Role) -> LinkId {
    let node = SourceOut { address: Some("q"), ..SourceOut::default() }.build();
    let attach = match role {
        Role::Sender => AttachOut::sender("link", &node, &node),
        Role::Receiver => AttachOut::receiver("link", &node, &node),
    };
    machine.attach(session, &attach.build()).expect("attached")
}

/// What a good peer answers.
fn answer(machine: &mut Connection, event: &Event) {
    match event {
        Event::Opened(_) => {
            let open = machine.config().open();
            machine.open(open);
        }
        Event::SessionBegun { session, by_peer: true, .. } => machine.accept_begin(*session),
        Event::Attached { link, attach, by_peer: true, .. } => {
            let node = SourceOut { address: Some("q"), ..SourceOut::default() }.build();
            let answer = match attach.role() {
                Role::Sender => AttachOut::receiver(attach.name(), &node, &node),
                Role::Receiver => AttachOut::sender(attach.name(), &node, &node),
            };
            machine.answer_attach(*link, &answer.build());
        }
        _ => {}
    }
}

fn send(machine: &mut Connection, link: LinkId, numbers: std::ops::Range<u32>, payload: &[u8]) {
    for number in numbers {
        let tag = number.to_be_bytes();
        let transfer = TransferOut { delivery_tag: Some(&tag), ..TransferOut::default() };
        machine.transfer(link, transfer, payload).expect("attached");
    }
}

fn credit(machine: &mut Connection, link: LinkId, link_credit: u32) {
    machine.flow(link, LinkFlow { link_credit, ..LinkFlow::default() });
}

fn unsettled(first: u32, last: u32) -> DispositionOut<'static> {
    let role = Role::Receiver;
    DispositionOut { role, first, last, settled: false, state: Some(ACCEPTED), batchable: false }
}

#[test]
fn few_words_of_a_device_do_not_become_many_at_once() {
    let mut bench = Bench::new(config(), config());
    let [(session, at_device), (_, at_hub)] = bench.link(Role::Receiver);
    credit(&mut bench.device, at_device, 800);
    bench.run();
    send(&mut bench.hub, at_hub, 0..800, b"m");
    bench.run();
    // Every other one is settled: a range over the rest is four hundred ranges at the hub, just not too many to say.
    for id in (0..800).step_by(2) {
        bench.device.disposition(session, DispositionOut { settled: true, ..unsettled(id, id) });
    }
    bench.run();
    bench.heard = Default::default();
    bench.deaf[1] = true;
    for _ in 0..200 {
        bench.device.disposition(session, unsettled(0, 799));
    }
    let most = bench.run();
    assert!(most > MAX_BACKLOG_BYTES && most < MAX_BACKLOG_BYTES + 100_000, "{most} bytes");
    bench.deaf[1] = false;
    bench.run();
    assert_eq!(bench.heard[1].len(), 80_000, "late, and all of them");
}

#[test]
fn a_shut_window_holds_the_other_side_back_and_costs_no_session() {
    for role in [Role::Sender, Role::Receiver] {
        let narrow = ConnectionConfig { incoming_window: 2, ..config() };
        let (device, hub) = if role == Role::Sender { (config(), narrow) } else { (narrow, config()) };
        let mut bench = Bench::new(device, hub);
        let [(_, at_device), (_, at_hub)] = bench.link(role);
        let (sender, receiver) = if role == Role::Sender { (0, 1) } else { (1, 0) };
        match role {
            Role::Sender => credit(&mut bench.hub, at_hub, 1000),
            Role::Receiver => credit(&mut bench.device, at_device, 1000),
        }
        bench.run();
        // Twelve times the bound, while the receiver lets two frames pass.
        match role {
            Role::Sender => send(&mut bench.device, at_device, 0..400, &[0; 64_000]),
            Role::Receiver => send(&mut bench.hub, at_hub, 0..400, &[0; 64_000]),
        }
        bench.deaf[receiver] = true;
        bench.run();
        // What the sender's stream does not hold any more lies in between.
        let held = 400 * 64_000 - bench.streams[sender].len();
        assert!(held > MAX_BACKLOG_BYTES && held < 2 * MAX_BACKLOG_BYTES, "{held}");
        bench.deaf[receiver] = false;
        bench.run();
        assert_eq!(bench.transfers(receiver), 400);
    }
}

/// A peer on the far end of a stream.
struct Far {
    stream: DuplexStream,
    machine: Connection,
}

impl Far {
    /// Writes what there is to say, and reads once, as much as there is.
    async fn turn(&mut self) -> Vec<Event> {
        if let Some(bytes) = self.machine.poll_transmit() {
            self.stream.write_all(&bytes).await.expect("the gateway reads");
        }
        let mut bytes = BytesMut::with_capacity(8 * MAX_BACKLOG_BYTES);
        self.stream.read_buf(&mut bytes).await.expect("the gateway lives");
        self.machine.handle_input(Instant::now(), bytes.freeze());
        self.events()
    }

    fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.machine.poll_event() {
            answer(&mut self.machine, &event);
            events.push(event);
        }
        events
    }
}

#[test]
fn who_was_held_back_is_read_again_when_there_is_room() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let all = async {
        let (near_device, device) = tokio::io::duplex(256 * 1024);
        let (near_hub, hub) = tokio::io::duplex(2 * MAX_BACKLOG_BYTES);
        let mut device = Far { stream: device, machine: client(config()) };
        let mut hub = Far { stream: hub, machine: server(config()) };
        let mut near = (End::new(near_device), server(config()));
        device.stream.write_all(&device.machine.poll_transmit().expect("open")).await.expect("room");
        while !matches!(near.1.poll_event(), Some(Event::Opened(_))) {
            poll_fn(|cx| near.0.poll_turn(cx, &mut near.1, true)).await;
        }
        let (_trigger, shutdown) = crate::shutdown::channel();
        let routing = Routing::start(0, &Config::default(), &[], &testing::gate(), Arc::default(), shutdown);
        let keys = routing
            .turn(|router| router.add_pair(near.1, client(config()), policy(), 100_000, Instant::now()));
        let pair = Pair::new(near.0, End::new(near_hub), keys, &routing, None);
        tokio::task::spawn_local(pair.run());

        while !hub.machine.is_open() {
            hub.turn().await;
        }
        hub.stream.write_all(&hub.machine.poll_transmit().expect("open")).await.expect("room");
        while !device.machine.is_open() {
            device.turn().await;
        }
        let session = device.machine.begin().expect("a channel");
        let link = attach(&mut device.machine, session, Role::Sender);
        device.stream.write_all(&device.machine.poll_transmit().expect("attach")).await.expect("room");
        let at_hub = loop {
            let events = hub.turn().await;
            if let Some(Event::Attached { link, .. }) = events.last() {
                break *link;
            }
        };
        credit(&mut hub.machine, at_hub, 1000);
        hub.stream.write_all(&hub.machine.poll_transmit().expect("flow")).await.expect("room");
        while device.machine.link(link).is_none_or(|link| link.credit == 0) {
            device.turn().await;
        }
        send(&mut device.machine, link, 0..200, &[0; 60_000]);
        let mut rest: Bytes = device.machine.poll_transmit().expect("the transfers");
        // The device writes all the time; the hub reads nothing until everything stands still.
        let writing = tokio::task::spawn_local(async move {
            device.stream.write_all_buf(&mut rest).await.expect("the gateway lives");
            device
        });
        for _ in 0..10_000 {
            tokio::task::yield_now().await;
        }
        assert!(!writing.is_finished(), "the device is not held back");
        let mut transfers = 0;
        while transfers < 200 {
            transfers += hub.turn().await.iter().filter(|it| matches!(it, Event::Transfer { .. })).count();
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
        }
        writing.await.expect("all is written");
    };
    let within = Duration::from_secs(60);
    runtime.block_on(tokio::task::LocalSet::new().run_until(async {
        tokio::time::timeout(within, all).await.expect("the device is never read again");
    }));
}
