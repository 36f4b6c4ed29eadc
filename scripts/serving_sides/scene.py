"""What every side carries: five pictures and a state there, a chunk of actions back."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["ACTION_ROWS", "CAMERAS", "HEIGHT", "STATE_NAMES", "TASK", "WIDTH"]
__all__ += ["Exchange", "Scene", "check", "scenes"]

WIDTH, HEIGHT = 640, 360
CAMERAS = tuple(f"camera{number}" for number in range(1, 6))
STATE_NAMES = tuple(f"joint{number}.pos" for number in range(1, 7))
ACTION_ROWS = 50
TASK = "put the block into the tray"
_KINDS = 6  # 21 MB of pictures: more than a cache holds, as with cameras


@dataclass(frozen=True, slots=True)
class Scene:
    """One observation as arrays.

    Attributes:
        step: the control step; every step has a state of its own.
        state: (6,) float32.
        pictures: camera → (360, 640, 3) uint8.
    """

    step: int
    state: NDArray[np.float32]
    pictures: Mapping[str, NDArray[np.uint8]]


@functools.cache
def _kinds() -> tuple[Mapping[str, NDArray[np.uint8]], ...]:
    rng = np.random.default_rng(0)
    shape = (HEIGHT, WIDTH, 3)
    return tuple(
        {name: rng.integers(0, 256, shape, np.uint8) for name in CAMERAS} for _ in range(_KINDS)
    )


def scenes(first: int = 1) -> Iterator[Scene]:
    """Observations without end, from step `first` on."""
    step, row = first, np.arange(len(STATE_NAMES), dtype=np.float32)
    while True:
        # Eighths are exact in float32: the answer can be compared bit by bit.
        yield Scene(step, row + np.float32(step % 100_000) / 8, _kinds()[step % _KINDS])
        step += 1


def check(scene: Scene, chunk: NDArray[np.float32]) -> None:
    """SystemExit unless the chunk repeats this scene's state: it must not be another's answer."""
    if not np.array_equal(chunk, np.tile(scene.state, (ACTION_ROWS, 1))):
        raise SystemExit(f"step {scene.step}: not the answer to this observation")


class Exchange(Protocol):
    """A client of one side. One thread uses it."""

    def begin(self, timeout_s: float) -> None:
        """Connect and say what is wanted; TimeoutError when nobody answers in time."""
        ...

    def exchange(self, scene: Scene) -> NDArray[np.float32]:
        """The round trip that is measured: the chunk (50, 6) for this scene."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...
