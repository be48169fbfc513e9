//! The hub: notes every message in the ledger and accepts it a moment later, and asks for tokens where it is told to.
//! It runs on a thread of its own, behind the line that can be cut.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use fieldgate::sas::{SharedKey, Token};
use fieldgate::state::StateDir;
use fieldgate::tls;
use fieldgate_amqp::codec::{Limits, Value};
use fieldgate_amqp::connection::{Connection, Event, LinkId};
use fieldgate_amqp::endpoint::{
    CBS_NODE, CbsRequest, Delivery, OutgoingMessage, Receiver, Sender, put_cbs_response,
};
use fieldgate_amqp::error::{AmqpError, Condition};
use fieldgate_amqp::message::{Body, Sections};
use fieldgate_amqp::performative::{Attach, Role, Transfer};
use fieldgate_amqp::sasl::SaslCode;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::LocalSet;
use tokio_rustls::TlsAcceptor;

use super::Result;
use super::cutter::{Cutter, Line};
use super::hub::{admit, serve};
use super::laws::Law;
use super::ledger::{Marks, Shared};
use super::party::Party;
use super::payload::Key;
use super::sabotage::Sabotage;

/// What each link may have under way.
const CREDIT: u32 = 100;

/// How long the hub may take to read what a gateway that is gone has sent.
const HUNG_UP: Duration = Duration::from_secs(60);

/// How often links are held against the tokens.
const TOKEN_LOOK: Duration = Duration::from_millis(500);

/// What the hub is told to be like.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    /// How long it thinks about a delivery: so much of the load is without an outcome at any time.
    pub(crate) thought: Duration,
    /// How much later than the last one of the same connection each delivery has its outcome, at the least.
    pub(crate) pace: Duration,
    /// What tokens are signed with; without that nobody is asked for any.
    pub(crate) keys: Option<Keys>,
    pub(crate) sabotage: Option<Sabotage>,
}

/// What tokens are signed with.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    /// Of tokens that name a policy.
    pub(crate) policy: SharedKey,
    /// Of those that name none: each device signs for itself with a key made of this one.
    pub(crate) devices: SharedKey,
}

impl Keys {
    /// A device's own key.
    pub(crate) fn of(&self, device: &str) -> SharedKey {
        self.devices.derive(device)
    }
}

/// What all connections of the hub share.
#[derive(Debug)]
struct Common {
    manner: Manner,
    ledger: Shared,
    tokens: AtomicU64,
    /// Those of them that were a device's own.
    device_tokens: AtomicU64,
    sabotage: Mutex<super::sabotage::State>,
    /// How many connections there are.
    open: watch::Sender<usize>,
}

/// The hub, and the line that leads to it.
#[derive(Debug)]
pub(crate) struct Sink {
    /// Where the gateway finds it.
    pub(crate) port: u16,
    pub(crate) ca_file: PathBuf,
    /// `None` while it can be reached.
    line: Option<watch::Sender<Line>>,
    common: Arc<Common>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Sink {
    /// Starts the hub, with its certificates in this directory.
    pub(crate) fn start(directory: &Path, ledger: Shared, manner: Manner) -> Result<Self> {
        let state = StateDir::locate(Some(directory))?;
        let identity = state.lock()?.hub_identity("localhost")?;
        let tls = TlsAcceptor::from(tls::server(identity)?);
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let (line, orders) = watch::channel(None);
        let hub: SocketAddr = listener.local_addr()?;
        let cutter = Cutter::new(hub, orders)?;
        let port = cutter.port;
        let common = Arc::new(Common {
            manner,
            ledger,
            tokens: AtomicU64::default(),
            device_tokens: AtomicU64::default(),
            sabotage: Mutex::default(),
            open: watch::Sender::default(),
        });
        let serving = Arc::clone(&common);
        let thread = std::thread::Builder::new().name("hub".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            LocalSet::new().block_on(&runtime, async {
                let listener = TcpListener::from_std(listener)?;
                tokio::task::spawn_local(serve(listener, tls, move || Hub::new(Arc::clone(&serving))));
                cutter.run().await
            })
        })?;
        Ok(Self { port, ca_file: state.ca_file(), line: Some(line), common, thread: Some(thread) })
    }

    /// Cuts the line, or makes it whole.
    pub(crate) fn line(&self, how: Line) {
        let line = self.line.as_ref().expect("it is taken when the hub is dropped");
        line.send_replace(how);
    }

    /// Waits until the hub has read all that a gateway sent that is gone, and has seen its connections end. Otherwise it
    /// could read of the next life first, which no gateway could help. The line is whole meanwhile, for nobody.
    pub(crate) async fn hung_up(&self) -> Result<()> {
        let line = self.line.as_ref().expect("it is taken when the hub is dropped");
        let before = line.send_replace(None);
        let mut open = self.common.open.subscribe();
        let ended = tokio::time::timeout(HUNG_UP, open.wait_for(|open| *open == 0)).await;
        line.send_replace(before);
        match ended {
            Ok(_) => Ok(()),
            Err(_) => Err(format!(
                "the hub has connections of a gateway that is gone, {} s after its end",
                HUNG_UP.as_secs()
            )
            .into()),
        }
    }

    /// How many of the tokens that were put were a device's own.
    pub(crate) fn device_tokens(&self) -> u64 {
        self.common.device_tokens.load(Ordering::Relaxed)
    }

    /// How many tokens were put.
    pub(crate) fn tokens(&self) -> u64 {
        self.common.tokens.load(Ordering::Relaxed)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // A line that stays cut would never see that nobody gives orders any more.
        if let Some(line) = self.line.take() {
            line.send_replace(None);
        }
        // A panic of that thread has been printed, and what it should have noted is missing.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A delivery that the hub has and thinks about.
#[derive(Debug)]
struct Thought {
    until: Instant,
    link: LinkId,
    delivery_id: u32,
    /// What is noted as accepted; nothing where the ledger knows nothing of it.
    key: Option<Key>,
}

/// A link on which messages come, or on which answers of `$cbs` go.
#[derive(Debug)]
struct In {
    receiver: Receiver,
    address: String,
}

/// A token that was put: what it is for, and until when, in seconds since 1970.
#[derive(Debug)]
struct Grant {
    path: Vec<String>,
    expiry: u64,
}

/// One connection of the hub.
#[derive(Debug)]
struct Hub {
    common: Arc<Common>,
    links: HashMap<LinkId, In>,
    answers: Option<Sender>,
    waiting: VecDeque<Bytes>,
    grants: Vec<Grant>,
    next_look: Instant,
    thoughts: VecDeque<Thought>,
    /// When the last one is to have its outcome.
    busy_until: Instant,
}

impl Hub {
    fn new(common: Arc<Common>) -> Self {
        common.open.send_modify(|open| *open += 1);
        Self {
            common,
            links: HashMap::new(),
            answers: None,
            waiting: VecDeque::new(),
            grants: Vec::new(),
            next_look: Instant::now(),
            thoughts: VecDeque::new(),
            busy_until: Instant::now(),
        }
    }

    fn attach(&mut self, machine: &mut Connection, link: LinkId, attach: &Attach) {
        let (source, target) = (attach.source(), attach.target());
        let terminus = if attach.role() == Role::Sender { target } else { source };
        let address = terminus.and_then(|it| it.address().map(str::to_owned)).unwrap_or_default();
        let is_cbs = address == CBS_NODE;
        match admit(machine, link, attach, CREDIT) {
            Some(receiver) => drop(self.links.insert(link, In { receiver, address })),
            None if is_cbs => self.answers = Some(Sender::new(link)),
            None => {}
        }
    }

    fn transfer(
        &mut self,
        machine: &mut Connection,
        link: LinkId,
        id: u32,
        transfer: &Transfer,
        now: Instant,
    ) {
        let Some(inward) = self.links.get_mut(&link) else { return };
        // A delivery above the bound is none of ours: the detach that follows shows it.
        let Ok(Some(Delivery { delivery_id, payload, .. })) =
            inward.receiver.on_transfer(machine, transfer, id)
        else {
            return;
        };
        if inward.address == CBS_NODE {
            inward.receiver.accept(machine, delivery_id, delivery_id);
            return self.put_token(machine, &payload);
        }
        let address = inward.address.clone();
        if !self.may(&address) {
            let case = || format!("a message to {address} came without a token that is good");
            self.common.ledger.lock().broken.add(Law::Scenario, case);
            let error = AmqpError::new(&Condition::UnauthorizedAccess, Some("the token expired"));
            return machine.detach(link, true, Some(error));
        }
        let key = self.note(&address, &payload);
        let Manner { thought, pace, .. } = self.common.manner;
        self.busy_until = (now + thought).max(self.busy_until + pace);
        self.thoughts.push_back(Thought { until: self.busy_until, link, delivery_id, key });
    }

    /// Notes a message, unless that is what the sabotage is about.
    fn note(&self, address: &str, message: &Bytes) -> Option<Key> {
        let (body, mut marks) = read(message);
        let Some(sabotage) = self.common.manner.sabotage else {
            return self.common.ledger.lock().arrived(address, &body, marks);
        };
        let mut state = self.common.sabotage.lock().expect("nobody panics who holds it");
        let mut ledger = self.common.ledger.lock();
        let mut noted = None;
        for (address, body) in state.instead(sabotage, address, body, &mut marks) {
            let key = ledger.arrived(&address, &body, marks.clone());
            if let Some(key) = key {
                ledger.accepted(key);
            }
            noted = key;
        }
        noted
    }

    fn put_token(&mut self, machine: &mut Connection, request: &Bytes) {
        let Ok(request) = CbsRequest::parse(request) else { return };
        let judged =
            request.put_token().map_err(|error| error.to_string()).and_then(|put| self.judge(put.token));
        let (status, description) = match judged {
            Ok(()) => (200, "OK".to_owned()),
            Err(why) => (401, why),
        };
        if status != 200 {
            self.common
                .ledger
                .lock()
                .broken
                .add(Law::Scenario, || format!("a token was refused: {description}"));
        }
        let mut answer = BytesMut::new();
        put_cbs_response(&mut answer, request.id(), status, &description);
        self.waiting.push_back(answer.freeze());
        self.answer(machine);
    }

    fn judge(&mut self, text: &str) -> std::result::Result<(), String> {
        let token = Token::parse(text).map_err(|error| error.to_string())?;
        let Some(keys) = &self.common.manner.keys else { return Ok(()) };
        let now = unix_seconds();
        let key = match (token.key_name(), token.resource().path()) {
            (None, [word, device]) if word == "devices" => {
                self.common.device_tokens.fetch_add(1, Ordering::Relaxed);
                keys.of(device)
            }
            (None, path) => return Err(format!("a device's token for {path:?}")),
            (Some(_), _) => keys.policy.clone(),
        };
        token.verify(&[&key], now).map_err(|error| error.to_string())?;
        self.common.tokens.fetch_add(1, Ordering::Relaxed);
        let grant = Grant { path: token.resource().path().to_vec(), expiry: token.expiry() };
        self.grants.retain(|old| old.expiry > now && old.path != grant.path);
        self.grants.push(grant);
        Ok(())
    }

    /// Whether a token that was put is good for a link at this address now.
    fn may(&self, address: &str) -> bool {
        let path: Vec<&str> = address.trim_start_matches('/').split('/').collect();
        let now = unix_seconds();
        let covers = |grant: &Grant| {
            grant.expiry > now
                && grant.path.len() <= path.len()
                && grant.path.iter().zip(&path).all(|(one, other)| one == other)
        };
        self.common.manner.keys.is_none() || self.grants.iter().any(covers)
    }

    fn answer(&mut self, machine: &mut Connection) {
        let Some(sender) = &mut self.answers else { return };
        while let Some(message) = self.waiting.front() {
            let out = OutgoingMessage { message, ..OutgoingMessage::default() };
            // Without credit it goes when there is some.
            if sender.send_settled(machine, out).is_err() {
                return;
            }
            self.waiting.pop_front();
        }
    }

    /// Links whose token is over are taken away, as the hub would; a gateway that renews in time never sees it.
    fn look(&mut self, machine: &mut Connection) {
        let over: Vec<LinkId> = (self.links.iter())
            .filter(|(_, inward)| inward.address != CBS_NODE && !self.may(&inward.address))
            .map(|(link, _)| *link)
            .collect();
        for link in over {
            if let Some(inward) = self.links.remove(&link) {
                let case = || format!("the token of {} ran out while its link was there", inward.address);
                self.common.ledger.lock().broken.add(Law::Scenario, case);
                let error = AmqpError::new(&Condition::UnauthorizedAccess, Some("the token expired"));
                machine.detach(link, true, Some(error));
            }
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.common.open.send_modify(|open| *open -= 1);
    }
}

impl Party for Hub {
    fn on_event(&mut self, machine: &mut Connection, event: Event, now: Instant) {
        match event {
            Event::SaslInit { .. } => machine.sasl_outcome(SaslCode::Ok),
            Event::Opened(_) => {
                let open = machine.config().open();
                machine.open(open);
            }
            Event::SessionBegun { session, by_peer: true, .. } => machine.accept_begin(session),
            Event::Attached { link, attach, by_peer: true, .. } => self.attach(machine, link, &attach),
            Event::Transfer { link, delivery_id, transfer, .. } => {
                self.transfer(machine, link, delivery_id, &transfer, now);
            }
            Event::Flow { link: Some(link), flow, .. } => {
                if let Some(inward) = self.links.get_mut(&link) {
                    inward.receiver.on_flow(machine, &flow);
                }
                if let Some(sender) = self.answers.as_mut().filter(|sender| sender.link() == link) {
                    sender.on_flow(machine, &flow);
                    self.answer(machine);
                }
            }
            Event::Detached { link, detach, answered, .. } => {
                self.links.remove(&link);
                if !answered {
                    machine.detach(link, detach.closed(), None);
                }
            }
            _ => {}
        }
    }

    fn turn(&mut self, machine: &mut Connection, now: Instant) -> Option<Instant> {
        while let Some(thought) = self.thoughts.pop_front_if(|thought| thought.until <= now) {
            // Who asked is gone: nobody will hear of it.
            if machine.link(thought.link).is_none() {
                continue;
            }
            if let Some(inward) = self.links.get_mut(&thought.link) {
                if let Some(key) = thought.key {
                    self.common.ledger.lock().accepted(key);
                }
                inward.receiver.accept(machine, thought.delivery_id, thought.delivery_id);
            }
        }
        let look = self.common.manner.keys.is_some().then(|| {
            if self.next_look <= now {
                self.look(machine);
                self.next_look = now + TOKEN_LOOK;
            }
            self.next_look
        });
        self.thoughts.front().map(|thought| thought.until).into_iter().chain(look).min()
    }
}

/// What a message says, and how it is marked.
fn read(message: &Bytes) -> (Bytes, Marks) {
    let Ok(sections) = Sections::parse(message, &Limits::WIRE) else { return Default::default() };
    let body = match sections.body() {
        Body::Data(data) => data,
        // None of ours, as the ledger will find.
        _ => Bytes::new(),
    };
    let resent = sections
        .application_properties()
        .any(|(name, value)| name.as_str() == Some("fieldgate-resent") && value == Value::Bool(true));
    let message_id = sections.properties().message_id().map(|id| match id.as_str() {
        Some(text) => text.to_owned(),
        None => format!("{id:?}"),
    });
    (body, Marks { resent, delivery_count: sections.header().delivery_count, message_id })
}

fn unix_seconds() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs()
}
