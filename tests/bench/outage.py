"""The outage: devices, hub and the connection between gateway and hub that is cut all belong to one program
(`outage/main.rs`); here it meets a gateway."""

import json
import subprocess

from fieldgate import Directory
from measure import report
from peers import Gateway
from processes import Failure, Process

PATIENCE = 120.0
"""Seconds that it may take beyond the outage itself."""


def add_arguments(parser):
    """The options of this benchmark."""
    parser.add_argument("--cut", type=float, default=60.0, help="outage: seconds without the hub")
    parser.add_argument("--how", choices=("reset", "close", "silence"), default="reset", help="outage: how it is cut")
    parser.add_argument("--senders", type=int, default=200, help="outage: devices that send")
    parser.add_argument("--rate", type=int, default=4000, help="outage: messages a second of all of them")


def bench_outage(options):
    """Cuts the hub's connection under load, and judges what devices were told by what the hub has."""
    rows = []
    for mode in options.mode or [None]:
        directory = Directory()
        program = Process(
            [
                *(options.outage_program, "--directory", directory.path, "--how", options.how),
                *("--cut", str(options.cut), "--devices", str(options.senders), "--rate", str(options.rate)),
            ],
            stdin=subprocess.PIPE,
        )
        program.wait_for_line("HUB ")
        hub_port, ca_file = program.text("out").split()[1:3]
        # A peer that falls silent is only noticed by its silence.
        upstream = {"idle_time_out": "2s"} if options.how == "silence" else {}
        upstream |= {"hold": f"{options.cut + 30:.0f}s", "retry_max": "1s"}
        gateway = Gateway(directory, hub_port, ca_file, mode, **upstream)
        program.write_line(str(gateway.port))
        status = program.wait(options.cut + PATIENCE)
        gateway.stop()
        verdict = json.loads(program.text("out").splitlines()[-1])
        rows.append(report(f"outage, {options.cut:g} s, {options.how}, {mode or 'default'}", **verdict))
        if status != 0:
            raise Failure(f"the promise was not kept\n{program.tail()}")
    return rows
