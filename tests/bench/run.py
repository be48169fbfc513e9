#!/usr/bin/env python3
"""The benchmarks: programs that print figures, never tests that pass or fail by the clock.

    tests/bench/run.py amqp --tools DIR     routed AMQP: gateway CPU and rate, 1 and 100 links, 100 B to 64 KiB,
                                            each round beside haproxy, which only pumps bytes: the floor
    tests/bench/run.py amqp --tools DIR --baseline    the same without a gateway: load to sink, and through haproxy
    tests/bench/run.py mqtt                 MQTT QoS 1, each PUBACK after the hub's acceptance over TLS
    tests/bench/run.py memory               resident memory for each idle MQTT connection
    tests/bench/run.py all --tools DIR

DIR holds the sources of an AMQP load and sink over libqpid-proton (load.c, sink.c). Needed besides, as Debian packages:
gcc libqpid-proton11-dev haproxy openssl. The gateway and the MQTT load are built with `cargo build --release` and
`cargo build --release --example mqtt_load`. Everything runs on loopback, with bounded message counts.

Each case prints one line of JSON; a table follows at the end. CPU is user and system time of the process named, from
/proc, in microseconds for each message; figures are medians of the rounds, and `[least]` stands beside them.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "interop")]

from fieldgate import Directory, Program, Role, Site  # noqa: E402
from processes import Failure, Process, run, stop_all  # noqa: E402

import routed  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
MQTT_CONNECTIONS = 50
MQTT_WINDOW = 20
MQTT_SIZE = 100
IDLE_CONNECTIONS = 2000
OPEN_FILES = 16_384
PATIENCE = 600.0
"""Seconds that one measured run may take."""


def cpu_seconds(pid):
    """User and system time of a process, all its threads, ended ones too."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_kib(pid):
    """VmRSS."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        for line in file:
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    raise Failure(f"process {pid} has no VmRSS")


def report(case, **figures):
    """Prints one line of JSON and gives it back."""
    line = {"case": case} | figures
    print(json.dumps(line), flush=True)
    return line


def middle(values):
    return round(statistics.median(values), 2)


def table(rows):
    """A small table of what was reported."""
    if not rows:
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns] + [[str(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    print()
    for line in cells:
        first, *others = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join([first.strip().ljust(widths[0]), *others]))


class Hubbed:
    """A gateway and a hub in two processes, so that the gateway's figures are its own."""

    def __enter__(self):
        self.site = Site(separate_hub=True).start()
        self.gateway = self.site.gateway.process.pid
        self.hub = self.site.hub_role.process.pid
        return self

    def __exit__(self, *_):
        self.site.stop()

    def load(self, program, *arguments):
        return [program, "--port", str(self.site.ports["mqtt"]), *arguments]


def bench_mqtt(options):
    """MQTT QoS 1 in a closed loop."""
    rows = []
    for window in (MQTT_WINDOW, 1):
        messages = int((400_000 if window > 1 else 100_000) * options.scale)
        rates, gateway, hub = [], [], []
        with Hubbed() as pair:
            command = pair.load(options.mqtt_load, "--connections", str(MQTT_CONNECTIONS), "--window", str(window))
            command += ["--size", str(MQTT_SIZE), "--messages"]
            warm = run([*command, str(messages // 10)], PATIENCE)
            if warm.status != 0:
                raise Failure(str(warm))
            for _ in range(options.rounds):
                before = cpu_seconds(pair.gateway), cpu_seconds(pair.hub)
                done = run([*command, str(messages)], PATIENCE)
                if done.status != 0:
                    raise Failure(str(done))
                answer = json.loads(done.out)
                rates.append(answer["rate"])
                gateway.append((cpu_seconds(pair.gateway) - before[0]) * 1e6 / answer["messages"])
                hub.append((cpu_seconds(pair.hub) - before[1]) * 1e6 / answer["messages"])
        rows.append(
            report(
                f"mqtt qos 1, {MQTT_CONNECTIONS} connections, window {window}, {MQTT_SIZE} B",
                messages_per_second=round(statistics.median(rates)),
                gateway_us_per_message=middle(gateway),
                gateway_us_least=round(min(gateway), 2),
                hub_us_per_message=middle(hub),
                rounds=options.rounds,
            )
        )
    return rows


def hold(pair, options, connections, warm, prefix):
    """Connections that stay open until the process's standard input is closed."""
    arguments = ["--hold", "--connections", str(connections), "--warm", str(warm), "--prefix", prefix]
    process = Process(pair.load(options.mqtt_load, *arguments), stdin=subprocess.PIPE)
    process.wait_for_line("READY", deadline=PATIENCE)
    return process


def bench_memory(options):
    """Resident memory of idle MQTT connections: only connected, and after one message each."""
    rows = []
    for warm in (0, 1):
        with Hubbed() as pair:
            # One device that has sent opens what all of them share: hub connections, first buffers.
            first = hold(pair, options, 1, 1, "first")
            before = resident_kib(pair.gateway)
            held = hold(pair, options, IDLE_CONNECTIONS, warm, "idle")
            after = resident_kib(pair.gateway)
            for process in (held, first):
                process.close_stdin()
                process.wait()
        rows.append(
            report(
                f"memory, {IDLE_CONNECTIONS} idle mqtt connections, {warm} messages each",
                before_kib=before,
                after_kib=after,
                kib_per_connection=round((after - before) / IDLE_CONNECTIONS, 2),
            )
        )
    return rows


def bench_amqp(options):
    """Routed AMQP beside its floor."""
    if not options.tools:
        raise Failure("amqp wants --tools DIR with load.c and sink.c")
    directory = Directory()
    peers = routed.Peers(options.tools, directory)
    paths = dict(peers.direct() if options.baseline else {}, haproxy=(peers.haproxy_port, peers.haproxy.pid))
    gateway = None
    if not options.baseline:
        port, sections = peers.gateway_sections()
        gateway = Role("run", directory, "state", sections, "gateway").start().ready()
        paths["fieldgate"] = (port, gateway.process.pid)
    rows = []
    for links, size, messages in routed.CASES:
        rows += measure_paths(options, peers, paths, links, size, max(links, int(messages * options.scale)))
    if gateway:
        gateway.stop()
    peers.stop()
    return rows


def measure_paths(options, peers, paths, links, size, messages):
    """Alternates between the paths, so that whatever else the machine does hits all of them alike."""
    rates = {name: [] for name in paths}
    cpu = {name: [] for name in paths}
    for port, _ in paths.values():
        peers.load(port, links, size, max(links, messages // 20))  # warm
    for _ in range(options.rounds):
        for name, (port, pid) in paths.items():
            before = cpu_seconds(pid) if pid else 0.0
            answer = peers.load(port, links, size, messages)
            cpu[name].append(((cpu_seconds(pid) if pid else 0.0) - before) * 1e6 / messages)
            rates[name].append(answer["rate"])
    rows = []
    for name, (_, pid) in paths.items():
        figures = {"messages_per_second": round(statistics.median(rates[name]))}
        if pid:
            figures |= {"cpu_us_per_message": middle(cpu[name]), "cpu_us_least": round(min(cpu[name]), 2)}
        if name == "fieldgate" and (floor := statistics.median(cpu["haproxy"])) > 0:
            figures["times_haproxy"] = round(statistics.median(cpu[name]) / floor, 1)
        rows.append(report(f"amqp, {links} links, {size} B, {name}", **figures, rounds=options.rounds, messages=messages))
    return rows


def main():
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    built = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(HERE, "..", "..", "target")), "release")
    parser.add_argument("what", choices=("amqp", "mqtt", "memory", "all"))
    parser.add_argument("--binary", default=os.environ.get("FIELDGATE", os.path.join(built, "fieldgate")))
    parser.add_argument("--mqtt-load", default=os.path.join(built, "examples", "mqtt_load"))
    parser.add_argument("--tools", help="directory of load.c and sink.c")
    parser.add_argument("--baseline", action="store_true", help="amqp without a gateway")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the message counts")
    options = parser.parse_args()
    Program.path = os.path.abspath(options.binary)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, OPEN_FILES), hard))
    benches = {"amqp": bench_amqp, "mqtt": bench_mqtt, "memory": bench_memory}
    rows = []
    try:
        for name, bench in benches.items():
            if options.what in (name, "all"):
                rows += bench(options)
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    finally:
        stop_all()
        Directory.remove_all()
    table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
