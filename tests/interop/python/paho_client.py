"""A device over Paho, of whichever API version is installed in PYTHONPATH.

    paho_client.py --port N --id ID [--version 3|4|5] [--ca FILE] [--path PATH] [--keep] COMMAND

In MQTT 5 also `--alias`: the topic is said once, and then its alias; `--receive-maximum N`: so many commands at a time;
`--will TOPIC DELAY TEXT`.

`publish TOPIC QOS TEXT...` publishes one after the other and ends when all are acknowledged; `subscribe FILTER COUNT` and
`wait COUNT` (a session that has its subscription already) end with so many commands. It prints `connected PRESENT`,
`subscribed CODES`, `published`, `command TOPIC TEXT`.
"""

import argparse
import ssl
import sys
import threading

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

PATIENCE = 30
KEPT_SECONDS = 600


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--id", required=True)
    parser.add_argument("--version", type=int, default=mqtt.MQTTv311)
    parser.add_argument("--ca")
    parser.add_argument("--path")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--alias", action="store_true")
    parser.add_argument("--receive-maximum", type=int)
    parser.add_argument("--will", nargs=3)
    parser.add_argument("command", choices=("publish", "subscribe", "wait"))
    parser.add_argument("arguments", nargs="+")
    return parser.parse_args()


def client_of(options):
    """Both API versions: the second asks for its number."""
    named = {"client_id": options.id, "protocol": options.version, "transport": "websockets" if options.path else "tcp"}
    if options.version != mqtt.MQTTv5:
        named["clean_session"] = not options.keep
    if hasattr(mqtt, "CallbackAPIVersion"):
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, **named)
    else:
        client = mqtt.Client(**named)
    if options.path:
        client.ws_set_options(path=options.path)
    if options.ca:
        client.tls_set(ca_certs=options.ca, tls_version=ssl.PROTOCOL_TLS_CLIENT)
    if options.will:
        topic, delay, text = options.will
        properties = Properties(PacketTypes.WILLMESSAGE)
        properties.WillDelayInterval = int(delay)
        client.will_set(topic, text, qos=1, properties=properties)
    return client


def connect(client, options):
    if options.version != mqtt.MQTTv5:
        return client.connect("localhost", options.port)
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = KEPT_SECONDS if options.keep else 0
    if options.receive_maximum:
        properties.ReceiveMaximum = options.receive_maximum
    return client.connect("localhost", options.port, clean_start=not options.keep, properties=properties)


def publish(client, options):
    """Publishes all, and then waits for the acknowledgements."""
    topic, qos, *texts = options.arguments
    published = []
    for number, text in enumerate(texts):
        properties = None
        if options.alias:
            properties = Properties(PacketTypes.PUBLISH)
            properties.TopicAlias = 1
        said = "" if options.alias and number > 0 else topic
        published.append(client.publish(said, text, qos=int(qos), properties=properties))
    for one in published:
        one.wait_for_publish(PATIENCE)
        if not one.is_published():
            sys.exit("not acknowledged")
        say("published")


def say(*words):
    print(*words, flush=True)


def main():
    options = parse()
    client = client_of(options)
    connected, subscribed, enough = threading.Event(), threading.Event(), threading.Event()
    left = {"publish": 0, "subscribe": 1, "wait": 0}[options.command]
    left = int(options.arguments[left]) if options.command != "publish" else 0
    seen = []

    def on_connect(_client, _data, flags, *_):
        # A dictionary in the first version, an object with a field in the second.
        present = flags["session present"] if isinstance(flags, dict) else flags.session_present
        say("connected", int(present))
        connected.set()

    def on_subscribe(_client, _data, _mid, codes, *_):
        say("subscribed", " ".join(str(int(getattr(code, "value", code))) for code in codes))
        subscribed.set()

    def on_message(_client, _data, message):
        say("command", message.topic, message.payload.decode())
        seen.append(message)
        if len(seen) == left:
            enough.set()

    client.on_connect, client.on_subscribe, client.on_message = on_connect, on_subscribe, on_message
    connect(client, options)
    client.loop_start()
    if not connected.wait(PATIENCE):
        sys.exit("no CONNACK")
    if options.command == "publish":
        publish(client, options)
    if options.command == "subscribe":
        client.subscribe(options.arguments[0], qos=1)
        if not subscribed.wait(PATIENCE):
            sys.exit("no SUBACK")
    if left and not enough.wait(PATIENCE):
        sys.exit(f"{len(seen)} of {left} commands came")
    if left:
        # The thread writes what there is, such as the last PUBACK, before it ends.
        client.loop_stop()
    client.disconnect()
    client.loop_stop()


main()
