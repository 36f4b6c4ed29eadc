"""From an environment's observation to what a policy is sent: places, names, checks.

A map says which place of an observation is what at the policy, as LeRobot's `features_map` does:
`pixels/top: observation.images.top`, `agent_pos: observation.state`. Places are keys with slashes
between; `.` is the whole observation, `render` what the environment renders. At the policy there
are `observation.images.NAME` (or LeRobot's `observation.image`), `observation.state` (several
places are joined in their order) and `observation.sensor`, this project's window of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.program import OptionError
from serving.body import BodyError
from serving.messages import MAX_CAMERAS, MAX_PICTURE_SIDE, MAX_VALUES, MAX_WINDOW

__all__ = ["FeatureMap", "Viewed", "default_map"]

_IMAGES, _IMAGE = "observation.images.", "observation.image"
_STATE, _SENSOR = "observation.state", "observation.sensor"
_WHOLE, _RENDER = ".", "render"
_USUAL_CAMERAS = {"agentview_image": "image", "robot0_eye_in_hand_image": "image2"}
_PICTURE_AXES = 3


@dataclass(frozen=True, slots=True)
class Viewed:
    """One observation, checked, and nobody else's.

    Attributes:
        state: (S,) float64.
        pictures: camera → (height, width, 3) uint8 RGB.
        sensor: (T, channels) float32, oldest first, or None.
    """

    state: NDArray[np.float64]
    pictures: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    sensor: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class FeatureMap:
    """Where in an observation things are.

    Attributes:
        pictures: camera → place.
        state: places, in order.
        sensor: place, or empty.
        rename: observation keys of the client → those of the policy, where they differ.
    """

    pictures: Mapping[str, str]
    state: tuple[str, ...]
    sensor: str = ""
    rename: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, features: Mapping[str, str]) -> FeatureMap:
        """Read a map of places to the policy's names; OptionError for one that makes no sense."""
        pictures: dict[str, str] = {}
        rename: dict[str, str] = {}
        state: list[str] = []
        sensor = ""
        for place, key in features.items():
            camera = ""
            if key == _STATE:
                state.append(place)
            elif key == _SENSOR and not sensor:
                sensor = place
            elif key.startswith(_IMAGES):
                camera = key.removeprefix(_IMAGES)
            elif key == _IMAGE:  # without a name, as policies of one camera have it
                camera = "image"
                rename[_IMAGES + camera] = key
            else:
                raise OptionError(
                    f"--env.features_map: {key!r} is none of {_IMAGES}NAME, {_IMAGE}, {_STATE}, "
                    f"{_SENSOR} (once)"
                )
            if camera in pictures:
                raise OptionError(f"--env.features_map: two places are {key}")
            if camera:
                pictures[camera] = place
        if len(pictures) > MAX_CAMERAS:
            raise OptionError(f"--env.features_map: over {MAX_CAMERAS} cameras")
        return cls(pictures, tuple(state), sensor, rename)

    def view(self, observation: Any, render: Callable[[], Any]) -> Viewed:
        """Take out what is wanted; BodyError, one line, for what is missing or is no such thing."""
        pictures = {
            camera: _picture(place, _at(place, observation, render))
            for camera, place in self.pictures.items()
        }
        parts = [_values(place, _at(place, observation, render)) for place in self.state]
        state = np.concatenate(parts) if parts else np.zeros(0)
        if len(state) > MAX_VALUES:
            raise BodyError(f"a state of {len(state)} values, {MAX_VALUES} is the most")
        sensor = None
        if self.sensor:
            sensor = _window(self.sensor, _at(self.sensor, observation, render))
        return Viewed(state, pictures, sensor)


def default_map(observation: Any) -> dict[str, str]:
    """The map for an environment that nothing is known of, by its first observation.

    `pixels` are pictures, `agent_pos` the state, `sensor` a window of samples; an observation that
    is an array is a picture or the state itself.
    """
    if not isinstance(observation, Mapping):
        pixels = isinstance(observation, np.ndarray) and observation.dtype == np.uint8
        return {_WHOLE: _IMAGE if pixels and observation.ndim == _PICTURE_AXES else _STATE}
    found: dict[str, str] = {}
    pixels = observation.get("pixels")
    if isinstance(pixels, Mapping):
        for name in pixels:
            found[f"pixels/{name}"] = _IMAGES + _USUAL_CAMERAS.get(str(name), str(name))
    elif pixels is not None:
        found["pixels"] = _IMAGE
    for name in ("agent_pos", "state", "observation"):
        if name in observation:
            found[name] = _STATE
            break
    if "sensor" in observation:
        found["sensor"] = _SENSOR
    return found


def _at(place: str, observation: Any, render: Callable[[], Any]) -> Any:
    if place == _WHOLE:
        return observation
    if place == _RENDER and not (isinstance(observation, Mapping) and place in observation):
        return render()
    value = observation
    for key in place.split("/"):
        if not isinstance(value, Mapping) or key not in value:
            has = ", ".join(map(str, value)) if isinstance(value, Mapping) else "no names"
            raise BodyError(f"the observation has no {place!r}: at {key!r} there are {has[:200]}")
        value = value[key]
    return value


def _picture(place: str, value: Any) -> NDArray[np.uint8]:
    shape: tuple[int, ...] = getattr(value, "shape", ())
    sides = len(shape) == _PICTURE_AXES and all(1 <= side <= MAX_PICTURE_SIDE for side in shape)
    if not sides or shape[2] != 3 or value.dtype != np.uint8:
        kind = getattr(value, "dtype", type(value).__name__)
        raise BodyError(
            f"{place!r} is no picture (height, width, 3) of uint8, but {shape} of {kind}"
        )
    # A copy: who sends it does so later, and the environment may draw into the same memory.
    return np.array(value, order="C")


def _values(place: str, value: Any) -> NDArray[np.float64]:
    try:
        values = np.array(value, np.float64).reshape(-1)
    except (TypeError, ValueError):
        raise BodyError(f"{place!r} is no row of numbers") from None
    if not np.isfinite(values).all():
        raise BodyError(f"{place!r} is not finite")
    return values


def _window(place: str, value: Any) -> NDArray[np.float32]:
    try:
        rows = np.array(value, np.float32)
    except (TypeError, ValueError):
        rows = np.zeros(0, np.float32)
    samples, channels = MAX_WINDOW
    if rows.ndim != 2 or not (1 <= rows.shape[0] <= samples and 1 <= rows.shape[1] <= channels):
        raise BodyError(f"{place!r} is no window (samples, channels), but {rows.shape}")
    if not np.isfinite(rows).all():
        raise BodyError(f"{place!r} is not finite")
    return rows
