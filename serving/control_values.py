"""What a client's control loop is told, and what it tells: options, answers, steps, counters."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from serving.action_queue import Row
from serving.aggregation import Aggregation, choose
from serving.messages import Chunk, FeatureReply, Observation, ServingError

__all__ = ["HOLDS", "Arrival", "Counters", "HoldReason", "LoopOptions", "Step"]

HoldReason: TypeAlias = Literal[
    "not_connected",
    "body",
    "camera",
    "columns",
    "no_action",
    "server",
    "features",
    "old_input",
    "limits",
]
HOLDS: Mapping[HoldReason, str] = {
    "not_connected": "the server is lost",
    "body": "the robot cannot be read or moved",
    "camera": "a camera is silent",
    "columns": "the policy's actions are not the robot's",
    "no_action": "no action is queued",
    "server": "the server refuses, and no action is queued",
    "features": "the fast half cannot act",
    "old_input": "the next action comes from input that is too old",
    "limits": "the limits refuse the motion",
}
_MOST_TRIPS = 1000
_SLACK_S = 1.0


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """How to run from the queue.

    Attributes:
        fps: control ticks a second.
        task: the instruction in words.
        actions_per_chunk: rows that are asked for; more are cut off.
        chunk_size_threshold: ask again when at most this part of a chunk is left.
        aggregation: what becomes of a step that is queued and in the new chunk.
        max_input_age_s: nothing is executed whose input was measured longer ago. None: the time a
            chunk spans, for which its last row waits in any case, and 1 s for the way to the server
            and back.
        camera_timeout_s: hold, and send nothing, when a camera's newest picture is older.
        must_go_after_s: ask again when an observation that must go has no answer for so long.
        resample: follow the chunk in time where its rows are not one control period apart;
            otherwise a row a tick, as LeRobot's client does.
        low_pass_hz: cut-off of the low-pass filter; None for none.
        low_pass_order: its order.
        low_pass_except: actions with one of these in their name are not filtered.
        sensor_samples: samples of the force sensor that go with an observation.
        match_names: hold where the policy names its actions otherwise than the body; without it,
            their number decides.
        lockstep: time stands still while the policy thinks. Asked for is only what nothing is
            queued for, and the answer's first row is for the state that was seen.
    """

    fps: float
    task: str = ""
    actions_per_chunk: int = 50
    chunk_size_threshold: float = 0.5
    aggregation: Aggregation = field(default_factory=lambda: choose("weighted_average"))
    max_input_age_s: float | None = None
    camera_timeout_s: float = 1.0
    must_go_after_s: float = 2.0
    resample: bool = False
    low_pass_hz: float | None = None
    low_pass_order: int = 2
    low_pass_except: tuple[str, ...] = ("gripper",)
    sensor_samples: int = 65
    match_names: bool = True
    lockstep: bool = False

    @property
    def input_age_limit_s(self) -> float:
        """The age beyond which nothing is executed."""
        if self.max_input_age_s is not None:
            return self.max_input_age_s
        return self.actions_per_chunk / self.fps + _SLACK_S


@dataclass(frozen=True, slots=True)
class Arrival:
    """What came from the server, and when (monotonic seconds)."""

    reply: Chunk | FeatureReply | ServingError
    at: float


@dataclass(frozen=True, slots=True)
class Step:
    """What one tick did.

    Attributes:
        target: (A,) where the robot was sent, within the limits; None when it holds.
        hold: why it holds; None when it moves.
        row: the action that was executed; None when it holds.
        observation: to be sent now; None when there is none.
    """

    target: NDArray[np.float64] | None = None
    hold: HoldReason | None = None
    row: Row | None = None
    observation: Observation | None = None


@dataclass(slots=True)
class Counters:
    """What has happened so far; the control loop writes, others read.

    Attributes:
        steps: control ticks.
        moves: those in which the robot was sent somewhere.
        holds: how often it began to hold, by reason.
        held: ticks on hold, by reason.
        observations: handed over to be sent.
        chunks: taken into the queue.
        ignored: answers to observations that were not sent in this session.
        late_rows: rows that came after their step was executed.
        refusals: what the server refused, by kind.
        round_trips: seconds from an observation to its answer, the newest 1,000.
        observed_at: monotonic seconds of the last observation, None before the first.
        answered_at: the same of the last chunk.
    """

    steps: int = 0
    moves: int = 0
    holds: Counter[str] = field(default_factory=Counter)
    held: Counter[str] = field(default_factory=Counter)
    observations: int = 0
    chunks: int = 0
    ignored: int = 0
    late_rows: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    round_trips: deque[float] = field(default_factory=lambda: deque(maxlen=_MOST_TRIPS))
    observed_at: float | None = None
    answered_at: float | None = None
