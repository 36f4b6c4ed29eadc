"""The slow loop: newest images and the instruction in, vision-language features out."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from common.clock import Ticker, now
from common.counters import MalformedCounters
from common.priority import slow_half_behind
from common.wire import MalformedMessage
from policies.base import Features, PolicySpec
from receiver import lines
from receiver.encoders import Encoder
from receiver.episodes import Episodes
from receiver.histogram import Histogram
from receiver.inputs import StoredFrame
from receiver.observation import Observer
from receiver.threads import Latest
from receiver.update_clock import UpdateClock

__all__ = ["FeatureLoop", "FeatureUpdate"]

logger = logging.getLogger(__name__)

_WAIT_S = 0.05
_LOOK_S = 0.05  # before the start, pictures are looked out for: somewhat more than one a view
_COMES_S = 0.002  # what a frame that is due may be late by


@dataclass(frozen=True, slots=True)
class FeatureUpdate:
    """The outcome of one slow pass.

    Attributes:
        number: counts an episode's updates, from 1.
        episode: the episode whose images it was made of.
        features: what the policy's `encode` gave.
        captured: capture time of the image of each view.
        started_at: when the pass began.
        ready_at: when it ended.
        task: the instruction used.
    """

    number: int
    episode: int
    features: Features
    captured: Mapping[str, float]
    started_at: float
    ready_at: float
    task: str

    @property
    def captured_at(self) -> float:
        """Capture time of the oldest image behind it."""
        return min(self.captured.values())


class FeatureLoop:
    """Runs the policy's slow half and swaps each result in at once."""

    def __init__(
        self,
        spec: PolicySpec,
        encoder: Encoder,
        observer: Observer,
        episodes: Episodes,
        grid: Ticker,
        reuse: int,
        task: Latest[str],
        view_stale_s: float,
        counters: MalformedCounters,
    ) -> None:
        """`view_stale_s`: pictures older than this are not worth a pass."""
        self._spec, self._encoder = spec, encoder
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
        if self._encoder.where == "thread":
            slow_half_behind()
        while not stop.is_set():
            wait_s = self._wait_s()
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
                if stop.is_set():
                    return  # the pass was ended, not the policy at fault
                self.failures += 1
                logger.error("VL update failed: %s: %s", type(error).__name__, error)
                stop.wait(1.0)

    def _wait_s(self) -> float:
        """How long to wait before it is looked again whether to start; 0 or less to start now."""
        present, moment = time.monotonic(), now()
        left_s = self._clock.start_at() - present
        if left_s > _LOOK_S:
            return left_s - _LOOK_S
        expected_at = self._observer.next_picture_at()
        if left_s <= 0 or expected_at is None or expected_at <= moment:
            return left_s
        # Another picture comes before the start, or none does: then there is nothing to wait for.
        comes_s = expected_at - moment
        left_s = self._clock.start_at(present + comes_s) - present
        return min(left_s, comes_s + _COMES_S)

    def _fresh_frames(self) -> dict[str, StoredFrame] | None:
        """The newest frame of every view, None while one is missing or silent."""
        frames, limit = self._observer.frames(), now() - self._view_stale_s
        views = self._spec.views
        if any(v not in frames or frames[v].arrived_at < limit for v in views):
            return None
        return {view: frames[view] for view in views}

    def _update(self, frames: dict[str, StoredFrame]) -> None:
        episode = self._episodes.current
        current = episode.number if episode and episode.active else 0
        task = self._task.get() or self._spec.task
        begun, started_at = time.monotonic(), now()
        jpegs = {view: frame.frame.jpeg for view, frame in frames.items()}
        features = self._encoder.encode(jpegs, task)
        ended = time.monotonic()
        if current != self._episode:
            self._episode, self._number = current, 0
        self._number += 1
        update = FeatureUpdate(
            number=self._number,
            episode=current,
            features=features,
            captured={view: frame.captured_at for view, frame in frames.items()},
            started_at=started_at,
            ready_at=now(),
            task=task,
        )
        self.newest.put(update)
        self._clock.finished(ended - begun, ended)
        self.durations.add(ended - begun)
        self.first_ready_at = self.first_ready_at or update.ready_at
        logger.info(lines.vl_update(update.number, ended - begun))
