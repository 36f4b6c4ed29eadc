"""Where a prediction is made: in the control loop itself, or in a thread beside it.

Both look to the control loop like `serving.supervisor.Connection`, which is the third place: a
server in a process of its own.
"""

from __future__ import annotations

import threading
import time
from queue import SimpleQueue
from typing import Protocol

from common.program import ProgramError
from serving.control_values import Arrival
from serving.messages import (
    Chunk,
    FeatureReply,
    Instructions,
    Observation,
    Refusal,
    ServingError,
)
from serving.newest import Waiting
from serving.replies import Replier
from serving.served import Predicted, Request, ServedPolicy

__all__ = ["InLoop", "InThread", "Predictor"]

_SESSION = 1
_CLOSE_S = 5.0


class Predictor(Protocol):
    """What the control loop needs of whoever predicts."""

    failure: ProgramError | None

    @property
    def session(self) -> int | None:
        """Counts the sessions from 1; None while there is none."""
        ...

    @property
    def free(self) -> bool:
        """Whether an observation can be handed over."""
        ...

    def arrivals(self) -> list[Arrival]:
        """What came since the last call."""
        ...

    def send(self, observation: Observation, session: int) -> None:
        """Hand an observation over; only when `free`."""
        ...

    def close(self) -> None:
        """Let go; safe to call twice."""
        ...


class _Asked:
    """A policy and one session of it; turns an observation into an arrival, as the server does."""

    def __init__(self, policy: ServedPolicy, instructions: Instructions) -> None:
        self._policy, self._instructions = policy, instructions
        self._memory = policy.admit(instructions)
        self._replier = Replier("the policy", policy, instructions.fps)

    def answer(self, observation: Observation) -> Arrival:
        began_at = time.monotonic()
        request = Request(observation, self._memory, began_at)
        try:
            result: Predicted | BaseException = self._policy.predict([request])[0]
        except Exception as error:
            result = error
        ended_at = time.monotonic()
        reply = self._replier.reply(
            result,
            Waiting(observation, began_at),
            self._instructions,
            ended_at - began_at,
        )
        if isinstance(reply, Refusal):
            return Arrival(ServingError(reply.kind, reply.message), ended_at)
        assert isinstance(reply, (Chunk, FeatureReply))
        return Arrival(reply, ended_at)


class InLoop:
    """Predicts when an observation is handed over: nothing else happens meanwhile."""

    session: int | None = _SESSION
    free = True

    def __init__(self, policy: ServedPolicy, instructions: Instructions) -> None:
        """Ask `policy`; ServingError where it does not take the robot."""
        self.failure: ProgramError | None = None
        self._asked = _Asked(policy, instructions)
        self._came: list[Arrival] = []

    def arrivals(self) -> list[Arrival]:
        """See `Predictor.arrivals`."""
        came, self._came = self._came, []
        return came

    def send(self, observation: Observation, session: int) -> None:
        """Predict now: returns when that is done."""
        self._came.append(self._asked.answer(observation))

    def close(self) -> None:
        """Nothing to let go of."""


class InThread:
    """Predicts in one thread of this process, an observation at a time."""

    session: int | None = _SESSION

    def __init__(self, policy: ServedPolicy, instructions: Instructions) -> None:
        """Ask `policy`; ServingError where it does not take the robot."""
        self.failure: ProgramError | None = None
        self._asked = _Asked(policy, instructions)
        self._inbox: SimpleQueue[Observation | None] = SimpleQueue()
        self._came: SimpleQueue[Arrival] = SimpleQueue()
        self._idle = threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._work, name="predict", daemon=True)
        self._thread.start()

    @property
    def free(self) -> bool:
        """Whether the last prediction is done."""
        return self._idle.is_set()

    def arrivals(self) -> list[Arrival]:
        """See `Predictor.arrivals`."""
        # One thread takes, so what is there stays there.
        return [self._came.get_nowait() for _ in range(self._came.qsize())]

    def send(self, observation: Observation, session: int) -> None:
        """Hand the observation to the thread; returns at once."""
        self._idle.clear()
        self._inbox.put(observation)

    def close(self) -> None:
        """End the thread after what it is at."""
        self._inbox.put(None)
        self._thread.join(_CLOSE_S)

    def _work(self) -> None:
        while (observation := self._inbox.get()) is not None:
            try:
                self._came.put(self._asked.answer(observation))
            except Exception as error:
                self.failure = ProgramError(f"the prediction thread fails: {error}")
                return
            self._idle.set()
