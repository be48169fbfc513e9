//! All that the hub knows, and what each kind of message does to it. Still no socket and no clock.

use std::time::Duration;

use bytes::Bytes;
use fieldgate_amqp::codec::Limits;
use fieldgate_amqp::error::{AmqpError, Condition};
use fieldgate_amqp::message::Sections;
use fieldgate_mappings::{DeviceId, Timestamp};

use super::address::Node;
use super::auth::{Authority, Grant, Signer};
use super::commands::{Command, CommandLimits, Commands};
use super::feedback::{AckRequest, Feedback, FeedbackLimits};
use super::log::EventLog;
use super::message::{self, AUTH_BY_DEVICE, AUTH_BY_POLICY, BATCH_FORMAT, Origin};
use super::queue::QueueRules;
use super::registry::{NotRegistered, Registry};
use super::time::Now;
use crate::config::HubConfig;
use crate::sas::SharedKey;

/// The largest message from a device, and the largest batch, in bytes as [`message::size`] counts them.
pub(crate) const MAX_EVENT_BYTES: usize = 256 * 1024;
/// The largest command.
pub(crate) const MAX_COMMAND_BYTES: usize = 64 * 1024;
/// The commands of all devices together.
const MAX_COMMANDS_BYTES: usize = 64 * 1024 * 1024;
/// Feedback messages that wait, of at most 64 records each.
const MAX_FEEDBACK_MESSAGES: usize = 1024;
/// How often a feedback message comes back until it is dropped (IoT Hub's default).
const FEEDBACK_DELIVERY_COUNT: u8 = 10;
/// The longest that a command waits (IoT Hub's bound).
const MAX_COMMAND_TTL: Duration = Duration::from_secs(2 * 86_400);

/// The hub's whole state.
#[derive(Debug)]
pub(crate) struct HubState {
    /// The hub's name.
    pub(crate) name: String,
    pub(crate) log: EventLog,
    pub(crate) commands: Commands,
    pub(crate) feedback: Feedback,
    pub(crate) authority: Authority,
    registry: Registry,
    registers_unknown: bool,
}

/// Why a link or a message is refused, as its sender is told.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) condition: Condition,
    pub(crate) description: String,
}

impl Refusal {
    pub(crate) fn new(condition: Condition, description: impl Into<String>) -> Self {
        Self { condition, description: description.into() }
    }
}

impl From<&Refusal> for AmqpError {
    fn from(refusal: &Refusal) -> Self {
        Self::new(&refusal.condition, Some(&refusal.description))
    }
}

impl HubState {
    /// An empty hub, known by `hosts`, whose `iothubowner` policy has the key `owner`.
    pub(crate) fn new(config: &HubConfig, hosts: &[String], owner: SharedKey) -> Self {
        let rules = QueueRules { lock: config.lock, max_delivery_count: config.max_delivery_count.get() };
        Self {
            name: config.name.clone(),
            log: EventLog::new(config.partitions.get(), config.retain_bytes),
            commands: Commands::new(CommandLimits {
                rules,
                max_pending: config.max_pending_commands.get(),
                max_bytes: MAX_COMMANDS_BYTES,
                default_ttl: config.command_ttl,
                max_ttl: MAX_COMMAND_TTL,
            }),
            feedback: Feedback::new(FeedbackLimits {
                rules: QueueRules { lock: config.lock, max_delivery_count: FEEDBACK_DELIVERY_COUNT },
                gather: config.feedback_delay,
                ttl: config.feedback_ttl,
                max_messages: MAX_FEEDBACK_MESSAGES,
            }),
            authority: Authority::new(hosts, owner),
            registry: Registry::new(config.max_devices.get()),
            registers_unknown: config.register_unknown_devices(),
        }
    }

    /// The device of a link, as the messages on it will be stamped; the flag tells whether it has just registered.
    ///
    /// # Errors
    /// [`Refusal`], when the device is not known and cannot be.
    pub(crate) fn admit(
        &mut self,
        wall: Timestamp,
        device: &DeviceId,
        grant: &Grant,
    ) -> Result<(Origin, bool), Refusal> {
        let (known, is_new) =
            self.registry.admit(wall, device, self.registers_unknown).map_err(|error| match error {
                NotRegistered::Unknown => Refusal::new(Condition::NotFound, format!("{error}: {device}")),
                NotRegistered::Full => Refusal::new(Condition::ResourceLimitExceeded, error.to_string()),
            })?;
        let auth_method = match grant.signer {
            Signer::Device(_) => AUTH_BY_DEVICE,
            Signer::Policy(_) => AUTH_BY_POLICY,
        };
        Ok((Origin { device: device.clone(), generation: known.generation.clone(), auth_method }, is_new))
    }

    /// Takes a device's message, or batch, into the log. Once this returns, it can be read.
    ///
    /// # Errors
    /// [`Refusal`], as the message's outcome will say; nothing of it was taken.
    pub(crate) fn append(
        &mut self,
        wall: Timestamp,
        origin: &Origin,
        format: u32,
        payload: &Bytes,
    ) -> Result<Appended, Refusal> {
        let messages = message::unpack(format, payload)
            .map_err(|error| Refusal::new(Condition::DecodeError, error.to_string()))?;
        let size = messages.iter().map(message::size).sum::<usize>();
        if size > MAX_EVENT_BYTES {
            return Err(too_large(size, MAX_EVENT_BYTES));
        }
        let partition = self.log.partition_of(&origin.device);
        let dropped = self.log.dropped();
        for message in &messages {
            self.log.append(partition, wall, |stamp| message::stored(message, origin, stamp));
        }
        Ok(Appended {
            partition,
            messages: messages.len(),
            bytes: payload.len(),
            dropped: self.log.dropped() - dropped,
            log_bytes: self.log.bytes(),
        })
    }

    /// Queues a service's command; returns the device that it is for.
    ///
    /// # Errors
    /// [`Refusal`], as the command's outcome will say.
    pub(crate) fn queue(&mut self, now: Now, format: u32, payload: &Bytes) -> Result<DeviceId, Refusal> {
        if format == BATCH_FORMAT {
            return Err(Refusal::new(Condition::NotImplemented, "commands are not taken in batches"));
        }
        let message = Sections::parse(payload, &Limits::WIRE)
            .map_err(|error| Refusal::new(Condition::DecodeError, error.to_string()))?;
        let properties = message.properties();
        let to = properties.to().ok_or_else(|| {
            Refusal::new(
                Condition::InvalidField,
                "the property `to` must be /devices/DEVICE/messages/devicebound",
            )
        })?;
        let device = Node::parse_command_target(to).ok_or_else(|| {
            Refusal::new(Condition::NotFound, "the property `to` is not /devices/DEVICE/messages/devicebound")
        })?;
        let size = message::size(&message);
        if size > MAX_COMMAND_BYTES {
            return Err(too_large(size, MAX_COMMAND_BYTES));
        }
        let ack = message
            .application_properties()
            .find(|(name, _)| name.as_str() == Some("iothub-ack"))
            .map_or(Some(AckRequest::None), |(_, value)| AckRequest::parse(value.as_str()?))
            .ok_or_else(|| {
                Refusal::new(Condition::InvalidField, "iothub-ack is none, positive, negative or full")
            })?;
        let known = self.registry.get(&device).ok_or_else(|| {
            Refusal::new(Condition::NotFound, format!("{}: {device}", NotRegistered::Unknown))
        })?;
        let ttl = message.header().ttl.and_then(|ttl| i64::try_from(ttl.as_millis()).ok());
        let command = Command {
            message_id: message::id_text(properties.message_id()),
            ack,
            generation: known.generation.clone(),
            message: message::command(&message, &device),
            expiry: properties
                .absolute_expiry_time()
                .or(ttl.map(|ttl| now.wall.0.saturating_add(ttl)))
                .map(Timestamp),
        };
        self.commands
            .push(now, &device, command)
            .map_err(|error| Refusal::new(Condition::ResourceLimitExceeded, error.to_string()))?;
        Ok(device)
    }
}

/// What [`HubState::append`] took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Appended {
    pub(crate) partition: u16,
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
    /// Older messages that had to go.
    pub(crate) dropped: u64,
    /// What the log holds now.
    pub(crate) log_bytes: usize,
}

fn too_large(size: usize, max: usize) -> Refusal {
    Refusal::new(Condition::MessageSizeExceeded, format!("the message has {size} bytes; {max} are allowed"))
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use fieldgate_amqp::codec::Value;
    use fieldgate_amqp::message::{
        Header, PropertiesOut, put_application_properties, put_data, put_header, put_properties,
    };

    use super::*;
    use crate::hub::auth::Grants;
    use crate::hub::queue::{LockToken, Settlement};
    use crate::sas;

    const TO: &str = "/devices/d/messages/devicebound";

    fn state(registers: bool) -> HubState {
        let text =
            format!("[hub]\nregister_unknown_devices = {registers}\nmax_devices = 2\npartitions = 2\n");
        let config = crate::config::Config::parse("test", &text, None).unwrap();
        HubState::new(&config.hub, &["localhost".into()], SharedKey::from_bytes(b"owner").unwrap())
    }

    fn grant(state: &HubState) -> Grant {
        let owner = SharedKey::from_bytes(b"owner").unwrap();
        let token = sas::Signer::new(Some("iothubowner".into()), owner).token("localhost", 4_000_000_000);
        state.authority.judge(&token, "localhost", 0).unwrap()
    }

    fn device(text: &str) -> DeviceId {
        DeviceId::new(text).unwrap()
    }

    fn admit(state: &mut HubState, id: &str) -> Result<(Origin, bool), Refusal> {
        let grant = grant(state);
        state.admit(Timestamp(1), &device(id), &grant)
    }

    fn message(to: Option<&str>, ack: Option<Value<'_>>, expiry: Option<i64>, body: usize) -> Bytes {
        let mut out = BytesMut::new();
        let properties = PropertiesOut {
            message_id: Some(Value::Str("m")),
            to,
            absolute_expiry_time: expiry,
            ..PropertiesOut::default()
        };
        put_properties(&mut out, &properties);
        put_application_properties(&mut out, ack.map(|ack| ("iothub-ack", ack)));
        put_data(&mut out, &vec![0; body]);
        out.freeze()
    }

    #[test]
    fn devices_register_by_themselves_only_where_they_may() {
        let mut closed = state(false);
        assert_eq!(admit(&mut closed, "d").unwrap_err().condition, Condition::NotFound);
        let mut open = state(true);
        let (origin, is_new) = admit(&mut open, "d").unwrap();
        assert!(is_new && origin.auth_method == AUTH_BY_POLICY);
        assert!(!admit(&mut open, "d").unwrap().1);
        admit(&mut open, "e").unwrap();
        assert_eq!(admit(&mut open, "f").unwrap_err().condition, Condition::ResourceLimitExceeded);
    }

    #[test]
    fn a_message_is_in_the_log_when_it_is_accepted_and_not_when_it_is_refused() {
        let mut state = state(true);
        let (origin, _) = admit(&mut state, "d").unwrap();
        let taken = state.append(Timestamp(5), &origin, 0, &message(None, None, None, 10)).unwrap();
        assert_eq!(taken.messages, 1);
        assert!(state.log.read(taken.partition, 0).is_some());
        for (payload, condition) in [
            (Bytes::from_static(b"\x00\x53"), Condition::DecodeError),
            (message(None, None, None, MAX_EVENT_BYTES), Condition::MessageSizeExceeded),
        ] {
            let refused = state.append(Timestamp(5), &origin, 0, &payload).unwrap_err();
            assert_eq!(refused.condition, condition);
        }
        let mut batch = BytesMut::new();
        put_data(&mut batch, &message(None, None, None, 1));
        put_data(&mut batch, b"rubbish");
        let refused = state.append(Timestamp(5), &origin, BATCH_FORMAT, &batch.freeze()).unwrap_err();
        assert_eq!(refused.condition, Condition::DecodeError);
        assert!(state.log.read(taken.partition, 1).is_none(), "a batch is one thing");
        assert!(
            state.append(Timestamp(5), &origin, 0, &message(None, None, None, MAX_EVENT_BYTES - 1)).is_ok()
        );
    }

    #[test]
    fn commands_are_refused_for_what_is_wrong_with_them() {
        let (now, mut state) = (Now::test(), state(true));
        admit(&mut state, "d").unwrap();
        for (payload, condition) in [
            (Bytes::from_static(b"\x00\x53"), Condition::DecodeError),
            (message(None, None, None, 1), Condition::InvalidField),
            (message(Some("/messages/events"), None, None, 1), Condition::NotFound),
            (message(Some("/devices/unknown/messages/devicebound"), None, None, 1), Condition::NotFound),
            (message(Some(TO), Some(Value::Str("maybe")), None, 1), Condition::InvalidField),
            (message(Some(TO), Some(Value::Bool(true)), None, 1), Condition::InvalidField),
            (message(Some(TO), None, None, MAX_COMMAND_BYTES), Condition::MessageSizeExceeded),
        ] {
            assert_eq!(state.queue(now, 0, &payload).unwrap_err().condition, condition);
        }
        let good = message(Some(TO), Some(Value::Str("full")), None, 1);
        assert_eq!(state.queue(now, BATCH_FORMAT, &good).unwrap_err().condition, Condition::NotImplemented);
        assert_eq!(state.queue(now, 0, &good), Ok(device("d")));
        for _ in 1..50 {
            state.queue(now, 0, &good).unwrap();
        }
        assert_eq!(state.queue(now, 0, &good).unwrap_err().condition, Condition::ResourceLimitExceeded);
        let token = LockToken([1; 16]);
        let lent = state.commands.lock_next(now, &device("d"), token).unwrap();
        assert_eq!(lent.delivery_count, 0);
        let ended = state.commands.settle(now, &device("d"), token, Settlement::Complete).unwrap();
        assert_eq!(ended.unwrap().1.unwrap().original_message_id, "m");
    }

    #[test]
    fn a_command_expires_by_its_absolute_time_or_by_its_header() {
        let (now, mut state) = (Now::test(), state(true));
        admit(&mut state, "d").unwrap();
        state.queue(now, 0, &message(Some(TO), None, Some(now.wall.0 + 5000), 1)).unwrap();
        let mut short = BytesMut::new();
        let ttl = Some(Duration::from_secs(7));
        put_header(&mut short, &Header { ttl, ..Header::default() });
        short.extend_from_slice(&message(Some(TO), None, None, 1));
        state.queue(now, 0, &short.freeze()).unwrap();
        for (seconds, expired) in [(4, 0), (5, 1), (6, 0), (7, 1)] {
            let then = now.plus(Duration::from_secs(seconds));
            assert_eq!(state.commands.elapse(then).ended.len(), expired, "{seconds}");
        }
    }

    #[test]
    fn what_was_admitted_is_what_the_grant_says() {
        let mut state = state(true);
        let id = device("d");
        let key = crate::hub::registry::device_key(&SharedKey::from_bytes(b"owner").unwrap(), &id);
        let token = sas::Signer::new(None, key).token("localhost/devices/d", 4_000_000_000);
        let grant = state.authority.judge(&token, "localhost/devices/d", 0).unwrap();
        let mut grants = Grants::new(1);
        grants.put(grant.clone()).unwrap();
        assert_eq!(state.admit(Timestamp(0), &id, &grant).unwrap().0.auth_method, AUTH_BY_DEVICE);
    }
}
