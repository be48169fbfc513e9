//! The token that stands for one device at the hub: made of its key or brought by it, put before its links are
//! attached, and put again before it expires.

use std::time::{Duration, Instant};

use fieldgate_amqp::performative::DeliveryState;
use fieldgate_mappings::amqp;
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection, Verdict};

use crate::config::Secret;
use crate::router::claims::Reply;
use crate::sas::{SharedKey, Signer};

use super::hubs::OwnToken;

/// How long a device whose token was refused is answered without asking the hub again.
const REFUSAL: Duration = Duration::from_secs(10);
/// How long a token waits that the hub could not judge.
const AGAIN: Duration = Duration::from_secs(5);

/// How much of the hub's words is passed on to a device, in bytes: they must fit into one datagram with the rest.
const MAX_WORDS: usize = 256;

/// What time it is, both ways.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    pub(super) now: Instant,
    /// Seconds since 1970.
    pub(super) unix: u64,
}

impl Clock {
    /// The moment of a time; one that is over is now.
    fn moment(&self, unix: u64) -> Instant {
        // Beyond a century it makes no difference.
        let left = unix.saturating_sub(self.unix).min(100 * 365 * 86_400);
        self.now + Duration::from_secs(left)
    }
}

/// What tokens come from.
#[derive(Debug)]
pub(super) enum Source {
    /// They are made here.
    Key(SharedKey),
    /// The device brings them; it may not have yet.
    Brought(Option<OwnToken>),
}

/// One device's.
#[derive(Debug)]
pub(super) struct Grant {
    source: Source,
    state: State,
    /// Of the token that was put last.
    serial: u32,
    /// When the hub has accepted one last.
    accepted_at: Option<Instant>,
    /// Who waits for the hub's judgement.
    asking: Vec<Verdict>,
}

/// `Wanted -> Put -> Held -> Renewing -> Held -> …`; `Later` and `Refused` go back to `Wanted`.
#[derive(Debug)]
enum State {
    Wanted,
    /// For the hub's judgement; it would expire then.
    Put {
        expires: Instant,
    },
    Held {
        expires: Instant,
        renew_at: Option<Instant>,
    },
    /// The former is good while the hub looks at the next.
    Renewing {
        expires: Instant,
        next: Instant,
    },
    Later {
        at: Instant,
    },
    Refused {
        until: Instant,
        rejection: Rejection,
    },
}

/// What came of a token, or of time.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing that changes anything.
    Nothing,
    /// The device's links may be attached.
    Granted,
    /// To be put, now or when it is needed.
    Wanted,
    /// The device may do nothing here, for this reason.
    Refused(Rejection),
}

impl Grant {
    /// Nothing was put yet.
    pub(super) fn new(source: Source) -> Self {
        Self { source, state: State::Wanted, serial: 0, accepted_at: None, asking: Vec::new() }
    }

    /// Whether links may be attached.
    pub(super) fn is_held(&self) -> bool {
        matches!(self.state, State::Held { .. } | State::Renewing { .. })
    }

    /// Whether a token is to be put before anything else.
    pub(super) fn is_wanted(&self) -> bool {
        matches!(self.state, State::Wanted)
    }

    /// Why the device may not do anything now.
    pub(super) fn refused(&self, now: Instant) -> Option<&Rejection> {
        match &self.state {
            State::Refused { until, rejection } if *until > now => Some(rejection),
            _ => None,
        }
    }

    /// Somebody wants to know what the hub says to the token that is there now. Told at once where that is known.
    pub(super) fn ask(&mut self, verdict: Verdict, now: Instant) {
        self.asking.push(verdict);
        self.tell(now);
    }

    /// Whether anybody waits for that.
    pub(super) fn is_asked(&self) -> bool {
        !self.asking.is_empty()
    }

    /// Tells those who wait, if it is known. That the hub could not judge tells them nothing.
    pub(super) fn tell(&mut self, now: Instant) {
        let outcome = match self.refused(now) {
            Some(rejection) => Outcome::Rejected(rejection.clone()),
            None if matches!(self.state, State::Held { .. }) => Outcome::Accepted,
            None => return,
        };
        for verdict in std::mem::take(&mut self.asking) {
            verdict.report(outcome.clone());
        }
    }

    /// When what is held expires.
    pub(super) fn expires(&self) -> Option<Instant> {
        match self.state {
            State::Held { expires, .. } | State::Renewing { expires, .. } => Some(expires),
            _ => None,
        }
    }

    /// Whether it lives of what the device brings.
    pub(super) fn is_brought(&self) -> bool {
        matches!(self.source, Source::Brought(_))
    }

    /// The key that tokens are made of.
    pub(super) fn key(&self) -> Option<&SharedKey> {
        match &self.source {
            Source::Key(key) => Some(key),
            Source::Brought(_) => None,
        }
    }

    /// Another source of tokens. True if one is to be put now: the former is good until the hub has judged it.
    pub(super) fn replace(&mut self, source: Source) -> bool {
        self.source = source;
        match self.state {
            State::Held { .. } | State::Renewing { .. } => true,
            // What was put of the former source stands for nothing.
            State::Put { .. } | State::Later { .. } | State::Refused { .. } | State::Wanted => {
                self.serial = self.serial.wrapping_add(1);
                self.state = State::Wanted;
                true
            }
        }
    }

    /// Whether these are its tokens already.
    pub(super) fn is_of(&self, source: &Source) -> bool {
        match (&self.source, source) {
            (Source::Key(known), Source::Key(key)) => known == key,
            (Source::Brought(_), Source::Brought(Some(token))) => self.brought(token),
            (Source::Brought(_), Source::Brought(None)) => true,
            _ => false,
        }
    }

    /// Whether the device brought just this token before.
    pub(super) fn brought(&self, token: &OwnToken) -> bool {
        match &self.source {
            Source::Brought(Some(known)) => known.text.expose() == token.text.expose(),
            _ => false,
        }
    }

    /// A token to put for `resource`, with its serial; or why there is none.
    pub(super) fn put(
        &mut self,
        resource: &str,
        life: Duration,
        clock: &Clock,
    ) -> Result<(Secret, u32), Rejection> {
        let (text, next) = match &self.source {
            Source::Key(key) => {
                let expiry = clock.unix + life.as_secs();
                let text = Signer::new(None, key.clone()).token(resource, expiry);
                (Secret::new(text), clock.now + life)
            }
            Source::Brought(Some(token)) if token.expiry > clock.unix => {
                (token.text.clone(), clock.moment(token.expiry))
            }
            Source::Brought(Some(_)) => return Err(self.refuse(EXPIRED, clock.now)),
            Source::Brought(None) => return Err(self.refuse(NONE, clock.now)),
        };
        self.serial = self.serial.wrapping_add(1);
        self.state = match self.state {
            State::Held { expires, .. } | State::Renewing { expires, .. } => {
                State::Renewing { expires, next }
            }
            _ => State::Put { expires: next },
        };
        Ok((text, self.serial))
    }

    fn refuse(&mut self, why: impl Into<std::borrow::Cow<'static, str>>, now: Instant) -> Rejection {
        let rejection = Rejection::new(Reason::Credentials, why);
        self.state = State::Refused { until: now + REFUSAL, rejection: rejection.clone() };
        rejection
    }

    /// The hub, or who speaks for it, has answered for a token. `random` is uniform over all of `u64`.
    pub(super) fn answered(&mut self, serial: u32, reply: &Reply, now: Instant, random: u64) -> Heard {
        if serial != self.serial {
            return Heard::Nothing;
        }
        let (next, held) = match self.state {
            State::Put { expires } => (expires, None),
            State::Renewing { expires, next } => (next, Some(expires)),
            _ => return Heard::Nothing,
        };
        if reply.is_success() {
            let renew_at = self.key().map(|_| ahead(next, now, random));
            self.state = State::Held { expires: next, renew_at };
            self.accepted_at = Some(now);
            return if held.is_none() { Heard::Granted } else { Heard::Nothing };
        }
        if let Some(why) = refusal(reply) {
            return Heard::Refused(self.refuse(why, now));
        }
        // It is asked again: what is held is good until it expires.
        self.state = match held {
            Some(expires) => State::Held { expires, renew_at: Some(now + AGAIN) },
            None => State::Later { at: now + AGAIN },
        };
        Heard::Nothing
    }

    /// The hub says that the device may not do what it was let do: it may have forgotten the token, and is shown it once
    /// more, unless it has just accepted it. True where it will be.
    pub(super) fn taken_back(&mut self, now: Instant) -> bool {
        let is_old = self.accepted_at.is_some_and(|at| at + REFUSAL <= now);
        let shown_again = self.is_held() && is_old;
        if shown_again {
            self.lose();
        }
        shown_again
    }

    /// The hub has taken back what was held, or nobody knows what it holds: a new connection.
    pub(super) fn lose(&mut self) {
        if !matches!(self.state, State::Refused { .. }) {
            self.state = State::Wanted;
            self.serial = self.serial.wrapping_add(1);
        }
    }

    /// Time has passed.
    pub(super) fn handle_timeout(&mut self, clock: &Clock) -> Heard {
        match self.state {
            State::Held { expires, .. } | State::Renewing { expires, .. } if expires <= clock.now => {
                if self.is_brought() {
                    return Heard::Refused(self.refuse(EXPIRED, clock.now));
                }
                self.lose();
                Heard::Wanted
            }
            State::Held { renew_at: Some(at), .. } if at <= clock.now => Heard::Wanted,
            State::Later { at } if at <= clock.now => {
                self.state = State::Wanted;
                Heard::Wanted
            }
            State::Refused { until, .. } if until <= clock.now => {
                self.state = State::Wanted;
                Heard::Nothing
            }
            _ => Heard::Nothing,
        }
    }
}

const EXPIRED: &str = "the device's token has expired";
const NONE: &str = "the device has brought no token";

/// When a token is made anew that expires then: with a fifth to two fifths of its life left, so that those that were
/// put together are not all put together again.
fn ahead(expires: Instant, now: Instant, random: u64) -> Instant {
    let life = expires.saturating_duration_since(now);
    let spread = life / 5;
    let millis = u64::try_from(spread.as_millis()).unwrap_or(u64::MAX).max(1);
    now + life * 3 / 5 + Duration::from_millis(random % millis)
}

/// Why the hub does not want this token, if that is what it says; else it could not judge it.
pub(super) fn refusal(reply: &Reply) -> Option<String> {
    match reply {
        // Too many, a time-out, and what the hub cannot do are no fault of the token.
        Reply::Status { status: 408 | 429 | 500.., .. } => None,
        Reply::Status { status, description } => {
            let words = &description[..description.floor_char_boundary(MAX_WORDS)];
            Some(format!("the hub refused the device's token: {status} {words}"))
        }
        Reply::Outcome(state) => match DeliveryState::decode(state).ok().as_ref().and_then(amqp::outcome) {
            Some(Outcome::Rejected(rejection)) if !matches!(rejection.reason, Reason::Quota { .. }) => {
                Some(format!("the hub refused the device's token: {}", rejection.description))
            }
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANDOM: u64 = 7;
    const LIFE: Duration = Duration::from_secs(1000);

    fn clock() -> Clock {
        Clock { now: Instant::now(), unix: 1_800_000_000 }
    }

    fn later(clock: &Clock, seconds: u64) -> Clock {
        let time = Duration::from_secs(seconds);
        Clock { now: clock.now + time, unix: clock.unix + seconds }
    }

    fn key() -> Grant {
        Grant::new(Source::Key(SharedKey::from_bytes(b"key").unwrap()))
    }

    fn brought(clock: &Clock, life: u64) -> OwnToken {
        OwnToken { text: Secret::new("text"), expiry: clock.unix + life, host: "hub".into() }
    }

    #[test]
    fn a_key_makes_tokens_and_renews_them_ahead_of_time_not_all_at_once() {
        let clock = clock();
        let mut renewals = Vec::new();
        for random in 0..1000_u64 {
            let random = random * 0x9e37_79b9_7f4a;
            let mut grant = key();
            let (text, serial) = grant.put("hub/devices/d", LIFE, &clock).unwrap();
            assert!(text.expose().contains("se=1800001000"));
            assert_eq!(
                grant.answered(serial + 1, &Reply::status(200, ""), clock.now, random),
                Heard::Nothing
            );
            assert_eq!(grant.answered(serial, &Reply::status(200, ""), clock.now, random), Heard::Granted);
            let State::Held { renew_at: Some(at), .. } = grant.state else { panic!("{grant:?}") };
            renewals.push(at - clock.now);
            assert_eq!(grant.handle_timeout(&later(&clock, 599)), Heard::Nothing);
            let at = later(&clock, 801);
            assert_eq!(grant.handle_timeout(&at), Heard::Wanted);
            let (_, serial) = grant.put("hub/devices/d", LIFE, &at).unwrap();
            assert!(grant.is_held(), "while the hub judges the next");
            assert_eq!(grant.answered(serial, &Reply::status(200, ""), at.now, random), Heard::Nothing);
            assert_eq!(grant.expires(), Some(at.now + LIFE));
        }
        renewals.sort();
        assert!(renewals[0] >= LIFE * 3 / 5 && renewals[999] <= LIFE * 4 / 5);
        assert!(renewals[500] - renewals[0] > LIFE / 20, "they are spread");
    }

    #[test]
    fn what_the_hub_refuses_is_not_put_again_at_once() {
        let clock = clock();
        let mut grant = key();
        let (_, serial) = grant.put("r", LIFE, &clock).unwrap();
        let heard = grant.answered(serial, &Reply::status(401, "bad signature"), clock.now, RANDOM);
        let Heard::Refused(rejection) = heard else { panic!("{heard:?}") };
        assert_eq!(rejection.reason, Reason::Credentials);
        assert!(rejection.description.contains("401 bad signature"));
        assert!(grant.refused(clock.now).is_some() && !grant.is_wanted());
        let clock = later(&clock, 10);
        grant.handle_timeout(&clock);
        assert!(grant.refused(clock.now).is_none() && grant.is_wanted());
    }

    #[test]
    fn what_the_hub_says_to_a_refused_token_is_cut() {
        let clock = clock();
        let mut grant = key();
        let (_, serial) = grant.put("r", LIFE, &clock).unwrap();
        let heard = grant.answered(serial, &Reply::status(401, "\u{e9}".repeat(30_000)), clock.now, RANDOM);
        let Heard::Refused(rejection) = heard else { panic!("{heard:?}") };
        assert!(rejection.description.len() < 2 * MAX_WORDS);
    }

    #[test]
    fn a_hub_that_could_not_judge_is_asked_again_and_the_old_token_is_good_until_its_end() {
        let clock = clock();
        for status in [408, 429, 500, 503, 504] {
            let mut grant = key();
            let (_, serial) = grant.put("r", LIFE, &clock).unwrap();
            assert_eq!(grant.answered(serial, &Reply::status(status, ""), clock.now, RANDOM), Heard::Nothing);
            assert!(!grant.is_held() && grant.refused(clock.now).is_none());
            assert_eq!(grant.handle_timeout(&later(&clock, 5)), Heard::Wanted);
            let (_, serial) = grant.put("r", LIFE, &clock).unwrap();
            grant.answered(serial, &Reply::status(200, ""), clock.now, RANDOM);
            let soon = later(&clock, 900);
            let (_, serial) = grant.put("r", LIFE, &soon).unwrap();
            assert_eq!(grant.answered(serial, &Reply::status(status, ""), soon.now, RANDOM), Heard::Nothing);
            assert!(grant.is_held());
            assert_eq!(grant.handle_timeout(&later(&clock, 1000)), Heard::Wanted);
            assert!(!grant.is_held());
        }
    }

    #[test]
    fn what_a_device_brings_expires_with_it_and_only_the_device_renews_it() {
        let clock = clock();
        let mut grant = Grant::new(Source::Brought(None));
        assert!(grant.put("r", LIFE, &clock).unwrap_err().description.contains("no token"));
        let token = brought(&clock, 60);
        assert!(grant.replace(Source::Brought(Some(token.clone()))) && grant.is_wanted());
        assert!(grant.brought(&token));
        let (text, serial) = grant.put("r", LIFE, &clock).unwrap();
        assert_eq!(text.expose(), "text");
        grant.answered(serial, &Reply::status(202, ""), clock.now, RANDOM);
        assert_eq!(grant.handle_timeout(&later(&clock, 59)), Heard::Nothing);
        let end = later(&clock, 60);
        let Heard::Refused(rejection) = grant.handle_timeout(&end) else { panic!("it is over") };
        assert!(rejection.description.contains("expired"));
        assert!(grant.replace(Source::Brought(Some(brought(&end, 60)))));
        assert!(grant.refused(end.now).is_none() && grant.put("r", LIFE, &end).is_ok());
    }

    #[test]
    fn an_answer_to_a_token_of_a_former_connection_or_source_is_none() {
        let clock = clock();
        let mut grant = key();
        let (_, serial) = grant.put("r", LIFE, &clock).unwrap();
        grant.lose();
        assert_eq!(grant.answered(serial, &Reply::status(401, ""), clock.now, RANDOM), Heard::Nothing);
        let (_, serial) = grant.put("r", LIFE, &clock).unwrap();
        grant.replace(Source::Key(SharedKey::from_bytes(b"rotated").unwrap()));
        assert_eq!(grant.answered(serial, &Reply::status(401, ""), clock.now, RANDOM), Heard::Nothing);
        assert!(grant.is_wanted());
    }
}
