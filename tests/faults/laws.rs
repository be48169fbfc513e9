//! What must hold in every run, whatever is done to the gateway; and where it did not.

use std::collections::BTreeMap;
use std::fmt;

/// A promise of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Law {
    AcknowledgedArrives,
    InOrder,
    RepeatsAreMarked,
    SameMessageId,
    SentByADevice,
    ToldOnce,
    /// What a scenario asks besides.
    Scenario,
}

impl fmt::Display for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AcknowledgedArrives => "acknowledged and not at the hub",
            Self::InOrder => "first deliveries out of the order in which the device sent",
            Self::RepeatsAreMarked => "came again without the marks of a repeat",
            Self::SameMessageId => "deliveries of one message without one message-id",
            Self::SentByADevice => "at the hub, and not sent like that by any device",
            Self::ToldOnce => "told twice",
            Self::Scenario => "the scenario's own promise",
        })
    }
}

/// How many cases of a law are told in words.
const CASES: usize = 5;

/// Laws that were broken: how often, and the first cases of each.
#[derive(Debug, Default)]
pub(crate) struct Broken(BTreeMap<Law, (usize, Vec<String>)>);

impl Broken {
    pub(crate) fn add(&mut self, law: Law, case: impl FnOnce() -> String) {
        let (count, cases) = self.0.entry(law).or_default();
        *count += 1;
        if cases.len() < CASES {
            cases.push(case());
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Which laws.
    pub(crate) fn laws(&self) -> impl Iterator<Item = Law> {
        self.0.keys().copied()
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (law, (count, cases)) in &self.0 {
            writeln!(f, "  {law}: {count}")?;
            cases.iter().try_for_each(|case| writeln!(f, "    {case}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::ledger::{Kind, Ledger, Marks, Told};
    use super::super::payload::{self, BYTES, Key, address};
    use super::*;

    /// A device that has made messages, and sent each once.
    fn sent(kind: Kind, messages: u32) -> (Ledger, Vec<Key>) {
        let mut ledger = Ledger::new(&[kind]);
        let keys = (0..messages)
            .map(|_| {
                let number = ledger.make(0);
                let key = ledger.send(0, number, Instant::now());
                ledger.out(key, 1);
                key
            })
            .collect();
        (ledger, keys)
    }

    fn message(key: Key) -> Vec<u8> {
        payload::write(key, BYTES)
    }

    fn id(text: &str) -> Marks {
        Marks { message_id: Some(text.into()), ..Marks::default() }
    }

    fn resent(text: &str) -> Marks {
        Marks { resent: true, delivery_count: 1, ..id(text) }
    }

    fn arrive(ledger: &mut Ledger, key: Key, marks: Marks) {
        let known = ledger.arrived(&address(key.device), &message(key), marks);
        assert_eq!(known, Some(key));
        ledger.accepted(key);
    }

    fn told(ledger: &mut Ledger, key: Key) {
        ledger.told(key, Told::Acknowledged, Instant::now());
    }

    fn laws(mut ledger: Ledger) -> Vec<Law> {
        ledger.close();
        ledger.broken.laws().collect()
    }

    #[test]
    fn what_is_allowed() {
        let (mut ledger, keys) = sent(Kind::OnStore, 3);
        keys.iter().for_each(|key| told(&mut ledger, *key));
        assert_eq!((ledger.open(), ledger.missing()), (0, 3));
        for (key, id_of) in [(0, "a"), (1, "b")] {
            arrive(&mut ledger, keys[key], id(id_of));
        }
        // Nobody knows whether the hub had had it: all from there on again, and marked.
        for (key, id_of) in [(0, "a"), (1, "b"), (2, "c")] {
            arrive(&mut ledger, keys[key], resent(id_of));
        }
        assert_eq!(ledger.missing(), 0);
        assert_eq!(ledger.repeats, 2);
        assert_eq!(laws(ledger), []);
    }

    #[test]
    fn a_device_may_send_again_and_a_datagram_may_meet_two_gateways() {
        let (mut ledger, keys) = sent(Kind::Direct, 2);
        arrive(&mut ledger, keys[0], Marks::default());
        ledger.out(keys[0], 2);
        arrive(&mut ledger, keys[0], Marks::default());
        for number in [0, 1] {
            let again = ledger.send(0, number, Instant::now());
            ledger.out(again, 2);
            arrive(&mut ledger, again, Marks::default());
            told(&mut ledger, again);
        }
        assert_eq!(laws(ledger), []);
        // The first is refused, and what stood behind it is not.
        let (mut ledger, keys) = sent(Kind::Direct, 2);
        ledger.told(keys[0], Told::Refused, Instant::now());
        arrive(&mut ledger, keys[1], Marks::default());
        let again = ledger.send(0, 0, Instant::now());
        ledger.out(again, 1);
        arrive(&mut ledger, again, Marks::default());
        assert_eq!(laws(ledger), []);
    }

    #[test]
    fn what_a_failed_sync_left_may_come_late_and_marked() {
        for (syncs_fail, marks, broken) in [
            (true, resent("a"), &[][..]),
            (true, id("a"), &[Law::InOrder]),
            (false, resent("a"), &[Law::InOrder]),
        ] {
            let (mut ledger, keys) = sent(Kind::OnStore, 2);
            ledger.syncs_fail = syncs_fail;
            ledger.told(keys[0], Told::Refused, Instant::now());
            arrive(&mut ledger, keys[1], id("b"));
            arrive(&mut ledger, keys[0], marks);
            assert_eq!(laws(ledger), broken);
        }
    }

    #[test]
    fn each_broken_law_is_found() {
        let (mut ledger, keys) = sent(Kind::OnStore, 1);
        told(&mut ledger, keys[0]);
        ledger.arrived(&address(0), &message(keys[0]), id("a"));
        assert_eq!(laws(ledger), [Law::AcknowledgedArrives], "that it came is not that the hub took it");

        let (mut ledger, keys) = sent(Kind::OnStore, 2);
        arrive(&mut ledger, keys[1], id("b"));
        arrive(&mut ledger, keys[0], id("a"));
        assert_eq!(laws(ledger), [Law::InOrder]);

        // The first sending was forgotten without a word, and what came after it was not.
        let (mut ledger, keys) = sent(Kind::OnStore, 2);
        arrive(&mut ledger, keys[1], id("b"));
        let again = ledger.send(0, 0, Instant::now());
        ledger.out(again, 1);
        arrive(&mut ledger, again, id("c"));
        assert_eq!(laws(ledger), [Law::InOrder]);

        for marks in
            [id("a"), Marks { delivery_count: 0, ..resent("a") }, Marks { resent: false, ..resent("a") }]
        {
            let (mut ledger, keys) = sent(Kind::OnStore, 1);
            arrive(&mut ledger, keys[0], id("a"));
            arrive(&mut ledger, keys[0], marks);
            assert_eq!(laws(ledger), [Law::RepeatsAreMarked]);
        }

        let (mut ledger, keys) = sent(Kind::OnStore, 1);
        arrive(&mut ledger, keys[0], id("a"));
        arrive(&mut ledger, keys[0], resent("b"));
        assert_eq!(laws(ledger), [Law::SameMessageId]);
        let (mut ledger, keys) = sent(Kind::WhenOffline, 1);
        arrive(&mut ledger, keys[0], Marks::default());
        assert_eq!(laws(ledger), [Law::SameMessageId]);

        let (mut ledger, keys) = sent(Kind::Direct, 1);
        let mut damaged = message(keys[0]);
        damaged[20] ^= 1;
        for body in [damaged, message(Key { serial: 7, ..keys[0] }), message(Key { number: 7, ..keys[0] })] {
            assert_eq!(ledger.arrived(&address(0), &body, Marks::default()), None);
        }
        assert_eq!(laws(ledger), [Law::SentByADevice]);
        let (mut ledger, keys) = sent(Kind::Direct, 1);
        assert_eq!(ledger.arrived(&address(1), &message(keys[0]), Marks::default()), None);
        assert_eq!(laws(ledger), [Law::SentByADevice]);

        let (mut ledger, keys) = sent(Kind::Direct, 1);
        arrive(&mut ledger, keys[0], Marks::default());
        told(&mut ledger, keys[0]);
        told(&mut ledger, keys[0]);
        assert_eq!(laws(ledger), [Law::ToldOnce]);
    }
}
