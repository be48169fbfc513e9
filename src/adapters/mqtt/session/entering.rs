//! From CONNECT to CONNACK: who it is, whether it is let in, and the session that it goes on with.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use fieldgate_mappings::message::Message;
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection};
use fieldgate_mqtt::{
    Accept, Connect, ConnectRefusal, DisconnectReason, RetainHandling, SubscribeFilter, Text, Version,
};
use tokio::sync::oneshot;

use crate::adapters::{Held, Legacy};
use crate::devices::{Attempt, Denied, Judged, Pass};
use crate::telemetry::{Protocol, emit};

use super::super::connect::{self, Judging, Proving};
use super::super::host::Host;
use super::super::kept::Kept;
use super::super::telemetry::{ClientConnected, ClientRefused, ClientUnjudged, End};
use super::super::words;
use super::{Client, Session};

/// How long the connection before may take to hand its session on. It has nothing to wait for: it may only be on a
/// worker that is busy.
const HAND_OVER: Duration = Duration::from_secs(5);
/// How long a hub that is asked about a device's token may take, also to come back.
const JUDGEMENT: Duration = Duration::from_secs(10);

/// How long what the connection before has sent and has no outcome keeps back what this one sends. QoS 2 waits for that
/// outcome, and the order of first deliveries is the client's (MQTT 5 4.6).
const EARLIER: Duration = Duration::from_secs(5);

/// A client that may come in.
pub(super) struct Entry {
    connect: Box<Connect>,
    pass: Pass,
    held: Held,
    will: Option<Box<Message>>,
}

/// One that waits for its session.
pub(super) struct Joining {
    entry: Entry,
    coming: oneshot::Receiver<Legacy>,
    /// What has come.
    legacy: Option<Option<Box<Kept>>>,
    /// When it is not waited for any longer.
    pub(super) until: Instant,
}

impl<H: Host> Session<H> {
    pub(super) fn connect(&mut self, connect: Box<Connect>, now: Instant) {
        let roster = self.host.roster();
        let devices = roster.devices();
        let device = match connect::identify(&connect, |id| devices.get(id).is_some()) {
            Ok(device) => device,
            Err(rejection) => return self.refuse(&connect, &rejection),
        };
        let judged = roster.judge(Attempt {
            protocol: Protocol::Mqtt,
            peer: self.guest.peer.ip(),
            device: &device,
            shown: connect::shown(&connect, self.guest.certificate.as_deref()),
            believes: self.guest.believes,
        });
        match judged {
            Judged::Now(answer) => self.judged(connect, answer, now),
            Judged::Soon(pending) => {
                self.judging = Some(Box::new(Judging { connect, pending, answer: None }));
                // There is more to listen to.
                self.again = true;
            }
        }
    }

    fn refuse(&mut self, connect: &Connect, rejection: &Rejection) {
        self.refuse_with(words::connack(connect.version, rejection), connect, rejection);
    }

    fn refuse_with(&mut self, refusal: ConnectRefusal, connect: &Connect, rejection: &Rejection) {
        self.told = true;
        emit(ClientRefused { peer: self.guest.peer, client_id: &connect.client_id, rejection });
        let refused = self.machine.refuse(refusal);
        self.check(refused);
    }

    /// The hub has not said whether it takes the client's token.
    fn refuse_for_now(&mut self, connect: &Connect) {
        self.told = true;
        emit(ClientUnjudged { peer: self.guest.peer, client_id: &connect.client_id });
        let refused = self.machine.refuse(ConnectRefusal::ServerUnavailable);
        self.check(refused);
    }

    /// The gate has decided.
    pub(super) fn judged(&mut self, connect: Box<Connect>, answer: Result<Pass, Denied>, now: Instant) {
        let pass = match answer {
            Ok(pass) => pass,
            Err(denied) => return self.refuse(&connect, &denied.rejection()),
        };
        let Some(token) = pass.token() else { return self.proved(connect, pass, now) };
        // The gateway has found it good; what it is good for the hub knows.
        let (verdict, word) = connect::word();
        self.host.prove(&pass.device, token, verdict);
        let until = now + JUDGEMENT;
        self.proving = Some(Box::new(Proving { connect, pass, word, answer: None, until }));
        self.again = true;
    }

    /// Nobody has anything against the client.
    fn proved(&mut self, connect: Box<Connect>, pass: Pass, now: Instant) {
        let version = connect.version;
        let will = connect.will.as_deref().map(|will| connect::will(self.host.rules(), &pass.device, will));
        let will = match will.transpose() {
            Ok(will) => will,
            Err(rejection) => {
                return self.refuse_with(words::connack_for_will(version, &rejection), &connect, &rejection);
            }
        };
        let (held, legacy) = self.host.directory().hold(pass.device.as_str(), now);
        let clean_start = connect.clean_start;
        let entry = Entry { connect, pass, held, will };
        match legacy {
            // Whatever there was ends with this (MQTT 5 3.1.2-4).
            _ if clean_start => self.enter(entry, None, now),
            Legacy::Nothing => self.enter(entry, None, now),
            Legacy::Kept(kept) => self.enter(entry, Some(kept), now),
            Legacy::Coming(coming) => {
                let joining = Joining { entry, coming, legacy: None, until: now + HAND_OVER };
                self.joining = Some(Box::new(joining));
                self.again = true;
            }
        }
    }

    /// Listens to what is to come before CONNACK.
    pub(super) fn listen_at_the_door(&mut self, cx: &mut Context<'_>) {
        if let Some(judging) = &mut self.judging
            && let Poll::Ready(answer) = Pin::new(&mut judging.pending).poll(cx)
        {
            judging.answer = Some(answer);
        }
        if let Some(proving) = &mut self.proving
            && let Poll::Ready(answer) = Pin::new(&mut proving.word).poll(cx)
        {
            proving.answer = Some(answer.unwrap_or(Outcome::Unknown));
        }
        let Some(joining) = &mut self.joining else { return };
        while joining.legacy.is_none()
            && let Poll::Ready(legacy) = Pin::new(&mut joining.coming).poll(cx)
        {
            match legacy {
                Ok(Legacy::Kept(kept)) => joining.legacy = Some(Some(kept)),
                // An error: it has gone without a word, and there was no session.
                Ok(Legacy::Nothing) | Err(_) => joining.legacy = Some(None),
                Ok(Legacy::Coming(coming)) => joining.coming = coming,
            }
        }
        if joining.entry.held.poll_taken_over(cx).is_ready() {
            self.close(DisconnectReason::SessionTakenOver, End::TakenOver);
        }
    }

    /// When something that is waited for before CONNACK is not any longer.
    pub(super) fn door_closes_at(&self) -> Option<Instant> {
        let proving = self.proving.as_ref().map(|proving| proving.until);
        proving.or(self.joining.as_ref().map(|joining| joining.until))
    }

    /// Acts on what has come before CONNACK.
    pub(super) fn open_the_door(&mut self, now: Instant) {
        if let Some(judging) = self.judging.take_if(|judging| judging.answer.is_some()) {
            let Judging { connect, answer, .. } = *judging;
            if let Some(answer) = answer {
                self.judged(connect, answer, now);
            }
        }
        let is_judged = |proving: &mut Box<Proving>| proving.answer.is_some() || proving.until <= now;
        if let Some(proving) = self.proving.take_if(is_judged) {
            let Proving { connect, pass, answer, .. } = *proving;
            match answer {
                Some(Outcome::Accepted) => self.proved(connect, pass, now),
                Some(Outcome::Rejected(rejection)) => {
                    // The device is who it says it is; it may do nothing.
                    let rejection = Rejection::new(Reason::NotPermitted, rejection.description);
                    self.refuse(&connect, &rejection);
                }
                None | Some(Outcome::Released | Outcome::Unknown) => self.refuse_for_now(&connect),
            }
        }
        if self.machine.is_closed() {
            return;
        }
        let joins = |joining: &mut Box<Joining>| joining.legacy.is_some() || joining.until <= now;
        if let Some(joining) = self.joining.take_if(joins) {
            let Joining { entry, legacy, .. } = *joining;
            self.enter(entry, legacy.flatten(), now);
        }
    }

    /// Who waits for its session and has to go itself, or is gone: the next one gets what comes.
    pub(super) fn pass_on(&mut self, now: Instant) {
        let Some(joining) = self.joining.take() else { return };
        let Joining { entry: Entry { connect, held, .. }, coming, legacy, .. } = *joining;
        let legacy = match legacy {
            None => Legacy::Coming(coming),
            Some(None) => Legacy::Nothing,
            Some(Some(kept)) => Legacy::Kept(kept),
        };
        let config = &self.host.config().mqtt;
        let expiry = Duration::from_secs(expiry_seconds(&connect).into()).min(config.session_expiry_max);
        held.leave(legacy, now + expiry, config.max_sessions.get(), now);
    }

    /// CONNACK, and all that the session brings.
    fn enter(&mut self, entry: Entry, kept: Option<Box<Kept>>, now: Instant) {
        let Entry { connect, pass, held, will } = entry;
        let (version, device) = (connect.version, pass.device.clone());
        let session_present = kept.is_some();
        let Kept { packets, filters, commands, late, will: former } =
            kept.map(|kept| *kept).unwrap_or_default();
        // The session goes on, so its last will does not go off. An error: it just has.
        if let Some(former) = former {
            let _ = former.send(());
        }
        let resumed = self.machine.resume(packets);
        self.check(resumed);

        let longest = self.host.config().mqtt.session_expiry_max;
        let asked = expiry_seconds(&connect);
        let expiry = Duration::from_secs(asked.into()).min(longest);
        let granted = u32::try_from(expiry.as_secs()).unwrap_or(u32::MAX);
        let accepted = self.machine.accept(
            now,
            Accept {
                session_present,
                assigned_client_id: connect.client_id.is_empty().then(|| device.as_str()),
                session_expiry_seconds: (granted != asked).then_some(granted),
                ..Accept::default()
            },
        );
        self.check(accepted);
        if !self.machine.is_closed() {
            emit(ClientConnected { peer: self.guest.peer, device: &device, level: connect.level });
        }
        let stay = self.host.roster().enter(pass);
        let will_delay = connect.will.as_ref().map_or(Duration::ZERO, |will| will.delay);
        self.client = Some(Client { device, version, held, stay, will, will_delay, expiry, late });
        for kept in filters {
            let again = SubscribeFilter {
                filter: Text::from(&*kept.filter),
                qos: kept.qos,
                no_local: false,
                retain_as_published: false,
                retain_handling: RetainHandling::Never,
            };
            // The rules may have changed; what they do not give any more is told by FilterJudged.
            let _ = self.grant(&again, kept.identifier);
        }
        if let Some(subscribed) = &mut self.commands {
            subscribed.resume(commands);
        }
        self.earlier_until = self.machine.awaits_earlier().then(|| now + EARLIER);
        // There is more to listen to.
        self.again = true;
    }
}

/// How long a client wants its session to be kept.
fn expiry_seconds(connect: &Connect) -> u32 {
    match connect.version {
        // MQTT 3.1.1 3.1.2.4 knows no end of a session.
        Version::V311 if connect.clean_start => 0,
        Version::V311 => u32::MAX,
        Version::V5 => connect.session_expiry_seconds,
    }
}
