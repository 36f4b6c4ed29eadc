"""The real receiver, and the loop that rigs run today, under a rig's full load: for benchmarks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.session import Session, find_sessions
from receiver.options import Ports
from scripts.processes import Program, start, stop_all

__all__ = [
    "Load",
    "Machine",
    "Run",
    "cpu_s",
    "lateness_of",
    "make_checkpoint",
    "receiver_arguments",
    "run_under_load",
]

_START_S = 120.0
_STOP_S = 30.0


@dataclass(frozen=True)
class Load:
    """What the senders' side sends."""

    views: int = 5
    """Cameras."""
    fps: float = 30.0
    """Frames a second and camera."""
    width: int = 640
    """Pixels."""
    height: int = 360
    """Pixels."""
    frame_kb: float = 28.0
    """Size of a frame in 1,000 bytes, about."""
    sensor_hz: float = 650.0
    """Samples a second."""

    def arguments(self, port_offset: int) -> list[str]:
        """The command line of `scripts/load_rig.py`."""
        given = ["scripts/load_rig.py", "--port-offset", str(port_offset)]
        for name in ("views", "fps", "width", "height", "frame_kb", "sensor_hz"):
            given += [f"--{name.replace('_', '-')}", str(getattr(self, name))]
        # 65 datagrams a second, of 15 samples at most: more than 65,507 bytes are none.
        batch = min(max(round(self.sensor_hz / 65), 1), 15)
        return [*given, "--batch", str(batch)]


class Machine:
    """What else used this machine while something was measured: figures are read beside it."""

    def __init__(self) -> None:
        """Begin to count."""
        self._before = self._ticks()

    @staticmethod
    def _ticks() -> list[int]:
        """Processor time since boot by kind (proc(5), /proc/stat): user, nice, system, idle, …"""
        return [int(v) for v in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]

    def line(self) -> str:
        """Cores, load average over the last minute, time used and taken by the host since then."""
        spent = [b - a for a, b in zip(self._before, self._ticks(), strict=True)]
        whole = max(sum(spent), 1)
        busy, steal = 100 * (1 - (spent[3] + spent[4]) / whole), 100 * spent[7] / whole
        load = Path("/proc/loadavg").read_text().split()[0]
        cores = os.cpu_count()
        return f"machine: {cores} cores, load {load}, busy {busy:.0f}%, steal {steal:.1f}%"


def cpu_s(process: int) -> float:
    """Processor time of a process so far, in seconds; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _children(process: int) -> list[int]:
    try:
        lists = Path(f"/proc/{process}/task").glob("*/children")
        return [int(child) for path in lists for child in path.read_text().split()]
    except OSError:
        return []


def make_checkpoint(path: Path) -> None:
    """The small policy, made where there is none."""
    if not path.exists():
        maker = start("checkpoint", ["scripts/make_tiny_checkpoint.py", "--out", str(path)])
        if maker.process.wait() != 0:
            raise SystemExit(1)


def port_arguments(port_offset: int) -> list[str]:
    """Every port of the receiver, moved."""
    return [
        part
        for port in fields(Ports)
        for part in (f"--ports.{port.name}", str(int(port.default) + port_offset))  # type: ignore[arg-type]
    ]


def receiver_arguments(checkpoint: Path, rate_hz: float, reuse: int) -> list[str]:
    """The receiver's command line, without what `run_under_load` adds."""
    given = ["receiver/main.py", "--checkpoint", str(checkpoint), "--plain"]
    return [*given, "--action-hz", str(rate_hz), "--vl-reuse", str(reuse)]


@dataclass(frozen=True, slots=True)
class Run:
    """What a program did under load.

    Attributes:
        lateness_ms: of every deadline: when its action began, or, of a missed one, when the next
            action did. (N,)
        feature_age_ms: age of the features that each action used. (M,)
        misses: deadlines that no action began for before the next was due.
        summary: the program's own.
        cpu_ms_s: processor time of the program and its children, ms a second of inference.
        load_cpu_ms_s: the same of the load's program.
        machine: what else went on.
    """

    lateness_ms: NDArray[np.float64]
    feature_age_ms: NDArray[np.float64]
    misses: int
    summary: dict[str, Any]
    cpu_ms_s: float
    load_cpu_ms_s: float
    machine: str

    def percentile(self, percent: float) -> float:
        """A percentile of the lateness, in ms."""
        return float(np.percentile(self.lateness_ms, percent)) if len(self.lateness_ms) else 0.0


def lateness_of(
    deadlines: Sequence[float],
    lateness_ms: Sequence[float],
    period_s: float,
    most_missed: int | None = None,
) -> tuple[NDArray[np.float64], int]:
    """The lateness of every deadline on the grid in ms, missed ones too, and how many were missed.

    A missed deadline leaves no action of its own: it is as late as the action that came instead.
    Neither does one on hold; `most_missed`, what the program counted, tells them apart.
    """
    every: list[float] = []
    missed, last = 0, None
    for deadline, late in zip(deadlines, lateness_ms, strict=True):
        gap = 0 if last is None else round((deadline - last) / period_s) - 1
        gap = gap if most_missed is None else min(gap, most_missed - missed)
        missed += gap
        every += [late + 1e3 * period_s * k for k in range(gap, -1, -1)]
        last = deadline
    return np.array(every, np.float64), missed


def _results(folder: Path) -> list[dict[str, Any]]:
    """The actions of all sessions below a folder, in order."""
    entries = [e for path in find_sessions(folder) for e in Session(path).results]
    return sorted(entries, key=lambda entry: float(entry["deadline"]))


@contextmanager
def loaded(load: Load, port_offset: int, folder: Path) -> Iterator[Program]:
    """The load's program while the block runs."""
    program = start("load", load.arguments(port_offset), folder / "load.log")
    try:
        yield program
    finally:
        stop_all([program])


def run_under_load(
    arguments: Sequence[str],
    load: Load,
    rate_hz: float,
    duration_s: float,
    folder: Path,
    port_offset: int,
    during: Callable[[int], None] | None = None,
) -> Run:
    """Run a program that takes the receiver's options for so many seconds of inference.

    `during` gets its process number once inference has begun, in a thread of its own.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    given = [*arguments, *port_arguments(port_offset), "--duration", str(duration_s)]
    given += ["--output-dir", str(folder), "--summary", str(folder / "summary.json")]
    log = folder / "program.log"
    with loaded(load, port_offset, folder) as sender:
        program = start("program", given, log)
        try:
            _wait_for(log, b"inference started", program.process)
            machine, watch = Machine(), _Watch([program.process.pid, sender.process.pid])
            if during is not None:
                threading.Thread(target=during, args=(program.process.pid,), daemon=True).start()
            program.process.wait(duration_s + _STOP_S)
            cpu_ms_s, load_cpu_ms_s = watch.stop()
        except subprocess.TimeoutExpired:
            print(program.last_words(20), file=sys.stderr)
            raise
        finally:
            if program.process.poll() is None:
                program.process.send_signal(signal.SIGKILL)
                program.process.wait()
    if program.process.returncode != 0:
        raise RuntimeError(
            f"{given[0]} ended with {program.process.returncode}:\n{log.read_text()}"
        )
    summary = json.loads((folder / "summary.json").read_text())
    entries = _results(folder)
    ages = np.array([entry["feature_age_ms"] for entry in entries])
    deadlines = summary.pop("deadlines", [entry["deadline"] for entry in entries])
    lateness_ms = summary.pop("lateness_ms", [entry["lateness_ms"] for entry in entries])
    lateness, missed = lateness_of(
        deadlines, lateness_ms, 1 / rate_hz, summary.get("deadline_misses")
    )
    for session in find_sessions(folder):
        shutil.rmtree(session)
    return Run(lateness, ages, missed, summary, cpu_ms_s, load_cpu_ms_s, machine.line())


class _Watch(threading.Thread):
    """Looks at programs' processor time every half second, since it cannot after their end."""

    def __init__(self, processes: Sequence[int]) -> None:
        super().__init__(daemon=True)
        self._processes, self._stopped = processes, threading.Event()
        self._first = self._last = self._look()
        self.start()

    def _look(self) -> tuple[float, list[float]]:
        families = [(p, *_children(p)) for p in self._processes]
        return time.monotonic(), [sum(cpu_s(p) for p in family) for family in families]

    def run(self) -> None:
        while not self._stopped.wait(0.5):
            at, now_s = self._look()
            if any(b < a for a, b in zip(self._last[1], now_s, strict=True)):
                return  # one of them has ended
            self._last = at, now_s

    def stop(self) -> list[float]:
        """Milliseconds a second of each, over the time that all of them ran."""
        self._stopped.set()
        self.join()
        took_s = max(self._last[0] - self._first[0], 1e-9)
        pairs = zip(self._first[1], self._last[1], strict=True)
        return [1e3 * (b - a) / took_s for a, b in pairs]


def _wait_for(log: Path, words: bytes, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_S
    while words not in log.read_bytes():
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"inference did not get under way:\n{log.read_text()[-2000:]}")
        threading.Event().wait(0.1)
