"""What the receiver costs as cameras, their resolution and the sensor's rate grow.

python scripts/bench_scale.py --output.plots runs/bench
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from rich.console import Console
from rich.table import Table

from common import cli
from scripts.benches import BenchOutput, Comparison, report
from scripts.loaded_receiver import Load, Machine, Run, run_under_load

_RATE_HZ, _REUSE = 100.0, 40  # 2.5 slow passes a second
_PASS_MS = 50.0
_FULL = 0.95  # of what all cores have: nothing more can be had


@dataclass(frozen=True)
class ScaleOptions:
    """Run the receiver (its policy waits instead of computing) under growing loads."""

    cameras: tuple[int, ...] = (1, 2, 4, 8, 16)
    """At 640x360, 30 frames a second, 28 KB each."""
    resolutions: tuple[str, ...] = ("320x180", "640x360", "1280x720", "1920x1080")
    """Of five cameras; 0.122 bytes a pixel."""
    sensor_hz: tuple[float, ...] = (65.0, 650.0, 2600.0, 6500.0)
    """Samples of 4.1 KB a second, in datagrams of 65 a second or of 15 samples."""
    seconds: float = 5.0
    """Length of each point."""
    port_offset: int = 3600
    """Added to every port."""
    output: BenchOutput = field(default_factory=BenchOutput)


@dataclass(frozen=True, slots=True)
class Point:
    """One load and what it did."""

    sweep: str
    value: str
    megabytes_s: float
    run: Run

    @property
    def lost(self) -> float:
        """Share of what was to be sent that did not come in: frames or samples, the larger."""
        summary = self.run.summary
        dropped, missing = int(summary["frames_dropped"]), int(summary["sensor_lost"])
        frames, samples = (
            sum(int(n) for n in summary["frames"].values()),
            int(summary["sensor_samples"]),
        )
        return max(dropped / max(frames + dropped, 1), missing / max(samples + missing, 1), 0.0)

    @property
    def full(self) -> bool:
        """Whether receiver and load together used up all cores."""
        return self.run.cpu_ms_s + self.run.load_cpu_ms_s > 1e3 * _FULL * (os.cpu_count() or 1)


def _measure(sweep: str, value: str, load: Load, options: ScaleOptions, folder: Path) -> Point:
    arguments = ["scripts/stand_in_receiver.py", "--checkpoint", "-", "--plain"]
    arguments += ["--action-hz", str(_RATE_HZ), "--vl-reuse", str(_REUSE)]
    arguments += ["--view-count", str(load.views), "--pass-ms", str(_PASS_MS)]
    arguments += ["--sensor-hz", str(load.sensor_hz)]
    run = run_under_load(arguments, load, _RATE_HZ, options.seconds, folder, options.port_offset)
    sent = load.views * load.fps * load.frame_kb / 1e3 + load.sensor_hz * 4.12e-3
    return Point(sweep, value, sent, run)


def _loads(options: ScaleOptions) -> list[tuple[str, str, Load]]:
    loads = [("cameras", str(count), Load(views=count)) for count in options.cameras]
    for resolution in options.resolutions:
        width, height = (int(pixels) for pixels in resolution.split("x"))
        kilobytes = 0.122e-3 * width * height
        loads.append(("resolution", resolution, Load(5, 30.0, width, height, kilobytes)))
    loads += [("sensor, Hz", f"{hz:g}", Load(sensor_hz=hz)) for hz in options.sensor_hz]
    return loads


_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("frame: sent → stored p50 / p99, ms", "frame_transport_ms_p50", "frame_transport_ms_p99"),
    ("state: stored → used p50 / p99, ms", "robot_ms_p50", "robot_ms_p99"),
    ("samples: stored → used p50 / p99, ms", "sensor_ms_p50", "sensor_ms_p99"),
)


def _show(points: Sequence[Point]) -> None:
    table = Table(title=f"receiver at {_RATE_HZ:g} Hz, {_RATE_HZ / _REUSE:g} passes a second")
    table.caption = "samples come in datagrams of 65 a second or of 15: most of their wait is that"
    for heading in ("load", "MB/s in", "receiver ms/s", "load ms/s", "lateness p99, ms"):
        table.add_column(heading, justify="left" if heading == "load" else "right")
    for heading, _, _ in _COLUMNS:
        table.add_column(heading, justify="right")
    for heading in ("pass, ms", "lost", "machine"):
        table.add_column(heading, justify="right")
    for point in points:
        run, summary = point.run, point.run.summary
        table.add_row(
            f"{point.sweep} {point.value}",
            f"{point.megabytes_s:.1f}",
            f"{run.cpu_ms_s:.0f}",
            f"{run.load_cpu_ms_s:.0f}",
            f"{run.percentile(99):.2f}",
            *(f"{summary[a]:.1f} / {summary[b]:.1f}" for _, a, b in _COLUMNS),
            f"{summary['vl_ms_mean']:.0f}",
            f"{100 * point.lost:.1f}%",
            run.machine.split(", ", 1)[1] + (", all cores used" if point.full else ""),
        )
    Console(width=190).print(table)


def _rows(points: Sequence[Point]) -> list[Comparison]:
    """A row a point: what it costs against the first of its sweep."""
    rows = []
    for sweep in dict.fromkeys(point.sweep for point in points):
        first, *more = [point for point in points if point.sweep == sweep]
        for point in more or [first]:
            name = f"receiver's processor time, {sweep} {point.value} against {first.value}"
            ratio = point.run.cpu_ms_s / max(first.run.cpu_ms_s, 1e-9)
            rows.append(Comparison(name, _figure(point), _figure(first), ratio))
    return rows


def _figure(point: Point) -> str:
    run = point.run
    said = f"{run.cpu_ms_s:.0f} ms/s, lateness p99 {run.percentile(99):.2f} ms"
    return f"{said}, {100 * point.lost:.1f}% lost" + (", all cores used" if point.full else "")


def draw(points: Sequence[Point], folder: Path) -> Path:
    """A panel a sweep: processor time of both sides (bars) and lateness, transport (lines)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sweeps = list(dict.fromkeys(point.sweep for point in points))
    figure, panels = plt.subplots(1, len(sweeps), figsize=(18, 9), dpi=100, squeeze=False)
    for axes, sweep in zip(panels[0], sweeps, strict=True):
        chosen = [point for point in points if point.sweep == sweep]
        places = range(len(chosen))
        bars: tuple[tuple[str, float, list[float]], ...] = (
            ("receiver, CPU", -0.2, [p.run.cpu_ms_s for p in chosen]),
            ("load, CPU", 0.2, [p.run.load_cpu_ms_s for p in chosen]),
        )
        for (label, shift, values), color in zip(bars, ("tab:blue", "lightgrey"), strict=True):
            axes.bar([x + shift for x in places], values, 0.38, label=label, color=color)
        axes.set_xticks(places, [p.value for p in chosen])
        axes.set_xlabel(sweep, fontsize=15)
        axes.set_ylim(0, 1.6 * max(max(values) for _, _, values in bars))
        right = axes.twinx()
        lines: dict[str, list[Any]] = {
            "lateness p99": [p.run.percentile(99) for p in chosen],
            "frame sent → stored, p99": [p.run.summary["frame_transport_ms_p99"] for p in chosen],
        }
        for (label, values), color in zip(lines.items(), ("tab:red", "tab:orange"), strict=True):
            right.plot(places, values, "o-", color=color, label=label, lw=2)
        right.set_yscale("log")
        right.set_ylim(0.05, 200)
        for side in (axes, right):
            side.tick_params(labelsize=13)
        if axes is panels[0][0]:
            axes.set_ylabel("processor time, ms a second", fontsize=15)
            axes.legend(fontsize=12, loc="upper left")
            right.legend(fontsize=12, loc="upper right")
        if axes is panels[0][-1]:
            right.set_ylabel("ms", fontsize=15)
    figure.suptitle("The receiver as its load grows", fontsize=18)
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "scale.png"
    figure.savefig(path)
    plt.close(figure)
    return path


def main() -> int:
    """Measure every load, print, draw; the exit code."""
    options = cli.parse(ScaleOptions)
    machine = Machine()
    with TemporaryDirectory(prefix="bench-scale-") as name:
        folder = Path(name) / "run"
        points = [_measure(*load, options, folder) for load in _loads(options)]
    _show(points)
    report("scale", _rows(points), options.output)
    print(machine.line())
    print(f"plot  {draw(points, options.output.plots)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
