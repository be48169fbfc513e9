"""Deliveries, outcomes, credit and drain on routed links: what one side does is what the other sees."""

import os

from proton import Condition, Delivery, Link, Message, symbol

from processes import Failure
from routed import routed
from scenario import expect, expect_equal

MEBIBYTE = 1 << 20


def settle_each_way(incoming):
    """The four outcomes with all their fields: (name, a function that settles with it, what the sender must see)."""
    info = {symbol("limit"): 7, symbol("why"): "too green"}
    notes = {symbol("x-opt-note"): "seen", symbol("x-opt-number"): 3}
    words = ("com.example:no", "not this one", {"limit": 7, "why": "too green"})
    condition = Condition("com.example:no", "not this one", info)
    return [
        ("accepted", lambda one: one.accept(), {}),
        ("rejected", lambda one: one.settle(Delivery.REJECTED, condition=condition), {"condition": words}),
        ("released", lambda one: one.settle(Delivery.RELEASED), {}),
        (
            "modified",
            lambda one: one.settle(Delivery.MODIFIED, failed=True, undeliverable=True, annotations=notes),
            {"failed": True, "undeliverable": True, "annotations": {"x-opt-note": "seen", "x-opt-number": 3}},
        ),
        ("modified", lambda one: one.settle(Delivery.MODIFIED), {"failed": False, "undeliverable": False}),
    ][incoming]


def every_outcome(sender, receiver):
    for number in range(5):
        word, settle, fields = settle_each_way(number)
        delivery = sender.send(Message(body=f"number {number}"))
        receiver.take(number + 1)
        settle(receiver.deliveries[number])
        sender.loop.wait(lambda: delivery.settled, f"the outcome {word}")
        remote = delivery.remote
        seen = {
            "condition": remote.condition and (remote.condition.name, remote.condition.description, remote.condition.info),
            **{name: getattr(remote, name) for name in ("failed", "undeliverable", "annotations")},
        }
        expect_equal("outcome", sender.outcome(delivery), word)
        for name, value in fields.items():
            expect_equal(f"{name} of {word}", seen[name], value)


@routed("the hub's outcome is the device's, with every field")
def outcomes_up(world):
    every_outcome(*world.upstream(world.device()))


@routed("the device's outcome is the hub's, with every field")
def outcomes_down(world):
    down, at_hub = world.downstream(world.device())
    every_outcome(at_hub, down)


@routed("a state that no specification knows passes as it is")
def other_states(world):
    up, at_hub = world.upstream(world.device())
    delivery = up.send(Message(body="x"))
    incoming = at_hub.take()[0]
    incoming.delivery.local.data = ["anything", 7]
    incoming.delivery.update(0x7777)
    world.loop.wait(lambda: delivery.remote_state == 0x7777, "the hub's own state")
    expect_equal("its fields", delivery.remote.data, ["anything", 7])
    expect("it is not settled by that", not delivery.settled)
    incoming.accept()
    expect_equal("outcome", up.outcome(delivery), "accepted")


@routed("both sides' settlement passes in two steps where the receiver settles second")
def second_mode(world):
    device = world.device()

    def second(link):
        link.rcv_settle_mode = Link.RCV_SECOND

    down, at_hub = world.downstream(device, prepare=second)
    expect_equal("rcv-settle-mode at the hub", at_hub.link.remote_rcv_settle_mode, Link.RCV_SECOND)
    sent = at_hub.send(Message(body="two steps"))
    incoming = down.take()[0]
    incoming.delivery.update(Delivery.ACCEPTED)
    world.loop.wait(lambda: sent.remote_state == Delivery.ACCEPTED, "the device's state at the hub")
    world.loop.round_trip(device)
    expect("neither has settled", not sent.settled and not incoming.delivery.settled)
    sent.update(Delivery.ACCEPTED)
    sent.settle()
    world.loop.wait(lambda: incoming.delivery.settled, "the hub's settlement at the device")

    up, at_hub = world.upstream(device, prepare=second)
    sent = up.send(Message(body="two steps"))
    incoming = at_hub.take()[0]
    incoming.delivery.update(Delivery.ACCEPTED)
    world.loop.wait(lambda: sent.remote_state == Delivery.ACCEPTED, "the hub's state at the device")
    expect("the hub has not settled", not sent.settled)
    sent.settle()
    world.loop.wait(lambda: incoming.delivery.settled, "the device's settlement at the hub")


@routed("what is settled beforehand stays so, and nothing comes back")
def settled_beforehand(world):
    device = world.device()
    up, at_hub = world.upstream(device)
    down, from_hub = world.downstream(device, "q/2")
    for number in range(5):
        up.send(Message(body=number), settled=number % 2 == 0)
        from_hub.send(Message(body=number), settled=number % 2 == 0)
    expect_equal("settled at the hub", [one.settled for one in at_hub.take(5)], [True, False, True, False, True])
    expect_equal("settled at the device", [one.settled for one in down.take(5)], [True, False, True, False, True])


@routed("bytes, tags and annotations arrive as they were sent; empty messages as well")
def unchanged(world):
    device = world.device()
    up, at_hub = world.upstream(device)
    down, from_hub = world.downstream(device, "q/2")
    marked = Message(
        body="x", annotations={symbol("x-opt-a"): 1}, instructions={symbol("x-opt-b"): [1, "two"]}, properties={"p": 1.5}
    )
    only_annotations = b"\x00\x53\x72\xc1\x0c\x02\xa3\x07x-opt-a\x54\x07"
    data = [b"", marked.encode(), b"\xff\x00 no AMQP at all", only_annotations, b"", os.urandom(70_000)]
    for sender, receiver in ((up, at_hub), (from_hub, down)):
        tags = [f"{number:032d}" if number else "t" for number in range(len(data))]
        deliveries = [sender.send(one, tag=tag) for one, tag in zip(data, tags, strict=True)]
        for incoming in receiver.take(len(data)):
            incoming.accept()
        expect_equal("tags", [one.tag for one in receiver.deliveries], tags)
        for number, (got, sent) in enumerate(zip(receiver.deliveries, data, strict=True)):
            expect(f"bytes of message {number}: {bytes(got.data[:80])!r}, not {sent[:80]!r}", bytes(got.data) == sent)
        expect_equal("outcomes", {sender.outcome(one) for one in deliveries}, {"accepted"})


@routed("credit is the other side's, no more and no less")
def credit(world):
    device = world.device()
    up, at_hub = world.upstream(device, credit=0)
    world.loop.round_trip(device)
    expect_equal("credit while the hub gives none", up.link.credit, 0)
    at_hub.link.flow(3)
    up.wait_credit(3)
    for number in range(4):
        up.send(Message(body=number))
    at_hub.take(3)
    world.loop.round_trip(device)
    expect_equal("messages at the hub, which gave credit for three", len(at_hub.deliveries), 3)
    at_hub.link.flow(5)
    at_hub.take(4)
    up.wait_credit(4)

    down, from_hub = world.downstream(device, "q/2", credit=2)
    for number in range(3):
        from_hub.send(Message(body=number))
    down.take(2)
    world.loop.round_trip(device)
    expect_equal("messages at the device, which gave credit for two", len(down.deliveries), 2)
    down.link.flow(1)
    down.take(3)
    from_hub.wait_credit(0)


@routed("a device drains its receiver: all, some, none; and once more")
def drain_by_the_device(world):
    down, from_hub = world.downstream(world.device(), credit=0)
    total = 0
    for there in (4, 1, 0, 2, 0):
        down.link.drain(4)
        world.loop.wait(lambda: from_hub.link.drain_mode and from_hub.link.credit == 4, "the drain at the hub")
        for _ in range(there):
            from_hub.send(Message(body="drained"))
        from_hub.link.drained()
        world.loop.wait(lambda: not down.link.draining(), "the end of the drain")
        total += there
        expect_equal("messages", len(down.take(total) if total else []), total)
        expect_equal("credit at both ends", (down.link.credit, from_hub.link.credit), (0, 0))
        down.link.drained()
    # A drain does not stick: credit after it is plain credit.
    down.link.drain_mode = False
    down.link.flow(2)
    from_hub.wait_credit(2)
    expect("the drain is over at the hub", not from_hub.link.drain_mode)
    from_hub.send(Message(body="plain"))
    down.take(total + 1)
    expect_equal("credit that is left", down.link.credit, 1)


@routed("the hub drains a device's sender: all, some, none; and once more")
def drain_by_the_hub(world):
    up, at_hub = world.upstream(world.device(), credit=0)
    total = 0
    for there in (4, 1, 0, 2, 0):
        at_hub.link.drain(4)
        world.loop.wait(lambda: up.link.drain_mode and up.link.credit == 4, "the drain at the device")
        for _ in range(there):
            up.send(Message(body="drained"))
        up.link.drained()
        world.loop.wait(lambda: not at_hub.link.draining(), "the end of the drain")
        total += there
        expect_equal("messages", len(at_hub.take(total) if total else []), total)
        expect_equal("credit at both ends", (up.link.credit, at_hub.link.credit), (0, 0))
        at_hub.link.drained()


@routed("a receiver closed with unsettled deliveries leaves nothing behind")
def close_with_unsettled(world):
    device = world.device()
    down, from_hub = world.downstream(device, name="unsettled")
    sent = [from_hub.send(Message(body=number)) for number in range(3)]
    down.take(3)
    expect_equal("the hub's answer", down.close(), ("closed", None))
    expect_equal("outcomes at the hub that the device never said", [one.remote_state for one in sent], [0, 0, 0])
    up, at_hub = world.upstream(device, name="unsettled")
    for number in range(3):
        up.send(Message(body=number))
    at_hub.take(3)
    expect_equal("the hub's answer", up.close(), ("closed", None))
    again, from_hub = world.downstream(device, "q/again", "unsettled")
    sent = from_hub.send(Message(body="after"))
    again.take()[0].accept()
    expect_equal("outcome on the next link", from_hub.outcome(sent), "accepted")


@routed("a message that is aborted is so at the other side, and the link goes on")
def aborted(world):
    device = world.device()
    up, at_hub = world.upstream(device)
    down, from_hub = world.downstream(device, "q/2")
    for sender, receiver in ((up, at_hub), (from_hub, down)):
        delivery = sender.begin(b"x" * 200_000, "cut short")
        world.loop.wait(lambda receiver=receiver: receiver.deliveries and receiver.deliveries[0].data, "its first frames")
        delivery.abort()
        world.loop.wait(lambda receiver=receiver: receiver.deliveries[0].aborted, "the abort")
        sent = sender.send(Message(body="whole"))
        receiver.take()[0].accept()
        expect_equal("outcome of the next", sender.outcome(sent), "accepted")


@routed("the first frames of a message arrive before its last ones are sent")
def cut_through(world):
    device = world.device()
    up, at_hub = world.upstream(device)
    delivery = up.begin(b"a" * 100_000, "streamed")
    world.loop.wait(lambda: at_hub.deliveries and len(at_hub.deliveries[0].data) == 100_000, "the first 100,000 bytes")
    expect("it is not complete", not at_hub.deliveries[0].complete)
    up.link.stream(b"b" * 10)
    up.link.advance()
    expect("the rest", bytes(at_hub.take()[0].data) == b"a" * 100_000 + b"b" * 10)
    at_hub.deliveries[0].accept()
    expect_equal("outcome", up.outcome(delivery), "accepted")


@routed("a message of 10 MB passes whole, up and down, whatever the frame sizes")
def ten_megabytes(world):
    body = os.urandom(10_000_000)
    device = world.device(max_frame_size=4_096)
    up, at_hub = world.upstream(device)
    down, from_hub = world.downstream(device, "q/2")
    for sender, receiver in ((up, at_hub), (from_hub, down)):
        sent = sender.send(body)
        got = receiver.take()[0]
        expect(f"{len(got.data)} bytes of {len(body)} arrive unchanged", bytes(got.data) == body)
        got.accept()
        expect_equal("outcome", sender.outcome(sent), "accepted")


@routed("five big messages side by side in one session go on after the hub has stalled")
def parallel_streams(world):
    world.hub.incoming_capacity = 256 * 1024
    device = world.device()
    session = device.session()
    pairs = [world.upstream(device, f"q/{number}", f"stream {number}", session=session) for number in range(5)]
    for _, at_hub in pairs:
        at_hub.pause()
    bodies = [bytes([65 + number]) * (2 * MEBIBYTE + number) for number in range(5)]
    sent = [up.send(body) for (up, _), body in zip(pairs, bodies, strict=True)]
    # The hub's window is full when as much as it takes has come; another device's link is not held up by that.
    hub_session = pairs[0][1].link.session
    world.loop.wait(lambda: hub_session.incoming_bytes >= world.hub.incoming_capacity // 2, "a full window at the hub")
    other, theirs = world.upstream(world.device(), "q/other")
    expect_equal("outcome of another device meanwhile", one_message(other, theirs), "accepted")
    for _, at_hub in reversed(pairs):
        at_hub.go_on()
    for number, (_, at_hub) in enumerate(pairs):
        expect(f"stream {number} arrives unchanged", bytes(at_hub.take()[0].data) == bodies[number])
        at_hub.deliveries[0].accept()
    expect_equal("outcomes", {up.outcome(one) for (up, _), one in zip(pairs, sent, strict=True)}, {"accepted"})


@routed("a device that does not read holds up nobody else, and gets all when it reads again")
def slow_device(world):
    slow = world.device()
    session = slow.session(capacity=64 * 1024)
    down, from_hub = world.downstream(slow, session=session, credit=40)
    down.pause()
    bodies = [bytes([number]) * 100_000 for number in range(40)]
    sent = [from_hub.send(body) for body in bodies]
    quick, at_hub = world.upstream(world.device(), "q/up")
    also, to_quick = world.downstream(world.device(), "q/down")
    for _ in range(5):
        expect_equal("outcome of a quick device", one_message(quick, at_hub), "accepted")
        expect_equal("outcome at the hub", one_message(to_quick, also), "accepted")
    expect("the slow one still has all to come", not down.complete())
    down.go_on()
    for incoming, body in zip(down.take(40), bodies, strict=True):
        expect("a message arrives unchanged", bytes(incoming.data) == body)
        incoming.accept()
    expect_equal("outcomes", {from_hub.outcome(one) for one in sent}, {"accepted"})


def one_message(sender, receiver):
    """Sends one message, accepts it, gives the outcome."""
    before = len(receiver.complete())
    sent = sender.send(Message(body="a word"))
    receiver.take(before + 1)[-1].accept()
    return sender.outcome(sent)


@routed("a device that is lost in mid-message: the hub sees no whole message, and the others go on")
def device_lost(world):
    device = world.device()
    up, at_hub = world.upstream(device)
    other, theirs = world.upstream(world.device(), "q/other")
    up.begin(b"x" * 300_000, "never ends")
    world.loop.wait(lambda: at_hub.deliveries and at_hub.deliveries[0].data, "its first frames")
    device.cut()
    world.loop.wait(lambda: at_hub.ended or at_hub.peer.over or at_hub.peer.sessions_ended, "the end of its link at the hub")
    expect_equal("whole messages", at_hub.complete(), [])
    expect_equal("outcome of another device", one_message(other, theirs), "accepted")
    if world.shared:
        expect("the message is aborted on the connection that goes on", at_hub.deliveries[0].aborted)


@routed("a hub connection that is lost in mid-message: the device sees no whole message")
def hub_lost(world):
    device = world.device()
    down, from_hub = world.downstream(device)
    from_hub.begin(b"x" * 300_000, "never ends")
    world.loop.wait(lambda: down.deliveries and down.deliveries[0].data, "its first frames")
    from_hub.peer.cut()
    if not world.shared:
        world.loop.wait(lambda: device.over, "the end of the device's connection")
    else:
        world.loop.wait(lambda: down.deliveries[0].aborted, "the abort")
        expect_equal("the device's link", (down.ended, device.over), (None, None))
    expect_equal("whole messages", down.complete(), [])


@routed("a thousand messages each way, settled out of order and in ranges: each has its own outcome")
def many(world):
    device = world.device()
    up, at_hub = world.upstream(device, credit=1000)
    down, from_hub = world.downstream(device, "q/2", credit=1000)
    states = [Delivery.ACCEPTED, Delivery.RELEASED, Delivery.MODIFIED, Delivery.REJECTED]
    words = ["accepted", "released", "modified", "rejected"]
    for sender, receiver in ((up, at_hub), (from_hub, down)):
        sent = [sender.send(Message(body=number)) for number in range(1000)]
        got = receiver.take(1000)
        expect_equal("order", [one.body() for one in got], list(range(1000)))
        for incoming in sorted(got, key=lambda one: (one.body() % 7, -one.body())):
            incoming.settle(states[incoming.body() // 10 % 4])
        said = [sender.outcome(one) for one in sent]
        wrong = [number for number, word in enumerate(said) if word != words[number // 10 % 4]]
        if wrong:
            raise Failure(f"{len(wrong)} outcomes are wrong, first {wrong[0]}: {said[wrong[0]]}")
