//! Clients and the server on a network that loses, repeats and reorders, under a simulated clock.
//!
//! The law: a CON request is delivered to the application exactly once, a NON at most once, and each call gets one
//! conclusion, which if it is a response is its own.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fieldgate_coap::client::{self, Call, CallId, Client, Outcome};
use fieldgate_coap::{
    Code, Config, Event, ExchangeId, Method, Refusal, Response, Server, Stats, Transmission,
};

use crate::support::*;

const CALLS: usize = 40;

#[derive(Debug, Clone, Copy)]
struct Network {
    loss_percent: u64,
    duplicate_percent: u64,
    delay_up_to: Duration,
    /// How often the same bytes may be lost on the same way; with at most 2 of the 5 times that they are sent, and
    /// 2 of the answers, everything has to arrive.
    losses_of_each: u32,
}

#[derive(Debug, Clone)]
enum Happening {
    ToServer(usize, Bytes),
    ToClient(usize, Bytes),
    Answer(ExchangeId, Bytes),
}

struct Device {
    client: Client,
    begun: usize,
    calls: HashMap<CallId, Expected>,
}

#[derive(Clone)]
struct Expected {
    body: Bytes,
    confirmable: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    responses: usize,
    timed_out: usize,
    rejected: usize,
    lost: usize,
}

struct World {
    now: Instant,
    dice: u64,
    network: Network,
    server: Server,
    devices: Vec<Device>,
    agenda: BTreeMap<(Instant, u64), Happening>,
    sequence: u64,
    losses: HashMap<(bool, usize, Bytes), u32>,
    delivered: HashMap<Bytes, usize>,
    concluded: HashMap<Bytes, usize>,
    tally: Tally,
}

impl World {
    fn new(seed: u64, devices: usize, network: Network) -> Self {
        let client = client::Config {
            transmission: Transmission { nstart: 3, ..Transmission::default() },
            response_timeout: Duration::from_secs(240),
        };
        let device = |number| Device {
            client: Client::new(client.clone(), seed * 1000 + number),
            begun: 0,
            calls: HashMap::new(),
        };
        Self {
            now: epoch(),
            dice: seed * 2 + 1,
            network,
            server: Server::new(Config::default(), seed),
            devices: (0..devices as u64).map(device).collect(),
            agenda: BTreeMap::new(),
            sequence: 0,
            losses: HashMap::new(),
            delivered: HashMap::new(),
            concluded: HashMap::new(),
            tally: Tally::default(),
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice % bound
    }

    fn schedule(&mut self, delay: Duration, what: Happening) {
        self.sequence += 1;
        self.agenda.insert((self.now + delay, self.sequence), what);
    }

    /// One datagram on its way: lost, once, twice, late.
    fn carry(&mut self, to_server: bool, device: usize, bytes: Bytes) {
        let Network { loss_percent, duplicate_percent, delay_up_to, losses_of_each } = self.network;
        let delay = |world: &mut Self, up_to: Duration| {
            Duration::from_micros(world.below(up_to.as_micros() as u64 + 1))
        };
        let happening = |bytes: Bytes| match to_server {
            true => Happening::ToServer(device, bytes),
            false => Happening::ToClient(device, bytes),
        };
        if self.below(100) < duplicate_percent {
            // Now and then very late: MAX_LATENCY is 100 s (RFC 7252 section 4.8.2).
            let up_to = if self.below(4) == 0 { Duration::from_secs(90) } else { delay_up_to };
            let late = delay(self, up_to);
            self.schedule(late, happening(bytes.clone()));
        }
        if self.below(100) < loss_percent {
            let losses = self.losses.entry((to_server, device, bytes.clone())).or_default();
            if *losses < losses_of_each {
                *losses += 1;
                return;
            }
        }
        let delay = delay(self, delay_up_to);
        self.schedule(delay, happening(bytes));
    }

    fn begin_calls(&mut self, number: usize) {
        loop {
            let confirmable = self.below(4) != 0;
            let device = &mut self.devices[number];
            if device.begun == CALLS {
                return;
            }
            let body = Bytes::from(format!("{number}.{}", device.begun));
            let call = Call {
                confirmable,
                method: Method::Post,
                path: &["devices", "d", "messages", "events"],
                query: &[],
                content_format: Some(0),
                payload: &body,
            };
            let Ok(id) = device.client.call(self.now, &call) else { return };
            device.begun += 1;
            device.calls.insert(id, Expected { body, confirmable });
        }
    }

    /// Drains every machine until none has anything more to say.
    fn settle(&mut self) {
        while let Some(event) = self.server.poll_event() {
            match event {
                Event::Request(request) => {
                    *self.delivered.entry(request.payload.clone()).or_default() += 1;
                    let millis = [0, 0, 50, 499, 500, 800, 5_000, 25_000][self.below(8) as usize];
                    self.schedule(
                        Duration::from_millis(millis),
                        Happening::Answer(request.exchange, request.payload),
                    );
                }
                Event::ResponseLost { .. } => self.tally.lost += 1,
            }
        }
        while let Some((to, bytes)) = self.server.poll_transmit() {
            self.carry(false, usize::from(to.port() - peer(0).port()), bytes);
        }
        for number in 0..self.devices.len() {
            while let Some(conclusion) = self.devices[number].client.poll_event() {
                let expected = self.devices[number].calls[&conclusion.call].clone();
                *self.concluded.entry(expected.body.clone()).or_default() += 1;
                match conclusion.outcome {
                    Outcome::Response { code, payload, .. } => {
                        self.tally.responses += 1;
                        assert_eq!((code, &payload), (Code::CONTENT, &expected.body), "another's response");
                        assert_eq!(self.delivered.get(&payload), Some(&1));
                    }
                    Outcome::TimedOut => self.tally.timed_out += 1,
                    Outcome::Rejected => self.tally.rejected += 1,
                }
            }
            self.begin_calls(number);
            while let Some(bytes) = self.devices[number].client.poll_transmit() {
                self.carry(true, number, bytes);
            }
        }
    }

    /// The next thing that happens, in the order of time; whether there was one.
    fn step(&mut self) -> bool {
        let timers = self.devices.iter().filter_map(|device| device.client.poll_timeout());
        let timer = timers.chain(self.server.poll_timeout()).min();
        let next = self.agenda.keys().next().map(|(at, _)| *at);
        let Some(at) = [timer, next].into_iter().flatten().min() else { return false };
        self.now = self.now.max(at);
        if next == Some(at) {
            let (_, happening) = self.agenda.pop_first().unwrap();
            match happening {
                Happening::ToServer(device, bytes) => {
                    self.server.handle_datagram(self.now, peer(device as u16), &bytes);
                }
                Happening::ToClient(device, bytes) => {
                    self.devices[device].client.handle_datagram(self.now, &bytes);
                }
                Happening::Answer(exchange, payload) => {
                    let response = Response { payload, ..Response::new(Code::CONTENT) };
                    self.server.respond(self.now, exchange, response).expect("every peer still waits");
                }
            }
        } else {
            self.server.handle_timeout(self.now);
            for device in &mut self.devices {
                device.client.handle_timeout(self.now);
            }
        }
        true
    }

    /// Runs to the end: all calls concluded, all lifetimes over. What holds in any network is checked here.
    fn run(mut self) -> (Self, Stats) {
        self.settle();
        while self.step() {
            self.settle();
        }
        let stats = self.server.stats().clone();
        assert_eq!((self.server.exchanges(), self.server.peers(), self.server.open_exchanges()), (0, 0, 0));
        for device in &self.devices {
            assert_eq!(device.begun, CALLS);
            for Expected { body, .. } in device.calls.values() {
                assert_eq!(self.concluded.get(body), Some(&1), "conclusions of {body:?}");
                assert!(self.delivered.get(body).is_none_or(|times| *times == 1), "{body:?} delivered twice");
            }
        }
        assert_eq!(stats.requests, self.delivered.len() as u64);
        assert_eq!((stats.evicted, stats.superseded, stats.unanswered, stats.responses_cut), (0, 0, 0, 0));
        let calls = self.devices.len() * CALLS;
        assert_eq!(self.tally.responses + self.tally.timed_out + self.tally.rejected, calls);
        (self, stats)
    }
}

const FAIR: Network = Network {
    loss_percent: 40,
    duplicate_percent: 25,
    delay_up_to: Duration::from_millis(1_500),
    losses_of_each: 2,
};

#[test]
fn exactly_once_where_nothing_is_lost_for_good() {
    let mut retransmissions = 0;
    for seed in 1..=30 {
        let (world, stats) = World::new(seed, 5, FAIR).run();
        for Expected { body, confirmable } in world.devices.iter().flat_map(|device| device.calls.values()) {
            let times = world.delivered.get(body).copied().unwrap_or(0);
            assert!(
                times == 1 || !confirmable && times == 0,
                "seed {seed}: {body:?} delivered {times} times"
            );
        }
        // A NON and its answer may be lost; a CON may not.
        let nons =
            world.devices.iter().flat_map(|device| device.calls.values()).filter(|call| !call.confirmable);
        assert!(world.tally.timed_out <= nons.count(), "seed {seed}: {:?}", world.tally);
        assert_eq!((world.tally.rejected, world.tally.lost), (0, 0), "seed {seed}");
        assert!(stats.duplicates > 20 && stats.separate_responses > 20, "seed {seed}: {stats:?}");
        retransmissions += stats.retransmissions;
    }
    assert!(retransmissions > 100);
}

#[test]
fn at_most_once_where_most_is_lost() {
    let network = Network { loss_percent: 65, losses_of_each: u32::MAX, ..FAIR };
    let mut tally = Tally::default();
    for seed in 100..120 {
        let (world, stats) = World::new(seed, 5, network).run();
        assert_eq!(stats.responses_lost, world.tally.lost as u64);
        tally.lost += world.tally.lost;
        tally.timed_out += world.tally.timed_out;
        tally.responses += world.tally.responses;
    }
    // All kinds of ends were seen.
    assert!(tally.lost > 10 && tally.timed_out > 10 && tally.responses > 10, "{tally:?}");
}

#[test]
fn a_clean_network_needs_no_retransmission() {
    let network = Network {
        loss_percent: 0,
        duplicate_percent: 0,
        delay_up_to: Duration::from_millis(300),
        losses_of_each: 0,
    };
    let (world, stats) = World::new(7, 5, network).run();
    assert_eq!(world.tally, Tally { responses: 5 * CALLS, ..Tally::default() });
    assert_eq!((stats.retransmissions, stats.duplicates, stats.refused(Refusal::Unmatched)), (0, 0, 0));
    assert_eq!(stats.acknowledged, stats.separate_responses);
}

#[test]
fn the_same_seed_tells_the_same_story() {
    let story = |seed| World::new(seed, 3, FAIR).run().1;
    assert_eq!(story(11), story(11));
    assert_ne!(story(11), story(12));
}
