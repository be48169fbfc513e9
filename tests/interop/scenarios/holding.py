"""A hub connection that is lost and comes back: the devices on it keep their links."""

from proton import Delivery, Message

from fieldgate import SHARED
from routed import routed
from scenario import expect, expect_equal

ONLY_SHARED = (SHARED,)


def outage(world, *ends):
    """Takes the hub away, with all its connections."""
    world.hub.away()
    for end in ends:
        end.peer.cut()


@routed("through an outage links stay; what was on its way is answered; all goes on afterwards", ONLY_SHARED)
def held(world):
    device = world.device("held")
    up, at_hub = world.upstream(device, name="up", credit=5)
    down, from_hub = world.downstream(device, "q/2", "down", credit=5)
    accepted = up.send(Message(body="accepted"))
    at_hub.take()[0].accept()
    expect_equal("outcome before the outage", up.outcome(accepted), "accepted")
    open_one = up.send(Message(body="no outcome yet"))
    at_hub.take(2)
    from_hub.send(Message(body="not settled yet"))
    pending = down.take()[0]

    outage(world, at_hub)
    up.wait_credit(0)
    world.loop.wait(lambda: open_one.settled, "the outcome of what had none")
    expect_equal("its outcome", up.outcome(open_one), "modified")
    expect("it says that the delivery failed", open_one.remote.failed)
    world.loop.wait(lambda: pending.delivery.settled, "the settlement of what the device held")
    pending.accept()
    expect_equal("links of the device", (up.ended, down.ended, device.over), (None, None, None))

    world.hub.listen()
    again = world.hub.wait_link("q/1", 2)
    world.loop.wait(lambda: world.hub.wait_link("q/2", 2), "the second link at the hub")
    back = world.hub.wait_link("q/2", 2)
    expect_equal("names", (again.name, back.name), (at_hub.name, from_hub.name))
    again.link.flow(3)
    up.wait_credit(3)
    sent = up.send(Message(body="afterwards"))
    again.take()[0].accept()
    expect_equal("outcome afterwards", up.outcome(sent), "accepted")
    # Five were granted, one was used.
    back.wait_credit(4)
    sent = back.send(Message(body="and back"))
    incoming = down.take(2)[1]
    expect_equal("body", incoming.body(), "and back")
    incoming.accept()
    expect_equal("outcome at the hub", back.outcome(sent), "accepted")


@routed("what is sent within the old credit during an outage is released", ONLY_SHARED)
def released(world):
    device = world.device()
    up, at_hub = world.upstream(device, credit=100)
    outage(world, at_hub)
    # Sent before the gateway's word that there is no credit any more can be here, or just after: never taken, never lost.
    sent = [up.send(Message(body=number)) for number in range(50)]
    said = {up.outcome(one) for one in sent}
    expect(f"outcomes {said}", said <= {"released", "modified"})
    expect_equal("the link", (up.ended, device.over), (None, None))
    world.hub.listen()
    again = world.hub.wait_link("q/1", 2)
    again.link.flow(5)
    up.wait_credit(5)
    delivery = up.send(Message(body="then"))
    expect_equal("the first that the hub sees", again.take()[0].body(), "then")
    again.deliveries[0].accept()
    expect_equal("outcome", up.outcome(delivery), "accepted")


@routed("a message cut by an outage is swallowed to its end, and the next one is whole", ONLY_SHARED)
def cut_in_the_middle(world):
    device = world.device()
    up, at_hub = world.upstream(device)
    delivery = up.begin(b"a" * 100_000, "in two halves")
    world.loop.wait(lambda: at_hub.deliveries and at_hub.deliveries[0].data, "its first frames")
    outage(world, at_hub)
    # For Proton the credit of a message is used when its last frame is sent, for the gateway when the first one came.
    world.loop.wait(lambda: up.link.credit <= 1, "the end of the credit")
    up.link.stream(b"b" * 100_000)
    up.link.advance()
    expect("it is given back", up.outcome(delivery) in ("modified", "released"))
    world.hub.listen()
    again = world.hub.wait_link("q/1", 2)
    again.link.flow(5)
    up.wait_credit(5)
    sent = up.send(Message(body="whole"))
    expect_equal("the first at the hub", again.take()[0].body(), "whole")
    again.deliveries[0].accept()
    expect_equal("outcome", up.outcome(sent), "accepted")


@routed("a drain that an outage meets is completed", ONLY_SHARED)
def drain_in_an_outage(world):
    device = world.device()
    down, from_hub = world.downstream(device, credit=0)
    down.link.drain(4)
    world.loop.wait(lambda: from_hub.link.drain_mode, "the drain at the hub")
    outage(world, from_hub)
    world.loop.wait(lambda: not down.link.draining(), "the end of the drain")
    expect_equal("the link", (down.ended, down.link.credit), (None, 0))


@routed("a device that attaches in an outage is answered when the hub is back", ONLY_SHARED)
def attach_in_an_outage(world):
    device = world.device()
    _, at_hub = world.upstream(device)
    outage(world, at_hub)
    late = device.sender("q/late", "late", wait=False)
    other = world.device()
    also = other.receiver("q/also", "also late", credit=1, wait=False)
    world.loop.round_trip(other)
    expect_equal("answers in the outage", (late.attached, also.attached), (False, False))
    world.hub.listen()
    late.wait_attached()
    also.wait_attached()
    world.hub.wait_link("q/also").send(Message(body="here")).settle()
    expect_equal("body", also.take()[0].body(), "here")


@routed("a hub that answers otherwise than before has its link detached at the device", ONLY_SHARED)
def another_hub(world):
    device = world.device()
    up, at_hub = world.upstream(device)

    def other_answer(end):
        end.link.source.copy(end.link.remote_source)
        end.link.target.copy(end.link.remote_target)
        end.link.target.address = "q/elsewhere"
        end.link.open()

    world.hub.on_attach = other_answer
    outage(world, at_hub)
    world.hub.listen()
    _, why = up.wait_ended()
    expect("a reason is given", why is not None)


@routed("forty devices on one hub connection, each with its own outcome for each message", ONLY_SHARED)
def many_devices(world):
    devices = [world.device("the same container") for _ in range(40)]
    pairs = [world.upstream(device, f"q/{number}", "up") for number, device in enumerate(devices)]
    # One for each worker that has some of them; those of mapped traffic may be there as well.
    expect(f"{len(world.hub.connections)} hub connections are enough for 40 devices", len(world.hub.connections) <= 8)
    states = [Delivery.ACCEPTED, Delivery.REJECTED, Delivery.RELEASED]
    words = ["accepted", "rejected", "released"]
    for turn in range(3):
        sent = [up.send(Message(body=f"{number} {turn}")) for number, (up, _) in enumerate(pairs)]
        for number, (_, at_hub) in enumerate(pairs):
            incoming = at_hub.take(turn + 1)[turn]
            expect_equal("body", incoming.body(), f"{number} {turn}")
            incoming.settle(states[(number + turn) % 3])
        said = [up.outcome(one) for (up, _), one in zip(pairs, sent, strict=True)]
        expect_equal("outcomes", said, [words[(number + turn) % 3] for number in range(40)])
