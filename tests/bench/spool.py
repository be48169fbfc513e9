"""The benchmarks of the spool: MQTT messages that are acknowledged when the disk has them, with the hub away, then there.

The hub is a process of its own, so that the gateway's CPU, bytes and memory are its own; they include the MQTT side.
"""

import json
import subprocess
import time

from fieldgate import Directory, Program, Site
from mapped import MQTT_CONNECTIONS, MQTT_WINDOW, PATIENCE, closed_loop
from measure import cpu_seconds, memory_kib, middle, report
from processes import Failure

SIZE = 200
MESSAGES = 300_000
MANY = 1_000_000

RULES = """
version = 1

[[rule]]
name = "events"
direction = "uplink"
to.address = "devices/{device}/messages/events"

[rule.from]
mqtt = "devices/{device}/messages/events/"

[rule.delivery]
ack = "on-store"
"""


class Spooling:
    """A gateway whose rule stores everything, and its hub, which comes and goes."""

    def __init__(self):
        directory = Directory()
        rules = directory.file("on-store.toml", RULES)
        spool = {"max_bytes": "4GiB", "device_max_bytes": "4GiB", "max_records": 2_000_000, "device_max_records": 2_000_000}
        self.site = Site(separate_hub=True, more={"mappings": {"files": [rules]}, "spool": spool})

    def __enter__(self):
        self.site.start()
        return self

    def __exit__(self, *_):
        self.site.stop()

    @property
    def pid(self):
        """The gateway's process."""
        return self.site.gateway.process.pid

    def load(self, options, messages, connections=MQTT_CONNECTIONS, window=MQTT_WINDOW, prefix="load"):
        """Messages, each acknowledged."""
        port = self.site.ports["mqtt"]
        return closed_loop(options, port, window, connections, SIZE, prefix)(messages)

    def records(self):
        """How many messages wait: the gateway is asked, for its gauge is a second old."""
        done = Program.run("spool", "status", "--json", "--state-dir", self.site.gateway.state)
        if done.status != 0:
            raise Failure(str(done))
        return json.loads(done.out)["records"]

    def figure(self, name):
        """A metric of the gateway."""
        return self.site.gateway.metrics()[f"fieldgate_{name}"]

    def drain(self):
        """Starts the hub and waits until nothing is left; gives the seconds."""
        begun = time.monotonic()
        self.site.hub_role.start()
        self.drained()
        return time.monotonic() - begun

    def drained(self):
        """Waits until nothing is left."""
        until = time.monotonic() + PATIENCE
        while left := self.records():
            if time.monotonic() > until:
                raise Failure(f"{left} messages are left after {PATIENCE:.0f} s")
            self.site.gateway.process.wait_for_change(0.1)


def written(pid):
    """Bytes that a process gave to the disk, in whole pages."""
    with open(f"/proc/{pid}/io", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("write_bytes"))


def bare_rate(options, group):
    """Records a second that a bare file takes in groups of this size: written and synced, with nothing besides."""
    records = str(max(200, 400_000 // group) * group)
    command = [options.store_program, Directory().path, "--records", records, "--bytes", str(SIZE), "--group", str(group)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failure(f"{' '.join(command)}: {done.stderr}")
    through = next(json.loads(line) for line in done.stdout.splitlines() if '"through"' in line)
    return through["bare_commits_per_s"] * group


def bench_spool(options):
    """Append, drain, memory, bytes, and the share of what the disk can do; then a start with a full spool."""
    rows = []
    for window in (MQTT_WINDOW, 1):
        messages = int(MESSAGES * options.scale)
        rounds = [one_round(options, messages, window) for _ in range(options.rounds)]
        name = f"spool, {MQTT_CONNECTIONS} mqtt connections, window {window}, {SIZE} B, {messages} messages"
        figures = {key: middle([one[key] for one in rounds]) for key in rounds[0]}
        rows.append(report(name, **figures, rounds=options.rounds))
    return [*rows, bench_start(options)]


def one_round(options, messages, window):
    """One gateway, filled and drained."""
    with Spooling() as spooling:
        spooling.load(options, messages // 10, window=window)  # warm
        spooling.drained()
        spooling.site.hub_role.stop()
        before, memory = cpu_seconds(spooling.pid), memory_kib(spooling.pid)
        commits, stored, io = spooling.figure("spool_commits_total"), spooling.figure("spool_appended_total"), written(spooling.pid)
        answer = spooling.load(options, messages, window=window)
        append = (cpu_seconds(spooling.pid) - before) * 1e6 / messages
        full = memory_kib(spooling.pid)
        commits = spooling.figure("spool_commits_total") - commits
        group = round((spooling.figure("spool_appended_total") - stored) / commits)
        before = cpu_seconds(spooling.pid)
        seconds = spooling.drain()
        drain = (cpu_seconds(spooling.pid) - before) * 1e6 / messages
        return {
            "append_cpu_us": append,
            "drain_cpu_us": drain,
            "io_bytes_each": (written(spooling.pid) - io) / messages,
            "full_kib": full,
            "empty_kib": memory,
            "acknowledged_per_s": answer["rate"],
            "group": group,
            "share_of_bare": answer["rate"] / bare_rate(options, group),
            "drained_per_s": messages / seconds,
        }


def bench_start(options):
    """A gateway is killed with a full spool, and started: the time to its first acknowledgement."""
    messages = int(MANY * options.scale)
    with Spooling() as spooling:
        spooling.site.hub_role.stop()
        spooling.load(options, messages)
        times = []
        for round_ in range(options.rounds):
            spooling.site.gateway.process.kill()
            begun = time.monotonic()
            spooling.site.gateway.start().listening(spooling.site.ports["mqtt"])
            spooling.load(options, 1, connections=1, window=1, prefix=f"first{round_}")
            times.append(time.monotonic() - begun)
        kept = spooling.records()
        if kept < messages:
            raise Failure(f"{kept} of {messages} messages are there after the start")
        return report(
            f"spool, start with {messages} messages", seconds=middle(times), kib=memory_kib(spooling.pid), rounds=options.rounds
        )
