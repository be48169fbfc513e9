//! Random commands on both sides under random cuts. Whatever the application does, two engines never accuse each
//! other; and how the bytes were cut makes no difference to what is told.

use fieldgate_amqp::connection::{
    CloseReason, ConnectionConfig, Event, LinkFlow, LinkId, SessionId, TransferOut,
};
use fieldgate_amqp::error::{AmqpError, Condition};
use fieldgate_amqp::performative::{ACCEPTED, DispositionOut, Role};

use crate::pair::{Pair, Rng, Side, attach, config};

/// What a side knows, as an application would keep it.
#[derive(Default)]
struct Known {
    sessions: Vec<SessionId>,
    links: Vec<LinkId>,
}

impl Known {
    fn learn(&mut self, event: &Event) {
        match event {
            Event::SessionBegun { session, by_peer: true, .. } => self.sessions.push(*session),
            Event::Attached { link, by_peer: true, .. } => self.links.push(*link),
            _ => {}
        }
    }
}

fn pick<T: Copy>(rng: &mut Rng, from: &[T]) -> Option<T> {
    if from.is_empty() { None } else { Some(from[rng.below(from.len())]) }
}

fn act(side: &mut Side, known: &mut Known, rng: &mut Rng) {
    let connection = &mut side.connection;
    let error = || Some(AmqpError::new(&Condition::InternalError, Some("at random")));
    let (session, link) = (pick(rng, &known.sessions), pick(rng, &known.links));
    match (rng.below(20), session, link) {
        (0, ..) if connection.sessions() < 4 => known.sessions.extend(connection.begin()),
        (1, Some(session), _) if rng.below(8) == 0 => {
            connection.end(session, if rng.below(2) == 0 { error() } else { None });
        }
        (1..=3, Some(session), _) => {
            let role = if rng.below(2) == 0 { Role::Sender } else { Role::Receiver };
            let name = format!("l{}", rng.below(5));
            known.links.extend(connection.attach(session, &attach(&name, role)));
        }
        (4, _, Some(link)) => {
            connection.detach(link, rng.below(2) == 0, if rng.below(2) == 0 { error() } else { None })
        }
        (5..=8, _, Some(link)) => {
            let credit = rng.below(20) as u32;
            let echo = rng.below(4) == 0;
            match connection.link(link) {
                Some(info) if info.role == Role::Receiver => {
                    connection.flow(link, LinkFlow { link_credit: credit, echo, ..LinkFlow::default() });
                }
                Some(info) if info.drain => {
                    let used_up = info.delivery_count.wrapping_add(info.credit);
                    connection.flow(link, LinkFlow { delivery_count: Some(used_up), ..LinkFlow::default() });
                }
                _ => {}
            }
        }
        (9, Some(session), _) => {
            let first = rng.below(30) as u32;
            connection.disposition(
                session,
                DispositionOut {
                    role: if rng.below(2) == 0 { Role::Sender } else { Role::Receiver },
                    first,
                    last: first + rng.below(10) as u32,
                    settled: true,
                    state: Some(ACCEPTED),
                    batchable: false,
                },
            );
        }
        (10, Some(session), _) => connection.session_flow(session, true),
        (_, _, Some(link)) => {
            let Some(info) = connection.link(link) else { return };
            // As the endpoint does: within credit, a delivery that has begun is finished.
            if info.role == Role::Sender && info.credit > 0 {
                let payload = vec![1; rng.below(3000)];
                let fields = TransferOut { delivery_tag: Some(b"t"), ..TransferOut::default() };
                let _ = connection.transfer(link, fields, &payload);
            }
        }
        _ => {}
    }
}

/// Runs a seeded life of a connection; what both were told, in words.
fn life(seed: u64, piece: usize, settle_each_step: bool) -> [Vec<String>; 2] {
    let client = ConnectionConfig {
        incoming_window: 5,
        max_frame_bytes: 700,
        first_transfer_id: u32::MAX - 3,
        ..config()
    };
    let server = ConnectionConfig { max_frame_bytes: 512, ..client.clone() };
    let mut pair = Pair::open_with(client, server).seeded(seed, piece);
    let mut rng = Rng::new(seed);
    let mut known = [Known::default(), Known::default()];
    let mut told = [Vec::new(), Vec::new()];
    for _ in 0..300 {
        act(&mut pair.client, &mut known[0], &mut rng);
        if settle_each_step {
            pair.run();
        }
        act(&mut pair.server, &mut known[1], &mut rng);
        if settle_each_step || rng.below(3) == 0 {
            pair.run();
        }
        for (at, side) in [&mut pair.client, &mut pair.server].into_iter().enumerate() {
            for event in side.take() {
                known[at].learn(&event);
                assert!(!matches!(event, Event::Closed(_)), "seed {seed}: {event:?}");
                if let Event::SessionEnded { error: Some(error), .. } = &event {
                    assert_eq!(error.description(), Some("at random"), "seed {seed}");
                }
                if let Event::Detached { detach, .. } = &event
                    && let Some(error) = detach.error()
                {
                    assert_eq!(error.description(), Some("at random"), "seed {seed}");
                }
                told[at].push(format!("{event:?}"));
            }
        }
    }
    pair.client.connection.close(None);
    pair.run();
    assert!(matches!(pair.client.events.last(), Some(Event::Closed(CloseReason::Local))));
    assert!(matches!(pair.server.events.last(), Some(Event::Closed(CloseReason::Remote(None)))));
    told
}

#[test]
fn two_engines_never_accuse_each_other() {
    let mut transfers = 0;
    for seed in 0..400 {
        let told = life(seed, if seed % 2 == 0 { 0 } else { 100 }, false);
        transfers += told[1].iter().filter(|event| event.starts_with("Transfer")).count();
    }
    assert!(transfers > 1000, "the lives were too dull: {transfers}");
}

#[test]
fn the_cuts_of_the_stream_make_no_difference() {
    for seed in 0..20 {
        let whole = life(seed, 0, true);
        for piece in [1, 2, 7, 50] {
            assert_eq!(life(seed, piece, true), whole, "seed {seed}, pieces of {piece}");
        }
    }
}
