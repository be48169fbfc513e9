"""Attaching, detaching, ending: what one side says is what the other hears."""

import socket

from proton import Condition, Described, Endpoint, Link, Message, Terminus, symbol, ulong

from fieldgate import SHARED
from routed import ONE, routed
from scenario import expect, expect_equal


@routed("terminus fields, settle modes, properties and capabilities pass both ways")
def everything_in_an_attach(world):
    device = world.device()

    def ask(link):
        link.source.durability = Terminus.DELIVERIES
        link.source.expiry_policy = Terminus.EXPIRE_NEVER
        link.source.timeout = 77
        link.source.distribution_mode = Terminus.DIST_MODE_COPY
        link.source.capabilities.put_array(False, 0x13)
        link.source.capabilities.enter()
        link.source.capabilities.put_symbol("x-one")
        link.source.capabilities.put_symbol("x-two")
        link.source.capabilities.exit()
        link.source.filter.put_map()
        link.source.filter.enter()
        link.source.filter.put_symbol("selector")
        link.source.filter.put_object(Described(symbol("apache.org:selector-filter:string"), "colour = 'green'"))
        link.source.filter.exit()
        link.target.address = "here"
        link.snd_settle_mode = Link.SND_SETTLED
        link.rcv_settle_mode = Link.RCV_FIRST
        link.max_message_size = 123_456
        link.properties = {symbol("com.example:client-version"): "x/1", symbol("com.example:number"): ulong(7)}

    def prepare_answer(end):
        link = end.link
        link.source.copy(link.remote_source)
        link.target.copy(link.remote_target)
        link.target.address = "there"
        link.source.timeout = 66
        link.snd_settle_mode = Link.SND_SETTLED
        link.max_message_size = 65_432
        link.properties = {symbol("com.example:server"): "y/2"}
        link.open()

    world.hub.on_attach = prepare_answer
    mine = device.receiver("q/full", "with everything", prepare=ask)
    seen = world.hub.wait_link("q/full").link
    source = seen.remote_source
    expect_equal("durability", source.durability, Terminus.DELIVERIES)
    expect_equal("expiry policy", source.expiry_policy, Terminus.EXPIRE_NEVER)
    expect_equal("timeout", source.timeout, 77)
    expect_equal("distribution mode", source.distribution_mode, Terminus.DIST_MODE_COPY)
    source.capabilities.rewind()
    source.capabilities.next()
    expect_equal("capabilities", [one.decode() for one in source.capabilities.get_py_array().elements], ["x-one", "x-two"])
    source.filter.rewind()
    source.filter.next()
    wanted = {"selector": Described(symbol("apache.org:selector-filter:string"), "colour = 'green'")}
    expect_equal("filter", source.filter.get_object(), wanted)
    expect_equal("target address", seen.remote_target.address, "here")
    expect_equal("snd-settle-mode", seen.remote_snd_settle_mode, Link.SND_SETTLED)
    expect_equal("max-message-size", seen.remote_max_message_size, 123_456)
    expect_equal("properties", seen.remote_properties, {"com.example:client-version": "x/1", "com.example:number": 7})
    expect_equal("target address of the answer", mine.link.remote_target.address, "there")
    expect_equal("timeout of the answer", mine.link.remote_source.timeout, 66)
    expect_equal("max-message-size of the answer", mine.link.remote_max_message_size, 65_432)
    expect_equal("properties of the answer", mine.link.remote_properties, {"com.example:server": "y/2"})


class Door:
    """A listener in the hub's place that closes every connection at once, and counts them."""

    def __init__(self, port):
        self._listener = socket.create_server(("127.0.0.1", port))
        self._listener.setblocking(False)
        self._count = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.close()

    def knocks(self):
        """How many came so far."""
        try:
            self._listener.accept()[0].close()
            self._count += 1
        except BlockingIOError:
            pass
        return self._count


@routed("the hub's refusal arrives as one, with its words and its info")
def refusal(world):
    info = {symbol("limit"): 7}
    world.hub.on_attach = lambda end: world.hub.refuse(end, Condition("com.example:full", "come back later", info))
    device = world.device()
    for role in (device.sender, device.receiver):
        mine = role("q/no", f"refused {role.__name__}", wait=False)
        how, why = mine.wait_ended()
        expect("the attach is answered without its terminus", mine.attached and mine.is_refused())
        expect_equal("detach", (how, why), ("closed", ("com.example:full", "come back later", {"limit": 7})))
    world.hub.on_attach = world.hub.answer
    mine, theirs = world.upstream(device, "q/yes", "after the refusals")
    expect_equal("links at the hub", theirs.link.state & Endpoint.REMOTE_ACTIVE != 0, True)


@routed("the hub's detach arrives with its error, and the name can be used again")
def detach_by_the_hub(world):
    device = world.device()
    mine, theirs = world.upstream(device, name="again")
    theirs.link.condition = Condition("amqp:link:detach-forced", "maintenance")
    theirs.link.close()
    expect_equal("detach", mine.wait_ended(), ("closed", ("amqp:link:detach-forced", "maintenance", None)))
    world.loop.wait(lambda: theirs.ended, "the device's answer at the hub")
    mine, theirs = world.upstream(device, name="again")
    theirs.link.detach()
    expect_equal("detach", mine.wait_ended(), ("detached", None))


@routed("a detach without close stays one, at the hub and back")
def detach_without_close(world):
    device = world.device()
    for receives in (False, True):
        name = f"detached {receives}"
        mine, theirs = world.downstream(device, name=name) if receives else world.upstream(device, name=name)
        expect_equal("the hub's answer", mine.detach(), ("detached", None))
        expect_equal("at the hub", theirs.ended, "detached")


@routed("a detach that the hub answers with a close is over for good")
def detach_answered_by_close(world):
    world.hub.answers_detach = False
    mine, theirs = world.upstream(world.device(), name="mixed")
    mine.link.detach()
    world.loop.wait(lambda: theirs.ended, "the detach at the hub")
    expect_equal("at the hub", theirs.ended, "detached")
    theirs.link.close()
    expect_equal("the hub's answer", mine.wait_ended(), ("closed", None))


@routed("a hub that never answers a detach leaves its link half closed, and the others whole")
def half_closed(world):
    world.hub.answers_detach = False
    device = world.device()
    first, at_hub = world.upstream(device, name="half")
    second, other = world.upstream(device, "q/2", "whole")
    first.link.close()
    world.loop.wait(lambda: at_hub.ended, "the close at the hub")
    delivery = second.send(Message(body="on the other"))
    other.take()[0].accept()
    expect_equal("outcome on the other link", second.outcome(delivery), "accepted")
    expect_equal("the half-closed link", first.ended, None)
    at_hub.link.close()
    expect_equal("the answer at last", first.wait_ended(), ("closed", None))


@routed("ten links, detached at once: each gets its answer")
def ten_echoes(world):
    device = world.device()
    links = [world.upstream(device, f"q/{number}", f"link {number}", credit=0)[0] for number in range(5)]
    links += [world.downstream(device, f"q/{number}", f"link {number}", credit=0)[0] for number in range(5, 10)]
    for end in links:
        end.link.close()
    for end in links:
        expect_equal(f"answer to {end.name}", end.wait_ended(), ("closed", None))
    expect_equal("detaches at the hub", [end.ended for end in world.hub.links], ["closed"] * 10)


@routed("five devices with the same container id and the same link names have each their own links")
def same_names(world):
    devices = [world.device("the same") for _ in range(5)]
    pairs = []
    for number, device in enumerate(devices):
        sends = world.upstream(device, f"q/up-{number}", "up")
        receives = world.downstream(device, f"q/down-{number}", "down")
        pairs.append((sends, receives))
    for number, ((up, at_hub), (down, from_hub)) in enumerate(pairs):
        delivery = up.send(Message(body=f"from {number}"))
        expect_equal("at the hub", at_hub.take()[0].body(), f"from {number}")
        at_hub.deliveries[0].accept()
        expect_equal("outcome", up.outcome(delivery), "accepted")
        sent = from_hub.send(Message(body=f"to {number}"))
        expect_equal("at the device", down.take()[0].body(), f"to {number}")
        down.deliveries[0].accept()
        expect_equal("outcome at the hub", from_hub.outcome(sent), "accepted")
    devices[0].close()
    for number, ((up, at_hub), _) in enumerate(pairs[1:], start=1):
        delivery = up.send(Message(body="still"))
        at_hub.take(2)[1].accept()
        expect_equal(f"outcome of device {number} after another has left", up.outcome(delivery), "accepted")
    gone = [end.ended or end.peer.over or bool(end.link.session.state & Endpoint.REMOTE_CLOSED) for end in world.hub.links]
    expect_equal("links that the hub saw end, of ten", [bool(one) for one in gone], [True] * 2 + [False] * 8)


@routed("the same name as sender and as receiver on one connection are two links")
def same_name_both_roles(world):
    device = world.device()
    up, at_hub = world.upstream(device, "q/a", "one name")
    down, from_hub = world.downstream(device, "q/b", "one name")
    delivery = up.send(Message(body="up"))
    at_hub.take()[0].accept()
    expect_equal("outcome", up.outcome(delivery), "accepted")
    from_hub.send(Message(body="down"))
    expect_equal("at the device", down.take()[0].body(), "down")


@routed("the hub ends a session with an error: the device hears it, and goes on in another")
def session_ended(world):
    device = world.device()
    _, at_hub = world.upstream(device)
    at_hub.link.session.condition = Condition("amqp:session:window-violation", "the hub says so")
    at_hub.link.session.close()
    world.loop.wait(lambda: device.sessions_ended or device.over, "the end of the session at the device")
    expect_equal("error of the end", device.sessions_ended, [("amqp:session:window-violation", "the hub says so", None)])
    expect_equal("end of the connection", device.over, None)
    again, theirs = world.upstream(device, "q/2", "in another session", session=device.session())
    delivery = again.send(Message(body="on"))
    theirs.take()[0].accept()
    expect_equal("outcome in the next session", again.outcome(delivery), "accepted")
    other, at_hub = world.upstream(world.device(), "q/3", "of another device")
    delivery = other.send(Message(body="on"))
    at_hub.take()[0].accept()
    expect_equal("outcome of the next device", other.outcome(delivery), "accepted")


@routed("a device ends a session with links in it: the hub sees it end")
def session_ended_by_the_device(world):
    device = world.device()
    session = device.session()
    _, at_hub = world.upstream(device, session=session)
    session.close()
    world.loop.wait(lambda: session.state & Endpoint.REMOTE_CLOSED, "the hub's end")
    world.loop.wait(lambda: at_hub.link.session.state & Endpoint.REMOTE_CLOSED, "the device's end at the hub")


@routed("the hub closes the connection with an error, which is what the device hears", ONE)
def connection_closed(world):
    device = world.device()
    _, at_hub = world.upstream(device)
    at_hub.peer.connection.condition = Condition("amqp:connection:forced", "the hub restarts")
    at_hub.peer.connection.close()
    world.loop.wait(lambda: device.over, "the close at the device")
    expect_equal("close", device.over, ("amqp:connection:forced", "the hub restarts", None))


@routed("attach, detach and close at once, a hundred times: all is answered, nothing stays at the hub")
def fast_teardown(world):
    for number in range(100):
        device = world.device(wait=number % 2 == 0)
        session = device.session()
        for role in (session.sender, session.receiver):
            link = role(f"gone {number}")
            link.source.address = link.target.address = "q/gone"
            link.open()
            if number % 3:
                link.close()
        device.connection.close()
        world.loop.wait(lambda device=device: device.over, f"the end of device {number}")
        expect_equal("end", device.over, "closed")
    world.loop.wait(
        lambda: all(end.ended or end.link.session.state & Endpoint.REMOTE_CLOSED or end.peer.over for end in world.hub.links),
        "the end of every link at the hub",
    )
    up, at_hub = world.upstream(world.device())
    delivery = up.send(Message(body="after all"))
    at_hub.take()[0].accept()
    expect_equal("outcome", up.outcome(delivery), "accepted")


@routed("a dynamic node's address comes from the hub", ONE)
def dynamic_node(world):
    def create(end):
        link = end.link
        asked = link.remote_source if link.is_sender else link.remote_target
        expect("the attach asks for a dynamic node", asked.dynamic and asked.address is None)
        world.hub.answer_as(end, f"temporary/{len(world.hub.links)}")

    def ask(link):
        node = link.source if link.is_receiver else link.target
        node.dynamic = True
        node.properties.put_map()
        node.properties.enter()
        node.properties.put_symbol("lifetime-policy")
        node.properties.put_object(Described(ulong(0x2B), []))
        node.properties.exit()

    world.hub.on_attach = create
    device = world.device()
    receiver = device.receiver(None, "dynamic source", prepare=ask)
    sender = device.sender(None, "dynamic target", prepare=ask)
    addresses = [receiver.link.remote_source.address, sender.link.remote_target.address]
    expect_equal("addresses", addresses, ["temporary/1", "temporary/2"])
    expect("both are dynamic", receiver.link.remote_source.dynamic and sender.link.remote_target.dynamic)
    properties = world.hub.links[0].link.remote_source.properties
    properties.rewind()
    properties.next()
    expect_equal("node properties", properties.get_object(), {"lifetime-policy": Described(ulong(0x2B), [])})


@routed("a device that comes before its hub is turned away, and served when it comes again", ONE, hub_there=False)
def hub_comes_later(world):
    early = world.device(wait=False)
    early.sender("q/1", "early", wait=False)
    world.loop.wait(lambda: early.over, "the close")
    expect(f"the close says why: {early.over}", early.over[0] not in ("c", "amqp:connection:framing-error"))
    world.hub.listen()
    up, at_hub = world.upstream(world.device())
    delivery = up.send(Message(body="in the end"))
    at_hub.take()[0].accept()
    expect_equal("outcome", up.outcome(delivery), "accepted")


@routed("a device that attaches before its hub is there is served when it comes", (SHARED,), hub_there=False)
def hub_comes_later_shared(world):
    device = world.device()
    up = device.sender("q/1", "early up", wait=False)
    down = device.receiver("q/1", "early down", credit=3, wait=False)
    # Absence cannot be awaited, but the gateway has knocked in vain more than once.
    with Door(world.hub.port) as door:
        world.loop.wait(lambda: door.knocks() >= 2, "two attempts of the gateway to reach the hub")
    expect_equal("credit without a hub", (up.link.credit, up.attached, up.ended), (0, False, None))
    world.hub.listen()
    world.loop.wait(lambda: up.attached and down.attached, "the answers to the attaches", deadline=60)
    at_hub = world.hub.wait_link("q/1")
    from_hub = world.hub.wait_link("q/1", 2)
    at_hub.link.flow(3)
    delivery = up.wait_credit(3).send(Message(body="in the end"))
    at_hub.take()[0].accept()
    expect_equal("outcome", up.outcome(delivery), "accepted")
    sent = from_hub.wait_credit(3).send(Message(body="here too"))
    down.take()[0].accept()
    expect_equal("outcome at the hub", from_hub.outcome(sent), "accepted")


@routed("what a shared connection cannot carry is refused at once, and its hub never hears of it", (SHARED,))
def not_for_shared(world):
    def dynamic(link):
        (link.source if link.is_receiver else link.target).dynamic = True

    def coordinator(link):
        link.target.type = Terminus.COORDINATOR

    device = world.device()
    up, _ = world.upstream(device, "q/allowed")
    seen = len(world.hub.links)
    for what, role, address, prepare, condition in (
        ("dynamic source", device.receiver, None, dynamic, "amqp:not-allowed"),
        ("dynamic target", device.sender, None, dynamic, "amqp:not-allowed"),
        ("coordinator", device.sender, None, coordinator, "amqp:not-allowed"),
        ("no target", device.sender, None, None, "amqp:not-allowed"),
        ("management", device.sender, "$management", None, None),
        ("not routed", device.sender, "elsewhere/1", None, "amqp:not-found"),
        ("the prefix of a name only", device.receiver, "quite/1", None, "amqp:not-found"),
        ("out of the route", device.sender, "q/../elsewhere", None, None),
    ):
        end = role(address, what, prepare=prepare, wait=False)
        how, why = end.wait_ended()
        expect(f"{what}: refused with an error, not {how} with {why}", how == "closed" and why)
        expect(f"{what}: refused by an attach without its terminus", end.is_refused())
        if condition:
            expect_equal(f"condition for {what}", why[0], condition)
    world.loop.round_trip(device)
    expect_equal("links that the hub saw", [world.hub.address(end) for end in world.hub.links[seen:]], [])
    expect_equal("the other link", (up.ended, device.over), (None, None))
