//! Links that end here: sending with credit and outcomes, receiving with reassembly and credit, and the claims of
//! the `$cbs` node.
//!
//! A [`Sender`] and a [`Receiver`] are small values that stand beside a [`Connection`](crate::connection::Connection)
//! and are handed its events. They own no bytes but those of a delivery that has not come whole. Outcomes belong to
//! the session, since a disposition speaks of delivery-ids and not of links: [`Unsettled`] keeps what was sent,
//! [`Settlements`] gathers what is to be settled.

mod cbs;
mod receiver;
mod sender;

pub use cbs::{
    BadCbsRequest, CBS_NODE, CbsClient, CbsRequest, CbsResponse, PutToken, SAS_TOKEN, put_cbs_response,
};
pub use receiver::{CreditPolicy, Delivery, Receiver, ReceiverConfig, Settlements};
pub use sender::{OutgoingMessage, SendError, Sender, Settled, Unsettled};
