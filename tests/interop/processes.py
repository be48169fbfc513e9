"""Child processes whose output is awaited line by line, never slept for.

Every process that the harness starts is listed here, so that `stop_all` can end each of them by its id, whatever happened.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time

DEADLINE = 20.0
"""Seconds that anything may take before it counts as failed. Nothing waits that long when all is well."""


class Failure(Exception):
    """What a scenario found wrong, in words."""


class Process:
    """One child process; its output is collected by line, and waiters are woken by each line and by its end."""

    alive = []

    def __init__(self, argv, name=None, stdin=subprocess.DEVNULL):
        self.name = name or os.path.basename(argv[0])
        self.argv = argv
        self.lines = []  # (stream, text), in order of arrival
        self._changed = threading.Condition()
        self._popen = subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            bufsize=1,
            start_new_session=True,
        )
        Process.alive.append(self)
        self._readers = [
            threading.Thread(target=self._read, args=(stream, pipe), daemon=True)
            for stream, pipe in (("out", self._popen.stdout), ("err", self._popen.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream, pipe):
        for line in pipe:
            with self._changed:
                self.lines.append((stream, line.rstrip("\n")))
                self._changed.notify_all()
        self._popen.wait()
        with self._changed:
            self._changed.notify_all()

    @property
    def pid(self):
        return self._popen.pid

    @property
    def running(self):
        return self._popen.poll() is None

    def text(self, stream=None):
        """All that it printed so far, to one stream or to both."""
        with self._changed:
            return "\n".join(line for where, line in self.lines if stream in (None, where))

    def write_line(self, line):
        self._popen.stdin.write(line + "\n")
        self._popen.stdin.flush()

    def close_stdin(self):
        self._popen.stdin.close()

    def wait_until(self, question, what, deadline=DEADLINE):
        """Asks again after each line of output and at the end of the process, until the answer is true."""
        until = time.monotonic() + deadline
        with self._changed:
            while not (answer := question()):
                left = until - time.monotonic()
                ended = not self.running and not any(reader.is_alive() for reader in self._readers)
                if ended and not question():
                    raise Failure(f"{self.name} ended ({self._popen.returncode}) before {what}\n{self.tail()}")
                if left <= 0:
                    raise Failure(f"{self.name}: waited {deadline:.0f} s for {what}\n{self.tail()}")
                self._changed.wait(min(left, 0.5))
            return answer

    def wait_for_line(self, part, times=1, deadline=DEADLINE):
        """Waits until `part` stands in that many lines of the output."""
        return self.wait_until(
            lambda: sum(part in line for _, line in self.lines) >= times, f"{times} x {part!r}", deadline
        )

    def wait_for_change(self, seconds):
        """Until the next line, the end of the process, or a moment has passed: for questions asked elsewhere."""
        with self._changed:
            if self.running:
                self._changed.wait(seconds)

    def wait(self, deadline=DEADLINE):
        """Its exit status, once it ended by itself and all its output is read."""
        try:
            status = self._popen.wait(deadline)
        except subprocess.TimeoutExpired:
            raise Failure(f"{self.name} did not end within {deadline:.0f} s\n{self.tail()}") from None
        for reader in self._readers:
            reader.join(deadline)
        self._forget()
        return status

    def stop(self, sig=signal.SIGTERM, deadline=DEADLINE):
        """Sends a signal and returns the exit status."""
        if self.running:
            self._popen.send_signal(sig)
        return self.wait(deadline)

    def kill(self):
        """Ends it at once, with what it may have started in its own session."""
        if self.running:
            # It may end by itself just now.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._popen.wait()
        self._forget()

    def _forget(self):
        if self in Process.alive:
            Process.alive.remove(self)

    def tail(self, count=25):
        """The last lines of its output, for a report."""
        with self._changed:
            return "\n".join(f"    {self.name} {stream}| {line}" for stream, line in self.lines[-count:])


def stop_all():
    """Ends every process that is still there."""
    for process in list(Process.alive):
        process.kill()


class Finished:
    """A command that has ended: its exit status and what it printed."""

    def __init__(self, process, status):
        self.status = status
        self.out = process.text("out")
        self.err = process.text("err")
        self.both = process.text()
        self.what = " ".join(process.argv[:6])

    def __str__(self):
        return f"`{self.what} ...` ended with {self.status}:\n{self.both}"


def run(argv, deadline=DEADLINE):
    """Runs a command to its end."""
    process = Process(argv)
    try:
        return Finished(process, process.wait(deadline))
    finally:
        process.kill()
