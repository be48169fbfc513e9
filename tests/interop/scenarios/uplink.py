"""Each client sends; the hub has it under the right device, with body and properties."""

from amqp_device import AmqpDevice
from clients import MQTT_3, MQTT_5, coap_post, http_post, mqtt_publish
from fieldgate import EVENTS, message
from scenario import expect_equal, scenario

BAG = "site=berlin&note=a%20b%2Fc&%24.ct=application%2Fjson&%24.mid=m-1"
PROPERTIES = {"site": "berlin", "note": "a b/c"}


def mqtt(site, watch, device, version):
    topic = EVENTS.format(device) + "/"
    mqtt_publish(site, device, topic + BAG, "quality of service 0", 0, version)
    expect_equal("PUBACK", mqtt_publish(site, device, topic + BAG, "quality of service 1", 1, version), 0)
    expect_equal("PUBACK", mqtt_publish(site, device, topic, "no properties", 1, version), 0)
    watch.expect(
        device,
        message("quality of service 0", PROPERTIES, content_type="application/json", message_id="m-1"),
        message("quality of service 1", PROPERTIES, content_type="application/json", message_id="m-1"),
        message("no properties"),
    )


@scenario("uplink: mosquitto_pub, MQTT 3.1.1, QoS 0 and 1, property bag")
def mqtt_3(site, watch):
    mqtt(site, watch, "up-mqtt-3", MQTT_3)


@scenario("uplink: mosquitto_pub, MQTT 5, QoS 0 and 1, property bag")
def mqtt_5(site, watch):
    mqtt(site, watch, "up-mqtt-5", MQTT_5)


@scenario("uplink: mosquitto_pub, MQTT 5, user property and content type beside the topic")
def mqtt_5_properties(site, watch):
    device = "up-mqtt-5-own"
    own = [*("-D", "publish", "user-property", "line", "7"), *("-D", "publish", "content-type", "text/plain")]
    topic = EVENTS.format(device) + "/site=berlin"
    expect_equal("PUBACK", mqtt_publish(site, device, topic, "21 degrees", 1, MQTT_5, *own), 0)
    watch.expect(device, message("21 degrees", {"site": "berlin", "line": "7"}, content_type="text/plain"))


@scenario("uplink: coap-client, confirmable POST, a property as query")
def coap_confirmable(site, watch):
    device = "up-coap-con"
    path = EVENTS.format(device) + "?site=berlin"
    kind, code = coap_post(site, path, '{"t":21}', content_format="application/json")
    expect_equal("code", code, "2.04")
    if kind not in ("ACK", "CON"):
        raise AssertionError(f"the response to a confirmable request is a {kind}")
    watch.expect(device, message('{"t":21}', {"site": "berlin"}, content_type="application/json"))


@scenario("uplink: coap-client, non-confirmable POST")
def coap_non_confirmable(site, watch):
    device = "up-coap-non"
    answer = coap_post(site, EVENTS.format(device), "21 degrees", confirmable=False)
    expect_equal("response", answer, ("NON", "2.04"))
    watch.expect(device, message("21 degrees"))


@scenario("uplink: curl, POST with iothub-app headers")
def http(site, watch):
    device = "up-http"
    # curl itself says that the body is a form; what the message is says the hub's own header.
    headers = [
        *("iothub-contenttype: application/json", "iothub-messageid: h-1"),
        *("iothub-app-site: berlin", "IoTHub-App-Line: 7"),
    ]
    expect_equal("status", http_post(site, EVENTS.format(device) + "?api-version=2020-03-13", '{"t":21}', headers)[0], 204)
    watch.expect(
        device, message('{"t":21}', {"site": "berlin", "line": "7"}, content_type="application/json", message_id="h-1")
    )


def amqp(site, watch, device, sasl):
    with AmqpDevice(site, device, sasl) as peer:
        peer.authorise(site.hub.token(device))
        sender = peer.sender()
        for number in range(1, 4):
            outcome = peer.send(
                f"reading {number}",
                {"site": "berlin", "number": number, "last": number == 3},
                sender,
                content_type="text/plain",
                id=f"a-{number}",
            )
            expect_equal("outcome", outcome, "accepted")
        peer.send_settled("settled beforehand")
    readings = [
        message(
            f"reading {number}",
            {"site": "berlin", "number": number, "last": number == 3},
            content_type="text/plain",
            message_id=f"a-{number}",
        )
        for number in range(1, 4)
    ]
    watch.expect(device, *readings, message("settled beforehand"))


@scenario("uplink: Qpid Proton, AMQP 1.0, token to $cbs, SASL ANONYMOUS")
def amqp_anonymous(site, watch):
    amqp(site, watch, "up-amqp-sasl", sasl=True)


@scenario("uplink: Qpid Proton, AMQP 1.0, token to $cbs, no SASL layer")
def amqp_bare(site, watch):
    amqp(site, watch, "up-amqp-bare", sasl=False)


@scenario("uplink: Qpid Proton, a message of 200 kB in many frames")
def amqp_large(site, watch):
    device = "up-amqp-large"
    body = "".join(f"{number:07d}\n" for number in range(25_000))
    with AmqpDevice(site, device) as peer:
        peer.authorise(site.hub.token(device))
        expect_equal("outcome", peer.send(body), "accepted")
    watch.expect(device, message(body))
