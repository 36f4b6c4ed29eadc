"""The picture of `bench_serving.py`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from scripts.serving_sides.runs import Crowd

__all__ = ["plot"]

_OURS = ("zmq", "grpc", "pickles")
_LOOKS = {"zmq": ("#1f77b4", "o", "ZeroMQ"), "grpc": ("#ff7f0e", "s", "gRPC")}


def _round_trips(
    axes: Axes, times: Mapping[str, NDArray[np.float64]], words: Mapping[str, str]
) -> None:
    names = [name for name in words if name in times]
    for place, name in enumerate(names):
        ms = 1e3 * times[name]
        middle, high = float(np.median(ms)), float(np.percentile(ms, 99))
        axes.barh(place, middle, color="#1f77b4" if name in _OURS else "#b0b0b0", height=0.6)
        axes.plot([middle, high], [place, place], "k-", lw=1.5)
        axes.plot(high, place, "k|", ms=14)
        axes.text(high * 1.15, place, f"{middle:.2f}", va="center", fontsize=14)
    axes.set_yticks(range(len(names)), [words[name].replace(", ", ",\n") for name in names])
    axes.set_xscale("log")
    least = min(1e3 * float(np.median(seconds)) for seconds in times.values())
    most = max(1e3 * float(np.percentile(seconds, 99)) for seconds in times.values())
    axes.set_xlim(least / 10, 2.5 * most)  # a bar of a tenth at least, on a scale without a zero
    axes.set_xlabel("round trip, ms: median, line up to p99", fontsize=14)
    axes.set_title("One client", fontsize=16)


def _curves(axes: Axes, measured: Sequence[Crowd], what: str) -> None:
    for side, (color, marker, label) in _LOOKS.items():
        chosen = [crowd for crowd in measured if crowd.side == side]
        counts = [crowd.count for crowd in chosen]
        style: dict[str, Any] = {"color": color, "marker": marker, "lw": 2, "ms": 7}
        if what == "rate":
            axes.plot(counts, [c.rates_hz.mean() for c in chosen], label=label, **style)
            axes.plot(counts, [c.rates_hz.min() for c in chosen], ":", **style)
        elif what == "p99":
            axes.plot(counts, [c.percentile_ms(99) for c in chosen], label=label, **style)
        else:
            axes.plot(counts, [1e3 * c.server_cpu for c in chosen], label=label, **style)
            used = [1e3 * (c.server_cpu + sum(c.load_cpu)) for c in chosen]
            axes.plot(counts, used, ":", **style)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({c.count for c in measured}))
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.grid(alpha=0.3)


def plot(
    times: Mapping[str, NDArray[np.float64]],
    words: Mapping[str, str],
    measured: Sequence[Crowd],
    folder: Path,
) -> Path:
    """Round trips of every side, and rate, p99 and processor time over the clients: a PNG."""
    figure = plt.figure(figsize=(18, 9), layout="constrained")
    grid = figure.add_gridspec(3, 2, width_ratios=(1.15, 1))
    bars = figure.add_subplot(grid[:, 0])
    _round_trips(bars, times, words)
    panels = [figure.add_subplot(grid[row, 1]) for row in range(3)]
    for axes, what in zip(panels, ("rate", "p99", "cpu"), strict=True):
        _curves(axes, measured, what)
    hz = measured[0].hz if measured else 0.0
    panels[0].axhline(hz, color="grey", lw=1)
    panels[0].set_title(f"Clients at {hz:g} Hz on one server", fontsize=16)
    panels[0].set_ylabel("Hz a client: mean,\ndotted the slowest", fontsize=13)
    panels[0].set_ylim(0, 1.1 * max(hz, 1.0))
    panels[0].legend(fontsize=13)
    panels[1].set_ylabel("round trip p99, ms", fontsize=13)
    panels[1].set_yscale("log")
    panels[2].axhline(1e3 * (os.cpu_count() or 1), color="grey", lw=1)
    panels[2].set_ylabel("processor ms/s: server,\ndotted with the clients", fontsize=13)
    panels[2].set_ylim(bottom=0)
    panels[2].set_xlabel("clients", fontsize=14)
    for axes in (bars, *panels):
        axes.tick_params(labelsize=13)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Five pictures of 640x360 and a state there, 50 actions back", fontsize=20)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "serving.png"
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path
