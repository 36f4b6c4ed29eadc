"""The picture of `bench_slow_part.py`."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

__all__ = ["draw_times"]

OURS, THEIRS = "#1f77b4", "#b0b0b0"


def draw_times(times: dict[str, list[float]], title: str, path: Path) -> None:
    """Draw a bar for the median of each kind, with a dot for every round."""
    plt.rcParams.update({"font.size": 17})
    figure, axes = plt.subplots(figsize=(16, 9), layout="constrained")
    names = sorted(times, key=lambda name: -float(np.median(times[name])))
    longest = max(float(np.percentile(times[name], 90)) for name in names)
    for row, name in enumerate(names):
        values = np.array(times[name])
        middle = float(np.median(values))
        colour = THEIRS if name.startswith("library") else OURS
        axes.barh(row, middle, height=0.6, color=colour)
        axes.plot(values, np.full(len(values), row), ".", color="black", alpha=0.4)
        axes.text(longest * 1.24, row, f"{middle:.1f} ms", va="center", ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.26)
    axes.set_xlabel("time of an update, ms (bar: median; dots: rounds; grey: the library)")
    axes.set_title(f"{title}: an update from five views of 640x360")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
