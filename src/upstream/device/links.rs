//! A device's session and its links: begun and attached, and what becomes of messages and commands when they are gone.

use fieldgate_amqp::connection::{Connection, LinkId, SessionId};
use fieldgate_amqp::endpoint::Receiver;
use fieldgate_amqp::error::Misuse;
use fieldgate_amqp::performative::{AttachOut, RcvSettleMode, SndSettleMode, SourceOut, TargetOut};
use fieldgate_mappings::address::Address;
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection};

use crate::upstream::Patience;
use crate::upstream::commands::MAX_COMMAND_BYTES;
use crate::upstream::lanes::Waiting;
use crate::upstream::outlet::{OutLink, Outlet};

use super::Device;

impl Device {
    /// Begins the session and attaches what is missing of the device's own links that are needed now. What waits for an
    /// address that no frame of the hub holds is refused.
    ///
    /// # Errors
    /// When the connection has no room for the session or a link.
    pub(in crate::upstream) fn attach(
        &mut self,
        connection: &mut Connection,
        prefix: &str,
        relays: bool,
        mut attached: impl FnMut(LinkId),
    ) -> Result<(), Misuse> {
        let session = match self.session {
            Some(session) => session,
            None => *self.session.insert(connection.begin()?),
        };
        // Commands first: a device has one subscription, and many addresses perhaps.
        if let Some(commands) = &mut self.commands
            && commands.receiver.is_none()
        {
            let named = format!("{prefix}{}", commands.address.as_str());
            match attach_receiver(connection, session, &named, commands.serial) {
                Ok(link) => {
                    commands.receiver = Some(Receiver::new(link, commands.receiver_config()));
                    commands.attachment = commands.attachment.wrapping_add(1);
                    attached(link);
                }
                Err(Misuse::FrameTooLarge) => self.end_commands(&address_too_long()),
                Err(misuse) => return Err(misuse),
            }
        }
        for outlet in self.outlets.iter_mut().filter(|outlet| !relays && outlet.lacks_a_link()) {
            let named = format!("{prefix}{}", outlet.address.as_str());
            match OutLink::attach(connection, session, Some(&named)) {
                Ok(link) => {
                    attached(link.id());
                    outlet.link = Some(link);
                }
                Err(Misuse::FrameTooLarge) => outlet.refuse_waiting(&address_too_long()),
                Err(misuse) => return Err(misuse),
            }
        }
        Ok(())
    }

    /// The hub has detached a link: what was sent over it stays unanswered, what waits for it gets `outcome`, a
    /// subscription ends.
    pub(in crate::upstream) fn lose_link(&mut self, link: LinkId, outcome: &Outcome) {
        self.unsettled.lose_link(link, |_, in_flight| drop(in_flight));
        if let Some(at) = self.outlets.iter().position(|outlet| outlet.sends_over(link)) {
            let outlet = self.outlets.remove(at);
            let attached = outlet.link.as_ref().is_some_and(|link| link.attached);
            refuse_waiting(outlet, attached, outcome);
        }
        if let Some(commands) = self.commands.take_if(|commands| commands.receives_over(link)) {
            commands.end(outcome);
        }
    }

    /// Whether something waits for this address, or for any.
    pub(in crate::upstream) fn waits_for(&self, address: Option<&Address>) -> bool {
        let meant = |outlet: &&Outlet| address.is_none_or(|address| outlet.address == *address);
        self.outlets.iter().filter(meant).any(|outlet| !outlet.waiting.is_empty())
    }

    /// It stands no longer in the line of the shared link that leads to this address, or anywhere.
    pub(in crate::upstream) fn leave_line(&mut self, address: Option<&Address>) {
        let meant = |outlet: &&mut Outlet| address.is_none_or(|address| outlet.address == *address);
        self.outlets.iter_mut().filter(meant).for_each(|outlet| outlet.in_line = false);
    }

    /// A shared link for this address is gone: what waits for it gets `outcome`.
    pub(in crate::upstream) fn lose_shared(&mut self, address: &Address, attached: bool, outcome: &Outcome) {
        if let Some(at) = self.outlets.iter().position(|outlet| outlet.address == *address) {
            let outlet = self.outlets.remove(at);
            refuse_waiting(outlet, attached, outcome);
        }
    }

    /// The session is gone: what was sent stays unanswered; waiting messages and the subscription stay.
    pub(in crate::upstream) fn lose_session(&mut self) {
        self.session = None;
        self.outlets.retain_mut(|outlet| {
            outlet.link = None;
            outlet.in_flight = 0;
            !outlet.waiting.is_empty()
        });
        if let Some(commands) = &mut self.commands {
            commands.receiver = None;
        }
        self.unsettled.lose_all().for_each(drop);
    }

    /// The shared links are gone: it stands in no line any more.
    pub(in crate::upstream) fn lose_relay(&mut self) {
        self.relayed = 0;
        self.outlets.iter_mut().for_each(|outlet| outlet.in_line = false);
    }

    /// The hub takes nothing of this device now: what waits ends with `outcome`.
    pub(in crate::upstream) fn refuse_waiting(&mut self, outcome: &Outcome) {
        self.outlets.iter_mut().for_each(|outlet| outlet.refuse_waiting(outcome));
    }

    /// The hub wants nothing of this device now: what waits, and the subscription, end with `outcome`.
    pub(in crate::upstream) fn turn_away(&mut self, outcome: &Outcome) {
        self.refuse_waiting(outcome);
        self.end_commands(outcome);
    }

    /// No command will come any more.
    pub(in crate::upstream) fn end_commands(&mut self, outcome: &Outcome) {
        if let Some(commands) = self.commands.take() {
            commands.end(outcome);
        }
    }

    /// Whether something waits for a shared link and stands in no line for it.
    pub(in crate::upstream) fn is_in_no_line(&self) -> bool {
        self.outlets.iter().any(|outlet| !outlet.waiting.is_empty() && !outlet.in_line)
    }

    /// Releases what waits and is not wanted any more.
    pub(in crate::upstream) fn recall(&mut self) {
        for outlet in &mut self.outlets {
            outlet.waiting.retain(|waiting| waiting.verdict.is_wanted(false));
        }
    }

    /// Releases what waits and is `meant`; with one that is to stay in order, all that are.
    pub(in crate::upstream) fn release_waiting(&mut self, meant: impl Fn(&Patience) -> bool) {
        let all = |outlet: &Outlet| outlet.waiting.patiences().any(|it| it.in_order && meant(it));
        let in_order = self.outlets.iter().any(all);
        for outlet in &mut self.outlets {
            // Dropping the verdict of what was never sent releases it.
            outlet
                .waiting
                .retain(|Waiting { patience, .. }| !(meant(patience) || in_order && patience.in_order));
        }
    }
}

fn refuse_waiting(mut outlet: Outlet, attached: bool, outcome: &Outcome) {
    let outcome = match outcome {
        // A link that worked was detached for what was sent over it. What waits was not.
        Outcome::Rejected(Rejection { reason: Reason::Content | Reason::TooLarge, .. }) if attached => {
            &Outcome::Released
        }
        outcome => outcome,
    };
    outlet.refuse_waiting(outcome);
}

/// For what waits for a node whose name is too long.
pub(in crate::upstream) fn address_too_long() -> Outcome {
    let description = "the hub's frames are too small for a link to the address";
    Outcome::Rejected(Rejection::new(Reason::TooLarge, description))
}

fn attach_receiver(
    connection: &mut Connection,
    session: SessionId,
    address: &str,
    serial: u64,
) -> Result<LinkId, Misuse> {
    let source = SourceOut { address: Some(address), ..SourceOut::default() }.build();
    let target = TargetOut::default().build();
    // The former subscription's link may still be on its way out.
    let name = format!("{address}#{serial}");
    let attach = AttachOut {
        snd_settle_mode: SndSettleMode::Unsettled,
        rcv_settle_mode: RcvSettleMode::First,
        max_message_size: Some(MAX_COMMAND_BYTES as u64),
        ..AttachOut::receiver(&name, &source, &target)
    };
    connection.attach(session, &attach.build())
}
