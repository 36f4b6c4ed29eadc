"""The fast loop: newest features, sensor window and robot state in, actions out, on a clock."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.clock import Tick, Ticker, now, to_now
from common.priority import fast_loop_first
from common.wire import RobotState
from policies.base import ActingPolicy, ActionChunk
from receiver import lines
from receiver.commands import ActionPublisher, Guard, is_ready
from receiver.episodes import Episodes
from receiver.features import FeatureUpdate
from receiver.histogram import Histogram
from receiver.latch import REASONS, Latch
from receiver.limits import Limited, NoState, limit_rows
from receiver.observation import Observation, Observer
from receiver.options import Limits
from receiver.threads import Latest

__all__ = ["ActionLoop", "ActionRecord", "ActionStatus"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ActionRecord:
    """One action as it was published, for the results file.

    Time points are in this process's time base; `actions` are the rows after the limits,
    `proposed` and `delta` what the policy gave.
    """

    episode: int
    episode_at: float
    number: int
    at: float
    deadline: float
    lateness_s: float
    inference_s: float
    actions: NDArray[np.float32]
    proposed: NDArray[np.float32]
    delta: NDArray[np.float32]
    cut: frozenset[str]
    update: FeatureUpdate
    feature_use: int
    feature_age_s: float
    sensor_samples: int
    force_n: float | None
    robot: RobotState | None


@dataclass(frozen=True, slots=True)
class ActionStatus:
    """Where the fast loop stands, for people; replaced as a whole at every tick."""

    started: bool = False
    number: int = 0
    feature_use: int = 0
    feature_age_s: float = 0.0
    hold: str = ""
    first_row: tuple[float, ...] = ()


class ActionLoop:
    """Runs the policy's fast half on absolute deadlines; never waits for the slow one."""

    def __init__(
        self,
        policy: ActingPolicy,
        observer: Observer,
        features: Latest[FeatureUpdate],
        episodes: Episodes,
        guard: Guard,
        latch: Latch,
        limits: Limits,
        publisher: ActionPublisher,
        grid: Ticker,
        reuse: int,
        robot_required: bool,
        record: Callable[[ActionRecord], None],
    ) -> None:
        """`record` is called with every action and must return at once."""
        self._policy = policy
        self._observer = observer
        self._features = features
        self._episodes = episodes
        self._guard, self._latch = guard, latch
        self._limits = limits
        self._publisher = publisher
        self._grid = grid
        self._reuse = reuse
        self._robot_required = robot_required
        self._record = record
        self._previous: ActionChunk | None = None
        self._number = 0
        self._episode = 0
        self._episode_at = 0.0
        self._update: FeatureUpdate | None = None
        self._uses = 0
        self._held = ""
        self.status: Latest[ActionStatus] = Latest(ActionStatus())
        self.lateness = Histogram()
        self.inference = Histogram()
        self.feature_age = Histogram()
        self.capture_to_use: dict[str, Histogram] = {}
        self.total = 0
        self.misses = 0
        self.late_updates = 0
        self.failures = 0
        self.holds: dict[str, int] = {}
        self.cuts: dict[str, int] = {}
        self.started_at: float | None = None
        self.first_action_at: float | None = None
        self.last_action_at: float | None = None
        self.started = threading.Event()
        self._say_misses_at = 0.0

    def run(self, stop: threading.Event) -> None:
        """Tick until `stop` is set; the last thing said to the robot is to hold."""
        if fast_loop_first():
            logger.info("Scheduling: fast loop in real time (SCHED_FIFO)")
        try:
            for tick in self._grid.ticks(stop):
                seen, update = self._observer.observe(), self._features.get()
                if not self.started.is_set():
                    self._wait_for_inputs(seen, update)
                    continue
                if tick.skipped:
                    self._note_miss(tick)
                self.lateness.add(tick.lateness_s)
                self._tick(tick, seen, update)
        finally:
            self._publish_hold("stopped", None)
            self._publisher.close()

    def _note_miss(self, tick: Tick) -> None:
        self.misses += tick.skipped
        if tick.deadline >= self._say_misses_at:
            logger.warning("[MISS] deadlines missed: %d in all", self.misses)
            self._say_misses_at = tick.deadline + 1.0

    def _wait_for_inputs(self, seen: Observation, update: FeatureUpdate | None) -> None:
        # Not connected yet: every robot sender begins so. A stop that is on already is latched.
        troubles = [trouble for trouble in self._guard.troubles(seen) if trouble != "lost"]
        reason = self._latch.reason(REASONS[troubles[0]] if troubles else "", troubles)
        if update is not None and is_ready(seen, self._policy.spec, self._robot_required):
            # The tick that finds everything there is not yet an action: the first one after it
            # begins on its deadline like all others.
            self.started_at = now()
            self.started.set()
        else:
            self._publish_hold(reason or "starting", update)

    def _tick(self, tick: Tick, seen: Observation, update: FeatureUpdate | None) -> None:
        if not self._robot_required and self._episodes.current is None:
            self._episodes.begin_if_none(now())
        episode = self._episodes.current
        if episode is not None and episode.number != self._episode:
            self._episode, self._number, self._previous = episode.number, 0, None
            self._episode_at = episode.started_at
        # Where there is no robot nothing marks an episode: any features will do.
        marked = self._robot_required or seen.robot is not None
        troubles = self._guard.troubles(seen)
        found = self._guard.reason(seen, update, episode if marked else None, troubles)
        reason = self._latch.reason(found, troubles)
        if reason or update is None:
            self._hold(reason or "no features yet", update)
            return
        self._count_use(update)
        begun = time.monotonic()
        robot = seen.robot.state if seen.robot else None
        try:
            sensor = seen.sensor if self._policy.spec.sensor_window else None
            chunk = self._policy.act(update.features, sensor, robot, self._previous)
            took_s = time.monotonic() - begun
            spec = self._policy.spec
            limited, hold = self._limit(chunk, spec.dt, robot)
        except Exception as error:
            self.failures += 1
            if self._held != "policy failed":
                logger.error("policy failed: %s: %s", type(error).__name__, error)
            self._hold("policy failed", update)
            return
        if self._guard.outlived(seen, now()):
            self._hold("inference took too long", update)
            return
        observed_at = self._observed_at(seen, update)
        action = self._publisher.publish(limited.rows, spec, observed_at, update, hold)
        self._previous = chunk
        self._account(tick, seen, update, chunk, limited.rows, limited.cut, took_s)
        self._note_hold(hold)
        self._say(action.feature_age, limited.rows, took_s, len(seen.sensor))

    def _limit(
        self, chunk: ActionChunk, dt: float, robot: RobotState | None
    ) -> tuple[Limited, str]:
        """The rows after the limits and, where they cannot be checked, why to hold."""
        try:
            space = self._policy.spec.space
            return limit_rows(chunk.actions, space, dt, robot, self._limits), ""
        except NoState as error:
            # Only where no robot is required: inference is shown and kept, nothing moves by it.
            return Limited(chunk.actions, frozenset()), str(error)

    def _observed_at(self, seen: Observation, update: FeatureUpdate) -> float:
        """Capture time of the oldest input used."""
        times = [update.captured_at]
        if seen.sensor_at is not None:
            times.append(seen.sensor_at)
        if seen.robot is not None:
            times.append(seen.robot.sampled_at)
        return min(times)

    @staticmethod
    def _capture_to_use(seen: Observation, update: FeatureUpdate) -> dict[str, float]:
        """Seconds from capture to this use, by stream: of the pictures, those in the features."""
        waited = {s: age for s, age in seen.ages_s.items() if not s.startswith("camera/")}
        return waited | {f"camera/{v}": seen.at - at for v, at in update.captured.items()}

    def _count_use(self, update: FeatureUpdate) -> None:
        self._uses = 1 if update is not self._update else self._uses + 1
        self._update = update
        if self._uses == self._reuse + 1:
            self.late_updates += 1

    def _account(
        self,
        tick: Tick,
        seen: Observation,
        update: FeatureUpdate,
        chunk: ActionChunk,
        rows: NDArray[np.float32],
        cut: frozenset[str],
        took_s: float,
    ) -> None:
        self.total += 1
        self._number += 1
        self.inference.add(took_s)
        age_s = seen.at - update.captured_at
        self.feature_age.add(age_s)
        for stream, waited_s in self._capture_to_use(seen, update).items():
            self.capture_to_use.setdefault(stream, Histogram()).add(waited_s)
        for name in cut:
            self.cuts[name] = self.cuts.get(name, 0) + 1
        self.last_action_at = to_now(tick.deadline)
        self.first_action_at = self.first_action_at or self.last_action_at
        self._record(
            ActionRecord(
                episode=self._episode,
                episode_at=self._episode_at,
                number=self._number,
                at=now(),
                deadline=to_now(tick.deadline),
                lateness_s=tick.lateness_s,
                inference_s=took_s,
                actions=rows,
                proposed=chunk.actions,
                delta=chunk.delta,
                cut=cut,
                update=update,
                feature_use=self._uses,
                feature_age_s=age_s,
                sensor_samples=len(seen.sensor),
                force_n=float(seen.sensor[-1, 0]) if len(seen.sensor) else None,
                robot=seen.robot.state if seen.robot else None,
            )
        )

    def _say(
        self, feature_age_s: float, rows: NDArray[np.float32], took_s: float, samples: int
    ) -> None:
        first = tuple(float(value) for value in rows[0])
        window = self._policy.spec.sensor_window
        logger.info(
            lines.action(self._number, self._uses, self._reuse, first, took_s, samples, window)
        )
        self.status.put(
            ActionStatus(True, self._number, self._uses, feature_age_s, self._held, first)
        )

    def _note_hold(self, reason: str) -> None:
        """Count a tick on hold, and say when a hold begins or is over (no reason)."""
        if reason:
            self.holds[reason] = self.holds.get(reason, 0) + 1
        if reason == self._held:
            return
        if reason:
            logger.warning(lines.hold(reason))
        else:
            logger.info("[HOLD] over, going on: %s is no longer so", self._held)
        self._held = reason

    def _hold(self, reason: str, update: FeatureUpdate | None) -> None:
        self._note_hold(reason)
        self._publish_hold(reason, update)
        age_s = now() - update.captured_at if update else 0.0
        self.status.put(ActionStatus(True, self._number, self._uses, age_s, reason, ()))

    def _publish_hold(self, reason: str, update: FeatureUpdate | None) -> None:
        self._publisher.publish(
            np.zeros((1, 1), np.float32), self._policy.spec, now(), update, reason
        )
