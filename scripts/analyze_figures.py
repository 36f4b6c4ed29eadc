"""The figures of a run, computed from what its input holds and from nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.analyze_inputs import Run, Status, StreamTimes

__all__ = ["figures_of", "spread"]

_GAP = 3.0


def spread(values: NDArray[np.float64]) -> dict[str, float]:
    """Mean, median, 99th percentile and maximum."""
    p50, p99 = np.percentile(values, [50, 99])
    numbers = {"mean": values.mean(), "p50": p50, "p99": p99, "max": values.max()}
    return {name: round(float(value), 4) for name, value in numbers.items()}


def _rate(times: NDArray[np.float64]) -> float | None:
    """Events a second between the first and the last."""
    if len(times) < 2 or not times[-1] > times[0]:
        return None
    return round(float((len(times) - 1) / (times[-1] - times[0])), 4)


def figures_of(run: Run) -> dict[str, Any]:
    """Everything that can be said of the run; what its input does not hold is left out."""
    figures: dict[str, Any] = {"source": run.source, "name": run.name}
    figures |= {"vl_updates": _updates(run), "actions": _actions(run)}
    if run.missed is not None:
        figures["deadline_misses"] = run.missed
    if run.holds or run.source == "log":
        figures["holds"] = dict(run.holds)
    if run.limits:
        figures["limits_applied"] = dict(run.limits)
    if run.streams:
        figures["streams"] = {name: _stream(s) for name, s in run.streams.items()}
    elif frames := _frames_in_log(run):
        figures["streams"] = frames
    return {key: value for key, value in figures.items() if value != {} or key == "holds"}


def _updates(run: Run) -> dict[str, Any]:
    count = max(len(run.update_ms), len(run.update_at))
    if not count:
        return {}
    found: dict[str, Any] = {"count": count}
    rate = _rate(run.update_at) if len(run.update_at) else _counted(run, lambda s: s.updates)
    if rate is not None:
        found["rate_hz"] = rate
    if len(run.update_ms):
        found["ms"] = spread(run.update_ms)
    return found


def _actions(run: Run) -> dict[str, Any]:
    count = max(len(run.action_at), len(run.inference_ms))
    if not count:
        return {}
    found: dict[str, Any] = {"count": count}
    times = run.deadlines if len(run.deadlines) else run.action_at
    rate = _rate(times) if len(times) else _counted(run, lambda s: s.actions)
    if rate is not None:
        found["rate_hz"] = rate
    if len(times) > 2:
        found["ticks_without_action"] = _ticks_left_out(times)
    named = {
        "inference_ms": run.inference_ms,
        "lateness_ms": run.lateness_ms,
        "feature_age_ms": run.feature_age_ms,
        "window_samples": run.window,
    }
    found |= {name: spread(values) for name, values in named.items() if len(values)}
    if len(run.window):
        found["window_samples"]["min"] = float(run.window.min())
    if run.window_full:
        found["window_full"] = run.window_full
    if len(run.uses):
        found["actions_per_update"] = _served(run.uses)
    if run.reuse is not None:
        found["vl_reuse"] = run.reuse
    return found


def _ticks_left_out(times: NDArray[np.float64]) -> int:
    """Ticks with no action in the gaps: deadlines missed, and ticks on hold."""
    steps = np.diff(times)
    period = float(np.median(steps))
    return int(np.maximum(np.round(steps / period) - 1, 0).sum()) if period > 0 else 0


def _served(uses: NDArray[np.float64]) -> dict[str, int]:
    """How many updates served so many actions."""
    # The last use before the count starts anew; the run's end cuts the last update's short.
    lasts = uses[:-1][np.diff(uses) <= 0]
    counts, times = np.unique(lasts.astype(np.int64), return_counts=True)
    return {str(count): int(n) for count, n in zip(counts, times, strict=True)}


def _stream(stream: StreamTimes) -> dict[str, Any]:
    found: dict[str, Any] = {"count": len(stream.times)}
    if (rate := _rate(stream.captured)) is not None:
        found["rate_hz"] = rate
    # The samples of a datagram come at one moment.
    moments = np.unique(stream.times)
    if len(moments) > 1:
        steps = 1e3 * np.diff(moments)
        found["interval_ms"] = spread(steps)
        found["gaps"] = int(np.count_nonzero(steps > _GAP * np.median(steps)))
    if len(stream.delays_ms):
        found["delay_ms"] = spread(stream.delays_ms)
    if stream.lost is not None:
        found["lost"] = stream.lost
    return found


def _counted(run: Run, count: Callable[[Status], int | None]) -> float | None:
    """A rate from a log's status blocks: while a count grows, so many in so many seconds."""
    total, seconds = 0, 0.0
    for before, after in zip(run.statuses[:-1], run.statuses[1:], strict=True):
        first, last = count(before), count(after)
        # 0 before inference started; less than before: a new episode.
        if first and last is not None and last >= first:
            total, seconds = total + last - first, seconds + after.at - before.at
    return round(total / seconds, 4) if seconds > 0 else None


def _frames_in_log(run: Run) -> dict[str, Any]:
    if not run.statuses:
        return {}
    views = run.statuses[-1].frames
    found: dict[str, Any] = {view: {"count": count} for view, count in views.items()}
    for view, figures in found.items():
        rate = _counted(run, lambda status, view=view: status.frames.get(view))  # type: ignore[misc]
        if rate is not None:
            figures["rate_hz"] = rate
    return found
