"""What tests of the engine share: a policy with a gate, observations, asking threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from serving.engine import Engine, EngineOptions
from serving.messages import Chunk, FeatureReply, Instructions, Observation, Picture, ServingError
from serving.policies import load_policy
from serving.served import Predicted, Request, ServedPolicy, SessionMemory

Start = Callable[..., Engine]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts engines; with `policy`, every path loads that one. Clients named begin with it."""
    engines: list[Engine] = []

    def make(
        *clients: str, policy: ServedPolicy | None = None, path: str = "hold", **options: Any
    ) -> Engine:
        options = {"inference_latency_s": 0.0, "obs_queue_timeout_s": 0.05} | options

        def load(instructions: Instructions, options: EngineOptions) -> ServedPolicy:
            return policy or load_policy(instructions, options)

        engines.append(Engine(EngineOptions(**options), load=load))
        for client in clients:
            engines[-1].ready(client)
            engines[-1].instruct(client, told(path))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


LONG_S = 60.0
"""Where nothing should have to wait that long."""


def told(path: str = "hold", **more: Any) -> Instructions:
    return Instructions("builtin", path, **more)


def seen(
    timestep: int,
    state: Sequence[float] = (1.0, 2.0),
    *,
    must_go: bool = False,
    cameras: Sequence[str] = (),
    **more: Any,
) -> Observation:
    pictures = {name: Picture(np.zeros((4, 6, 3), np.uint8)) for name in cameras}
    values = np.array(state, np.float32)
    return Observation(timestep, 1000.0 + timestep / 30, must_go, values, pictures, **more)


class GatedPolicy:
    """Records every batch, and predicts only when the gate is open.

    Rows hold the timestep; observations of a timestep in `poison` make the whole call raise, and
    those in `hang` make it wait for `release`.
    """

    action_names: tuple[str, ...] = ()
    dt = 0.0

    def __init__(self, most_batched: int = 64) -> None:
        self.most_batched = most_batched
        self.gate, self.release = threading.Event(), threading.Event()
        self.gate.set()
        self.batches: list[list[int]] = []
        self.poison: set[int] = set()
        self.hang: set[int] = set()
        self.error: BaseException = RuntimeError("poisoned")
        self.misfit = False
        self.value: float | None = None

    def admit(self, instructions: Instructions) -> SessionMemory:
        if self.misfit:
            raise ServingError("bad_policy", "does not fit")
        return SessionMemory(instructions)

    def predict(self, requests: Sequence[Request]) -> Sequence[Predicted | Exception]:
        steps = [request.observation.timestep for request in requests]
        self.batches.append(steps)
        assert self.gate.wait(LONG_S)
        if self.hang & set(steps):
            self.release.wait(LONG_S)
        if self.poison & set(steps):
            raise self.error
        return [
            Predicted(np.full((50, 2), step if self.value is None else self.value, np.float32))
            for step in steps
        ]


class Asking(threading.Thread):
    """Asks for one answer; `result` is what came, an error too."""

    def __init__(self, engine: Engine, client: str, timeout_s: float | None = LONG_S) -> None:
        super().__init__(daemon=True)
        self._ask: Callable[[], Chunk | FeatureReply | None] = lambda: engine.answer(
            client, timeout_s
        )
        self._result: list[Chunk | FeatureReply | ServingError | None] = []
        self.start()

    def run(self) -> None:
        try:
            self._result.append(self._ask())
        except ServingError as error:
            self._result.append(error)

    @property
    def done(self) -> bool:
        return bool(self._result)

    @property
    def result(self) -> Chunk | FeatureReply | ServingError | None:
        self.join(LONG_S)
        assert self._result, "no answer came"
        return self._result[0]

    @property
    def chunk(self) -> Chunk:
        assert isinstance(self.result, Chunk), repr(self.result)
        return self.result

    @property
    def error(self) -> ServingError:
        assert isinstance(self.result, ServingError), repr(self.result)
        return self.result
