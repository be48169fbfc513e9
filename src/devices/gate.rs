//! The one place that decides who is let in. Each protocol brings what the device said, and puts the answer into its
//! own words.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use fieldgate_mappings::DeviceId;
use fieldgate_mappings::outcome::{Reason, Rejection};
use tokio::sync::oneshot;

use crate::config::Secret;
use crate::output::unix_seconds;
use crate::sas::{Resource, SharedKey, Token, TokenError, percent_decode};
use crate::telemetry::{Protocol, emit};

use super::certificate::Certificate;
use super::device::{Device, Mark, Proof};
use super::limits::{LimitSettings, Limits};
use super::password::PasswordHash;
use super::passwords::{Answer, Passwords};
use super::telemetry::{DeviceAdmitted, DeviceCutOff, DeviceDenied};
use super::{Devices, Registry};

/// When somebody is to come again for whom there is no time now.
const BUSY_RETRY: Duration = Duration::from_secs(5);

/// What a device says about itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt<'a> {
    pub(crate) protocol: Protocol,
    pub(crate) peer: IpAddr,
    /// Who it says it is.
    pub(crate) device: &'a DeviceId,
    /// What it shows for that.
    pub(crate) shown: Shown<'a>,
    /// The listener takes the word of devices that are not registered.
    pub(crate) believes: bool,
}

/// What a device shows as a proof.
#[derive(Clone, Copy)]
pub(crate) enum Shown<'a> {
    /// Nothing.
    Nothing,
    /// A password, or a token in its place.
    Password(&'a [u8]),
    /// A certificate that TLS has found good.
    Certificate(&'a Certificate),
}

impl std::fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nothing => "Nothing",
            Self::Password(_) => "Password(…)",
            Self::Certificate(_) => "Certificate",
        })
    }
}

/// By what a device was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// It is not registered, and its word is believed.
    Word,
    /// It is registered as one that needs no proof.
    Unproven,
    /// It has signed a token.
    Token(Mark),
    /// It knows a password.
    Password(Mark),
    /// It holds a certificate's key.
    Certificate(Mark),
}

impl By {
    /// All words for them.
    pub(super) const NAMES: [&str; 5] = ["word", "unproven", "token", "password", "certificate"];

    /// The place of its word among those.
    pub(super) const fn index(self) -> usize {
        match self {
            Self::Word => 0,
            Self::Unproven => 1,
            Self::Token(_) => 2,
            Self::Password(_) => 3,
            Self::Certificate(_) => 4,
        }
    }

    /// The word in labels and logs.
    pub(crate) const fn name(self) -> &'static str {
        Self::NAMES[self.index()]
    }

    fn mark(self) -> Option<Mark> {
        match self {
            Self::Word | Self::Unproven => None,
            Self::Token(mark) | Self::Password(mark) | Self::Certificate(mark) => Some(mark),
        }
    }
}

/// A device that was let in, and what that stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pass {
    pub(crate) device: DeviceId,
    pub(crate) protocol: Protocol,
    pub(crate) by: By,
    /// When its token ends, in seconds since 1970.
    pub(crate) until: Option<u64>,
    token: Option<Secret>,
}

impl Pass {
    /// The token that it brought, where the gateway is to show that to the hub.
    pub(crate) fn token(&self) -> Option<&Secret> {
        self.token.as_ref()
    }
}

/// Why somebody is not let in: as the operator is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    /// It is not registered, and its word is not enough.
    #[error("it is not registered, and must be here")]
    Unknown,
    /// It showed nothing.
    #[error("it showed no proof of who it is")]
    Nothing,
    /// A proof of a kind that its entry does not have.
    #[error("its entry has no proof of the kind that it showed")]
    OtherKind,
    /// The proof is wrong.
    #[error("{0}")]
    Wrong(&'static str),
    /// The token is no token.
    #[error("{0}")]
    Token(#[from] TokenError),
    /// The entry says so.
    #[error("it is disabled in the registry")]
    Disabled,
    /// It needs no proof, but not at this listener.
    #[error("it is believed without a proof on loopback only, or where a listener allows anonymous access")]
    NotHere,
    /// There were too many failures.
    #[error("too many attempts have failed; the next may come in {} s", .0.as_secs() + 1)]
    Limited(Duration),
    /// Too many passwords wait.
    #[error("too many passwords wait to be verified")]
    Busy,
}

impl Denied {
    /// The word in labels.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Nothing => "nothing-shown",
            Self::OtherKind
            | Self::Wrong(_)
            | Self::Token(TokenError::Malformed(_) | TokenError::Signature) => "wrong",
            Self::Token(TokenError::Expired) => "expired",
            Self::Disabled => "disabled",
            Self::NotHere => "not-here",
            Self::Limited(_) => "limited",
            Self::Busy => "busy",
        }
    }

    /// What the device is told. Whether there is such a device, and what is wrong with its proof, it is told only
    /// where it has shown that it is the device.
    pub(crate) fn rejection(&self) -> Rejection {
        let quota = |wait: Duration| Reason::Quota { retry_after: Some(wait + Duration::from_secs(1)) };
        match self {
            Self::Nothing
            | Self::NotHere
            | Self::Unknown
            | Self::OtherKind
            | Self::Wrong(_)
            | Self::Token(TokenError::Signature) => Rejection::new(
                Reason::Credentials,
                "the credentials are missing or wrong, or the device is not known",
            ),
            Self::Token(error) => Rejection::new(Reason::Credentials, error.to_string()),
            Self::Disabled => Rejection::new(Reason::NotPermitted, "the device is disabled"),
            Self::Limited(wait) => {
                Rejection::new(quota(*wait), "too many attempts have failed: wait before the next")
            }
            Self::Busy => Rejection::new(quota(BUSY_RETRY), "too many devices come at once: come again soon"),
        }
    }

    /// Whether somebody may have guessed.
    fn counts(&self) -> bool {
        match self {
            Self::Unknown | Self::OtherKind | Self::Wrong(_) => true,
            Self::Token(TokenError::Signature | TokenError::Malformed(_)) => true,
            Self::Token(TokenError::Expired) | Self::Nothing | Self::Disabled | Self::NotHere => false,
            Self::Limited(_) | Self::Busy => false,
        }
    }
}

/// What the gate is told once.
#[derive(Clone, Debug)]
pub(crate) struct GateSettings {
    /// The hosts that a device's token may be for: its hub's names, the gateway's own.
    pub(crate) hosts: Vec<String>,
    pub(crate) limits: LimitSettings,
}

/// Who decides.
#[derive(Debug)]
pub(crate) struct Gate {
    registry: Arc<Registry>,
    hosts: Box<[String]>,
    limits: Arc<Limits>,
    passwords: Passwords,
    /// What a token is verified with where there is no key, so that it takes as long.
    decoy: SharedKey,
}

/// The answer, now or soon.
#[must_use]
pub(crate) enum Judged {
    Now(Result<Pass, Denied>),
    /// A password is being verified.
    Soon(Pending),
}

/// A password that is being verified. Dropped, it need not be any more.
#[derive(Debug)]
pub(crate) struct Pending {
    answer: oneshot::Receiver<Answer>,
    gate: Arc<Gate>,
    protocol: Protocol,
    peer: IpAddr,
    device: DeviceId,
}

impl Future for Pending {
    type Output = Result<Pass, Denied>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(cx).map(|answer| {
            // The thread that verifies never drops a question that somebody waits for.
            let right = answer.unwrap_or_default();
            let Self { gate, protocol, peer, device, .. } = &*self;
            gate.verified(*protocol, *peer, device, right)
        })
    }
}

impl Judged {
    /// Waits for the answer where it is not there.
    pub(crate) async fn answer(self) -> Result<Pass, Denied> {
        match self {
            Self::Now(answer) => answer,
            Self::Soon(pending) => pending.await,
        }
    }
}

impl Gate {
    /// A gate to the devices of this registry.
    pub(crate) fn new(registry: Arc<Registry>, settings: GateSettings) -> Arc<Self> {
        let hosts = settings.hosts.iter().map(|host| Resource::new(host, "").host().to_owned()).collect();
        let limits = Arc::new(Limits::new(settings.limits));
        Arc::new(Self {
            registry,
            hosts,
            passwords: Passwords::new(Arc::clone(&limits)),
            limits,
            decoy: SharedKey::from_bytes(b"no device has this key").expect("it is not empty"),
        })
    }

    /// The registry behind it.
    pub(crate) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Decides; `devices` is what the worker takes for the registry's present.
    pub(crate) fn judge(self: &Arc<Self>, devices: &Devices, attempt: Attempt<'_>) -> Judged {
        let now = Instant::now();
        let Attempt { protocol, peer, device, .. } = attempt;
        match self.consider(devices, attempt, now) {
            Verdict::Admit(pass) => {
                emit(DeviceAdmitted { protocol, peer, device: device.as_str(), by: pass.by });
                Judged::Now(Ok(pass))
            }
            Verdict::Deny(denied) => Judged::Now(Err(self.deny(attempt, denied, now))),
            Verdict::Verify(hashes, password) => match self.passwords.ask(peer, hashes, password) {
                Some(answer) => Judged::Soon(Pending {
                    answer,
                    gate: Arc::clone(self),
                    protocol,
                    peer,
                    device: device.clone(),
                }),
                None => Judged::Now(Err(self.deny(attempt, Denied::Busy, now))),
            },
        }
    }

    fn deny(&self, attempt: Attempt<'_>, denied: Denied, now: Instant) -> Denied {
        let Attempt { protocol, peer, device, shown, .. } = attempt;
        // Who shows nothing guesses nothing, whether there is such a device or not.
        if denied.counts() && !matches!(shown, Shown::Nothing) {
            let is_password = matches!(shown, Shown::Password(text) if token_text(text).is_none());
            // Also of a device that is not registered: who has to wait is not to learn that one is.
            let guessable = is_password.then_some(device);
            self.limits.failed(peer, guessable, now);
        }
        emit(DeviceDenied { protocol, peer, device: device.as_str(), denied: &denied });
        denied
    }

    fn consider(&self, devices: &Devices, attempt: Attempt<'_>, now: Instant) -> Verdict {
        let Attempt { protocol, peer, device, shown, believes } = attempt;
        let pass =
            |by, until, token| Verdict::Admit(Pass { device: device.clone(), protocol, by, until, token });
        let entry = devices.get(device.as_str());
        match entry {
            None if believes => return pass(By::Word, None, None),
            Some(entry) if entry.needs_no_proof() && (believes || is_loopback(peer)) => {
                return match enabled(entry) {
                    Ok(()) => pass(By::Unproven, None, None),
                    Err(denied) => Verdict::Deny(denied),
                };
            }
            _ => {}
        }
        if let Some(wait) = self.limits.address(peer, now) {
            return Verdict::Deny(Denied::Limited(wait));
        }
        match shown {
            Shown::Nothing => Verdict::Deny(match entry {
                Some(entry) if entry.needs_no_proof() => Denied::NotHere,
                Some(_) => Denied::Nothing,
                None => Denied::Unknown,
            }),
            Shown::Certificate(certificate) => match self.by_certificate(entry, certificate) {
                Ok(by) => pass(by, None, None),
                Err(denied) => Verdict::Deny(denied),
            },
            Shown::Password(text) => match token_text(text) {
                Some(text) => match self.by_token(device, entry, text) {
                    Ok((by, until)) => {
                        let shows = entry.is_some_and(|it| it.speaks_with == super::SpeaksWith::OwnToken);
                        pass(by, Some(until), shows.then(|| Secret::new(text)))
                    }
                    Err(denied) => Verdict::Deny(denied),
                },
                None => self.by_password(devices, device, entry, text, peer, now, pass),
            },
        }
    }

    fn by_certificate(&self, entry: Option<&Device>, certificate: &Certificate) -> Result<By, Denied> {
        let entry = entry.ok_or(Denied::Unknown)?;
        let mut shown = certificate.proofs();
        let proof = shown.find(|shown| entry.proofs.contains(shown)).ok_or(Denied::OtherKind)?;
        enabled(entry)?;
        Ok(By::Certificate(self.registry.mark(&proof)))
    }

    /// A token for this device, signed with one of its keys, good now, for a host that is meant here.
    fn by_token(&self, device: &DeviceId, entry: Option<&Device>, text: &str) -> Result<(By, u64), Denied> {
        let token = Token::parse(text)?;
        let proofs = entry.map(|entry| &*entry.proofs).unwrap_or_default();
        let mut keys = proofs.iter().filter_map(|proof| match proof {
            Proof::SasKey(key) => Some((proof, key)),
            _ => None,
        });
        let now = unix_seconds();
        let verify = |key: &SharedKey| token.verify(&[key], now);
        // Whose key signed says more than when.
        let signed = keys.find(|(_, key)| verify(key) != Err(TokenError::Signature));
        let Some((proof, key)) = signed else {
            let _ = verify(&self.decoy);
            return Err(if entry.is_some() { TokenError::Signature.into() } else { Denied::Unknown });
        };
        if !is_for(token.resource(), device) {
            return Err(Denied::Wrong("its token is not for this device"));
        }
        if token.key_name().is_some() {
            return Err(Denied::Wrong("its token names a policy, whose keys only the hub has"));
        }
        if !self.hosts.iter().any(|host| host == token.resource().host()) {
            return Err(Denied::Wrong("its token is for a host that is neither its hub nor this gateway"));
        }
        verify(key)?;
        entry.map_or(Err(Denied::Unknown), enabled)?;
        Ok((By::Token(self.registry.mark(proof)), token.expiry()))
    }

    #[expect(clippy::too_many_arguments, reason = "one attempt, taken apart")]
    fn by_password(
        &self,
        devices: &Devices,
        device: &DeviceId,
        entry: Option<&Device>,
        password: &[u8],
        peer: IpAddr,
        now: Instant,
        pass: impl Fn(By, Option<u64>, Option<Secret>) -> Verdict,
    ) -> Verdict {
        if let Some(wait) = self.limits.device(device, peer, now) {
            return Verdict::Deny(Denied::Limited(wait));
        }
        let proofs = entry.map(|entry| &*entry.proofs).unwrap_or_default();
        let mut slow = Vec::new();
        for proof in proofs {
            let Proof::Password(hash) = proof else { continue };
            if hash.is_slow() && !self.passwords.knows(hash, password) {
                slow.push(hash.clone());
            } else if hash.is_slow() || hash.verify(password) {
                self.limits.succeeded(device, peer);
                let disabled = entry.is_some_and(|entry| !entry.enabled);
                return if disabled {
                    Verdict::Deny(Denied::Disabled)
                } else {
                    pass(By::Password(self.registry.mark(proof)), None, None)
                };
            }
        }
        let has_password = proofs.iter().any(|proof| matches!(proof, Proof::Password(_)));
        match entry {
            // Where passwords take their time, nobody is to learn from the time that there is no such device.
            _ if devices.has_slow_password() => Verdict::Verify(slow, password.to_vec()),
            None => Verdict::Deny(Denied::Unknown),
            Some(_) if has_password => Verdict::Deny(Denied::Wrong("the password is wrong")),
            Some(_) => Verdict::Deny(Denied::OtherKind),
        }
    }

    /// A password was verified: `right` is the hash that it has.
    fn verified(
        &self,
        protocol: Protocol,
        peer: IpAddr,
        device: &DeviceId,
        right: Option<PasswordHash>,
    ) -> Result<Pass, Denied> {
        let devices = self.registry.snapshot();
        let entry = devices.get(device.as_str());
        // The registry may have changed meanwhile.
        let proof = right.map(Proof::Password);
        let proof = proof.filter(|proof| entry.is_some_and(|entry| entry.proofs.contains(proof)));
        // Others that were under way at the same time may have failed: all at once is no more than one after the other.
        let now = Instant::now();
        let wait = self.limits.address(peer, now).or_else(|| self.limits.device(device, peer, now));
        let judged = match (entry, &proof) {
            _ if let Some(wait) = wait => Err(Denied::Limited(wait)),
            (None, _) => Err(Denied::Unknown),
            (Some(_), None) => Err(Denied::Wrong("the password is wrong")),
            (Some(entry), Some(proof)) => {
                self.limits.succeeded(device, peer);
                enabled(entry).map(|()| By::Password(self.registry.mark(proof)))
            }
        };
        match judged {
            Ok(by) => {
                emit(DeviceAdmitted { protocol, peer, device: device.as_str(), by });
                Ok(Pass { device: device.clone(), protocol, by, until: None, token: None })
            }
            Err(denied) => {
                let attempt =
                    Attempt { protocol, peer, device, shown: Shown::Password(&[]), believes: false };
                Err(self.deny(attempt, denied, now))
            }
        }
    }

    /// Whether a device that was let in may stay; the operator is told if it may not.
    pub(crate) fn may_stay(&self, pass: &Pass) -> bool {
        let over = self.still(&self.registry.snapshot(), pass).err();
        if let Some(over) = over {
            emit(DeviceCutOff { protocol: pass.protocol, device: pass.device.as_str(), over });
        }
        over.is_none()
    }

    /// Whether a device that was let in may stay.
    pub(super) fn still(&self, devices: &Devices, pass: &Pass) -> Result<(), super::roster::Over> {
        use super::roster::Over;
        let entry = devices.get(pass.device.as_str());
        match (entry, pass.by.mark()) {
            (None, Some(_)) => Err(Over::Removed),
            // It was not there at the time, and its word was enough.
            (None, None) if pass.by == By::Word => Ok(()),
            (None, None) => Err(Over::Removed),
            (Some(entry), _) if !entry.enabled => Err(Over::Disabled),
            (Some(entry), None) if entry.needs_no_proof() => Ok(()),
            (Some(entry), mark) => {
                let holds = |proof: &Proof| Some(self.registry.mark(proof)) == mark;
                if entry.proofs.iter().any(holds) { Ok(()) } else { Err(Over::ProofChanged) }
            }
        }
    }
}

enum Verdict {
    Admit(Pass),
    Deny(Denied),
    /// None of these hashes is known to be the password's; without any it only takes its time.
    Verify(Vec<PasswordHash>, Vec<u8>),
}

fn enabled(entry: &Device) -> Result<(), Denied> {
    if entry.enabled { Ok(()) } else { Err(Denied::Disabled) }
}

/// A token that stands where a password would.
fn token_text(password: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(password).ok()?;
    text.starts_with("SharedAccessSignature ").then_some(text)
}

/// Whether a token's resource is this device as a whole. Some clients encode an id before they encode the resource;
/// the key has said whose it is.
fn is_for(resource: &Resource, device: &DeviceId) -> bool {
    let [word, id] = resource.path() else { return false };
    word == "devices" && (id == device.as_str() || percent_decode(id).as_deref() == Some(device.as_str()))
}

fn is_loopback(peer: IpAddr) -> bool {
    match peer {
        IpAddr::V4(v4) => v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.to_ipv4_mapped().is_some_and(|v4| v4.is_loopback()),
    }
}

#[cfg(test)]
mod tests;
