"""The study's two pictures: success and error over the latency of the policy's slow half."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from scripts.closed_loop.estimates import Estimate, Point
from scripts.closed_loop.methods import method
from sim.task import ERROR_MM

__all__ = ["plot_error", "plot_success"]

_SHADES = {
    "sync": ("#404040", "#8c8c8c", "#b5b5b5"),
    "async": ("#d62728", "#ff7f0e", "#e377c2", "#bcbd22", "#8c564b"),
    "rtc": ("#6a3d9a", "#9e7bc4", "#c9b3e0"),
    "dual": ("#08306b", "#2171b5", "#4aa8d8", "#17a398", "#74c476"),
}
_LINES = {"sync": ":", "async": "--", "rtc": "-.", "dual": "-"}
_MARKERS = {"sync": "X", "async": "o", "rtc": "D", "dual": "s"}
_SIZE = (10.5, 5.6)


def plot_success(points: Sequence[Point], title: str, path: Path) -> None:
    """Share of successes with Wilson's intervals, as a PNG; OSError."""
    figure, axes = plt.subplots(figsize=_SIZE, layout="constrained")
    _curves(axes, points, lambda point: _scaled(point.success, 100.0))
    axes.set_ylim(-3, 103)
    axes.set_ylabel("episodes that succeed, % (95 % interval)", fontsize=12)
    _finish(figure, axes, f"Success over the latency of vision: {title}", path)


def plot_error(points: Sequence[Point], title: str, path: Path) -> None:
    """Median RMS error of tip to surface with bootstrap intervals, as a PNG; OSError."""
    figure, axes = plt.subplots(figsize=_SIZE, layout="constrained")
    _curves(axes, points, lambda point: point.rms_median_mm)
    axes.axhline(ERROR_MM, color="#2ca02c", lw=1.2, zorder=0)
    axes.annotate(
        f"success needs less than {ERROR_MM:g} mm",
        (0.99, ERROR_MM),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=10,
        color="#2ca02c",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0},
    )
    axes.set_ylim(bottom=0.0)
    axes.set_ylabel("RMS error of tip to surface in the\nlast 3 s, mm: median, 95 % interval")
    axes.yaxis.label.set_size(12)
    _finish(figure, axes, f"Error over the latency of vision: {title}", path)


def _curves(axes: Any, points: Sequence[Point], figure_of: Callable[[Point], Estimate]) -> None:
    names = list(dict.fromkeys(point.method for point in points))
    latencies = sorted({point.latency_ms for point in points})
    span = max(latencies[-1] - latencies[0], 1.0)
    used = dict.fromkeys(_SHADES, 0)
    for place, name in enumerate(names):
        chosen = method(name)
        shades = _SHADES[chosen.family]
        color = shades[used[chosen.family] % len(shades)]
        used[chosen.family] += 1
        mine = sorted((p for p in points if p.method == name), key=lambda p: p.latency_ms)
        known = [(p.latency_ms, e) for p in mine if not math.isnan((e := figure_of(p)).value)]
        # Beside each other, so that no interval hides another.
        aside = (place - (len(names) - 1) / 2) * 0.006 * span
        axes.errorbar(
            [ms + aside for ms, _ in known],
            [e.value for _, e in known],
            yerr=[[e.value - e.low for _, e in known], [e.high - e.value for _, e in known]],
            color=color,
            ls=_LINES[chosen.family],
            marker=_MARKERS[chosen.family],
            ms=6,
            lw=1.8,
            elinewidth=1.0,
            capsize=2.5,
            label=chosen.label,
        )
    axes.set_xticks(latencies, [f"{ms:g}" for ms in latencies])


def _finish(figure: Any, axes: Any, title: str, path: Path) -> None:
    axes.set_xlabel("latency of the policy's vision-language half, ms", fontsize=12)
    axes.set_title(title, fontsize=13)
    axes.tick_params(labelsize=11)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=11, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(factor * estimate.value, factor * estimate.low, factor * estimate.high)
