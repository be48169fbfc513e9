//! A listener as the tasks of its devices see it: everything is worked out once, and shared.

use std::sync::Arc;

use fieldgate_amqp::connection::ConnectionConfig;
use fieldgate_amqp::sasl::Mechanism;

use crate::config::{self, Limits};
use crate::router::{Authorise, MAX_BACKLOG_BYTES};
use crate::tls::Acceptor;

/// A place where devices connect.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(super) name: Arc<str>,
    pub(super) acceptor: Acceptor,
    /// A device may skip SASL.
    pub(super) allow_bare: bool,
    /// What a device with a certificate is offered, and what others are.
    mechanisms: [Box<[Mechanism]>; 2],
    /// Where all its devices go.
    pub(super) connector: Option<usize>,
    pub(super) authorise: Authorise,
    /// Deliveries under way in one direction of a session.
    pub(super) max_unsettled: usize,
    /// Tokens that one connection may have put.
    pub(super) max_tokens: usize,
    /// What the devices' connections are told.
    pub(super) machine: Arc<ConnectionConfig>,
}

impl Listener {
    /// The listener that is configured so.
    pub(crate) fn new(config: &config::Listener, acceptor: Acceptor) -> Self {
        let offered = |certified: bool| {
            let all = config.sasl_mechanisms.iter().copied();
            all.filter(|mechanism| certified || *mechanism != Mechanism::External).collect()
        };
        Self {
            name: Arc::clone(&config.name),
            acceptor,
            allow_bare: !config.authenticate_peer,
            mechanisms: [offered(true), offered(false)],
            connector: config.connector,
            authorise: match config.authorise {
                config::Authorise::Token => Authorise::Token,
                config::Authorise::Registry => Authorise::Registry,
                config::Authorise::Any => Authorise::Any,
            },
            max_unsettled: usize::try_from(config.limits.max_unsettled.get()).unwrap_or(usize::MAX),
            max_tokens: config.limits.max_tokens.get(),
            machine: Arc::new(machine_config(&config.limits)),
        }
    }

    /// What a device is offered to authenticate with.
    pub(super) fn mechanisms(&self, has_certificate: bool) -> &[Mechanism] {
        &self.mechanisms[usize::from(!has_certificate)]
    }
}

/// What may wait in a session for a peer's window: what makes the router hold the other side back, and what that side
/// may still send then. A window is kept to its bytes within a factor of two.
pub(super) fn max_backlog_bytes(window_bytes: u32) -> usize {
    2 * MAX_BACKLOG_BYTES + 2 * window_bytes as usize
}

fn machine_config(limits: &Limits) -> ConnectionConfig {
    ConnectionConfig {
        max_frame_bytes: limits.max_frame_bytes,
        channel_max: limits.max_sessions.get() - 1,
        max_links: usize::try_from(limits.max_links.get()).unwrap_or(usize::MAX),
        handle_max: limits.max_links.get() - 1,
        incoming_window_bytes: limits.window_bytes as usize,
        idle_time_out: Some(limits.idle_time_out),
        open_time_out: limits.open_time_out,
        max_backlog_bytes: max_backlog_bytes(limits.window_bytes),
        ..ConnectionConfig::default()
    }
}
