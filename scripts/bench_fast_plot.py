"""Draws what `bench_fast_parts` measured: a bar for each way, a line for what memory allows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

__all__ = ["draw"]

_INK, _PLAIN, _FOLDED, _FLOOR, _GOAL = "#22303c", "#c9d3db", "#2a78b5", "#d1603d", "#4b9a62"

Panel = tuple[str, dict[str, list[float]], dict[str, float]]
"""A title; sorted milliseconds of each way; the least that memory allows."""


def draw(panels: Sequence[Panel], goal_ms: float, path: Path) -> None:
    """Draw a panel for each number of threads into a PNG of 1600x900."""
    plt.rcParams.update({"font.size": 13, "text.color": _INK, "axes.edgecolor": _INK})
    figure, grid = plt.subplots(1, len(panels), figsize=(16, 9), dpi=100, squeeze=False)
    figure.subplots_adjust(0.18, 0.11, 0.97, 0.84, wspace=0.08)
    figure.text(0.03, 0.94, "Fast parts at full size: one tick", fontsize=19, fontweight="bold")
    figure.text(0.03, 0.895, "CPU, bar: median, thin line: best; lower is better", fontsize=13)
    for number, (axes, (title, times, floors)) in enumerate(zip(grid[0], panels, strict=True)):
        names = list(times)
        medians = [statistics.median(values) for values in times.values()]
        places = range(len(names), 0, -1)
        colours = [_PLAIN if name.startswith("plain") else _FOLDED for name in names]
        axes.barh(places, medians, color=colours, height=0.62)
        for place, name, median in zip(places, names, medians, strict=True):
            axes.plot([times[name][0]] * 2, [place - 0.31, place + 0.31], color=_INK, lw=1.5)
            axes.plot([floors[name]] * 2, [place - 0.4, place + 0.4], color=_FLOOR, lw=3)
            axes.text(median * 1.06, place, f"{median:.1f} ms", va="center")
        axes.axvline(goal_ms, color=_GOAL, ls="--", lw=2)
        axes.set_xscale("log")
        axes.set_xlim(1.5, max(medians) * 2.5)
        axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axes.set_xlabel("milliseconds (log scale)")
        axes.set_title(title)
        labels = [name.replace(" weights, ", " weights,\n") for name in names]
        axes.set_yticks(list(places), labels if number == 0 else [""] * len(names))
        axes.spines[["top", "right"]].set_visible(False)
    handles = [
        plt.Line2D([], [], color=_FLOOR, lw=3, label="its weights read once, at the rate measured"),
        plt.Line2D([], [], color=_GOAL, lw=2, ls="--", label=f"goal, {goal_ms:g} ms"),
    ]
    figure.legend(handles=handles, loc="upper right", bbox_to_anchor=(0.975, 0.975), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        figure.savefig(path, format="png")
    finally:
        plt.close(figure)
