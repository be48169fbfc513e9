"""What only a connection of its own can carry, against Artemis: transactions, dynamic nodes, durable subscriptions."""

from proton import Delivery, Described, Message, Terminus, symbol, ulong

from brokers import Artemis, Brokers
from fieldgate import PER_CONNECTION
from peers import Loop
from scenario import expect, expect_equal, scenario

DECLARED, TRANSACTIONAL = 0x33, 0x34


class Site:
    """Devices of a gateway in front of Artemis."""

    def __init__(self):
        self.broker, self.gateway = Brokers.get(Artemis, PER_CONNECTION)
        self.loop = Loop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.loop.stop()

    def device(self, container, **options):
        return self.loop.device(self.gateway.port, container, **options)


def is_there(site, device, address, name):
    """Whether a message waits at an address: a drain brings it at once, or ends without one."""
    end = device.receiver(address, name)
    end.link.drain(1)
    site.loop.wait(lambda: not end.link.draining() and (end.link.credit == 0), "the end of a drain")
    for incoming in end.complete():
        incoming.settle(Delivery.RELEASED)
    end.close()
    return bool(end.complete())


@scenario(f"Artemis, {PER_CONNECTION}: transactions commit and roll back", own=True)
def transactions():
    with Site() as site:
        device = site.device("transacting")

        def coordinator(link):
            link.target.type = Terminus.COORDINATOR
            link.target.capabilities.put_object(symbol("amqp:local-transactions"))

        control = device.sender(None, "control", prepare=coordinator)
        expect_equal("type of the answer's target", control.link.remote_target.type, Terminus.COORDINATOR)
        up = device.sender("q.transactions", "in a transaction")
        site.loop.wait(lambda: control.link.credit and up.link.credit, "credit")

        def declare():
            sent = control.send(Message(body=Described(ulong(0x31), [None])))
            site.loop.wait(lambda: sent.remote_state == DECLARED, "the transaction's id")
            number = sent.remote.data[0]
            sent.settle()
            return number

        def post(number, body):
            delivery = up.link.delivery(body)
            delivery.local.data = [number]
            delivery.update(TRANSACTIONAL)
            up.link.stream(Message(body=body).encode())
            up.link.advance()
            site.loop.wait(lambda: delivery.remote_state == TRANSACTIONAL, "the provisional outcome")
            expect_equal("its transaction", delivery.remote.data[0], number)
            delivery.settle()

        def discharge(number, fail):
            said = control.sent(Message(body=Described(ulong(0x32), [number, fail])))
            expect_equal("outcome of the discharge", said, "accepted")

        failed = declare()
        post(failed, "rolled back")
        discharge(failed, True)
        done = declare()
        post(done, "committed")
        expect("it is not there before the commit", not is_there(site, device, "q.transactions", "early look"))
        discharge(done, False)
        receiver = device.receiver("q.transactions", "after all", credit=1)
        expect_equal("what is there", receiver.take()[0].body(), "committed")
        receiver.deliveries[0].accept()
        said = control.sent(Message(body=Described(ulong(0x32), [b"no such", False])))
        expect_equal("outcome for an unknown transaction", said, "rejected")


@scenario(f"Artemis, {PER_CONNECTION}: a dynamic node carries answers", own=True)
def dynamic_node():
    def dynamic(link):
        link.source.dynamic = True

    with Site() as site:
        asks, answers = site.device("asks"), site.device("answers")
        inbox = asks.receiver(None, "inbox", prepare=dynamic, credit=1)
        address = inbox.link.remote_source.address
        expect("the broker names the node", address)
        requests = asks.sender("q.requests", "requests")
        site.loop.wait(lambda: requests.link.credit, "credit")
        expect_equal("outcome", requests.sent(Message(body="what time is it?", reply_to=address)), "accepted")
        incoming = answers.receiver("q.requests", "requests", credit=1).take()[0]
        reply = answers.sender(incoming.message().reply_to, "reply")
        incoming.accept()
        site.loop.wait(lambda: reply.link.credit, "credit")
        expect_equal("outcome", reply.sent(Message(body="late")), "accepted")
        expect_equal("answer", inbox.take()[0].body(), "late")


@scenario(f"Artemis, {PER_CONNECTION}: a durable subscription keeps what came while its device was away", own=True)
def durable_subscription():
    def durable(link):
        link.source.durability = Terminus.DELIVERIES
        link.source.expiry_policy = Terminus.EXPIRE_NEVER
        link.source.capabilities.put_object(symbol("topic"))

    def to_topic(link):
        link.target.capabilities.put_object(symbol("topic"))

    with Site() as site:
        device = site.device("subscriber")
        first = device.receiver("topic.weather", "weather", prepare=durable, credit=1)
        expect_equal("expiry policy of the answer", first.link.remote_source.expiry_policy, Terminus.EXPIRE_NEVER)
        sender = site.device("weather station").sender("topic.weather", "reports", prepare=to_topic)
        site.loop.wait(lambda: sender.link.credit, "credit")
        sender.sent(Message(body="sun"))
        expect_equal("while it is there", first.take()[0].body(), "sun")
        first.deliveries[0].accept()
        # Not closed, only detached: the subscription stays.
        first.detach()
        device.close()
        sender.sent(Message(body="rain"))
        again = site.device("subscriber").receiver("topic.weather", "weather", prepare=durable, credit=1)
        expect_equal("what came meanwhile", again.take()[0].body(), "rain")
        again.deliveries[0].accept()
        expect_equal("the close", again.close()[0], "closed")
        third = site.device("subscriber")
        once_more = third.receiver("topic.weather", "weather", prepare=durable, credit=1)
        sender.sent(Message(body="snow"))
        expect_equal("after the close the subscription is new", once_more.take()[0].body(), "snow")
        once_more.deliveries[0].accept()
        once_more.close()


@scenario(f"Artemis, {PER_CONNECTION}: filters select, browsing leaves what it shows", own=True)
def filters():
    def green(link):
        link.source.filter.put_map()
        link.source.filter.enter()
        link.source.filter.put_symbol("selector")
        link.source.filter.put_object(Described(symbol("apache.org:selector-filter:string"), "colour = 'green'"))
        link.source.filter.exit()

    def browse(link):
        link.source.distribution_mode = Terminus.DIST_MODE_COPY

    with Site() as site:
        device = site.device("choosy")
        sender = device.sender("q.colours", "colours")
        site.loop.wait(lambda: sender.link.credit, "credit")
        for colour in ("red", "green", "red", "green"):
            sender.sent(Message(body=colour, properties={"colour": colour}))
        shown = device.receiver("q.colours", "look only", prepare=browse, credit=10)
        expect_equal("shown", [one.body() for one in shown.take(4)], ["red", "green", "red", "green"])
        shown.close()
        chosen = device.receiver("q.colours", "green only", prepare=green, credit=10)
        expect_equal("chosen", [one.body() for one in chosen.take(2)], ["green", "green"])
        for incoming in chosen.deliveries:
            incoming.accept()
        site.loop.round_trip(device)
        chosen.close()
        rest = device.receiver("q.colours", "the rest", credit=10)
        expect_equal("the rest", [one.body() for one in rest.take(2)], ["red", "red"])
        for incoming in rest.deliveries:
            incoming.accept()
        site.loop.round_trip(device)
