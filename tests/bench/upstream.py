"""The way to the hub alone: all of it is one program (`upstream.rs`), which measures itself; the hub is a process beside it."""

import json
import os
import statistics
import subprocess

from fieldgate import CA_FILE, CONNECTION_STRING_FILE, Directory, Role, free_port, toml
from measure import report
from processes import Failure

MESSAGES = 400_000
IDLE = 4000


def bench_upstream(options):
    """Medians of the rounds."""
    directory = Directory()
    hub = Role("hub", directory, "hub-state", {"hub": {"listen": [f"127.0.0.1:{free_port()}"]}}, "hub").start().ready()
    upstream = {
        "connection_string_file": os.path.join(hub.state, CONNECTION_STRING_FILE),
        "ca_file": os.path.join(hub.state, CA_FILE),
    }
    command = [options.upstream_program, directory.file("upstream.toml", toml({"upstream": upstream}))]
    messages, idle = str(int(MESSAGES * options.scale)), str(int(IDLE * options.scale))
    cases = {}
    for arguments in [["--messages", messages], ["--messages", "0", "--idle", idle]] * options.rounds:
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Failure(f"{' '.join(command + arguments)}: {done.stderr}")
        for line in done.stdout.splitlines():
            figures = json.loads(line)
            cases.setdefault(figures.pop("case"), []).append(figures)
    hub.stop()
    names = {"send": "upstream, 50 devices, window 20, 100 B, TLS", "idle": f"upstream, {idle} idle pairs of links"}
    return [
        report(names[case], **{name: round(statistics.median(one[name] for one in rounds), 3) for name in rounds[0]})
        for case, rounds in cases.items()
    ]
