"""Bad input gets the protocol's own clear answer and a counter, and everything else goes on."""

import re
import socket

import raw
from amqp_device import AmqpDevice, LinkDetached
from clients import MQTT_3, MQTT_5, coap_post, coap_post_file, http_post, http_post_bytes, mqtt_publish
from fieldgate import EVENTS, LISTENERS, message
from processes import Failure
from scenario import expect, expect_equal, scenario

NOT_AUTHORIZED = 0x87
TOPIC_NAME_INVALID = 0x90
PACKET_TOO_LARGE = 0x95
TOO_LARGE = 300 * 1024
"""More than the 256 KiB that a hub takes."""


@scenario("bad input: an unmapped topic or path is refused as such")
def unmapped(site, watch):
    device = "bad-unmapped"
    expect_equal("reason code", mqtt_publish(site, device, "nowhere/at/all", "lost", 1, MQTT_5), TOPIC_NAME_INVALID)
    # 3.1.1 has no negative PUBACK: the message is acknowledged and set aside, or the connection is closed.
    expect("PUBACK or close", mqtt_publish(site, device, "nowhere/at/all", "lost", 1, MQTT_3) in (0, None))
    expect_equal("CoAP code", coap_post(site, "nowhere/at/all", "lost")[1], "4.04")
    expect_equal("HTTP status", http_post(site, "nowhere/at/all", "lost")[0], 404)
    expect_equal("PUBACK", mqtt_publish(site, device, EVENTS.format(device) + "/", "found", 1, MQTT_5), 0)
    watch.expect(device, message("found"))


@scenario("bad input: an over-large payload is refused as such")
def too_large(site, watch):
    device = "bad-large"
    path = EVENTS.format(device)
    expect_equal("HTTP status", http_post_bytes(site, path, TOO_LARGE), 413)
    answer = raw.coap_exchange(site.ports["coap"], raw.coap_post(path, b"x" * 4000))
    expect_equal("CoAP code of one large datagram", raw.coap_code(answer), "4.13")
    # Without block-wise transfer, the critical option Block1 may be what is refused first.
    expect("CoAP code of a body in blocks", coap_post_file(site, path, 4000)[1] in ("4.02", "4.13"))
    for version in (4, 5):
        said = raw.mqtt_exchange(
            site.ports["mqtt"],
            raw.mqtt_connect(device, version) + raw.mqtt_publish(path + "/", b"x" * TOO_LARGE, version),
        )
        expect(f"CONNACK first, then no PUBACK: {said!r}", said[:1] == b"\x20" and b"\x40\x02\x00\x01" not in said)
        if version == 5:
            after_connack = said[2 + said[1] :]
            expect(
                f"DISCONNECT with 0x95: {said!r}",
                len(after_connack) >= 3 and after_connack[0] == raw.MQTT_DISCONNECT and after_connack[2] == PACKET_TOO_LARGE,
            )
    expect_equal("HTTP status", http_post(site, path, "small")[0], 204)
    watch.expect(device, message("small"))


@scenario("bad input: an AMQP message above the hub's limit is refused, and the device goes on")
def too_large_amqp(site, watch):
    device = "bad-large-amqp"
    with AmqpDevice(site, device) as peer:
        peer.authorise(site.hub.token(device))
        try:
            outcome = peer.send("x" * TOO_LARGE)
        except LinkDetached as detached:
            expect_equal("condition", detached.condition, "amqp:link:message-size-exceeded")
        else:
            expect_equal("outcome", outcome, "rejected")
    with AmqpDevice(site, device) as peer:
        peer.authorise(site.hub.token(device))
        expect_equal("outcome", peer.send("small"), "accepted")
    watch.expect(device, message("small"))


@scenario("bad input: a device cannot speak for another")
def foreign(site, watch):
    own, other = "bad-own", "bad-other"
    topic = EVENTS.format(other) + "/"
    expect_equal("reason code", mqtt_publish(site, own, topic, "forged", 1, MQTT_5), NOT_AUTHORIZED)
    expect("PUBACK or close", mqtt_publish(site, own, topic, "forged", 1, MQTT_3) in (0, None))
    with AmqpDevice(site, own) as peer:
        peer.authorise(site.hub.token(own))
        expect_equal("condition", peer.refusal(other), "amqp:unauthorized-access")
        # The name of a put-token is a claim; what counts is the scope that the token signs.
        peer.put_token(site.hub.token(own), device=other)
        expect_equal("condition after its own token under the other's name", peer.refusal(other), "amqp:unauthorized-access")
        expect_equal("outcome", peer.send("mine"), "accepted")
    expect_equal("HTTP status", http_post(site, EVENTS.format(other), "his")[0], 204)
    watch.expect(own, message("mine"))
    watch.expect(other, message("his"))


@scenario("bad input: a wrong token and an expired one are refused at $cbs")
def tokens(site, watch):
    device = "bad-token"
    good = site.hub.token(device)
    # An escape is one character of the signature.
    wrong = re.sub(r"sig=(%..|.)", lambda match: "sig=" + ("B" if match[1] == "A" else "A"), good)
    with AmqpDevice(site, device) as peer:
        expect_equal("condition before any token", peer.refusal(device), "amqp:unauthorized-access")
    with AmqpDevice(site, device) as peer:
        expect_equal("status of a wrong signature", peer.put_token(wrong), 401)
        cut = re.sub(r"sig=[^&]*", "sig=c2hvcnQ", good)
        expect("status of a signature too short to be one", peer.put_token(cut) in (400, 401))
        expect("status of no token at all", peer.put_token("open sesame") in (400, 401))
        expect_equal("status of an expired token", peer.put_token(site.hub.signed_token(device, -600)), 401)
        expect_equal("condition after these", peer.refusal(device), "amqp:unauthorized-access")
        expect_equal("status of a token made the same way", peer.put_token(site.hub.signed_token(device, 600)), 200)
        expect_equal("outcome", peer.send("now I may"), "accepted")
    watch.expect(device, message("now I may"))


def counted(metrics, protocol):
    """What one protocol's counters of trouble add up to."""
    trouble = re.compile(r"violation|malformed|reject|refus|error|invalid|dropped|bad_", re.IGNORECASE)
    return sum(value for name, value in metrics.items() if protocol in name.lower() and trouble.search(name))


@scenario("bad input: rubbish on every port, then all goes on and the counters moved")
def rubbish(site, watch):
    before = site.gateway.metrics()
    ports = dict(site.ports, hub=site.hub_port, admin=site.gateway.admin)
    for name, port in ports.items():
        data = raw.MALFORMED.get(name, []) + raw.rubbish(name, 12)
        for piece in data:
            if LISTENERS.get(name) == socket.SOCK_DGRAM:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                    udp.sendto(piece, ("127.0.0.1", port))
            else:
                raw.tcp_exchange(port, piece)
    everything_works(site, watch, "after-rubbish")
    after = site.gateway.metrics()
    still = [name for name in LISTENERS if counted(after, name) <= counted(before, name)]
    if still:
        trouble = {name: value for name, value in after.items() if value}
        raise Failure(f"no counter of trouble moved for {still}: {trouble}")


def everything_works(site, watch, prefix):
    """One message by each protocol."""
    for protocol, version in (("mqtt3", MQTT_3), ("mqtt5", MQTT_5)):
        device = f"{prefix}-{protocol}"
        expect_equal("PUBACK", mqtt_publish(site, device, EVENTS.format(device) + "/", "still here", 1, version), 0)
        watch.expect(device, message("still here"))
    device = f"{prefix}-coap"
    expect_equal("CoAP code", coap_post(site, EVENTS.format(device), "still here")[1], "2.04")
    watch.expect(device, message("still here"))
    device = f"{prefix}-http"
    expect_equal("HTTP status", http_post(site, EVENTS.format(device), "still here")[0], 204)
    watch.expect(device, message("still here"))
    device = f"{prefix}-amqp"
    with AmqpDevice(site, device) as peer:
        peer.authorise(site.hub.token(device))
        expect_equal("outcome", peer.send("still here"), "accepted")
    watch.expect(device, message("still here"))
