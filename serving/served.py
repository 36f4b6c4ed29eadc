"""What the engine asks of a policy that it serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from serving.messages import Instructions, Observation

__all__ = ["Predicted", "Request", "ServedPolicy", "SessionMemory"]


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
    """One observation to predict from, and what the policy keeps of its session."""

    observation: Observation
    memory: SessionMemory


@dataclass(frozen=True, slots=True)
class Predicted:
    """What came of one request: rows of actions, or packed features, as was asked for.

    Attributes:
        actions: (H, A) float32; None where features were asked for.
        features: packed; None where actions were asked for.
        features_age_s: dual-rate: age of the features that the actions come from.
    """

    actions: NDArray[np.float32] | None = None
    features: bytes | None = None
    features_age_s: float = 0.0


class ServedPolicy(Protocol):
    """A policy ready to predict for many sessions. One thread calls it."""

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
