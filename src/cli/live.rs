//! The tools against a stand-in hub that is made of another implementation: TLS, the token, the links, the settling.

use fe2o3_amqp::acceptor::{
    ConnectionAcceptor, LinkAcceptor, LinkEndpoint, SaslAnonymousMechanism, SessionAcceptor,
};
use fe2o3_amqp::types::messaging::{
    AmqpValue, ApplicationProperties, Body, Data, Message, MessageAnnotations, MessageId, Outcome, Properties,
};
use fe2o3_amqp::types::primitives::{Binary, SimpleValue, Value};
use fe2o3_amqp::{Receiver, Sender};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::send::ask;
use super::watch::{log, print};
use super::*;
use crate::output::unix_seconds;
use crate::sas::{SharedKey, Token};
use crate::service::Service;
use crate::service::watch::Readers;
use crate::state::tests::Scratch;
use crate::tls;

/// What the stand-in saw.
#[derive(Debug)]
enum Seen {
    /// A watcher's source address and filter, as text.
    Watching(String),
    /// What became of a feedback message that answers somebody else's command.
    Foreign(Outcome),
}

struct Stand {
    runtime: Runtime,
    state: StateDir,
    seen: mpsc::UnboundedReceiver<Seen>,
    _scratch: Scratch,
}

impl Stand {
    /// A hub with a key, on a free port; `noted_key` is the key that the tools are told, if it is not the hub's.
    fn new(noted_key: Option<&str>) -> Self {
        let scratch = Scratch::new();
        let state = StateDir::locate(Some(&scratch.0.join("state"))).unwrap();
        let locked = state.lock().unwrap();
        let acceptor = TlsAcceptor::from(tls::server(locked.hub_identity("localhost").unwrap()).unwrap());
        let key = SharedKey::from_base64(locked.policy_key().unwrap().expose()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        locked.write_service_connection_string(listener.local_addr().unwrap().port()).unwrap();
        if let Some(noted) = noted_key {
            let file = state.path().join("service-connection-string");
            let text = std::fs::read_to_string(&file).unwrap();
            let (rest, _) = text.split_once(";SharedAccessKey=").unwrap();
            std::fs::write(file, format!("{rest};SharedAccessKey={noted}")).unwrap();
        }
        let (report, seen) = mpsc::unbounded_channel();
        runtime.spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            hub(acceptor.accept(stream).await.unwrap(), key, report).await;
        });
        Self { runtime, state, seen, _scratch: scratch }
    }
}

async fn hub(
    stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    key: SharedKey,
    report: mpsc::UnboundedSender<Seen>,
) {
    let acceptor = ConnectionAcceptor::builder()
        .container_id("stand-in")
        .sasl_acceptor(SaslAnonymousMechanism::new())
        .build();
    let mut connection = acceptor.accept(stream).await.unwrap();
    let mut session = SessionAcceptor::new().accept(&mut connection).await.unwrap();
    let (cbs, mut cbs_sender) = (LinkAcceptor::new(), None);
    let (mut cbs_receiver, mut feedback) = (None, None);
    while let Ok(link) = cbs.accept(&mut session).await {
        match link {
            LinkEndpoint::Sender(sender) => {
                let source = sender.source().clone().unwrap();
                match source.address.as_deref().unwrap() {
                    "$cbs" => cbs_sender = Some(sender),
                    "/messages/serviceBound/feedback" => feedback = Some(sender),
                    address => {
                        report.send(Seen::Watching(format!("{address} {:?}", source.filter))).unwrap();
                        tokio::spawn(events(sender));
                    }
                }
            }
            LinkEndpoint::Receiver(receiver) => {
                let target = receiver.target().clone().unwrap();
                match target.address.as_deref().unwrap() {
                    "$cbs" => cbs_receiver = Some(receiver),
                    "/messages/devicebound" => {
                        tokio::spawn(command(receiver, feedback.take().unwrap(), report.clone()));
                    }
                    other => panic!("a link to {other}"),
                }
            }
        }
        if let (Some(receiver), Some(sender)) = (&mut cbs_receiver, &mut cbs_sender) {
            answer_token(receiver, sender, &key).await;
            (cbs_receiver, cbs_sender) = (None, None);
        }
    }
    drop(connection);
}

async fn answer_token(receiver: &mut Receiver, sender: &mut Sender, key: &SharedKey) {
    let request = receiver.recv::<AmqpValue<String>>().await.unwrap();
    receiver.accept(&request).await.unwrap();
    let application = request.message().application_properties.as_ref().unwrap();
    assert_eq!(application.get("operation"), Some(&SimpleValue::String("put-token".into())));
    let token = Token::parse(&request.body().0).unwrap();
    let (status, description) = match token.verify(&[key], unix_seconds()) {
        Ok(()) => (200, "OK"),
        Err(_) => (401, "the signature is another's"),
    };
    let id = request.message().properties.as_ref().unwrap().message_id.clone().unwrap();
    let answer = Message::builder()
        .properties(Properties::builder().correlation_id(id).build())
        .application_properties(
            ApplicationProperties::builder()
                .insert("status-code", status)
                .insert("status-description", description)
                .build(),
        )
        .body(AmqpValue(Value::Null))
        .build();
    sender.send(answer).await.unwrap();
}

async fn events(mut sender: Sender) {
    for number in 0..5_i64 {
        let message = Message::builder()
            .message_annotations(
                MessageAnnotations::builder()
                    .insert("iothub-connection-device-id", "pump-1")
                    .insert("x-opt-sequence-number", Value::Long(number))
                    .build(),
            )
            .body(Data(Binary::from(format!("reading {number}").into_bytes())))
            .build();
        if sender.send(message).await.is_err() {
            return;
        }
    }
}

/// Takes one command; its feedback comes behind that of somebody else's.
async fn command(mut receiver: Receiver, mut feedback: Sender, report: mpsc::UnboundedSender<Seen>) {
    let command = receiver.recv::<Body<Value>>().await.unwrap();
    receiver.accept(&command).await.unwrap();
    let properties = command.message().properties.clone().unwrap();
    assert_eq!(properties.to.as_deref(), Some("/devices/pump-1/messages/devicebound"));
    let Some(MessageId::String(id)) = properties.message_id else { panic!("{properties:?}") };
    let record = |id: &str| {
        let text = format!(r#"[{{"originalMessageId":"{id}","statusCode":"Rejected","deviceId":"pump-1"}}]"#);
        Message::builder().body(Data(Binary::from(text.into_bytes()))).build()
    };
    let foreign = feedback.send_batchable(record("somebody's")).await.unwrap();
    let own = feedback.send_batchable(record(&id)).await.unwrap();
    assert!(matches!(own.await.unwrap(), Outcome::Accepted(_)));
    if let Ok(outcome) = foreign.await {
        let _ = report.send(Seen::Foreign(outcome));
    }
}

fn watch(json: bool, count: u64) -> Watch {
    Watch {
        json,
        group: "$Default".into(),
        partition: Some(3),
        from: From::Now,
        count: NonZeroU64::new(count),
    }
}

#[test]
fn a_watcher_reads_what_the_hub_has() {
    let mut stand = Stand::new(None);
    let watch = watch(false, 3);
    let lines = stand.runtime.block_on(async {
        let mut service = Service::connect(&stand.state).await.unwrap();
        let readers = Readers::attach(&mut service, log(&watch)).await.unwrap();
        let mut lines = Vec::new();
        print(readers, &watch, |line| {
            lines.push(line.to_owned());
            Ok(())
        })
        .await
        .unwrap();
        service.close().await;
        lines
    });
    assert_eq!(lines, ["  pump-1  reading 0", "  pump-1  reading 1", "  pump-1  reading 2"]);
    let Some(Seen::Watching(source)) = stand.seen.blocking_recv() else { panic!() };
    assert!(source.starts_with("messages/events/ConsumerGroups/$Default/Partitions/3 "), "{source}");
    assert!(source.contains("amqp.annotation.x-opt-offset > '@latest'"), "{source}");
}

#[test]
fn a_sender_hears_of_its_own_command_and_leaves_the_others() {
    let mut stand = Stand::new(None);
    let command =
        Send { device: DeviceId::new("pump-1").unwrap(), text: "open".into(), ttl: None, properties: vec![] };
    let record = stand.runtime.block_on(async {
        let mut service = Service::connect(&stand.state).await.unwrap();
        let record = ask(&mut service, &command).await.unwrap();
        service.close().await;
        record
    });
    assert_eq!(record.status_code, "Rejected");
    if let Ok(Seen::Foreign(outcome)) = stand.seen.try_recv() {
        panic!("a feedback of somebody else got the outcome {outcome:?}");
    }
}

#[test]
fn a_key_that_is_not_the_hub_s_is_refused_in_words() {
    let stand = Stand::new(Some("bm90LXRoZS1odWItcy1rZXk="));
    let error = stand.runtime.block_on(Service::connect(&stand.state)).err().unwrap().to_string();
    assert_eq!(error, "the hub does not take this directory's key: the signature is another's");
}

#[test]
fn a_hub_that_is_not_there_is_named() {
    let scratch = Scratch::new();
    let state = StateDir::locate(Some(&scratch.0.join("state"))).unwrap();
    let locked = state.lock().unwrap();
    locked.hub_identity("localhost").unwrap();
    // A port that was free a moment ago, and that nobody listens on.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    locked.write_service_connection_string(port).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let error = runtime.block_on(Service::connect(&state)).err().unwrap().to_string();
    assert!(error.starts_with(&format!("no hub answers at localhost:{port}: ")), "{error}");
    assert!(error.contains("--state-dir"), "{error}");
}
