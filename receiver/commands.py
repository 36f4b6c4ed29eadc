"""The way out: the reasons to hold, and the publisher that all commands go through."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import zmq

from common import endpoints, wire
from common.clock import now
from common.wire import Action, RobotCondition
from policies.base import PolicySpec
from receiver.episodes import Episode
from receiver.features import FeatureUpdate
from receiver.inputs import StoredStatus, bind_or_fail
from receiver.latch import REASONS, LatchedHold
from receiver.observation import Observation
from receiver.options import Limits, StaleAfter

__all__ = ["ActionPublisher", "Guard", "is_ready"]


def is_ready(observation: Observation, spec: PolicySpec, robot_required: bool) -> bool:
    """Whether the inputs suffice to start: all views, half a sensor window, the robot if needed."""
    return (
        all(view in observation.frames for view in spec.views)
        and 2 * len(observation.sensor) >= spec.sensor_window
        and (observation.robot is not None or not robot_required)
    )


_STATUS_LASTS_S = 3.0
"""A condition is repeated every second; without that it says nothing of now."""


class Guard:
    """Says whether the output must be on hold, and why."""

    def __init__(
        self, spec: PolicySpec, stale_after: StaleAfter, limits: Limits, robot_required: bool
    ) -> None:
        """Judge by these limits."""
        self._spec = spec
        self._stale_after = stale_after
        self._limits = limits
        self._robot_required = robot_required
        self._answered: dict[RobotCondition, StoredStatus] = {}

    def troubles(self, seen: Observation) -> tuple[LatchedHold, ...]:
        """What holds now that can be latched; ask once a tick, from the first on.

        A condition of the robot that came and went since the tick before is among them.
        """
        found: list[LatchedHold] = []
        for condition, said in seen.robot_troubles.items():
            if condition != "ok" and self._answered.get(condition) is not said:
                self._answered[condition] = said
                found.append(condition)
        said_last = seen.robot_status
        if said_last is not None and seen.at - said_last.arrived_at <= _STATUS_LASTS_S:
            condition = said_last.status.condition
            if condition != "ok" and condition not in found:
                found.insert(0, condition)
        # Whatever the policy makes of it, force is a reason to hold wherever it is measured.
        if seen.force_peak_n is not None and not seen.force_peak_n <= self._limits.force_n:
            found.append("force")
        return tuple(found)

    def reason(
        self,
        seen: Observation,
        update: FeatureUpdate | None,
        episode: Episode | None,
        troubles: Sequence[LatchedHold],
    ) -> str:
        """Why to hold now, empty when all is well; a reason holds no figures, to be counted by.

        `troubles` are those of this tick. What the robot's side knows is said before what its
        silence shows, and that before the end of the episode: it is the graver of the two.
        """
        robot = [REASONS[trouble] for trouble in troubles if trouble != "force"]
        return (
            (robot[0] if robot else "")
            or self._robot(seen)
            or ("episode ended" if episode is not None and not episode.active else "")
            or self._views(seen)
            or self._sensor(seen)
            or (REASONS["force"] if "force" in troubles else "")
            or self._features(seen, update, episode)
        )

    def outlived(self, seen: Observation, at: float) -> bool:
        """Whether what was seen is too old by `at` to act on, as after an inference that hung."""
        return at - seen.at > min(self._stale_after.robot_s, self._stale_after.sensor_s)

    def _robot(self, seen: Observation) -> str:
        limit_s = self._stale_after.robot_s
        # A robot that is not needed may be absent; one that was there and falls silent may not.
        if seen.robot is None and not self._robot_required:
            return ""
        if seen.robot is None or seen.at - seen.robot.arrived_at > limit_s:
            return "robot silent"
        return "robot state old" if seen.at - seen.robot.sampled_at > limit_s else ""

    def _views(self, seen: Observation) -> str:
        limit_s = self._stale_after.view_s
        for view in self._spec.views:
            frame = seen.frames.get(view)
            if frame is None or seen.at - frame.arrived_at > limit_s:
                return f"{view} silent"
            # Frames that arrive but were captured long ago are as bad as none.
            if seen.at - frame.captured_at > limit_s:
                return f"{view} old"
        return ""

    def _sensor(self, seen: Observation) -> str:
        limit_s = self._stale_after.sensor_s
        if seen.sensor_at is None and not self._spec.sensor_window:
            return ""  # a policy without a sensor, and none there
        if seen.sensor_age_s > limit_s:
            return "sensor silent"
        if seen.sensor_at is None or seen.at - seen.sensor_at > limit_s:
            return "sensor samples old"
        few = 2 * len(seen.sensor) < self._spec.sensor_window
        return "sensor window not half full" if few else ""

    def _features(
        self, seen: Observation, update: FeatureUpdate | None, episode: Episode | None
    ) -> str:
        if update is None or (episode is not None and update.episode != episode.number):
            return "no features yet"
        old = seen.at - update.captured_at > self._stale_after.features_s
        return "features old" if old else ""


class ActionPublisher:
    """Publishes actions and holds; used by the fast loop alone."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], bind: str, port: int) -> None:
        """Bind the PUB socket; InputError when the port is taken."""
        self._socket = context.socket(zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, endpoints.ACTION.hwm)
        bind_or_fail(self._socket, bind, port, "actions")
        self._seq = 0

    def publish(
        self,
        rows: np.ndarray,
        spec: PolicySpec,
        observed_at: float,
        update: FeatureUpdate | None,
        hold: str = "",
    ) -> Action:
        """Send one message at once; with a reason to hold, the rows are left out of it."""
        stamp = now()
        action = Action(
            seq=self._seq,
            timestamp=stamp,
            observed_at=max(observed_at, 0.0),
            feature_update=update.number if update else 0,
            feature_age=max(stamp - update.captured_at, 0.0) if update else 0.0,
            dt=spec.dt,
            space=spec.space,
            actions=np.zeros((1, len(spec.columns)), np.float32) if hold else rows,
            hold=bool(hold),
            reason=hold,
        )
        self._seq += 1
        # PUB never blocks: a subscriber that does not read loses messages, and only it.
        self._socket.send_multipart(wire.encode_action(action))
        return action

    def close(self) -> None:
        """Send what is queued for up to half a second, then close."""
        self._socket.close(linger=500)
