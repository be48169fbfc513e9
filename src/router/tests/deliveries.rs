//! Transfers and dispositions: as they came, under the ids of each side.

use fieldgate_amqp::connection::{ConnectionConfig, LinkFlow, LinkId, SessionId, TransferOut};
use fieldgate_amqp::performative::{
    ACCEPTED, Disposition, DispositionOut, RELEASED, Role, Transfer, modified, received, rejected,
};

use super::kit::{Bench, Peer, Setup, error};

/// A vendor's own state: a described map.
const VENDOR_STATE: &[u8] = b"\x00\xa3\x0bvendor:odd!\xc1\x06\x02\xa3\x01k\x56\x01";

/// Delivery numbers that wrap soon, and differently everywhere.
fn wrapping() -> Setup {
    let from = |first_transfer_id, config| ConnectionConfig { first_transfer_id, ..config };
    let Setup { device, down, up, hub } = Setup::default();
    Setup {
        device: from(u32::MAX - 2, device),
        down: from(u32::MAX, down),
        up: from(7, up),
        hub: from(u32::MAX / 2, hub),
    }
}

/// A link that is open both ways, and where its deliveries go.
struct Line {
    bench: Bench,
    role: Role,
    at_device: LinkId,
    at_hub: LinkId,
    sessions: (SessionId, SessionId),
}

impl Line {
    fn new(setup: Setup, role: Role) -> Self {
        let mut bench = Bench::new(setup);
        let sessions = bench.session();
        let (at_device, at_hub) = bench.link(sessions.0, "link", role);
        let mut line = Self { bench, role, at_device, at_hub, sessions };
        let (peer, link, _) = line.receives();
        peer.machine.flow(link, LinkFlow { link_credit: 1000, ..LinkFlow::default() });
        line.run();
        line.bench.device.take();
        line.bench.hub.take();
        line
    }

    fn sends(&mut self) -> (&mut Peer, LinkId, SessionId) {
        match self.role {
            Role::Sender => (&mut self.bench.device, self.at_device, self.sessions.0),
            Role::Receiver => (&mut self.bench.hub, self.at_hub, self.sessions.1),
        }
    }

    fn receives(&mut self) -> (&mut Peer, LinkId, SessionId) {
        match self.role {
            Role::Sender => (&mut self.bench.hub, self.at_hub, self.sessions.1),
            Role::Receiver => (&mut self.bench.device, self.at_device, self.sessions.0),
        }
    }

    fn run(&mut self) {
        self.bench.run();
    }

    fn transfer(&mut self, transfer: TransferOut<'_>, payload: &[u8]) -> u32 {
        let (peer, link, _) = self.sends();
        peer.machine.transfer(link, transfer, payload).expect("attached")
    }

    /// What came out.
    fn out(&mut self) -> Vec<(u32, Transfer)> {
        self.run();
        self.receives().0.transfers()
    }

    /// The receiver says something of its deliveries; what the sender hears.
    fn settle(&mut self, disposition: DispositionOut<'_>) -> Vec<Disposition> {
        let (peer, _, session) = self.receives();
        peer.machine.disposition(session, disposition);
        self.run();
        self.sends().0.dispositions()
    }

    /// The sender says something of its deliveries; what the receiver hears.
    fn settle_from_sender(&mut self, disposition: DispositionOut<'_>) -> Vec<Disposition> {
        let (peer, _, session) = self.sends();
        peer.machine.disposition(session, disposition);
        self.run();
        self.receives().0.dispositions()
    }

    fn under_way(&self) -> usize {
        self.bench.router.kept().2
    }
}

const ROLES: [Role; 2] = [Role::Sender, Role::Receiver];

fn tagged(tag: &[u8]) -> TransferOut<'_> {
    TransferOut { delivery_tag: Some(tag), ..TransferOut::default() }
}

/// What is not per side.
fn words<'a>(transfer: &'a TransferOut<'a>) -> TransferOut<'a> {
    TransferOut { handle: 0, delivery_id: None, ..*transfer }
}

fn disposition(role: Role, first: u32, last: u32, settled: bool, state: &[u8]) -> DispositionOut<'_> {
    DispositionOut { role, first, last, settled, state: Some(state), batchable: true }
}

#[test]
fn every_field_of_a_transfer_passes_as_it_came() {
    let tag = [0xfe; 32];
    let base = TransferOut { message_format: Some(0x8001_3700), batchable: true, ..tagged(&tag) };
    let transfers = [
        base,
        TransferOut { settled: Some(false), ..base },
        TransferOut { settled: Some(true), rcv_settle_mode: Some(1), ..base },
        TransferOut { state: Some(VENDOR_STATE), resume: true, message_format: None, ..base },
        TransferOut { state: Some(&received(1, 77)), settled: Some(false), batchable: false, ..base },
    ];
    for role in ROLES {
        let mut line = Line::new(Setup::default(), role);
        for transfer in transfers {
            // No message at all: what is in it is not the gateway's business.
            for payload in [&b""[..], b"\xff\xfe\0garbage"] {
                line.transfer(transfer, payload);
                let out = line.out();
                let [(_, seen)] = &out[..] else { panic!("one transfer") };
                assert_eq!(words(&seen.fields()), words(&transfer));
                assert_eq!(seen.payload_slice(), payload);
            }
        }
        assert_eq!(line.under_way(), 8);
    }
}

#[test]
fn a_delivery_goes_on_before_it_is_whole() {
    for role in ROLES {
        let mut line = Line::new(Setup::default(), role);
        let pieces: [&[u8]; 4] = [b"one", b"", b"three", b"four"];
        for (at, piece) in pieces.into_iter().enumerate() {
            let more = at < 3;
            let transfer =
                TransferOut { more, ..if at == 0 { tagged(b"t") } else { TransferOut::default() } };
            line.transfer(transfer, piece);
            let out = line.out();
            let [(_, seen)] = &out[..] else { panic!("one transfer") };
            assert_eq!((seen.payload_slice(), seen.more), (piece, more));
            assert_eq!(seen.delivery_id.is_some(), at == 0);
        }
        assert_eq!(line.under_way(), 1);
    }
}

#[test]
fn frames_are_cut_to_what_the_other_side_takes() {
    for role in ROLES {
        let mut setup = Setup::default();
        let small = if role == Role::Sender { &mut setup.hub } else { &mut setup.device };
        (small.max_frame_bytes, small.incoming_window) = (512, 5);
        let mut line = Line::new(setup, role);
        let payload: Vec<u8> = (0..100_000_u32).map(|at| (at / 7) as u8).collect();
        let transfer = TransferOut { message_format: Some(9), ..tagged(&[1; 32]) };
        line.transfer(transfer, &payload);
        line.transfer(tagged(b"next"), b"next");
        let out = line.out();
        assert!(out.len() > 200);
        let next = out.last().expect("the next one");
        assert_eq!((next.1.payload_slice(), next.0), (&b"next"[..], out[0].0.wrapping_add(1)));
        let pieces = &out[..out.len() - 1];
        let joined: Vec<u8> = pieces.iter().flat_map(|(_, piece)| piece.payload_slice().to_vec()).collect();
        assert!(joined == payload);
        assert!(pieces.iter().all(|(id, piece)| *id == out[0].0 && piece.payload_slice().len() <= 512));
        assert!(pieces.iter().rev().skip(1).all(|(_, piece)| piece.more));
        let [(_, first), .., (_, last)] = pieces else { panic!("several pieces") };
        assert_eq!((first.message_format, first.delivery_tag()), (Some(9), Some(&[1; 32][..])));
        assert!(!last.more);
    }
}

#[test]
fn a_delivery_that_is_given_up_is_given_up_and_forgotten() {
    for role in ROLES {
        let mut line = Line::new(Setup::default(), role);
        line.transfer(TransferOut { more: true, ..tagged(b"half") }, b"half");
        line.transfer(TransferOut { aborted: true, ..TransferOut::default() }, b"");
        line.transfer(TransferOut { aborted: true, ..tagged(b"none") }, b"");
        line.transfer(TransferOut { more: true, ..tagged(b"settled at last") }, b"1");
        line.transfer(TransferOut { settled: Some(true), ..TransferOut::default() }, b"2");
        line.transfer(tagged(b"whole"), b"whole");
        let out = line.out();
        let aborted: Vec<bool> = out.iter().map(|(_, transfer)| transfer.aborted).collect();
        assert_eq!(aborted, [false, true, true, false, false, false]);
        assert_eq!(out[4].1.settled, Some(true));
        assert_eq!(line.under_way(), 1);
    }
}

#[test]
fn every_outcome_passes_as_it_came_under_the_other_sides_ids() {
    for role in ROLES {
        for setup in [Setup::default(), wrapping()] {
            let mut line = Line::new(setup, role);
            let states: [Vec<u8>; 7] = [
                ACCEPTED.to_vec(),
                RELEASED.to_vec(),
                rejected(Some(&error("no"))).to_vec(),
                rejected(None).to_vec(),
                modified(true, true, Some(b"\xc1\x06\x02\xa3\x01k\x56\x01")).to_vec(),
                VENDOR_STATE.to_vec(),
                // A state of a transaction (4.5.8).
                b"\x00\x53\x34\xc0\x05\x01\xa0\x02id".to_vec(),
            ];
            for state in states {
                let sent: Vec<u32> = (0..3_u8).map(|tag| line.transfer(tagged(&[tag]), b"m")).collect();
                let out: Vec<u32> = line.out().iter().map(|(id, _)| *id).collect();
                let said = disposition(Role::Receiver, out[0], out[2], true, &state);
                let heard = line.settle(said);
                let [heard] = &heard[..] else { panic!("{heard:?}") };
                assert_eq!(heard.fields(), DispositionOut { first: sent[0], last: sent[2], ..said });
                assert_eq!(line.under_way(), 0);
            }
            // Settled without a state.
            let sent = line.transfer(tagged(b"t"), b"m");
            let out = line.out()[0].0;
            let said = DispositionOut { state: None, ..disposition(Role::Receiver, out, out, true, b"") };
            let heard = line.settle(said);
            assert_eq!(heard[0].fields(), DispositionOut { first: sent, last: sent, ..said });
            assert_eq!(line.under_way(), 0);
        }
    }
}

#[test]
fn settling_second_takes_two_steps_and_both_pass() {
    for role in ROLES {
        let mut line = Line::new(wrapping(), role);
        let sent: Vec<u32> = (0..5_u8).map(|tag| line.transfer(tagged(&[tag]), b"m")).collect();
        let out: Vec<u32> = line.out().iter().map(|(id, _)| *id).collect();
        // Progress, and then the outcome, without settling.
        for state in [&received(0, 5)[..], ACCEPTED] {
            let said = disposition(Role::Receiver, out[0], out[4], false, state);
            let heard = line.settle(said);
            assert_eq!(heard[0].fields(), DispositionOut { first: sent[0], last: sent[4], ..said });
            assert_eq!((heard.len(), line.under_way()), (1, 5));
        }
        // The sender settles some, then the rest.
        for (first, last) in [(1, 2), (0, 4)] {
            let said = disposition(Role::Sender, sent[first], sent[last], true, ACCEPTED);
            let heard: Vec<_> = line.settle_from_sender(said).iter().map(|it| (it.first, it.last)).collect();
            match first {
                1 => assert_eq!(heard, [(out[1], out[2])]),
                _ => assert_eq!(heard, [(out[0], out[0]), (out[3], out[4])]),
            }
        }
        assert_eq!(line.under_way(), 0);
    }
}

#[test]
fn ranges_follow_the_ids_through_settled_deliveries_and_other_links() {
    for role in ROLES {
        let mut line = Line::new(wrapping(), role);
        let (device_session, _) = line.sessions;
        let (at_device, at_hub) = line.bench.link(device_session, "other", role);
        let (peer, _, _) = line.receives();
        let other = if role == Role::Sender { at_hub } else { at_device };
        peer.machine.flow(other, LinkFlow { link_credit: 100, ..LinkFlow::default() });
        line.run();
        let other = if role == Role::Sender { at_device } else { at_hub };
        let mut sent = Vec::new();
        for tag in 0..12_u8 {
            let transfer = TransferOut { settled: Some(tag % 5 == 4), ..tagged(std::slice::from_ref(&tag)) };
            let (peer, link, _) = line.sends();
            let link = if tag % 3 == 0 { other } else { link };
            let id = peer.machine.transfer(link, transfer, b"m").expect("attached");
            if tag % 5 != 4 {
                sent.push(id);
            }
        }
        let out = line.out();
        assert_eq!(out.len(), 12);
        let said = disposition(Role::Receiver, out[0].0, out[11].0, true, ACCEPTED);
        let mut heard = Vec::new();
        for disposition in line.settle(said) {
            let length = disposition.last.wrapping_sub(disposition.first);
            heard.extend((0..=length).map(|at| disposition.first.wrapping_add(at)));
        }
        assert_eq!(heard, sent, "each once, and none that was settled before");
        assert_eq!(line.under_way(), 0);
    }
}

#[test]
fn a_thousand_deliveries_across_the_wrap() {
    for role in ROLES {
        let mut line = Line::new(wrapping(), role);
        for round in 0..20_u32 {
            for tag in 0..50_u32 {
                line.transfer(tagged(&(round * 50 + tag).to_be_bytes()), b"m");
            }
            let out = line.out();
            assert_eq!(out.len(), 50);
            let said = disposition(Role::Receiver, out[0].0, out[49].0, true, ACCEPTED);
            assert_eq!(line.settle(said).len(), 1);
        }
        assert_eq!(line.under_way(), 0);
    }
}

#[test]
fn a_tag_that_is_too_long_costs_the_link_and_no_more() {
    let mut line = Line::new(Setup::default(), Role::Sender);
    let (session, _) = line.sessions;
    let (stays, _) = line.bench.link(session, "stays", Role::Sender);
    let tag = [7; 33];
    line.bench.inject(|out| TransferOut { delivery_id: Some(0), ..tagged(&tag) }.write(out));
    line.run();
    for peer in [&mut line.bench.device, &mut line.bench.hub] {
        let [(detach, _)] = &peer.detaches()[..] else { panic!("one detach") };
        assert_eq!(detach.error().expect("a reason").condition(), "amqp:invalid-field");
    }
    assert_eq!(line.bench.router.kept(), (2, 2, 0));
    assert!(line.bench.device.machine.link(stays).is_some());
}

#[test]
fn a_state_that_no_frame_of_the_hub_holds_costs_the_link_and_no_more() {
    let mut setup = Setup::default();
    setup.hub.max_frame_bytes = 512;
    let mut line = Line::new(setup, Role::Sender);
    let state = rejected(Some(&error(&"long".repeat(200))));
    line.transfer(TransferOut { state: Some(&state), ..tagged(b"t") }, b"m");
    line.run();
    let [(detach, _)] = &line.bench.device.detaches()[..] else { panic!("one detach") };
    assert_eq!(detach.error().expect("a reason").condition(), "amqp:frame-size-too-small");
    assert_eq!(line.bench.router.kept(), (2, 0, 0));
}
