"""Draws a demo run: how slow and fast loop interleave, how late ticks were, what the arm did."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.gridspec import GridSpec
from numpy.typing import NDArray

from scripts.scoreboard import read_score
from senders.drivers import DriverError
from sim.layout import RigConfig
from sim.rendering import RigRenderer
from sim.rig import InsertionRig
from sim.task import DISTANCE_MM
from sim.trace import read_trace

__all__ = ["draw_report"]

_INK, _SLOW, _FAST, _WARM, _SOFT = "#22303c", "#8e5ea2", "#2a78b5", "#d1603d", "#c9d3db"
_GOOD = "#2e8b57"
_TIMELINE_S = 4.0
_JOINTS = tuple(f"j{index}" for index in range(1, 7))
_NEEDED = ("wall_time", *_JOINTS, "distance_mm", "force_n", "episode")


@dataclass(frozen=True, slots=True)
class _Run:
    summary: dict[str, Any]
    actions: list[dict[str, Any]]
    trace: dict[str, NDArray[np.float64]]
    start: float
    score: list[dict[str, Any]]


def _load(folder: Path) -> _Run:
    summary = json.loads((folder / "summary.json").read_text())
    actions: list[dict[str, Any]] = []
    for episode in summary["results"]:
        for path in sorted(Path(episode).glob("inference_results_*.json")):
            actions += json.loads(path.read_text())
    trace = read_trace(folder / "rig.csv", _NEEDED)
    return _Run(summary, actions, trace, actions[0]["deadline"], read_score(folder / "score.jsonl"))


def _style(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=_INK)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="y", color=_SOFT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _timeline(axes: Axes, run: _Run) -> None:
    """A few seconds in the middle: each VL pass a bar, each action a dot on the pass it used."""
    middle = run.actions[len(run.actions) // 2]["deadline"]
    low = max(middle - _TIMELINE_S / 2, run.start)
    high = low + _TIMELINE_S
    updates = {a["vl_ready_at"]: (a["vl_update_number"], a["vl_started_at"]) for a in run.actions}
    lanes = {}
    for ready, (number, started) in updates.items():
        lane = number % 2
        lanes[ready] = lane
        if ready >= low - 1 and started <= high:
            axes.barh(lane, ready - started, left=started - low, height=0.36, color=_SLOW)
            if started >= low and ready <= high:
                axes.text(
                    (started + ready) / 2 - low,
                    lane + 0.25,
                    f"#{number}",
                    ha="center",
                    fontsize=8,
                    color=_SLOW,
                )
    for action in run.actions:
        at = action["deadline"] - low
        if not 0 <= at <= _TIMELINE_S:
            continue
        lane, ready = lanes[action["vl_ready_at"]], action["vl_ready_at"] - low
        axes.plot([max(ready, 0.0), at], [lane, -0.9], color=_SOFT, linewidth=0.8, zorder=1)
        axes.plot(at, -0.9, "o", color=_FAST, markersize=6)
    axes.set_xlim(0, _TIMELINE_S)
    axes.set_ylim(-1.3, 1.6)
    axes.set_yticks([-0.9, 0.5], ["actions", "VL passes"])
    _style(
        axes,
        "A slow mind and a fast hand: which features each action used",
        f"seconds ({_TIMELINE_S:g} s from the middle of the run)",
        "",
    )
    axes.grid(visible=False)


def _lateness(axes: Axes, run: _Run) -> None:
    late = np.array([a["lateness_ms"] for a in run.actions])
    edges = np.geomspace(0.02, max(20.0, float(late.max()) * 1.1), 40)
    axes.hist(np.clip(late, edges[0], None), bins=edges.tolist(), color=_FAST)
    axes.set_xscale("log")
    axes.set_xticks([0.03, 0.1, 0.3, 1, 3, 10], ["0.03", "0.1", "0.3", "1", "3", "10"])
    p50, p99 = run.summary["action_lateness_ms_p50"], run.summary["action_lateness_ms_p99"]
    for value, name, color in ((p50, "p50", _INK), (p99, "p99", _WARM)):
        axes.axvline(
            value, color=color, linewidth=1.4, linestyle="--", label=f"{name} {value:.2f} ms"
        )
    axes.legend(frameon=False, fontsize=9)
    _style(axes, "How late each tick began", "ms after its deadline", "actions")


def _episodes(axes: Axes, run: _Run, time: NDArray[np.float64]) -> None:
    """Mark where each judged episode ended, and how."""
    for episode in run.score:
        own = time[run.trace["episode"] == episode["number"]]
        if not len(own) or own[-1] < 0:
            continue
        color = _GOOD if episode["success"] else _WARM
        axes.axvline(own[-1], color=color, linewidth=1.2)
        axes.text(
            own[-1],
            1.0,
            "✓" if episode["success"] else "✗",
            color=color,
            ha="right",
            va="top",
            fontweight="bold",
            transform=axes.get_xaxis_transform(),
        )


def _contact(axes: Axes, run: _Run) -> None:
    time = run.trace["wall_time"] - run.start
    shown = (time >= 0) & (time <= run.summary["duration_s"])
    axes.plot(time[shown], run.trace["distance_mm"][shown], color=_FAST, linewidth=1.2)
    axes.axhline(0, color=_SOFT, linewidth=1)
    axes.axhline(DISTANCE_MM, color=_SOFT, linewidth=1, linestyle="--")
    _episodes(axes, run, time)
    _style(
        axes,
        "At the needle's tip (dashed: where it should be)",
        "seconds",
        "distance to tissue, mm",
    )
    axes.yaxis.label.set_color(_FAST)
    axes.margins(x=0.01)
    force = axes.twinx()
    force.plot(time[shown], run.trace["force_n"][shown], color=_WARM, linewidth=1.0)
    low, high = force.get_ylim()
    force.set_ylim(min(low, -0.05), max(high, 0.5))  # or the sensor's noise would fill the panel
    force.set_ylabel("force, N", color=_WARM)
    force.spines["top"].set_visible(False)


def _joints(axes: Axes, run: _Run) -> None:
    time = run.trace["wall_time"] - run.start
    shown = (time >= 0) & (time <= run.summary["duration_s"])
    for name in _JOINTS:
        angle = run.trace[name][shown]
        if len(angle):
            axes.plot(time[shown], angle - angle[0], linewidth=1.2, label=name.upper())
    axes.legend(frameon=False, fontsize=9, ncols=6, loc="upper center")
    axes.margins(x=0.01, y=0.25)
    _style(axes, "What the arm did", "seconds", "joints from their start, °")


def _headline(run: _Run) -> str:
    s = run.summary
    return (
        f"{s['actions']} actions at {s['action_hz']:.2f} Hz, {s['deadline_misses']} deadlines "
        f"missed   ·   {s['vl_updates']} VL updates of {s['vl_ms_mean']:.0f} ms at "
        f"{s['vl_hz']:.2f} Hz   ·   features {s['feature_age_ms_p50']:.0f} ms old when used (p50)"
        f"   ·   {sum(s['frames'].values())} frames, {s['sensor_samples']} force samples, "
        f"{s['sensor_lost']} lost"
    )


def _final_views(run: _Run) -> list[tuple[str, NDArray[np.uint8]]]:
    """What the five cameras see at the end of the run: the rig is put there and drawn again."""
    if "seed" not in run.trace or not len(run.trace["seed"]):
        return []  # an older rig did not say where the port was
    rig = InsertionRig(RigConfig())
    rig.reset(int(run.trace["seed"][-1]), [run.trace[name][-1] for name in _JOINTS])
    try:
        with RigRenderer(rig.model, 640, 360) as renderer:
            pictures = renderer.render(rig.data)
    except DriverError:
        return []  # the demo could not have run without GL; an old run can still be drawn
    return [(view, cv2.cvtColor(image, cv2.COLOR_BGR2RGB)) for view, image in pictures.items()]


def draw_report(folder: Path) -> Path:
    """Draw `folder/report.png` from the summary, the results and the rig's trace in `folder`.

    Needs at least one action. The pictures of an older rig's trace, which has no column `seed`, are
    left out. ValueError, one line, for a trace or a score that cannot be read.
    """
    run = _load(folder)
    views = _final_views(run)
    plt.rcParams.update(
        {
            "font.size": 10,
            "axes.edgecolor": _INK,
            "text.color": _INK,
            "axes.labelcolor": _INK,
            "xtick.color": _INK,
            "ytick.color": _INK,
        }
    )
    figure = plt.figure(figsize=(16, 9), dpi=120)
    sides = {"left": 0.06, "right": 0.955}
    strip = GridSpec(1, 5, figure, **sides, top=0.885, bottom=0.722, wspace=0.06)
    top = 0.662 if views else 0.86
    grid = GridSpec(2, 30, figure, **sides, top=top, bottom=0.07, hspace=0.42, wspace=2.0)
    title = f"dualrate on the simulated insertion rig: {run.summary['duration_s']:.0f} s"
    if run.score:
        succeeded = sum(entry["success"] for entry in run.score)
        title += f", {succeeded} of {len(run.score)} episodes succeeded"
    figure.text(0.06, 0.955, title, fontsize=18, fontweight="bold")
    figure.text(0.06, 0.922, _headline(run), fontsize=10.5)
    figure.text(
        0.955,
        0.957,
        f"policy {run.summary['policy']} on {run.summary['device']}",
        fontsize=10,
        ha="right",
    )
    for index, (name, image) in enumerate(views):
        axes = figure.add_subplot(strip[index])
        axes.imshow(image)
        axes.set_title(name, fontsize=10, loc="left")
        axes.set_axis_off()
    _timeline(figure.add_subplot(grid[0, :20]), run)
    _lateness(figure.add_subplot(grid[0, 21:]), run)
    _contact(figure.add_subplot(grid[1, :13]), run)
    _joints(figure.add_subplot(grid[1, 16:]), run)
    path = folder / "report.png"
    figure.savefig(path)
    plt.close(figure)
    return path
