"""What the engine asks of a policy that it serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from serving.messages import Instructions, Observation

__all__ = ["ClosingPolicy", "LanedPolicy", "Predicted", "Request", "ServedPolicy", "SessionMemory"]


@dataclass(slots=True)
class SessionMemory:
    """What a policy keeps of one session between predictions; the engine only carries it.

    Attributes:
        instructions: what the session's client asked for.
        values: the policy's own.
    """

    instructions: Instructions
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """One observation to predict from, and what the policy keeps of its session.

    Attributes:
        observation: to predict from.
        memory: of its session.
        arrived_at: `time.monotonic()` seconds at which the server had the observation.
    """

    observation: Observation
    memory: SessionMemory
    arrived_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Predicted:
    """What came of one request: rows of actions, or packed features, as was asked for.

    Attributes:
        actions: (H, A) float32; None where features were asked for.
        features: packed; None where actions were asked for.
        features_age_s: dual-rate: age of the features that the actions come from.
        names: of the columns of these actions, where they depend on the session's robot; empty:
            the policy's `action_names`.
        identity: of the checkpoint behind the features.
    """

    actions: NDArray[np.float32] | None = None
    features: bytes | None = None
    features_age_s: float = 0.0
    names: tuple[str, ...] = ()
    identity: str = ""


class ServedPolicy(Protocol):
    """A policy ready to predict for many sessions.

    One thread calls `predict`; `admit` may be called from others meanwhile, and the properties
    from anywhere.
    """

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the action's columns; empty where they are not known."""
        ...

    @property
    def dt(self) -> float:
        """Seconds between two rows; 0.0 where that is the client's control period."""
        ...

    @property
    def most_batched(self) -> int:
        """How many requests one call may take."""
        ...

    def admit(self, instructions: Instructions) -> SessionMemory:
        """Begin a session; ServingError("bad_policy") where its features do not fit the policy."""
        ...

    def predict(self, requests: Sequence[Request]) -> Sequence[Predicted | Exception]:
        """One result a request, in order; an exception in the place of one that failed alone."""
        ...


@runtime_checkable
class ClosingPolicy(Protocol):
    """A policy that can be told that nothing is asked of it any more."""

    def close(self) -> None:
        """Let a `predict` that waits return; called with the engine's lock held: must not wait."""
        ...


@runtime_checkable
class LanedPolicy(ServedPolicy, Protocol):
    """A policy with work of several sorts that must not wait for each other.

    Each lane has a thread that calls `predict`, with requests of that lane only, and holds the
    newest observation of each session by itself. So two calls may run at once.
    """

    @property
    def lanes(self) -> tuple[str, ...]:
        """Names of the lanes."""
        ...

    def lane_of(self, observation: Observation) -> int:
        """Which lane the observation is for, counted from 0."""
        ...
