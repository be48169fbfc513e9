"""Azure's own library for Python over MQTT: with a SAS key and with a certificate, over TCP and WebSocket, through a renewal."""

import hashlib
import re
import ssl
import subprocess

from fieldgate import message
from scenario import expect, expect_equal, scenario
from scenarios.mqtt import finished, python, secured, until_known

HUB = "hub.example"
"""The hub as the library names it where a gateway stands before it."""

WAYS = ((), ("--websocket",))
TELEMETRY = [
    message("21 degrees", {"site": "berlin & co"}, message_id="m-1", content_type="application/json", content_encoding="utf-8"),
    message("second"),
]


def key_of(here, device):
    """Registers a device with a SAS key."""
    return re.search(r'"sas_key": ?"([^"]+)"', here.device("add", device, "--sas-key", "--json"))[1]


def azure(here, *arguments, words=None):
    """A device that is ready for a command; its connection string is for its input only."""
    common = (str(here.port), here.certificates.ca, *arguments)
    device = python("azure_device.py", "paho-1", *common, stdin=subprocess.PIPE)
    if words:
        device.write_line(words)
    device.wait_for_line("ready")
    return device


def commanded(here, device, process):
    """Sends it a command: the lines that it printed, once the hub has heard that it has it."""
    sender = here.site.hub.start_send(device, "to the left")
    lines = finished(process)
    expect_equal("the device's words", lines[:2], ["ready", "command to the left None"])
    expect_equal("exit status of hub send", sender.wait(), 0)
    return lines


@scenario("mqtt: azure-iot-device, MQTT and WebSocket: telemetry with properties, a command", own=True)
def azure_library():
    with secured(allow_anonymous=False) as here:
        key = key_of(here, "thermo")
        until_known(here)
        words = f"HostName=localhost;DeviceId=thermo;SharedAccessKey={key};GatewayHostName=localhost"
        for way in WAYS:
            commanded(here, "thermo", azure(here, *way, words=words))
        here.watch.expect("thermo", *TELEMETRY, *TELEMETRY)


@scenario("mqtt: azure-iot-device renews its token under telemetry: all of it in its order, and a command afterwards", own=True)
def azure_renewal():
    with secured(allow_anonymous=False) as here:
        key = key_of(here, "thermo")
        until_known(here)
        words = f"HostName=localhost;DeviceId=thermo;SharedAccessKey={key}"
        for way in WAYS:
            before = len(here.watch.received("thermo"))
            # It is renewed 120 seconds before its end.
            lines = commanded(here, "thermo", azure(here, "--ttl", "123", *way, words=words))
            sent = re.fullmatch(r"sent (\d+) over (\d+)", lines[2])
            expect(f"it connected again: {lines}", int(sent[2]) == 2)
            expect(f"there was telemetry before: {lines}", int(sent[1]) > 30)
            here.watch.wait("thermo", before + len(TELEMETRY) + int(sent[1]))
            came = here.watch.received("thermo")[before + len(TELEMETRY) :]
            ids = [one["system"]["message-id"] for one in came]
            wanted = [f"n-{number}" for number in range(int(sent[1]))]
            # What has no PUBACK when it connects again, the library sends again.
            expect_equal("first deliveries", list(dict.fromkeys(ids)), wanted)
            # One is under way at a time, and it connects again once.
            expect(f"at most one again: {len(ids)} of {len(wanted)}", len(ids) <= len(wanted) + 1)


@scenario("mqtt: azure-iot-device with X.509, by subject and by thumbprint, MQTT and WebSocket, behind a gateway's name", own=True)
def azure_certificates():
    with secured(allow_anonymous=False) as here:
        for known, (device, proof) in enumerate((("pump", subject), ("valve", thumbprint)), 1):
            cert, key = here.certificates.issue(device)
            here.device("add", device, "--certificate", proof(device, cert))
            until_known(here, known)
            for way in WAYS:
                for hosts in (("localhost",), (HUB, "--gateway", "localhost")):
                    x509 = ("--x509", hosts[0], device, cert, key, *hosts[1:])
                    commanded(here, device, azure(here, *x509, *way))
            here.watch.expect(device, *TELEMETRY * 4)


def subject(device, _cert):
    """A certificate as the registry may name it: by what the CA says of it."""
    return f"CN={device}"


def thumbprint(_device, cert):
    """Or by itself."""
    with open(cert, encoding="ascii") as file:
        return "sha256:" + hashlib.sha256(ssl.PEM_cert_to_DER_cert(file.read())).hexdigest()
