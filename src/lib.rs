//! Fieldgate: an IoT gateway that carries MQTT, CoAP, HTTP and AMQP 1.0 devices to an AMQP 1.0 hub over TLS.
//!
//! *Protocols say it, mappings mean it, src runs it, tests doubt it.* This crate is the running part: it alone
//! opens sockets, reads files, asks the time and spawns tasks.

mod adapters;
pub mod app;
pub mod cli;
pub mod config;
pub mod console;
mod control;
pub mod demo;
mod devices;
pub mod hub;
pub mod listener;
mod lock_file;
mod outbound;
mod output;
mod router;
pub mod sas;
mod service;
pub mod shutdown;
mod spool;
pub mod state;
pub mod store;
mod table;
pub mod telemetry;
#[cfg(test)]
mod testing;
mod timer;
pub mod tls;
pub mod upstream;
mod wire;
mod worker;
