"""What a client says of itself: a status line every two seconds, a summary at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from common.clock import RateMeter
from common.program import ProgramError
from serving.control_loop import ControlLoop
from serving.supervisor import Connection

__all__ = ["ClientStatus", "write_summary"]

STATUS_EVERY_S = 2.0


def _trips_ms(trips_s: list[float]) -> tuple[float | None, float | None]:
    """Median and 99th percentile in milliseconds; None each before the first."""
    if not trips_s:
        return None, None
    p50, p99 = np.percentile(np.array(trips_s) * 1000.0, (50.0, 99.0))
    return float(p50), float(p99)


def _shown(value: float | None, form: str, unit: str) -> str:
    return "-" if value is None else f"{value:{form}} {unit}"


class ClientStatus:
    """Counts ticks, and puts the counters of the loop and the connection into words."""

    def __init__(self, loop: ControlLoop, connection: Connection, fps: float, start: float) -> None:
        """Begin at `start`, monotonic seconds."""
        self._loop, self._connection, self._fps, self._start = loop, connection, fps, start
        self._rate = RateMeter()
        self._next = start + STATUS_EVERY_S
        self.missed = 0

    def tick(self, skipped: int) -> None:
        """A control tick, and how many were missed just before it."""
        self._rate.add()
        self.missed += skipped

    def line(self, now: float) -> str | None:
        """The status, when it is time for it again."""
        if now < self._next:
            return None
        self._next = now + STATUS_EVERY_S
        counters, queue = self._loop.counters, self._loop.queue
        p50, p99 = _trips_ms(list(counters.round_trips))
        observed, answered = counters.observed_at, counters.answered_at
        parts = [
            "[CLIENT] Status Summary",
            self._connection.state,
            f"queue {len(queue)}/{queue.capacity}",
            "last observation " + _shown(observed and now - observed, ".2f", "s ago"),
            "last chunk " + _shown(answered and now - answered, ".2f", "s ago"),
            f"control {self._rate.rate_hz():.1f}/{self._fps:g} Hz, {self.missed} ticks missed",
            f"round trip p50 {_shown(p50, '.1f', 'ms')}, p99 {_shown(p99, '.1f', 'ms')}",
            f"holds: {self._holds()}",
        ]
        if self._loop.holding is not None:
            parts.append(f"on hold: {self._loop.holding}")
        return " | ".join(parts)

    def _holds(self) -> str:
        counters = self._loop.counters
        return (
            ", ".join(
                f"{reason} {count}× ({counters.held[reason] / self._fps:.1f} s)"
                for reason, count in sorted(counters.holds.items())
            )
            or "none"
        )

    def summary(self, now: float) -> dict[str, Any]:
        """Everything that was counted, for a file or a test."""
        counters = self._loop.counters
        p50, p99 = _trips_ms(list(counters.round_trips))
        ran_s = now - self._start
        return {
            "ran_s": ran_s,
            "fps": self._fps,
            "control_hz": counters.steps / ran_s if ran_s > 0 else 0.0,
            "steps": counters.steps,
            "missed_ticks": self.missed,
            "moves": counters.moves,
            "sessions": self._connection.sessions,
            "observations": counters.observations,
            "chunks": counters.chunks,
            "ignored_answers": counters.ignored,
            "late_rows": counters.late_rows,
            "gaps": self._loop.queue.gaps,
            "holds": dict(counters.holds),
            "held_s": {reason: ticks / self._fps for reason, ticks in counters.held.items()},
            "refusals": dict(counters.refusals),
            "round_trip_ms": {"p50": p50, "p99": p99},
        }

    def final(self, now: float) -> str:
        """The summary in one line."""
        told = self.summary(now)
        p50, p99 = told["round_trip_ms"]["p50"], told["round_trip_ms"]["p99"]
        return (
            f"[CLIENT] Final Summary | {told['ran_s']:.1f} s | {told['moves']} of {told['steps']} "
            f"steps moved | control {told['control_hz']:.1f}/{self._fps:g} Hz, {self.missed} ticks "
            f"missed | {told['observations']} observations, {told['chunks']} chunks, "
            f"{told['sessions']} sessions | round trip p50 {_shown(p50, '.1f', 'ms')}, "
            f"p99 {_shown(p99, '.1f', 'ms')} | holds: {self._holds()}"
        )


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Write it as JSON; ProgramError when that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ProgramError(f"the summary cannot be written: {path}: {error.strerror}") from None
