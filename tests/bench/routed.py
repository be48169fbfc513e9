"""The benchmarks of routed AMQP: cost at saturation, cost and latency at a modest rate, memory, and many devices."""

import statistics
from contextlib import contextmanager

from fieldgate import Directory
from measure import Costs, memory_kib, middle, ratio, report
from peers import Peers

CASES = [
    (1, 100, 1_000_000),
    (1, 1024, 600_000),
    (1, 65536, 20_000),
    (100, 100, 1_000_000),
    (100, 1024, 600_000),
    (100, 65536, 20_000),
]
"""Links (one on each connection), bytes of the body, messages in a round: some seconds each."""

RATE = 1000
"""Messages a second where latency is measured."""
RATE_LINKS = 100
RATE_SECONDS = 10

WARM_MESSAGES, WARM_SIZE = 20, 1024
"""What a device has sent before it idles again."""

FEW = 10
"""Devices that send while all the others are only attached."""


@contextmanager
def running(options, direct=False):
    """The peers, and the paths to measure: name -> (port, process)."""
    peers = Peers(options.tools, Directory())
    paths = peers.direct() if options.baseline else {}
    if direct and not options.baseline:
        paths["tls, direct"] = peers.direct()["tls, direct"]
    paths |= peers.floor()
    gateways = {} if options.baseline else {named(mode): peers.gateway(mode) for mode in modes(options)}
    paths |= {name: (gateway.port, gateway.pid) for name, gateway in gateways.items()}
    yield peers, paths
    for gateway in gateways.values():
        gateway.stop()
    peers.stop()


def modes(options):
    """The upstream modes asked for; `None` is what the gateway does by itself."""
    return options.mode or [None]


def named(mode):
    return f"fieldgate, {mode}" if mode else "fieldgate"


def bench_amqp(options):
    """At saturation, beside the floor."""
    rows = []
    with running(options) as (peers, paths):
        for links, size, messages in CASES:
            if options.only and f"{links}x{size}" not in options.only:
                continue
            rows += saturate(options, peers, paths, links, size, max(2 * links, int(messages * options.scale)))
    return rows


def saturate(options, peers, paths, links, size, messages):
    """Alternates between the paths, so that whatever else the machine does hits all of them alike."""
    rates = {name: [] for name in paths}
    costs = {name: Costs(pid) for name, (_, pid) in paths.items()}
    for port, _ in paths.values():
        peers.load(port, links, size, max(links, messages // 20))  # warm
    for _ in range(options.rounds):
        for name, (port, _) in paths.items():
            answer = costs[name].measure(lambda count, port=port: peers.load(port, links, size, count), messages, links)
            rates[name].append(answer["rate"])
    rows = []
    for name, cost in costs.items():
        figures = cost.figures()
        if name.startswith("fieldgate"):
            figures["times_haproxy"] = ratio(cost.micros, costs["haproxy"].micros)
        figures["messages_per_second"] = round(statistics.median(rates[name]))
        rows.append(report(f"amqp, {links} x {size} B, {name}", **figures, rounds=options.rounds, messages=messages))
    return rows


def bench_latency(options):
    """Open loop at a modest rate: scheduled time to settled, against a direct TLS connection in the same rounds."""
    messages = max(2 * RATE_LINKS, int(RATE * RATE_SECONDS * options.scale))
    rows = []
    with running(options, direct=True) as (peers, paths):
        costs = {name: Costs(pid) for name, (_, pid) in paths.items()}
        halves, tails = {name: [] for name in paths}, {name: [] for name in paths}
        for _ in range(options.rounds):
            for name, (port, _) in paths.items():
                work = lambda count, port=port: peers.load(port, RATE_LINKS, 100, count, RATE)  # noqa: E731
                answer = costs[name].measure(work, messages, RATE_LINKS)
                halves[name].append(answer["lat_ms"]["p50"])
                tails[name].append(answer["lat_ms"]["p99"])
        for name, cost in costs.items():
            figures = cost.figures()
            if name.startswith("fieldgate"):
                figures["times_haproxy"] = ratio(cost.micros, costs["haproxy"].micros)
            figures |= {"p50_ms": middle(halves[name]), "p99_ms": middle(tails[name])}
            if "tls, direct" in halves and name != "tls, direct":
                figures["p50_times_direct"] = ratio(halves[name], halves["tls, direct"])
            case = f"latency, {RATE}/s over {RATE_LINKS} links, 100 B, {name}"
            rows.append(report(case, **figures, rounds=options.rounds, messages=messages))
    return rows


def bench_memory(options):
    """Resident memory of devices with one routed link each: idle, and idle again after some messages; in a fresh
    process each."""
    peers = Peers(options.tools, Directory())
    rows = []
    for name, mode in [*((named(mode), mode) for mode in modes(options)), ("haproxy", None)]:
        for messages in (0, WARM_MESSAGES):
            if name == "haproxy":
                peers.restart_haproxy()
                rows.append(held(options, peers, name, peers.haproxy_port, peers.haproxy.pid, messages))
                continue
            gateway = peers.gateway(mode)
            rows.append(held(options, peers, name, gateway.port, gateway.pid, messages))
            gateway.stop()
    peers.stop()
    return rows


def held(options, peers, name, port, pid, messages):
    """What so many devices take. One device that has sent opens what all of them share before."""
    first = peers.hold(port, 1, WARM_SIZE, 1)
    before = memory_kib(pid)
    devices = peers.hold(port, options.devices, WARM_SIZE, messages, first_id=0)
    after, most = memory_kib(pid), memory_kib(pid, "VmHWM")
    for process in (devices, first):
        process.kill()
    return report(
        f"memory, {options.devices} idle amqp devices, {messages} x {WARM_SIZE} B each, {name}",
        before_kib=before,
        after_kib=after,
        most_kib=most,
        kib_each=round((after - before) / options.devices, 2),
    )


def bench_many(options):
    """A few devices that send, among many that are only attached, against the few alone; at saturation and at a modest
    rate, two gateways in the same rounds."""
    cases = [("saturated", int(500_000 * options.scale), None), (f"{RATE}/s", int(RATE * 5 * options.scale), RATE)]
    peers = Peers(options.tools, Directory())
    rows = []
    for mode in modes(options):
        gateways = {FEW: peers.gateway(mode), options.devices: peers.gateway(mode)}
        idle = peers.hold(gateways[options.devices].port, options.devices - FEW)
        for case, messages, rate in cases:
            costs = {devices: Costs(gateway.pid) for devices, gateway in gateways.items()}
            for gateway in gateways.values():
                peers.load(gateway.port, FEW, 100, max(FEW, messages // 20), rate)  # warm
            for _ in range(options.rounds):
                for devices, gateway in gateways.items():
                    work = lambda count, port=gateway.port: peers.load(port, FEW, 100, count, rate)  # noqa: E731
                    costs[devices].measure(work, messages, FEW)
            for devices, cost in costs.items():
                figures = cost.figures()
                if devices != FEW:
                    figures["times_few"] = ratio(cost.micros, costs[FEW].micros)
                of = f"many, {FEW} of {devices} attached send, 100 B, {case}, {named(mode)}"
                rows.append(report(of, **figures, rounds=options.rounds, messages=messages))
        idle.kill()
        for gateway in gateways.values():
            gateway.stop()
    peers.stop()
    return rows
