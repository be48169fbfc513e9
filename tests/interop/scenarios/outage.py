"""Gateway and hub as two processes: the hub goes away and comes back, the gateway stays."""

import os

from clients import MQTT_3, http_post, mqtt_publish, mqtt_publisher
from fieldgate import CONNECTION_STRING_FILE, EVENTS, Site
from processes import Failure
from scenario import expect, expect_equal, scenario

PUBACK = "received PUBACK"


def start_time(pid):
    """When a process was started, in the kernel's ticks: with the id, this tells one process from any other."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        return int(file.read().rpartition(")")[2].split()[19])


@scenario("outage: no PUBACK while the hub is away; publishing goes on when it is back; the gateway stays", own=True)
def hub_stops_and_starts():
    device = "away"
    site = Site(separate_hub=True).start()
    watch = site.hub.watch()
    gateway = (site.gateway.process.pid, start_time(site.gateway.process.pid))

    publisher = mqtt_publisher(site, device, EVENTS.format(device) + "/")
    for number in range(1, 21):
        publisher.write_line(f"before {number}")
    publisher.wait_for_line(PUBACK, times=20)
    expect_equal("before", [one["body"] for one in watch.wait(device, 20)], [f"before {number}" for number in range(1, 21)])

    expect_equal("exit status of the hub after SIGTERM", site.hub_role.stop(), 0)
    for number in range(1, 6):
        publisher.write_line(f"during {number}")
    publisher.wait_for_line("sending PUBLISH", times=25)
    # Absence cannot be awaited: other devices' answers say that the gateway knows, and that time has passed.
    for number in range(2):
        status, headers = http_post(site, EVENTS.format("other"), f"refused {number}", deadline_seconds=60)
        expect(f"503 or 504 while the hub is away, not {status}", status in (503, 504))
        expect("Retry-After beside 503", status != 503 or "retry-after" in headers)
    expect_equal("PUBACKs while the hub is away", publisher.text("out").count(PUBACK), 20)
    expect("/healthz answers while the hub is away", site.gateway.page("/healthz")[0] in (200, 503))

    site.hub_role.start().ready()
    watch = site.hub.watch()
    publisher.wait_for_line(PUBACK, times=25, deadline=60)
    for number in range(1, 6):
        publisher.write_line(f"after {number}")
    publisher.close_stdin()
    expect_equal("exit status of the device", publisher.wait(), 0)
    expect_equal("PUBACKs in all", publisher.text("out").count(PUBACK), 30)

    # The hub's log lives in memory, so it begins anew; a message whose answer was lost may stand in it twice.
    wanted = [f"{when} {number}" for when in ("during", "after") for number in range(1, 6)]
    watch.wait(device, len(wanted))
    bodies = [one["body"] for one in watch.received(device)]
    missing = [body for body in wanted if body not in bodies]
    if missing:
        raise Failure(f"acknowledged, but not at the hub: {missing}; there: {bodies}")
    expect_equal("order", list(dict.fromkeys(bodies)), wanted)

    expect("the gateway runs", site.gateway.process.running)
    expect_equal("the gateway", (site.gateway.process.pid, start_time(site.gateway.process.pid)), gateway)
    watch.stop()
    expect_equal("exit statuses after SIGTERM", site.stop(), [0, 0])


@scenario("outage: a gateway that starts before its hub serves as soon as the hub is there", own=True)
def gateway_starts_first():
    site = Site(separate_hub=True)
    site.hub_role.start().ready()
    expect_equal("exit status of the hub", site.hub_role.stop(), 0)
    expect("the hub left its connection string", os.path.exists(os.path.join(site.hub.state, CONNECTION_STRING_FILE)))
    site.gateway.start()
    site.gateway.process.wait_until(lambda: listens(site), "its admin page")
    site.hub_role.start().ready()
    site.gateway.ready(deadline=60)
    watch = site.hub.watch()
    expect_equal("PUBACK", mqtt_publish(site, "early", EVENTS.format("early") + "/", "in the end", 1, MQTT_3), 0)
    expect_equal("body", watch.wait("early", 1)[0]["body"], "in the end")
    watch.stop()
    expect_equal("exit statuses after SIGTERM", site.stop(), [0, 0])


def listens(site):
    """Whether the gateway's admin page answers at all."""
    try:
        return site.gateway.page("/healthz")[0] > 0
    except OSError:
        return False
