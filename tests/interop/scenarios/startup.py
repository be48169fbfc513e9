"""What the program says when it cannot start, and how it ends."""

import os
import socket

from clients import MQTT_3, mqtt_publish
from fieldgate import EVENTS, LISTENERS, Directory, Hub, Program, Role, Site, free_port, message, toml
from scenario import expect, expect_equal, scenario


def refused(name, sections, *parts):
    """Starts a gateway that must refuse to start, and say why with all of these parts in its words."""
    directory = Directory()
    file = directory.file(f"{name}.toml", toml(sections))
    done = Program.run("run", "--config", file, "--state-dir", directory.sub("state"))
    expect(f"{name}: it should not start: {done}", done.status not in (0, None))
    for part in parts:
        expect(f"{name}: {part!r} should stand in: {done}", part.lower() in done.err.lower())


def listeners(**changed):
    """Sections with a free port for everything, some of them changed."""
    sections = {name: {"listen": [f"127.0.0.1:{free_port()}"]} for name in (*LISTENERS, "hub")}
    sections["admin"] = {"listen": f"127.0.0.1:{free_port()}"}
    return sections | changed


@scenario("start: a busy port is named with its setting", own=True)
def busy_port():
    for name in (*LISTENERS, "hub", "admin"):
        kind = LISTENERS.get(name, socket.SOCK_STREAM)
        with socket.socket(socket.AF_INET, kind) as holder:
            holder.bind(("127.0.0.1", 0))
            if kind == socket.SOCK_STREAM:
                holder.listen()
            port = holder.getsockname()[1]
            address = f"127.0.0.1:{port}"
            section = {"listen": address if name == "admin" else [address]}
            refused(f"busy-{name}", listeners(**{name: section}), str(port), f"[{name}]", "listen")


@scenario("start: off loopback, anonymous devices must be allowed in words", own=True)
def anonymous_in_words():
    for name in LISTENERS:
        section = {"listen": [f"0.0.0.0:{free_port()}"]}
        refused(f"open-{name}", listeners(**{name: section}), f"[{name}]", "allow_anonymous")


@scenario("start: an unknown key is refused with file, line and the nearest name", own=True)
def unknown_key():
    directory = Directory()
    file = directory.file("typo.toml", "[mqtt]\nlisten = []\npublish_windo = 3\n")
    done = Program.run("check", file)
    expect(f"check should refuse: {done}", done.status != 0)
    for part in ("typo.toml:3", "publish_windo", "publish_window"):
        expect(f"{part!r} should stand in: {done}", part in done.both)


@scenario("start: the sample configuration passes the check; no arguments give help", own=True)
def sample_and_help():
    directory = Directory()
    sample = Program.run("config", "sample")
    expect_equal("exit status of config sample", sample.status, 0)
    checked = Program.run("check", directory.file("sample.toml", sample.out))
    expect(f"the sample passes: {checked}", checked.status == 0)
    helped = Program.run()
    for word in ("run", "hub", "check", "demo"):
        expect(f"{word!r} should stand in: {helped}", word in helped.both)


@scenario("start: a state directory serves one process at a time", own=True)
def locked():
    site = Site().start()
    directory = Directory()
    file = directory.file("second.toml", toml(listeners()))
    second = Program.run("run", "--config", file, "--state-dir", site.gateway.state)
    expect(f"the second must not start: {second}", second.status != 0)
    expect(f"the first's process id should stand in: {second}", str(site.gateway.process.pid) in second.err)
    expect_equal("exit statuses after SIGTERM", site.stop(), [0])


@scenario("start: secrets are for the owner alone, and stay over a restart; SIGTERM ends with 0", own=True)
def state_stays():
    site = Site().start()
    secrets = [name for name in os.listdir(site.gateway.state) if "key" in name or "connection-string" in name]
    expect(f"keys and a connection string in {os.listdir(site.gateway.state)}", len(secrets) >= 2)
    for name in secrets:
        mode = os.stat(os.path.join(site.gateway.state, name)).st_mode & 0o077
        expect_equal(f"rights of others on {name}", mode, 0)

    def read(name):
        with open(os.path.join(site.gateway.state, name), "rb") as file:
            return file.read()

    before = {name: read(name) for name in secrets}
    expect_equal("exit statuses after SIGTERM", site.stop(), [0])
    site.gateway.start().ready()
    expect("keys are kept", before == {name: read(name) for name in secrets})
    watch = site.hub.watch()
    expect_equal("PUBACK", mqtt_publish(site, "again", EVENTS.format("again") + "/", "hello", 1, MQTT_3), 0)
    watch.expect("again", message("hello"))
    watch.stop()
    expect_equal("exit statuses after SIGTERM", site.stop(), [0])


@scenario("start: the demo delivers by every protocol, and its commands are accepted", own=True)
def demo():
    directory = Directory()
    file = directory.file("demo.toml", toml(listeners()))
    state = directory.sub("demo-state")
    done = Program.run("demo", "--config", file, "--state-dir", state, "--for", "12s", deadline=60)
    expect_equal(f"exit status of the demo; it said:\n{done.both}", done.status, 0)
    for part in ("AMQP 1.0", "MQTT", "CoAP", "HTTP", "feedback Success"):
        expect(f"{part!r} should stand in what the demo says", part in done.out)


@scenario("start: off loopback, a listener that allows anonymous devices in words serves them", own=True)
def anonymous_allowed():
    site = Site()
    open_mqtt = {"listen": [f"0.0.0.0:{site.ports['mqtt']}"], "allow_anonymous": True}
    site.gateway = Role("run", site.directory, "open-state", listeners(mqtt=open_mqtt), "open")
    site.hub = Hub(site.gateway.state)
    site.start()
    watch = site.hub.watch()
    expect_equal("PUBACK", mqtt_publish(site, "far", EVENTS.format("far") + "/", "hello", 1, MQTT_3), 0)
    watch.expect("far", message("hello"))
    watch.stop()
    expect_equal("exit statuses after SIGTERM", site.stop(), [0])
