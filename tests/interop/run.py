"""Runs the scenarios with the built binary and other people's clients; started by `run` beside it, which installs them.

The last line is `N passed, M failed`; the exit status is 0 only when none failed and at least one ran.
"""

import argparse
import importlib
import os
import signal
import sys
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE]

from brokers import Artemis, Brokers, RabbitMq  # noqa: E402
from fieldgate import Directory, Program, Site  # noqa: E402
from processes import Failure, stop_all  # noqa: E402
from scenario import SCENARIOS  # noqa: E402
from stacks import Fe2o3  # noqa: E402

MAPPED = ("uplink", "commands", "bad_input", "outage", "startup", "registry", "mapped_brokers", "mqtt", "mqtt_azure")
ROUTED = ("attaching", "deliveries", "holding", "connectors", "listeners", "stacks", "artemis", "transport", "restart")
for module in (*MAPPED, *ROUTED):
    importlib.import_module(f"scenarios.{module}")


class Shared:
    """The one site that most scenarios use, started for the first of them."""

    def __init__(self):
        self.site = None
        self.watch = None

    def get(self):
        if self.site is None:
            self.site = Site().start()
            self.watch = self.site.hub.watch()
        return self.site, self.watch

    def trouble(self):
        """Whether the shared gateway has ended, which no scenario may cause."""
        return self.site is not None and not self.site.gateway.process.running


def run_one(function, own, shared):
    """Runs one scenario: None, or what was wrong in words."""
    try:
        function() if own else function(*shared.get())
        if shared.trouble():
            return "the gateway has ended"
        return None
    except (Failure, AssertionError) as failure:
        return str(failure)
    except Exception:  # noqa: BLE001 - whatever a client library raises is a failed scenario, not the end of the run
        return traceback.format_exc()


def main():
    """Runs what is asked for and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(HERE, "..", "..", "target"))
    default = os.environ.get("FIELDGATE", os.path.join(target, "release", "fieldgate"))
    parser.add_argument("--binary", default=default, help="the program under test (default: $FIELDGATE, or the release build)")
    parser.add_argument("--only", default="", help="run only scenarios whose name contains this text")
    parser.add_argument("--list", action="store_true", help="print the scenarios' names and end")
    parser.add_argument("--keep", action="store_true", help="keep the temporary state directories")
    options = parser.parse_args()
    chosen = [one for one in SCENARIOS if options.only in one[0]]
    if options.list:
        print("\n".join(name for name, _, _ in chosen))
        return 0
    Program.path = os.path.abspath(options.binary)
    Fe2o3.program = os.path.join(os.path.abspath(target), "release", "examples", "fe2o3_client")
    Directory.keep = options.keep
    if not os.access(Program.path, os.X_OK):
        print(f"no program at {Program.path}: build it with `cargo build --release`, or say --binary", file=sys.stderr)
        return 2

    # A signal ends the run through `finally`, so that no process and no directory stays behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    shared = Shared()
    failed = []
    if any(broker.name in name for name, _, _ in chosen for broker in (Artemis, RabbitMq)):
        # They take some seconds to start: beside the scenarios that do without.
        Brokers.launch()
    try:
        for name, function, own in chosen:
            started = time.monotonic()
            wrong = run_one(function, own, shared)
            seconds = time.monotonic() - started
            print(f"{'FAIL' if wrong else 'ok  '} {name} ({seconds:.1f} s)", flush=True)
            if wrong:
                failed.append(name)
                print("    " + wrong.replace("\n", "\n    "), flush=True)
                if shared.site and not own:
                    print(shared.site.gateway.process.tail(), flush=True)
                if shared.trouble():
                    shared = Shared()
    finally:
        stop_all()
        Directory.remove_all()
    print(f"\n{len(chosen) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
