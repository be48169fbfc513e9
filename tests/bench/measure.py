"""What is measured of a process from outside, and how it is printed."""

import json
import statistics
import time
from contextlib import contextmanager

from processes import Failure

CPUCLOCK_SCHED = 2


def cpu_seconds(pid):
    """User and system time of a process, all its threads, ended ones too; by its CPU clock, so to the nanosecond."""
    return time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED)


def memory_kib(pid, name="VmRSS"):
    """Resident memory: VmRSS, or VmHWM, the most that it ever was."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        for line in file:
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
    raise Failure(f"process {pid} has no {name}")


class Costs:
    """CPU time of one process for each message, collected over the rounds."""

    def __init__(self, pid):
        self._pid = pid
        self.micros = []

    def measure(self, work, messages, least):
        """What `work(messages)` gives; the CPU time that it took the process is noted. What `work(least)` takes just
        before is subtracted: connections are opened, and closed, in both."""
        idle, busy = self._spent(work, least), self._spent(work, messages)
        if self._pid:
            self.micros.append((busy[0] - idle[0]) * 1e6 / (messages - least))
        return busy[1]

    @contextmanager
    def over(self, messages):
        """Notes the CPU time of what is done meanwhile, all of it."""
        before = cpu_seconds(self._pid)
        yield
        self.micros.append((cpu_seconds(self._pid) - before) * 1e6 / messages)

    def _spent(self, work, messages):
        before = cpu_seconds(self._pid) if self._pid else 0.0
        answer = work(messages)
        return (cpu_seconds(self._pid) if self._pid else 0.0) - before, answer

    def figures(self, name="cpu_us"):
        """Median and least; nothing for a path without a process."""
        if not self.micros:
            return {}
        return {name: middle(self.micros), f"{name}_least": round(min(self.micros), 3)}


def middle(values, digits=3):
    """The median."""
    return round(statistics.median(values), digits)


def ratio(values, floor):
    """How many times the floor, median of the rounds: what the machine does besides hits both of a round alike."""
    return middle([value / least for value, least in zip(values, floor, strict=True) if least > 0] or [0.0], 2)


def report(case, **figures):
    """Prints one line of JSON and gives it back."""
    line = {"case": case} | figures
    print(json.dumps(line), flush=True)
    return line


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
