"""More MQTT clients: rumqttc (Rust), Mosquitto's request and response, and what only MQTT 5 has, over Paho."""

import signal
import subprocess

from clients import MQTT_5, Rumqttc, mosquitto
from fieldgate import COMMANDS, EVENTS, Directory, Site, message
from processes import Process
from scenario import expect, expect_equal, scenario
from scenarios.mqtt import finished, paho

PAHO = "paho-2"
WILL_DELAY = 1


@scenario("mqtt: rumqttc, 3.1.1 and 5: QoS 1 and 2, and a session that has the command that came while it was away")
def rumqttc(site, watch):
    for version in ("4", "5"):
        device = f"rumqttc-{version}"
        sent = []
        for qos in ("1", "2"):
            texts = [f"{number} with {qos}" for number in range(20)]
            lines = finished(Rumqttc.start(site, device, version, "publish", EVENTS.format(device), qos, *texts))
            expect_equal("lines", lines, ["connected 0", *["published"] * len(texts)])
            sent += texts
        watch.expect(device, *(message(text) for text in sent))
        first = Rumqttc.start(site, device, version, "--keep", "subscribe", COMMANDS.format(device) + "/#", "1")
        first.wait_for_line("subscribed 1")
        feedback = site.hub.send(device, "one")
        expect(f"feedback: {feedback}", feedback.status == 0)
        finished(first)
        sender = site.hub.start_send(device, "two")
        lines = finished(Rumqttc.start(site, device, version, "--keep", "wait", "1"))
        expect_equal("session present", lines[0], "connected 1")
        expect(f"the second command: {lines}", len(lines) == 2 and lines[1].endswith(" two"))
        expect_equal("exit status of hub send", sender.wait(), 0)


@scenario("mqtt: Paho 5: a topic by its alias, and one command at a time")
def five(site, watch):
    device = "paho-five"
    common = (PAHO, site.ports["mqtt"], device, "--version", "5")
    texts = ["by name", "by alias", "by alias again"]
    finished(paho(*common, "--alias", "publish", EVENTS.format(device), "1", *texts))
    watch.expect(device, *(message(text) for text in texts))
    listener = paho(*common, "--receive-maximum", "1", "subscribe", COMMANDS.format(device) + "/#", "3")
    listener.wait_for_line("subscribed 1")
    senders = [site.hub.start_send(device, text) for text in ("one", "two", "three")]
    commands = sorted(line.rsplit(" ", 1)[1] for line in finished(listener) if line.startswith("command "))
    expect_equal("commands", commands, ["one", "three", "two"])
    # Feedback goes to whoever asks first, so that not each of them hears of its own command.
    for sender in senders:
        sender.kill()


@scenario("mqtt: Paho 5: a will waits for its delay, and not for who comes back in time")
def will_with_delay(site, watch):
    device = "paho-will"
    common = (PAHO, site.ports["mqtt"], device, "--version", "5", "--keep")
    topic = EVENTS.format(device)

    def lost(delay, text):
        client = paho(*common, "--will", topic, str(delay), text, "subscribe", COMMANDS.format(device) + "/#", "1")
        client.wait_for_line("subscribed 1")
        client.stop(signal.SIGKILL)

    lost(600, "not needed")
    finished(paho(*common, "publish", topic, "1", "back"))
    lost(WILL_DELAY, "gone")
    watch.expect(device, message("back"), message("gone", {"iothub-MessageType": "Will"}))


ANSWERS = """
version = 1

[[rule]]
name = "questions"
direction = "uplink"
from.mqtt = "questions/{device}"
to.address = "devices/{device}/messages/events"

[[rule]]
name = "answers"
direction = "downlink"
from.hub = "devices/{device}/messages/devicebound"
to.mqtt = { topic = "answers/{device}", qos = 1 }
"""
"""mosquitto_rr listens to one topic without a wildcard."""


@scenario("mqtt: mosquitto_rr: a request goes up with its reply-to, and the command that answers comes back", own=True)
def request_and_response():
    device = "mosquitto-rr"
    site = Site(more={"mappings": {"files": [Directory().file("answers.toml", ANSWERS)]}})
    try:
        site.start()
        watch = site.hub.watch()
        topics = ("-t", f"questions/{device}", "-e", f"answers/{device}")
        argv = mosquitto("mosquitto_rr", site, device, MQTT_5, *topics, "-q", "1", "-m", "how warm?")
        asking = Process(argv, "mosquitto_rr", subprocess.DEVNULL)
        watch.wait(device, 1)
        asked = watch.received(device)[0]
        expect_equal("body", asked["body"], "how warm?")
        expect(f"where to answer: {asked}", asked["system"].get("reply-to") == f"answers/{device}")
        answered = site.hub.send(device, "21 degrees")
        expect(f"feedback: {answered}", answered.status == 0)
        expect(f"the answer: {finished(asking)}", "21 degrees" in asking.text("out"))
        watch.stop()
    finally:
        site.stop()
