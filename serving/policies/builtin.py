"""A small policy that needs nothing but NumPy: for first steps, tests and tuning.

The path says what it does, like the end of a web address: `VARIANT?option=value&…`.

    hold      stay at the state that was observed
    sway      move each joint about where it was at first, smoothly, in step with the timestep
    raise     fail every prediction
    hang      never answer
    no_load   fail to load

Options, all of them optional:

    rows          rows of a chunk, 50
    amplitude     how far `sway` goes to each side, in units of the state, 2.0
    period_steps  steps of one sway, 150
    wander        how far each chunk of `sway` lies beside the last one, at random (standard
                  deviation, units of the state), as chunks of learned policies do, 0.0
    stamp         1: the last value of every action is the observation's timestamp, in seconds
                  modulo 1000, so that what a robot was told shows how old its reasons were, 0
    inference_s   how long a prediction takes, of however many observations, 0.0; 60 at most
    load_s        how long loading takes, 0.0; 60 at most
    most_batched  most observations in one prediction, 64
    raise_at      fail when a session comes to this step (once; only if it began before)
    hang_at       hang when a session comes to this step (once; only if it began before)
    hang_s        for how long `hang` and `hang_at` do, 60 at most; when not given, until the
                  server needs the policy no more

So `sway?rows=50&inference_s=0.05` stands for a policy of which the inference time is known.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from serving.messages import MAX_ROWS, Instructions, ServingError
from serving.served import Predicted, Request, ServedPolicy, SessionMemory

__all__ = ["BuiltinOptions", "BuiltinPolicy", "load"]

_STAMP_S = 1000.0
"""Modulo which a timestamp is stamped: in float32 it is then good to 0.1 ms."""
_LONGEST_S = 60.0
"""Anybody may ask for it: it keeps a thread meanwhile, and a place in the server."""
VARIANTS = ("hold", "sway", "raise", "hang", "no_load")


@dataclass(frozen=True, slots=True)
class BuiltinOptions:
    """What a path says; the module's docstring has the meanings. Times are in seconds."""

    variant: str = "hold"
    rows: int = 50
    amplitude: float = 2.0
    period_steps: float = 150.0
    wander: float = 0.0
    stamp: int = 0
    inference_s: float = 0.0
    load_s: float = 0.0
    most_batched: int = 64
    raise_at: int | None = None
    hang_at: int | None = None
    hang_s: float | None = None

    @classmethod
    def of(cls, path: str) -> BuiltinOptions:
        """Read a path; ServingError("bad_policy") with what there is instead."""
        variant, _, query = path.partition("?")
        if variant not in VARIANTS:
            raise ServingError(
                "bad_policy", f"no builtin policy {variant[:80]!r}: there are {', '.join(VARIANTS)}"
            )
        known = {field.name: field for field in fields(cls) if field.name != "variant"}
        values: dict[str, Any] = {}
        for name, text in parse_qsl(query, keep_blank_values=True, max_num_fields=len(known)):
            if name not in known:
                raise ServingError(
                    "bad_policy", f"no option {name[:80]!r}: there are {', '.join(known)}"
                )
            try:
                values[name] = (int if "int" in str(known[name].type) else float)(text)
            except ValueError:
                raise ServingError("bad_policy", f"{name}={text[:80]} is no number") from None
        options = cls(variant, **values)
        options.check()
        return options

    def check(self) -> None:
        """ServingError("bad_policy") for a value that cannot be."""
        for name, low, high in (
            ("rows", 1, MAX_ROWS),
            ("amplitude", 0.0, 1e6),
            ("period_steps", 2.0, 1e9),
            ("wander", 0.0, 1e6),
            ("stamp", 0, 1),
            ("inference_s", 0.0, _LONGEST_S),
            ("load_s", 0.0, _LONGEST_S),
            ("most_batched", 1, 4096),
            ("raise_at", 1, 1 << 53),
            ("hang_at", 1, 1 << 53),
            ("hang_s", 0.0, _LONGEST_S),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ServingError("bad_policy", f"{name} must be from {low:g} to {high:g}")


class BuiltinPolicy:
    """The policy; one for any robot: an action has as many values as the state."""

    action_names: tuple[str, ...] = ()
    dt = 0.0

    def __init__(self, options: BuiltinOptions) -> None:
        self._options = options
        self._closed = threading.Event()  # waited for where time has to pass
        self._chance = np.random.default_rng(0)
        self.most_batched = options.most_batched

    def admit(self, instructions: Instructions) -> SessionMemory:
        """Begin a session; any robot will do."""
        return SessionMemory(instructions)

    def predict(self, requests: Sequence[Request]) -> Sequence[Predicted | Exception]:
        """All chunks at once; the time passes once, as on a device with room for them all."""
        options = self._options
        if options.variant == "raise" or self._reached(requests, options.raise_at):
            if len(requests) == 1:
                _remember(requests)
            raise RuntimeError("the builtin policy was asked to fail")
        if options.variant == "hang" or self._reached(requests, options.hang_at):
            _remember(requests)
            self._closed.wait(options.hang_s)
        _remember(requests)
        if options.inference_s:
            self._closed.wait(options.inference_s)
        return self._chunks(requests)

    def close(self) -> None:
        """Let go of a prediction that waits or hangs: nobody needs it any more."""
        self._closed.set()

    @staticmethod
    def _reached(requests: Sequence[Request], step: int | None) -> bool:
        return step is not None and any(
            request.memory.values.get("step", step) < step <= request.observation.timestep
            for request in requests
        )

    def _chunks(self, requests: Sequence[Request]) -> Sequence[Predicted | Exception]:
        results: list[Predicted | Exception] = [Predicted() for _ in requests]
        by_size: dict[int, list[int]] = {}
        for number, request in enumerate(requests):
            by_size.setdefault(len(request.observation.state), []).append(number)
        for size, numbers in by_size.items():
            if not size:
                for number in numbers:
                    results[number] = ServingError("failed", "the observation has no state")
                continue
            some = [requests[number] for number in numbers]
            for number, actions in zip(numbers, self._actions(some), strict=True):
                results[number] = Predicted(actions)
        return results

    def _actions(self, requests: Sequence[Request]) -> NDArray[np.float32]:
        """(requests, rows, values) from states of one size."""
        actions = self._motion(requests)
        if self._options.stamp:
            stamps = [request.observation.timestamp % _STAMP_S for request in requests]
            actions[:, :, -1] = np.array(stamps)[:, None]
        return actions

    def _motion(self, requests: Sequence[Request]) -> NDArray[np.float32]:
        states = np.stack([request.observation.state for request in requests])
        rows = np.arange(self._options.rows)
        if self._options.variant != "sway":
            return np.repeat(states[:, None], len(rows), axis=1)
        home = np.stack([request.memory.values["home"] for request in requests])
        first = np.array([request.observation.timestep for request in requests], np.float64)
        turn = (first[:, None] + rows) * (2 * np.pi / self._options.period_steps)
        # Neighbouring joints a radian apart: the arm must not move as one piece.
        phase = np.arange(states.shape[1], dtype=np.float64)
        offset = self._options.amplitude * np.sin(turn[:, :, None] + phase)
        if self._options.wander:
            offset += self._chance.normal(0.0, self._options.wander, states.shape)[:, None]
        return (home[:, None] + offset).astype(np.float32)


def load(instructions: Instructions) -> ServedPolicy:
    """The policy that the path describes; ServingError("bad_policy") where it describes none."""
    options = BuiltinOptions.of(instructions.path)
    if options.load_s:
        threading.Event().wait(options.load_s)
    if options.variant == "no_load":
        raise RuntimeError("the builtin policy was asked not to load")
    return BuiltinPolicy(options)


def _remember(requests: Sequence[Request]) -> None:
    """Keep the first state of a session, about which it sways, and how far it has come."""
    for request in requests:
        values, observation = request.memory.values, request.observation
        home = values.get("home")
        if home is None or home.shape != observation.state.shape:
            values["home"] = observation.state.copy()
        values["step"] = max(observation.timestep, values.get("step", 0))
