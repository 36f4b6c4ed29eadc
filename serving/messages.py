"""What a client and a policy server say to each other, whatever the transport and the encoding.

Plain frozen values. Who decodes bytes into them checks everything (`check_…` here); who holds one
may use it as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_CAMERAS", "MAX_MESSAGE", "MAX_PICTURE_SIDE", "MAX_ROWS", "MAX_TEXT"]
__all__ += ["MAX_TIMESTEP", "MAX_VALUES", "MAX_WINDOW"]
__all__ += ["BadMessage", "Chunk", "FeatureReply", "Instructions", "Observation", "Picture"]
__all__ += ["Refusal", "RefusalKind", "Reply", "ServingError"]

MAX_MESSAGE = 64 << 20
"""Bytes of one message: sixteen pictures of 1280x720 and a margin."""
MAX_CAMERAS = 16
MAX_VALUES = 256
"""Values in a robot's state or an action."""
MAX_ROWS = 4096
"""Rows of an action chunk."""
MAX_TEXT = 4096
"""Characters of an instruction or a path."""
MAX_TIMESTEP = 1 << 53
MAX_PICTURE_SIDE = 8192
MAX_WINDOW = (1 << 16, 4096)
"""Samples and channels of a sensor window."""

RefusalKind: TypeAlias = Literal[
    "bad_message", "no_session", "bad_policy", "not_found", "busy", "failed", "timed_out",
    "not_allowed",
]  # fmt: skip
"""bad_message: cannot be read or makes no sense; no_session: say Ready and give instructions first;
bad_policy: unknown type, features that do not fit; not_found: no such path; busy: too many clients
or too much waiting; failed: the model raised; timed_out: the model did not answer in time;
not_allowed: wrong token or key."""


class ServingError(Exception):
    """A request that cannot be served. The message is one line that says what to do.

    Attributes:
        kind: what sort of refusal; the transports turn it into a status and back.
    """

    def __init__(self, kind: RefusalKind, message: str) -> None:
        super().__init__(message)
        self.kind: RefusalKind = kind


class BadMessage(ServingError):
    """Bytes that are not a message of ours or of LeRobot's; counted, never executed."""

    def __init__(self, message: str) -> None:
        super().__init__("bad_message", message)


@dataclass(frozen=True, slots=True)
class Instructions:
    """What a client asks for before it sends observations.

    Attributes:
        policy_type: `act`, `smolvla`, `qwen_vla`, `builtin`, …
        path: where the weights are, or a hub's name of them; as the server sees it.
        device: `cpu`, `cuda`, `cuda:1`, `mps`, `auto`.
        actions_per_chunk: the most rows of a chunk that are wanted.
        state_names: names of the robot's state values in their order, e.g. `shoulder_pan.pos`.
        cameras: name → (height, width, channels) of the pictures that will come.
        rename: observation keys of the robot → those of the policy (LeRobot's `rename_map`).
        fps: the client's control rate; 0.0 where it did not say (LeRobot's clients do not).
    """

    policy_type: str
    path: str
    device: str = "cpu"
    actions_per_chunk: int = 50
    state_names: tuple[str, ...] = ()
    cameras: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)
    fps: float = 0.0

    def __post_init__(self) -> None:
        """BadMessage for what makes no sense."""
        texts = (self.policy_type, self.path, self.device, *self.state_names, *self.cameras)
        texts += (*self.rename, *self.rename.values())
        if not all(isinstance(text, str) and len(text) <= MAX_TEXT for text in texts):
            raise BadMessage(f"a text is longer than {MAX_TEXT} characters, or none")
        if not self.policy_type:
            raise BadMessage("no policy type is given")
        if not 1 <= self.actions_per_chunk <= MAX_ROWS:
            raise BadMessage(f"actions_per_chunk must be from 1 to {MAX_ROWS}")
        if len(self.state_names) > MAX_VALUES or len(self.cameras) > MAX_CAMERAS:
            raise BadMessage(f"at most {MAX_VALUES} state values and {MAX_CAMERAS} cameras")
        if len(set(self.state_names)) != len(self.state_names):
            raise BadMessage("two state values have one name")
        for name, shape in self.cameras.items():
            if len(shape) != 3 or not all(1 <= side <= MAX_PICTURE_SIDE for side in shape):
                raise BadMessage(f"camera {name}: (height, width, channels) expected, not {shape}")
        if not 0.0 <= self.fps <= 10_000.0:
            raise BadMessage("fps must be from 0 to 10000")


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture: pixels, or the JPEG that they came as.

    Attributes:
        pixels: (height, width, 3) uint8, RGB; None where there is a JPEG.
        jpeg: a baseline JPEG; None where there are pixels.
    """

    pixels: NDArray[np.uint8] | None = None
    jpeg: bytes | memoryview | None = None

    def __post_init__(self) -> None:
        """BadMessage unless there is exactly one of the two, of a size that can be."""
        if (self.pixels is None) == (self.jpeg is None):
            raise BadMessage("a picture is pixels or a JPEG")
        if self.pixels is not None:
            if self.pixels.dtype != np.uint8 or self.pixels.ndim != 3:
                raise BadMessage("a picture is (height, width, channels) of uint8")
            if not all(1 <= side <= MAX_PICTURE_SIDE for side in self.pixels.shape):
                raise BadMessage(f"a picture of {self.pixels.shape} cannot be")


@dataclass(frozen=True, slots=True)
class Observation:
    """What a robot saw and felt at one control step.

    Attributes:
        timestep: the control step; the first row of the answer is for this step.
        timestamp: UNIX seconds in the client's clock; given back with the answer, not compared.
        must_go: predict from this whatever was predicted before.
        state: (S,) float32 in the order of the instructions' `state_names`.
        pictures: camera → picture. Empty for a fast observation of a dual-rate session, which is
            acted on with the features that the server keeps.
        task: the instruction in words.
        sensor: (T, channels) float32, oldest sample first, or None.
        wants: `actions`, or `features` where the client runs the fast half itself.
        speeds: (S,) float32, how much each state value changes a second; None where not known.
    """

    timestep: int
    timestamp: float
    must_go: bool
    state: NDArray[np.float32]
    pictures: Mapping[str, Picture] = field(default_factory=dict)
    task: str = ""
    sensor: NDArray[np.float32] | None = None
    wants: Literal["actions", "features"] = "actions"
    speeds: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        """BadMessage for what makes no sense."""
        if not 0 <= self.timestep <= MAX_TIMESTEP or not math.isfinite(self.timestamp):
            raise BadMessage("timestep and timestamp must be sound numbers")
        if self.state.ndim != 1 or self.state.shape[0] > MAX_VALUES:
            raise BadMessage(f"the state is a row of at most {MAX_VALUES} values")
        if not np.isfinite(self.state).all():
            raise BadMessage("the state is not finite")
        if self.speeds is not None and (
            self.speeds.shape != self.state.shape or not np.isfinite(self.speeds).all()
        ):
            raise BadMessage("speeds are finite, one for each state value")
        if len(self.pictures) > MAX_CAMERAS or len(self.task) > MAX_TEXT:
            raise BadMessage("too many pictures, or too long a task")
        if self.wants not in ("actions", "features"):
            raise BadMessage("wants is actions or features")
        if self.sensor is not None:
            rows, channels = MAX_WINDOW
            if self.sensor.ndim != 2 or not (
                1 <= self.sensor.shape[0] <= rows and 1 <= self.sensor.shape[1] <= channels
            ):
                raise BadMessage("the sensor window is (samples, channels)")
            if not np.isfinite(self.sensor).all():
                raise BadMessage("the sensor window is not finite")


@dataclass(frozen=True, slots=True)
class Chunk:
    """An answer: rows of actions, the first for the observation's own step.

    Attributes:
        timestep: the step of row 0, that of the observation.
        timestamp: the observation's own, UNIX seconds in the client's clock.
        actions: (H, A) float32 as the policy gives them; no limit was applied.
        names: names of the A columns; empty where the server does not know them.
        dt: seconds between two rows; 0.0 where the server does not say.
        inference_s: how long the prediction took.
        features_age_s: dual-rate: age of the features that were used; 0.0 otherwise.
    """

    timestep: int
    timestamp: float
    actions: NDArray[np.float32]
    names: tuple[str, ...] = ()
    dt: float = 0.0
    inference_s: float = 0.0
    features_age_s: float = 0.0

    def __post_init__(self) -> None:
        """BadMessage for what makes no sense."""
        if not 0 <= self.timestep <= MAX_TIMESTEP or not math.isfinite(self.timestamp):
            raise BadMessage("timestep and timestamp must be sound numbers")
        shape = self.actions.shape
        if len(shape) != 2 or not (1 <= shape[0] <= MAX_ROWS and 1 <= shape[1] <= MAX_VALUES):
            raise BadMessage(f"a chunk of {shape} cannot be")
        if not np.isfinite(self.actions).all():
            raise BadMessage("the actions are not finite")
        if self.names and len(self.names) != shape[1]:
            raise BadMessage("there is not one name an action value")


@dataclass(frozen=True, slots=True)
class FeatureReply:
    """Features for a client that runs the fast half itself.

    Attributes:
        timestep: the step of the observation that they were computed from.
        timestamp: that observation's own.
        packed: what the policy's `pack` gave.
        inference_s: how long it took.
        identity: of the checkpoint (`PolicySpec.identity`); another's features mean nothing.
    """

    timestep: int
    timestamp: float
    packed: bytes
    inference_s: float = 0.0
    identity: str = ""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that says why there is none."""

    kind: RefusalKind
    message: str


Reply: TypeAlias = Chunk | FeatureReply | Refusal
