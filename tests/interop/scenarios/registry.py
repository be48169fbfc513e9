"""Devices that are registered with the gateway prove who they are, with other people's clients."""

import base64
import hashlib
import hmac
import json
import time
import urllib.parse

from clients import MQTT_3, MQTT_5, coap_post, http_post, mosquitto, mqtt_publish
from fieldgate import EVENTS, HUB_NAME, Program, Site, message
from peers import Loop
from processes import Failure, Process, run
from scenario import expect, expect_equal, scenario

CUT_OFF_SECONDS = 5


class Strict:
    """A site that takes nobody's word; `device` runs `fieldgate device`."""

    def __init__(self):
        self.site = Site(authorise="registry", proven=True)

    def __enter__(self):
        self.site.start()
        self.watch = self.site.hub.watch()
        return self

    def __exit__(self, *_):
        self.watch.stop()
        self.site.stop()

    def device(self, *arguments):
        done = Program.run("device", *arguments, "--state-dir", self.site.gateway.state)
        if done.status != 0:
            raise Failure(f"device {arguments}: {done}")
        return done.out

    def add(self, device, *proof):
        """Registers a device: what was printed of its secrets."""
        return json.loads(self.device("add", device, *proof, "--json"))

    def seen(self, device):
        """Waits until the gateway has read the registry with this device: until then it knows nobody of that name."""
        until = time.monotonic() + CUT_OFF_SECONDS
        generation = self.site.gateway.metrics()["fieldgate_registry_devices"]
        wanted = len(self.device("list", "--json").splitlines())
        while generation != wanted:
            expect(f"{device}: the registry is read again in time", time.monotonic() < until)
            self.site.gateway.process.wait_for_change(0.1)
            generation = self.site.gateway.metrics()["fieldgate_registry_devices"]


def sas(device, key, seconds=3600, lower=False):
    """A token as Azure's device clients make it: percent-encoded resource, HMAC over it and the expiry."""
    resource = urllib.parse.quote(f"{HUB_NAME}/devices/{device}", safe="")
    resource = resource.replace("%2F", "%2f") if lower else resource
    expiry = int(time.time() + seconds)
    digest = hmac.new(base64.b64decode(key), f"{resource}\n{expiry}".encode(), hashlib.sha256).digest()
    signature = urllib.parse.quote(base64.b64encode(digest), safe="")
    return f"SharedAccessSignature sr={resource}&sig={signature}&se={expiry}"


def azure_user(device):
    return f"{HUB_NAME}/{device}/?api-version=2021-04-12&DeviceClientType=interop"


def mqtt_refused(site, device, version, *more):
    """The code of the CONNACK that mosquitto_pub got."""
    topic = EVENTS.format(device)
    done = run(mosquitto("mosquitto_pub", site, device, version, "-t", topic, "-q", "1", "-m", "x", *more))
    expect(f"{device} should be refused: {done}", done.status != 0)
    return done.both


@scenario("registry: mosquitto with user name and password, or a SAS token as Azure's clients send it", own=True)
def mosquitto_proves_itself():
    with Strict() as strict:
        site = strict.site
        password = strict.add("pump-1", "--password")["password"]
        key = strict.add("pump-2", "--sas-key")["sas_key"]
        strict.seen("pump-2")
        for version in (MQTT_3, MQTT_5):
            login = ("-u", "pump-1", "-P", password)
            code = mqtt_publish(site, "pump-1", EVENTS.format("pump-1"), version, 1, version, *login)
            expect_equal("PUBACK", code, 0)
            # A client identifier that mosquitto makes up.
            code = mqtt_publish(site, f"mosq-{version}", EVENTS.format("pump-1"), "any", 1, version, *login)
            expect_equal("PUBACK", code, 0)
            login = ("-u", azure_user("pump-2"), "-P", sas("pump-2", key, lower=version == MQTT_5))
            code = mqtt_publish(site, "pump-2", EVENTS.format("pump-2"), version, 1, version, *login)
            expect_equal("PUBACK", code, 0)
            for device, more in (
                ("pump-1", ()),
                ("pump-1", ("-u", "pump-1", "-P", "wrong")),
                ("pump-2", ("-u", azure_user("pump-2"), "-P", sas("pump-2", key, seconds=-5))),
                ("pump-1", ("-u", azure_user("pump-1"), "-P", sas("pump-2", key))),
                ("stranger", ("-u", "stranger", "-P", password)),
            ):
                said = mqtt_refused(site, device, version, *more).lower()
                expect(f"a reason in {said}", "not authori" in said or "bad user name" in said)
        strict.watch.expect("pump-1", *(message(text) for text in (MQTT_3, "any", MQTT_5, "any")))
        strict.watch.expect("pump-2", message(MQTT_3), message(MQTT_5))


@scenario("registry: curl with Basic and with a token; coap-client where no proof is needed", own=True)
def curl_proves_itself():
    with Strict() as strict:
        site = strict.site
        password = strict.add("meter", "--password")["password"]
        key = strict.add("valve", "--sas-key")["sas_key"]
        strict.add("lamp", "--unproven")
        strict.seen("lamp")
        basic = base64.b64encode(f"meter:{password}".encode()).decode()
        for device, header, wanted in (
            ("meter", f"Authorization: Basic {basic}", 204),
            ("valve", f"Authorization: {sas('valve', key)}", 204),
            ("valve", "X-Nothing: 1", 401),
            ("valve", f"Authorization: Basic {basic}", 403),
            ("meter", f"Authorization: {sas('meter', key)}", 401),
        ):
            status, headers = http_post(site, EVENTS.format(device), "x", [header])
            expect_equal(f"{device} with {header[:20]}", status, wanted)
            expect_equal("a challenge", "www-authenticate" in headers, wanted == 401)
        expect_equal("lamp over CoAP", coap_post(site, EVENTS.format("lamp"), "x")[1], "2.04")
        expect_equal("valve over CoAP", coap_post(site, EVENTS.format("valve"), "x")[1], "4.01")


@scenario("registry: Proton with SASL PLAIN; a device that is disabled is cut off in every protocol", own=True)
def disabled_is_cut_off():
    with Strict() as strict:
        site = strict.site
        password = strict.add("press", "--password")["password"]
        strict.add("other", "--password")
        strict.seen("other")
        loop = Loop()
        try:
            plain = {"user": "press", "password": password, "allowed_mechs": "PLAIN", "allow_insecure_mechs": True}
            device = loop.device(site.ports["amqp"], **plain)
            sender = device.sender(EVENTS.format("press"), "events")
            sender.wait_attached()
            topic = "devices/press/messages/devicebound/#"
            listening = [*mosquitto("mosquitto_sub", site, "press", MQTT_5, "-t", topic), "-u", "press", "-P", password]
            subscriber = Process(listening, name="press")
            subscriber.wait_for_line("Subscribed (mid: 1): ")
            begun = time.monotonic()
            strict.device("disable", "press")
            subscriber.wait_for_line("Received DISCONNECT (135)")
            loop.wait(lambda: device.over, "the close of the connection")
            expect(f"the reason in {device.over}", "amqp:unauthorized-access" in str(device.over))
            expect("within five seconds", time.monotonic() - begun < CUT_OFF_SECONDS)
            subscriber.kill()
        finally:
            loop.stop()
        basic = base64.b64encode(f"press:{password}".encode()).decode()
        status, _ = http_post(site, EVENTS.format("press"), "x", [f"Authorization: Basic {basic}"])
        expect_equal("disabled over HTTP", status, 403)
        strict.device("enable", "press")


@scenario("registry: a bad file is told, and the devices that were in stay in", own=True)
def bad_file():
    with Strict() as strict:
        site = strict.site
        password = strict.add("press", "--password")["password"]
        strict.seen("press")
        file = f"{site.gateway.state}/devices.toml"
        with open(file, "a", encoding="utf-8") as registry:
            registry.write("[[device]]\nid = 5\n")
        site.gateway.process.wait_for_line("devices.toml:")
        login = ("-u", "press", "-P", password)
        code = mqtt_publish(site, "press", EVENTS.format("press"), "x", 1, MQTT_5, *login)
        expect_equal("PUBACK", code, 0)
        done = Program.run("device", "list", "--state-dir", site.gateway.state)
        expect(f"the tool says where: {done}", done.status != 0 and "devices.toml:" in done.err)
