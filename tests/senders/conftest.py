"""Sender programs as processes, and what their tests wait with."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 20.0


def wait_until(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Return once `condition` holds; fail when it does not in time."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience_s:g} s for {what}"
        time.sleep(0.01)


class Program:
    """A running sender."""

    def __init__(self, script: str, options: list[str], folder: Path, blocked: str = "") -> None:
        self.log_path = folder / f"{script}-{time.monotonic_ns()}.log"
        command = [sys.executable, str(ROOT / "senders" / f"{script}.py"), *options]
        environment = dict(os.environ)
        environment.pop("PYTHONPATH", None)
        if blocked:
            environment["PYTHONPATH"] = blocked
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment
            )

    @property
    def said(self) -> str:
        return self.log_path.read_text()

    def type(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ended(self) -> int:
        return self.process.wait(PATIENCE_S)

    def stop(self) -> int:
        """Ctrl+C, and the exit code."""
        self.signal(signal.SIGINT)
        return self.ended()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """`start(script, *options)`: a sender in an empty folder, ended with the test."""
    started: list[Program] = []

    def begin(script: str, *options: object, blocked: str = "") -> Program:
        program = Program(script, [str(option) for option in options], tmp_path, blocked)
        started.append(program)
        return program

    yield begin
    for program in started:
        if program.process.poll() is None:
            program.process.kill()
            program.process.wait()


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`call(script, *options)`: a sender that is expected to end by itself."""

    def run(script: str, *options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "senders" / f"{script}.py")]
        command += [str(option) for option in options]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )

    return run


@pytest.fixture
def free_port() -> Callable[[], int]:
    """`free_port()`: a TCP port that nothing used a moment ago."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            return port

    return find


@pytest.fixture
def zmq_context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def until() -> Callable[..., None]:
    """`until(condition, what)`: wait, with a deadline."""
    return wait_until
