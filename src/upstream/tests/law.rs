//! The law, under random lives: one outcome for each message; accepted only what the hub accepted; released only what
//! the hub never had, or gave back; in order; and once trouble is over everybody gets through.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::time::Duration;

use fieldgate_amqp::connection::ConnectionConfig;
use fieldgate_amqp::performative::{ACCEPTED, AmqpError, Condition, RELEASED, modified, received, rejected};
use fieldgate_mappings::outcome::Outcome;

use crate::config::Profile;
use crate::devices::SpeaksWith;
use crate::sas::SharedKey;
use crate::testing::Random;

use super::hub::{Cbs, Said, Script};
use super::kit::{Bench, End, Inbox, Roll, Setup, id, piece};

const DEVICES: [&str; 6] = ["d0", "d1", "d2", "d3", "d4", "d5"];
const KINDS: [&str; 3] = ["events", "alarms", "logs"];
/// Conditions that are a reason to refuse a message, and one that is the hub's own trouble.
const CONDITIONS: [&str; 5] = [
    "amqp:not-found",
    "amqp:unauthorized-access",
    "vendor:odd",
    "amqp:internal-error",
    "com.microsoft:device-container-throttled",
];
/// An outcome that no specification names.
const VENDOR_STATE: &[u8] = b"\x00\xa3\x06vendor\x45";

/// A subscription under test.
struct Subscribed {
    device: &'static str,
    serial: u64,
    inbox: Rc<Inbox>,
}

struct World {
    bench: Bench,
    random: Random,
    /// Trouble is rare.
    calm: bool,
    subscribed: Vec<Subscribed>,
    /// What devices said of commands: the last word on each.
    told: HashMap<u64, Vec<Outcome>>,
    next_command: u64,
    /// Of each message.
    priorities: Vec<u8>,
    /// The most that was ever in flight.
    most: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let frames = *random.pick(&[512, 600, 65_536]);
        let config = ConnectionConfig {
            container_id: String::from("test"),
            max_frame_bytes: frames,
            channel_max: *random.pick(&[1, 2, 4, 100]),
            incoming_window: *random.pick(&[2, 5, 2048]),
            idle_time_out: None,
            first_transfer_id: u32::MAX - 20,
            ..ConnectionConfig::default()
        };
        let script = Script {
            credit: *random.pick(&[0, 1, 3, 50]),
            max_message_bytes: *random.pick(&[None, Some(1500)]),
            relays: random.chance(2),
            ..Script::default()
        };
        let setup = Setup {
            max_in_flight: *random.pick(&[1, 4, 1000]),
            token: random.chance(2),
            gateway: ConnectionConfig { channel_max: 200, ..config.clone() },
            hub: config,
            script,
            profile: *random.pick(&[Profile::AzureIotHub, Profile::AzureIotHub, Profile::Amqp]),
            max_links: *random.pick(&[1, 2, 200]),
            devices_per_connection: *random.pick(&[1, 2, 500]),
            max_connections: *random.pick(&[1, 2, 10]),
            per_second: *random.pick(&[None, None, NonZeroU32::new(20)]),
            roster: Roll::default(),
        };
        for device in DEVICES {
            let hub = random.chance(5).then_some("b");
            let speaks = match random.below(3) {
                0 => SpeaksWith::DeviceKey(SharedKey::from_bytes(b"key").expect("some bytes")),
                _ => SpeaksWith::Policy,
            };
            setup.roster.set(device, hub, speaks);
        }
        Self {
            bench: Bench::apart(setup),
            random,
            calm: !seed.is_multiple_of(3),
            subscribed: Vec::new(),
            told: HashMap::new(),
            next_command: 0,
            priorities: Vec::new(),
            most: 0,
        }
    }

    fn act(&mut self) {
        // The last of the choices are trouble.
        let choices = if self.calm && !self.random.chance(10) { 78 } else { 100 };
        if !self.bench.is_connected() && self.random.chance(8) {
            self.bench.connect();
        }
        match self.random.below(choices) {
            0..=29 => self.send(),
            30..=54 => self.judge(),
            55..=60 => self.credit(),
            61..=65 => self.commands(),
            66..=72 => self.settle(),
            73..=75 => self.subscribe(),
            76 | 77 if !self.subscribed.is_empty() => {
                let at = self.random.below(self.subscribed.len());
                let gone = self.subscribed.swap_remove(at);
                self.bench.fleet.unsubscribe(&id(gone.device), gone.serial);
            }
            76 | 77 => {}
            78..=80 => self.trouble(),
            81..=84 => {
                let time = *self.random.pick(&[0, 1, 200, 900, 1_000, 2_500, 31_000]);
                self.bench.now += Duration::from_millis(time);
                self.bench.tick();
            }
            85 => self.bench.deaf = self.random.chance(3),
            86 => {
                self.bench.setup.script.refuses =
                    self.random.chance(3).then_some(CONDITIONS[self.random.below(CONDITIONS.len())])
            }
            87 => {
                let cbs = [Cbs::Accepts, Cbs::Accepts, Cbs::Refuses, Cbs::GivesNoCredit, Cbs::SaysNothing];
                self.bench.setup.script.cbs = *self.random.pick(&cbs);
            }
            88 => self.bench.setup.script.ignores = self.random.chance(4),
            _ => {}
        }
        for _ in 0..self.random.below(4) {
            let random = &mut self.random;
            self.bench.step(|| piece(random));
        }
        self.most = self.most.max(self.bench.fleet.counts().in_flight);
        // Each of the two hubs has its own.
        assert!(self.most <= 2 * self.bench.setup.max_in_flight);
    }

    fn send(&mut self) {
        let device = *self.random.pick(&DEVICES);
        let kind = *self.random.pick(&KINDS);
        let more = *self.random.pick(&[0, 10, 400, 1400, 3000]);
        let patience = self.bench.patience(self.random.below(40) as u64, self.random.chance(2));
        let priority = *self.random.pick(&[4, 4, 4, 0, 9]);
        self.bench.send_urgent(device, kind, more, patience, priority);
        self.priorities.push(priority);
    }

    /// The hub says something of a message: mostly an outcome, in any order.
    fn judge(&mut self) {
        let at = self.random.below(16);
        let Some(hub) = self.bench.any_hub(at) else { return };
        if hub.pending.is_empty() {
            return;
        }
        let at = self.random.below(hub.pending.len());
        let condition = CONDITIONS[self.random.below(CONDITIONS.len())];
        let error = AmqpError::new(&Condition::from(condition), None);
        let (state, said) = match self.random.below(12) {
            0..=5 => (Some(ACCEPTED.to_vec()), Said::Accepted),
            6 => (Some(RELEASED.to_vec()), Said::NotTaken),
            7 => (Some(modified(true, false, None).to_vec()), Said::NotTaken),
            8 | 9 => (Some(rejected(Some(&error)).to_vec()), Said::Rejected(condition)),
            10 => (Some(VENDOR_STATE.to_vec()), Said::Vague),
            _ => (if self.random.chance(2) { None } else { Some(received(0, 0).to_vec()) }, Said::Vague),
        };
        // Without settling, an outcome is one all the same, and the gateway settles.
        let settled = said == Said::Vague || !self.random.chance(3);
        let ticket = hub.judge(at, state.as_deref(), settled);
        if !settled {
            hub.pending.swap_remove(at);
        }
        let former = self.bench.records.said.insert(ticket, said);
        assert_eq!(former, None, "the test judges a message once");
    }

    fn credit(&mut self) {
        let at = self.random.below(16);
        let Some(hub) = self.bench.any_hub(at) else { return };
        if !hub.inlets.is_empty() {
            let inlet = self.random.below(hub.inlets.len());
            hub.credit(inlet, self.random.below(6) as u32, self.random.chance(4));
        }
    }

    fn subscribe(&mut self) {
        let device = *self.random.pick(&DEVICES);
        let (inbox, serial) = self.bench.subscribe(device, 1 + self.random.below(4) as u32);
        self.subscribed.retain(|former| former.device != device);
        self.subscribed.push(Subscribed { device, serial, inbox });
    }

    /// The hub sends commands over one of its links.
    fn commands(&mut self) {
        let at = self.random.below(16);
        let Some(hub) = self.bench.any_hub(at) else { return };
        if hub.commands.is_empty() {
            return;
        }
        let at = self.random.below(hub.commands.len());
        while hub.command(at, self.next_command) {
            self.next_command += 1;
        }
    }

    /// A device settles a command: perhaps a late one, of a link that is gone.
    fn settle(&mut self) {
        if self.subscribed.is_empty() {
            return;
        }
        let at = self.random.below(self.subscribed.len());
        let Subscribed { device, serial, inbox } = &self.subscribed[at];
        let mut commands = inbox.commands.borrow_mut();
        if commands.is_empty() {
            return;
        }
        let at = self.random.below(commands.len());
        let command = commands.swap_remove(at);
        assert_eq!(command.message.device, id(device));
        let number = u64::from_be_bytes(command.message.body[..8].try_into().expect("eight bytes"));
        let outcome = match self.random.below(4) {
            0 => Outcome::Released,
            1 => Outcome::Unknown,
            _ => Outcome::Accepted,
        };
        self.bench.fleet.settle(&id(device), *serial, command.id, &outcome);
        self.told.entry(number).or_default().push(outcome);
    }

    /// Something breaks.
    fn trouble(&mut self) {
        let at = self.random.below(16);
        let Some(hub) = self.bench.any_hub(at) else { return };
        let condition = self.random.chance(2).then_some(CONDITIONS[self.random.below(CONDITIONS.len())]);
        match self.random.below(6) {
            0 if self.random.chance(2) => self.bench.disconnect(),
            0 => {
                let at = self.random.below(self.bench.ends.len());
                self.bench.disconnect_end(at);
            }
            1 => hub.machine.close(None),
            2 | 3 if !hub.inlets.is_empty() => {
                let link = hub.link(self.random.below(hub.inlets.len()));
                hub.detach(link, condition);
            }
            4 if !hub.inlets.is_empty() => {
                let session = hub.inlets[self.random.below(hub.inlets.len())].session;
                hub.end(session, condition);
            }
            5 if !hub.commands.is_empty() => {
                let link = hub.commands[self.random.below(hub.commands.len())].sender.link();
                hub.detach(link, condition);
            }
            _ => {}
        }
    }

    /// Trouble is over: all that is left finds its end.
    fn finish(&mut self) {
        self.bench.deaf = false;
        let relays = self.bench.setup.script.relays;
        self.bench.setup.script = Script { relays, ..Script::default() };
        for Subscribed { device, serial, .. } in std::mem::take(&mut self.subscribed) {
            self.bench.fleet.unsubscribe(&id(device), serial);
        }
        if self.random.chance(2) {
            self.bench.disconnect();
        }
        // What trouble left behind has its time-outs. Nobody is idle for so long as to be forgotten with it.
        self.live(45, false);
        let sent = self.bench.sent;
        for (device, kind) in DEVICES.iter().flat_map(|device| KINDS.map(|kind| (device, kind))) {
            self.bench.send_with(device, kind, 0, self.bench.patience(200, true));
            self.priorities.push(4);
        }
        self.live(150, true);
        for ticket in sent..self.bench.sent {
            assert_eq!(
                self.bench.outcome(ticket),
                Some(Outcome::Accepted),
                "message {ticket} does not get through"
            );
        }
        for _ in 0..12 {
            if !self.bench.is_connected() {
                self.bench.connect();
            }
            self.bench.wait(Duration::from_secs(40));
        }
        self.bench.fleet.close();
        self.bench.run();
        if self.bench.is_connected() {
            self.bench.disconnect();
        }
        self.bench.wait(Duration::from_secs(2));
    }

    /// Time with a hub that gives credit, and accepts what it has.
    fn live(&mut self, seconds: u64, accepts: bool) {
        for _ in 0..seconds {
            // A stream ends with the hub that has it.
            let is_over = |end: &End| end.hub.as_ref().is_some_and(|hub| hub.machine.is_closed());
            while let Some(at) = self.bench.ends.iter().position(is_over) {
                self.bench.disconnect_end(at);
            }
            self.bench.connect();
            self.bench.wait(Duration::from_secs(1));
            for hub in self.bench.ends.iter_mut().filter_map(|end| end.hub.as_mut()) {
                (0..hub.inlets.len()).for_each(|inlet| hub.credit(inlet, 10, false));
                while accepts && !hub.pending.is_empty() {
                    let ticket = hub.judge(0, Some(ACCEPTED), true);
                    self.bench.records.said.insert(ticket, Said::Accepted);
                }
            }
        }
        self.bench.run();
    }

    fn check(&self) {
        let records = &self.bench.records;
        // In order, for each address and priority.
        let mut last: HashMap<(&str, u8), u64> = HashMap::new();
        for (node, ticket) in &records.received {
            let priority = self.priorities[usize::try_from(*ticket).expect("counted in memory")];
            let before = last.insert((node, priority), *ticket);
            assert!(before.is_none_or(|before| before < *ticket), "{node}: {ticket} came after {before:?}");
        }
        for ticket in 0..self.bench.sent {
            let outcome = self.bench.outcome(ticket).expect("every message has an outcome");
            let said = records.said.get(&ticket);
            let touched = records.touched.contains(&ticket);
            match outcome {
                Outcome::Accepted => assert_eq!(said, Some(&Said::Accepted), "message {ticket}"),
                Outcome::Released if touched => assert!(
                    matches!(said, Some(Said::NotTaken | Said::Rejected("amqp:internal-error"))),
                    "message {ticket} was released, and the hub said {said:?}"
                ),
                Outcome::Released | Outcome::Unknown => {}
                Outcome::Rejected(rejection) if touched => assert!(
                    matches!(said, Some(Said::Rejected(_))),
                    "message {ticket} was rejected ({rejection}), and the hub said {said:?}"
                ),
                // By a link that was refused or detached, or by its size.
                Outcome::Rejected(_) => {}
            }
        }
        for (number, state) in &records.commands {
            let told = self.told.get(number).map_or(&[][..], |told| told);
            match state.as_deref() {
                Some("Accepted") => assert!(told.contains(&Outcome::Accepted), "command {number}"),
                Some("Released") => assert!(told.contains(&Outcome::Released), "command {number}"),
                state => panic!("command {number}: {state:?}"),
            }
        }
        self.bench.assert_empty();
    }
}

#[test]
fn every_message_has_one_outcome_and_it_is_true() {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    let mut commands = 0;
    for seed in 0..500 {
        let mut world = World::new(seed);
        let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..500 {
                world.act();
            }
            world.finish();
            world.check();
        }));
        assert!(lived.is_ok(), "seed {seed}, connections lost for {:?}", world.bench.losses);
        commands += world.bench.records.commands.len();
        for ticket in 0..world.bench.sent {
            *seen.entry(name(&world.bench.outcome(ticket).expect("checked"))).or_default() += 1;
        }
    }
    // The lives were not dull.
    let kinds = ["accepted", "released", "unknown", "too-large", "no-such-address", "credentials", "content"];
    for kind in kinds {
        assert!(seen.get(kind).is_some_and(|count| *count > 50), "{kind}: {seen:?}");
    }
    assert!(commands > 500, "{commands} commands");
}

fn name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Accepted => "accepted",
        Outcome::Released => "released",
        Outcome::Unknown => "unknown",
        Outcome::Rejected(rejection) => rejection.reason.name(),
    }
}
