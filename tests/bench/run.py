#!/usr/bin/env python3
"""The benchmarks: programs that print figures, never tests that pass or fail by the clock.

Routed AMQP, plain in and TLS to the hub, beside haproxy in the same rounds, which only pumps bytes: the floor

    tests/bench/run.py amqp --tools DIR       gateway CPU for each message at saturation: 1 and 100 links, 100 B to 64 KiB
    tests/bench/run.py latency --tools DIR    1,000 messages/s over 100 links: CPU, p50, p99; also against direct TLS
    tests/bench/run.py memory --tools DIR     resident memory for each idle device, AMQP and MQTT
    tests/bench/run.py many --tools DIR       10 devices that send, among 5,000 attached, against 10 alone
    tests/bench/run.py amqp --tools DIR --baseline    without a gateway: load to sink, and through haproxy

The others

    tests/bench/run.py outage                 the hub's connection is cut under load: what 200 devices are told, and
                                              what the hub has; ends with 1 where the promise was not kept
    tests/bench/run.py store                  the log below the spool, by itself: CPU and bytes for each record, opening
    tests/bench/run.py spool                  MQTT messages over the disk, the hub away, then there: CPU, bytes, memory,
                                              the share of what the bare disk takes; a start with a full spool
    tests/bench/run.py upstream               the way to the hub by itself: CPU from a message to the hub's outcome over TLS,
                                              memory of a device with an idle pair of links
    tests/bench/run.py mqtt [--peers]         MQTT QoS 1, each PUBACK after the hub's acceptance over TLS; beside it, in the
                                              same rounds, mosquitto without a subscriber, and RabbitMQ from MQTT to an
                                              AMQP 1.0 consumer (`tests/interop/install` gets it; mosquitto as a package)
    tests/bench/run.py idle                   CPU for 15,000 idle MQTT connections with a keep-alive time of 60 s
    tests/bench/run.py all --tools DIR

DIR holds the sources of an AMQP load and sink over libqpid-proton (load.c, sink.c). Needed besides, as Debian packages:
gcc libqpid-proton11-dev haproxy openssl. Built before with `cargo build --release --bin fieldgate --examples`.
`--mode shared` and `--mode per-connection` choose the upstream mode; both may be given, and are measured in the same
rounds. Everything runs on loopback, with bounded message counts.

Each case prints one line of JSON; a table follows at the end. CPU is user and system time of the process named, in
microseconds for each message, without what opening and closing the connections takes; figures are medians of the rounds,
and `_least` stands beside them. A ratio is the median of the ratios within each round, because other work on the machine
hits both paths of a round alike.
"""

import argparse
import os
import resource
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "interop")]

from fieldgate import Directory, Program  # noqa: E402
from processes import Failure, stop_all  # noqa: E402

import mapped  # noqa: E402
import outage  # noqa: E402
import routed  # noqa: E402
import spool  # noqa: E402
import store  # noqa: E402
import upstream  # noqa: E402
import websocket  # noqa: E402
from measure import table  # noqa: E402

OPEN_FILES = 20_000


def bench_memory(options):
    """Both protocols; AMQP with links only with its tools."""
    links = routed.bench_memory(options) if options.tools else []
    return links + websocket.bench_memory(options) + mapped.bench_memory(options)


BENCHES = {
    "amqp": routed.bench_amqp,
    "idle": mapped.bench_idle,
    "latency": routed.bench_latency,
    "many": routed.bench_many,
    "memory": bench_memory,
    "mqtt": mapped.bench_mqtt,
    "outage": outage.bench_outage,
    "spool": spool.bench_spool,
    "store": store.bench_store,
    "upstream": upstream.bench_upstream,
}


def main():
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    built = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(HERE, "..", "..", "target")), "release")
    parser.add_argument("what", choices=(*BENCHES, "all"))
    parser.add_argument("--binary", default=os.environ.get("FIELDGATE", os.path.join(built, "fieldgate")))
    parser.add_argument("--mqtt-load", default=os.path.join(built, "examples", "mqtt_load"))
    parser.add_argument("--outage-program", default=os.path.join(built, "examples", "outage"))
    parser.add_argument("--store-program", default=os.path.join(built, "examples", "store"))
    parser.add_argument("--upstream-program", default=os.path.join(built, "examples", "upstream"))
    parser.add_argument("--tools", help="directory of load.c and sink.c")
    parser.add_argument("--consumer", default=os.path.join(built, "examples", "consumer"))
    parser.add_argument("--peers", action="store_true", help="mqtt: beside mosquitto and RabbitMQ")
    parser.add_argument("--mode", action="append", help="upstream mode of the gateway; without it, the gateway's default")
    parser.add_argument("--baseline", action="store_true", help="amqp, latency: without a gateway")
    parser.add_argument("--only", action="append", help="amqp: only these cases, as LINKSxBYTES: 100x1024")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the message counts")
    parser.add_argument("--devices", type=int, default=5000, help="memory, many: how many are attached")
    outage.add_arguments(parser)
    store.add_arguments(parser)
    options = parser.parse_args()
    Program.path = os.path.abspath(options.binary)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, OPEN_FILES), hard))
    rows = []
    try:
        for name, bench in BENCHES.items():
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
