"""What can be said of a chunk length and a threshold: on paper, and from what a robot was told.

Pure functions; `chunking_quick` runs settings in virtual time, `chunking_real` through sockets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Conditions", "Outcome", "Setting", "jerk_rms", "on_ticks", "reserve_s", "span_s"]
__all__ += ["answer_s", "speed_ratio", "ticks_of"]


@dataclass(frozen=True, slots=True)
class Setting:
    """What is being chosen: rows asked for, and the queue's share at which the next are."""

    actions_per_chunk: int
    chunk_size_threshold: float


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is given: the control rate, the policy's speed, the network.

    Attributes:
        fps: control rate, Hz.
        inference_s: one prediction, seconds.
        delay_s: one-way network delay, seconds.
        jitter_s: it varies by up to so much both ways.
        loss: share of segments that are lost.
    """

    fps: float
    inference_s: float
    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one setting did.

    Attributes:
        setting: which one.
        empty: share of control ticks for which there was no action.
        jerk: RMS of the third difference of commanded positions, units/s^3.
        rate_hz: control ticks a second.
        answer_ms: from an observation to its chunk, median; NaN where not measured.
        age_ms: from measurement to execution, median over actions; NaN where not measured.
        chunks: how many came.
        seconds: how long was measured.
    """

    setting: Setting
    empty: float
    jerk: float
    rate_hz: float
    answer_ms: float
    age_ms: float
    chunks: int
    seconds: float

    @property
    def reaction_ms(self) -> float:
        """From something that happens to motion that answers to it, about, at worst.

        Until the next observation is made, and until its chunk has come.
        """
        return 1e3 * self.seconds / self.chunks + self.answer_ms if self.chunks else math.inf


def span_s(actions_per_chunk: int, fps: float) -> float:
    """How long a chunk lasts, seconds: 16 rows at 30 Hz are 533 ms."""
    return actions_per_chunk / fps


def speed_ratio(actions_per_chunk: int, fps: float, inference_s: float) -> float:
    """How many times faster than its use a chunk is made: 533 ms in 50 ms are 10.7."""
    return span_s(actions_per_chunk, fps) / inference_s if inference_s > 0 else math.inf


def answer_s(given: Conditions) -> float:
    """From an observation to its chunk, seconds: there, prediction, back, until the next tick."""
    return 2 * given.delay_s + given.inference_s + 1 / given.fps


def reserve_s(setting: Setting, given: Conditions) -> float:
    """What the queue still holds when the answer has come, seconds; below 0 it ran dry first."""
    rows = math.floor(setting.chunk_size_threshold * setting.actions_per_chunk + 1e-9)
    return rows / given.fps - answer_s(given)


def ticks_of(at: NDArray[np.float64], period_s: float) -> NDArray[np.int64]:
    """The control tick of each command (N,) given at times `at` (N,), counted from the first.

    A tick has one command at most. One that is so late that it falls into the next tick's time
    belongs to the tick before that all the same, as the next one comes too.
    """
    passed = (at - at[:1]) / period_s
    # The first may have been late itself: what most say is on time.
    off = np.median(passed - np.rint(passed)) if len(at) else 0.0
    nearest = np.rint(passed - off).astype(np.int64)
    count = np.arange(len(at))
    ticks: NDArray[np.int64] = count + np.minimum.accumulate((nearest - count)[::-1])[::-1]
    return ticks - ticks[:1]


def on_ticks(
    at: NDArray[np.float64], targets: NDArray[np.float64], period_s: float
) -> NDArray[np.float64]:
    """Commanded positions (K, A), one a tick, of commands (N, A) given at times `at` (N,).

    A robot that is told nothing stays where it was told to be: a pause of several periods becomes
    that many rows.
    """
    repeated: NDArray[np.float64] = np.repeat(
        targets, np.append(np.diff(ticks_of(at, period_s)), 1)[: len(at)], axis=0
    )
    return repeated


def jerk_rms(positions: NDArray[np.float64], period_s: float) -> float:
    """RMS over joints and ticks of the third difference of positions (K, A), units/s^3.

    0.0 where there are fewer than four rows.
    """
    if len(positions) < 4:
        return 0.0
    third = np.diff(positions, n=3, axis=0) / period_s**3
    return float(np.sqrt(np.mean(third**2)))
