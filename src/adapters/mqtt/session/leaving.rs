//! The end of a connection: what is kept of its session, and its will.

use std::rc::Rc;
use std::time::Instant;

use fieldgate_mappings::address::DeviceId;
use fieldgate_mappings::message::Message;
use fieldgate_mqtt::Connection;
use tokio::sync::oneshot;

use crate::adapters::Legacy;
use crate::shutdown::Shutdown;
use crate::telemetry::emit;
use crate::upstream::Hears;

use super::super::host::Host;
use super::super::inbox::{Inbox, Ticket};
use super::super::kept::Kept;
use super::super::telemetry::{End, WillPublished};
use super::{Client, Session, patience};

/// A will that waits for its delay, or for the end of its session (MQTT 5 3.1.3.2.2).
pub(in crate::adapters::mqtt) struct WaitingWill<H: Host> {
    host: Rc<H>,
    inbox: Rc<Inbox>,
    device: DeviceId,
    will: Box<Message>,
    at: Instant,
    /// Told: the session goes on. Lost: it is over.
    goes_on: oneshot::Receiver<()>,
}

impl<H: Host> Session<H> {
    /// The end: lets go of the identifier and of the subscription, keeps what the session needs, and sends the will, if
    /// that is not to wait. What is left of the connection are the last words.
    pub(in crate::adapters::mqtt) fn finish(mut self, now: Instant) -> (Connection, Option<WaitingWill<H>>) {
        self.tell(End::Lost);
        if !self.left {
            self.inbox.desert();
        }
        self.pass_on(now);
        let window = self.host.config().mqtt.command_window.get();
        let left = self.commands.as_ref().map(|commands| (commands.filters(), commands.in_flight(window)));
        let (filters, mut commands) = left.unwrap_or_default();
        self.drop_commands();
        let Some(client) = self.client.take() else { return (self.machine, None) };
        let Client { device, held, will, will_delay, expiry, late, .. } = client;
        let delay = will_delay.min(expiry);
        let mut waiting = None;
        let mut will = will;
        if !expiry.is_zero() {
            let mut packets = self.machine.take_session();
            commands.retain(|command| packets.unacknowledged().contains(&command.packet_id));
            // The others are not recognised when the hub delivers them again, and then have other identifiers.
            for packet_id in packets.unacknowledged().to_vec() {
                if commands.iter().all(|command| command.packet_id != packet_id) {
                    packets.give_up(packet_id);
                }
            }
            if packets.exchanges() > 0 {
                self.inbox.forward(&late, packets.undecided());
            }
            // Before the session's next connection begins: what it sends must not overtake what waits here.
            self.host.recall(&device);
            let (tell, goes_on) = oneshot::channel();
            let waits = will.take_if(|_| !delay.is_zero());
            let kept = Kept { packets, filters, commands, late, will: waits.is_some().then_some(tell) };
            let most = self.host.config().mqtt.max_sessions.get();
            held.leave(Legacy::Kept(Box::new(kept)), now + expiry, most, now);
            waiting = waits.map(|will| WaitingWill {
                host: Rc::clone(&self.host),
                inbox: Rc::clone(&self.inbox),
                device: device.clone(),
                will,
                at: now + delay,
                goes_on,
            });
        }
        if let Some(will) = will {
            send(&*self.host, &self.inbox, &device, *will, now);
        }
        (self.machine, waiting)
    }
}

impl<H: Host> WaitingWill<H> {
    /// Waits until the will is to be sent, or is not. A gateway that stops sends it.
    pub(in crate::adapters::mqtt) async fn wait(self, shutdown: &Shutdown) {
        let Self { host, inbox, device, will, at, goes_on } = self;
        let is_due = tokio::select! {
            told = goes_on => told.is_err(),
            () = tokio::time::sleep_until(at.into()) => true,
            () = shutdown.draining() => true,
        };
        if is_due {
            send(&*host, &inbox, &device, *will, Instant::now());
        }
    }
}

fn send<H: Host>(host: &H, inbox: &Rc<Inbox>, device: &DeviceId, will: Message, now: Instant) {
    emit(WillPublished { device });
    // Nobody is there to be told of a refusal, or to send it again.
    let hears = if will.durable { Hears::Acceptance } else { Hears::Nothing };
    host.send(will, patience(host.config(), hears, now), inbox.verdict(Ticket::Will));
}
