"""How long predictions take, and what a chunk and a buffer size make of that: a real server, asked.

The buffer is the number of actions still queued at which the next chunk is asked for. While the
prediction runs the robot lives off it: it must last as long as an answer takes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.clock import Ticker, to_now
from common.program import ProgramError
from serving.bodies.simulated import SimulatedBody
from serving.body import BodyError
from serving.control_loop import ControlLoop
from serving.control_values import HOLDS, LoopOptions
from serving.link import LinkLost
from serving.messages import Chunk, Instructions, Observation, Picture, ServingError
from serving.supervisor import Connection, ConnectionOptions
from serving.transports.zmq_link import ZmqLink

__all__ = ["Profile", "ProfileError", "Profiled", "Profiler", "with_rows"]

_CONNECT_S = 10.0
_ANSWER_S = 120.0
_LONG_S = 3600.0
_WINDOW = 65
"""Samples of the sensor that go with an observation."""
_PATIENT = ConnectionOptions(connect_timeout_s=_CONNECT_S, answer_timeout_s=_ANSWER_S)


class ProfileError(Exception):
    """What cannot be profiled; one line."""


@dataclass(frozen=True, slots=True)
class Profiled:
    """What is profiled, and how.

    Attributes:
        address: HOST:PORT of the server's ZeroMQ end.
        policy_type, device: as clients say them.
        robot: options of the simulated arm, which the policy must take.
        fps: control ticks a second.
        predictions: how many are measured for each setting.
        most_s: but for no longer than this.
        task: the instruction.
    """

    address: str
    policy_type: str
    device: str
    robot: Mapping[str, Any]
    fps: float
    predictions: int
    most_s: float
    task: str = ""


@dataclass(frozen=True, slots=True)
class Profile:
    """One setting.

    Attributes:
        chunk: rows asked for.
        rows: rows that the policy gives.
        buffer: queued actions at which the next chunk is asked for.
        inference_s: of each prediction, as the server measured it.
        answer_s: from each observation to its chunk.
        rate_hz: actions a second.
        empty: share of control ticks with nothing queued.
    """

    chunk: int
    rows: int
    buffer: int
    inference_s: NDArray[np.float64] = field(repr=False)
    answer_s: NDArray[np.float64] = field(repr=False)
    rate_hz: float
    empty: float

    def inference_ms(self, percentile: float) -> float:
        """Of the predictions, milliseconds."""
        return 1e3 * float(np.percentile(self.inference_s, percentile))

    def answer_ms(self, percentile: float) -> float:
        """From observation to chunk, milliseconds."""
        return 1e3 * float(np.percentile(self.answer_s, percentile))


class Profiler:
    """Asks one server for chunks of one size after the other."""

    def __init__(self, what: Profiled, stop: threading.Event) -> None:
        """Until `stop`."""
        self._what, self._stop = what, stop

    def rows_of(self, path: str, chunk: int) -> int:
        """How many rows the policy gives of `chunk` that are asked for; it is warm afterwards.

        Raises:
            ProfileError: the server is not there or refuses, or gives no chunk.
        """
        with self._body() as body:
            link = ZmqLink(self._what.address)
            try:
                link.begin(self._instructions(path, chunk, body), _CONNECT_S)
                seen, sensor = body.seen(), self._sensor(body)
                observation = Observation(
                    timestep=0,
                    timestamp=to_now(time.monotonic()),
                    must_go=True,
                    state=body.read().values.astype(np.float32),
                    pictures={name: Picture(pixels=one.pixels) for name, one in seen.items()},
                    task=self._what.task,
                    sensor=sensor,
                )
                link.send(observation, _CONNECT_S)
                reply = link.receive(_ANSWER_S)
            except (LinkLost, ServingError) as error:
                raise ProfileError(str(error)) from None
            finally:
                link.close()
        if not isinstance(reply, Chunk):
            raise ProfileError(f"the policy gave no chunk within {_ANSWER_S:g} s")
        return len(reply.actions)

    def run(self, path: str, chunk: int, rows: int, buffer: int) -> Profile:
        """Execute from the queue, and ask whenever `buffer` of `rows` are left.

        Raises:
            ProfileError: the server fails, or no prediction came.
        """
        what = self._what
        with self._body() as body:
            self._sensor(body)
            instructions = self._instructions(path, chunk, body)
            options = LoopOptions(
                fps=what.fps,
                task=what.task,
                actions_per_chunk=chunk,
                chunk_size_threshold=buffer / rows,
                max_input_age_s=_LONG_S,
                sensor_samples=_WINDOW,
            )
            connection = Connection(ZmqLink(what.address), instructions, _PATIENT)
            with contextlib.closing(connection):
                try:
                    connection.begin(self._stop)
                    connection.start()
                    return self._drive(ControlLoop(body, options), connection, chunk, rows, buffer)
                except ProgramError as error:
                    raise ProfileError(str(error)) from None

    def _drive(
        self, loop: ControlLoop, connection: Connection, chunk: int, rows: int, buffer: int
    ) -> Profile:
        what, inference_s = self._what, list[float]()
        moves = empty = first = last = 0
        moving = False
        give_up_at = time.monotonic() + what.most_s + _ANSWER_S
        end_at = give_up_at
        for tick in Ticker(what.fps).ticks(self._stop):
            now = time.monotonic()
            if now >= end_at or len(inference_s) >= what.predictions:
                break
            if connection.failure is not None:
                raise connection.failure
            session, arrivals = connection.session, connection.arrivals()
            done = loop.step(now, session, arrivals, may_send=connection.free)
            if done.observation is not None and session is not None:
                connection.send(done.observation, session)
            inference_s += [a.reply.inference_s for a in arrivals if isinstance(a.reply, Chunk)]
            if done.row is not None and not moving:
                moving, first, end_at = True, tick.index, now + what.most_s
            moves += done.row is not None
            empty += moving and done.hold == "no_action"
            last = tick.index
        if not inference_s or not moving:
            why = "" if loop.holding is None else f": {HOLDS[loop.holding]}"
            raise ProfileError(f"no prediction came{why}")
        ticks = last - first + 1
        return Profile(
            chunk,
            rows,
            buffer,
            np.array(inference_s),
            np.array(loop.counters.round_trips),
            rate_hz=moves * what.fps / ticks,
            empty=empty / ticks,
        )

    @contextlib.contextmanager
    def _body(self) -> Iterator[SimulatedBody]:
        try:
            body = SimulatedBody(self._what.robot)
            body.open()
        except BodyError as error:
            raise ProfileError(str(error)) from None
        try:
            yield body
        finally:
            body.close()

    def _sensor(self, body: SimulatedBody) -> NDArray[np.float32] | None:
        """A whole window of the arm's sensor, waited for; None where it has none."""
        if not self._what.robot.get("sensor_channels"):
            return None
        pause = threading.Event()
        while (window := body.sensor(_WINDOW)) is None:
            pause.wait(0.01)
        return window

    def _instructions(self, path: str, chunk: int, body: SimulatedBody) -> Instructions:
        what = self._what
        return Instructions(
            what.policy_type,
            path,
            what.device,
            actions_per_chunk=chunk,
            state_names=body.state_names,
            cameras=body.cameras,
            fps=what.fps,
        )


def with_rows(checkpoint: Path, rows: int, out: Path) -> None:
    """Write the policy of `checkpoint` with a horizon of `rows`, for measuring only.

    The queries of its rows are repeated or cut; everything else is the same, so that it takes the
    time that such a policy would take. What it says means nothing.

    Raises:
        ProfileError: what is no policy of this project.
    """
    import torch

    from policies.base import PolicyError
    from policies.qwen_vla import FastParts, QwenVlaPolicy, load_policy, save_policy
    from policies.qwen_vla.action_expert import ActionExpert

    try:
        policy = load_policy(checkpoint, device="cpu")
        fast = policy.fast
        config = replace(fast.config, expert=replace(fast.config.expert, rows=rows))
        weights = dict(fast.action_expert.state_dict())
        queries = weights["pos_embed"]
        weights["pos_embed"] = queries[:, torch.arange(rows) % queries.shape[1]].clone()
        features = config.sensor.features if config.sensor else 0
        expert = ActionExpert(config.expert, features, len(config.action.columns))
        expert.load_state_dict(weights)
        parts = FastParts(config, fast.sensor_encoder, expert.eval().requires_grad_(False))
        save_policy(QwenVlaPolicy(parts, policy.backbone), out)
    except (PolicyError, OSError) as error:
        raise ProfileError(f"{checkpoint}: {error}") from None
