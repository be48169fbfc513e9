"""Three AMQP 1.0 stacks, each through the gateway to the embedded hub, to Artemis and to RabbitMQ."""

import functools

from brokers import PASSWORD, USER, Artemis, Brokers, RabbitMq
from fieldgate import COMMANDS, EVENTS, HUB_NAME, Site, message
from processes import Failure
from routed import MODES
from scenario import SCENARIOS, expect, expect_equal
from stacks import STACKS, Refused, content, digest

LARGE = 10_000_000
BATCH_FORMAT = 0x8001_3700
"""The message format of batches in Azure's world: not the one that AMQP itself defines."""


def of_each_stack(name, place, able=None):
    """Lists a scenario for each stack that is able to do it; `place(function, stack)` runs it."""

    def register(function):
        for stack in STACKS:
            if able and not getattr(stack, able):
                continue
            SCENARIOS.append((f"{name}: {stack.name}: {function.__doc__}", functools.partial(place, function, stack), True))
        return function

    return register


# The embedded hub, which asks for tokens.


class HubSite:
    """A gateway with its hub for each mode."""

    sites = {}

    @classmethod
    def get(cls, mode):
        site, watch = cls.sites.get(mode, (None, None))
        if site is None or not site.gateway.process.running:
            site = Site(authorise="token", mode=mode).start()
            watch = site.hub.watch()
            cls.sites[mode] = (site, watch)
        return site, watch


def at_the_hub(mode, function, stack):
    site, watch = HubSite.get(mode)
    device = name_of(function, stack, mode)
    try:
        function(lambda: stack(site.ports["amqp"], device), site, watch, device)
    except Failure as failure:
        raise Failure(f"{failure}\n{site.gateway.process.tail()}") from None


def with_the_hub(function):
    """Lists a scenario for each mode and stack, with the embedded hub."""
    for mode in MODES:
        of_each_stack(f"embedded hub, {mode}", functools.partial(at_the_hub, mode))(function)
    return function


def name_of(*parts):
    """A device or queue of one scenario alone."""
    words = (getattr(part, "__name__" if callable(part) and not isinstance(part, type) else "name", part) for part in parts)
    return "-".join(words).lower().replace(" ", "-").replace("_", "-")


def refused(client, role, address):
    """An attach that must be refused: the condition, and the words."""
    try:
        client.ask(role, link=f"refused {role}", address=address)
    except Refused as failure:
        return failure.condition, failure.text
    raise Failure(f"a {role} for {address} should be refused")


def expect_refused(connect, role, address, condition, prepare=None):
    """Tries an attach on a connection of its own that must be refused with this condition; gives the words."""
    with connect() as client:
        if prepare:
            prepare(client)
        said, text = refused(client, role, address)
        # What it says of an attach and a detach that come together depends on which of its tasks is first.
        if not (client.mumbles and text == "IllegalState"):
            expect_equal(f"condition for {address} ({text})", said, condition)
        return text


def authorised(site, client, device):
    audience = f"{HUB_NAME}/devices/{device}"
    expect_equal("status of the token", client.ask("token", audience=audience, token=site.hub.token(device))["status"], 200)


@with_the_hub
def telemetry(connect, site, watch, device):
    """telemetry is accepted once there is a token, and refused before"""
    expect_refused(connect, "sender", EVENTS.format(device), "amqp:unauthorized-access")
    with connect() as client:
        authorised(site, client, device)
        client.ask("sender", link="up", address=EVENTS.format(device))
        for number in range(3):
            properties = {"site": "berlin", "number": number, "last": number == 2}
            answer = client.ask("send", link="up", body=f"reading {number}", properties=properties)
            expect_equal("outcome", answer["outcome"], "accepted")
        client.ask("send", link="up", size=200_000)
        client.ask("close", link="up")
        client.ask("sender", link="settled", address=EVENTS.format(device), settled=True)
        answer = client.ask("send", link="settled", body="no answer wanted", settled=True)
        expect_equal("outcome", answer["outcome"], "settled")
        client.ask("close", link="settled")
    readings = [
        message(f"reading {number}", {"site": "berlin", "number": number, "last": number == 2}) for number in range(3)
    ]
    watch.expect(device, *readings, message(content(200_000).decode()), message("no answer wanted"))


@with_the_hub
def foreign(connect, site, watch, device):
    """another device's addresses are refused, whatever token the device has"""

    def with_a_token(client):
        authorised(site, client, device)

    for role, address in (("sender", EVENTS.format(device + "0")), ("receiver", COMMANDS.format(device + "0"))):
        expect_refused(connect, role, address, "amqp:unauthorized-access", with_a_token)
    with connect() as client:
        authorised(site, client, device)
        client.ask("sender", link="mine", address=EVENTS.format(device))
        expect_equal("outcome", client.ask("send", link="mine", body="mine")["outcome"], "accepted")
    watch.expect(device, message("mine"))


@with_the_hub
def commands(connect, site, _watch, device):
    """commands are accepted, rejected, and come again after a release"""
    with connect() as client:
        authorised(site, client, device)
        client.ask("receiver", link="down", address=COMMANDS.format(device))
        for then, word in ((("accept",), "Success"), (("reject",), "Rejected"), (("release", "accept"), "Success")):
            sender = site.hub.start_send(device, f"please {then[0]}")
            for one in then:
                client.ask("credit", link="down", credit=1)
                expect_equal("text", client.ask("receive", link="down", then=one)["body"], f"please {then[0]}")
            expect_equal(f"exit status of hub send after {then}", sender.wait() == 0, word == "Success")
            expect(f"{word} should stand in: {sender.tail()}", word in sender.text("out"))
        client.ask("close", link="down")


# Brokers, which are trusted with the rest.


def at_a_broker(kind, mode, function, stack):
    broker, gateway = Brokers.get(kind, mode)
    name = name_of(function, stack, mode)
    try:
        function(functools.partial(stack, gateway.port, name), broker, broker.address(f"q.{name}"))
    except Failure as failure:
        raise Failure(f"{failure}\n{gateway.role.process.tail()}\n{broker.process.tail(8)}") from None


def with_brokers(kinds=(Artemis, RabbitMq), able=None):
    """Lists a scenario for each broker, mode and stack; it is called with what connects, the broker and a queue's address."""

    def register(function):
        for kind in kinds:
            for mode in MODES:
                of_each_stack(f"{kind.name}, {mode}", functools.partial(at_a_broker, kind, mode), able)(function)
        return function

    return register


@with_brokers()
def queue(connect, broker, address):
    """messages go into a queue and come out of it, settled in every way"""
    with connect() as client:
        client.ask("sender", link="in", address=address)
        for number in range(6):
            properties = {"number": number, "even": number % 2 == 0}
            answer = client.ask("send", link="in", body=f"message {number}", properties=properties)
            expect_equal("outcome", answer["outcome"], "accepted")
        client.ask("receiver", link="out", address=address)
        client.ask("credit", link="out", credit=1)
        first = client.ask("receive", link="out", then="release")
        expect_equal("the first", (first["body"], first["properties"]), ("message 0", {"number": 0, "even": True}))
        client.ask("credit", link="out", credit=2)
        again = [client.ask("receive", link="out", then="accept")["body"] for _ in range(2)]
        expect_equal("after the release", again, ["message 0", "message 1"])
        client.ask("credit", link="out", credit=1)
        expect_equal("the next, to be rejected", client.ask("receive", link="out", then="reject")["body"], "message 2")
        for then in ("modify" if broker.knows_modified else "release", "accept"):
            client.ask("credit", link="out", credit=1)
            expect_equal(f"the next, to {then}", client.ask("receive", link="out", then=then)["body"], "message 3")
    # What is left is there for the next connection, and no more than that: the rejected one is gone.
    with connect() as client:
        client.ask("receiver", link="rest", address=address)
        client.ask("credit", link="rest", credit=10)
        rest = [client.ask("receive", link="rest", then="accept")["body"] for _ in range(2)]
        expect_equal("the rest", rest, ["message 4", "message 5"])


@with_brokers()
def large(connect, broker, address):
    """a message of 10 MB in many frames, into a queue and out of it"""
    with connect() as client:
        client.ask("sender", link="in", address=address)
        expect_equal("outcome", client.ask("send", link="in", size=LARGE)["outcome"], "accepted")
        client.ask("receiver", link="out", address=address)
        client.ask("credit", link="out", credit=1)
        got = client.ask("receive", link="out", then="accept")
        expect_equal("length and digest", (got["length"], got["sha256"]), (LARGE, digest(content(LARGE))))


@with_brokers((Artemis,), able="formats")
def message_format(connect, _broker, address):
    """the message format passes both ways, also one that AMQP does not define"""
    with connect() as client:
        client.ask("sender", link="in", address=address)
        client.ask("receiver", link="out", address=address)
        for number in (0, BATCH_FORMAT, 7):
            client.ask("send", link="in", body="in a format", format=number)
            client.ask("credit", link="out", credit=1)
            got = client.ask("receive", link="out", then="accept")
            expect_equal("body and format", (got["body"], got["format"]), ("in a format", number))


@with_brokers()
def settled(connect, _broker, address):
    """what is sent settled arrives; nothing comes back for it"""
    with connect() as client:
        client.ask("sender", link="in", address=address, settled=True)
        for number in range(10):
            expect_equal("outcome", client.ask("send", link="in", body=f"{number}", settled=True)["outcome"], "settled")
        client.ask("receiver", link="out", address=address)
        client.ask("credit", link="out", credit=10)
        got = [client.ask("receive", link="out", then="accept")["body"] for _ in range(10)]
        expect_equal("bodies", got, [f"{number}" for number in range(10)])


# RabbitMQ 3.10 ends the session of a receiver that drains a classic queue.
@with_brokers((Artemis,), able="drains")
def drain(connect, _broker, address):
    """a drained receiver gets what is there, and its credit is gone"""
    with connect() as client:
        client.ask("sender", link="in", address=address)
        client.ask("receiver", link="out", address=address)
        for there in (0, 2, 4, 0):
            for number in range(there):
                client.ask("send", link="in", body=f"{number}")
            expect_equal("received in the drain", client.ask("drain", link="out", credit=4)["received"], there)
            for number in range(there):
                expect_equal("body", client.ask("receive", link="out", then="accept")["body"], f"{number}")


@with_brokers((Artemis,))
def no_entry(connect, _broker, _address):
    """addresses that must not be created or used are refused in the broker's own words"""
    for role, address, condition in (
        ("sender", "closed.sender", "amqp:not-found"),
        ("receiver", "closed.receiver", "amqp:not-found"),
        ("sender", "forbidden.sender", "amqp:unauthorized-access"),
    ):
        text = expect_refused(connect, role, address, condition)
        expect(f"the broker's words: {text}", "AMQ" in text or text == "IllegalState")
    with connect() as client:
        client.ask("sender", link="allowed", address="q.allowed")


@with_brokers()
def login(connect, broker, address):
    """user and password go through to the broker, which refuses wrong ones"""
    with connect(USER, PASSWORD) as client:
        client.ask("sender", link="in", address=address)
        expect_equal("outcome", client.ask("send", link="in", body="from a user")["outcome"], "accepted")
        if broker.refuses_slowly and client.name != STACKS[0].name:
            return
        try:
            connect(USER, "a guess").leave()
        except Refused as failure:
            said = f"{failure.condition} {failure.text}".lower()
            expect(f"it is the login that fails: {said}", "waited" not in said and ("auth" in said or "sasl" in said))
        else:
            raise Failure("a wrong password should not open a connection")
        # The first connection is another one, and lives on.
        expect_equal("outcome", client.ask("send", link="in", body="still there")["outcome"], "accepted")
