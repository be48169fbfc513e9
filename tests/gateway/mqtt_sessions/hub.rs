//! The hub of a life: what came, what it answered, and the commands that it has for each device.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use fieldgate_amqp::performative::Role;

use super::super::hub::{Answer, Hub, Message, Place, Seen};
use super::World;
use crate::rng::Rng;

/// How long the hub thinks before it answers some of what it has.
const THINKS: Duration = Duration::from_millis(1);
/// Commands that wait for a device at most: fewer than a subscription's credit.
const MAX_COMMANDS: usize = 4;

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Undecided,
    Accepted,
    Rejected,
    /// Given back: nobody has it.
    Released,
}

/// A command that is not settled.
#[derive(Debug)]
struct Command {
    body: Bytes,
    /// The link that it was sent over, while that is there.
    sent: Option<Place>,
    /// It was sent before.
    again: bool,
    /// Reason codes that the device has said.
    answers: BTreeSet<u8>,
}

/// What the hub knows.
#[derive(Debug, Default)]
pub(super) struct Book {
    /// What became of each message, as often as it came.
    fates: BTreeMap<Bytes, Vec<Fate>>,
    /// The newest message of each device, QoS and session: in this order messages come for the first time (MQTT 5 4.6).
    newest: BTreeMap<(String, u8, u32), u64>,
    /// Came, and is not answered.
    undecided: Vec<Message>,
    commands: BTreeMap<String, Vec<Command>>,
    /// Links that commands are sent over, once they have credit.
    links: BTreeMap<String, (Place, bool)>,
    /// Devices that come to rest: all that they send is accepted.
    resting: BTreeSet<String>,
    last_command: u64,
}

/// What the payload of a message says: its device, QoS, the connection or session it is of, and its number.
fn read(payload: &Bytes) -> (String, u8, u32, u64) {
    let text = str::from_utf8(payload).unwrap();
    let mut words = text.split(' ');
    let mut next = || words.next().unwrap();
    (next().to_owned(), next().parse().unwrap(), next().parse().unwrap(), next().parse().unwrap())
}

impl Book {
    pub(super) fn fates(&self, payload: &Bytes) -> &[Fate] {
        self.fates.get(payload).map_or(&[], |fates| fates)
    }

    pub(super) fn has(&self, payload: &Bytes, fate: Fate) -> bool {
        self.fates(payload).contains(&fate)
    }

    pub(super) fn rest(&mut self, device: &str) {
        self.resting.insert(device.to_owned());
    }

    pub(super) fn has_commands(&self, device: &str) -> bool {
        self.commands.get(device).is_some_and(|commands| !commands.is_empty())
    }

    /// One more command for a device, if there is room.
    pub(super) fn command(&mut self, device: &str) {
        self.last_command += 1;
        let body = Bytes::from(format!("{device} command {}", self.last_command));
        let commands = self.commands.entry(device.to_owned()).or_default();
        if commands.len() < MAX_COMMANDS {
            commands.push(Command { body, sent: None, again: false, answers: BTreeSet::new() });
        }
    }

    /// The device says so about a command, and may not be heard.
    pub(super) fn answered(&mut self, device: &str, body: &Bytes, code: u8) {
        let mut commands = self.commands.get_mut(device).into_iter().flatten();
        if let Some(command) = commands.find(|command| command.body == *body) {
            command.answers.insert(code);
        }
    }

    /// Who has not come to rest.
    pub(super) fn waiting(&self) -> String {
        self.commands.keys().find(|device| self.has_commands(device)).cloned().unwrap_or_default()
    }

    fn arrived(&mut self, world: &World, message: Message) {
        let payload = message.body.clone();
        let (device, qos, era, number) = read(&payload);
        world.say("hub", &format!("{payload:?} over {:?}", message.place));
        let fates = self.fates.entry(payload).or_default();
        if fates.is_empty() {
            let newest = self.newest.entry((device.clone(), qos, era)).or_default();
            if *newest > number {
                world.fail(&device, &format!("{number} comes for the first time after {newest}"));
            }
            *newest = number;
        }
        match qos {
            0 if !fates.is_empty() => world.fail(&device, &format!("{number} of QoS 0 comes twice")),
            2 if fates.iter().any(|fate| matches!(fate, Fate::Undecided | Fate::Accepted)) => {
                world.fail(&device, &format!("{number} of QoS 2 comes twice: {fates:?}"));
            }
            _ => {}
        }
        fates.push(Fate::Undecided);
        self.undecided.push(message);
    }

    /// Answers one message.
    fn answer(&mut self, hub: &Hub, world: &World, rng: &mut Rng) {
        let message = self.undecided.swap_remove(rng.below(self.undecided.len() as u64) as usize);
        let (device, ..) = read(&message.body);
        let (answer, fate) = match rng.below(24) {
            _ if self.resting.contains(&device) => (Answer::Accept, Fate::Accepted),
            0 => (Answer::Release, Fate::Released),
            1 => (Answer::Reject("amqp:not-found"), Fate::Rejected),
            _ => (Answer::Accept, Fate::Accepted),
        };
        match fate {
            Fate::Released => world.happened("given back by the hub"),
            Fate::Rejected => world.happened("refused by the hub"),
            Fate::Undecided | Fate::Accepted => {}
        }
        world.say("hub", &format!("{:?} {fate:?}", message.body));
        let fates = self.fates.get_mut(&message.body).unwrap();
        *fates.iter_mut().find(|fate| **fate == Fate::Undecided).unwrap() = fate;
        hub.settle(&message, &answer);
        hub.credit(message.place, 1);
    }

    /// Sends what is to be sent over the newest links.
    fn send(&mut self, hub: &Hub, world: &World) {
        for (device, (link, has_credit)) in &self.links {
            for command in self.commands.get_mut(device).into_iter().flatten() {
                // While the link before is there, the hub waits for its word.
                if *has_credit && command.sent.is_none() {
                    world.say("hub", &format!("{:?} over {link:?}", command.body));
                    if std::mem::replace(&mut command.again, true) {
                        world.happened("a command again");
                    }
                    command.sent = Some(*link);
                    hub.send_bytes(*link, command.body.clone());
                }
            }
        }
    }

    fn settled(&mut self, world: &World, body: &Bytes, outcome: &str) {
        world.say("hub", &format!("{body:?} is {outcome}"));
        let device = str::from_utf8(body).unwrap().split(' ').next().unwrap().to_owned();
        let commands = self.commands.get_mut(&device).unwrap();
        let at = commands.iter().position(|command| command.body == *body);
        let Some(at) = at else { world.fail(&device, "a command has two outcomes") };
        let command = commands.remove(at);
        let was_said = match outcome {
            "accepted" => command.answers.iter().any(|code| *code < 0x80),
            outcome if outcome.starts_with("rejected") => command.answers.iter().any(|code| *code >= 0x80),
            _ => false,
        };
        if !was_said {
            world.fail(&device, &format!("{body:?} is {outcome}, and the device said {:?}", command.answers));
        }
    }

    fn detached(&mut self, place: Place) {
        self.links.retain(|_, (link, _)| *link != place);
        for command in self.commands.values_mut().flatten() {
            command.sent.take_if(|link| *link == place);
        }
    }
}

/// Plays the hub for ever.
pub(super) async fn run(hub: &mut Hub, world: &Rc<World>, mut rng: Rng) {
    let mut thinks = tokio::time::interval(THINKS);
    loop {
        tokio::select! {
            () = hub.wait(|seen| { note(seen, world); Some(()) }) => {}
            _ = thinks.tick() => {
                let mut book = world.book.borrow_mut();
                for _ in 0..rng.below(8) {
                    if !book.undecided.is_empty() {
                        book.answer(hub, world, &mut rng);
                    }
                }
            }
        }
        world.book.borrow_mut().send(hub, world);
    }
}

fn note(seen: &Seen, world: &World) {
    let mut book = world.book.borrow_mut();
    match seen {
        Seen::Message(message) => book.arrived(world, message.clone()),
        Seen::Outcome { body, outcome } => book.settled(world, body, outcome),
        Seen::Attached { place, address, role: Role::Receiver } => {
            let device = address.trim_start_matches('/').split('/').nth(1).unwrap_or_default().to_owned();
            world.say("hub", &format!("{device} attaches {place:?}"));
            book.links.insert(device, (*place, false));
        }
        Seen::Credit(place) => {
            let link = book.links.values_mut().find(|(link, _)| link == place);
            link.into_iter().for_each(|(_, has_credit)| *has_credit = true);
        }
        Seen::Detached { place } => {
            world.say("hub", &format!("detached {place:?}"));
            book.detached(*place);
        }
        Seen::Opened { .. } | Seen::Attached { .. } | Seen::SessionEnded { .. } => {}
        Seen::Ended { connection, reason } => {
            world.fail("hub", &format!("connection {connection} is over: {reason:?}"));
        }
    }
}
