//! The engine against an independent implementation, over streams in memory: `fe2o3-amqp`'s client against our
//! server side, and our client side against its acceptor.

#![allow(
    clippy::unwrap_used,
    reason = "clippy.toml allows it in tests, but sees only the functions marked as such"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fe2o3_amqp::acceptor::{
    ConnectionAcceptor, LinkAcceptor, LinkEndpoint, SaslPlainMechanism, SessionAcceptor,
};
use fe2o3_amqp::connection::{ConnectionHandle, OpenError};
use fe2o3_amqp::link::{SenderAttachError, delivery::Delivery as TheirDelivery};
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::types::definitions::ReceiverSettleMode;
use fe2o3_amqp::types::messaging::{Body, Data, Message, Outcome};
use fe2o3_amqp::types::primitives::Binary;
use fe2o3_amqp::{Connection as TheirConnection, Receiver as TheirReceiver, Sender as TheirSender, Session};
use fieldgate_amqp::codec::Limits;
use fieldgate_amqp::connection::{
    ClientSecurity, CloseReason, Connection, ConnectionConfig, Event, SessionId,
};
use fieldgate_amqp::endpoint::{
    CreditPolicy, OutgoingMessage, Receiver, ReceiverConfig, Sender, Settlements, Unsettled,
};
use fieldgate_amqp::error::{AmqpError, Condition};
use fieldgate_amqp::message::{self, Sections, put_data};
use fieldgate_amqp::performative::{AttachOut, DeliveryState, Role, SourceOut, TargetOut};
use fieldgate_amqp::sasl::{Mechanism, SaslCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

#[allow(clippy::disallowed_methods, reason = "this test is the driver, and time is the driver's")]
fn now() -> Instant {
    Instant::now()
}

fn config() -> Arc<ConnectionConfig> {
    Arc::new(ConnectionConfig { container_id: "fieldgate".into(), ..ConnectionConfig::default() })
}

fn encoded(data: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    put_data(&mut out, data);
    out.freeze()
}

fn data(message: &Bytes) -> Bytes {
    match Sections::parse(message, &Limits::WIRE).unwrap().body() {
        message::Body::Data(data) => data,
        other => panic!("{other:?}"),
    }
}

/// What runs on our side of a connection.
trait App {
    fn on_event(&mut self, connection: &mut Connection, event: Event);
}

/// Reads, lets the application see all events, and writes, until the connection is over.
async fn drive(mut stream: DuplexStream, mut connection: Connection, mut app: impl App) -> CloseReason {
    let mut buffer = BytesMut::new();
    loop {
        let mut over = None;
        while let Some(event) = connection.poll_event() {
            match event {
                Event::Closed(reason) => over = Some(reason),
                event => app.on_event(&mut connection, event),
            }
        }
        if let Some(bytes) = connection.poll_transmit() {
            stream.write_all(&bytes).await.unwrap();
        }
        if let Some(reason) = over {
            return reason;
        }
        buffer.reserve(4096);
        assert_ne!(stream.read_buf(&mut buffer).await.unwrap(), 0, "the peer hung up without a close");
        connection.handle_input(now(), buffer.split().freeze());
    }
}

/// A small hub: takes what is sent to "in" (and rejects "bad"), sends numbered messages from "out".
struct Hub {
    password: &'static str,
    /// What it took.
    taken: mpsc::UnboundedSender<Bytes>,
    /// What became of what it sent.
    outcomes: mpsc::UnboundedSender<(u32, bool)>,
    receiver: Option<Receiver>,
    sender: Option<Sender>,
    session: Option<SessionId>,
    unsettled: Unsettled<u32>,
    next: u32,
    last: u32,
}

impl Hub {
    fn start(
        stream: DuplexStream,
        last: u32,
    ) -> (
        tokio::task::JoinHandle<CloseReason>,
        mpsc::UnboundedReceiver<Bytes>,
        mpsc::UnboundedReceiver<(u32, bool)>,
    ) {
        let (taken, got) = mpsc::unbounded_channel();
        let (outcomes, became) = mpsc::unbounded_channel();
        let hub = Self {
            password: "right",
            taken,
            outcomes,
            receiver: None,
            sender: None,
            session: None,
            unsettled: Unsettled::new(),
            next: 0,
            last,
        };
        let connection = Connection::server(config(), &Mechanism::ALL, true, now());
        (tokio::spawn(drive(stream, connection, hub)), got, became)
    }

    fn send(&mut self, connection: &mut Connection) {
        let Some(sender) = &mut self.sender else { return };
        while self.next < self.last && sender.credit(connection) > 0 {
            let message = encoded(&payload(self.next));
            let message = OutgoingMessage { message: &message, ..OutgoingMessage::default() };
            sender.send(connection, &mut self.unsettled, message, self.next).unwrap();
            self.next += 1;
        }
    }
}

/// Small mostly, and sometimes larger than a frame.
fn payload(number: u32) -> Vec<u8> {
    let len = if number % 50 == 49 { 200_000 } else { 20 };
    (0..len).map(|at| (at as u32 ^ number) as u8).collect()
}

impl App for Hub {
    fn on_event(&mut self, connection: &mut Connection, event: Event) {
        match event {
            Event::SaslInit { plain, .. } => {
                let right = plain.is_none_or(|plain| plain.password == self.password);
                connection.sasl_outcome(if right { SaslCode::Ok } else { SaslCode::Auth });
            }
            Event::Opened(_) => {
                let open = connection.config().open();
                connection.open(open);
            }
            Event::SessionBegun { session, .. } => {
                self.session = Some(session);
                connection.accept_begin(session);
            }
            Event::Attached { link, attach, .. } => {
                let (source, target) = (attach.source().unwrap(), attach.target().unwrap());
                let settle = attach.rcv_settle_mode();
                if target.address() == Some("nowhere") {
                    let error = AmqpError::new(&Condition::NotFound, Some("no such node"));
                    return connection.refuse_attach(link, error);
                }
                let answer = match attach.role() {
                    Role::Sender => AttachOut::receiver(attach.name(), &source, &target),
                    Role::Receiver => AttachOut::sender(attach.name(), &source, &target),
                };
                let answer = AttachOut {
                    snd_settle_mode: attach.snd_settle_mode(),
                    rcv_settle_mode: settle,
                    ..answer
                };
                connection.answer_attach(link, &answer.build());
                if attach.role() == Role::Sender {
                    let config = ReceiverConfig { rcv_settle_mode: settle, ..ReceiverConfig::default() };
                    self.receiver.insert(Receiver::new(link, config)).on_attached(connection);
                } else {
                    self.sender = Some(Sender::new(link));
                }
            }
            Event::Flow { link: Some(link), flow, .. } => {
                if let Some(sender) = self.sender.as_mut().filter(|sender| sender.link() == link) {
                    sender.on_flow(connection, &flow);
                    self.send(connection);
                }
            }
            Event::Transfer { transfer, delivery_id, .. } => {
                let receiver = self.receiver.as_mut().unwrap();
                let Some(delivery) = receiver.on_transfer(connection, &transfer, delivery_id).unwrap() else {
                    return;
                };
                let data = data(&delivery.payload);
                if data == b"bad"[..] {
                    let error = AmqpError::new(&Condition::NotAllowed, Some("bad"));
                    receiver.reject(connection, delivery_id, delivery_id, Some(&error));
                } else if !delivery.settled {
                    receiver.accept(connection, delivery_id, delivery_id);
                }
                self.taken.send(data).unwrap();
            }
            Event::Disposition { session, disposition } => {
                self.unsettled.on_disposition(connection, session, &disposition, |settled| {
                    let accepted = matches!(settled.state, Some(DeliveryState::Accepted));
                    self.outcomes.send((settled.value, accepted)).unwrap();
                });
            }
            Event::Detached { link, detach, answered: false, .. } => {
                connection.detach(link, detach.closed(), None);
            }
            _ => {}
        }
    }
}

async fn client(
    stream: DuplexStream,
    profile: Option<SaslProfile>,
) -> Result<ConnectionHandle<()>, OpenError> {
    let builder = TheirConnection::builder().container_id("theirs").max_frame_size(4096);
    match profile {
        Some(profile) => builder.sasl_profile(profile).open_with_stream(stream).await,
        None => builder.open_with_stream(stream).await,
    }
}

fn binary(data: &[u8]) -> Message<Data> {
    Message::builder().data(Binary::from(data)).build()
}

fn plain(password: &str) -> Option<SaslProfile> {
    Some(SaslProfile::Plain { username: "d1".into(), password: password.into() })
}

#[tokio::test]
async fn their_sender_gets_our_outcomes() {
    let (there, here) = tokio::io::duplex(16 * 1024);
    let (hub, mut taken, _) = Hub::start(here, 0);
    let mut connection = client(there, None).await.unwrap();
    let mut session = Session::begin(&mut connection).await.unwrap();
    let mut sender = TheirSender::attach(&mut session, "s", "in").await.unwrap();
    for number in 0..300 {
        let outcome = sender.send(binary(&payload(number))).await.unwrap();
        assert!(outcome.is_accepted());
        assert_eq!(taken.recv().await.unwrap(), payload(number));
    }
    let Outcome::Rejected(rejected) = sender.send(binary(b"bad")).await.unwrap() else { panic!() };
    assert_eq!(rejected.error.unwrap().description.as_deref(), Some("bad"));
    sender.close().await.unwrap();
    session.end().await.unwrap();
    connection.close().await.unwrap();
    assert_eq!(hub.await.unwrap(), CloseReason::Remote(None));
}

#[tokio::test]
async fn their_receiver_settles_what_we_send() {
    for mode in [ReceiverSettleMode::First, ReceiverSettleMode::Second] {
        let (there, here) = tokio::io::duplex(16 * 1024);
        let (hub, _, mut outcomes) = Hub::start(here, 300);
        let mut connection = client(there, plain("right")).await.unwrap();
        let mut session = Session::begin(&mut connection).await.unwrap();
        let mut receiver = TheirReceiver::builder()
            .name("r")
            .source("out")
            .receiver_settle_mode(mode)
            .attach(&mut session)
            .await
            .unwrap();
        for number in 0..300 {
            let delivery: TheirDelivery<Body<fe2o3_amqp::types::primitives::Value>> =
                receiver.recv().await.unwrap();
            let Body::Data(batch) = delivery.body() else { panic!("{:?}", delivery.body()) };
            let whole: Vec<u8> = batch.iter().flat_map(|data| data.0.iter().copied()).collect();
            assert_eq!(whole, payload(number));
            if number % 3 == 0 {
                receiver.release(&delivery).await.unwrap();
            } else {
                receiver.accept(&delivery).await.unwrap();
            }
            assert_eq!(outcomes.recv().await.unwrap(), (number, number % 3 != 0));
        }
        receiver.close().await.unwrap();
        session.end().await.unwrap();
        connection.close().await.unwrap();
        assert_eq!(hub.await.unwrap(), CloseReason::Remote(None));
    }
}

#[tokio::test]
async fn their_client_is_refused_with_wrong_credentials() {
    let (there, here) = tokio::io::duplex(4096);
    let (hub, ..) = Hub::start(here, 0);
    assert!(matches!(client(there, plain("wrong")).await, Err(OpenError::SaslError { .. })));
    assert_eq!(hub.await.unwrap(), CloseReason::SaslFailed(Some(SaslCode::Auth)));
}

#[tokio::test]
async fn their_attach_is_refused_with_our_error() {
    let (there, here) = tokio::io::duplex(4096);
    let (_hub, _taken, _) = Hub::start(here, 0);
    let mut connection = client(there, Some(SaslProfile::Anonymous)).await.unwrap();
    let mut session = Session::begin(&mut connection).await.unwrap();
    let mut sender = TheirSender::attach(&mut session, "s", "in").await.unwrap();
    let refused = TheirSender::attach(&mut session, "t", "nowhere").await.unwrap_err();
    assert!(
        matches!(&refused, SenderAttachError::RemoteClosedWithError(error)
            if error.description.as_deref() == Some("no such node")),
        "{refused:?}"
    );
    // The session lives on, though their side detaches a refused link twice now and then.
    assert!(sender.send(binary(b"x")).await.unwrap().is_accepted());
    connection.close().await.unwrap();
}

/// Sends numbered messages to the acceptor on one link and takes them back on another, then closes.
struct Client {
    sender: Option<Sender>,
    receiver: Option<Receiver>,
    unsettled: Unsettled<u32>,
    settlements: Settlements,
    next: u32,
    accepted: u32,
    received: u32,
}

const ROUND: u32 = 200;

impl App for Client {
    fn on_event(&mut self, connection: &mut Connection, event: Event) {
        match event {
            Event::Opened(_) => {
                let session = connection.begin().unwrap();
                let source = SourceOut { address: Some("q"), ..SourceOut::default() }.build();
                let target = TargetOut { address: Some("q"), ..TargetOut::default() }.build();
                let attach = AttachOut::sender("s", &source, &target).build();
                self.sender = Some(Sender::new(connection.attach(session, &attach).unwrap()));
                let attach = AttachOut::receiver("r", &source, &target).build();
                let link = connection.attach(session, &attach).unwrap();
                let config =
                    ReceiverConfig { credit: CreditPolicy::Prefetch(30), ..ReceiverConfig::default() };
                self.receiver = Some(Receiver::new(link, config));
            }
            Event::Attached { link, .. } => {
                if let Some(receiver) = self.receiver.as_mut().filter(|receiver| receiver.link() == link) {
                    receiver.on_attached(connection);
                }
            }
            Event::Flow { link: Some(link), flow, .. } => {
                let sender = self.sender.as_mut().unwrap();
                if sender.link() != link {
                    return;
                }
                sender.on_flow(connection, &flow);
                while self.next < ROUND && sender.credit(connection) > 0 {
                    let message = encoded(&payload(self.next));
                    let message = OutgoingMessage { message: &message, ..OutgoingMessage::default() };
                    sender.send(connection, &mut self.unsettled, message, self.next).unwrap();
                    self.next += 1;
                }
            }
            Event::Disposition { session, disposition } => {
                self.unsettled.on_disposition(connection, session, &disposition, |settled| {
                    assert!(matches!(settled.state, Some(DeliveryState::Accepted)));
                    self.accepted += 1;
                });
            }
            Event::Transfer { transfer, delivery_id, .. } => {
                let receiver = self.receiver.as_mut().unwrap();
                let delivery = receiver.on_transfer(connection, &transfer, delivery_id).unwrap();
                if let Some(delivery) = delivery {
                    assert_eq!(data(&delivery.payload), payload(self.received));
                    self.received += 1;
                    self.settlements.accept(connection, receiver, delivery_id);
                    self.settlements.flush(connection);
                }
            }
            Event::SessionEnded { error, .. } => panic!("{error:?}"),
            _ => {}
        }
        if self.accepted == ROUND && self.received == ROUND {
            connection.close(None);
        }
    }
}

#[tokio::test]
async fn our_client_speaks_with_their_acceptor() {
    for security in
        [ClientSecurity::Bare, ClientSecurity::Plain { user: "d1".into(), password: "right".into() }]
    {
        let (there, here) = tokio::io::duplex(16 * 1024);
        let open = config().open();
        let connection = Connection::client(config(), security.clone(), open, now());
        let app = Client {
            sender: None,
            receiver: None,
            unsettled: Unsettled::new(),
            settlements: Settlements::new(),
            next: 0,
            accepted: 0,
            received: 0,
        };
        let ours = tokio::spawn(drive(here, connection, app));
        let builder = ConnectionAcceptor::builder().container_id("theirs").max_frame_size(2048);
        let mut connection = if security == ClientSecurity::Bare {
            builder.build().accept(there).await.unwrap()
        } else {
            let sasl = SaslPlainMechanism::new("d1", "right");
            builder.sasl_acceptor(sasl).build().accept(there).await.unwrap()
        };
        let mut session = SessionAcceptor::new().accept(&mut connection).await.unwrap();
        let links = LinkAcceptor::new();
        let mut work = Vec::new();
        for _ in 0..2 {
            match links.accept(&mut session).await.unwrap() {
                LinkEndpoint::Receiver(mut receiver) => work.push(tokio::spawn(async move {
                    for number in 0..ROUND {
                        let delivery: TheirDelivery<Body<fe2o3_amqp::types::primitives::Value>> =
                            receiver.recv().await.unwrap();
                        let Body::Data(batch) = delivery.body() else { panic!() };
                        let whole: Vec<u8> = batch.iter().flat_map(|data| data.0.iter().copied()).collect();
                        assert_eq!(whole, payload(number));
                        receiver.accept(&delivery).await.unwrap();
                    }
                    // Dropping it would detach the link before its outcomes are through.
                    assert!(receiver.recv::<Body<fe2o3_amqp::types::primitives::Value>>().await.is_err());
                })),
                LinkEndpoint::Sender(mut sender) => work.push(tokio::spawn(async move {
                    for number in 0..ROUND {
                        assert!(sender.send(binary(&payload(number))).await.unwrap().is_accepted());
                    }
                    let _ = sender.on_detach().await;
                })),
            }
        }
        let limit = Duration::from_secs(60);
        assert_eq!(tokio::time::timeout(limit, ours).await.unwrap().unwrap(), CloseReason::Local);
        drop(session);
        for task in work {
            task.await.unwrap();
        }
    }
}
