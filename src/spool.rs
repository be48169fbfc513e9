//! Store and forward: messages that the disk keeps until the hub has taken them.
//!
//! One thread of the process owns the log and all queues, because order is per hub, device and priority, and devices
//! move between workers. Workers hand it batches ([`Spool::submit`]); it makes one write and one fdatasync of all that
//! has gathered, answers each worker's [`Mailbox`], and drains what it holds over a hub connection of its own.
//!
//! ```text
//! worker ── submit ──▶ inbox ──▶ admission ──▶ log (append, commit) ──▶ mailbox ──▶ worker
//!                                    │                                     
//!                                    ▼
//!                                 queues ──▶ hub: accepted ──▶ settled in the log
//!                                              rejected ─────▶ dead letter, then settled
//!                                              neither ──────▶ sent again in order, marked
//! ```
//!
//! Not here: which messages go through the disk (that is the worker's `Outbound`), and how bytes lie on it (the log).

mod ages;
pub(crate) mod ask;
mod dead;
mod handle;
mod held;
mod keeper;
mod marking;
mod queues;
mod record;
mod remote;
mod service;
mod telemetry;

pub(crate) use ask::{Answer, Ask, Disk, Done, Letter, Status, Which};
pub(crate) use handle::{Mailbox, Spool, Store, Stored};
pub(crate) use record::{DeadLetter, DeadReason, Entry, Limits, Record, Refusal};
pub(crate) use remote::{add_routes, ask};
pub(crate) use service::SpoolError;
pub(crate) use service::{Offline, Running, Setup, directory};
