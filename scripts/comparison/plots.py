"""The comparison in pictures. Needs matplotlib, which the extras `serving` and `sim` bring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scripts.comparison.measures import METHODS, TITLES, Figures, Method, Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_errors", "draw_joints", "draw_method"]

COLORS: dict[Method, str] = {
    "synchronous": "#d1603d",
    "threaded": "#2a78b5",
    "server-client": "#3b9c6d",
    "dual-rate": "#8e5ea2",
}
_INK, _SOFT, _STALL = "#22303c", "#c9d3db", "#f7d9cd"
_DPI = 110
_CLOSE_UP_S = 8.0
_STALL_S = 0.1


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _style(axes: Axes, x: str, y: str, title: str = "") -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="y", color=_SOFT, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _stretches(outcome: Outcome, fresh: bool) -> list[tuple[float, float]]:
    """Start and end, seconds, of each time with (or without) fresh actions."""
    at = outcome.times_s
    wanted = (outcome.fresh == fresh).astype(np.int8)
    edges = np.append(at, 2 * at[-1] - at[-2])[np.flatnonzero(np.diff(wanted, prepend=0, append=0))]
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def draw_method(outcome: Outcome, figures: Figures, names: Sequence[str], path: Path) -> None:
    """All joints of one run: recorded, commanded, measured; shaded where no fresh action came."""
    plt = _pyplot()
    rows = -(-len(names) // 2)
    figure, grid = plt.subplots(
        rows, 2, figsize=(16, 1.3 + 2.6 * rows), dpi=_DPI, sharex=True, squeeze=False
    )
    stalls = [(a, b) for a, b in _stretches(outcome, False) if b - a > _STALL_S]
    for place, axes in enumerate(grid.flat):
        if place >= len(names):
            axes.set_axis_off()
            continue
        for number, (start, end) in enumerate(stalls):
            label = f"no fresh action for over {1e3 * _STALL_S:g} ms" if not number else None
            axes.axvspan(start, end, color=_STALL, linewidth=0, label=label)
        columns = (
            (outcome.recorded, "recorded", _INK, 2.2, "-"),
            (outcome.measured, "where the robot was", _SOFT, 1.6, "-"),
            (outcome.commanded, "commanded", COLORS[outcome.method], 1.2, "-"),
        )
        for values, label, color, width, dashes in columns:
            axes.plot(outcome.times_s, values[:, place], dashes, color=color, lw=width, label=label)
        error = f"{names[place]}   MAE {figures.mae[place]:.2f}°, RMSE {figures.rmse[place]:.2f}°"
        _style(axes, "seconds" if place >= len(names) - 2 else "", "degrees", error)
        axes.margins(x=0.005)
    _legend(figure, grid[0, 0], 0.62)
    figure.suptitle(
        f"{TITLES[outcome.method]}\ninference delay {outcome.delay_s:g} s  ·  "
        f"{figures.rate_hz:.1f} actions/s  ·  longest gap {1e3 * figures.longest_gap_s:.0f} ms  ·  "
        f"MAE {figures.mae_all:.2f}°",
        fontsize=14,
        y=1.0 - 0.1 / figure.get_figheight(),
        va="top",
    )
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.5 / figure.get_figheight()))
    figure.savefig(path)
    plt.close(figure)


def _legend(figure: Any, axes: Axes, top_inches: float) -> None:
    """One legend for all panels, so far below the figure's upper end."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="upper center",
        bbox_to_anchor=(0.5, 1.0 - top_inches / figure.get_figheight()),
        ncols=len(labels),
        frameon=False,
        fontsize=11,
    )


def _close_up(outcomes: Sequence[Outcome]) -> tuple[float, float]:
    """The few seconds in which the errors are largest."""
    times = outcomes[0].times_s
    worst = np.max([np.abs(o.commanded - o.recorded).mean(axis=1) for o in outcomes], axis=0)
    rows = min(max(round(_CLOSE_UP_S / float(times[1])), 1), len(times))
    sums = np.convolve(worst, np.ones(rows), mode="valid")
    # Where all are alike there is no worst place: then the middle.
    flat = sums.max() < 2.0 * max(float(np.median(sums)), 1e-9)
    start = (len(times) - rows) // 2 if flat else int(np.argmax(sums))
    return float(times[start]), float(times[start + rows - 1])


def draw_joints(outcomes: Sequence[Outcome], names: Sequence[str], path: Path) -> None:
    """Every joint of every method against the recording: the whole run, and a few seconds of it."""
    plt = _pyplot()
    figure, grid = plt.subplots(
        len(names), 2, figsize=(18, 1.2 + 2.2 * len(names)), dpi=_DPI, squeeze=False,
        gridspec_kw={"width_ratios": (1.6, 1.0)},
    )  # fmt: skip
    low, high = _close_up(outcomes)
    times = outcomes[0].times_s
    near = (times >= low) & (times <= high)
    for place, name in enumerate(names):
        for axes, shown in ((grid[place, 0], np.ones(len(times), bool)), (grid[place, 1], near)):
            recorded = outcomes[0].recorded[shown, place]
            axes.plot(times[shown], recorded, color=_SOFT, linewidth=5.0, label="recorded")
            for number, outcome in enumerate(outcomes):
                # The methods that track lie on each other: dashes in turn show them all.
                dashes = (0, ()) if outcome.method == "synchronous" else (3 * number, (3, 6))
                axes.plot(
                    times[shown], outcome.commanded[shown, place], color=COLORS[outcome.method],
                    linewidth=1.6, linestyle=dashes, label=outcome.method,
                )  # fmt: skip
            last = place == len(names) - 1
            _style(axes, "seconds" if last else "", "degrees", name)
            axes.margins(x=0.005)
        grid[place, 0].axvspan(low, high, color=_SOFT, alpha=0.35, linewidth=0)
    grid[0, 1].set_title(f"{names[0]}, from {low:.1f} to {high:.1f} s", loc="left", fontsize=11,
                         fontweight="bold", color=_INK)  # fmt: skip
    _legend(figure, grid[0, 0], 0.45)
    figure.suptitle(
        f"Commanded joints against the recording, inference delay {outcomes[0].delay_s:g} s",
        fontsize=15,
        y=1.0 - 0.1 / figure.get_figheight(),
        va="top",
    )
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / figure.get_figheight()))
    figure.savefig(path)
    plt.close(figure)


def draw_errors(lines: Sequence[tuple[Outcome, Figures]], names: Sequence[str], path: Path) -> None:
    """The error over time, when actions came, and the errors by joint."""
    plt = _pyplot()
    figure = plt.figure(figsize=(17, 12), dpi=_DPI)
    grid = figure.add_gridspec(3, 2, height_ratios=(1.5, 0.8, 1.2))
    over_time = figure.add_subplot(grid[0, :])
    strips = figure.add_subplot(grid[1, :], sharex=over_time)
    for place, (outcome, figures) in enumerate(lines):
        color = COLORS[outcome.method]
        error = np.abs(outcome.commanded - outcome.recorded).mean(axis=1)
        over_time.plot(
            outcome.times_s, error, color=color, linewidth=1.3,
            label=f"{outcome.method}: MAE {figures.mae_all:.3f}°",
        )  # fmt: skip
        fresh = [(start, end - start) for start, end in _stretches(outcome, True)]
        strips.broken_barh(fresh, (place - 0.35, 0.7), facecolors=color, linewidth=0)
    over_time.set_ylim(0, 1.18 * max(over_time.get_ylim()[1], 0.1))
    over_time.margins(x=0.005)
    over_time.legend(frameon=False, fontsize=11, ncols=len(lines), loc="upper right")
    _style(over_time, "", "mean of all joints, °", "Error of the commands at the same time")
    strips.set_yticks(
        range(len(lines)),
        [f"{o.method}\n{f.rate_hz:.1f}/s" for o, f in lines],
    )
    strips.invert_yaxis()
    _style(strips, "seconds", "", "When fresh actions came (white: none)")
    strips.grid(visible=False)
    for column, (title, of) in enumerate((("MAE", "mae"), ("RMSE", "rmse"))):
        axes = figure.add_subplot(grid[2, column])
        _bars(axes, [(o.method, getattr(f, of), getattr(f, f"{of}_all")) for o, f in lines], names)
        _style(axes, "", f"{title}, °", f"{title} of the commands by joint")
    figure.suptitle(
        f"Four ways to run one policy: inference delay {lines[0][0].delay_s:g} s, "
        f"{1 / lines[0][0].times_s[1]:.0f} Hz",
        fontsize=16,
    )
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def _bars(
    axes: Axes,
    lines: Sequence[tuple[Method, NDArray[np.float64], float]],
    names: Sequence[str],
) -> None:
    """Groups of bars: a group a joint and one for all of them, a bar a method."""
    width = 0.8 / len(METHODS)
    for number, (method, values, overall) in enumerate(lines):
        at = np.arange(len(names) + 1) + (number - (len(lines) - 1) / 2) * width
        bars = axes.bar(at, [*values.tolist(), overall], 0.92 * width, color=COLORS[method])
        axes.bar_label(bars, fmt="%.2f", fontsize=7, rotation=90, padding=3)
    axes.set_ylim(0, 1.15 * max(axes.get_ylim()[1], 0.1))
    turned = len(names) > 8
    axes.set_xticks(
        range(len(names) + 1), [*names, "all"], rotation=60 if turned else 0, fontsize=9
    )
