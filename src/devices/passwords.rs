//! Passwords that take their time: a thread that verifies them, and the memory of those that were right.
//!
//! No worker waits for a hash: the questions stand in a queue with a bound, also for each address, and whoever asks
//! goes on with its other devices. What was right once is known again by a keyed hash that takes a microsecond, so that
//! a thousand devices that come back at once cost a millisecond and not a minute. The key lives in this process only.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Instant;

use ring::hmac;
use ring::rand::SystemRandom;
use tokio::sync::oneshot;

use super::limits::{Halves, Limits, network};
use super::password::{MAX_PASSWORD_BYTES, PasswordHash};
use super::telemetry;

/// Questions that wait, over all devices: a kilobyte and 15 ms each, so the last one has its answer before the ten
/// seconds are over that a device has for connecting.
const MAX_WAITING: usize = 512;
/// Questions of one address among them.
const MAX_WAITING_OF_ADDRESS: usize = 128;

/// The hash that the password has, if it is one of those that were asked about.
pub(super) type Answer = Option<PasswordHash>;

pub(super) struct Passwords {
    /// The thread's queue, from the first question on; absent where the system gave no thread.
    queue: OnceLock<Option<SyncSender<Question>>>,
    shared: Arc<Shared>,
}

struct Shared {
    key: hmac::Key,
    limits: Arc<Limits>,
    right: Mutex<Halves<[u8; 16], ()>>,
    waiting: Mutex<HashMap<IpAddr, usize>>,
}

struct Question {
    peer: IpAddr,
    hashes: Vec<PasswordHash>,
    password: Vec<u8>,
    answer: oneshot::Sender<Answer>,
}

impl Passwords {
    /// Wrong passwords that nobody hears of any more are counted here.
    pub(super) fn new(limits: Arc<Limits>) -> Self {
        // Without randomness the key would be known; then nothing is remembered under it that could be looked for.
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .unwrap_or_else(|_| hmac::Key::new(hmac::HMAC_SHA256, &std::process::id().to_be_bytes()));
        let shared = Shared { key, limits, right: Mutex::new(Halves::new()), waiting: Mutex::default() };
        Self { queue: OnceLock::new(), shared: Arc::new(shared) }
    }

    /// Whether this password was found to have this hash before.
    pub(super) fn knows(&self, hash: &PasswordHash, password: &[u8]) -> bool {
        let tag = self.shared.tag(hash, password);
        lock(&self.shared.right).get(&tag).is_some()
    }

    /// Has a password verified against several hashes; nothing where too many wait.
    pub(super) fn ask(
        &self,
        peer: IpAddr,
        hashes: Vec<PasswordHash>,
        mut password: Vec<u8>,
    ) -> Option<oneshot::Receiver<Answer>> {
        password.truncate(MAX_PASSWORD_BYTES + 1);
        let peer = network(peer);
        let queue = self.queue.get_or_init(|| Shared::start(&self.shared)).as_ref()?;
        {
            let mut waiting = lock(&self.shared.waiting);
            let of = waiting.entry(peer).or_default();
            if *of >= MAX_WAITING_OF_ADDRESS {
                return None;
            }
            *of += 1;
        }
        let (answer, answered) = oneshot::channel();
        match queue.try_send(Question { peer, hashes, password, answer }) {
            Ok(()) => Some(answered),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.shared.served(peer);
                None
            }
        }
    }
}

impl std::fmt::Debug for Passwords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passwords")
    }
}

impl Shared {
    /// The thread ends when nobody can ask any more.
    fn start(this: &Arc<Self>) -> Option<SyncSender<Question>> {
        let (queue, questions) = sync_channel(MAX_WAITING);
        let this = Arc::clone(this);
        let started = thread::Builder::new().name("passwords".into()).spawn(move || this.serve(&questions));
        started.ok().map(|_| queue)
    }

    fn serve(&self, questions: &Receiver<Question>) {
        let decoy = PasswordHash::of_chosen(b"").ok();
        while let Ok(Question { peer, hashes, password, answer }) = questions.recv() {
            let is_awaited = !answer.is_closed();
            self.served(peer);
            if !is_awaited {
                continue;
            }
            // Nothing to compare with takes as long as something.
            let compared = if hashes.is_empty() { decoy.as_slice() } else { &hashes };
            let right = compared.iter().find(|hash| {
                telemetry::password_hashed();
                hash.verify(&password)
            });
            let right = right.filter(|_| !hashes.is_empty()).cloned();
            if let Some(hash) = &right {
                lock(&self.right).put(self.tag(hash, &password), ());
            }
            // Who does not wait any more need not know; but it has cost the time, and whoever hears of it counts it.
            if let Err(None) = answer.send(right) {
                self.limits.failed(peer, None, Instant::now());
            }
        }
    }

    fn served(&self, peer: IpAddr) {
        let mut waiting = lock(&self.waiting);
        if let Some(of) = waiting.get_mut(&peer) {
            *of -= 1;
            if *of == 0 {
                waiting.remove(&peer);
            }
        }
    }

    /// What a password and its hash are remembered by: another hash, as after a change, is another tag.
    fn tag(&self, hash: &PasswordHash, password: &[u8]) -> [u8; 16] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&(hash.as_str().len() as u64).to_be_bytes());
        context.update(hash.as_str().as_bytes());
        context.update(password);
        let tag = context.sign();
        *tag.as_ref().first_chunk().expect("the tag of HMAC-SHA256 has 32 bytes")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change is one insertion or removal: a panic elsewhere leaves the table whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::devices::LimitSettings;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn passwords() -> Passwords {
        Passwords::new(limits())
    }

    fn limits() -> Arc<Limits> {
        let settings = LimitSettings { per_device: 1, per_address: 1, longest: Duration::from_secs(60) };
        Arc::new(Limits::new(settings))
    }

    fn cheap(password: &[u8]) -> PasswordHash {
        use base64::Engine as _;
        let mut hash = [0; 32];
        let params = argon2::Params::new(8, 1, 1, None).unwrap();
        argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
            .hash_password_into(password, b"somesaltsomesalt", &mut hash)
            .unwrap();
        let hash = base64::engine::general_purpose::STANDARD_NO_PAD.encode(hash);
        PasswordHash::parse(&format!("$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHRzb21lc2FsdA${hash}")).unwrap()
    }

    #[test]
    fn what_was_right_once_is_known_again() {
        let passwords = passwords();
        let (hash, other) = (cheap(b"secret"), cheap(b"other"));
        assert!(!passwords.knows(&hash, b"secret"));
        let ask = |password: &[u8]| {
            passwords.ask(PEER, vec![other.clone(), hash.clone()], password.to_vec()).unwrap().blocking_recv()
        };
        assert_eq!(ask(b"secret"), Ok(Some(hash.clone())));
        assert_eq!(ask(b"wrong"), Ok(None));
        assert!(passwords.knows(&hash, b"secret"));
        assert!(
            !passwords.knows(&hash, b"wrong")
                && !passwords.knows(&hash, b"")
                && !passwords.knows(&other, b"secret")
        );
        assert!(lock(&passwords.shared.waiting).is_empty());
    }

    #[test]
    fn what_waits_is_bounded_for_each_address_and_what_nobody_waits_for_is_not_hashed() {
        let passwords = passwords();
        // The thread is busy with one that takes long, or has taken it already; the rest stands in the queue.
        let slow = PasswordHash::of_chosen(b"x").unwrap();
        let mut waiting = Vec::new();
        let refused = loop {
            match passwords.ask(PEER, vec![slow.clone(); 8], b"y".to_vec()) {
                Some(answer) => waiting.push(answer),
                None => break waiting.len(),
            }
        };
        assert!((MAX_WAITING_OF_ADDRESS..=MAX_WAITING_OF_ADDRESS + 8).contains(&refused), "{refused}");
        let other = passwords.ask([10, 0, 0, 1].into(), vec![cheap(b"z")], b"z".to_vec()).unwrap();
        drop(waiting);
        assert!(other.blocking_recv().unwrap().is_some());
    }

    #[test]
    fn a_network_of_ipv6_has_one_share() {
        let passwords = passwords();
        let slow = PasswordHash::of_chosen(b"x").unwrap();
        let mut waiting = Vec::new();
        for host in 0..MAX_WAITING {
            let peer = std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, host as u16);
            waiting.extend(passwords.ask(peer.into(), vec![slow.clone(); 8], b"y".to_vec()));
        }
        // The thread takes one now and then meanwhile.
        assert!(waiting.len() < 2 * MAX_WAITING_OF_ADDRESS, "{}", waiting.len());
    }

    #[test]
    fn a_guess_whose_asker_has_gone_counts() {
        let limits = limits();
        let passwords = Passwords::new(Arc::clone(&limits));
        let hashed = |password: &[u8]| {
            let slow = PasswordHash::of_chosen(b"x").unwrap();
            let gone = passwords.ask(PEER, vec![slow; 8], password.to_vec()).unwrap();
            // Its place in the queue is given back when it is being hashed.
            while lock(&passwords.shared.waiting).contains_key(&PEER) {
                thread::yield_now();
            }
            drop(gone);
            // The next answer comes after it.
            let other = "10.0.0.9".parse().unwrap();
            let _ = passwords.ask(other, vec![cheap(b"z")], b"z".to_vec()).unwrap().blocking_recv();
            limits.address(PEER, Instant::now()).is_some()
        };
        assert!(!hashed(b"x"), "it was right");
        assert!(hashed(b"y"));
    }
}
