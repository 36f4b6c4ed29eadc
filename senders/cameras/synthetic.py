"""Made-up cameras: a moving, textured picture with the camera's name, a counter and the time."""

from __future__ import annotations

import math
import threading
import time
import zlib
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from common.clock import Tick, Ticker, wall
from senders.drivers import DriverError, Frame

__all__ = ["SyntheticCamera", "open_synthetic_cameras"]

VIEWS = ("View1", "View2", "View3", "View4", "View5")


class SyntheticCamera:
    """Pictures on a fixed clock; drawing one takes well under a millisecond at 640x360."""

    def __init__(self, name: str, width: int, height: int, fps: float) -> None:
        """Pictures of `width` x `height` pixels, `fps` a second."""
        self._name, self._fps = name, fps
        self._size = (height, width)
        self._scene: NDArray[np.uint8] | None = None
        self._closed = threading.Event()
        self._ticks: Iterator[Tick] | None = None

    @property
    def name(self) -> str:
        """The name on the wire."""
        return self._name

    def open(self) -> None:
        """Paint the background and start the clock."""
        self._scene = _scene(*self._size, seed=zlib.crc32(self._name.encode()))
        self._closed.clear()
        self._ticks = Ticker(self._fps).ticks(self._closed)

    def read(self, timeout_s: float) -> Frame | None:
        """The picture of the next tick; None once closed. Raises DriverError when not open."""
        if self._ticks is None or self._scene is None:
            raise DriverError(f"synthetic camera {self._name} is not open")
        tick = next(self._ticks, None)
        if tick is None:
            return None
        return Frame(wall() - tick.lateness_s, image=self._draw(tick.index))

    def close(self) -> None:
        """Stop the clock."""
        self._closed.set()
        self._ticks = None

    def _draw(self, index: int) -> NDArray[np.uint8]:
        assert self._scene is not None
        height, width = self._size
        seconds = index / self._fps
        # The scene repeats after one width, so that a window may slide along it forever.
        left = int(40 * seconds) % width
        image = self._scene[:, left : left + width].copy()
        x = int(width * (0.5 + 0.4 * math.sin(1.3 * seconds)))
        y = int(height * (0.5 + 0.3 * math.cos(0.9 * seconds)))
        radius = height // 12
        cv2.circle(image, (x, y), radius, (40, 40, 220), -1)
        corner = (width - x - radius, height - y - radius)
        cv2.rectangle(image, corner, (width - x + radius, height - y + radius), (220, 160, 30), -1)
        clock = time.strftime("%H:%M:%S", time.localtime(wall()))
        label = f"{self._name} #{index} {clock}"
        scale = height / 480
        origin = (int(12 * scale), int(32 * scale))
        cv2.putText(image, label, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 2)
        return image


def _scene(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """A shaded, blotchy background (height, 2 width, 3) in BGR, periodic along the width."""
    rng = np.random.default_rng(seed)
    blotches = rng.uniform(70, 170, (max(height // 60, 2), max(width // 60, 2), 1))
    blotches = blotches + rng.uniform(-12, 12, (*blotches.shape[:2], 3))
    twice = np.concatenate([blotches, blotches], axis=1).astype(np.float32)
    scene = cv2.resize(twice, (2 * width, height), interpolation=cv2.INTER_CUBIC)
    grain = rng.normal(0, 3, (height, width, 3)).astype(np.float32)
    shade = np.linspace(0.6, 1.2, height)[:, None, None]
    picture: NDArray[np.uint8] = np.clip(scene * shade + np.tile(grain, (1, 2, 1)), 0, 255).astype(
        np.uint8
    )
    return picture


def open_synthetic_cameras(
    width: int = 1280, height: int = 720, fps: float = 30.0, names: Sequence[str] = ()
) -> list[SyntheticCamera]:
    """A camera for each name; five, named like the views, when none is given."""
    return [SyntheticCamera(name, width, height, fps) for name in names or VIEWS]
