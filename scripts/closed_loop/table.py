"""The study's table in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scripts.closed_loop.estimates import Estimate, Point
from scripts.closed_loop.methods import method

__all__ = ["markdown"]

_HEADS = (
    "method",
    "latency, ms",
    "episodes",
    "success, %",
    "RMS error, mm: median",
    "mean",
    "of episodes",
    "picture age, ms",
    "standing, %",
    "failures",
)


def markdown(points: Sequence[Point]) -> str:
    """A table of the points, by method and then by latency; intervals are of 95 %."""
    order = list(dict.fromkeys(point.method for point in points))
    rows = sorted(points, key=lambda point: (order.index(point.method), point.latency_ms))
    lines = ["| " + " | ".join(_HEADS) + " |", "| --- |" + " ---: |" * 8 + " --- |"]
    lines += ["| " + " | ".join(_cells(point)) + " |" for point in rows]
    return "\n".join(lines) + "\n"


def _cells(point: Point) -> list[str]:
    reasons = ", ".join(f"{reason}: {count}" for reason, count in point.reasons.most_common())
    return [
        method(point.method).label,
        f"{point.latency_ms:g}",
        str(point.episodes),
        _interval(point.success, 100.0, 0),
        _interval(point.rms_median_mm, 1.0, 2),
        _interval(point.rms_mean_mm, 1.0, 2),
        str(point.measured),
        "–" if math.isnan(point.age_ms) else f"{point.age_ms:.0f}",
        f"{100 * point.held:.0f}",
        reasons or "–",
    ]


def _interval(estimate: Estimate, scale: float, digits: int) -> str:
    if math.isnan(estimate.value):
        return "–"
    value, low, high = (
        f"{scale * number:.{digits}f}" for number in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} ({low} to {high})"
