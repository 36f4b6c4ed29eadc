"""How well a sender's clock is followed on simulated links: rigs' way, one-way and two-way.

python scripts/bench_clocks.py
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from numpy.typing import NDArray

from common import cli
from common.clock_offset import ClockOffset
from scripts.benches import BenchOutput, Comparison, report

Vector = NDArray[np.float64]

_EPOCH = 1.7e9
_FIRST = 50
_LEAST_S = 0.0001
_STEP_S = 0.5
_WITHIN_S = 2.0
SIDES = ("mean of 50", "one-way", "two-way")


@dataclass(frozen=True)
class ClockBenchOptions:
    """Simulate senders on links of several kinds, and compare three estimates of their clocks."""

    minutes: float = 5.0
    """Simulated time of each run; the clock is set in the middle of it."""
    rate_hz: float = 65.0
    """Messages a second: a sensor sends 65 datagrams, a robot 100 states, a camera 30 frames."""
    loss: float = 0.05
    """Part of the messages that is lost."""
    seeds: int = 3
    """Runs of each kind."""
    output: BenchOutput = field(default_factory=BenchOutput)


@dataclass(frozen=True)
class Link:
    """Delays of one kind: never below a tenth of a millisecond, which no jitter takes away.

    Attributes:
        kind: `exponential`, or `bimodal`: three of ten messages take 2.3 times the mean, the rest
            0.4 times, each give or take a tenth (Wi-Fi that sleeps, a queue that is met or not).
        mean_s: the mean of what varies.
        back_s: how much longer the way back is than the way there.
    """

    kind: str
    mean_s: float
    back_s: float = 0.0

    def delays(self, rng: np.random.Generator, count: int) -> Vector:
        """(count,) seconds."""
        if self.kind == "exponential":
            return _LEAST_S + rng.exponential(self.mean_s, count)
        slow = rng.random(count) < 0.3
        middle = np.where(slow, 2.4, 0.4) * self.mean_s
        return _LEAST_S + middle * rng.uniform(0.9, 1.1, count)


@dataclass(frozen=True)
class Case:
    """One sender: its link, how fast its clock drifts, by how much it is set, and when."""

    link: Link
    drift: float
    step_s: float
    step_at: float

    def offset(self, at: Vector) -> Vector:
        """Our clock less the sender's, at (N,) seconds of the run."""
        return 0.5 + self.drift * at - np.where(at >= self.step_at, self.step_s, 0.0)


@dataclass(frozen=True)
class Run:
    """What one run gave: (N,) arrivals, and for each side (N,) errors in seconds."""

    arrivals: Vector
    errors: dict[str, Vector]
    steps: dict[str, int]
    update_us: float


def _exchanges(
    case: Case, seconds: float, rng: np.random.Generator
) -> list[tuple[float, float, float, float]]:
    """Exchanges as our senders make them: when they are reported, offset, round trip, moment."""
    t0 = np.concatenate([0.1 * np.arange(8), np.arange(1.0, seconds, 0.5)])
    if case.step_s:
        # A sender sees that its own clock was set, within a tenth of a second, and asks again.
        t0 = np.sort(np.concatenate([t0, case.step_at + 0.1 + 0.1 * np.arange(4)]))
    t1 = t0 + case.link.delays(rng, len(t0))
    t3 = t1 + case.link.delays(rng, len(t0)) + case.link.back_s
    reported = t3 + case.link.delays(rng, len(t0))
    up = t1 - (t0 - case.offset(t0))
    down = t1 - (t3 - case.offset(t3))
    found = zip(reported, 0.5 * (up + down), up - down, _EPOCH + t1, strict=True)
    rows = [(float(a), float(b), float(c), float(d)) for a, b, c, d in found]
    return sorted(row for row in rows if row[2] >= 0.0)


def _follow(
    stamps: Vector, arrivals: Vector, exchanges: Sequence[tuple[float, float, float, float]]
) -> tuple[Vector, int, float]:
    """What our estimator says after each message, the steps it found, and µs for each message."""
    clock, waiting = ClockOffset(), list(reversed(exchanges))
    estimates = np.empty(len(stamps))
    began = time.process_time()
    for index, (stamp, arrival) in enumerate(zip(stamps.tolist(), arrivals.tolist(), strict=True)):
        while waiting and waiting[-1][0] <= arrival:
            _, offset_s, delay_s, at = waiting.pop()
            clock.exchanged(offset_s, delay_s, at)
        clock.update(stamp, _EPOCH + arrival)
        estimates[index] = clock.offset_s
    return estimates, clock.steps, 1e6 * (time.process_time() - began) / len(stamps)


def simulate(case: Case, options: ClockBenchOptions, seed: int) -> Run:
    """One run, the same messages for every side."""
    rng = np.random.default_rng(seed)
    seconds = 60.0 * options.minutes
    sent = np.arange(int(seconds * options.rate_hz)) / options.rate_hz
    sent = sent[rng.random(len(sent)) >= options.loss]
    arrivals = np.maximum.accumulate(sent + case.link.delays(rng, len(sent)))  # in order
    stamps = _EPOCH + sent - case.offset(sent)
    truth = case.offset(arrivals)
    one, one_steps, update_us = _follow(stamps, arrivals, ())
    two, two_steps, _ = _follow(stamps, arrivals, _exchanges(case, seconds, rng))
    mean = np.full(len(sent), np.mean((_EPOCH + arrivals - stamps)[:_FIRST]))
    errors = {name: found - truth for name, found in zip(SIDES, (mean, one, two), strict=True)}
    return Run(arrivals, errors, {"one-way": one_steps, "two-way": two_steps}, update_us)


def _p95_ms(runs: Sequence[Run], side: str) -> float:
    late = [np.abs(run.errors[side][_FIRST:]) for run in runs]
    return 1e3 * float(np.percentile(np.concatenate(late), 95))


def _recalibrated_s(run: Run, side: str, case: Case) -> float:
    """Seconds after the step until the error stays below a tenth of it."""
    bad = run.arrivals[(run.arrivals >= case.step_at) & (np.abs(run.errors[side]) > 0.05)]
    return float(bad[-1] - case.step_at) if len(bad) else 0.0


def _accuracy(options: ClockBenchOptions) -> list[Comparison]:
    rows = []
    for kind in ("exponential", "bimodal"):
        for mean_s in (0.0001, 0.001, 0.005, 0.02, 0.05):
            runs = []
            for drift in (1e-4, -1e-4, 0.0):
                case = Case(Link(kind, mean_s), drift, 0.0, np.inf)
                runs += [simulate(case, options, seed) for seed in range(options.seeds)]
            theirs = _p95_ms(runs, SIDES[0])
            for side in SIDES[1:]:
                ours = _p95_ms(runs, side)
                ratio = theirs / ours
                name = f"{kind} {1e3 * mean_s:g} ms, {side}: p95 error"
                row = Comparison(name, f"{ours:.3f} ms", f"{theirs:.2f} ms", ratio)
                rows.append(row)
            if any(steps for run in runs for steps in run.steps.values()):
                rows.append(Comparison(f"{kind} {1e3 * mean_s:g} ms: steps that were none", "yes"))
    return rows


def _steps(options: ClockBenchOptions) -> list[Comparison]:
    rows = []
    for by_s in (_STEP_S, -_STEP_S):
        for side in SIDES[1:]:
            took, counted = [0.0], set()
            for kind in ("exponential", "bimodal"):
                for mean_s in (0.0001, 0.005, 0.05):
                    case = Case(Link(kind, mean_s), 1e-4, by_s, 30.0 * options.minutes)
                    for seed in range(options.seeds):
                        run = simulate(case, options, seed)
                        took.append(_recalibrated_s(run, side, case))
                        counted.add(run.steps[side])
            rows.append(
                Comparison(
                    f"set by {1e3 * by_s:+.0f} ms, {side}: slowest of {len(took) - 1}",
                    f"{max(took):.2f} s",
                    "never",
                    None,
                    f"≤ {_WITHIN_S:g} s, one step said",
                    max(took) <= _WITHIN_S and counted == {1},
                )
            )
    return rows


def _asymmetry(options: ClockBenchOptions) -> list[Comparison]:
    """What two-way cannot know: half of what the ways differ stays in it."""
    rows = []
    for back_s in (0.001, 0.01):
        case = Case(Link("exponential", 0.002, back_s), 1e-4, 0.0, np.inf)
        run = simulate(case, options, 1)
        ours, theirs = _p95_ms([run], "two-way"), _p95_ms([run], SIDES[0])
        name = f"way back {1e3 * back_s:g} ms longer, two-way: p95 error"
        rows.append(Comparison(name, f"{ours:.3f} ms", f"{theirs:.2f} ms", theirs / ours))
    return rows


def _plot(options: ClockBenchOptions) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 13, "axes.titlesize": 14})
    figure, panels = plt.subplots(2, 2, figsize=(16, 9), sharex=True, sharey=True)
    links = [("exponential", 0.001), ("exponential", 0.05), ("bimodal", 0.001), ("bimodal", 0.05)]
    colours = ("tab:red", "tab:blue", "tab:green")
    for axes, (kind, mean_s), drift in zip(
        panels.flat, links, (1e-4, -1e-4, -1e-4, 1e-4), strict=True
    ):
        case = Case(Link(kind, mean_s), drift, _STEP_S, 30.0 * options.minutes)
        run = simulate(case, options, 1)
        _panel(axes, run, colours)
        axes.set_title(f"{kind} delay, mean {1e3 * mean_s:g} ms, drift {1e6 * drift:+.0f} ppm")
        axes.axvline(case.step_at, color="black", linewidth=0.8, linestyle=":")
        axes.text(case.step_at - 2, 350, "clock set by +500 ms →", ha="right", fontsize=12)
    for axes in panels[:, 0]:
        axes.set_ylabel("|error| of the offset, ms")
    for axes in panels[1]:
        axes.set_xlabel("time, s")
    panels[0, 0].legend(loc="lower right", ncols=3, fontsize=12)
    figure.suptitle(
        f"Error of a sender's clock on simulated links: {options.rate_hz:g} messages/s, "
        f"{options.loss:.0%} lost"
    )
    figure.tight_layout()
    options.output.plots.mkdir(parents=True, exist_ok=True)
    path = options.output.plots / "clocks.png"
    figure.savefig(path, dpi=100)
    return path


def _panel(axes: Any, run: Run, colours: Sequence[str]) -> None:
    for side, colour in zip(SIDES, colours, strict=True):
        errors = 1e3 * np.abs(run.errors[side][_FIRST:])
        at = run.arrivals[_FIRST:]
        # The worst of each half second: a line that hides nothing.
        bins = (at // 0.5).astype(int)
        edges = np.flatnonzero(np.diff(bins, prepend=-1))
        axes.plot(at[edges], np.maximum.reduceat(errors, edges), color=colour, label=side)
    axes.set_yscale("log")
    axes.set_ylim(1e-4, 1e3)
    axes.grid(which="major", alpha=0.4)


def main() -> int:
    """Simulate, print the table, draw; the exit code."""
    options = cli.parse(ClockBenchOptions)
    rows = [*_accuracy(options), *_steps(options), *_asymmetry(options)]
    cost = simulate(Case(Link("exponential", 0.001), 1e-4, 0.0, np.inf), options, 1)
    rows.append(Comparison("processor time of a message", f"{cost.update_us:.1f} µs"))
    report(
        "clocks of senders (error against the true offset, the mean of 50 as rigs do)",
        rows,
        options.output,
    )
    print(f"plot  {_plot(options)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
