"""What tests of whole programs share: free ports, children whose output can be waited for."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def free_ports(count: int) -> list[int]:
    """Ports that are free for TCP and UDP now."""
    held: list[socket.socket] = []
    ports: list[int] = []
    while len(ports) < count:
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        tcp.bind(("127.0.0.1", 0))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        held += [tcp, udp]
        try:
            udp.bind(("127.0.0.1", tcp.getsockname()[1]))
        except OSError:
            continue
        ports.append(tcp.getsockname()[1])
    for sock in held:
        sock.close()
    return ports


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
