"""One episode: the control loop against the simulation, on a clock or in lock-step."""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from common.program import OptionError, ProgramError
from serving.body import BodyError
from serving.control_loop import ControlLoop
from serving.control_values import HOLDS, Arrival, Step
from serving.messages import ServingError
from serving.sim_body import Advanced, EnvironmentBody
from serving.sim_clock import StretchedClock, WallClock
from serving.sim_results import Episode
from serving.sim_video import Video
from serving.supervisor import Connection

__all__ = ["EpisodeRunner"]

_WAIT_S = 0.1

Watch = Callable[[float, Step], None]


@dataclass(slots=True)
class _Tally:
    """What is counted while an episode runs."""

    reward: float = 0.0
    steps: int = 0
    success: bool | None = None
    ended: str = ""
    reason: str = ""
    held: Counter[str] = field(default_factory=Counter)
    first_action: int | None = None
    refused: str = ""

    def add(self, done: Step, brought: Advanced) -> None:
        """One step of the environment."""
        if done.hold is not None:
            self.held[done.hold] += 1
        elif self.first_action is None:
            self.first_action = self.steps
        self.reward += brought.reward
        self.steps += 1
        self.ended, self.reason = brought.ended, brought.reason
        if brought.success is not None:
            self.success = bool(self.success) or brought.success


class EpisodeRunner:
    """Runs one episode from its first observation to its end.

    ProgramError where it cannot come to its end: the environment raises, the server is lost for
    good, or the policy refuses throughout. OptionError where the actions are not the environment's.
    """

    def __init__(
        self,
        body: EnvironmentBody,
        loop: ControlLoop,
        connection: Connection,
        stop: threading.Event,
        *,
        fps: float,
        patience_s: float,
        video: Video | None = None,
        watch: Watch | None = None,
    ) -> None:
        """`body` has begun the episode; `patience_s` is how long lock-step waits for a chunk."""
        self._body, self._loop, self._connection, self._stop = body, loop, connection, stop
        self._fps, self._patience_s = fps, patience_s
        self._video, self._watch = video, watch
        self._tally = _Tally()

    def run(
        self, number: int, seed: int, clock: WallClock | StretchedClock | None
    ) -> Episode | None:
        """Run on the clock, or in lock-step without one; None when stopped before its end."""
        began, sessions = time.monotonic(), self._connection.sessions
        if clock is None:
            self._run_in_lockstep()
        else:
            self._run_on(clock)
        seconds, tally, counters = time.monotonic() - began, self._tally, self._loop.counters
        if not tally.ended:
            return None
        if tally.refused and tally.first_action is None:
            raise ProgramError(f"the policy gave no action in the whole episode: {tally.refused}")
        trips = list(counters.round_trips)
        return Episode(
            number=number,
            seed=seed,
            task=self._body.task,
            success=tally.success,
            reward=tally.reward,
            steps=tally.steps,
            seconds=seconds,
            simulated_s=tally.steps / self._fps,
            late_s=0.0 if clock is None else max(seconds - tally.steps / self._fps, 0.0),
            held=dict(tally.held),
            first_action_step=tally.first_action,
            chunks=counters.chunks,
            observations=counters.observations,
            round_trip_ms=1e3 * statistics.median(trips) if trips else None,
            sessions_lost=self._connection.sessions - sessions,
            ended=tally.ended,
            reason=tally.reason,
        )

    def _run_on(self, clock: WallClock | StretchedClock) -> None:
        connection = self._connection
        for tick in clock.ticks(self._stop):
            self._check_connection()
            # In this order, as in the robot client: what is taken after a session was lost and
            # begun anew belongs to the new one.
            session = connection.session
            arrivals = clock.arrived(self._noted(connection.arrivals()), tick.now)
            self._body.at(tick.now)
            done = self._loop.step(tick.now, session, arrivals, may_send=connection.free)
            if done.observation is not None and session is not None:
                clock.sent(done.observation, tick.now)
                connection.send(done.observation, session)
            if self._advance(done, tick.now):
                return

    def _run_in_lockstep(self) -> None:
        """Time passes with the steps, and else only while the server is lost or refuses."""
        connection, now = self._connection, time.monotonic()
        moved_at = time.monotonic()  # by the wall clock
        while not self._stop.is_set():
            self._check_connection()
            session, looked_at = connection.session, time.monotonic()
            self._body.at(now)
            done = self._loop.step(now, session, self._noted(connection.arrivals()))
            if done.observation is not None and session is not None:
                connection.send(done.observation, session)
                if answers := self._answers(session, moved_at):
                    # As late as they are by the wall clock, and yet at this very moment.
                    late_s = time.monotonic() - looked_at
                    answers = [Arrival(one.reply, now + late_s) for one in answers]
                    done = self._loop.step(now, session, answers)
            self._check_mismatch(done)
            if done.hold == "not_connected" or (done.hold is None and done.row is None):
                # No answer that can be used: the server is lost, or refuses.
                connection.wait(_WAIT_S)
                now += time.monotonic() - looked_at
                if session is None:
                    moved_at = time.monotonic()
                self._lose_patience(moved_at)
                continue
            if self._advance(done, now):
                return
            now, moved_at = now + 1.0 / self._fps, time.monotonic()

    def _answers(self, session: int, since: float) -> list[Arrival]:
        """Wait for what the server says; empty when the session was lost, or there is a stop."""
        connection = self._connection
        while not self._stop.is_set() and connection.session == session:
            if arrivals := self._noted(connection.arrivals()):
                return arrivals
            self._check_connection()
            self._lose_patience(since)
            connection.wait(_WAIT_S)
        return []

    def _advance(self, done: Step, now: float) -> bool:
        """One step of the environment; whether the episode is over."""
        self._check_mismatch(done)
        if self._watch is not None:
            self._watch(now, done)
        try:
            brought = self._body.advance()
        except BodyError as error:
            raise ProgramError(str(error)) from None
        tally = self._tally
        tally.add(done, brought)
        if self._video is not None:
            said = f"{tally.steps / self._fps:6.2f} s  reward {tally.reward:.2f}  "
            said += f"queue {len(self._loop.queue)}"
            if done.hold is not None:
                said += f"  hold: {HOLDS[done.hold]}"
            self._video.add(self._body.picture(), said, done.hold is not None)
        return bool(brought.ended)

    def _noted(self, arrivals: list[Arrival]) -> list[Arrival]:
        """The same; what the server refuses is remembered."""
        for arrival in arrivals:
            if isinstance(arrival.reply, ServingError):
                self._tally.refused = str(arrival.reply)[:300]
        return arrivals

    def _check_connection(self) -> None:
        if self._connection.failure is not None:
            raise self._connection.failure

    def _check_mismatch(self, done: Step) -> None:
        if done.hold == "columns":
            raise OptionError(
                "the policy's actions are not the environment's: "
                f"{self._loop.mismatch.replace('the robot', 'the environment')}"
            )

    def _lose_patience(self, since: float) -> None:
        waited_s = time.monotonic() - since
        if waited_s > self._patience_s:
            why = f": {self._tally.refused}" if self._tally.refused else ""
            raise ProgramError(f"no action came for {waited_s:.0f} s (--answer_timeout){why}")
