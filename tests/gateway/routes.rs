//! Native AMQP devices through the route, with a client that is not ours: what the hub says is what the device hears.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::types::definitions::{ConnectionError, ErrorCondition};
use fe2o3_amqp::types::messaging::{Body, Outcome};
use fe2o3_amqp::types::primitives::Value;
use fe2o3_amqp::{Connection, Sender};
use fieldgate::hub::device_key;
use fieldgate::sas::{SharedKey, Signer};
use fieldgate_amqp::codec::{put_map, put_str, put_symbol};
use fieldgate_amqp::connection::{ClientSecurity, Connection as Machine, ConnectionConfig, Event};
use fieldgate_amqp::endpoint::{OutgoingMessage, Sender as LinkSender, Unsettled};
use fieldgate_amqp::message::put_data;
use fieldgate_amqp::performative::{AttachOut, SourceOut, TargetOut};
use fieldgate_mappings::DeviceId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::client::{Client, annotation, body, data};
use super::hub::{Answer, Hub, Seen, error};
use super::world::{Gateway, Lines, in_an_hour, within};

const EVENTS: &str = "devices/dev/messages/events";
/// A peer that does nothing for so long is held back.
const STALL: Duration = Duration::from_millis(500);
const BOUND: &str = "devices/dev/messages/devicebound";
/// Each device has a hub connection of its own.
const ALONE: Lines<'static> = Lines { upstream: "mode = \"per-connection\"", ..Lines::NONE };

async fn device(gateway: &Gateway) -> Client {
    Client::open(TcpStream::connect(gateway.ports.amqp).await.unwrap(), SaslProfile::Anonymous).await
}

#[tokio::test]
async fn every_outcome_passes_through() {
    within(async {
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines::default()).await;
        let mut device = device(&gateway).await;
        let mut sender = device.sender(EVENTS).await;
        let mut info = BytesMut::new();
        put_map(&mut info, |out| {
            put_symbol(out, "limit");
            put_str(out, "7");
            1
        });
        let rejection = error("com.example:no").with_info(&info).unwrap();
        for answer in [Answer::Accept, Answer::RejectWith(rejection), Answer::Release, Answer::Modify] {
            let sent = sender.send_batchable(data(*b"x")).await.unwrap();
            let message = hub.message_of("x").await;
            hub.settle(&message, &answer);
            match (answer, sent.await.unwrap()) {
                (Answer::Accept, Outcome::Accepted(_)) | (Answer::Release, Outcome::Released(_)) => {}
                (Answer::RejectWith(_), Outcome::Rejected(rejected)) => {
                    let error = rejected.error.unwrap();
                    assert_eq!(error.condition, ErrorCondition::Custom("com.example:no".into()));
                    assert_eq!(error.description.as_deref(), Some("the test says so"));
                    let info = format!("{:?}", error.info.unwrap());
                    assert!(info.contains("limit") && info.contains('7'), "{info}");
                }
                (Answer::Modify, Outcome::Modified(modified)) => {
                    assert_eq!(modified.delivery_failed, Some(true));
                }
                (answer, outcome) => panic!("{answer:?} became {outcome:?}"),
            }
        }
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn the_devices_outcome_is_the_hubs() {
    within(async {
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines::default()).await;
        let mut device = device(&gateway).await;
        let mut receiver = device.receiver(BOUND).await;
        let link = hub.subscription("dev").await;
        for (command, outcome) in [("a", "accepted"), ("b", "released"), ("c", "rejected: amqp:not-allowed")]
        {
            hub.send(link, command);
            let got = receiver.recv::<Body<Value>>().await.unwrap();
            assert_eq!(body(&got), command.as_bytes());
            match command {
                "a" => receiver.accept(&got).await.unwrap(),
                "b" => receiver.release(&got).await.unwrap(),
                _ => {
                    let error = fe2o3_amqp::types::definitions::Error::new(
                        fe2o3_amqp::types::definitions::AmqpError::NotAllowed,
                        None,
                        None,
                    );
                    receiver.reject(&got, error).await.unwrap();
                }
            }
            assert_eq!(hub.outcome_of(command).await, outcome);
        }
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn what_the_hub_or_the_gateway_refuses_is_refused() {
    within(async {
        let hub = Hub::start();
        let lines = Lines { amqp: "authorise = \"token\"", ..ALONE };
        let gateway = Gateway::scripted(&hub, lines).await;
        hub.behave(|manner| manner.refuses = Some(error("amqp:unauthorized-access")));
        let mut device_1 = device(&gateway).await;
        let refused = Sender::attach(&mut device_1.session, "a", EVENTS).await.unwrap_err();
        assert!(format!("{refused:?}").contains("UnauthorizedAccess"), "{refused:?}");
        // Nothing routes this one, so the hub never hears of it.
        hub.behave(|manner| manner.refuses = None);
        let mut device_2 = device(&gateway).await;
        let refused = Sender::attach(&mut device_2.session, "b", "elsewhere/events").await.unwrap_err();
        assert!(format!("{refused:?}").contains("NotFound"), "{refused:?}");
        let mut hub = hub;
        assert!(!hub.has_seen(|seen| matches!(seen, Seen::Attached { .. })));
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn the_hubs_detach_reaches_the_device() {
    within(async {
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines::default()).await;
        let mut device = device(&gateway).await;
        let mut sender = device.sender(EVENTS).await;
        let place = hub.wait(|seen| match seen {
            Seen::Attached { place, .. } => Some(*place),
            _ => None,
        });
        let place = place.await;
        hub.detach(place, "amqp:link:detach-forced");
        let ended = sender.on_detach().await;
        assert!(format!("{ended:?}").contains("DetachForced"), "{ended:?}");
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn the_end_of_the_hubs_connection_is_the_devices() {
    within(async {
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, ALONE).await;
        let mapped = hub.opened().await;
        for cut in [false, true] {
            let mut device = device(&gateway).await;
            let connection = hub.opened().await;
            assert_ne!(connection, mapped);
            let condition = if cut {
                hub.cut(connection);
                "ConnectionForced"
            } else {
                hub.close(connection, "amqp:resource-limit-exceeded");
                "ResourceLimitExceeded"
            };
            let closed = device.connection.on_close().await.unwrap_err();
            assert!(format!("{closed:?}").contains(condition), "{closed:?}");
        }
        // The other way round.
        let mut device = device(&gateway).await;
        let connection = hub.opened().await;
        device.connection.close().await.unwrap();
        assert!(hub.ended(connection).await.is_some());
        gateway.stop().await;
    })
    .await;
}

/// A device that sends as fast as its socket takes it.
struct Pusher {
    stream: TcpStream,
    machine: Machine,
    sender: LinkSender,
    unsettled: Unsettled<()>,
}

impl Pusher {
    /// A device whose link has credit.
    async fn connect(address: SocketAddr) -> Self {
        let config = ConnectionConfig { container_id: "pusher".into(), ..ConnectionConfig::default() };
        let open = config.open();
        let mut machine = Machine::client(Arc::new(config), ClientSecurity::Anonymous, open, Instant::now());
        let session = machine.begin().unwrap();
        let source = SourceOut::default().build();
        let target = TargetOut { address: Some(EVENTS), ..TargetOut::default() }.build();
        let attach = AttachOut::sender("pusher", &source, &target).build();
        let sender = LinkSender::new(machine.attach(session, &attach).unwrap());
        let stream = TcpStream::connect(address).await.unwrap();
        let mut device = Self { stream, machine, sender, unsettled: Unsettled::new() };
        while device.sender.credit(&device.machine) == 0 {
            assert!(device.write().await && device.read().await);
        }
        device
    }

    /// False when the socket takes nothing for a while.
    async fn write(&mut self) -> bool {
        while let Some(bytes) = self.machine.poll_transmit() {
            if tokio::time::timeout(STALL, self.stream.write_all(&bytes)).await.is_err() {
                return false;
            }
        }
        true
    }

    /// False when nothing comes for a while.
    async fn read(&mut self) -> bool {
        let mut input = BytesMut::new();
        let Ok(read) = tokio::time::timeout(STALL, self.stream.read_buf(&mut input)).await else {
            return false;
        };
        assert!(read.unwrap() > 0);
        self.machine.handle_input(Instant::now(), input.freeze());
        while let Some(event) = self.machine.poll_event() {
            if let Event::Flow { link: Some(_), flow, .. } = event {
                self.sender.on_flow(&mut self.machine, &flow);
            }
        }
        true
    }

    /// Sends one message; false when that does not get away.
    async fn push(&mut self, body: &[u8]) -> bool {
        let mut message = BytesMut::new();
        put_data(&mut message, body);
        let out = OutgoingMessage { message: &message, ..OutgoingMessage::default() };
        self.sender.send(&mut self.machine, &mut self.unsettled, out, ()).unwrap();
        let session = self.machine.session_of_link(self.sender.link()).unwrap();
        while self.write().await {
            if self.machine.session_backlog_bytes(session) == 0 {
                return true;
            }
            // The window is used up: only the other side opens it again.
            if !self.read().await {
                return false;
            }
        }
        false
    }
}

/// The bytes of a hub that does not read stay with the device: credit alone would let through 60 MB.
#[tokio::test]
async fn a_hub_that_does_not_read_holds_the_device_back() {
    within(async {
        let mut hub = Hub::start();
        let lines = Lines { amqp: "idle_time_out = \"1s\"", ..ALONE };
        let gateway = Gateway::scripted(&hub, lines).await;
        hub.opened().await;
        // The other client would keep in memory what its socket does not take.
        let mut device = Pusher::connect(gateway.ports.amqp).await;
        let connection = hub.opened().await;
        hub.deafen(connection);
        let mut sent = 0;
        while device.push(&[b'x'; 60_000]).await {
            sent += 1;
            assert!(sent < 900, "{sent} messages went somewhere");
        }
        // Others have their own connections.
        let mut http = gateway.http().await;
        http.event("http", b"other").await;
        let other = hub.message_of("other").await;
        hub.settle(&other, &Answer::Accept);
        assert_eq!(http.answer().await.status, 204);
        // A device that is not read cannot be heard: its silence may last. Here time itself is what is tested.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        hub.cut(connection);
        let mut said = Vec::new();
        let lost = b"the connection to the hub was lost";
        while !said.windows(lost.len()).any(|bytes| bytes == lost) {
            assert!(device.stream.read_buf(&mut said).await.unwrap() > 0, "{}", said.escape_ascii());
        }
        drop(device);
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn without_a_hub_the_device_is_told_so() {
    within(async {
        let hub = Hub::start();
        hub.behave(|manner| manner.takes = 0);
        let gateway = Gateway::away(&hub, ALONE).await;
        let stream = TcpStream::connect(gateway.ports.amqp).await.unwrap();
        let opened = Connection::builder()
            .container_id("test")
            .hostname("localhost")
            .scheme("amqp")
            .sasl_profile(SaslProfile::Anonymous)
            .open_with_stream(stream)
            .await;
        let told = match opened {
            Ok(mut connection) => format!("{:?}", connection.on_close().await.unwrap_err()),
            Err(error) => format!("{error:?}"),
        };
        let forced = format!("{:?}", ConnectionError::ConnectionForced);
        assert!(told.contains(&forced) || told.contains("ConnectionForced"), "{told}");
        gateway.stop().await;
    })
    .await;
}

/// The embedded hub judges the device's own token, through the route.
#[tokio::test]
async fn a_device_proves_itself_to_the_embedded_hub() {
    within(async {
        let gateway = Gateway::embedded(Lines::default()).await;
        let owner = std::fs::read_to_string(gateway.state.path().join("policy-key")).unwrap();
        let owner = SharedKey::from_base64(owner.trim()).unwrap();
        let key = device_key(&owner, &DeviceId::new("dev").unwrap());
        let token = Signer::new(None, key).token("localhost/devices/dev", in_an_hour());

        let mut device = device(&gateway).await;
        let forged = token.replace("sig=", "sig=A");
        assert_eq!(device.put_token(&forged, "localhost/devices/dev").await, 400);
        assert_eq!(device.put_token(&token, "localhost/devices/dev").await, 200);
        let mut sender = device.sender(EVENTS).await;
        assert!(sender.send(data(*b"x")).await.unwrap().is_accepted());
        match sender.send(data(vec![0; 270_000])).await.unwrap() {
            Outcome::Rejected(rejected) => {
                assert!(format!("{:?}", rejected.error.unwrap()).contains("262144"));
            }
            other => panic!("{other:?}"),
        }
        let mut bound = device.receiver(BOUND).await;
        let mut service = super::commands::service(gateway.state.path()).await;
        let mut to = service.sender("/messages/devicebound").await;
        assert!(to.send(super::commands::command("c", "dev")).await.unwrap().is_accepted());
        for count in 0..2 {
            let got = bound.recv::<Body<Value>>().await.unwrap();
            assert_eq!(annotation(&got, "iothub-deliverycount"), Some(Value::Ubyte(count)));
            if count == 0 {
                bound.release(&got).await.unwrap();
            } else {
                bound.accept(&got).await.unwrap();
            }
        }
        gateway.stop().await;
    })
    .await;
}
