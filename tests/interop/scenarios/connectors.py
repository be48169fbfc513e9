"""Connectors: several hubs behind one gateway, a hold that runs out, tokens that run out, a file of Qpid Dispatch."""

from proton import Message

from brokers import Certificates
from fieldgate import EVENTS, HUB_NAME, SHARED, Directory, RoutedGateway, Site, routed_sections
from peers import Hub, Loop
from processes import Failure
from routed import World
from scenario import expect_equal, scenario
from stacks import Proton

QPID_DISPATCH = """# As the articles have it: devices in the clear, the hub over TLS.
router {
    mode: standalone
    id: gateway
}

sslProfile {
    name: to-the-hub
    caCertFile: @CA@
}

listener {
    host: 127.0.0.1
    port: @PORT@
    authenticatePeer: no
    saslMechanisms: ANONYMOUS
}

connector {
    name: hub
    role: route-container
    host: localhost
    port: @HUB@
    sslProfile: to-the-hub
    saslMechanisms: ANONYMOUS
}

linkRoute {
    prefix: q
    connection: hub
    direction: in
}

linkRoute {
    prefix: q
    connection: hub
    direction: out
}
"""


def exchange(loop, up, at_hub, body):
    """One message from the device to the hub."""
    sent = up.send(Message(body=body))
    at_hub.take()[0].accept()
    expect_equal("outcome", up.outcome(sent), "accepted")


@scenario("connectors: a configuration of Qpid Dispatch runs as it is", own=True)
def qpid_dispatch():
    certificates = Certificates(Directory())
    loop = Loop()
    hub = Hub(loop, certificates).listen()
    text = QPID_DISPATCH.replace("@CA@", certificates.ca).replace("@HUB@", str(hub.port))
    gateway = RoutedGateway.of_qpid_dispatch(text).start()
    try:
        device = loop.device(gateway.port, "as before")
        up = device.sender("q/up", "up", wait=False)
        at_hub = hub.wait_link("q/up")
        at_hub.link.flow(1)
        up.wait_attached().wait_credit(1)
        exchange(loop, up, at_hub, "up")
        down = device.receiver("q/down", "down", credit=1)
        hub.wait_link("q/down").send(Message(body="down"))
        expect_equal("body", down.take()[0].body(), "down")
        _, why = device.sender("not.routed", "elsewhere", wait=False).wait_ended()
        expect_equal("condition for what nothing routes", why and why[0], "amqp:not-found")
    except Failure as failure:
        raise Failure(f"{failure}\n{gateway.role.process.tail()}") from None
    finally:
        loop.stop()
        gateway.role.process.kill()


@scenario("connectors: links that outlive the hold are detached, and can be attached again", own=True)
def hold_runs_out():
    world = World(SHARED, hold="1s")
    try:
        device = world.device()
        up, at_hub = world.upstream(device)
        world.hub.away()
        at_hub.peer.cut()
        how, why = up.wait_ended()
        expect_equal("condition of the detach", (how, why and why[0]), ("closed", "amqp:link:detach-forced"))
        expect_equal("the device's connection", device.over, None)
        world.hub.listen()
        again, at_hub = world.upstream(device, "q/2", "again")
        exchange(world.loop, again, at_hub, "after the hold")
    except Failure as failure:
        raise Failure(f"{failure}\n{world.gateway.role.process.tail()}") from None
    finally:
        world.close()


@scenario("connectors: one device has links to two hubs in one session, and keeps one when the other goes", own=True)
def two_hubs():
    loop = Loop()
    certificates = Certificates(Directory())
    hubs = {"left": Hub(loop, certificates).listen(), "right": Hub(loop, certificates).listen()}

    def sections(port):
        ca = certificates.ca
        one, other = (routed_sections(port, hub.port, ca, SHARED, [name]) for name, hub in hubs.items())
        other["connector"][0]["name"] = other["link_route"][0]["connector"] = "the other"
        return one | {name: one[name] + other[name] for name in ("connector", "link_route")}

    gateway = RoutedGateway.of_sections(sections).start()
    try:
        device = loop.device(gateway.port, "in the middle")
        links = {}
        for name, hub in hubs.items():
            links[name] = device.sender(f"{name}/q", name, wait=False)
            at_hub = hub.wait_link(f"{name}/q")
            at_hub.link.flow(1)
            links[name].wait_attached().wait_credit(1)
            exchange(loop, links[name], at_hub, f"to the {name}")
        expect_equal("links of each hub", [len(hub.links) for hub in hubs.values()], [1, 1])
        # One hub goes: the other's link is whole.
        hubs["left"].away()
        hubs["left"].links[0].peer.cut()
        links["left"].wait_credit(0)
        hubs["right"].links[0].link.flow(1)
        sent = links["right"].wait_credit(1).send(Message(body="still"))
        hubs["right"].links[0].take(2)[1].accept()
        expect_equal("outcome at the hub that stays", links["right"].outcome(sent), "accepted")
    except Failure as failure:
        raise Failure(f"{failure}\n{gateway.role.process.tail()}") from None
    finally:
        loop.stop()
        gateway.role.process.kill()


@scenario("connectors: a link lives as long as the token that covers it", own=True)
def token_runs_out():
    site = Site(authorise="token", mode=SHARED).start()
    try:
        with Proton(site.ports["amqp"], "short-lived") as client:
            audience = f"{HUB_NAME}/devices/short-lived"
            client.ask("token", audience=audience, token=site.hub.signed_token("short-lived", 3))
            client.ask("sender", link="up", address=EVENTS.format("short-lived"))
            expect_equal("outcome", client.ask("send", link="up", body="in time")["outcome"], "accepted")
            _, why = client.ended("up")
            expect_equal("condition of the detach", why and why[0], "amqp:unauthorized-access")
    except Failure as failure:
        raise Failure(f"{failure}\n{site.gateway.process.tail()}") from None
    finally:
        site.gateway.process.kill()
