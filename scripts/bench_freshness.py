"""How old features are when used: our choice of a pass's start, beside the simple rule's.

python scripts/bench_freshness.py
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from common import cli
from common.clock import Ticker
from receiver.update_clock import UpdateClock, best_start
from scripts.benches import BenchOutput, Comparison, report
from scripts.loaded_receiver import Load, Machine, run_under_load
from scripts.stand_in_receiver import pass_seconds

_FPS = 29.97  # not a multiple of the fast loop's clock, so that every phase occurs
_TRANSPORT_S = 0.004  # a picture's way from the camera to the slow loop
_VIEWS = 5


@dataclass(frozen=True)
class FreshnessOptions:
    """Simulate the slow loop's clock in virtual time, and confirm some points in real time."""

    reuse: tuple[int, ...] = (1, 2, 4, 8)
    """Uses of a feature."""
    passes_ms: tuple[float, ...] = (50.0, 100.0, 381.0, 800.0)
    """Durations of a slow pass."""
    action_hz: float = 10.0
    """The fast loop's clock."""
    simulated: float = 1200.0
    """Seconds of virtual time a point."""
    real: float = 15.0
    """Seconds of real time a confirmed point; 0 for none."""
    confirmed: tuple[tuple[float, int], ...] = ((50.0, 2), (100.0, 4), (381.0, 4))
    """Points, (pass in ms, reuse), that the real receiver runs under a rig's load."""
    port_offset: int = 3500
    """Added to every port."""
    seed: int = 0
    """Of the durations and the cameras' phases."""
    output: BenchOutput = field(default_factory=BenchOutput)


class Cameras:
    """The oldest of the newest pictures of all views, at any time; each view has its own phase."""

    def __init__(self, seed: int, together: bool) -> None:
        """`together`: all views expose at once, as triggered cameras do."""
        phases = np.random.default_rng(seed + 1).random(_VIEWS) / _FPS
        self._phases = np.full(_VIEWS, phases[0]) if together else phases

    def captured_at(self, at: float) -> float:
        """Capture time of the oldest picture behind a pass that starts now."""
        seen = at - _TRANSPORT_S
        return float((np.floor((seen - self._phases) * _FPS) / _FPS + self._phases).min())

    def next_at(self, at: float) -> float:
        """When the view that has the oldest picture gets its next."""
        return self.captured_at(at) + 1 / _FPS + _TRANSPORT_S


Rule = Callable[[float, float, int], float]
"""(duration of the pass that ended, when, number of the next) → start of the next."""


def ages(
    rule: Rule, durations: NDArray[np.float64], cameras: Cameras, period_s: float, until_s: float
) -> NDArray[np.float64]:
    """The features' age at every deadline of the grid from 0 on, in seconds, in virtual time."""
    used: list[float] = []
    start, number, tick = 0.0, 0, 0
    current: float | None = None
    while start < until_s:
        captured, ready = cameras.captured_at(start), start + float(durations[number])
        while tick * period_s < ready:
            if current is not None:
                used.append(tick * period_s - current)
            tick += 1
        current = captured
        number += 1
        start = max(rule(float(durations[number - 1]), ready, number), ready)
    return np.array(used[len(used) // 20 :])  # without the first passes, which nobody knew


def our_rule(reuse: int, period_s: float, cameras: Cameras | None) -> Rule:
    """The receiver's clock; with `cameras`, told when the next picture comes."""
    clock = UpdateClock(Ticker(1 / period_s, 0.0), reuse)

    def rule(duration_s: float, ready_at: float, _number: int) -> float:
        clock.finished(duration_s, ready_at)
        at = ready_at
        if cameras is None:
            return clock.start_at()
        while (start := clock.start_at(cameras.next_at(at))) > at:
            at = min(start, cameras.next_at(at) + 1e-6)
        return at

    return rule


def simple_rule(reuse: int, period_s: float) -> Rule:
    """Start when the features' N uses are over: at the deadline of the last."""

    def rule(_duration_s: float, ready_at: float, _number: int) -> float:
        return (math.ceil(ready_at / period_s) + reuse - 1) * period_s

    return rule


def ready_in_time(reuse: int, period_s: float, durations: NDArray[np.float64]) -> Rule:
    """Knows how long the next pass takes: it is ready right at the first deadline it can be."""

    def rule(_duration_s: float, ready_at: float, number: int) -> float:
        took = float(durations[number])
        first = math.ceil(ready_at / period_s) + reuse
        return max(first, math.ceil((ready_at + took) / period_s)) * period_s - took - 1e-6

    return rule


def told(reuse: int, period_s: float, durations: NDArray[np.float64]) -> Rule:
    """Our choice, told how long the next pass takes."""

    def rule(duration_s: float, ready_at: float, number: int) -> float:
        known = durations[number : number + 1]
        return best_start(known, duration_s, ready_at, reuse, period_s)

    return rule


@dataclass(frozen=True, slots=True)
class Point:
    """Ages at use in ms of each rule for one duration and reuse."""

    pass_ms: float
    reuse: int
    by_rule: Mapping[str, NDArray[np.float64]]


def simulate(pass_ms: float, reuse: int, options: FreshnessOptions) -> Point:
    """One point, every rule with the same durations and cameras."""
    period = 1 / options.action_hz
    durations = pass_seconds(pass_ms / 1e3, options.seed)
    cameras = Cameras(options.seed, together=False)

    def run(rule: Rule) -> NDArray[np.float64]:
        return 1e3 * ages(rule, durations, cameras, period, options.simulated)

    # Which of the two is the better depends on how the durations lie between the deadlines.
    known = [run(rule(reuse, period, durations)) for rule in (ready_in_time, told)]
    by_rule = {
        "ours": run(our_rule(reuse, period, cameras)),
        "simple": run(simple_rule(reuse, period)),
        "oracle": min(known, key=lambda ms: float(ms.mean())),
    }
    return Point(pass_ms, reuse, by_rule)


def confirm(pass_ms: float, reuse: int, options: FreshnessOptions, folder: Path) -> str:
    """Mean, p50 and p99 of the age at use in the real receiver, passes as long and spread alike."""
    arguments = ["scripts/stand_in_receiver.py", "--checkpoint", "-", "--plain"]
    arguments += ["--action-hz", str(options.action_hz), "--vl-reuse", str(reuse)]
    arguments += ["--pass-ms", str(pass_ms), "--seed", str(options.seed)]
    arguments += ["--stale-after.features-s", "10"]
    run = run_under_load(
        arguments, Load(), options.action_hz, options.real, folder, options.port_offset
    )
    ms = run.feature_age_ms[len(run.feature_age_ms) // 10 :]
    return _figure(ms)


def _figure(ms: NDArray[np.float64]) -> str:
    return f"{ms.mean():.0f} / {np.median(ms):.0f} / {np.percentile(ms, 99):.0f} ms"


def draw(points: Sequence[Point], folder: Path) -> Path:
    """Mean age over reuse, a panel a duration; the bars reach up to p99."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    passes = list(dict.fromkeys(point.pass_ms for point in points))
    figure, panels = plt.subplots(1, len(passes), figsize=(16, 9), dpi=100, squeeze=False)
    looks = {"simple": ("tab:red", "s"), "ours": ("tab:blue", "o"), "oracle": ("black", "^")}
    names = {
        "simple": "start when N uses are over",
        "ours": "dualrate",
        "oracle": "told how long the pass will take",
    }
    for axes, pass_ms in zip(panels[0], passes, strict=True):
        chosen = [point for point in points if point.pass_ms == pass_ms]
        for shift, (rule, (color, marker)) in zip((-0.12, 0.0, 0.12), looks.items(), strict=True):
            places = np.arange(len(chosen)) + shift
            means = np.array([point.by_rule[rule].mean() for point in chosen])
            highest = np.array([np.percentile(point.by_rule[rule], 99) for point in chosen])
            bars = np.stack((np.zeros(len(chosen)), highest - means))
            style = {"color": color, "marker": marker, "capsize": 4, "lw": 2, "ms": 8}
            axes.errorbar(places, means, bars, label=names[rule], **style)
        axes.set_title(f"passes of {pass_ms:g} ms", fontsize=16)
        axes.set_xticks(range(len(chosen)), [str(point.reuse) for point in chosen])
        axes.set_xlabel("reuse N", fontsize=15)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=13)
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("features' age at use, ms: mean, bar up to p99", fontsize=15)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=13, loc="lower center", ncols=3)
    figure.suptitle("How old features are when used", fontsize=18)
    figure.tight_layout(rect=(0.0, 0.05, 1.0, 1.0))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "freshness.png"
    figure.savefig(path)
    plt.close(figure)
    return path


def _show(points: Sequence[Point]) -> None:
    table = Table(title="age at use, mean / p50 / p99, in virtual time")
    for heading in ("pass ms", "reuse", "dualrate", "simple rule", "told the duration"):
        table.add_column(heading, justify="right")
    for point in points:
        figures = [_figure(point.by_rule[rule]) for rule in ("ours", "simple", "oracle")]
        table.add_row(f"{point.pass_ms:g}", str(point.reuse), *figures)
    Console(width=120).print(table)


def main() -> int:
    """Simulate, confirm, print, draw; the exit code."""
    options = cli.parse(FreshnessOptions)
    machine = Machine()
    points = [simulate(ms, reuse, options) for ms in options.passes_ms for reuse in options.reuse]
    _show(points)
    rows = [
        Comparison(
            f"mean age at use, passes of {p.pass_ms:g} ms, reuse {p.reuse}",
            f"{p.by_rule['ours'].mean():.0f} ms",
            f"{p.by_rule['simple'].mean():.0f} ms",
            float(p.by_rule["simple"].mean() / p.by_rule["ours"].mean()),
        )
        for p in points
    ]
    with TemporaryDirectory(prefix="bench-freshness-") as name:
        for pass_ms, reuse in options.confirmed if options.real > 0 else ():
            real = confirm(pass_ms, reuse, options, Path(name) / "run")
            simulated = _figure(simulate(pass_ms, reuse, options).by_rule["ours"])
            label = f"real receiver beside simulation, {pass_ms:g} ms, reuse {reuse}"
            rows.append(Comparison(label, real, simulated))
    report("age of features, against: start when the uses are over", rows, options.output)
    print(machine.line())
    print(f"plot  {draw(points, options.output.plots)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
