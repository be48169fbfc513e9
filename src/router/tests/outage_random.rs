//! Random lives of devices whose hub goes away at random moments, against a small model: nobody is detached, each
//! delivery has one outcome, and what devices are told of it is true.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use fieldgate_amqp::connection::{ConnectionConfig, Event, LinkFlow, LinkId, SessionId, TransferOut};
use fieldgate_amqp::performative::{ACCEPTED, RELEASED, Role, modified};

use super::shared_kit::{HOLD, Hub, Setup, World, credit, settled, tagged};
use crate::testing::Random;

/// Devices of one life.
const DEVICES: usize = 4;

/// What a device has sent, and was told.
#[derive(Default)]
struct Sent {
    /// Its deliveries by id, and their tags, which are never used again.
    tags: HashMap<u32, u32>,
    outcomes: HashMap<u32, Vec<u8>>,
    /// The delivery that has begun.
    open: Option<u32>,
}

/// A life.
struct Life {
    world: World,
    random: Random,
    up: Vec<(LinkId, Sent)>,
    down: Vec<LinkId>,
    next: u32,
    /// Tags that came whole to a hub, and those that a hub accepted, by their payload.
    whole: HashSet<u32>,
    accepted: HashSet<u32>,
    /// Pieces that have come to the hub, and unsettled deliveries there.
    pieces: HashMap<LinkId, Vec<u8>>,
    waiting: Vec<(SessionId, u32, u32)>,
    /// The rest frames of the delivery that a device is being sent, which must not be mixed with another's.
    receiving: HashSet<(usize, LinkId)>,
    /// Up to which delivery-count the last flow of a receiver goes: of devices, and of the hub. (An engine that
    /// receives remembers the most that any of its flows allows.)
    limits: Vec<u32>,
    hub_limits: HashMap<LinkId, u32>,
}

impl Life {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut config = || ConnectionConfig {
            max_frame_bytes: *random.pick(&[512, 1500, 65_536]),
            incoming_window: *random.pick(&[2, 7, 2048]),
            first_transfer_id: *random.pick(&[0, u32::MAX - 9, 1 << 31]),
            idle_time_out: None,
            ..ConnectionConfig::default()
        };
        let setup =
            Setup { device: config(), down: config(), up: config(), hub: config(), ..Setup::default() };
        let mut world = World::with(setup, DEVICES);
        world.manners.first_count = *random.pick(&[0, u32::MAX - 3]);
        let up = (0..DEVICES).map(|device| (world.link(device, Role::Sender).0, Sent::default())).collect();
        let down = (0..DEVICES).map(|device| world.link(device, Role::Receiver).0).collect();
        let mut life = Self {
            world,
            random,
            up,
            down,
            next: 0,
            whole: HashSet::new(),
            accepted: HashSet::new(),
            pieces: HashMap::new(),
            waiting: Vec::new(),
            receiving: HashSet::new(),
            limits: Vec::new(),
            hub_limits: HashMap::new(),
        };
        life.limits = (0..DEVICES).map(|device| life.count(device)).collect();
        life
    }

    /// The delivery-count of the link over which a device receives.
    fn count(&self, device: usize) -> u32 {
        self.world.devices[device].peer.machine.link(self.down[device]).expect("it stands").delivery_count
    }

    fn act(&mut self) {
        let device = self.random.below(DEVICES);
        match self.random.below(30) {
            0 => self.cut(),
            1 | 2 => self.world.is_up = true,
            3 => {
                let step = Duration::from_millis(self.random.below(300) as u64);
                self.world.now += step;
                let (now, unix) = (self.world.now, self.world.unix);
                self.world.router.handle_timeout(now, unix);
            }
            4..=6 => self.give_credit(),
            7..=14 => self.send(device),
            15..=18 => self.accept(),
            19..=21 => self.ask(device),
            22..=25 => self.deliver(),
            _ => {}
        }
        let most = 1 + self.random.below(3);
        for _ in 0..most {
            let random = &mut self.random;
            self.world.step(|| match random.below(4) {
                0 => 0,
                1 => usize::MAX,
                _ => 1 + random.below(900),
            });
        }
        self.learn();
    }

    fn cut(&mut self) {
        if self.world.hubs.is_empty() {
            return;
        }
        if self.random.chance(2) {
            let most = self.random.below(2000);
            self.world.leak(0, most);
        }
        self.learn();
        self.world.is_up = self.random.chance(3);
        if self.random.chance(4) {
            self.world.hubs[0].peer.machine.close(None);
        } else {
            self.world.cut(0);
        }
        self.forget_hub();
    }

    fn forget_hub(&mut self) {
        self.pieces.clear();
        self.waiting.clear();
        self.hub_limits.clear();
    }

    /// A hub's end of a device's link, if there is one that stands.
    fn at_hub(&mut self, role: Role) -> Option<LinkId> {
        let hub = self.world.hubs.first().filter(|hub| hub.peer.machine.is_open());
        let Hub { peer, links, .. } = hub?;
        let standing = links
            .iter()
            .filter(|(link, _, attach)| attach.role() == role && peer.machine.link(*link).is_some());
        let standing: Vec<LinkId> = standing.map(|(link, _, _)| *link).collect();
        if standing.is_empty() { None } else { Some(*self.random.pick(&standing)) }
    }

    fn give_credit(&mut self) {
        let Some(link) = self.at_hub(Role::Sender) else { return };
        let more = self.random.below(6) as u32;
        let drain = self.random.chance(5);
        let machine = &mut self.world.hub().machine;
        machine.flow(link, LinkFlow { drain, ..credit(more) });
        let count = machine.link(link).map(|link| link.delivery_count);
        self.hub_limits.insert(link, count.expect("it stands").wrapping_add(more));
    }

    fn send(&mut self, device: usize) {
        let (link, sent) = &mut self.up[device];
        let machine = &mut self.world.devices[device].peer.machine;
        let Some(known) = machine.link(*link) else { panic!("a link is gone") };
        if sent.open.is_none() && known.credit == 0 {
            return;
        }
        let (more, aborted) = (self.random.chance(3), sent.open.is_some() && self.random.chance(8));
        let tag = sent.open.unwrap_or(self.next);
        let bytes = tag.to_be_bytes();
        let first = sent.open.is_none();
        let transfer = TransferOut {
            more,
            aborted,
            delivery_tag: first.then_some(&bytes[..]),
            ..TransferOut::default()
        };
        // The tag again and again, so that a mixture shows.
        let payload = if aborted { Vec::new() } else { bytes.repeat(1 + self.random.below(300)) };
        let Ok(id) = machine.transfer(*link, transfer, &payload) else { return };
        if first {
            self.next += 1;
            sent.tags.insert(id, tag);
        }
        sent.open = (more && !aborted).then_some(tag);
        if aborted {
            // Nobody is told of an aborted delivery for certain.
            sent.tags.remove(&id);
        }
    }

    fn accept(&mut self) {
        if self.waiting.is_empty() || self.world.hubs.is_empty() {
            return;
        }
        let at = self.random.below(self.waiting.len());
        let (session, id, tag) = self.waiting.swap_remove(at);
        let good = !self.random.chance(4);
        // An acceptance counts from when it is said: it may never come to the device.
        if good {
            self.accepted.insert(tag);
        }
        let state = if good { ACCEPTED } else { REJECTED };
        self.world.hub().machine.disposition(session, settled(Role::Receiver, id, Some(state)));
    }

    fn ask(&mut self, device: usize) {
        let (credit, drain) = (self.random.below(9) as u32, self.random.chance(5));
        self.limits[device] = self.count(device).wrapping_add(credit);
        let flow = LinkFlow { link_credit: credit, drain, ..LinkFlow::default() };
        self.world.devices[device].peer.machine.flow(self.down[device], flow);
    }

    fn deliver(&mut self) {
        let Some(link) = self.at_hub(Role::Receiver) else { return };
        let tag = self.next.to_be_bytes();
        self.next += 1;
        let more = self.random.chance(3);
        let machine = &mut self.world.hub().machine;
        let Some(known) = machine.link(link) else { return };
        let (begun, has_credit) = (known.delivery.is_some(), known.credit > 0);
        if !begun && !has_credit {
            return;
        }
        let transfer = TransferOut { more, ..if begun { TransferOut::default() } else { tagged(&tag) } };
        let _ = machine.transfer(link, transfer, &[7; 700]);
    }

    /// Takes in what both sides were told.
    fn learn(&mut self) {
        for device in 0..self.world.devices.len() {
            for event in self.world.device(device).take() {
                self.device_heard(device, event);
            }
        }
        if !self.world.hubs.first().is_some_and(|hub| hub.peer.machine.is_open()) {
            return self.forget_hub();
        }
        for event in self.world.hub().take() {
            self.hub_heard(event);
        }
    }

    fn device_heard(&mut self, device: usize, event: Event) {
        match event {
            Event::Detached { detach, .. } => panic!("device {device} was detached: {:?}", detach.error()),
            Event::SessionEnded { error, .. } => panic!("a session of device {device} was ended: {error:?}"),
            Event::Closed(reason) => panic!("device {device} was closed: {reason}"),
            Event::Disposition { session, disposition } if disposition.role == Role::Receiver => {
                let (link, sent) = &mut self.up[device];
                let machine = &self.world.devices[device].peer.machine;
                assert_eq!(machine.session_of_link(*link), Some(session));
                assert!(disposition.settled);
                let (first, last) = (disposition.first, disposition.fields().last);
                let state = disposition.state().expect("an outcome").to_vec();
                for step in 0..=last.wrapping_sub(first) {
                    let id = first.wrapping_add(step);
                    let before = sent.outcomes.insert(id, state.clone());
                    assert_eq!(before, None, "one outcome for delivery {id} of device {device}");
                }
            }
            Event::Transfer { link, first, transfer, .. } => {
                let begun = self.receiving.remove(&(device, link));
                assert_eq!(first, !begun, "whole deliveries, one after another");
                if transfer.more && !transfer.aborted {
                    self.receiving.insert((device, link));
                }
            }
            _ => {}
        }
    }

    fn hub_heard(&mut self, event: Event) {
        let Event::Transfer { link, session, delivery_id, first, transfer } = event else { return };
        let come = self.pieces.entry(link).or_default();
        assert!(!first || come.is_empty(), "a delivery has a beginning and an end");
        come.extend_from_slice(transfer.payload_slice());
        if transfer.more && !transfer.aborted {
            return;
        }
        let come = self.pieces.remove(&link).unwrap_or_default();
        if transfer.aborted {
            return;
        }
        let (tags, _) = come.as_chunks::<4>();
        let tag = u32::from_be_bytes(tags[0]);
        assert!(tags.iter().all(|other| *other == tags[0]), "a mixture of deliveries");
        self.whole.insert(tag);
        self.waiting.push((session, delivery_id, tag));
    }

    /// Everything comes to its end; then the books must agree.
    fn finish(mut self) -> HashSet<Vec<u8>> {
        self.settle_down();
        for device in 0..DEVICES {
            self.finish_delivery(device);
        }
        self.settle_down();
        while !self.waiting.is_empty() {
            self.accept();
            self.settle_down();
        }
        for device in 0..DEVICES {
            let (link, sent) = &self.up[device];
            for (id, tag) in &sent.tags {
                let outcome = sent.outcomes.get(id).unwrap_or_else(|| panic!("no outcome for {tag}"));
                match &outcome[..] {
                    ACCEPTED => assert!(self.accepted.contains(tag), "{tag} was accepted by nobody"),
                    RELEASED => assert!(!self.whole.contains(tag), "{tag} was released, and is at the hub"),
                    REJECTED => assert!(self.whole.contains(tag)),
                    other => assert_eq!(*other, modified(true, false, None)[..], "{tag}"),
                }
            }
            // Each sender may send what its receiver has allowed last, and no more.
            let may = |limit: u32, count: u32| Some(limit.wrapping_sub(count)).filter(|may| *may < 1 << 31);
            let here = self.world.devices[device].peer.machine.link(*link).expect("it stands").credit;
            let (at_hub, _) = self.world.at_hub(&format!("devices/d{device}/up"));
            let there = self.world.hubs[0].peer.machine.link(at_hub).expect("it stands").delivery_count;
            let limit = self.hub_limits.get(&at_hub).copied().unwrap_or(there);
            assert_eq!(here, may(limit, there).unwrap_or(0), "credit of device {device}");
            let (at_hub, _) = self.world.at_hub(&format!("devices/d{device}/down"));
            let there = self.world.hubs[0].peer.machine.link(at_hub).expect("it stands").credit;
            let here = may(self.limits[device], self.count(device)).unwrap_or(0);
            assert_eq!(there, here, "credit for device {device}");
        }
        self.up.into_iter().flat_map(|(_, sent)| sent.outcomes.into_values()).collect()
    }

    fn finish_delivery(&mut self, device: usize) {
        let (link, sent) = &mut self.up[device];
        if let Some(tag) = sent.open.take() {
            let machine = &mut self.world.devices[device].peer.machine;
            machine.transfer(*link, TransferOut::default(), &tag.to_be_bytes()).expect("it has begun");
        }
    }

    fn settle_down(&mut self) {
        self.world.is_up = true;
        while self.world.step(|| usize::MAX) {
            self.learn();
        }
        self.learn();
    }
}

/// An outcome that only a hub gives: `rejected` without an error.
const REJECTED: &[u8] = &[0x00, 0x53, 0x25, 0x45];

/// Lives once; gives the outcomes that devices were told.
fn live(seed: u64) -> HashSet<Vec<u8>> {
    let mut life = Life::new(seed);
    let until = life.world.now + HOLD / 2;
    for _ in 0..250 {
        life.act();
        assert!(life.world.now < until, "shorter than what is held");
    }
    life.finish()
}

#[test]
fn outages_at_any_moment_cost_nobody_a_link_and_tell_nobody_a_lie() {
    let mut told = HashSet::new();
    for seed in 0..300 {
        told.extend(live(seed));
    }
    assert_eq!(told.len(), 4, "accepted, rejected, released, modified: all have been told");
}
