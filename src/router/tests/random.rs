//! Random lives of devices and hubs against a small model: on each link, what one end hears is what the other end
//! said, word for word, up to the moment when somebody let go.

use std::collections::HashMap;

use bytes::Bytes;
use fieldgate_amqp::connection::{ConnectionConfig, Event, Half, LinkFlow, LinkId, SessionId, TransferOut};
use fieldgate_amqp::error::AmqpError;
use fieldgate_amqp::performative::{
    ACCEPTED, Attach, AttachOut, Disposition, DispositionOut, RELEASED, Role, SourceOut, Transfer, modified,
    received,
};

use crate::testing::Random;

use super::kit::{Bench, Peer, Setup, attach, error, fields, full_attach};

/// A link, by its name and the role of the device's end.
type Key = (String, Role);

/// Something said on a link.
#[derive(Clone, Debug, PartialEq)]
enum Fact {
    Attach(Vec<Option<Bytes>>),
    Flow { count: Option<u32>, credit: u32, available: Option<u32>, drain: bool, echo: bool },
    Delivery { tag: Vec<u8>, format: Option<u32>, settled: bool, aborted: bool, payload: Bytes },
    Detach { closed: bool, error: Option<AmqpError> },
}

impl Fact {
    /// A flow of a receiver that does not know the count means the first one; the gateway, if it knows it, says it.
    /// That it says the right one shows in the credit that both ends then agree upon.
    fn counted_like(&self, heard: &Fact) -> Fact {
        match (self.clone(), heard) {
            (Fact::Flow { count: None, credit, available, drain, echo }, Fact::Flow { count, .. }) => {
                Fact::Flow { count: *count, credit, available, drain, echo }
            }
            (said, _) => said,
        }
    }
}

/// Something said of a delivery: the speaker's role, whether it settles, the state.
type Word = (Role, bool, Vec<u8>);

/// A delivery's id and tag.
type Sent = (u32, Vec<u8>);

/// A delivery that has begun and is not whole.
#[derive(Default)]
struct Partial {
    tag: Vec<u8>,
    format: Option<u32>,
    settled: bool,
    payload: Vec<u8>,
}

/// What one end knows, said and heard.
#[derive(Default)]
struct Book {
    sessions: Vec<SessionId>,
    links: HashMap<LinkId, (Key, SessionId)>,
    /// Attaches and detaches of the other end that are not answered.
    asked: Vec<(LinkId, Attach)>,
    letting_go: Vec<LinkId>,
    sending: HashMap<LinkId, Partial>,
    receiving: HashMap<LinkId, Partial>,
    /// Deliveries of a session by id: those sent, and those received.
    deliveries: HashMap<(SessionId, Role), Vec<Sent>>,
    said: HashMap<Key, Vec<Fact>>,
    heard: HashMap<Key, Vec<Fact>>,
    words_said: HashMap<Vec<u8>, Vec<Word>>,
    words_heard: HashMap<Vec<u8>, Vec<Word>>,
}

impl Book {
    fn key(&self, link: LinkId) -> Key {
        self.links[&link].0.clone()
    }

    fn say(&mut self, link: LinkId, fact: Fact) {
        let key = self.key(link);
        self.said.entry(key).or_default().push(fact);
    }

    /// Whether this end has detached a link.
    fn let_go(&self, key: &Key) -> bool {
        let mut facts = self.said.get(key).into_iter().flatten();
        facts.any(|fact| matches!(fact, Fact::Detach { .. }))
    }

    fn hear(&mut self, link: LinkId, fact: Fact) {
        let key = self.key(link);
        self.heard.entry(key).or_default().push(fact);
    }
}

/// A piece of a delivery; the delivery, where it was the last.
fn gather(
    of: &mut HashMap<LinkId, Partial>,
    link: LinkId,
    piece: &TransferOut<'_>,
    payload: &[u8],
) -> Option<Fact> {
    let partial = of.entry(link).or_default();
    if let Some(tag) = piece.delivery_tag {
        partial.tag = tag.to_vec();
        partial.format = piece.message_format;
    }
    partial.settled |= piece.settled == Some(true);
    partial.payload.extend_from_slice(payload);
    if piece.more && !piece.aborted {
        return None;
    }
    let Partial { tag, format, settled, payload } = of.remove(&link)?;
    Some(Fact::Delivery { tag, format, settled, aborted: piece.aborted, payload: payload.into() })
}

struct World {
    bench: Bench,
    random: Random,
    /// The device's book and the hub's.
    books: [Book; 2],
    serial: u32,
    /// Links that an end let go before it had the answer to its attach: there the gateway must answer itself.
    hasty: Vec<(Key, usize)>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut config = || ConnectionConfig {
            max_frame_bytes: *random.pick(&[1024, 1500, 65_536]),
            incoming_window: *random.pick(&[2, 7, 2048]),
            first_transfer_id: *random.pick(&[0, u32::MAX - 9, 1 << 31]),
            idle_time_out: None,
            ..ConnectionConfig::default()
        };
        let setup = Setup { device: config(), down: config(), up: config(), hub: config() };
        let mut bench = Bench::new(setup);
        (bench.device.answers, bench.hub.answers) = (false, false);
        Self { bench, random, books: Default::default(), serial: 0, hasty: Vec::new() }
    }

    fn peer(&mut self, at: usize) -> (&mut Peer, &mut Book, &mut Random) {
        let peer = if at == 0 { &mut self.bench.device } else { &mut self.bench.hub };
        (peer, &mut self.books[at], &mut self.random)
    }

    fn act(&mut self) {
        let at = self.random.below(2);
        match self.random.below(40) {
            0 => self.begin(at),
            1 if self.random.chance(6) => self.end(at),
            2..=4 => self.attach(at),
            5..=9 => self.answer(at),
            10..=14 => self.flow(at),
            15..=27 => self.transfer(at),
            28..=34 => self.disposition(at),
            35 => self.detach(at),
            36..=38 => self.answer_detach(at),
            _ => {}
        }
        for _ in 0..self.random.below(3) {
            let random = &mut self.random;
            self.bench.step(|| match random.below(4) {
                0 => 0,
                1 => usize::MAX,
                _ => 1 + random.below(900),
            });
        }
        self.learn();
    }

    fn begin(&mut self, at: usize) {
        let (peer, book, _) = self.peer(at);
        if book.sessions.len() < 3 {
            book.sessions.extend(peer.machine.begin());
        }
    }

    fn end(&mut self, at: usize) {
        let (peer, book, random) = self.peer(at);
        if book.sessions.is_empty() {
            return;
        }
        let session = book.sessions.swap_remove(random.below(book.sessions.len()));
        peer.machine.end(session, random.chance(2).then(|| error("end")));
        forget(book, session);
    }

    fn attach(&mut self, at: usize) {
        let serial = self.serial;
        self.serial += 1;
        let (peer, book, random) = self.peer(at);
        if book.sessions.is_empty() || book.links.len() > 8 {
            return;
        }
        let session = *random.pick(&book.sessions);
        let role = if random.chance(2) { Role::Sender } else { Role::Receiver };
        // Often the same name in both directions.
        let name = format!("{at}-{}", if random.chance(2) { serial } else { serial / 2 });
        let attach = if random.chance(2) { full_attach(&name, role, serial) } else { attach(&name, role) };
        let key = (name, if at == 0 { role } else { role.other() });
        if book.said.contains_key(&key) || book.heard.contains_key(&key) {
            return; // One life for each name and role, or the model would have to guess which is meant.
        }
        if let Ok(link) = peer.machine.attach(session, &attach) {
            book.links.insert(link, (key, session));
            book.say(link, Fact::Attach(fields(&attach)));
        }
    }

    fn answer(&mut self, at: usize) {
        let (_, book, random) = self.peer(at);
        if !book.asked.is_empty() {
            let next = random.below(book.asked.len());
            let (link, asked) = book.asked.swap_remove(next);
            let refuse = random.chance(6);
            self.give_answer(at, link, &asked, refuse);
        }
    }

    fn give_answer(&mut self, at: usize, link: LinkId, asked: &Attach, refuse: bool) {
        let serial = self.serial;
        let (peer, book, _) = self.peer(at);
        if peer.machine.link(link).is_none() {
            return;
        }
        let (name, role) = (asked.name(), asked.role().other());
        let node = SourceOut::default().build();
        let plain = match role {
            Role::Sender => AttachOut::sender(name, &node, &node),
            Role::Receiver => AttachOut::receiver(name, &node, &node),
        };
        let answer = match refuse {
            true => AttachOut { source: None, target: None, ..plain }.build(),
            false => full_attach(name, role, serial),
        };
        peer.machine.answer_attach(link, &answer);
        book.say(link, Fact::Attach(fields(&answer)));
        if refuse {
            peer.machine.detach(link, true, Some(error("refused")));
            book.say(link, Fact::Detach { closed: true, error: Some(error("refused")) });
        }
    }

    /// A link that this end has attached and not let go.
    fn open_link(&mut self, at: usize) -> Option<LinkId> {
        let (peer, book, random) = self.peer(at);
        let mut open: Vec<LinkId> = book.links.keys().copied().collect();
        open.retain(|link| peer.machine.link(*link).is_some_and(|link| link.local == Half::Open));
        open.sort();
        if open.is_empty() { None } else { Some(*random.pick(&open)) }
    }

    fn flow(&mut self, at: usize) {
        let Some(link) = self.open_link(at) else { return };
        let (peer, book, random) = self.peer(at);
        let Some(info) = peer.machine.link(link) else { return };
        if info.remote == Half::Ended {
            return;
        }
        let sends = info.role == Role::Sender;
        let drained = sends && info.drain && random.chance(2);
        let count = match (sends, info.remote) {
            (true, _) => Some(info.delivery_count.wrapping_add(if drained { info.credit } else { 0 })),
            (false, Half::Open) => Some(info.delivery_count),
            (false, _) => None,
        };
        let credit = match (sends, drained) {
            (true, true) => 0,
            (true, false) => info.credit,
            (false, _) => random.below(12) as u32,
        };
        let available = random.chance(3).then(|| random.below(9) as u32);
        let (drain, echo) = (drained || !sends && random.chance(5), random.chance(5));
        let flow =
            LinkFlow { delivery_count: count, link_credit: credit, available, drain, echo, properties: None };
        peer.machine.flow(link, flow);
        book.say(link, Fact::Flow { count, credit, available, drain, echo });
    }

    fn transfer(&mut self, at: usize) {
        let Some(link) = self.open_link(at) else { return };
        let serial = self.serial;
        self.serial += 1;
        let (peer, book, random) = self.peer(at);
        let Some(info) = peer.machine.link(link) else { return };
        let session = info.session;
        let begun = book.sending.contains_key(&link);
        if info.role != Role::Sender || info.remote == Half::Ended || !begun && info.credit == 0 {
            return;
        }
        let mut tag = serial.to_be_bytes().to_vec();
        tag.resize(4 + random.below(29), 7);
        tag[4..].iter_mut().for_each(|byte| *byte = at as u8);
        let transfer = TransferOut {
            delivery_tag: (!begun).then_some(&tag[..]),
            message_format: (!begun && random.chance(3)).then_some(serial),
            settled: random.chance(4).then(|| random.chance(2)),
            more: random.chance(3),
            aborted: begun && random.chance(6),
            ..TransferOut::default()
        };
        let length = *random.pick(&[0, 1, 100, 1000, 3000]);
        let payload = vec![serial as u8; if transfer.aborted { 0 } else { length }];
        let Ok(id) = peer.machine.transfer(link, transfer, &payload) else { return };
        if !begun {
            book.deliveries.entry((session, Role::Sender)).or_default().push((id, tag.clone()));
        }
        if let Some(delivery) = gather(&mut book.sending, link, &transfer, &payload) {
            book.say(link, delivery);
        }
    }

    fn disposition(&mut self, at: usize) {
        let (peer, book, random) = self.peer(at);
        if book.sessions.is_empty() {
            return;
        }
        let session = *random.pick(&book.sessions);
        let role = if random.chance(3) { Role::Sender } else { Role::Receiver };
        let Some(deliveries) = book.deliveries.get(&(session, role)) else { return };
        let from = random.below(deliveries.len());
        // A range says something of all that is in it: it must not cover what came over a link after it was let go.
        let wanted = (from + random.below(5)).min(deliveries.len() - 1);
        let follow = |at: &usize| deliveries[*at].0 == deliveries[at - 1].0.wrapping_add(1);
        let to = (from + 1..=wanted).take_while(follow).last().unwrap_or(from);
        let (first, last) = (deliveries[from].0, deliveries[to].0);
        let modified = modified(true, false, None);
        let received = received(0, 3);
        let states: [&[u8]; 5] = [ACCEPTED, ACCEPTED, RELEASED, &modified, &received];
        let state = *random.pick(&states);
        let settled = random.chance(2);
        let said = DispositionOut { role, first, last, settled, state: Some(state), batchable: false };
        peer.machine.disposition(session, said);
        for (_, tag) in deliveries[from..=to].iter().cloned() {
            book.words_said.entry(tag).or_default().push((role, settled, state.to_vec()));
        }
    }

    fn detach(&mut self, at: usize) {
        let Some(link) = self.open_link(at) else { return };
        let (peer, book, random) = self.peer(at);
        let (closed, error) = (random.chance(2), random.chance(2).then(|| error("detach")));
        let unanswered = peer.machine.link(link).is_some_and(|link| link.remote == Half::Idle);
        peer.machine.detach(link, closed, error.clone());
        book.say(link, Fact::Detach { closed, error });
        let key = book.key(link);
        book.letting_go.retain(|other| *other != link);
        if unanswered {
            self.hasty.push((key, at));
        }
    }

    fn answer_detach(&mut self, at: usize) {
        let (_, book, random) = self.peer(at);
        if book.letting_go.is_empty() {
            return;
        }
        let next = random.below(book.letting_go.len());
        let link = book.letting_go.swap_remove(next);
        if let Some(asked) = book.asked.iter().position(|(of, _)| *of == link) {
            let (_, asked) = book.asked.swap_remove(asked);
            self.give_answer(at, link, &asked, false);
        }
        let (peer, book, random) = self.peer(at);
        if peer.machine.link(link).is_some_and(|link| link.local == Half::Open) {
            let closed = random.chance(2);
            peer.machine.detach(link, closed, None);
            book.say(link, Fact::Detach { closed, error: None });
        }
    }

    /// Writes down what both ends have heard.
    fn learn(&mut self) {
        for at in 0..2 {
            let (peer, book, _) = self.peer(at);
            for event in peer.take() {
                hear(at, book, event);
            }
        }
    }

    /// What was heard is what was said, in order, as far as it came. With `all`, everything has come.
    fn check(&mut self, all: bool) {
        for at in 0..2 {
            let (hearer, speaker) = (&self.books[at], &self.books[1 - at]);
            for (key, heard) in &hearer.heard {
                if self.hasty.contains(&(key.clone(), at)) {
                    continue;
                }
                let said = speaker.said.get(key).map_or(&[][..], |said| said);
                let mut heard = &heard[..];
                if let (true, Some((last, before))) = (hearer.let_go(key), heard.split_last())
                    && matches!(last, Fact::Detach { .. })
                {
                    // The answer to its own detach: what was said before that may have been left out.
                    assert_eq!(Some(last), said.last(), "{key:?}");
                    heard = before;
                }
                for (at, heard) in heard.iter().enumerate() {
                    let said = said.get(at).map(|said| said.counted_like(heard));
                    assert_eq!(Some(heard), said.as_ref(), "{key:?}, fact {at}: heard, and said");
                }
            }
            for (tag, heard) in &hearer.words_heard {
                let said = speaker.words_said.get(tag).map_or(&[][..], |said| said);
                assert!(said.starts_with(heard), "{tag:?}: heard {heard:?}, said {said:?}");
            }
            if !all {
                continue;
            }
            let open = |key: &Key| {
                let lives = |book: &Book| book.links.values().any(|(of, _)| of == key);
                self.books.iter().all(|book| lives(book) && !book.let_go(key))
            };
            for (key, said) in speaker.said.iter().filter(|(key, _)| open(key)) {
                assert_eq!(hearer.heard.get(key).map(Vec::len), Some(said.len()), "{key:?}");
            }
        }
    }

    fn finish(&mut self) {
        self.bench.run();
        self.learn();
        self.check(true);
        // Both let go of everything.
        (self.bench.device.answers, self.bench.hub.answers) = (true, true);
        for at in 0..2 {
            for session in std::mem::take(&mut self.books[at].sessions) {
                let (peer, ..) = self.peer(at);
                peer.machine.end(session, None);
            }
        }
        self.bench.run();
        self.learn();
        self.bench.assert_empty();
    }
}

fn forget(book: &mut Book, session: SessionId) {
    book.sessions.retain(|of| *of != session);
    book.links.retain(|_, (_, of)| *of != session);
    let links = &book.links;
    book.asked.retain(|(link, _)| links.contains_key(link));
    book.letting_go.retain(|link| links.contains_key(link));
    book.sending.retain(|link, _| links.contains_key(link));
    book.receiving.retain(|link, _| links.contains_key(link));
    book.deliveries.retain(|(of, _), _| *of != session);
}

fn hear(at: usize, book: &mut Book, event: Event) {
    match event {
        Event::SessionBegun { session, by_peer, .. } => {
            if by_peer {
                book.sessions.push(session);
            }
        }
        Event::SessionEnded { session, error } => {
            assert_at_random(error.as_ref());
            forget(book, session);
        }
        Event::Attached { link, session, attach, by_peer } => {
            let role = if at == 1 { attach.role() } else { attach.role().other() };
            if by_peer {
                book.links.insert(link, ((attach.name().to_owned(), role), session));
                book.asked.push((link, attach.clone()));
            }
            book.hear(link, Fact::Attach(fields(&attach)));
        }
        Event::Detached { link, detach, answered, .. } => {
            assert_at_random(detach.error().as_ref());
            if !answered {
                book.letting_go.push(link);
            }
            book.hear(link, Fact::Detach { closed: detach.closed(), error: detach.error() });
            book.receiving.remove(&link);
            book.sending.remove(&link);
        }
        Event::Flow { link: Some(link), flow, .. } => {
            let fact = Fact::Flow {
                count: flow.delivery_count,
                credit: flow.link_credit.unwrap_or(0),
                available: flow.available,
                drain: flow.drain,
                echo: flow.echo,
            };
            book.hear(link, fact);
        }
        Event::Transfer { link, session, delivery_id, first, transfer } => {
            hear_transfer(book, link, session, (delivery_id, first), &transfer);
        }
        Event::Disposition { session, disposition } => hear_disposition(book, session, &disposition),
        Event::Flow { link: None, .. } => {}
        other => panic!("{other:?}"),
    }
}

fn hear_transfer(book: &mut Book, link: LinkId, session: SessionId, id: (u32, bool), transfer: &Transfer) {
    if id.1 {
        let tag = transfer.delivery_tag().expect("the engine wants one").to_vec();
        book.deliveries.entry((session, Role::Receiver)).or_default().push((id.0, tag));
    }
    if let Some(delivery) = gather(&mut book.receiving, link, &transfer.fields(), transfer.payload_slice()) {
        book.hear(link, delivery);
    }
}

fn hear_disposition(book: &mut Book, session: SessionId, disposition: &Disposition) {
    let Disposition { role, first, last, settled, .. } = *disposition;
    let state = disposition.state().expect("all that is said has one").to_vec();
    let deliveries = book.deliveries.get(&(session, role.other())).map_or(&[][..], |all| all);
    let within = |id: u32| id.wrapping_sub(first) <= last.wrapping_sub(first);
    let mut any = false;
    for (_, tag) in deliveries.iter().filter(|(id, _)| within(*id)) {
        book.words_heard.entry(tag.clone()).or_default().push((role, settled, state.clone()));
        any = true;
    }
    // What came over a link after it was let go was not heard; the sender may speak of it.
    assert!(any || role == Role::Sender, "a word on nothing");
}

/// No machine accused another: every error is one that an end has made up.
fn assert_at_random(error: Option<&AmqpError>) {
    if let Some(error) = error {
        assert_eq!(error.description(), Some("at random"), "{error}");
    }
}

#[test]
fn what_is_said_is_what_is_heard() {
    let (mut facts, mut words, mut whole) = (0, 0, 0);
    for seed in 0..400 {
        let mut world = World::new(seed);
        let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for step in 0..400 {
                world.act();
                if step % 50 == 0 {
                    world.check(false);
                }
            }
            world.finish();
        }));
        assert!(lived.is_ok(), "seed {seed}");
        for book in &world.books {
            facts += book.heard.values().map(Vec::len).sum::<usize>();
            words += book.words_heard.values().map(Vec::len).sum::<usize>();
            let heard = book.heard.values().flatten();
            whole += heard.filter(|fact| matches!(fact, Fact::Delivery { aborted: false, .. })).count();
        }
    }
    assert!(facts > 10_000 && words > 3_000 && whole > 3_000, "dull: {facts}, {words}, {whole}");
}
