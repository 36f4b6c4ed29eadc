"""What the runtime asks of a policy: a slow `encode`, a fast `act`, and a `spec`.

A policy knows no socket and no thread. The receiver calls `encode` from its slow loop and `act`
from its fast loop, at the same time, so the two must not share mutable state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from common.wire import ActionSpace, RobotState

__all__ = [
    "AT_REST",
    "ActingPolicy",
    "ActionChunk",
    "DualRatePolicy",
    "Features",
    "PolicyError",
    "PolicySpec",
]

Features = Any
"""Whatever `encode` returns and `act` takes; opaque to the runtime, never mutated."""


class PolicyError(ValueError):
    """A policy that cannot be loaded or used; the message is one line that says what to do."""


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """What a policy takes and gives.

    Attributes:
        name: for people, e.g. `qwen_vla (tiny, concat)`.
        views: the camera views `encode` needs, in its order.
        image_size: width and height in pixels that images are resized to inside `encode`; (0, 0)
            of a fast half by itself.
        sensor_window: samples in the sensor window it was trained on; 0 when it takes none.
        sensor_channels: values in a sample: force, then the A-scan.
        rows: rows (H) of an action chunk.
        columns: the names of its A columns.
        space: what the joint columns mean.
        dt: seconds between two rows.
        task: the instruction to use when the user gives none.
        fusion: how the features and the sensor are joined.
        device: where it runs, e.g. `cpu`, `cuda:0`.
        parameters: number of parameters, all parts.
        identity: tells the weights of this checkpoint from those of others; empty where unknown.
            Features mean nothing to the fast half of another checkpoint.
    """

    name: str
    views: tuple[str, ...]
    image_size: tuple[int, int]
    sensor_window: int
    sensor_channels: int
    rows: int
    columns: tuple[str, ...]
    space: ActionSpace
    dt: float
    task: str
    fusion: Literal["concat", "cross_attention", "gated", "none"] = "none"
    device: str = "cpu"
    parameters: int = 0
    identity: str = ""


@dataclass(frozen=True, slots=True)
class ActionChunk:
    """Rows of actions that a policy proposes; nothing of it has been through the limits.

    Attributes:
        actions: (H, A) float32, in the units of the spec's space, gripper last.
        delta: (H, A) float32, what the model added to its starting point.
    """

    actions: NDArray[np.float32]
    delta: NDArray[np.float32]


AT_REST = RobotState(0.0, 0.0, 0.0, (0.0,) * 6, (0.0,) * 6)
"""A robot with its joints at zero, to run `act` once before there is one."""


class ActingPolicy(Protocol):
    """The fast half: acts on features, wherever they were computed."""

    @property
    def spec(self) -> PolicySpec:
        """What the whole policy takes and gives."""
        ...

    def act(
        self,
        features: Features,
        sensor: NDArray[np.float32] | None,
        robot: RobotState | None,
        previous: ActionChunk | None,
    ) -> ActionChunk:
        """Turn features and a sensor window (T, channels), oldest first, into a chunk."""
        ...

    def unpack(self, data: bytes) -> Features:
        """The features that `pack` made bytes of; PolicyError for anything else."""
        ...


class DualRatePolicy(ActingPolicy, Protocol):
    """A policy with a slow and a fast half. A chunk policy does everything in `act`."""

    def encode(self, images: Mapping[str, NDArray[np.uint8]], task: str) -> Features:
        """Turn one RGB image (height, width, 3) a view and an instruction into features."""
        ...

    def pack(self, features: Features) -> bytes:
        """The features as bytes, for another process with the same policy."""
        ...
