"""The force sensor's samples of one episode, as they would come to the receiver."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from senders.force_sensor_sender import SensorOptions
from sim.ascan import SAMPLES, synthesize
from sim.rig import Reading

__all__ = ["SensorLog"]

_NOISE_N = 0.003  # as the `sim` driver's
_WATCHED = 65  # the receiver looks at the force of a tenth of a second at least


class SensorLog:
    """What was measured, all of it; A-scans are made of what somebody looks at only.

    The same seed and readings give the same samples, whoever looks at which of them.
    """

    def __init__(self, seed: int) -> None:
        """Begin an episode."""
        self._seed = seed
        self._batch = SensorOptions().batch
        self._noise = np.random.default_rng([seed, 1])
        self._at: list[float] = []
        self._force_n: list[float] = []
        self._distance_mm: list[float] = []

    def add(self, at: float, reading: Reading) -> None:
        """Take a sample."""
        self._at.append(at)
        self._force_n.append(reading.force_n + _NOISE_N * float(self._noise.standard_normal()))
        self._distance_mm.append(reading.distance_mm)

    @property
    def newest(self) -> int:
        """Number of the newest sample that has come: they come in whole datagrams; -1: none."""
        return len(self._at) // self._batch * self._batch - 1

    def taken_at(self, number: int) -> float:
        """When a sample was taken."""
        return self._at[number]

    def window(self, newest: int | None = None, samples: int = 65) -> NDArray[np.float32]:
        """The `samples` (n, 1026) up to number `newest`, oldest first: newtons, then the A-scan.

        n is less where there are fewer. The same window always has the same speckle; another one
        has other speckle, also in rows that both show.
        """
        newest = self.newest if newest is None else newest
        part = slice(max(newest + 1 - samples, 0), newest + 1)
        if part.start >= part.stop:
            return np.zeros((0, 1 + SAMPLES), np.float32)
        scans = synthesize(self._distance_mm[part], np.random.default_rng([self._seed, 3, newest]))
        force = np.array(self._force_n[part], np.float32)
        return np.concatenate([force[:, None], scans], axis=1)

    def force_peak_n(self, samples: int) -> float | None:
        """The largest force, either way, of the newest samples; None without samples."""
        newest = self.newest
        part = self._force_n[max(newest + 1 - max(samples, _WATCHED), 0) : newest + 1]
        return max(map(abs, part)) if part else None
