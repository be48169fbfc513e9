//! WebSocket (RFC 6455) as a carrier of a byte stream: AMQP over WebSocket, subprotocol `AMQPWSB10`, both sides, and MQTT
//! over WebSocket, the server's, without I/O.
//!
//! Where one message ends and the next begins means nothing here, so none is ever put together: payload is taken out of
//! whatever was read, in place, and what is to be sent is cut into frames as it goes. A connection therefore holds no
//! buffer, and the size of a peer's frames and messages needs no bound. The libraries for WebSocket gather whole
//! messages; AMQP clients put all that they have to say at a time into one, which may be megabytes.
//!
//! Not here: sockets, TLS, time and randomness (an input), extensions (none is offered or taken), text messages.
//!
//! # Contract
//!
//! The driver of either side
//!
//! 1. reads the other side's head, at most [`MAX_HEAD_BYTES`] to the empty line, and judges it: [`server::judge`], or
//!    [`client::Request::check`];
//! 2. hands what it reads to [`Decoder::decode`], which leaves the payload where the bytes were, and then asks it for
//!    a [`pong`](Decoder::take_pong) that is due and whether the peer [closes](Decoder::close_code);
//! 3. writes what [`Encoder::encode`] makes of its payload, and tells it how much the stream took.

mod frame;
mod head;

pub mod client;
pub mod server;

pub use frame::{Decoder, Encoder, MAX_FRAME_BYTES, Role, Violation};
pub use head::{MAX_HEAD_BYTES, end_of_head};

/// The subprotocol of AMQP over WebSocket, as Azure IoT Hub and its clients call it.
pub const SUBPROTOCOL: &str = "AMQPWSB10";

/// The same as brokers call it, by the OASIS binding of AMQP to WebSocket.
pub const OASIS_SUBPROTOCOL: &str = "amqp";

/// The path at which Azure IoT Hub takes AMQP over WebSocket.
pub const PATH: &str = "/$iothub/websocket";

/// The subprotocol of MQTT over WebSocket (MQTT 5 6.0.0-3).
pub const MQTT_SUBPROTOCOL: &str = "mqtt";

/// The same as clients of MQTT 3.1 call it.
pub const OLD_MQTT_SUBPROTOCOL: &str = "mqttv3.1";

/// The path at which most brokers take MQTT over WebSocket; Azure IoT Hub takes it at [`PATH`].
pub const MQTT_PATH: &str = "/mqtt";

/// The same of Azure Event Hubs and Service Bus.
pub const SERVICE_BUS_PATH: &str = "/$servicebus/websocket";
