"""A device over Azure's own library, unmodified but for its fixed port.

    azure_device.py PORT CA_FILE [--websocket] < CONNECTION_STRING

It sends a message with properties, says `ready`, takes one command and prints `command TEXT PROPERTY`.
"""

import queue
import sys

import paho.mqtt.client as mqtt
from azure.iot.device import IoTHubDeviceClient, Message

PATIENCE = 60


def aim(port):
    """The library knows 8883 and 443 only."""
    connect = mqtt.Client.connect

    def to_port(self, host, _port=0, *more, **named):
        named.pop("port", None)
        return connect(self, host, port, *more, **named)

    mqtt.Client.connect = to_port


def main():
    port, ca_file, *more = sys.argv[1:]
    aim(int(port))
    with open(ca_file, encoding="ascii") as file:
        ca = file.read()
    device = IoTHubDeviceClient.create_from_connection_string(
        sys.stdin.readline().strip(), server_verification_cert=ca, websockets="--websocket" in more
    )
    device.connect()
    message = Message("21 degrees", message_id="m-1", content_encoding="utf-8", content_type="application/json")
    message.custom_properties["site"] = "berlin & co"
    device.send_message(message)
    commands = queue.SimpleQueue()
    device.on_message_received = commands.put
    # The subscription is there when another message has been acknowledged behind it.
    device.send_message("second")
    print("ready", flush=True)
    command = commands.get(timeout=PATIENCE)
    print("command", command.data.decode(), command.custom_properties.get("lane"), flush=True)
    device.shutdown()


main()
