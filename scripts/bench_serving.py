"""A chunk of actions from a policy server: LeRobot's way, GR00T's, and ours, in one run.

python scripts/bench_serving.py --lerobot-python .venv-lerobot/bin/python
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from common import cli
from scripts.bench_serving_plot import plot
from scripts.benches import BenchOutput, Comparison, report, wide_console
from scripts.loaded_receiver import Machine
from scripts.serving_sides.runs import Crowd, Runner, find_lerobot, in_turns

_FULL = 0.95  # of what all cores have: nothing more can be had
_MISSING = "not measured: make venv-lerobot"


@dataclass(frozen=True)
class ServingOptions:
    """Five pictures of 640x360 and a state there, 50 actions back; the same policy behind each."""

    rounds: int = 9
    """Turns of each side."""
    block: int = 24
    """Round trips a turn."""
    warm_up: int = 20
    """Round trips of each side before that."""
    clients: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """How many clients at once, at `hz` each."""
    hz: float = 30.0
    """Observations a second and client."""
    seconds: float = 3.0
    """Length of each point with several clients."""
    lerobot_python: Path | None = None
    """A Python with LeRobot, which then runs all sides. By default this one, or that of
    $LEROBOT_VENV, or .venv-lerobot/bin/python."""
    output: BenchOutput = field(default_factory=BenchOutput)

    def __post_init__(self) -> None:
        """ValueError for numbers that give nothing to measure."""
        if min(self.rounds, self.block, *self.clients) < 1 or self.warm_up == self.block:
            raise ValueError("at least one of each, and a warm-up other than a block")


Times = Mapping[str, NDArray[np.float64]]

SIDES = {
    "stock": "LeRobot's server and client",
    "stock, pictures converted": "LeRobot's, with its conversion of the pictures",
    "pickles": "our server, LeRobot's client",
    "grpc": "ours over gRPC",
    "msgpack": "msgpack over REQ/REP",
    "zmq": "ours over ZeroMQ",
}
"""What is measured, in words."""


def round_trips(python: Path, lerobot: bool, options: ServingOptions, folder: Path) -> Times:
    """Round trips in seconds, of each side that can be measured here."""
    with closing(Runner(python, folder)) as runner:
        clients = {}
        if lerobot:
            for name, more in (("stock", ()), ("stock, pictures converted", ("--prepare",))):
                clients[name] = runner.client("stock", runner.serve("stock_server", *more)[1])
        _, ours = runner.serve_ours()
        if lerobot:
            clients["pickles"] = runner.client("pickles", ours["pickles"])
        clients["grpc"] = runner.client("grpc", ours["grpc"])
        clients["msgpack"] = runner.client("msgpack", runner.serve("msgpack_service")[1])
        clients["zmq"] = runner.client("zmq", ours["zmq"])
        return in_turns(clients, options.rounds, options.block, options.warm_up)


def crowds(python: Path, options: ServingOptions, folder: Path) -> list[Crowd]:
    """One server after the other, each with a growing number of clients."""
    measured = []
    with closing(Runner(python, folder)) as runner:
        server, ours = runner.serve_ours()
        for side in ("zmq", "grpc"):
            for count in options.clients:
                point = (ours[side], count, options.hz, options.seconds)
                measured.append(runner.crowd(server, side, *point))
    return measured


def _p50_ms(seconds: NDArray[np.float64]) -> float:
    return 1e3 * float(np.median(seconds))


def _figure(seconds: NDArray[np.float64] | None) -> str:
    if seconds is None:
        return _MISSING
    return f"{_p50_ms(seconds):.2f} ms (p99 {1e3 * np.percentile(seconds, 99):.1f})"


def compare(times: Times, ours: str, theirs: str, goal: float | None = None) -> Comparison:
    """A row of two sides; the ratio is that of the medians."""
    name = f"round trip, {SIDES[ours]}; against {SIDES[theirs]}"
    a, b = times.get(ours), times.get(theirs)
    said = "" if goal is None else f"at least {goal:g}x"
    if a is None or b is None:
        return Comparison(name, _figure(a), _figure(b), goal=said)
    ratio = _p50_ms(b) / _p50_ms(a)
    met = None if goal is None else ratio >= goal
    return Comparison(name, _figure(a), _figure(b), ratio, said, met)


def _crowd_row(crowd: Crowd) -> Comparison:
    name = f"{crowd.count} clients at {crowd.hz:g} Hz, {SIDES[crowd.side]}: slowest client's rate"
    said = f"{crowd.rates_hz.min():.1f} Hz, p99 {crowd.percentile_ms(99):.1f} ms"
    said += f", server {1e3 * crowd.server_cpu:.0f} ms/s"
    return Comparison(name, said + (", all cores used" if crowd.machine > _FULL else ""))


def rows(times: Times, measured: Sequence[Crowd]) -> list[Comparison]:
    """The round trips, and the first and last point of the clients at once."""
    table = [
        compare(times, "zmq", "stock", 15.0),
        compare(times, "grpc", "stock", 1.0),
        compare(times, "pickles", "stock"),
        compare(times, "zmq", "stock, pictures converted"),
        compare(times, "zmq", "msgpack"),
    ]
    for side in dict.fromkeys(crowd.side for crowd in measured):
        chosen = [crowd for crowd in measured if crowd.side == side]
        table += [_crowd_row(chosen[index]) for index in sorted({0, len(chosen) - 1})]
    return table


def _show_crowds(measured: Sequence[Crowd]) -> None:
    table = Table(title="clients at once on one server, five pictures of 640x360 each")
    headings = "side", "clients", "Hz a client: mean", "slowest", "p50, ms", "p99, ms"
    for heading in (*headings, "server ms/s", "clients ms/s", "began late, p99 ms", "cores used"):
        table.add_column(heading, justify="left" if heading == "side" else "right")
    for crowd in measured:
        late = 1e3 * float(np.percentile(crowd.late_s, 99)) if len(crowd.late_s) else float("inf")
        table.add_row(
            SIDES[crowd.side],
            str(crowd.count),
            f"{crowd.rates_hz.mean():.1f}",
            f"{crowd.rates_hz.min():.1f}",
            f"{crowd.percentile_ms(50):.1f}",
            f"{crowd.percentile_ms(99):.1f}",
            f"{1e3 * crowd.server_cpu:.0f}",
            " + ".join(f"{1e3 * used:.0f}" for used in crowd.load_cpu),
            f"{late:.1f}",
            f"{100 * crowd.machine:.0f} %",
        )
    wide_console().print(table)


def main() -> int:
    """Measure, print, draw; the exit code."""
    options, machine = cli.parse(ServingOptions), Machine()
    lerobot = find_lerobot(options.lerobot_python)
    python = lerobot or Path(sys.executable)
    with TemporaryDirectory(prefix="bench-serving-") as name:
        times = round_trips(python, lerobot is not None, options, Path(name))
        measured = crowds(python, options, Path(name))
    _show_crowds(measured)
    report("a policy server's round trips", rows(times, measured), options.output)
    print(f"all sides in {python}; {os.cpu_count()} cores; {machine.line()}")
    print(f"plot  {plot(times, SIDES, measured, options.output.plots)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
