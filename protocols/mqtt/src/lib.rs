//! The MQTT 3.1.1 and 5 wire, server side: a guarded codec and the connection machine, without I/O.
//!
//! One [`Connection`] is one network connection of a client, of any version (3.1 speaks as 3.1.1 does); the version is
//! learnt from CONNECT. QoS 0, 1 and 2 from the client, 0 and 1 toward it. There are no subscriptions and no topics'
//! meaning here: a SUBSCRIBE is an event, and its answer a command. What the packets of a connection leave to the next
//! one is a [`Session`]; how long that lasts is the driver's.
//!
//! # How a driver calls it
//!
//! 1. Read only while [`Connection::wants_input`]; give what was read to [`Connection::handle_input`]. At
//!    [`Connection::poll_timeout`] call [`Connection::handle_timeout`].
//! 2. Take [`Connection::poll_event`] until it has nothing more, and act on each event. Commands may be called at
//!    any time, also from outside this loop; after a command ask for events again, because it may have let a
//!    waiting packet go on.
//! 3. Write what [`Connection::poll_transmit`] returns.
//! 4. If [`Connection::is_closed`], close the socket. If the socket is gone first, drop the connection.
//!
//! The machine never calls a clock, never blocks and never panics on input. What it holds is bounded by
//! [`Config`].
//!
//! # What acknowledges a message
//!
//! Nothing but [`Connection::acknowledge`]: the machine sends no PUBACK and no PUBREC by itself, but for a payload that
//! it refuses ([`Event::PublishRefused`]) and for the repetition of what was acknowledged before. When
//! [`Config::receive_maximum`] messages wait, an MQTT 3.1.1 client's next one is left unparsed and then unread, and
//! its keep alive is not charged meanwhile; an MQTT 5 client was told the number and breaks a rule.
//!
//! [`client`] is the other side, as far as simulated devices and tests need it.

mod alias;
mod answers;
mod codec;
mod config;
mod connect;
mod connection;
mod encode;
mod guard;
mod incoming;
mod outgoing;
mod packet;
mod properties;
mod reason;
mod session;
mod text;
mod wire;

pub mod client;

pub use config::Config;
pub use connection::{Accept, Connection, Event, TimeOut};
pub use packet::{
    Connect, Disconnect, OutgoingPublish, PacketId, Publish, PublishProperties, PublishToken, QoS,
    RetainHandling, Subscribe, SubscribeFilter, Unsubscribe, Version, Will,
};
pub use reason::{
    ConnectRefusal, DisconnectReason, Misuse, PublishError, PublishReply, SubscribeRefusal, SubscribeReply,
    UnsubscribeReply, Violation,
};
pub use session::Session;
pub use text::{Text, filter_matches, is_topic_filter, is_topic_name};
