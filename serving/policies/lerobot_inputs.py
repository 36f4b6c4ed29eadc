"""A robot's observation as a LeRobot policy wants it: names, shapes, pictures as tensors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from serving.messages import Instructions, Observation, ServingError
from serving.pictures import pixels_of
from serving.seldom import Seldom

__all__ = ["Expected", "Fit", "Inputs", "expected", "fit", "tensors"]

_seldom = Seldom(logging.getLogger("serving.lerobot"))

_STATE, _IMAGES = "observation.state", "observation.images."
_FILLS_IN = frozenset({"smolvla", "pi0", "pi05", "pi0_fast", "xvla"})
"""Types that put blank pictures in the place of cameras that a robot lacks."""


@dataclass(frozen=True)
class Expected:
    """What a policy was trained on.

    Attributes:
        state: how many state values; None where it takes none.
        cameras: observation key → (channels, height, width).
        fills_in: whether it can do without some of the cameras.
    """

    state: int | None
    cameras: Mapping[str, tuple[int, int, int]]
    fills_in: bool = False


@dataclass(frozen=True)
class Fit:
    """How one robot's observations go into a policy.

    Attributes:
        cameras: the robot's camera → the policy's key; cameras that it does not use are left out.
        state: the policy's key of the state.
    """

    cameras: Mapping[str, str]
    state: str = _STATE


@dataclass(frozen=True)
class Inputs:
    """One observation as tensors with a batch dimension of one, and the task."""

    values: Mapping[str, torch.Tensor]
    task: str

    @property
    def shapes(self) -> tuple[Any, ...]:
        """What must be equal for two observations to be computed together."""
        return tuple((key, tuple(value.shape)) for key, value in sorted(self.values.items()))


def expected(config: Any) -> Expected:
    """What a LeRobot policy's configuration says of its inputs.

    Raises:
        ServingError: bad_policy for one that wants what no robot here sends.
    """
    if config.env_state_feature is not None:
        raise ServingError(
            "bad_policy", "the policy wants observation.environment_state, which robots cannot send"
        )
    state = config.robot_state_feature
    cameras: dict[str, tuple[int, int, int]] = {}
    for key, feature in config.image_features.items():
        if len(feature.shape) != 3:
            raise ServingError("bad_policy", f"the policy's {key} has the shape {feature.shape}")
        channels, height, width = map(int, feature.shape)
        cameras[key] = (channels, height, width)
    return Expected(
        None if state is None else int(state.shape[0]), cameras, config.type in _FILLS_IN
    )


def fit(wants: Expected, instructions: Instructions, saved_rename: Mapping[str, str]) -> Fit:
    """Match a robot's names to the policy's; the client's `rename`, or else the checkpoint's own.

    Raises:
        ServingError: bad_policy, with what the policy wants beside what the robot has.
    """
    rename = instructions.rename or saved_rename
    has = len(instructions.state_names)
    if wants.state is not None and has != wants.state:
        names = ", ".join(instructions.state_names) or "none"
        raise ServingError(
            "bad_policy",
            f"the policy was trained on {wants.state} state values and the robot has {has} "
            f"({names}): it is for another robot",
        )
    keys = {name: _renamed(name, rename) for name in instructions.cameras}
    if len(set(keys.values())) != len(keys):
        raise ServingError("bad_policy", f"two cameras are renamed alike: {dict(rename)}")
    used = {name: key for name, key in keys.items() if key in wants.cameras}
    missing = set(wants.cameras) - set(used.values())
    if missing and not (wants.fills_in and used):
        raise ServingError(
            "bad_policy",
            f"the policy wants the pictures {_listed(wants.cameras)} and the robot gives "
            f"{_listed(keys.values())}: name the cameras alike, or send a rename map",
        )
    for name, key in used.items():
        channels = instructions.cameras[name][2]
        if channels != wants.cameras[key][0]:
            raise ServingError(
                "bad_policy",
                f"camera {name} has {channels} channels, and {key} {wants.cameras[key][0]}",
            )
    if missing or len(used) < len(keys):
        unused = sorted(set(keys) - set(used))
        _seldom.log(logging.INFO, "cameras not used: %s; left blank: %s", unused, sorted(missing))
    return Fit(used, rename.get(_STATE, _STATE))


def _renamed(name: str, rename: Mapping[str, str]) -> str:
    """The policy's key for a camera; a map may leave out LeRobot's prefix on either side."""
    key = rename.get(_IMAGES + name, rename.get(name, name))
    return key if key.startswith("observation.") else _IMAGES + key


def _listed(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"


def tensors(wants: Expected, match: Fit, observation: Observation) -> Inputs:
    """The state as (1, S) float32, each picture as (1, C, H, W) float32 from 0 to 1.

    Pictures are scaled to the policy's size as 8-bit values and divided by 255 after that, which is
    how LeRobot's server does it: the rounding is part of the result.

    Raises:
        ServingError: bad_message where a picture or state values are missing.
    """
    values: dict[str, torch.Tensor] = {}
    if wants.state is not None:
        if observation.state.shape[0] != wants.state:
            raise ServingError(
                "bad_message",
                f"{wants.state} state values expected, {observation.state.shape[0]} came",
            )
        values[match.state] = torch.tensor(np.asarray(observation.state, np.float32))[None]
    for name, key in match.cameras.items():
        picture = observation.pictures.get(name)
        if picture is None:
            raise ServingError("bad_message", f"the observation has no picture of camera {name}")
        values[key] = _scaled(pixels_of(name, picture), wants.cameras[key])
    return Inputs(values, observation.task)


def _scaled(pixels: NDArray[np.uint8], shape: tuple[int, int, int]) -> torch.Tensor:
    channels, height, width = shape
    if pixels.shape[2] != channels:
        raise ServingError("bad_message", f"a picture of {channels} channels expected")
    image = torch.tensor(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    if image.shape[2:] != (height, width):
        image = torch.nn.functional.interpolate(
            image, size=(height, width), mode="bilinear", align_corners=False
        )
    return (image.to(torch.float32) / 255).contiguous()
