"""Draws a run's timing: what its input holds, a panel each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from scripts.analyze_inputs import Run

__all__ = ["draw"]

_INK, _SLOW, _FAST, _WARM, _SOFT = "#22303c", "#8e5ea2", "#2a78b5", "#d1603d", "#c9d3db"
_LINES = ("#2a78b5", "#d1603d", "#4b9a62", "#8e5ea2", "#c79a2b", "#5d6d7a", "#b04a6f")
_Panel = Callable[[Axes, Run, dict[str, Any]], None]


def draw(run: Run, figures: dict[str, Any], path: Path) -> None:
    """Draw the run into a PNG of 1920x1080; OSError when it cannot be written."""
    panels = _panels(run)
    plt.rcParams.update(
        {
            "font.size": 10.5,
            "axes.edgecolor": _INK,
            "text.color": _INK,
            "axes.labelcolor": _INK,
            "xtick.color": _INK,
            "ytick.color": _INK,
        }
    )
    across = min(len(panels), 3) if len(panels) != 4 else 2
    down = -(-len(panels) // across)
    figure, grid = plt.subplots(down, across, figsize=(16, 9), dpi=120, squeeze=False)
    gap = 0.55 if down > 2 else 0.36
    figure.subplots_adjust(0.05, 0.07, 0.975, 0.85, wspace=0.2, hspace=gap)
    figure.text(0.05, 0.945, f"{run.source}: {run.name}", fontsize=17, fontweight="bold")
    figure.text(0.05, 0.905, _headline(figures), fontsize=11.5)
    places = [grid[n // across][n % across] for n in range(down * across)]
    for axes, panel in zip(places, panels, strict=False):
        panel(axes, run, figures)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    try:
        figure.savefig(path, format="png")
    finally:
        plt.close(figure)


def _panels(run: Run) -> list[_Panel]:
    wanted: list[tuple[bool, _Panel]] = [
        (len(run.inference_ms) > 0, _inference),
        (len(run.lateness_ms) > 0, _lateness),
        (len(run.update_ms) > 0, _updates),
        (len(run.feature_age_ms) > 0, _age),
        (len(run.uses) > 1, _reuse),
        (bool(run.streams), _streams),
        (bool(run.streams), _gaps),
        (len(run.window) > 0, _window),
    ]
    return [panel for there, panel in wanted if there][:9]


def _headline(figures: dict[str, Any]) -> str:
    parts = []
    for key, word in (("actions", "actions"), ("vl_updates", "VL updates")):
        if found := figures.get(key):
            rate = f" at {found['rate_hz']:.2f} Hz" if "rate_hz" in found else ""
            parts.append(f"{found['count']} {word}{rate}")
    if "deadline_misses" in figures:
        parts.append(f"{figures['deadline_misses']} deadlines missed")
    if (left_out := figures.get("actions", {}).get("ticks_without_action")) is not None:
        parts.append(f"{left_out} ticks without an action")
    if holds := figures.get("holds"):
        parts.append(f"{sum(holds.values())} holds")
    return "   ·   ".join(parts)


def _style(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=_INK)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="y", color=_SOFT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _when(run: Run) -> tuple[NDArray[np.float64], str]:
    """The actions' place on the x axis: seconds where they are known, else their number."""
    if len(run.action_at):
        return np.asarray(run.action_at - run.action_at[0], np.float64), "seconds"
    return np.arange(1, len(run.inference_ms) + 1, dtype=np.float64), "action"


def _marked(axes: Axes, values: NDArray[np.float64], unit: str) -> None:
    """Lines at the median and the 99th percentile, with their figures."""
    for percent, color in ((50, _INK), (99, _WARM)):
        value = float(np.percentile(values, percent))
        label = f"p{percent} {value:.3g} {unit}"
        axes.axhline(value, color=color, linewidth=1.2, linestyle="--", label=label)
    axes.legend(frameon=False, fontsize=9.5, loc="upper right", ncols=2)


def _over_time(
    axes: Axes, run: Run, values: NDArray[np.float64], title: str, unit: str, color: str
) -> None:
    x, label = _when(run)
    axes.plot(x, values, ".", markersize=3, color=color)
    _marked(axes, values, unit)
    low, high = float(values.min()), float(values.max())
    room = max(high - low, 0.05 * abs(high), 1e-3)
    axes.set_ylim(min(low, 0.0) if low < 0.5 * high else low - 0.1 * room, high + 0.25 * room)
    axes.margins(x=0.01)
    _style(axes, title, label, unit)


def _inference(axes: Axes, run: Run, figures: dict[str, Any]) -> None:
    _over_time(axes, run, run.inference_ms, "Inference of an action", "ms", _FAST)


def _age(axes: Axes, run: Run, figures: dict[str, Any]) -> None:
    title = "Age of the features when used"
    _over_time(axes, run, run.feature_age_ms, title, "ms", _SLOW)


def _window(axes: Axes, run: Run, figures: dict[str, Any]) -> None:
    title = "Samples in the sensor window"
    if run.window_full:
        title += f" (whole: {run.window_full})"
    _over_time(axes, run, run.window, title, "samples", _FAST)
    axes.set_ylim(0, 1.3 * max(float(run.window.max()), run.window_full or 1))


def _lateness(axes: Axes, run: Run, figures: dict[str, Any]) -> None:
    late = np.clip(run.lateness_ms, 0.01, None)
    top = max(10.0, float(late.max()) * 1.1)
    axes.hist(late, bins=np.geomspace(0.01, top, 40).tolist(), color=_FAST)
    axes.set_xscale("log")
    ticks = [t for t in (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0) if t <= top]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    for percent, color in ((50, _INK), (99, _WARM)):
        value = float(np.percentile(run.lateness_ms, percent))
        label = f"p{percent} {value:.2f} ms"
        axes.axvline(max(value, 0.01), color=color, linewidth=1.2, linestyle="--", label=label)
    axes.legend(frameon=False, fontsize=9.5)
    _style(axes, "How late ticks began", "ms after the deadline", "actions")


def _updates(axes: Axes, run: Run, figures: dict[str, Any]) -> None:
    known = len(run.update_at) == len(run.update_ms)
    origin = run.action_at[0] if len(run.action_at) else 0.0
    x = run.update_at - origin if known else np.arange(len(run.update_ms)) + 1.0
    axes.plot(x, run.update_ms, ".", markersize=5, color=_SLOW)
    _marked(axes, run.update_ms, "ms")
    axes.set_ylim(0, 1.3 * float(run.update_ms.max()) + 1e-3)
    axes.margins(x=0.01)
    _style(axes, "VL updates", "seconds" if known else "update", "ms")


def _reuse(axes: Axes, run: Run, figures: dict[str, Any]) -> None:
    served = figures["actions"].get("actions_per_update", {})
    counts = {int(count): times for count, times in served.items()}
    late = run.reuse if run.reuse is not None else max(counts, default=0)
    colors = [_WARM if count > late else _SLOW for count in counts]
    axes.bar(list(counts), list(counts.values()), color=colors, width=0.7)
    axes.set_xticks(list(counts)[:20])
    wanted = f", {run.reuse} wanted" if run.reuse is not None else ""
    _style(axes, f"Actions an update served{wanted}", "actions", "updates")


def _streams(axes: Axes, run: Run, figures: dict[str, Any]) -> None:
    """Messages a second, each second, as a share of the stream's whole rate."""
    start = min(float(stream.times[0]) for stream in run.streams.values())
    for n, (name, stream) in enumerate(run.streams.items()):
        seconds = stream.times - start
        counts = np.bincount(seconds.astype(np.int64).clip(0))[:-1]
        rate = figures["streams"][name].get("rate_hz")
        if len(counts) < 2 or not rate:
            continue
        color = _LINES[n % len(_LINES)]
        label = f"{name} {rate:.0f} Hz"
        axes.plot(np.arange(len(counts)) + 0.5, 100 * counts / rate, color=color, label=label)
    axes.set_ylim(0, 180)
    axes.margins(x=0.01)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(
            frameon=False,
            fontsize=8,
            ncols=4,
            columnspacing=0.9,
            handlelength=1.2,
            loc="upper center",
        )
    _style(axes, "Streams: messages in each second", "seconds", "% of the mean rate")


def _gaps(axes: Axes, run: Run, figures: dict[str, Any]) -> None:
    """The intervals of each stream: median, 99th percentile and worst."""
    found = {n: f["interval_ms"] for n, f in figures["streams"].items() if "interval_ms" in f}
    y = np.arange(len(found))[::-1]
    for key, mark, color in (("p50", "o", _FAST), ("p99", "D", _SLOW), ("max", "X", _WARM)):
        values = [interval[key] for interval in found.values()]
        axes.plot(values, y, mark, color=color, markersize=7, label=key)
    axes.set_yticks(y, list(found))
    axes.set_ylim(-0.7, len(found) + 0.9)
    axes.set_xscale("log")
    # A decade is seldom full here: 1, 2 and 5 of each say where the points lie.
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.legend(frameon=False, fontsize=9.5, ncols=3, loc="upper right")
    _style(axes, "Streams: time between messages", "ms", "")
    axes.grid(axis="x", color=_SOFT, linewidth=0.6)
