//! What the gateway means: the message model, mapping files, and each protocol's place in it.
//!
//! - [`message`], [`address`] and [`outcome`] are the model. They name no protocol.

pub mod address;
pub mod message;
pub mod outcome;

pub use address::{Address, DeviceId, Identity};
pub use bytestring::ByteString;
pub use message::{Direction, Message, MessageId, Properties, Timestamp, Value};
pub use outcome::{Outcome, Reason, Rejection, Report, Verdict};
