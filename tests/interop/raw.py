"""Bytes that no client would send: hand-made packets and seeded rubbish."""

import random
import socket

from processes import DEADLINE, Failure

MQTT_DISCONNECT = 0xE0
COAP_PAYLOAD_MARKER = b"\xff"


def mqtt_string(text):
    return len(text).to_bytes(2, "big") + text.encode()


def mqtt_length(number):
    """A variable byte integer."""
    out = bytearray()
    while True:
        number, low = number // 128, number % 128
        out.append(low | (128 if number else 0))
        if not number:
            return bytes(out)


def mqtt_connect(client_id, version):
    """A CONNECT with a clean session and a keep-alive of one minute; version 4 or 5."""
    body = mqtt_string("MQTT") + bytes([version, 2, 0, 60]) + (b"\0" if version == 5 else b"") + mqtt_string(client_id)
    return b"\x10" + mqtt_length(len(body)) + body


def mqtt_publish(topic, payload, version, qos=1):
    body = mqtt_string(topic) + (b"\0\1" if qos else b"") + (b"\0" if version == 5 else b"") + payload
    return bytes([0x30 | qos << 1]) + mqtt_length(len(body)) + body


def coap_post(path, payload, message_id=0x1234, token=b"ab"):
    """A confirmable POST."""
    out = bytearray([0x40 | len(token), 0x02]) + message_id.to_bytes(2, "big") + token
    number = 0
    for segment in path.split("/"):
        option = segment.encode()
        assert len(option) < 13 or len(option) < 269
        delta, number = 11 - number, 11
        out += bytes([delta << 4 | len(option)]) if len(option) < 13 else bytes([delta << 4 | 13, len(option) - 13])
        out += option
    return bytes(out) + COAP_PAYLOAD_MARKER + payload


def coap_exchange(port, datagram):
    """Sends one datagram and returns the answer to it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.settimeout(DEADLINE)
        udp.connect(("127.0.0.1", port))
        udp.send(datagram)
        return udp.recv(65536)


def coap_code(datagram):
    """The code as people write it: 4.13."""
    return f"{datagram[1] >> 5}.{datagram[1] & 31:02d}"


def tcp_exchange(port, data):
    """Sends all, then says that no more comes, and returns what was answered; the peer must close.

    A peer that closes while bytes are still on their way to it resets the connection: that is an end as well.
    """
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as tcp:
        try:
            tcp.sendall(data)
            tcp.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        try:
            while chunk := tcp.recv(65536):
                answer += chunk
        except ConnectionError:
            pass
        except TimeoutError:
            raise Failure(f"port {port} does not close after {data[:40]!r}") from None
    return answer


def mqtt_exchange(port, data):
    """Like `tcp_exchange`, but the sending side stays open: the server itself must end the connection."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as tcp:
        try:
            tcp.sendall(data)
        except ConnectionError:
            pass
        try:
            while chunk := tcp.recv(65536):
                answer += chunk
        except ConnectionError:
            pass
        except TimeoutError:
            raise Failure(f"port {port} keeps the connection open after {data[:40]!r}; it said {answer!r}") from None
    return answer


def rubbish(seed, count):
    """So many strings of seeded random bytes, of all lengths from none to some thousands."""
    dice = random.Random(seed)
    return [dice.randbytes(dice.choice((0, 1, 2, 3, 4, 7, 8, 9, 64, 1000, 5000))) for _ in range(count)]


MALFORMED = {
    "amqp": [
        b"AMQP\x00\x02\x00\x00",  # another version
        b"AMQP\x00\x01\x00\x00" + b"\x00\x00\x00\x07\x02\x00\x00\x00",  # a frame shorter than its header
        b"AMQP\x00\x01\x00\x00" + b"\xff\xff\xff\xff\x02\x00\x00\x00",  # a frame of 4 GiB
        b"AMQP\x00\x01\x00\x00" + b"\x00\x00\x00\x10\x02\x00\x00\x00\x00\x53\x10\xd0\xff\xff\xff\xff",  # an open of 4 GiB
        b"AMQP\x03\x01\x00\x00" + b"\x00\x00\x00\x0c\x02\x01\x00\x00\x00\x53\x10\x45",  # no SASL after its header
    ],
    "mqtt": [
        b"\x10\xff\xff\xff\xff\x7f",  # a length of five bytes
        mqtt_publish("devices/x/messages/events/", b"before any CONNECT", 4),
        mqtt_connect("bad-twice", 4) * 2,
        mqtt_connect("bad-level", 9),
        mqtt_connect("bad-flags", 4)[:9] + b"\x03" + mqtt_connect("bad-flags", 4)[10:],  # the reserved flag
        mqtt_connect("bad-wildcard", 4) + mqtt_publish("devices/bad-wildcard/messages/events/#", b"x", 4),
        mqtt_connect("bad-type", 5) + b"\x20\x03\x00\x00\x00",  # a CONNACK from a client
        mqtt_connect("bad-utf8", 4) + b"\x32\x07\x00\x02\xc3\x28\x00\x01x",
    ],
    "http": [
        b"NOT HTTP AT ALL\r\n\r\n",
        b"POST /devices/x/messages/events HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /devices/x/messages/events HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
    ],
    "coap": [
        b"\x40\x02\x00\x01\xff",  # a payload marker without a payload
        b"\x80\x02\x00\x02",  # version 2
        b"\x4f\x02\x00\x03",  # a token length that is reserved
        b"\x40\x02\x00\x04\xbf\xff",  # an option that is cut
        b"\x40\x02\x00\x05" + b"\x00" * 1400,  # 1,400 empty options
        b"\x40\x45\x00\x06",  # a response that nobody asked for
    ],
}
"""Packets of each protocol that break one rule each."""
