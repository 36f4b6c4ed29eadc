"""The slow loop: newest images and the instruction in, vision-language features out."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from dataclasses import dataclass
from statistics import fmean, pstdev

import cv2
import numpy as np
from numpy.typing import NDArray

from common import endpoints
from common.clock import Ticker, now
from common.counters import MalformedCounters
from common.wire import MalformedMessage
from policies.base import DualRatePolicy, Features
from receiver import lines
from receiver.episodes import Episodes
from receiver.histogram import Histogram
from receiver.inputs import StoredFrame
from receiver.observation import Observer
from receiver.threads import Latest

__all__ = ["FeatureLoop", "FeatureUpdate", "decode_rgb"]

logger = logging.getLogger(__name__)

# Pictures are handled by threads of our own; OpenCV's pool would only spin beside them.
cv2.setNumThreads(1)

_WAIT_S = 0.05
_MARGIN_S = 0.005


@dataclass(frozen=True, slots=True)
class FeatureUpdate:
    """The outcome of one slow pass.

    Attributes:
        number: counts an episode's updates, from 1.
        episode: the episode whose images it was made of.
        features: what the policy's `encode` gave.
        captured_at: capture time of the oldest image behind it.
        started_at: when the pass began.
        ready_at: when it ended.
        task: the instruction used.
    """

    number: int
    episode: int
    features: Features
    captured_at: float
    started_at: float
    ready_at: float
    task: str


def decode_rgb(frame: StoredFrame) -> NDArray[np.uint8]:
    """The picture of a frame, (height, width, 3) RGB; MalformedMessage when it is no picture."""
    data = np.frombuffer(frame.frame.jpeg, np.uint8)
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        image = None
    if image is None:
        raise MalformedMessage(endpoints.CAMERA.stream, "undecodable", frame.frame.camera)
    return np.asarray(image, np.uint8)


class UpdateClock:
    """When to start the next update so that it is ready as its N uses are over, and not earlier."""

    def __init__(self, grid: Ticker, reuse: int) -> None:
        """`grid` is the fast loop's clock: features are used at its deadlines."""
        self._grid = grid
        self._reuse = reuse
        self._durations: deque[float] = deque(maxlen=16)
        self._due = 0.0

    def finished(self, duration_s: float, ready_at: float) -> None:
        """A pass took `duration_s` and was ready at `ready_at` (monotonic seconds)."""
        self._durations.append(duration_s)
        first_use = math.ceil((ready_at - self._grid.start) / self._grid.period_s)
        self._due = self._grid.start + (first_use + self._reuse) * self._grid.period_s

    def start_at(self) -> float:
        """When to start, in monotonic seconds; in the past when it is time already."""
        if not self._durations:
            return 0.0
        spread = pstdev(self._durations) if len(self._durations) > 1 else 0.0
        return self._due - (fmean(self._durations) + 2.0 * spread + _MARGIN_S)


class FeatureLoop:
    """Runs the policy's slow half and swaps each result in at once."""

    def __init__(
        self,
        policy: DualRatePolicy,
        observer: Observer,
        episodes: Episodes,
        grid: Ticker,
        reuse: int,
        task: Latest[str],
        view_stale_s: float,
        counters: MalformedCounters,
    ) -> None:
        """`view_stale_s`: pictures older than this are not worth a pass."""
        self._policy = policy
        self._observer = observer
        self._episodes = episodes
        self._clock = UpdateClock(grid, reuse)
        self._task = task
        self._view_stale_s = view_stale_s
        self._counters = counters
        self.newest: Latest[FeatureUpdate] = Latest()
        self.durations = Histogram()
        self.first_ready_at: float | None = None
        self.failures = 0
        self._episode = 0
        self._number = 0

    def run(self, stop: threading.Event) -> None:
        """Update until `stop` is set."""
        while not stop.is_set():
            wait_s = self._clock.start_at() - time.monotonic()
            if wait_s > 0:
                stop.wait(min(wait_s, 1.0))
                continue
            frames = self._fresh_frames()
            if frames is None:
                stop.wait(_WAIT_S)
                continue
            try:
                self._update(frames)
            except MalformedMessage as error:
                # A broken picture: the next one of that view is a few milliseconds away.
                self._counters.add(error)
                stop.wait(_WAIT_S)
            except Exception as error:
                self.failures += 1
                logger.error("VL update failed: %s: %s", type(error).__name__, error)
                stop.wait(1.0)

    def _fresh_frames(self) -> dict[str, StoredFrame] | None:
        """The newest frame of every view, None while one is missing or silent."""
        frames, limit = self._observer.frames(), now() - self._view_stale_s
        views = self._policy.spec.views
        if any(v not in frames or frames[v].arrived_at < limit for v in views):
            return None
        return {view: frames[view] for view in views}

    def _update(self, frames: dict[str, StoredFrame]) -> None:
        episode = self._episodes.current
        current = episode.number if episode and episode.active else 0
        task = self._task.get() or self._policy.spec.task
        begun, started_at = time.monotonic(), now()
        images = {view: decode_rgb(frame) for view, frame in frames.items()}
        features = self._policy.encode(images, task)
        ended = time.monotonic()
        if current != self._episode:
            self._episode, self._number = current, 0
        self._number += 1
        update = FeatureUpdate(
            number=self._number,
            episode=current,
            features=features,
            captured_at=min(frame.captured_at for frame in frames.values()),
            started_at=started_at,
            ready_at=now(),
            task=task,
        )
        self.newest.put(update)
        self._clock.finished(ended - begun, ended)
        self.durations.add(ended - begun)
        self.first_ready_at = self.first_ready_at or update.ready_at
        logger.info(lines.vl_update(update.number, ended - begun))
