"""The memory of idle native AMQP devices: directly, and over a WebSocket, by the same listener."""

import socket
import struct
from contextlib import ExitStack

from fieldgate import Directory, Role, free_port
from measure import memory_kib, report
from processes import Failure

IDLE_DEVICES = 2000
WARM_DEVICES = 50
BUSY_BYTES = 48 * 1024
PATIENCE = 20.0

OPEN = b"\x00\x53\x10\xc0\x0b\x01\xa1\x08idle-dev"
FRAME = struct.Struct(">IBBH")
DIRECT = b"AMQP\x00\x01\x00\x00" + FRAME.pack(FRAME.size + len(OPEN), 2, 0, 0) + OPEN
EMPTY = FRAME.pack(FRAME.size, 2, 0, 0)
REQUEST = (
    b"GET /$iothub/websocket HTTP/1.1\r\nHost: gateway\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: AMQPWSB10\r\n\r\n"
)


def framed(payload):
    """As a client's binary message; a mask of zeros leaves it as it is."""
    length = bytes([0x80 | len(payload)]) if len(payload) < 126 else b"\xfe" + struct.pack(">H", len(payload))
    return b"\x82" + length + b"\x00\x00\x00\x00" + payload


def device(port, web):
    """A device that has opened its connection."""
    stream = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    if web:
        stream.sendall(REQUEST)
        said = read_until(stream, b"\r\n\r\n")
        if not said.startswith(b"HTTP/1.1 101 "):
            raise Failure(f"no WebSocket: {said}")
    stream.sendall(framed(DIRECT) if web else DIRECT)
    read_until(stream, DIRECT[:8])
    return stream


def read_until(stream, wanted):
    said = b""
    while wanted not in said:
        part = stream.recv(4096)
        if not part:
            raise Failure(f"the gateway closed after {said}")
        said += part
    return said


def bench_memory(_options):
    """Resident memory of idle AMQP devices: when they have opened, and after 48 KiB of empty frames in one piece."""
    rows = []
    for web in (False, True):
        port = free_port()
        off = {name: {"listen": []} for name in ("mqtt", "coap", "http")}
        listener = {"listener": [{"host": "127.0.0.1", "port": port, "websocket": True}]}
        hub = {"hub": {"listen": [f"127.0.0.1:{free_port()}"]}, "runtime": {"workers": 1}}
        gateway = Role("run", Directory(), "state", off | listener | hub, "gateway").start().ready()
        with ExitStack() as stack:
            opened = lambda count: [stack.enter_context(device(port, web)) for _ in range(count)]  # noqa: E731
            opened(WARM_DEVICES)
            before = memory_kib(gateway.process.pid)
            devices = opened(IDLE_DEVICES)
            idle = memory_kib(gateway.process.pid)
            busy = EMPTY * (BUSY_BYTES // len(EMPTY))
            for stream in devices:
                stream.sendall(framed(busy) if web else busy)
            # One more round of each: what it has sent before is read by then.
            opened(1)
            after = memory_kib(gateway.process.pid)
        gateway.stop()
        rows.append(
            report(
                f"memory, {IDLE_DEVICES} idle amqp devices{' over WebSocket' if web else ''}",
                bytes_each=round((idle - before) * 1024 / IDLE_DEVICES),
                bytes_each_after_48_kib=round((after - before) * 1024 / IDLE_DEVICES),
            )
        )
    return rows
