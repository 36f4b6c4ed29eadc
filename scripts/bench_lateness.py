"""How late the fast loop is at 10 to 200 Hz under a rig's full load, against a single loop.

python scripts/bench_lateness.py --output.plots runs/bench
python scripts/bench_lateness.py --hours 1
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.console import Console
from rich.table import Table

from common import cli
from scripts.benches import SOAK, SOAK_GOAL, BenchOutput, Comparison, report
from scripts.loaded_receiver import (
    Load,
    Machine,
    Run,
    make_checkpoint,
    receiver_arguments,
    run_under_load,
)

_GOAL_HZ, _GOAL_MS = 100.0, 1.0
_PERCENTS, _FIGURES = (50, 99, 99.9, 100), "p50 / p99 / p99.9 / worst"
_NAMES = {
    "process": "two loops, slow half in a process",
    "thread": "two loops, slow half in a thread",
    "single": "one loop in turn",
}


@dataclass(frozen=True)
class LatenessOptions:
    """Run the receiver and a single loop under the same load at several rates, in turns."""

    rates_hz: tuple[float, ...] = (10.0, 30.0, 50.0, 100.0, 200.0)
    """The fast loop's clock."""
    designs: tuple[str, ...] = ("process", "thread", "single")
    """Of process, thread, single; the first is compared with the last."""
    seconds: float = 7.0
    """Length of each point."""
    vl_hz: float = 2.5
    """Slow passes a second, at every rate: the reuse follows from it."""
    hours: float = 0.0
    """Instead of all that: the receiver alone at 10 Hz for so long, counting misses. Without
    --output.json its row goes where `make bench` finds it."""
    checkpoint: Path = Path("runs/tiny-checkpoint")
    """The policy; the small one is made when nothing is there."""
    port_offset: int = 3400
    """Added to every port."""
    load: Load = field(default_factory=Load)
    output: BenchOutput = field(default_factory=BenchOutput)


def measure(
    design: str, rate_hz: float, seconds: float, options: LatenessOptions, folder: Path
) -> Run:
    """One point."""
    reuse = max(1, round(rate_hz / options.vl_hz))
    arguments = receiver_arguments(options.checkpoint.resolve(), rate_hz, reuse)
    if design == "single":
        arguments[0] = "scripts/single_loop.py"
    else:
        arguments += ["--slow-loop", design]
    return run_under_load(arguments, options.load, rate_hz, seconds, folder, options.port_offset)


def _row(name: str, rate_hz: float, run: Run) -> list[str]:
    figures = [f"{run.percentile(q):.2f}" for q in _PERCENTS]
    summary = run.summary
    return [
        f"{rate_hz:g}",
        name,
        *figures,
        f"{run.misses} of {len(run.lateness_ms)}",
        f"{summary['action_ms_p50']:.1f}",
        f"{summary['vl_ms_mean']:.0f}",
        f"{run.cpu_ms_s:.0f}",
        run.machine.removeprefix("machine: "),
    ]


def _show(runs: Mapping[tuple[str, float], Run]) -> None:
    table = Table(title="lateness of every deadline, missed ones included, ms")
    for heading in ("Hz", "design", "p50", "p99", "p99.9", "worst", "missed", "act ms", "pass ms"):
        table.add_column(heading, justify="left" if heading == "design" else "right")
    table.add_column("CPU ms/s", justify="right")
    table.add_column("machine")
    for (design, rate), run in sorted(runs.items(), key=lambda item: (item[0][1], item[0][0])):
        table.add_row(*_row(design, rate, run))
    Console(width=160).print(table)


def comparisons(runs: Mapping[tuple[str, float], Run], designs: Sequence[str]) -> list[Comparison]:
    """A row a rate: the first design beside the last."""
    ours, theirs = designs[0], designs[-1]
    rows = []
    for rate in sorted({rate for _, rate in runs}):
        a, b = runs[ours, rate], runs[theirs, rate]
        goal = rate == _GOAL_HZ
        rows.append(
            Comparison(
                f"lateness at {rate:g} Hz under full load ({ours} against {theirs}): {_FIGURES}",
                _figure(a),
                _figure(b),
                b.percentile(99) / max(a.percentile(99), 1e-3),
                f"p99 ≤ {_GOAL_MS:g} ms" if goal else "",
                a.percentile(99) <= _GOAL_MS if goal else None,
            )
        )
    return rows


def _figure(run: Run) -> str:
    figures = " / ".join(f"{run.percentile(q):.2f}" for q in _PERCENTS)
    return f"{figures} ms, {run.misses} of {len(run.lateness_ms)} missed"


def draw(runs: Mapping[tuple[str, float], Run], folder: Path) -> Path:
    """p50 (dashed) and p99 (solid) over the rate, a colour a design."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(18, 9), dpi=100)
    for color, design in zip(
        ("tab:blue", "tab:green", "tab:red"), dict.fromkeys(d for d, _ in runs), strict=False
    ):
        rates = sorted(rate for name, rate in runs if name == design)
        for percent, style in ((99, "-"), (50, ":")):
            values = [max(runs[design, rate].percentile(percent), 1e-3) for rate in rates]
            label = f"{_NAMES.get(design, design)}, p{percent}"
            axes.plot(rates, values, style, marker="o", color=color, label=label, lw=2.5)
    rates = sorted({rate for _, rate in runs})
    axes.plot(rates, [1e3 / rate for rate in rates], "k--", lw=1, label="period: a miss from here")
    axes.axhline(_GOAL_MS, color="grey", lw=1, label=f"goal at {_GOAL_HZ:g} Hz, p99")
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(rates, [f"{rate:g}" for rate in rates], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("rate of the fast loop, Hz", fontsize=16)
    axes.set_ylabel("lateness of a deadline, ms", fontsize=16)
    axes.set_title("Lateness under a rig's full load", fontsize=18)
    axes.tick_params(labelsize=14)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=12, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lateness.png"
    figure.savefig(path)
    plt.close(figure)
    return path


def soak(options: LatenessOptions, folder: Path) -> None:
    """The first design alone at 10 Hz for the hours asked for; printed, and kept with its date."""
    run = measure(options.designs[0], 10.0, 3600 * options.hours, options, folder)
    _show({(options.designs[0], 10.0): run})
    # Less than an hour can break the promise but not keep it.
    kept = None if run.misses == 0 and options.hours < 1 else run.misses == 0
    name = f"{options.hours:g} h at 10 Hz under full load: {_FIGURES}"
    row = Comparison(name, _figure(run), goal=SOAK_GOAL, met=kept)
    title = f"the fast loop over hours, {date.today()}, {run.machine}"
    report(title, [row], replace(options.output, json=options.output.json or SOAK))


def main() -> int:
    """Measure in turns, print, draw; the exit code."""
    options = cli.parse(LatenessOptions)
    machine = Machine()
    make_checkpoint(options.checkpoint)
    with TemporaryDirectory(prefix="bench-lateness-") as name:
        folder = Path(name) / "run"
        if options.hours > 0:
            soak(options, folder)
            return 0
        runs = {
            (design, rate): measure(design, rate, options.seconds, options, folder)
            for rate in options.rates_hz
            for design in options.designs
        }
    _show(runs)
    report("lateness of the fast loop", comparisons(runs, options.designs), options.output)
    print(machine.line())
    print(f"plot  {draw(runs, options.output.plots)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
