"""The receiver's two loops in virtual time.

Taken from the receiver as they are: when the slow loop starts (`UpdateClock`), when to hold
(`Guard`), the limits; from the robot sender: the executor. Written again here: the two loops
themselves, which in the receiver wait on clocks and sockets.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.clock import Ticker
from policies.base import ActionChunk, DualRatePolicy
from receiver.commands import Guard
from receiver.encoders import LocalEncoder
from receiver.episodes import Episode
from receiver.features import FeatureUpdate
from receiver.options import StaleAfter
from receiver.update_clock import UpdateClock
from scripts.closed_loop.observing import observe
from scripts.closed_loop.rig import Sight, VirtualRig
from scripts.closed_loop.running import Latencies, Tally

__all__ = ["run_dual_rate"]

# As in `receiver/features.py`: how long before the start pictures are looked out for, and what one
# that is due may be late by.
_LOOK_S = 0.05
_COMES_S = 0.002
_SAME_S = 1e-9
_EPISODE = Episode(1, 0.0)


@dataclass(slots=True)
class _Pass:
    """A pass of the slow half on its way."""

    began_at: float
    ready_at: float
    sight: Sight


class _SlowLoop:
    """Starts passes as the receiver's slow loop does, each of the same length."""

    def __init__(
        self,
        rig: VirtualRig,
        policy: DualRatePolicy,
        clock: UpdateClock,
        latency_s: float,
        tally: Tally,
    ) -> None:
        self._rig, self._policy, self._clock = rig, policy, clock
        self._latency_s, self._tally = latency_s, tally
        self._encoder = LocalEncoder(policy)
        self._pass: _Pass | None = None
        self._looks_from = rig.time_s

    def close(self) -> None:
        """Let go of what decodes pictures."""
        self._encoder.close()

    def until(self, at: float, newest: FeatureUpdate | None) -> FeatureUpdate | None:
        """Let the rig and this loop run until `at`; the newest update that is ready by then."""
        while True:
            if self._pass is not None:
                if self._pass.ready_at > at + _SAME_S:
                    break
                newest = self._finish(self._pass, newest)
                self._pass = None
                continue
            begins_at = self._begins_at()
            if begins_at > at - _SAME_S:  # right at a tick: the tick is first
                break
            self._rig.advance_to(begins_at)
            ready_at = begins_at + self._latency_s
            self._pass = _Pass(begins_at, ready_at, self._rig.sight(begins_at))
        self._rig.advance_to(at)
        return newest

    def at_once(self, newest: FeatureUpdate | None) -> FeatureUpdate:
        """A pass that takes no time."""
        at = self._rig.time_s
        return self._finish(_Pass(at, at, self._rig.sight()), newest)

    def _finish(self, done: _Pass, newest: FeatureUpdate | None) -> FeatureUpdate:
        """What the pass gave."""
        spec = self._policy.spec
        features = self._encoder.encode(self._rig.jpegs(spec.views, done.sight), spec.task)
        self._tally.encoded += 1
        self._clock.finished(done.ready_at - done.began_at, done.ready_at)
        self._looks_from = done.ready_at
        return FeatureUpdate(
            number=newest.number + 1 if newest else 1,
            episode=_EPISODE.number,
            features=features,
            captured=dict.fromkeys(spec.views, done.sight.captured_at),
            started_at=done.began_at,
            ready_at=done.ready_at,
            task=spec.task,
        )

    def _begins_at(self) -> float:
        """When the next pass begins: what `FeatureLoop` waits for, on exact clocks."""
        at, clock = self._looks_from, self._clock
        while True:
            left_s = clock.start_at() - at
            if left_s > _LOOK_S + _SAME_S:
                at += left_s - _LOOK_S
                continue
            if left_s <= 0:
                return at
            frame_at = self._rig.frame_after(at)
            comes_s = frame_at - at
            left_s = clock.start_at(frame_at) - at
            if left_s <= 0:
                return at
            at += min(left_s, comes_s + _COMES_S)


def run_dual_rate(
    rig: VirtualRig, policy: DualRatePolicy, latencies: Latencies, reuse: int, action_hz: float
) -> Tally:
    """Run the episode that `rig` has begun to its end; features serve `reuse` ticks at least.

    With no latency at all an update is there at its tick, of the newest pictures.
    """
    tally, spec = Tally(), policy.spec
    grid = Ticker(action_hz, start=rig.time_s)
    guard = Guard(spec, StaleAfter(), rig.limits, robot_required=True)
    slow = _SlowLoop(rig, policy, UpdateClock(grid, reuse), latencies.encode_s, tally)
    update: FeatureUpdate | None = None
    previous: ActionChunk | None = None
    uses, index = 0, 0
    try:
        while not rig.over:
            at = grid.start + index * grid.period_s
            index += 1
            before = update
            if latencies.encode_s > 0:
                update = slow.until(at, update)
            else:
                rig.advance_to(at)
                update = slow.at_once(update) if update is None or uses >= reuse else update
            uses = 0 if update is not before else uses
            seen = observe(rig, spec.views, spec.sensor_window)
            tally.ticks += 1
            reason = guard.reason(seen, update, _EPISODE, guard.troubles(seen))
            if reason or update is None:
                tally.held += 1
                rig.hold(reason or "no features yet")
                continue
            uses += 1
            assert seen.robot is not None
            robot = seen.robot.state
            sensor = seen.sensor if spec.sensor_window else None
            chunk = policy.act(update.features, sensor, robot, previous)
            tally.acted += 1
            tally.ages_s.append(at - update.captured_at)
            rig.advance_to(at + latencies.act_s)
            rig.command(chunk.actions, spec.space, spec.dt, robot)
            previous = chunk
    finally:
        slow.close()
    return tally
