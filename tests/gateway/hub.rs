//! A hub that does what a test tells it, and tells the test what it sees: our AMQP engine over TLS, with a CA of its
//! own, on a thread of its own.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use fieldgate::state::StateDir;
use fieldgate::tls;
use fieldgate_amqp::codec::{Limits, Value};
use fieldgate_amqp::connection::{CloseReason, Connection, ConnectionConfig, Event, LinkId, SessionId};
use fieldgate_amqp::endpoint::{CreditPolicy, OutgoingMessage, Receiver, ReceiverConfig, Sender, Unsettled};
use fieldgate_amqp::error::AmqpError;
use fieldgate_amqp::message::{Body, Sections, put_data};
use fieldgate_amqp::performative::{
    ACCEPTED, Attach, AttachOut, DispositionOut, RELEASED, RcvSettleMode, Role, modified, rejected,
};
use fieldgate_amqp::sasl::{Mechanism, SaslCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsAcceptor;

use super::world::Directory;

/// What the hub does by itself.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    /// How many connections are still taken, beyond TCP; with none the hub is away.
    pub(crate) takes: usize,
    /// Links are refused with this.
    pub(crate) refuses: Option<AmqpError>,
    /// What the sender of a link may send before a test gives more.
    pub(crate) credit: u32,
    /// Who is let in with SASL PLAIN, user and password; nobody else is asked who he is.
    pub(crate) user: Option<(&'static str, &'static str)>,
}

/// A link of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) connection: u64,
    pub(crate) session: SessionId,
    pub(crate) link: LinkId,
}

/// A message that came.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) place: Place,
    pub(crate) delivery_id: u32,
    pub(crate) body: Bytes,
    /// The message-id, where it is a text.
    pub(crate) id: Option<String>,
    /// Whether it is marked as one that may have come before, in the header and in the properties.
    pub(crate) resent: (bool, bool),
}

/// What the hub sees.
#[derive(Debug)]
pub(crate) enum Seen {
    /// A connection was opened, by this container.
    Opened { connection: u64, container: String },
    /// A link was attached.
    Attached { place: Place, address: String, role: Role },
    /// The peer gives a link of ours credit.
    Credit(Place),
    /// A message came.
    Message(Message),
    /// The peer says what became of a message of ours: `accepted`, `rejected: condition`, `released`, …
    Outcome { body: Bytes, outcome: String },
    /// The peer detached a link.
    Detached { place: Place },
    /// A session is over, whoever ended it.
    SessionEnded { connection: u64, session: SessionId },
    /// A connection is over, with a reason where it was closed.
    Ended { connection: u64, reason: Option<CloseReason> },
}

/// What a test tells a connection.
#[derive(Debug)]
enum Order {
    Settle { session: SessionId, delivery_id: u32, state: Bytes },
    Credit { link: LinkId, credit: u32 },
    Send { link: LinkId, body: Bytes },
    Detach { link: LinkId, error: AmqpError },
    End { session: SessionId, error: AmqpError },
    Deafen,
    Close { error: AmqpError },
    Cut,
}

/// An answer to a message.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Accept,
    Reject(&'static str),
    RejectWith(AmqpError),
    Release,
    Modify,
}

impl Answer {
    fn state(&self) -> Bytes {
        match self {
            Self::Accept => Bytes::from_static(ACCEPTED),
            Self::Reject(condition) => rejected(Some(&error(condition))),
            Self::RejectWith(error) => rejected(Some(error)),
            Self::Release => Bytes::from_static(RELEASED),
            Self::Modify => modified(true, false, None),
        }
    }
}

/// An error of the hub with words of its own.
pub(crate) fn error(condition: &str) -> AmqpError {
    AmqpError::new(&condition.into(), Some("the test says so"))
}

/// The hub's side of the test.
pub(crate) struct Hub {
    pub(crate) port: u16,
    ca_file: PathBuf,
    /// Of the CA.
    _directory: Directory,
    control: Arc<Control>,
    seen: mpsc::UnboundedReceiver<Seen>,
    /// What was seen while something else was waited for.
    kept: VecDeque<Seen>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Control {
    manner: Mutex<Manner>,
    connections: Mutex<HashMap<u64, mpsc::UnboundedSender<Order>>>,
    seen: mpsc::UnboundedSender<Seen>,
}

impl Control {
    fn manner(&self) -> MutexGuard<'_, Manner> {
        self.manner.lock().unwrap()
    }
}

impl Hub {
    /// A hub that takes connections and links, and gives credit.
    pub(crate) fn start() -> Self {
        let directory = Directory::new();
        let state = StateDir::locate(Some(directory.path())).unwrap().lock().unwrap();
        let config = tls::server(state.hub_identity("localhost").unwrap()).unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, seen) = mpsc::unbounded_channel();
        let control = Arc::new(Control {
            manner: Mutex::new(Manner { takes: usize::MAX, refuses: None, credit: 1000, user: None }),
            connections: Mutex::default(),
            seen: sender,
        });
        let (stop, stopped) = oneshot::channel();
        let serving = Arc::clone(&control);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let accepting = accept(listener, TlsAcceptor::from(config), serving);
                tokio::select! {
                    () = accepting => {}
                    _ = stopped => {}
                }
            });
        });
        let (stop, thread) = (Some(stop), Some(thread));
        let ca_file = state.ca_file();
        Self { port, ca_file, _directory: directory, control, seen, kept: VecDeque::new(), stop, thread }
    }

    /// A connector to this hub, with lines of its own, and the profile that it trusts the hub by.
    pub(crate) fn connector(&self, name: &str, lines: &str) -> String {
        let Self { port, ca_file, .. } = self;
        format!(
            "[[ssl_profile]]\nname = \"{name}\"\nca_cert_file = {ca_file:?}\n\
             [[connector]]\nname = \"{name}\"\nhost = \"localhost\"\nport = {port}\nssl_profile = \"{name}\"\n{lines}\n"
        )
    }

    /// The gateway's settings for this hub.
    pub(crate) fn settings(&self) -> String {
        format!("url = \"amqps://localhost:{}\"\nca_file = {:?}", self.port, self.ca_file)
    }

    /// Changes what the hub does by itself from now on.
    pub(crate) fn behave(&self, change: impl FnOnce(&mut Manner)) {
        change(&mut self.control.manner());
    }

    /// Waits for the first thing seen that `pick` takes; keeps what it leaves for later.
    pub(crate) async fn wait<T>(&mut self, mut pick: impl FnMut(&Seen) -> Option<T>) -> T {
        for at in 0..self.kept.len() {
            if let Some(picked) = pick(&self.kept[at]) {
                self.kept.remove(at);
                return picked;
            }
        }
        loop {
            let seen = self.seen.recv().await.unwrap();
            match pick(&seen) {
                Some(picked) => return picked,
                None => self.kept.push_back(seen),
            }
        }
    }

    /// The next connection that was opened.
    pub(crate) async fn opened(&mut self) -> u64 {
        self.wait(|seen| match seen {
            Seen::Opened { connection, .. } => Some(*connection),
            _ => None,
        })
        .await
    }

    /// The next connection that a container of this name opened.
    pub(crate) async fn opened_by(&mut self, name: &str) -> u64 {
        self.wait(|seen| match seen {
            Seen::Opened { connection, container } if container == name => Some(*connection),
            _ => None,
        })
        .await
    }

    /// The next link that was attached.
    pub(crate) async fn attached(&mut self) -> Place {
        self.wait(|seen| match seen {
            Seen::Attached { place, .. } => Some(*place),
            _ => None,
        })
        .await
    }

    /// The next message.
    pub(crate) async fn message(&mut self) -> Message {
        self.wait(|seen| match seen {
            Seen::Message(message) => Some(message.clone()),
            _ => None,
        })
        .await
    }

    /// The message with this body.
    pub(crate) async fn message_of(&mut self, body: &str) -> Message {
        self.wait(|seen| match seen {
            Seen::Message(message) if message.body == body => Some(message.clone()),
            _ => None,
        })
        .await
    }

    /// The next link over which commands of this device are asked for, once it has credit.
    pub(crate) async fn subscription(&mut self, device: &str) -> Place {
        let node = format!("devices/{device}/messages/devicebound");
        let link = self
            .wait(|seen| match seen {
                Seen::Attached { place, address, role: Role::Receiver } => {
                    (address.trim_start_matches('/') == node).then_some(*place)
                }
                _ => None,
            })
            .await;
        self.wait(|seen| matches!(seen, Seen::Credit(place) if *place == link).then_some(link)).await
    }

    /// What became of the command with this body.
    pub(crate) async fn outcome_of(&mut self, command: &str) -> String {
        self.wait(|seen| match seen {
            Seen::Outcome { body, outcome } if body == command => Some(outcome.clone()),
            _ => None,
        })
        .await
    }

    /// Waits until the peer has detached this link.
    pub(crate) async fn detached(&mut self, link: Place) {
        self.wait(|seen| matches!(seen, Seen::Detached { place } if *place == link).then_some(())).await;
    }

    /// Waits until the session of this link is over at both ends.
    pub(crate) async fn session_ended(&mut self, of: Place) {
        self.wait(|seen| match seen {
            Seen::SessionEnded { connection, session } => {
                (*connection == of.connection && *session == of.session).then_some(())
            }
            _ => None,
        })
        .await;
    }

    /// Why a connection is over.
    pub(crate) async fn ended(&mut self, of: u64) -> Option<CloseReason> {
        self.wait(|seen| match seen {
            Seen::Ended { connection, reason } if *connection == of => Some(reason.clone()),
            _ => None,
        })
        .await
    }

    /// True if something of this kind has been seen and was not waited for.
    pub(crate) fn has_seen(&mut self, is_it: impl Fn(&Seen) -> bool) -> bool {
        while let Ok(seen) = self.seen.try_recv() {
            self.kept.push_back(seen);
        }
        self.kept.iter().any(is_it)
    }

    fn tell(&self, connection: u64, order: Order) {
        if let Some(orders) = self.control.connections.lock().unwrap().get(&connection) {
            // An error means that the connection has just ended.
            let _ = orders.send(order);
        }
    }

    pub(crate) fn settle(&self, message: &Message, answer: &Answer) {
        let Place { connection, session, .. } = message.place;
        let order = Order::Settle { session, delivery_id: message.delivery_id, state: answer.state() };
        self.tell(connection, order);
    }

    pub(crate) fn credit(&self, place: Place, credit: u32) {
        self.tell(place.connection, Order::Credit { link: place.link, credit });
    }

    /// Sends a command over a link of the peer's.
    pub(crate) fn send(&self, place: Place, body: &'static str) {
        self.send_bytes(place, Bytes::from_static(body.as_bytes()));
    }

    /// Sends a message with this body over a link of the peer's.
    pub(crate) fn send_bytes(&self, place: Place, body: Bytes) {
        self.tell(place.connection, Order::Send { link: place.link, body });
    }

    pub(crate) fn detach(&self, place: Place, condition: &str) {
        self.tell(place.connection, Order::Detach { link: place.link, error: error(condition) });
    }

    pub(crate) fn end(&self, place: Place, condition: &str) {
        self.tell(place.connection, Order::End { session: place.session, error: error(condition) });
    }

    pub(crate) fn close(&self, connection: u64, condition: &str) {
        self.tell(connection, Order::Close { error: error(condition) });
    }

    /// Lets the connection read nothing more.
    pub(crate) fn deafen(&self, connection: u64) {
        self.tell(connection, Order::Deafen);
    }

    /// Drops the connection without a word.
    pub(crate) fn cut(&self, connection: u64) {
        self.tell(connection, Order::Cut);
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        // An error means that the thread has ended, which the join tells.
        let _ = self.stop.take().unwrap().send(());
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.expect("the hub ends without a panic");
        }
    }
}

async fn accept(listener: std::net::TcpListener, tls: TlsAcceptor, control: Arc<Control>) {
    let listener = TcpListener::from_std(listener).unwrap();
    for connection in 0.. {
        let (tcp, _) = listener.accept().await.unwrap();
        match &mut control.manner().takes {
            0 => continue,
            takes => *takes -= 1,
        }
        tcp.set_nodelay(true).unwrap();
        let (tls, control) = (tls.clone(), Arc::clone(&control));
        let (sender, orders) = mpsc::unbounded_channel();
        control.connections.lock().unwrap().insert(connection, sender);
        tokio::spawn(async move {
            let reason = match tls.accept(tcp).await {
                Ok(stream) => Peer::new(connection, Arc::clone(&control)).serve(stream, orders).await,
                Err(_) => None,
            };
            control.connections.lock().unwrap().remove(&connection);
            // An error means that the test is over.
            let _ = control.seen.send(Seen::Ended { connection, reason });
        });
    }
}

/// One connection of the hub.
struct Peer {
    connection: u64,
    control: Arc<Control>,
    machine: Connection,
    receivers: HashMap<LinkId, Receiver>,
    senders: HashMap<LinkId, Sender>,
    /// Commands by what they say.
    unsettled: HashMap<SessionId, Unsettled<Bytes>>,
}

impl Peer {
    fn new(connection: u64, control: Arc<Control>) -> Self {
        let config = ConnectionConfig {
            container_id: "scripted".into(),
            // A test may send more than the gateway takes.
            max_backlog_bytes: 64 << 20,
            ..ConnectionConfig::default()
        };
        let mechanisms = [Mechanism::Anonymous, Mechanism::Plain];
        let machine = Connection::server(Arc::new(config), &mechanisms, true, Instant::now());
        Self {
            connection,
            control,
            machine,
            receivers: HashMap::new(),
            senders: HashMap::new(),
            unsettled: HashMap::new(),
        }
    }

    async fn serve(
        mut self,
        mut stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
        mut orders: mpsc::UnboundedReceiver<Order>,
    ) -> Option<CloseReason> {
        let mut reason = None;
        let mut input = BytesMut::new();
        let mut is_deaf = false;
        loop {
            while let Some(event) = self.machine.poll_event() {
                match event {
                    Event::Closed(why) => reason = Some(why),
                    event => self.handle(event),
                }
            }
            while let Some(bytes) = self.machine.poll_transmit() {
                if stream.write_all(&bytes).await.is_err() {
                    return reason;
                }
            }
            if stream.flush().await.is_err() || self.machine.is_closed() {
                // What was said last arrives before the stream ends.
                let _ = stream.shutdown().await;
                return reason;
            }
            tokio::select! {
                read = stream.read_buf(&mut input), if !is_deaf => match read {
                    Ok(0) | Err(_) => return reason,
                    Ok(_) => self.machine.handle_input(Instant::now(), input.split().freeze()),
                },
                order = orders.recv() => match order {
                    Some(Order::Cut) | None => return reason,
                    Some(Order::Deafen) => is_deaf = true,
                    Some(order) => self.obey(order),
                },
            }
        }
    }

    fn saw(&self, seen: Seen) {
        // An error means that the test is over.
        let _ = self.control.seen.send(seen);
    }

    fn place(&self, session: SessionId, link: LinkId) -> Place {
        Place { connection: self.connection, session, link }
    }

    fn handle(&mut self, event: Event) {
        let machine = &mut self.machine;
        match event {
            Event::SaslInit { plain: None, .. } => machine.sasl_outcome(SaslCode::Ok),
            Event::SaslInit { plain: Some(shown), .. } => {
                let right = self.control.manner().user;
                let right = right.is_some_and(|right| right == (&*shown.user, &*shown.password));
                machine.sasl_outcome(if right { SaslCode::Ok } else { SaslCode::Auth });
            }
            Event::Opened(open) => {
                let container = open.container_id().to_owned();
                let open = machine.config().open();
                machine.open(open);
                self.saw(Seen::Opened { connection: self.connection, container });
            }
            Event::SessionBegun { session, .. } => machine.accept_begin(session),
            Event::Attached { link, session, attach, .. } => self.attached(link, session, &attach),
            Event::Flow { link: Some(link), flow, session } => {
                if let Some(sender) = self.senders.get_mut(&link) {
                    sender.on_flow(machine, &flow);
                    if sender.credit(machine) > 0 {
                        self.saw(Seen::Credit(self.place(session, link)));
                    }
                } else if let Some(receiver) = self.receivers.get_mut(&link) {
                    receiver.on_flow(machine, &flow);
                }
            }
            Event::Transfer { link, session, delivery_id, transfer, .. } => {
                let receiver = self.receivers.get_mut(&link).unwrap();
                if let Ok(Some(delivery)) = receiver.on_transfer(machine, &transfer, delivery_id) {
                    let place = self.place(session, link);
                    self.saw(Seen::Message(message(place, delivery_id, &delivery.payload)));
                }
            }
            Event::Disposition { session, disposition } => {
                let mut outcomes = Vec::new();
                if let Some(unsettled) = self.unsettled.get_mut(&session) {
                    unsettled.on_disposition(machine, session, &disposition, |settled| {
                        outcomes.push((settled.value, settled.state.map_or_else(String::new, word)));
                    });
                }
                outcomes.into_iter().for_each(|(body, outcome)| self.saw(Seen::Outcome { body, outcome }));
            }
            Event::Detached { link, session, detach, answered } => {
                if !answered {
                    machine.detach(link, detach.closed(), None);
                }
                self.saw(Seen::Detached { place: self.place(session, link) });
            }
            Event::SessionEnded { session, .. } => {
                self.saw(Seen::SessionEnded { connection: self.connection, session });
            }
            Event::Flow { link: None, .. } | Event::Authenticated | Event::Closed(_) => {}
        }
    }

    fn attached(&mut self, link: LinkId, session: SessionId, attach: &Attach) {
        let manner = self.control.manner().clone();
        if let Some(error) = manner.refuses {
            return self.machine.refuse_attach(link, error);
        }
        self.machine.answer_attach(link, &mirror(attach));
        let (source, target) = (attach.source(), attach.target());
        let terminus = if attach.role() == Role::Sender { target } else { source };
        let address =
            terminus.as_ref().and_then(|terminus| terminus.address()).unwrap_or_default().to_owned();
        self.saw(Seen::Attached { place: self.place(session, link), address, role: attach.role() });
        match attach.role() {
            Role::Receiver => {
                self.senders.insert(link, Sender::new(link));
            }
            Role::Sender => {
                let config = ReceiverConfig { credit: CreditPolicy::Manual, ..ReceiverConfig::default() };
                let mut receiver = Receiver::new(link, config);
                receiver.on_attached(&mut self.machine);
                if manner.credit > 0 {
                    receiver.give_credit(&mut self.machine, manner.credit, false);
                }
                self.receivers.insert(link, receiver);
            }
        }
    }

    fn obey(&mut self, order: Order) {
        let machine = &mut self.machine;
        match order {
            Order::Settle { session, delivery_id, state } => {
                let disposition = DispositionOut {
                    role: Role::Receiver,
                    first: delivery_id,
                    last: delivery_id,
                    settled: true,
                    state: Some(&state),
                    batchable: false,
                };
                machine.disposition(session, disposition);
            }
            Order::Credit { link, credit } => {
                self.receivers.get_mut(&link).unwrap().give_credit(machine, credit, false);
            }
            Order::Send { link, body } => {
                let mut message = BytesMut::new();
                put_data(&mut message, &body);
                let out = OutgoingMessage { message: &message, ..OutgoingMessage::default() };
                // The peer may have detached it meanwhile.
                let Some(session) = machine.session_of_link(link) else { return };
                let unsettled = self.unsettled.entry(session).or_default();
                self.senders.get_mut(&link).unwrap().send(machine, unsettled, out, body).unwrap();
            }
            Order::Detach { link, error } => machine.detach(link, true, Some(error)),
            Order::End { session, error } => machine.end(session, Some(error)),
            Order::Close { error } => machine.close(Some(error)),
            Order::Deafen | Order::Cut => {}
        }
    }
}

/// The attach that takes another one as it is.
fn mirror(attach: &Attach) -> Attach {
    let (source, target) = (attach.source(), attach.target());
    AttachOut {
        name: attach.name(),
        handle: 0,
        role: attach.role().other(),
        snd_settle_mode: attach.snd_settle_mode(),
        rcv_settle_mode: RcvSettleMode::First,
        source: source.as_ref(),
        target: target.as_ref(),
        unsettled: None,
        initial_delivery_count: (attach.role() == Role::Receiver).then_some(0),
        max_message_size: None,
        offered_capabilities: &[],
        desired_capabilities: &[],
        properties: None,
    }
    .build()
}

fn body(message: &Bytes) -> Bytes {
    match Sections::parse(message, &Limits::WIRE).unwrap().body() {
        Body::Data(data) => data,
        other => panic!("{other:?}"),
    }
}

fn message(place: Place, delivery_id: u32, encoded: &Bytes) -> Message {
    let sections = Sections::parse(encoded, &Limits::WIRE).unwrap();
    let id = match sections.properties().message_id() {
        Some(Value::Str(id)) => Some(id.to_owned()),
        _ => None,
    };
    let mark = (Value::Str("fieldgate-resent"), Value::Bool(true));
    let resent = (
        sections.header().delivery_count > 0,
        sections.application_properties().any(|property| property == mark),
    );
    Message { place, delivery_id, body: body(encoded), id, resent }
}

fn word(state: &fieldgate_amqp::performative::DeliveryState<'_>) -> String {
    use fieldgate_amqp::performative::DeliveryState;
    match state {
        DeliveryState::Accepted => "accepted".into(),
        DeliveryState::Rejected(Some(error)) => format!("rejected: {}", error.condition()),
        DeliveryState::Rejected(None) => "rejected".into(),
        DeliveryState::Released => "released".into(),
        other => format!("{other:?}"),
    }
}
