"""A device over Azure's own library, unmodified but for its fixed port.

    azure_device.py PORT CA_FILE [--websocket] [--ttl SECONDS] [--x509 HOST DEVICE CERT_FILE KEY_FILE [--gateway HOST]]

Without a certificate it takes a connection string from its input. It sends a message with properties, says `ready`, takes
one command and prints `command TEXT PROPERTY`. With a lifetime of its token it first sends numbered messages without a
pause until it has renewed the token, which it does 120 seconds before the end, and some more; the last it says is
`sent COUNT over CONNECTIONS`.
"""

import argparse
import queue
import sys

import paho.mqtt.client as mqtt
from azure.iot.device import X509, IoTHubDeviceClient, Message

PATIENCE = 60
BEHIND = 20
"""Messages after the renewal."""


class Aim:
    """The library knows 8883 and 443 only. It connects again with each new token."""

    connections = 0

    @classmethod
    def at(cls, port):
        connect = mqtt.Client.connect

        def to_port(self, host, _port=0, *more, **named):
            named.pop("port", None)
            cls.connections += 1
            return connect(self, host, port, *more, **named)

        mqtt.Client.connect = to_port


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("ca_file")
    parser.add_argument("--websocket", action="store_true")
    parser.add_argument("--ttl", type=int)
    parser.add_argument("--x509", nargs=4)
    parser.add_argument("--gateway")
    return parser.parse_args()


def client_of(options):
    with open(options.ca_file, encoding="ascii") as file:
        more = {"server_verification_cert": file.read(), "websockets": options.websocket}
    if options.x509:
        host, device, cert, key = options.x509
        if options.gateway:
            more["gateway_hostname"] = options.gateway
        return IoTHubDeviceClient.create_from_x509_certificate(X509(cert, key), host, device, **more)
    if options.ttl:
        more["sastoken_ttl"] = options.ttl
    return IoTHubDeviceClient.create_from_connection_string(sys.stdin.readline().strip(), **more)


def through_renewal(device):
    """Telemetry before, during and after: one message after the other, each acknowledged."""
    sent, left = 0, BEHIND
    while left:
        device.send_message(Message(f"number {sent}", message_id=f"n-{sent}"))
        sent += 1
        left -= Aim.connections > 1
    return sent


def main():
    options = parse()
    Aim.at(options.port)
    device = client_of(options)
    device.connect()
    message = Message("21 degrees", message_id="m-1", content_encoding="utf-8", content_type="application/json")
    message.custom_properties["site"] = "berlin & co"
    device.send_message(message)
    commands = queue.SimpleQueue()
    device.on_message_received = commands.put
    # The subscription is there when another message has been acknowledged behind it.
    device.send_message("second")
    sent = through_renewal(device) if options.ttl else 0
    print("ready", flush=True)
    command = commands.get(timeout=PATIENCE)
    print("command", command.data.decode(), command.custom_properties.get("lane"), flush=True)
    if options.ttl:
        print("sent", sent, "over", Aim.connections, flush=True)
    device.shutdown()


main()
