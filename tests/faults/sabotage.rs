//! Faults that are put in on purpose, so that the harness shows that it finds them.

use bytes::Bytes;

use super::laws::Law;
use super::ledger::Marks;
use super::payload::{self, Key};

/// What is done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Sabotage {
    /// The hub accepts one message and forgets it.
    Lose,
    /// The hub notes one message twice.
    Repeat,
    /// The hub notes two messages of a device in the wrong order.
    Swap,
    /// The hub has a message that nobody sent.
    Forge,
    /// The disk forgets what the gateway believes synced; shown by the crash scenario.
    Unsynced,
}

/// Messages that pass before something is done to one: until then the run is a sound one.
const SOUND: u64 = 200;

impl Sabotage {
    /// The law that has to be found broken.
    pub(crate) fn breaks(self) -> Law {
        match self {
            Self::Lose | Self::Unsynced => Law::AcknowledgedArrives,
            Self::Repeat => Law::RepeatsAreMarked,
            Self::Swap => Law::InOrder,
            Self::Forge => Law::SentByADevice,
        }
    }
}

/// How far the sabotage has come.
#[derive(Debug, Default)]
pub(crate) struct State {
    passed: u64,
    held: Option<(u32, String, Bytes)>,
    done: bool,
}

impl State {
    /// What the hub notes instead of this message, in this order; all of it counts as accepted.
    pub(crate) fn instead(
        &mut self,
        sabotage: Sabotage,
        address: &str,
        body: Bytes,
        marks: &mut Marks,
    ) -> Vec<(String, Bytes)> {
        self.passed += 1;
        let this = (address.to_owned(), body.clone());
        if self.passed < SOUND || self.done || marks.resent {
            return vec![this];
        }
        match sabotage {
            Sabotage::Unsynced => vec![this],
            Sabotage::Lose => {
                self.done = true;
                vec![]
            }
            Sabotage::Repeat => {
                self.done = true;
                vec![this.clone(), this]
            }
            Sabotage::Forge => {
                self.done = true;
                let key = Key { device: 0, number: u32::MAX, serial: u32::MAX };
                vec![(payload::address(0), payload::write(key, payload::BYTES).into()), this]
            }
            Sabotage::Swap => {
                let device = payload::read(&body).map(|key| key.device);
                match &self.held {
                    None => {
                        self.held = device.map(|device| (device, this.0, this.1));
                        vec![]
                    }
                    Some((held, ..)) if device == Some(*held) => {
                        self.done = true;
                        let held = self.held.take().map(|(_, address, body)| (address, body));
                        std::iter::once(this).chain(held).collect()
                    }
                    Some(_) => vec![this],
                }
            }
        }
    }
}
