"""What MQTT clients bring beside QoS 0 and 1 in the clear: QoS 2, TLS, WebSocket, sessions that stay."""

import os
import re
import subprocess
from contextlib import contextmanager

from brokers import CACHE, HERE, Certificates
from clients import MQTT_3, MQTT_5, mosquitto
from fieldgate import COMMANDS, EVENTS, Directory, Program, Site, free_port, message
from processes import Failure, Process, run
from scenario import expect, expect_equal, scenario

MQTT_31 = "mqttv31"
PAHO = ("paho-1", "paho-2")
PATHS = ("/mqtt", "/$iothub/websocket")


class Secured:
    """A site with a listener for MQTT over TLS, in WebSockets as well; `device` runs `fieldgate device`."""

    def __init__(self, **listener):
        self.certificates = Certificates(Directory())
        self.port = free_port()
        ours = {"cert_file": self.certificates.cert, "private_key_file": self.certificates.key}
        profile = {"name": "devices", "ca_cert_file": self.certificates.ca, "client_certificates": "optional"} | ours
        place = {"protocol": "mqtt", "host": "127.0.0.1", "port": self.port, "ssl_profile": "devices", "websocket": True}
        self.site = Site(more={"ssl_profile": [profile], "listener": [place | listener]})

    def device(self, *arguments):
        done = Program.run("device", *arguments, "--state-dir", self.site.gateway.state)
        if done.status != 0:
            raise Failure(f"device {arguments}: {done}")
        return done.out


@contextmanager
def secured(**listener):
    """Started, watched, and stopped."""
    here = Secured(**listener)
    try:
        here.site.start()
        here.watch = here.site.hub.watch()
        yield here
        here.watch.stop()
    except Failure as failure:
        raise Failure(f"{failure}\n{here.site.gateway.process.tail()}") from None
    finally:
        here.site.stop()


def python(name, packages, *arguments, stdin=subprocess.DEVNULL):
    """One of the programs of `python`, with packages that the installer has put there."""
    path = f"PYTHONPATH={os.path.join(CACHE, packages)}"
    return Process(["env", path, "/usr/bin/python3", "-B", os.path.join(HERE, "python", name), *arguments], name, stdin)


def paho(packages, port, device, *arguments):
    return python("paho_client.py", packages, "--port", str(port), "--id", device, *arguments)


def finished(process):
    """What it printed, once it has ended well."""
    if process.wait() != 0:
        raise Failure(f"{process.name} failed\n{process.tail()}")
    return process.text("out").splitlines()


@scenario("mqtt: mosquitto_pub, QoS 2, MQTT 3.1, 3.1.1 and 5: once each, acknowledged in both steps")
def exactly_once(site, watch):
    device = "qos-2"
    for version in (MQTT_31, MQTT_3, MQTT_5):
        done = run(mosquitto("mosquitto_pub", site, device, version, "-t", EVENTS.format(device), "-q", "2", "-m", version))
        for step in ("received PUBREC (", "sending PUBREL (", "received PUBCOMP ("):
            expect_equal(f"{version}: {step}", done.both.count(step), 1)
        expect_equal("exit status", done.status, 0)
    watch.expect(device, *(message(version) for version in (MQTT_31, MQTT_3, MQTT_5)))


@scenario("mqtt: mosquitto over TLS 1.2 and 1.3; a certificate is the proof of a registered device", own=True)
def over_tls():
    with secured(allow_anonymous=False) as here:
        cert, key = here.certificates.issue("pump")
        here.device("add", "pump", "--certificate", "CN=pump")
        stranger = here.certificates.issue("stranger")

        def publish(version, tls, credentials):
            argv = mosquitto("mosquitto_pub", here.site, "pump", version, "-t", EVENTS.format("pump"), "-q", "1", "-m", tls)
            argv[argv.index("-p") + 1] = str(here.port)
            argv[argv.index("-h") + 1] = "localhost"
            chosen = [word for pair in zip(("--cert", "--key"), credentials, strict=False) for word in pair]
            return run([*argv, "--cafile", here.certificates.ca, "--tls-version", tls, *chosen])

        until_known(here)
        for version, tls in ((MQTT_3, "tlsv1.2"), (MQTT_5, "tlsv1.3")):
            done = publish(version, tls, (cert, key))
            expect(f"{tls} should do: {done}", done.status == 0 and "received PUBACK" in done.both)
            for credentials in ((), stranger):
                done = publish(version, tls, credentials)
                reason = re.search(r"not authori|bad user name", done.both.lower())
                expect(f"{tls}, {credentials}: should be refused: {done}", done.status != 0 and reason)
        here.watch.expect("pump", message("tlsv1.2"), message("tlsv1.3"))


def until_known(here, devices=1):
    """Waits until the gateway has read its registry with so many devices."""
    here.site.gateway.process.wait_until(
        lambda: here.site.gateway.metrics().get("fieldgate_registry_devices", 0) >= devices, "its registry"
    )


@scenario("mqtt: Paho, both API versions, 3.1.1 and 5, QoS 0 to 2, over TCP, TLS and WebSocket", own=True)
def paho_everywhere():
    with secured(allow_anonymous=True) as here:
        plain, tls = here.site.ports["mqtt"], ("--ca", here.certificates.ca)
        ways = [(plain, ()), (here.port, tls), *((here.port, (*tls, "--path", path)) for path in PATHS)]
        for packages in PAHO:
            for version in ("4", "5"):
                device = f"{packages}-{version}"
                texts = []
                for number, (port, way) in enumerate(ways):
                    for qos in ("1", "2"):
                        text = f"{number} with {qos}"
                        command = ("publish", EVENTS.format(device), qos, text, text + " again")
                        lines = finished(paho(packages, port, device, "--version", version, *way, *command))
                        expect_equal("lines", lines, ["connected 0", "published", "published"])
                        texts += [text, text + " again"]
                here.watch.expect(device, *(message(text) for text in texts))


@scenario("mqtt: Paho's session stays: its subscription has the command that came while it was away")
def session_stays(site, _watch):
    for packages in PAHO:
        for version in ("4", "5"):
            device = f"stays-{packages}-{version}"
            common = (packages, site.ports["mqtt"], device, "--version", version, "--keep")
            first = paho(*common, "subscribe", COMMANDS.format(device) + "/#", "1")
            first.wait_for_line("subscribed 1")
            feedback = site.hub.send(device, "one")
            expect(f"feedback: {feedback}", feedback.status == 0)
            expect_equal("connected", finished(first)[0], "connected 0")
            sender = site.hub.start_send(device, "two")
            lines = finished(paho(*common, "wait", "1"))
            expect_equal("session present", lines[0], "connected 1")
            expect(f"the second command: {lines}", len(lines) == 2 and lines[1].endswith(" two"))
            expect_equal("exit status of hub send", sender.wait(), 0)
