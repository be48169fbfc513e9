"""MQTT, CoAP and HTTP devices whose hub is a broker: Artemis, which relays over one link, and RabbitMQ, which does not."""

from brokers import Artemis, Brokers, RabbitMq
from clients import MQTT_3, MQTT_5, coap_post, http_post, mqtt_publish, mqtt_publisher, mqtt_subscriber
from fieldgate import LISTENERS, SHARED, Directory, Role, free_port
from peers import Loop
from proton import Message
from scenario import expect_equal, scenario

MAX_LINKS = 4
DEVICES = 12
"""More than there are links, where each address has one."""

RULES = """
version = 1

[[rule]]
name = "readings"
direction = "uplink"
to.address = "@NODE@/{device}"

[rule.from]
mqtt = "site/{device}/readings"
coap = "POST /site/{device}/readings"
http = "POST /site/{device}/readings"

[[rule]]
name = "closed"
direction = "uplink"
to.address = "closed.to/{device}"

[rule.from]
mqtt = "closed/{device}"
http = "POST /closed/{device}"

[[rule]]
name = "orders"
direction = "downlink"
from.hub = "@NODE@/{device}"
to.mqtt = { topic = "site/{device}/orders", qos = 1 }
"""
"""A queue for each device."""
NODES = {Artemis: ("", "q"), RabbitMq: ("/", "queue")}
"""What stands before each address, and where the addresses of devices begin: Artemis takes any, RabbitMQ has its own."""


class MappedSite:
    """A gateway whose mapped devices go to a broker, and somebody at the broker who reads and writes."""

    def __init__(self, kind):
        self.broker, self.routed = Brokers.get(kind, SHARED)
        self.prefix, self.node = NODES[kind]
        directory = Directory()
        user, password = self.broker.credentials
        secret = password.replace(" ", "%20")
        self.ports = {name: free_port() for name in LISTENERS}
        sections = {name: {"listen": [f"127.0.0.1:{port}"]} for name, port in self.ports.items()}
        sections["mappings"] = {"files": [directory.file("broker.toml", RULES.replace("@NODE@", self.node))]}
        sections["upstream"] = {
            "url": f"amqps://{user}:{secret}@localhost:{self.broker.port}",
            "ca_file": self.broker.certificates.ca,
            "profile": "amqp",
            "address_prefix": self.prefix,
            "max_links": MAX_LINKS,
        }
        self.gateway = Role("run", directory, "state", sections, "gateway")
        self.loop = Loop()

    def __enter__(self):
        self.gateway.start().ready()
        self.peer = self.loop.device(self.routed.port, "application")
        return self

    def __exit__(self, *_):
        self.loop.stop()
        self.gateway.stop()

    def queue(self, device):
        """How a link names a device's queue."""
        return f"{self.prefix}{self.node}/{device}"

    def readings(self, device, count):
        """What the broker has for a device."""
        end = self.peer.receiver(self.queue(device), f"reads {device}", credit=count)
        taken = end.take(count)
        for incoming in taken:
            incoming.accept()
        self.loop.round_trip(self.peer)
        end.close()
        return [incoming.body().decode() for incoming in taken]


def publish_all(site):
    """Every device sends by each protocol, and is told that the broker has it."""
    for number in range(DEVICES):
        device = f"q.d{number}"
        path = f"site/{device}/readings"
        expect_equal("PUBACK", mqtt_publish(site, device, path, "by mqtt", 1, MQTT_3), 0)
        expect_equal("code", coap_post(site, path, "by coap")[1], "2.04")
        expect_equal("status", http_post(site, path, "by http")[0], 204)
    for number in range(DEVICES):
        expect_equal(f"of q.d{number}", site.readings(f"q.d{number}", 3), ["by mqtt", "by coap", "by http"])


def in_order(site):
    """A hundred messages of one device while another one sends as well."""
    publishers = {name: mqtt_publisher(site, name, f"site/{name}/readings") for name in ("q.left", "q.right")}
    for number in range(100):
        for publisher in publishers.values():
            publisher.write_line(str(number))
    for name, publisher in publishers.items():
        publisher.close_stdin()
        expect_equal("exit status", publisher.wait(), 0)
        expect_equal(f"of {name}", site.readings(name, 100), [str(number) for number in range(100)])


def order(site):
    """The broker's queue of a device's orders is a subscription of the device."""
    subscriber = mqtt_subscriber(site, "q.valve", "site/q.valve/orders", MQTT_5)
    sender = site.peer.sender(site.queue("q.valve"), "orders")
    site.loop.wait(lambda: sender.link.credit, "credit")
    expect_equal("outcome", sender.sent(Message(body=b"open")), "accepted")
    subscriber.wait_for_line("command site/q.valve/orders open")
    expect_equal("exit status", subscriber.wait(), 0)


def every_broker(what):
    """A scenario for each of the two."""

    def register(function):
        for kind in (Artemis, RabbitMq):

            def run(kind=kind):
                with MappedSite(kind) as site:
                    function(site)

            scenario(f"{kind.name}, mapped devices: {what}", own=True)(run)
        return function

    return register


every_broker("three protocols, more addresses than links")(publish_all)
every_broker("order")(in_order)
every_broker("orders of the broker")(order)


@scenario("Artemis, mapped devices: an address that there is not is refused, and the others go on", own=True)
def no_such_address():
    with MappedSite(Artemis) as site:
        # Over the link that leads anywhere Artemis says why in words only: the condition says no more than a refusal.
        expect_equal("status", http_post(site, "closed/lost", "x")[0], 400)
        expect_equal("PUBACK", mqtt_publish(site, "lost", "closed/lost", "x", 1, MQTT_5), 0x99)
        expect_equal("status", http_post(site, "site/q.found/readings", "x")[0], 204)
        expect_equal("what the broker has", site.readings("q.found", 1), ["x"])
