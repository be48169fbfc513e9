"""The benchmarks of mapped protocols: MQTT against a hub in a process of its own."""

import json
import statistics
import subprocess
import time

from brokers import Certificates
from fieldgate import Directory, Site, free_port
from measure import Costs, cpu_seconds, memory_kib, ratio, report
from mqtt_peers import Mosquitto, Rabbit
from processes import Failure, Process, run

MQTT_CONNECTIONS = 50
MQTT_WINDOW = 20
MQTT_SIZE = 100
IDLE_CONNECTIONS = 2000
MANY_CONNECTIONS = 15_000
KEEP_ALIVE = 60
PATIENCE = 600.0
"""Seconds that one measured run may take."""


class Hubbed:
    """A gateway and a hub in two processes, so that the gateway's figures are its own."""

    def __init__(self, tls=False):
        self.tls_port = free_port() if tls else None
        sections = {}
        if tls:
            certificates = Certificates(Directory())
            self.ca = certificates.ca
            profile = {"name": "server", "cert_file": certificates.cert, "private_key_file": certificates.key}
            listener = {"protocol": "mqtt", "host": "127.0.0.1", "port": self.tls_port, "ssl_profile": "server"}
            listener |= {"allow_anonymous": True}
            sections = {"ssl_profile": [profile], "listener": [listener]}
        sections["mqtt"] = {"max_connections": MANY_CONNECTIONS + 100}
        self.site = Site(separate_hub=True, more=sections)

    def __enter__(self):
        self.site.start()
        self.gateway = self.site.gateway.process.pid
        self.hub = self.site.hub_role.process.pid
        return self

    def __exit__(self, *_):
        self.site.stop()

    @property
    def port(self):
        return self.site.ports["mqtt"]


class Gateway:
    """The gateway as one of those that are measured."""

    share = 1

    def __init__(self, pair):
        self.name = "fieldgate, to the hub over TLS"
        self.port = pair.port
        self.costs = Costs(pair.gateway)

    def run(self, load, messages):
        """One round: messages a second, accepted by the hub."""
        return load(messages)["rate"]

    def stop(self):
        """Its site stops by itself."""


def bench_mqtt(options):
    """MQTT QoS 1 in a closed loop; with `--peers` what others take for it in the same rounds."""
    rows = []
    for window in (MQTT_WINDOW, 1):
        messages = int((400_000 if window > 1 else 100_000) * options.scale)
        with Hubbed() as pair:
            hub = Costs(pair.hub)
            peers = [Gateway(pair)]
            if options.peers:
                peers += [Mosquitto(), Rabbit(options.consumer)]
            loads = [closed_loop(options, peer.port, window) for peer in peers]
            rates = [[] for _ in peers]
            for peer, work in zip(peers, loads, strict=True):
                peer.run(work, int(messages * peer.share) // 10)  # warm
            for _ in range(options.rounds):
                for peer, work, rate in zip(peers, loads, rates, strict=True):
                    count = int(messages * peer.share)
                    with peer.costs.over(count), hub.over(count):
                        rate.append(peer.run(work, count))
                    if peer is not peers[0]:
                        hub.micros.pop()  # it had nothing to do
            for peer, rate in zip(peers, rates, strict=True):
                mine = peer is peers[0]
                rows.append(
                    report(
                        f"mqtt qos 1, {MQTT_CONNECTIONS} connections, window {window}, {MQTT_SIZE} B: {peer.name}",
                        messages_per_second=round(statistics.median(rate)),
                        times=ratio(rates[0], rate),
                        **peer.costs.figures(),
                        **(hub.figures("hub_cpu_us") if mine else {}),
                        rounds=options.rounds,
                    )
                )
                peer.stop()
    return rows


def closed_loop(options, port, window, connections=MQTT_CONNECTIONS, size=MQTT_SIZE, prefix="load"):
    """Devices that publish with QoS 1: a function of the number of messages, which gives what the load says."""
    command = [options.mqtt_load, "--port", str(port), "--connections", str(connections), "--window", str(window)]
    command += ["--size", str(size), "--prefix", prefix, "--messages"]

    def load(messages):
        done = run([*command, str(messages)], PATIENCE)
        if done.status != 0:
            raise Failure(str(done))
        return json.loads(done.out)

    return load


def hold(options, port, connections, prefix, *arguments):
    """Connections that stay open until the process's standard input is closed."""
    command = [options.mqtt_load, "--port", str(port), "--hold", "--connections", str(connections), "--prefix", prefix]
    process = Process([*command, *arguments], stdin=subprocess.PIPE)
    process.wait_for_line("READY", deadline=PATIENCE)
    return process


def bench_memory(options):
    """Resident memory of idle MQTT connections: only connected, and after one message each; plain and TLS."""
    rows = []
    for tls in (False, True):
        for warm in (0, 1):
            with Hubbed(tls) as pair:
                way = ("--ca", pair.ca) if tls else ()
                port = pair.tls_port if tls else pair.port
                # One device that has sent opens what all of them share: hub connections, first buffers.
                first = hold(options, port, 1, "first", "--warm", "1", *way)
                before = memory_kib(pair.gateway)
                held = hold(options, port, IDLE_CONNECTIONS, "idle", "--warm", str(warm), *way)
                after = memory_kib(pair.gateway)
                for process in (held, first):
                    process.close_stdin()
                    process.wait()
            rows.append(
                report(
                    f"memory, {IDLE_CONNECTIONS} idle mqtt connections{' over TLS' if tls else ''}, {warm} messages each",
                    before_kib=before,
                    after_kib=after,
                    kib_each=round((after - before) / IDLE_CONNECTIONS, 2),
                )
            )
    return rows


def bench_idle(options):
    """CPU of a gateway that has many idle MQTT connections: each sends a PINGREQ once in its keep-alive time."""
    with Hubbed() as pair:
        port = pair.port
        held = hold(options, port, MANY_CONNECTIONS, "idle", "--keep-alive", str(KEEP_ALIVE))
        cpu, begun = cpu_seconds(pair.gateway), time.monotonic()
        # Nothing is awaited: the time itself is what is measured.
        time.sleep(KEEP_ALIVE * 2)
        if not held.running:
            raise Failure(f"the connections did not last\n{held.tail()}")
        cpu, lasted = cpu_seconds(pair.gateway) - cpu, time.monotonic() - begun
        held.close_stdin()
        held.wait()
    row = report(
        f"{MANY_CONNECTIONS} idle mqtt connections, keep-alive {KEEP_ALIVE} s",
        percent_of_a_core=round(100 * cpu / lasted, 2),
        seconds=round(lasted),
    )
    return [row]
