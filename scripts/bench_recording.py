"""A rig's full load with recording switched on and off in turn: what does it cost the loops?

python scripts/bench_recording.py --duration 600
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from rich.console import Console
from rich.table import Table

from common import cli, endpoints
from common.session import Session, find_sessions
from scripts.demo import ensure_checkpoint
from scripts.processes import ROOT, start, stop_all

_START_S = 90.0
_SETTLE_S = 1.0  # after a switch: files are opened or finished


@dataclass(frozen=True)
class RecordingBenchOptions:
    """Run the receiver under a rig's full load; record every other stretch of time.

    Both sides are measured in one run and in turns, since what else a machine does would be taken
    for the recording's doing otherwise.
    """

    duration: float = 120.0
    """Seconds, half of them recorded."""
    stretch: float = 15.0
    """Seconds between switches; as long as the duration for one recording without a break."""
    folder: Path = Path("runs/bench-recording")
    """Where to record; about 16 MB a second, removed again unless --keep."""
    checkpoint: Path = Path("runs/tiny-checkpoint")
    """The policy; the small one is made when nothing is there."""
    port_offset: int = 300
    """Added to every port."""
    keep: bool = False
    """Keep what was recorded."""


@dataclass
class Side:
    """One side of the comparison.

    Attributes:
        stretches: begin and end of each, UNIX seconds.
        cpu_s: processor time of the receiver in them.
        rss_mb: its memory at their ends.
    """

    stretches: list[tuple[float, float]] = field(default_factory=list)
    cpu_s: float = 0.0
    rss_mb: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """How long, all together."""
        return sum(end - begin for begin, end in self.stretches)


def _start_receiver(options: RecordingBenchOptions) -> subprocess.Popen[bytes]:
    arguments = ["receiver/main.py", "--checkpoint", str(options.checkpoint), "--plain"]
    arguments += ["--output-dir", str(options.folder)]
    arguments += ["--summary", str(options.folder / "summary.json")]
    for port in ("camera", "robot", "sensor", "action", "time"):
        number = getattr(endpoints, port.upper()).port + options.port_offset
        arguments += [f"--ports.{port}", str(number)]
    with (options.folder / "receiver.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _wait_for_inference(options: RecordingBenchOptions, receiver: subprocess.Popen[bytes]) -> None:
    log, until = options.folder / "receiver.log", time.monotonic() + _START_S
    while b"inference started" not in log.read_bytes():
        if receiver.poll() is not None or time.monotonic() > until:
            raise SystemExit(f"inference did not get under way:\n{log.read_text()[-2000:]}")
        threading.Event().wait(0.2)


def _cpu_s(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_mb(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / (1 << 20)


def _measure(options: RecordingBenchOptions, receiver: subprocess.Popen[bytes]) -> dict[str, Side]:
    sides = {"without": Side(), "with": Side()}
    assert receiver.stdin is not None
    began, turn = time.monotonic(), 0
    while time.monotonic() - began < options.duration:
        side = sides["with" if turn % 2 else "without"]
        receiver.stdin.write(b"record on\n" if turn % 2 else b"record off\n")
        receiver.stdin.flush()
        threading.Event().wait(_SETTLE_S)
        begin, cpu = time.time(), _cpu_s(receiver.pid)
        threading.Event().wait(options.stretch)
        side.stretches.append((begin, time.time()))
        side.cpu_s += _cpu_s(receiver.pid) - cpu
        side.rss_mb.append(_rss_mb(receiver.pid))
        turn += 1
    return sides


def _lateness_ms(results: list[dict[str, Any]], side: Side) -> np.ndarray:
    at = np.array([entry["deadline"] for entry in results])
    late = np.array([entry["lateness_ms"] for entry in results])
    within = np.zeros(len(at), bool)
    for begin, end in side.stretches:
        within |= (at >= begin) & (at < end)
    return late[within]


def _rows(
    results: list[dict[str, Any]], sides: dict[str, Side]
) -> list[tuple[str, list[float], str]]:
    late = {name: _lateness_ms(results, side) for name, side in sides.items()}
    each = [sides["without"], sides["with"]]
    rows: list[tuple[str, list[float], str]] = [
        ("seconds", [side.seconds for side in each], ".0f"),
        ("actions a second", [len(late[n]) / sides[n].seconds for n in sides], ".2f"),
    ]
    rows += [
        (f"lateness p{q:g}, ms", [float(np.percentile(late[n], q)) for n in sides], ".3f")
        for q in (50, 90, 99)
    ]
    rows += [
        ("lateness worst, ms", [float(late[n].max()) for n in sides], ".2f"),
        ("processor time, ms a second", [1e3 * s.cpu_s / s.seconds for s in each], ".0f"),
        ("memory after the first stretch, MB", [side.rss_mb[0] for side in each], ".0f"),
        ("memory after the last, MB", [side.rss_mb[-1] for side in each], ".0f"),
    ]
    return rows


def main() -> int:
    """Measure, print both sides; the exit code."""
    options = cli.parse(RecordingBenchOptions)
    out = Console()
    ensure_checkpoint(options.checkpoint)
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    arguments = ["scripts/load_rig.py", "--port-offset", str(options.port_offset)]
    load = start("load", arguments, options.folder / "load.log")
    receiver = _start_receiver(options)
    try:
        _wait_for_inference(options, receiver)
        sides = _measure(options, receiver)
    finally:
        receiver.send_signal(2)
        receiver.wait(90)
        stop_all([load])
    summary = json.loads((options.folder / "summary.json").read_text())
    results = [e for path in find_sessions(options.folder) for e in Session(path).results]
    rows = _rows(results, sides)
    table = Table(title=f"full load, recording switched every {options.stretch:g} s")
    for heading in ("", "without", "with recording", "ratio"):
        table.add_column(heading, justify="left" if not heading else "right")
    for label, (a, b), form in rows:
        table.add_row(label, f"{a:{form}}", f"{b:{form}}", f"{b / a:.2f}" if a else "")
    out.print(table)
    recording, seconds = summary["recording"], sides["with"].seconds
    kinds = dict.fromkeys(("frames", "states", "samples"), 0)
    for segment in recording["segments"]:
        kinds["frames"] += sum(segment["frames"].values())
        for kind in ("states", "samples"):
            kinds[kind] += segment[kind]
    out.print(f"recorded: {kinds}, {recording['written_mb']:.0f} MB in about {seconds:.0f} s")
    out.print(f"dropped by the recorder: {recording['dropped'] or 0}")
    out.print(f"deadlines missed: {summary['deadline_misses']}")
    figures = {label: values for label, values, _ in rows}
    path = options.folder / "result.json"
    path.write_text(json.dumps({"figures": figures, "summary": summary}, indent=1))
    out.print(f"figures  {path}")
    if not options.keep:
        for folder in find_sessions(options.folder):
            shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
