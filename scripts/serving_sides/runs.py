"""Starts servers and clients of all sides, lets them take turns, and gathers what they measured."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.stopping import die_with_parent
from scripts.loaded_receiver import cpu_s
from scripts.processes import Program, stop_all
from scripts.serving_sides.sides import SideName

__all__ = ["Crowd", "Runner", "find_lerobot", "in_turns"]

ROOT = Path(__file__).resolve().parents[2]
_SIDES = ROOT / "scripts" / "serving_sides"
_ANSWER_S = 150.0


def find_lerobot(given: Path | None) -> Path | None:
    """A Python that has LeRobot: the given one, this one, $LEROBOT_VENV's, .venv-lerobot's."""
    if given is not None:
        if not _has_lerobot(given):
            raise SystemExit(f"bench_serving.py: {given} has no LeRobot; run: make venv-lerobot")
        return given
    if importlib.util.find_spec("lerobot") is not None:
        return Path(sys.executable)
    folder = Path(os.environ.get("LEROBOT_VENV", ".venv-lerobot"))
    python = (ROOT / folder).absolute() / "bin" / "python"
    return python if _has_lerobot(python) else None


def _has_lerobot(python: Path) -> bool:
    look = "import importlib.util as u, sys; sys.exit(not (u.find_spec('lerobot')))"
    return (
        shutil.which(python) is not None
        and subprocess.run([python, "-c", look], cwd=ROOT, check=False).returncode == 0
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_with_parent() -> None:
    """So that no server stays when the benchmark is killed."""
    die_with_parent(signal.SIGTERM)


class Worker:
    """A client program: lines of JSON go in and come out."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._input, self._output = program.process.stdin, program.process.stdout
        self._buffer = b""

    def tell(self, value: Any) -> None:
        """Write a line; without effect on one that has ended, whose words `hear` tells."""
        assert self._input is not None
        with contextlib.suppress(BrokenPipeError):
            self._input.write(json.dumps(value).encode() + b"\n")
            self._input.flush()

    def hear(self) -> Any:
        """The next line; SystemExit with the program's last words where none comes."""
        assert self._output is not None
        deadline = time.monotonic() + _ANSWER_S
        while b"\n" not in self._buffer:
            left = max(deadline - time.monotonic(), 0.0)
            ready = select.select([self._output], [], [], left)[0]
            piece = os.read(self._output.fileno(), 1 << 16) if ready else b""
            if not piece:
                said = self.program.last_words(3)
                raise SystemExit(f"bench_serving.py: {self.program.name} failed: {said}")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)


class Runner:
    """The programs of one run; all in one Python, so that none has the better libraries."""

    def __init__(self, python: Path, folder: Path) -> None:
        """`folder`: for their logs, and what LeRobot writes beside itself."""
        self._python, self._folder = python, folder
        self._programs: list[Program] = []

    def close(self) -> None:
        """End them all, the newest first."""
        stop_all(self._programs[::-1])

    def start(self, name: str, arguments: Sequence[str]) -> Program:
        """Start one in `folder`; its input and output are pipes, its complaints go to a log."""
        log = self._folder / f"{name}-{len(self._programs)}.log"
        offline = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        with log.open("wb") as said:
            process = subprocess.Popen(
                [str(self._python), *arguments],
                cwd=self._folder,
                env=os.environ | offline,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                start_new_session=True,
                preexec_fn=_end_with_parent,  # noqa: PLW1509  no thread runs yet that could hold a lock
            )
        self._programs.append(Program(name, process, log))
        return self._programs[-1]

    def serve(self, script: str, *arguments: str) -> tuple[Program, str]:
        """Start one of the other sides' servers on a port of its own; it and its address."""
        port = _free_port()
        program = self.start(
            script, [str(_SIDES / f"{script}.py"), "--port", str(port), *arguments]
        )
        return program, f"127.0.0.1:{port}"

    def serve_ours(self) -> tuple[Program, Mapping[SideName, str]]:
        """Start this project's server with both transports; the address of each side."""
        grpc, zmq = _free_port(), _free_port()
        arguments = [str(ROOT / "serving" / "policy_server.py"), "--host", "127.0.0.1"]
        arguments += ["--port", str(grpc), "--zmq_port", str(zmq), "--inference_latency", "0"]
        arguments += ["--session_timeout", "900"]  # while the others have their turns
        program = self.start("policy_server", arguments)
        over_grpc, over_zmq = f"127.0.0.1:{grpc}", f"127.0.0.1:{zmq}"
        return program, {"grpc": over_grpc, "pickles": over_grpc, "zmq": over_zmq}

    def client(self, side: SideName, address: str) -> Worker:
        """Start a client that measures round trips."""
        script = str(_SIDES / "round_trips.py")
        return Worker(self.start(side, [script, "--side", side, "--address", address]))

    def crowd(
        self, server: Program, side: SideName, address: str, count: int, hz: float, seconds: float
    ) -> Crowd:
        """Let so many clients in two processes ask at their rate."""
        workers = []
        for numbers in (range(0, count, 2), range(1, count, 2)):
            if numbers:
                arguments = [str(_SIDES / "crowd.py"), "--side", side, "--address", address]
                arguments += ["--clients", *map(str, numbers), "--of", str(count)]
                arguments += ["--hz", str(hz), "--seconds", str(seconds)]
                workers.append(Worker(self.start(f"crowd-{side}-{count}", arguments)))
        for worker in workers:
            worker.hear()
        start = time.monotonic() + 0.3
        for worker in workers:
            worker.tell(start)
        time.sleep(max(start - time.monotonic(), 0.0))
        used_s, begun = cpu_s(server.process.pid), time.monotonic()
        time.sleep(max(start + seconds - time.monotonic(), 0.0))
        used_s = cpu_s(server.process.pid) - used_s
        lasted = time.monotonic() - begun
        told = [worker.hear() for worker in workers]
        for worker in workers:
            worker.tell("enough")
            worker.program.process.wait(_ANSWER_S)
        took = [np.array(s) for one in told for s in one["took_s"]]
        late = np.concatenate([np.array(s) for one in told for s in one["late_s"]])
        load = tuple(one["cpu_s"] / seconds for one in told)
        return Crowd(side, count, hz, seconds, tuple(took), late, used_s / lasted, load)


@dataclass(frozen=True, slots=True)
class Crowd:
    """What some clients at once got from one server.

    Attributes:
        took_s: the round trips of each client, those that ended in the time measured.
        late_s: how much later than due the round trips began.
        server_cpu: processor seconds a second of the server.
        load_cpu: of each process of clients.
    """

    side: SideName
    count: int
    hz: float
    seconds: float
    took_s: tuple[NDArray[np.float64], ...]
    late_s: NDArray[np.float64]
    server_cpu: float
    load_cpu: tuple[float, ...]

    @property
    def rates_hz(self) -> NDArray[np.float64]:
        """Answers a second of each client."""
        return np.array([len(took) for took in self.took_s]) / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """Of all clients' round trips; infinite where there was none."""
        together = np.concatenate(self.took_s)
        return 1e3 * float(np.percentile(together, percent)) if len(together) else float("inf")

    @property
    def machine(self) -> float:
        """Share of all cores that server and clients used together."""
        return (self.server_cpu + sum(self.load_cpu)) / (os.cpu_count() or 1)


def in_turns(
    clients: Mapping[str, Worker], rounds: int, block: int, warm_up: int
) -> dict[str, NDArray[np.float64]]:
    """Round trips in seconds of each client; they take turns, in another order each time."""
    took: dict[str, list[float]] = {name: [] for name in clients}
    for worker in clients.values():
        worker.hear()
    for name, count in _turns(list(clients), rounds, block, warm_up):
        clients[name].tell(count)
        measured = clients[name].hear()
        if count == block:
            took[name] += measured
    return {name: np.array(seconds) for name, seconds in took.items()}


def _turns(names: list[str], rounds: int, block: int, warm_up: int) -> Iterator[tuple[str, int]]:
    yield from ((name, warm_up) for name in names)
    for number in range(rounds):
        first = number % len(names)
        yield from ((name, block) for name in names[first:] + names[:first])
