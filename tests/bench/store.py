"""The log alone: all of it is one program (`store.rs`), which makes its own log and measures itself."""

import json
import statistics
import subprocess

from fieldgate import Directory
from measure import report
from processes import Failure

RECORDS = 1_000_000


def add_arguments(parser):
    """The options of this benchmark."""
    parser.add_argument("--group", type=int, default=64, help="store: records of one commit")


def bench_store(options):
    """Medians of the rounds, each with a log of its own; the disk is the one that has the temporary directory."""
    cases = {}
    records = str(int(RECORDS * options.scale))
    for extra in [[], ["--cold"]] * options.rounds:
        command = [options.store_program, Directory().path, "--records", records, "--group", str(options.group), *extra]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Failure(f"{' '.join(command)}: {done.stderr}")
        for line in done.stdout.splitlines():
            figures = json.loads(line)
            cases.setdefault(figures.pop("case"), []).append(figures)
    return [
        report(f"store, {case}", **{name: round(statistics.median(one[name] for one in rounds), 3) for name in rounds[0]})
        for case, rounds in cases.items()
    ]
