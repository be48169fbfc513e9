//! What a device is told: for everything that a hub may do with a message, and for each protocol, what `DESIGN` says,
//! and not before the hub has done it.

use bytes::Bytes;
use fieldgate_mqtt::Version::{V5, V311};

use super::hub::{Answer, Hub, Message, error};
use super::mqtt::{Mqtt, Told};
use super::requests::{Coap, Heard, Http};
use super::world::{Gateway, Lines, within};

/// What each device is to be told.
struct Expected {
    mqtt_3: Told,
    mqtt_5: Told,
    coap: &'static str,
    http: u16,
}

/// The answers name a time to wait.
const WAITS: [u16; 2] = [429, 503];

const SETTINGS: Lines<'_> = Lines {
    coap: "ack_delay = \"20ms\"\nanswer_time_out = \"1s\"",
    http: "answer_time_out = \"1s\"",
    upstream: "hold = \"100ms\"",
    ..Lines::NONE
};

/// A gateway, a hub, and a device of each kind.
struct Scene {
    mqtt_3: Mqtt,
    mqtt_5: Mqtt,
    con: Coap,
    non: Coap,
    http: Http,
    gateway: Gateway,
    hub: Hub,
}

impl Scene {
    async fn new(hub: Hub, lines: Lines<'_>) -> Self {
        let gateway = Gateway::scripted(&hub, lines).await;
        Self {
            mqtt_3: gateway.mqtt(V311, "m3").await,
            mqtt_5: gateway.mqtt(V5, "m5").await,
            con: gateway.coap().await,
            non: gateway.coap().await,
            http: gateway.http().await,
            gateway,
            hub,
        }
    }

    /// Each device sends, and says who it is.
    async fn send(&mut self) -> [fieldgate_mqtt::PacketId; 2] {
        self.con.event("con", b"con", true).await;
        self.non.event("non", b"non", false).await;
        self.http.event("http", b"http").await;
        [self.mqtt_3.event("m3", b"m3").await, self.mqtt_5.event("m5", b"m5").await]
    }

    /// All of it is at the hub.
    async fn arrived(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        for _ in 0..5 {
            messages.push(self.hub.message().await);
        }
        let mut bodies: Vec<Bytes> = messages.iter().map(|message| message.body.clone()).collect();
        bodies.sort();
        assert_eq!(bodies, ["con", "http", "m3", "m5", "non"]);
        messages
    }

    /// The hub has not answered, and nobody has been told anything but that the gateway has the request.
    async fn nobody_is_told(&mut self) {
        assert_eq!(self.con.hear().await, Heard::EmptyAck);
        self.mqtt_3.ping().await;
        self.mqtt_5.ping().await;
        assert_eq!((self.con.concluded(), self.non.concluded()), (None, None));
        assert!(self.http.is_silent());
    }

    async fn asked_are_told(&mut self, expected: &Expected) {
        let has_max_age = WAITS.contains(&expected.http);
        assert_eq!(self.con.hear().await, Heard::Separate);
        let answers = [self.con.concluded().unwrap(), self.non.answer().await];
        for answer in answers {
            assert_eq!((answer.code.as_str(), answer.has_max_age), (expected.coap, has_max_age));
        }
        let answer = self.http.answer().await;
        assert_eq!(answer.status, expected.http, "{answer:?}");
        assert_eq!(answer.head.contains("retry-after: "), has_max_age, "{answer:?}");
        assert_eq!(answer.head.contains("www-authenticate: "), expected.http == 401, "{answer:?}");
    }

    async fn all_are_told(&mut self, [id_3, id_5]: [fieldgate_mqtt::PacketId; 2], expected: &Expected) {
        self.asked_are_told(expected).await;
        assert_eq!(self.mqtt_3.told(id_3).await, expected.mqtt_3);
        assert_eq!(self.mqtt_5.told(id_5).await, expected.mqtt_5);
    }
}

/// The hub gets a message of each device and then does something.
async fn told(expected: Expected, what: impl FnOnce(&Hub, &[Message])) {
    within(async {
        let mut scene = Scene::new(Hub::start(), SETTINGS).await;
        let ids = scene.send().await;
        let messages = scene.arrived().await;
        scene.nobody_is_told().await;
        what(&scene.hub, &messages);
        scene.all_are_told(ids, &expected).await;
    })
    .await;
}

async fn answered(answer: Answer, expected: Expected) {
    told(expected, |hub, messages| messages.iter().for_each(|message| hub.settle(message, &answer))).await;
}

const fn expected(mqtt_3: Told, mqtt_5: Told, coap: &'static str, http: u16) -> Expected {
    Expected { mqtt_3, mqtt_5, coap, http }
}

/// 3.1.1 has no negative acknowledgement: it is acknowledged, and counted.
const fn refused(code: u8, coap: &'static str, http: u16) -> Expected {
    expected(Told::PubAck(0), Told::PubAck(code), coap, http)
}

const RELEASED: Expected = expected(Told::Closed, Told::Disconnect(0x89), "5.03", 503);
const UNKNOWN: Expected = expected(Told::Closed, Told::Disconnect(0x89), "5.04", 504);

#[tokio::test]
async fn accepted() {
    answered(Answer::Accept, expected(Told::PubAck(0), Told::PubAck(0), "2.04", 204)).await;
}

#[tokio::test]
async fn rejected_as_not_permitted() {
    answered(Answer::Reject("amqp:not-allowed"), refused(0x87, "4.03", 403)).await;
}

#[tokio::test]
async fn rejected_for_want_of_authority() {
    let closed = expected(Told::Closed, Told::Disconnect(0x87), "4.01", 401);
    answered(Answer::Reject("amqp:unauthorized-access"), closed).await;
}

#[tokio::test]
async fn rejected_as_not_found() {
    answered(Answer::Reject("amqp:not-found"), refused(0x90, "4.04", 404)).await;
}

#[tokio::test]
async fn rejected_as_too_large() {
    let closed = expected(Told::PubAck(0), Told::Disconnect(0x95), "4.13", 413);
    answered(Answer::Reject("amqp:link:message-size-exceeded"), closed).await;
}

#[tokio::test]
async fn rejected_for_a_limit() {
    answered(Answer::Reject("amqp:resource-limit-exceeded"), refused(0x97, "4.29", 429)).await;
}

#[tokio::test]
async fn rejected_by_a_throttle() {
    let throttled = Answer::Reject("com.microsoft:device-container-throttled");
    answered(throttled, refused(0x97, "4.29", 429)).await;
}

#[tokio::test]
async fn rejected_for_its_content() {
    answered(Answer::Reject("amqp:decode-error"), refused(0x99, "4.00", 400)).await;
}

#[tokio::test]
async fn released() {
    answered(Answer::Release, RELEASED).await;
}

#[tokio::test]
async fn modified() {
    answered(Answer::Modify, RELEASED).await;
}

#[tokio::test]
async fn unanswered_when_the_link_is_detached() {
    told(UNKNOWN, |hub, messages| {
        messages.iter().for_each(|message| hub.detach(message.place, "amqp:link:detach-forced"));
    })
    .await;
}

#[tokio::test]
async fn unanswered_when_the_session_ends() {
    told(UNKNOWN, |hub, messages| {
        messages.iter().for_each(|message| hub.end(message.place, "amqp:internal-error"));
    })
    .await;
}

#[tokio::test]
async fn unanswered_when_the_connection_is_closed() {
    told(UNKNOWN, |hub, messages| hub.close(messages[0].place.connection, "amqp:connection:forced")).await;
}

#[tokio::test]
async fn unanswered_when_the_connection_is_cut() {
    told(UNKNOWN, |hub, messages| hub.cut(messages[0].place.connection)).await;
}

/// Who asks is told in its own time; who publishes waits for the hub's.
#[tokio::test]
async fn unanswered_when_the_hub_is_silent() {
    within(async {
        let mut scene = Scene::new(Hub::start(), SETTINGS).await;
        let [id_3, id_5] = scene.send().await;
        let messages = scene.arrived().await;
        scene.nobody_is_told().await;
        scene.asked_are_told(&UNKNOWN).await;
        scene.mqtt_3.ping().await;
        scene.mqtt_5.ping().await;
        // The hub's late answers find those who wait, and nobody else.
        messages.iter().for_each(|message| scene.hub.settle(message, &Answer::Accept));
        assert_eq!(scene.mqtt_3.told(id_3).await, Told::PubAck(0));
        assert_eq!(scene.mqtt_5.told(id_5).await, Told::PubAck(0));
        scene.http.event("http", b"again").await;
        let again = scene.hub.message_of("again").await;
        scene.hub.settle(&again, &Answer::Accept);
        assert_eq!(scene.http.answer().await.status, 204);
        assert!(scene.gateway.metric("fieldgate_coap_outcomes_late_total").await >= 2);
    })
    .await;
}

#[tokio::test]
async fn released_while_the_hub_gives_no_credit() {
    within(async {
        let hub = Hub::start();
        hub.behave(|manner| manner.credit = 0);
        // Time for the gateway to find, once a second, that what was not sent has waited long enough.
        let http = "answer_time_out = \"4s\"";
        let coap = "ack_delay = \"20ms\"\nanswer_time_out = \"4s\"";
        let mut scene = Scene::new(hub, Lines { coap, http, ..SETTINGS }).await;
        let ids = scene.send().await;
        scene.nobody_is_told().await;
        scene.asked_are_told(&RELEASED).await;
        scene.mqtt_3.ping().await;
        scene.mqtt_5.ping().await;
        // What was released is not sent any more; what waits is.
        for _ in 0..5 {
            let place = scene
                .hub
                .wait(|seen| match seen {
                    super::hub::Seen::Attached { place, .. } => Some(*place),
                    _ => None,
                })
                .await;
            scene.hub.credit(place, 10);
        }
        for body in ["m3", "m5"] {
            let message = scene.hub.message_of(body).await;
            scene.hub.settle(&message, &Answer::Accept);
        }
        assert_eq!(scene.mqtt_3.told(ids[0]).await, Told::PubAck(0));
        assert_eq!(scene.mqtt_5.told(ids[1]).await, Told::PubAck(0));
        assert!(!scene.hub.has_seen(|seen| matches!(seen, super::hub::Seen::Message(_))));
    })
    .await;
}

#[tokio::test]
async fn rejected_when_the_hub_refuses_the_link() {
    within(async {
        let hub = Hub::start();
        hub.behave(|manner| manner.refuses = Some(error("amqp:not-found")));
        let mut scene = Scene::new(hub, SETTINGS).await;
        let [id_3, id_5] = scene.send().await;
        // The refusal may be quicker than the empty acknowledgement.
        for answer in [scene.con.answer().await, scene.non.answer().await] {
            assert_eq!(answer.code, "4.04");
        }
        assert_eq!(scene.http.answer().await.status, 404);
        assert_eq!(scene.mqtt_3.told(id_3).await, Told::PubAck(0));
        assert_eq!(scene.mqtt_5.told(id_5).await, Told::PubAck(0x90));
    })
    .await;
}

#[tokio::test]
async fn released_while_the_hub_is_away() {
    within(async {
        let hub = Hub::start();
        hub.behave(|manner| manner.takes = 0);
        // Without `hold` nobody is kept waiting.
        let gateway = Gateway::away(&hub, Lines { upstream: "hold = \"0s\"", ..SETTINGS }).await;
        assert!(gateway.until_health(503).await.contains(r#""upstream":"#));
        let (mut con, mut http) = (gateway.coap().await, gateway.http().await);
        let (mut mqtt_3, mut mqtt_5) = (gateway.mqtt(V311, "m3").await, gateway.mqtt(V5, "m5").await);
        con.event("con", b"con", true).await;
        http.event("http", b"http").await;
        let (id_3, id_5) = (mqtt_3.event("m3", b"m3").await, mqtt_5.event("m5", b"m5").await);
        let answer = con.answer().await;
        assert_eq!((answer.code.as_str(), answer.has_max_age), ("5.03", true));
        let answer = http.answer().await;
        assert_eq!(answer.status, 503);
        assert!(answer.head.contains("retry-after: "));
        assert_eq!(mqtt_3.told(id_3).await, Told::Closed);
        assert_eq!(mqtt_5.told(id_5).await, Told::Disconnect(0x89));
    })
    .await;
}
