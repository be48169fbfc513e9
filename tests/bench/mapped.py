"""The benchmarks of mapped protocols: MQTT against a hub in a process of its own."""

import json
import statistics
import subprocess

from fieldgate import Site
from measure import Costs, memory_kib, report
from processes import Failure, Process, run

MQTT_CONNECTIONS = 50
MQTT_WINDOW = 20
MQTT_SIZE = 100
IDLE_CONNECTIONS = 2000
PATIENCE = 600.0
"""Seconds that one measured run may take."""


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
        rates = []
        with Hubbed() as pair:
            gateway, hub = Costs(pair.gateway), Costs(pair.hub)
            command = pair.load(options.mqtt_load, "--connections", str(MQTT_CONNECTIONS), "--window", str(window))
            command += ["--size", str(MQTT_SIZE), "--messages"]
            load(command, messages // 10)  # warm
            for _ in range(options.rounds):
                with gateway.over(messages), hub.over(messages):
                    answer = load(command, messages)
                rates.append(answer["rate"])
        rows.append(
            report(
                f"mqtt qos 1, {MQTT_CONNECTIONS} connections, window {window}, {MQTT_SIZE} B",
                messages_per_second=round(statistics.median(rates)),
                **gateway.figures(),
                **hub.figures("hub_cpu_us"),
                rounds=options.rounds,
            )
        )
    return rows


def load(command, messages):
    """One run of the load: what it says."""
    done = run([*command, str(messages)], PATIENCE)
    if done.status != 0:
        raise Failure(str(done))
    return json.loads(done.out)


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
            before = memory_kib(pair.gateway)
            held = hold(pair, options, IDLE_CONNECTIONS, warm, "idle")
            after = memory_kib(pair.gateway)
            for process in (held, first):
                process.close_stdin()
                process.wait()
        rows.append(
            report(
                f"memory, {IDLE_CONNECTIONS} idle mqtt connections, {warm} messages each",
                before_kib=before,
                after_kib=after,
                kib_each=round((after - before) / IDLE_CONNECTIONS, 2),
            )
        )
    return rows
