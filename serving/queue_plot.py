"""The length of the action queue over time, kept in bounded memory, as a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.program import ProgramError

__all__ = ["QueueHistory"]

_MOST = 20_000


class QueueHistory:
    """Remembers how full the queue was. A long run is remembered coarsely rather than in part."""

    def __init__(self, most: int = _MOST) -> None:
        """Keep at most `most` points."""
        self._most = max(2, most)
        self._every, self._count = 1, 0
        self._points: list[tuple[float, int, bool]] = []

    def add(self, at: float, length: int, held: bool) -> None:
        """One tick: rows in the queue, and whether the robot held."""
        self._count += 1
        if self._points and (self._count - 1) % self._every:
            # What is left out must not hide that the queue ran dry, or that the robot stood.
            when, shortest, was_held = self._points[-1]
            self._points[-1] = (when, min(shortest, length), was_held or held)
            return
        self._points.append((at, length, held))
        if len(self._points) >= self._most:
            self._halve()

    def _halve(self) -> None:
        pairs = zip(self._points[::2], self._points[1::2], strict=False)
        rest = self._points[-1:] if len(self._points) % 2 else []
        self._points = [(a[0], min(a[1], b[1]), a[2] or b[2]) for a, b in pairs] + rest
        self._every *= 2
        self._count = len(self._points) * self._every

    def __len__(self) -> int:
        """Points that are kept."""
        return len(self._points)

    def plot(self, path: Path, capacity: int, threshold: float) -> None:
        """Write a PNG: the length, where the next chunk is asked for, and the holds shaded.

        ProgramError where matplotlib is missing or the file cannot be written.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            raise ProgramError(
                "the queue cannot be plotted: pip install '.[serving]' brings matplotlib"
            ) from None
        at = np.array([point[0] for point in self._points])
        at = at - at[0] if len(at) else at
        length = np.array([point[1] for point in self._points])
        held = np.array([point[2] for point in self._points], bool)
        figure = Figure(figsize=(11, 4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        for begin, end in _stretches(at, held):
            axes.axvspan(begin, end, color="#d62728", alpha=0.2, linewidth=0)
        axes.axvspan(0, 0, color="#d62728", alpha=0.2, label="on hold")
        axes.plot(
            at, length, color="#1f77b4", linewidth=1.0, drawstyle="steps-post", label="queued"
        )
        axes.axhline(capacity, color="0.6", linewidth=0.8, label=f"one chunk, {capacity}")
        axes.axhline(
            threshold * capacity,
            color="#ff7f0e",
            linewidth=0.8,
            linestyle="--",
            label=f"ask again, {threshold * capacity:g}",
        )
        axes.set(xlabel="time (s)", ylabel="actions in the queue")
        axes.set_xlim(0, max(float(at[-1]) if len(at) else 0.0, 1e-3))
        axes.set_ylim(0, 1.1 * max(capacity, int(length.max()) if len(length) else 1))
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
        axes.set_title("The action queue over time", loc="left")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=120)
        except OSError as error:
            raise ProgramError(f"the plot cannot be written: {path}: {error.strerror}") from None


def _stretches(at: np.ndarray, held: np.ndarray) -> list[tuple[float, float]]:
    """Begin and end of each run of held points; one lasts until the next point."""
    if not len(at):
        return []
    edges = np.flatnonzero(np.diff(np.concatenate([[False], held, [False]]).astype(np.int8)))
    ends = np.append(at[1:], at[-1])
    return [
        (float(at[begin]), float(ends[end - 1]))
        for begin, end in zip(edges[::2], edges[1::2], strict=True)
    ]
