"""A real broker that dies under the devices and comes back: their links live through it."""

from proton import Message

from brokers import START_DEADLINE, Artemis, RabbitMq
from fieldgate import SHARED, RoutedGateway
from peers import Loop
from processes import Failure
from scenario import SCENARIOS, expect, expect_equal


def restarted(kind):
    """Kills the broker while twenty devices send and one listens, starts it again, and looks at what they were told."""
    broker = kind().launch().ready()
    loop = Loop()
    gateway = RoutedGateway(broker.port, broker.certificates.ca, SHARED, [broker.address("q")], broker.credentials).start()
    try:
        play(broker, gateway, loop)
    except Failure as failure:
        raise Failure(f"{failure}\n{gateway.role.process.tail()}") from None
    finally:
        loop.stop()
        gateway.role.process.kill()
        broker.stop()


def play(broker, gateway, loop):
    queue = broker.address("q.restarted")
    devices = [loop.device(gateway.port, f"device-{number}") for number in range(20)]
    senders = [device.sender(queue, "up") for device in devices]
    listener = loop.device(gateway.port, "listener")
    down = listener.receiver(queue, "down", credit=100)

    def send_all(word):
        """One message of each device, once it has credit; their outcomes."""
        for up in senders:
            loop.wait(lambda up=up: up.link.credit > 0, "credit", START_DEADLINE)
        sent = [(up, up.send(Message(body=f"{word} {number}"))) for number, up in enumerate(senders)]
        return [up.outcome(one) for up, one in sent]

    expect_equal("outcomes before", send_all("before"), ["accepted"] * 20)
    for incoming in down.take(20):
        incoming.accept()
    expect("the broker took the dispositions", loop.round_trip(listener) is None)

    broker.stop()
    for up in senders:
        up.wait_credit(0)
    expect_equal("links that ended", [end.ended for end in [*senders, down] if end.ended], [])

    broker.launch().ready()
    expect_equal("outcomes afterwards", send_all("after"), ["accepted"] * 20)
    bodies = set()
    seen = 20
    while len(bodies) < 20:
        # A broker with a disk may deliver again what it did not hear the outcome of.
        incoming = down.take(seen + 1)[seen]
        seen += 1
        incoming.accept()
        if incoming.body().startswith("after"):
            bodies.add(incoming.body())
    expect_equal("connections that ended", [device.over for device in [*devices, listener] if device.over], [])


for broker_kind in (Artemis, RabbitMq):
    name = f"{broker_kind.name}, {SHARED}: the broker is killed and started again, and twenty devices keep their links"
    SCENARIOS.append((name, lambda kind=broker_kind: restarted(kind), True))
