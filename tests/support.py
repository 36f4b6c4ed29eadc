"""What tests of whole programs share: free ports, children whose output can be waited for."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

_PORTS = range(10_000, 32_000)
"""Below those that systems hand out by themselves: nobody gets one between its choice and use."""
_BLOCKS = 8
_APART = 3
"""Blocks from one worker's to the next one's: a whole rig's ports span more than a block."""


def _candidates() -> Iterator[int]:
    """The ports of this process's block in turn: tests that run at once have a block each."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    size = len(_PORTS) // _BLOCKS
    first = _PORTS[worker * _APART % _BLOCKS * size]
    for number in itertools.count(os.getpid() * 101):
        yield first + number % size


_candidate = _candidates()


def free_ports(count: int) -> list[int]:
    """Ports that are free for TCP and UDP now, and will not be given out again for long."""
    ports: list[int] = []
    while len(ports) < count:
        port = next(_candidate)
        if is_free(port):
            ports.append(port)
    return ports


def is_free(port: int) -> bool:
    """Whether a program can bind it, for TCP and UDP, now."""
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        try:
            tcp.bind(("", port))
            udp.bind(("", port))
        except OSError:
            return False
    return True


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 30.0) -> None:
    """Wait for a condition; AssertionError naming it when it does not come true in time."""
    deadline, pause = time.monotonic() + timeout_s, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        pause.wait(0.01)


class Child:
    """A program of the project that runs; its output is kept and can be waited for."""

    def __init__(self, *arguments: str, cwd: Path | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd or ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[tuple[float, str]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    @property
    def text(self) -> str:
        """All output so far."""
        return "\n".join(line for _, line in list(self.lines))

    def wait_for(self, pattern: str, timeout_s: float = 60.0, after: int = 0) -> tuple[float, str]:
        """The first line from number `after` on that matches, with the time it came."""
        found: list[tuple[float, str]] = []

        def look() -> bool:
            found[:] = [item for item in list(self.lines)[after:] if re.search(pattern, item[1])]
            return bool(found) or self.process.poll() is not None

        try:
            wait_until(look, pattern, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; the program said:\n{self.text[-3000:]}") from None
        if not found:
            self._reader.join(5)
            look()
        assert found, f"ended with {self.process.returncode} before {pattern!r}:\n{self.text}"
        return found[0]

    def tell(self, line: str) -> None:
        """Type a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def stop(self, number: int = signal.SIGINT, timeout_s: float = 20.0) -> int:
        """Ctrl+C, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.end(timeout_s)

    def end(self, timeout_s: float = 60.0) -> int:
        """Wait for the program to end by itself; the exit code."""
        code = self.process.wait(timeout_s)
        self._reader.join(5)
        return code
