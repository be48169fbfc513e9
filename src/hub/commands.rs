//! Commands that wait for their devices: one [`Queue`] for each device that has any.
//!
//! Whatever takes a command out of its queue may owe its sender a record ([`super::feedback`]); every call that
//! can do so returns them.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use fieldgate_mappings::{DeviceId, Timestamp};
use thiserror::Error;

use super::feedback::{AckRequest, Record};
use super::queue::{Departure, LockLost, LockToken, Queue, QueueRules, Settlement};
use super::time::Now;

/// The bounds of all queues together and of each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CommandLimits {
    /// Lock and delivery count.
    pub(crate) rules: QueueRules,
    /// How many commands wait for one device.
    pub(crate) max_pending: usize,
    /// How many bytes wait for all devices.
    pub(crate) max_bytes: usize,
    /// How long a command waits that says nothing else.
    pub(crate) default_ttl: Duration,
    /// How long any command waits at most.
    pub(crate) max_ttl: Duration,
}

/// A command on its way.
#[derive(Debug)]
pub(crate) struct Command {
    /// Its sender's name for it, as text, for the feedback.
    pub(crate) message_id: String,
    /// What its sender wants to hear.
    pub(crate) ack: AckRequest,
    /// The registration of the device that it is for.
    pub(crate) generation: Rc<str>,
    /// The message's sections from the properties on, encoded.
    pub(crate) message: Bytes,
    /// When its sender says that it is worth nothing any more.
    pub(crate) expiry: Option<Timestamp>,
}

/// Why a command is not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Refused {
    /// The device has as many as it may.
    #[error("the device has {0} commands waiting, which is the most it may have")]
    QueueFull(usize),
    /// All queues together hold as much as they may.
    #[error("the hub's command queues are full")]
    HubFull,
}

/// A command that has just been locked.
#[derive(Debug)]
pub(crate) struct LentCommand {
    pub(crate) sequence: u64,
    pub(crate) enqueued: Timestamp,
    pub(crate) delivery_count: u8,
    pub(crate) message: Bytes,
}

/// What time has done to the queues.
#[derive(Debug, Default)]
pub(crate) struct Elapsed {
    /// The devices of commands that expired, and what their senders want to hear.
    pub(crate) ended: Vec<(DeviceId, Option<Record>)>,
    /// Devices that have a free command again.
    pub(crate) ready: Vec<DeviceId>,
}

/// The queues.
#[derive(Debug)]
pub(crate) struct Commands {
    queues: HashMap<DeviceId, Queue<Command>>,
    limits: CommandLimits,
    bytes: usize,
    last_sequence: u64,
}

impl Commands {
    /// No commands yet.
    pub(crate) fn new(limits: CommandLimits) -> Self {
        Self { queues: HashMap::new(), limits, bytes: 0, last_sequence: 0 }
    }

    /// Queues a command.
    ///
    /// # Errors
    /// [`Refused`], when a bound is reached.
    pub(crate) fn push(&mut self, now: Now, device: &DeviceId, command: Command) -> Result<(), Refused> {
        let size = command.cost();
        if self.bytes.saturating_add(size) > self.limits.max_bytes {
            return Err(Refused::HubFull);
        }
        let pending = self.queues.get(device).map_or(0, Queue::len);
        if pending >= self.limits.max_pending {
            return Err(Refused::QueueFull(pending));
        }
        let ttl = command.expiry.map_or(self.limits.default_ttl, |at| now.until(at)).min(self.limits.max_ttl);
        self.last_sequence += 1;
        self.bytes += size;
        self.queues.entry(device.clone()).or_default().push(now, self.last_sequence, ttl, command);
        Ok(())
    }

    /// Lends the device its next free command.
    pub(crate) fn lock_next(&mut self, now: Now, device: &DeviceId, token: LockToken) -> Option<LentCommand> {
        let lent = self.queues.get_mut(device)?.lock_next(now, token, self.limits.rules)?;
        Some(LentCommand {
            sequence: lent.sequence,
            enqueued: lent.enqueued,
            delivery_count: lent.delivery_count,
            message: lent.item.message.clone(),
        })
    }

    /// Ends a loan with what the device says. `None`: the command is back in its place; otherwise how it ended, and
    /// what its sender wants to hear of that.
    ///
    /// # Errors
    /// [`LockLost`] when the device took longer than its lock.
    pub(crate) fn settle(
        &mut self,
        now: Now,
        device: &DeviceId,
        token: LockToken,
        settlement: Settlement,
    ) -> Result<Option<(Departure, Option<Record>)>, LockLost> {
        let queue = self.queues.get_mut(device).ok_or(LockLost)?;
        let Some((command, departure)) = queue.settle(now, token, settlement, self.limits.rules)? else {
            return Ok(None);
        };
        self.bytes -= command.cost();
        if queue.is_empty() {
            self.queues.remove(device);
        }
        Ok(Some((departure, command.record(now, device, departure))))
    }

    /// Ends a loan because the device's link is gone. Nothing is counted.
    pub(crate) fn give_back(&mut self, device: &DeviceId, token: LockToken) {
        if let Some(queue) = self.queues.get_mut(device) {
            queue.give_back(token);
        }
    }

    /// Ends locks and commands whose time is over.
    pub(crate) fn elapse(&mut self, now: Now) -> Elapsed {
        let mut elapsed = Elapsed::default();
        let bytes = &mut self.bytes;
        self.queues.retain(|device, queue| {
            let (expired, freed) = queue.expire(now);
            for command in expired {
                *bytes -= command.cost();
                elapsed.ended.push((device.clone(), command.record(now, device, Departure::Expired)));
            }
            if freed {
                elapsed.ready.push(device.clone());
            }
            !queue.is_empty()
        });
        elapsed
    }

    /// Whether no command waits, so that time can change nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }
}

impl Command {
    /// What it counts against the bound: its bytes and, roughly, what it takes to hold them.
    fn cost(&self) -> usize {
        const OVERHEAD_BYTES: usize = 256;
        self.message.len() + self.message_id.len() + OVERHEAD_BYTES
    }

    fn record(self, now: Now, device: &DeviceId, departure: Departure) -> Option<Record> {
        self.ack.wants(departure).then(|| Record {
            original_message_id: self.message_id,
            at: now.wall,
            departure,
            device: device.clone(),
            generation: self.generation,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: CommandLimits = CommandLimits {
        rules: QueueRules { lock: Duration::from_secs(60), max_delivery_count: 2 },
        max_pending: 3,
        max_bytes: 4000,
        default_ttl: Duration::from_secs(3600),
        max_ttl: Duration::from_secs(172_800),
    };

    fn device(text: &str) -> DeviceId {
        DeviceId::new(text).unwrap()
    }

    fn command(id: &str, ack: AckRequest) -> Command {
        Command {
            message_id: id.into(),
            ack,
            generation: "g1".into(),
            message: Bytes::from_static(b"message"),
            expiry: None,
        }
    }

    fn token(number: u8) -> LockToken {
        LockToken([number; 16])
    }

    #[test]
    fn devices_have_queues_of_their_own() {
        let (now, mut commands) = (Now::test(), Commands::new(LIMITS));
        commands.push(now, &device("a"), command("1", AckRequest::Full)).unwrap();
        commands.push(now, &device("b"), command("2", AckRequest::Full)).unwrap();
        assert!(commands.lock_next(now, &device("c"), token(1)).is_none());
        let lent = commands.lock_next(now, &device("b"), token(1)).unwrap();
        assert_eq!((lent.sequence, lent.delivery_count, &lent.message[..]), (2, 0, &b"message"[..]));
        assert_eq!(commands.settle(now, &device("a"), token(1), Settlement::Complete), Err(LockLost));
        let (_, record) =
            commands.settle(now, &device("b"), token(1), Settlement::Complete).unwrap().unwrap();
        let record = record.unwrap();
        assert_eq!((record.original_message_id.as_str(), record.departure), ("2", Departure::Completed));
        assert_eq!((record.device, &*record.generation), (device("b"), "g1"));
        assert!(!commands.is_empty());
    }

    #[test]
    fn senders_hear_what_they_asked_for() {
        use AckRequest::{Full, Negative, None, Positive};
        for (ack, completed, rejected) in
            [(None, false, false), (Positive, true, false), (Negative, false, true), (Full, true, true)]
        {
            let (now, mut commands) = (Now::test(), Commands::new(LIMITS));
            for (settlement, wanted) in [(Settlement::Complete, completed), (Settlement::Reject, rejected)] {
                commands.push(now, &device("a"), command("1", ack)).unwrap();
                commands.lock_next(now, &device("a"), token(1)).unwrap();
                let ended = commands.settle(now, &device("a"), token(1), settlement).unwrap();
                assert_eq!(ended.unwrap().1.is_some(), wanted, "{ack:?} {settlement:?}");
            }
            // Abandoned twice is dead here.
            commands.push(now, &device("a"), command("1", ack)).unwrap();
            for round in 0..2 {
                commands.lock_next(now, &device("a"), token(1)).unwrap();
                let ended = commands.settle(now, &device("a"), token(1), Settlement::Abandon).unwrap();
                assert_eq!(ended.is_some(), round == 1);
                assert_eq!(ended.is_some_and(|(_, record)| record.is_some()), round == 1 && rejected);
            }
            assert!(commands.is_empty());
        }
    }

    #[test]
    fn both_bounds_hold_and_room_comes_back() {
        let (now, mut commands) = (Now::test(), Commands::new(LIMITS));
        for _ in 0..3 {
            commands.push(now, &device("a"), command("1", AckRequest::None)).unwrap();
        }
        let refused = commands.push(now, &device("a"), command("1", AckRequest::None));
        assert_eq!(refused, Err(Refused::QueueFull(3)));
        let large = Command { message: Bytes::from(vec![0; 3000]), ..command("1", AckRequest::None) };
        assert_eq!(commands.push(now, &device("b"), large), Err(Refused::HubFull));
        for _ in 0..3 {
            commands.lock_next(now, &device("a"), token(1)).unwrap();
            commands.settle(now, &device("a"), token(1), Settlement::Complete).unwrap();
        }
        assert!(commands.is_empty());
        assert_eq!(commands.bytes, 0);
    }

    #[test]
    fn time_expires_commands_and_frees_locks() {
        let (now, mut commands) = (Now::test(), Commands::new(LIMITS));
        let at = |seconds: i64| Some(Timestamp(now.wall.0 + seconds * 1000));
        let short = Command { expiry: at(10), ..command("short", AckRequest::Negative) };
        let past = Command { expiry: at(-10), ..command("past", AckRequest::Full) };
        commands.push(now, &device("a"), short).unwrap();
        commands.push(now, &device("a"), past).unwrap();
        commands.push(now, &device("b"), command("b", AckRequest::Full)).unwrap();
        commands.lock_next(now, &device("b"), token(1)).unwrap();
        let ids = |elapsed: &Elapsed| -> Vec<String> {
            let records = elapsed.ended.iter().filter_map(|(_, record)| record.as_ref());
            records.map(|record| record.original_message_id.clone()).collect()
        };
        let elapsed = commands.elapse(now);
        assert_eq!((ids(&elapsed), elapsed.ended.len()), (vec!["past".to_owned()], 1));
        assert!(elapsed.ready.is_empty());
        let elapsed = commands.elapse(now.plus(Duration::from_secs(60)));
        assert_eq!((ids(&elapsed), elapsed.ready), (vec!["short".to_owned()], vec![device("b")]));
        assert!(
            elapsed.ended.iter().flat_map(|(_, record)| record).all(|r| r.departure == Departure::Expired)
        );
        let elapsed = commands.elapse(now.plus(LIMITS.default_ttl));
        assert_eq!(ids(&elapsed), ["b"]);
        assert!(commands.is_empty());
    }

    #[test]
    fn nobody_keeps_a_command_for_ever() {
        let (now, mut commands) = (Now::test(), Commands::new(LIMITS));
        let eternal = Command { expiry: Some(Timestamp(i64::MAX)), ..command("e", AckRequest::None) };
        commands.push(now, &device("a"), eternal).unwrap();
        assert_eq!(commands.elapse(now.plus(LIMITS.max_ttl)).ended.len(), 1);
    }
}
