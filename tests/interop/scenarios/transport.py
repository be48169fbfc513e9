"""AMQP over WebSocket, and EXTERNAL, with software that is not ours on the other side: rhea with `ws`, and Artemis."""

from proton import Message

from brokers import ROUTES, Artemis, Brokers
from fieldgate import CA_FILE, COMMANDS, EVENTS, HUB_NAME, PER_CONNECTION, SHARED, RoutedGateway, message
from peers import Loop
from processes import Failure
from routed import World
from scenario import expect, expect_equal, scenario
from scenarios.listeners import certificates, profile
from stacks import Refused, Rhea, content

PATH = "/$iothub/websocket"


def web_device(port, container, ca=None, scheme="wss", path=PATH, subprotocol="AMQPWSB10"):
    """A device of rhea's, over the WebSocket of `ws`."""
    url = f"{scheme}://localhost:{port}{path}"
    return Rhea(port, container, url=url, ca=ca, subprotocol=subprotocol)


@scenario("websocket: rhea sends to the local hub, takes a command, and a hundred messages in one piece")
def local_hub(site, watch):
    device = "web-rhea"
    ca = f"{site.hub.state}/{CA_FILE}"
    with web_device(site.hub_port, device, ca) as peer:
        status = peer.ask("token", audience=f"{HUB_NAME}/devices/{device}", token=site.hub.token(device))["status"]
        expect_equal("status of the token", status, 200)
        peer.ask("sender", link="up", address=EVENTS.format(device))
        for size in (1, 200_000):
            expect_equal("outcome", peer.ask("send", link="up", size=size)["outcome"], "accepted")
        expect_equal("accepted", peer.ask("burst", link="up", count=100, size=20_000)["accepted"], 100)
        watch.wait(device, 102)
        expect_equal("body", watch.received(device)[1]["body"], content(200_000).decode())
        peer.ask("receiver", link="down", address=COMMANDS.format(device))
        peer.ask("credit", link="down", credit=1)
        sender = site.hub.start_send(device, "open the valve")
        expect_equal("text", peer.ask("receive", link="down", then="accept")["body"], "open the valve")
        expect_equal("exit status of hub send", sender.wait(), 0)


@scenario("websocket: what the hub does not serve is refused, and its port goes on")
def refused(site, watch):
    ca = f"{site.hub.state}/{CA_FILE}"
    for wrong in ({"path": "/elsewhere"}, {"subprotocol": "mqtt"}):
        try:
            web_device(site.hub_port, "web-wrong", ca, **wrong)
        except Refused:
            continue
        raise AssertionError(f"it came in with {wrong}")
    with web_device(site.hub_port, "web-right", ca, path="/$servicebus/websocket?x=y") as peer:
        status = peer.ask("token", audience="web-right", token="SharedAccessSignature sr=x&sig=y&se=1")["status"]
        expect(f"status {status}", status in (400, 401))


def through_a_listener(tls):
    """A device of rhea's comes in by WebSocket, one of Proton's beside it without, by the same port."""
    ours = certificates()
    world = World(SHARED, websocket=True, **({"tls": profile()} if tls else {}))
    try:
        way = {"ca": ours.ca} if tls else {"scheme": "ws"}
        with web_device(world.gateway.port, "web", **way) as peer:
            # The attach is answered when the hub has answered it, which this thread plays.
            peer.tell("sender", link="up", address="q/1")
            at_hub = world.hub.wait_link("q/1")
            at_hub.link.flow(10)
            for at, size in enumerate((10, 300_000)):
                peer.tell("send", link="up", size=size)
                incoming = at_hub.take(at + 1)[at]
                expect("content", bytes(incoming.body()) == content(size))
                incoming.accept()
                world.loop.wait(peer.has_answered, "what the device hears")
                expect_equal("outcome", peer.hear().get("outcome"), "accepted")
        if not tls:
            up, at_hub = world.upstream(world.device(), "q/2")
            sent = up.send(Message(body="direct"))
            at_hub.take()[0].accept()
            expect_equal("outcome", up.outcome(sent), "accepted")
    except Failure as failure:
        raise Failure(f"{failure}\n{world.gateway.role.process.tail()}") from None
    finally:
        world.close()


@scenario("websocket: rhea through a listener in the clear, which takes plain AMQP as well", own=True)
def clear_listener():
    through_a_listener(tls=False)


@scenario("websocket: rhea through a listener with TLS", own=True)
def secure_listener():
    through_a_listener(tls=True)


def exchange(gateway, name):
    """A message to the broker and back, through this gateway."""
    loop = Loop()
    try:
        device = loop.device(gateway.port, name)
        address = f"q.{name}"
        up = device.sender(address, "up")
        for size in (10, 200_000):
            sent = up.send(Message(body=content(size)))
            expect_equal("outcome", up.outcome(sent), "accepted")
        down = device.receiver(address, "down", credit=2)
        for at, size in enumerate((10, 200_000)):
            incoming = down.take(at + 1)[at]
            expect("content", bytes(incoming.body()) == content(size))
            incoming.accept()
    except Failure as failure:
        raise Failure(f"{failure}\n{gateway.role.process.tail()}") from None
    finally:
        loop.stop()


def to_artemis(name, **more):
    broker, _ = Brokers.get(Artemis, PER_CONNECTION)
    port = more.pop("port", lambda broker: broker.port)(broker)
    more = {key: value(broker) if callable(value) else value for key, value in more.items()}
    gateway = RoutedGateway(port, broker.certificates.ca, SHARED, ROUTES, **more).start()
    try:
        exchange(gateway, name)
    finally:
        gateway.stop()


@scenario("Artemis: reached over a WebSocket", own=True)
def artemis_websocket():
    web = {"transport": "websocket", "websocket_path": "/", "websocket_protocol": "amqp"}
    to_artemis("websocket", connector=web)


@scenario("Artemis: the gateway proves itself by its certificate, SASL EXTERNAL", own=True)
def artemis_external():
    def identity(broker):
        cert, key = broker.certificates.issue("gateway")
        return {"cert_file": cert, "private_key_file": key}

    external = {"sasl_mechanisms": ["EXTERNAL"]}
    to_artemis("external", port=lambda broker: broker.external_port, profile=identity, connector=external)
