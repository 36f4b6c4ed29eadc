"""The picture of `bench_ingest.py`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

__all__ = ["Figures", "plot"]

_SIDES = ("ours", "loop of\nrigs today")
_COLORS = ("#1f77b4", "#b0b0b0")


@dataclass(frozen=True)
class Figures:
    """What is drawn, ours before theirs.

    Attributes:
        parsing_s: processor seconds a datagram.
        used: processor seconds for a second of a rig's data, of each stretch.
        lost: share of the samples.
    """

    parsing_s: tuple[float, float]
    used: list[list[float]]
    lost: list[float]


def _bars(axes: Axes, values: list[float], title: str, label: str, form: str) -> None:
    bars = axes.bar(_SIDES, values, color=_COLORS, width=0.6)
    axes.bar_label(bars, labels=[format(value, form) for value in values], fontsize=16, padding=4)
    axes.set_title(title, fontsize=16)
    axes.set_ylabel(label, fontsize=14)
    axes.tick_params(labelsize=14)
    axes.set_ylim(0, 1.15 * max(*values, 1e-3))
    axes.spines[["top", "right"]].set_visible(False)


def plot(figures: Figures, path: Path) -> None:
    """Draw both sides beside each other into a PNG."""
    figure, axes = plt.subplots(1, 3, figsize=(16, 9), layout="constrained")
    parsing = [1e6 * value for value in figures.parsing_s]
    _bars(axes[0], parsing, "Parsing a datagram of 10 samples", "processor time (µs)", ".1f")
    used = [1e3 * sorted(values)[len(values) // 2] for values in figures.used]
    title = "Taking in 5 x 30 FPS, 1280x720"
    _bars(axes[1], used, title, "processor time (ms for 150 frames, 650 samples)", ".0f")
    for index, values in enumerate(figures.used):
        places = [index + 0.36] * len(values)  # beside the bar, whose number is above it
        axes[1].plot(places, [1e3 * value for value in values], "k.", markersize=10)
    lost = [100.0 * share for share in figures.lost]
    _bars(axes[2], lost, "Samples lost at 6,500 a second", "share (%)", ".2f")
    figure.suptitle("Ingest: dualrate beside the loop that rigs run today", fontsize=20)
    figure.savefig(path, dpi=100)
    plt.close(figure)
