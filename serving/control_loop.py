"""What a client does at each control tick: take what came, move or hold, and look again.

No thread, no socket, no clock: time comes in as an argument (monotonic seconds), answers as a list,
and the observation to be sent goes out as a value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from common.clock import to_now
from serving.action_queue import ActionQueue, Asking, Row
from serving.body import Body, BodyError, BodyState, Seen
from serving.control_values import Arrival, Counters, HoldReason, LoopOptions, Step
from serving.messages import BadMessage, Chunk, FeatureReply, Observation, Picture, ServingError
from serving.motion import Motion, Warnings
from serving.outstanding import MOST_SENT, Outstanding, Sent
from serving.smoothing import resampled
from serving.speeds import SpeedGauge
from serving.split import FastHalfHere

__all__ = ["ControlLoop"]

_MOST_SHOWN = 200
_SAME_RATE = 1e-3
_FORGET_AFTER_S = 0.5


class ControlLoop:
    """Executes the queue at a fixed rate, and holds when there is any doubt. Used by one thread.

    What holds: the server is lost; the robot cannot be read or refuses; a camera is silent; no
    action is queued; the input behind the next one is too old; the limits refuse. A hold for the
    server's or the input's sake forgets what is queued, and so does one for the robot's that lasts;
    the others keep it, and it goes on where it stopped unless it has become too old meanwhile.

    With the policy's fast half `here`, the server is asked for features, and the queue is filled
    from them at every tick: then a lost server or a silent camera is no reason to hold before the
    features are too old.
    """

    def __init__(self, body: Body, options: LoopOptions, here: FastHalfHere | None = None) -> None:
        """Move `body`; ValueError for options that cannot be used with it."""
        self._body, self._options, self._here = body, options, here
        self._unreadable_since: float | None = None
        self._gauge = SpeedGauge()
        self._period_s = 1.0 / options.fps
        self._max_age_s = options.input_age_limit_s
        self.counters = Counters()
        self._warnings = Warnings()
        self._motion = Motion(body, options, self.counters, self._warnings)
        self.queue = ActionQueue(
            options.actions_per_chunk,
            options.aggregation,
            threshold=options.chunk_size_threshold,
            max_age_s=self._max_age_s,
            period_s=self._period_s,
            turns=self._motion.limiter.turns,
        )
        self._asking = Asking(options.must_go_after_s)
        self._outstanding = Outstanding()
        self._session: int | None = None
        self._server_said = self._columns_said = ""

    @property
    def holding(self) -> HoldReason | None:
        """Why the robot holds; None when it moves (or was not told anything yet)."""
        return self._motion.holding

    @property
    def mismatch(self) -> str:
        """In words, how the policy's actions are not the body's; empty when they are."""
        return self._columns_said

    def step(
        self,
        now: float,
        session: int | None,
        arrivals: Sequence[Arrival] = (),
        may_send: bool = True,
    ) -> Step:
        """One control tick at `now`.

        `session` counts the connections to the server, None while there is none; `arrivals` is
        what came since the last tick; without `may_send` no observation is made: the last one is
        still on its way out. Raises nothing for what the robot, the cameras or the server do.
        """
        self.counters.steps += 1
        self._enter(session)
        for arrival in arrivals:
            self._take(arrival, now)
        try:
            state = self._body.read()
        except BodyError as error:
            return self._lost_body(str(error), now)
        if not np.isfinite(state.values).all():
            return self._lost_body("its state is not finite", now)
        self._unreadable_since = None
        self._gauge.see(state)
        # Reading may have taken long: what is too old is judged by when it ended, not began.
        now = max(now, state.at)
        if session is None and self._here is None:
            return self._held("not_connected", "", now)
        seen, silent = self._look(now)
        if silent:
            if self._here is None:
                return self._held("camera", silent, now)
            self._warnings.warn("camera", f"no new features: {silent}", now)
        done = self._act(state, now)
        if silent or not may_send or session is None:
            return done
        if self._options.lockstep and done.row is not None:
            return done
        # After the move: an observation is for the step that was executed just now. It was taken
        # before that, so the first row of the answer is what should follow from it.
        observation = self._observation(state, seen, now)
        return Step(done.target, done.hold, done.row, observation)

    def _lost_body(self, detail: str, now: float) -> Step:
        """Hold; what was planned for a robot that has been away for a while is forgotten."""
        if self._unreadable_since is None:
            self._unreadable_since = now
        if now - self._unreadable_since > _FORGET_AFTER_S:
            self.queue.clear()
        return self._held("body", detail, now)

    def _look(self, now: float) -> tuple[Mapping[str, Seen], str]:
        """The newest pictures, and in words what is wrong with them; empty when nothing is."""
        try:
            seen = self._body.seen()
        except BodyError as error:
            return {}, str(error)
        return seen, self._silent(seen, now)

    def _held(self, reason: HoldReason, detail: str, now: float) -> Step:
        return Step(hold=self._motion.hold(reason, detail, now))

    def _enter(self, session: int | None) -> None:
        """Forget what an earlier session planned, and whatever it may still answer."""
        if session == self._session:
            return
        self._session = session
        if self._here is None:
            self.queue.clear()
        self._outstanding.clear()
        self._asking.answered()
        self._server_said = self._columns_said = ""

    def _take(self, arrival: Arrival, now: float) -> None:
        """Merge an answer into the queue, or count why not."""
        reply, counters = arrival.reply, self.counters
        if isinstance(reply, ServingError):
            counters.refusals[reply.kind] += 1
            self._server_said = str(reply)[:_MOST_SHOWN]
            if len(self.queue):  # otherwise the hold says so
                self._warnings.warn("refused", f"the server refuses: {self._server_said}", now)
            self._asking.refused(now)
            return
        sent = self._outstanding.answered(reply.timestamp, reply.timestep)
        if sent is None or isinstance(reply, FeatureReply) != (self._here is not None):
            counters.ignored += 1
            self._warnings.once(
                "ignored",
                lambda: (
                    f"the answer for step {reply.timestep} is ignored, and others like it will be: "
                    f"it is to none of the last {MOST_SENT} observations of this session, or not "
                    "of the kind that was asked for"
                ),
            )
            return
        counters.round_trips.append(arrival.at - sent.at)
        counters.answered_at = arrival.at
        counters.chunks += 1
        self._asking.answered()
        self._server_said = ""
        if isinstance(reply, FeatureReply):
            assert self._here is not None
            self._server_said = self._here.take(reply, sent.measured_at)
            return
        rows = self._rows(reply)
        if rows is not None:
            counters.late_rows += self.queue.merge(sent.step, rows, sent.measured_at, now).past

    def _rows(self, chunk: Chunk) -> NDArray[np.float64] | None:
        """The chunk's rows (K, A), in the robot's order and one a control tick; None: not its."""
        rows = self._in_order(chunk)
        if rows is None or self._in_step(chunk):
            return rows
        if self._options.resample:
            if (span_s := len(rows) * chunk.dt) > self._max_age_s:
                self._warnings.once(
                    "span",
                    lambda: (
                        f"a chunk spans {span_s:g} s, --max_input_age is {self._max_age_s:g}: its "
                        "last rows will be too old when they are due"
                    ),
                )
            return resampled(rows, chunk.dt, self._period_s, self._motion.limiter.turns)
        self._warnings.once(
            "dt",
            lambda: (
                f"the rows of the chunks are {1000 * chunk.dt:g} ms apart, the control ticks "
                f"{1000 * self._period_s:g} ms: one row a tick is executed; --resample True "
                "follows them in time"
            ),
        )
        return rows

    def _in_order(self, chunk: Chunk) -> NDArray[np.float64] | None:
        """The chunk's rows (K, A) in the robot's order; None: not the robot's.

        Other columns than the robot's will not become the robot's: it holds, and says so.
        """
        names, actions = self._body.action_names, chunk.actions[: self._options.actions_per_chunk]
        self._columns_said = ""
        named = bool(chunk.names) and self._options.match_names
        if actions.shape[1] != len(names) or (named and set(chunk.names) != set(names)):
            theirs, ours = ", ".join(chunk.names) or "no names", ", ".join(names)
            said = f"{actions.shape[1]} ({theirs}), the robot takes {len(names)} ({ours})"
            self._columns_said = said[: 2 * _MOST_SHOWN]
            self.queue.clear()
            return None
        rows = actions.astype(np.float64)
        if named and chunk.names != names:
            rows = rows[:, [chunk.names.index(name) for name in names]]
        return rows

    def _in_step(self, chunk: Chunk) -> bool:
        """Whether its rows are as far apart as control ticks, or nothing is said of it."""
        return chunk.dt <= 0.0 or abs(chunk.dt / self._period_s - 1.0) < _SAME_RATE

    def _silent(self, seen: Mapping[str, Seen], now: float) -> str:
        """The cameras without a picture that is new enough, in words; empty when there is none."""
        limit_s, said = self._options.camera_timeout_s, []
        for name in self._body.cameras:
            if name not in seen:
                said.append(f"{name} has given no picture yet")
            elif now - seen[name].at > limit_s:
                said.append(f"{name} has given no picture for {now - seen[name].at:.1f} s")
        return "; ".join(said)

    def _plan(self, here: FastHalfHere, state: BodyState, now: float) -> str:
        """Have the fast half fill the queue; in words why not, empty when it did."""
        try:
            speeds, step = self._gauge.speeds, self.queue.latest + 1
            planned = here.plan(step, state, self._body.sensor, now, speeds)
        except BodyError as error:
            return str(error)
        if isinstance(planned, str):
            return planned
        chunk = planned.chunk
        if (rows := self._in_order(chunk)) is not None:
            if not self._in_step(chunk):
                # The first row is for `dt` from now, and the tick is over before or after that.
                points = np.concatenate([self._motion.start(rows[0], state)[None], rows])
                turns = self._motion.limiter.turns
                later = resampled(points, chunk.dt, self._period_s, turns)[1:]
                rows = later if len(later) else points[-1:]
            self.queue.merge(chunk.timestep, rows, planned.measured_at, now)
        return ""

    def _act(self, state: BodyState, now: float) -> Step:
        """Execute the next row, or hold."""
        if self._here is not None and (said := self._plan(self._here, state, now)):
            # What is queued was planned from touch that is old by now.
            self.queue.clear()
            said = "; ".join(filter(None, (said, self._server_said)))
            return self._held("features", said, now)
        row: Row | None = self.queue.peek()
        if row is None:
            if self._columns_said:
                return self._held("columns", self._columns_said, now)
            if self._options.lockstep:
                return Step()  # time stands still until there is one
            return self._held(
                "server" if self._server_said else "no_action", self._server_said, now
            )
        if (age_s := now - row.measured_at) > self._max_age_s:
            # What follows was planned to follow this one.
            self.queue.clear()
            said = f"{age_s:.2f} s, --max_input_age is {self._max_age_s:g}"
            return self._held("old_input", said, now)
        went = self._motion.go(row.action, state, now)
        if isinstance(went, str):
            return Step(hold=went)
        self.queue.pop()
        return Step(target=went, row=row)

    def _observation(
        self, state: BodyState, seen: Mapping[str, Seen], now: float
    ) -> Observation | None:
        """What the robot sees and feels now, when it is time to ask."""
        empty = not len(self.queue) or self._here is not None
        must_go = empty and self._asking.due(now)
        # With nothing queued every observation is for the same step, which is asked about already:
        # the server would leave it out, after it had taken the network's time from the answer.
        wanted = self._here is not None or self.queue.wants_observation
        if not wanted or (empty and not must_go):
            return None
        cameras, lockstep = self._body.cameras, self._options.lockstep
        try:
            observation = Observation(
                timestep=self.queue.latest + 1 if lockstep else self.queue.observation_step,
                timestamp=to_now(now),
                must_go=must_go,
                state=state.values.astype(np.float32),
                pictures={name: Picture(pixels=seen[name].pixels) for name in cameras},
                task=self._options.task,
                sensor=None if self._here else self._body.sensor(self._options.sensor_samples),
                wants="features" if self._here else "actions",
                speeds=self._gauge.speeds,
            )
        except (BadMessage, BodyError) as error:
            self._warnings.warn("observation", f"no observation could be made: {error}", now)
            return None
        # As old as its oldest part.
        measured_at = min([state.at, *(seen[name].at for name in cameras)])
        self._outstanding.add(observation.timestamp, Sent(observation.timestep, measured_at, now))
        self.counters.observations += 1
        self.counters.observed_at = now
        if must_go:
            self._asking.asked(now)
        return observation
