"""Configuration of a dual-rate Qwen2.5-VL policy: frozen dataclasses and a strict JSON reader."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from common.wire import ActionSpace
from policies.base import PolicyError

__all__ = [
    "DEFAULT_BACKBONE",
    "FORMAT",
    "JOINTS",
    "VERSION",
    "ActionConfig",
    "BackboneConfig",
    "ExpertConfig",
    "Fusion",
    "ImageConfig",
    "PolicyConfig",
    "RobotConfig",
    "SensorConfig",
    "default_columns",
    "from_json",
    "to_json",
]

JOINTS = 6

Fusion = Literal["concat", "cross_attention", "gated", "none"]

FORMAT = "dualrate-policy"
VERSION = 1
DEFAULT_BACKBONE = "Qwen/Qwen2.5-VL-3B-Instruct"

NEAR_MM = 0.5
"""Up to here a distance from the goal counts in full, see `RobotConfig`."""

# Nothing trained is near these; a hostile file must not make us build a billion layers.
MAX_LAYERS = 128
MAX_WIDTH = 1 << 17
MAX_PIXELS = 1 << 24

# Not in the files of older versions of this program.
_ADDED = {"robot"}

Config = TypeVar("Config")


def _check_range(what: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise PolicyError(f"{what} must be between {low} and {high}, not {value}")


def _check_heads(part: str, width: int, heads: int) -> None:
    if heads < 1 or width % heads:
        raise PolicyError(f"{part}: a width of {width} cannot be divided among {heads} heads")


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """How large a picture is when the backbone sees it.

    Attributes:
        min_pixels: smallest area in pixels.
        max_pixels: largest area in pixels.
        rounding: `library` is the rule of transformers' Qwen2-VL processor, which rounds down when
            the area is too large: 640x360 at 230,400 pixels becomes 616x336. `nearest` keeps the
            aspect ratio and rounds each side to the nearest multiple: 644x364, 299 tokens, which
            is what the existing checkpoints were trained on.
    """

    min_pixels: int = 230_400
    max_pixels: int = 230_400
    rounding: Literal["library", "nearest"] = "library"

    def __post_init__(self) -> None:
        """Check the values; raises PolicyError."""
        _check_range("image.min_pixels", self.min_pixels, 1, MAX_PIXELS)
        _check_range("image.max_pixels", self.max_pixels, self.min_pixels, MAX_PIXELS)


@dataclass(frozen=True, slots=True)
class SensorConfig:
    """Sizes of the sensor encoder.

    Attributes:
        window: samples in the window it was trained on; another length is resampled to it.
        channels: values in a sample: force, then the A-scan; then the robot's joints, if any.
        conv: channels out of each convolution.
        layers: transformer encoder layers.
        heads: attention heads.
        feedforward: width of their feed-forward part.
        features: values in the feature it gives.
    """

    window: int = 65
    channels: int = 1026
    conv: tuple[int, ...] = (512, 1024, 1024, 1024)
    layers: int = 2
    heads: int = 8
    feedforward: int = 4096
    features: int = 3072

    def __post_init__(self) -> None:
        """Check the values; raises PolicyError."""
        _check_range("sensor.window", self.window, 1, 1 << 14)
        _check_range("sensor.conv (number of layers)", len(self.conv), 1, 16)
        _check_range("sensor.layers", self.layers, 1, MAX_LAYERS)
        for name in ("channels", "feedforward", "features"):
            _check_range(f"sensor.{name}", getattr(self, name), 1, MAX_WIDTH)
        for width in self.conv:
            _check_range("sensor.conv", width, 1, MAX_WIDTH)
        _check_heads("sensor", self.conv[-1], self.heads)


@dataclass(frozen=True, slots=True)
class ExpertConfig:
    """Sizes of the action expert.

    Attributes:
        fusion: how the backbone's features and the sensor feature become one memory token.
        vl_features: values in a feature of the backbone.
        hidden: width of the decoder.
        layers: transformer decoder layers.
        heads: attention heads, of the decoder and of the cross-attention fusion.
        feedforward: width of their feed-forward part.
        rows: rows (H) of a chunk.
    """

    fusion: Fusion = "concat"
    vl_features: int = 2048
    hidden: int = 1024
    layers: int = 4
    heads: int = 8
    feedforward: int = 4096
    rows: int = 8

    def __post_init__(self) -> None:
        """Check the values; raises PolicyError."""
        for name in ("vl_features", "hidden", "feedforward"):
            _check_range(f"expert.{name}", getattr(self, name), 1, MAX_WIDTH)
        _check_range("expert.layers", self.layers, 1, MAX_LAYERS)
        _check_range("expert.rows", self.rows, 1, 1024)
        _check_heads("expert", self.hidden, self.heads)


@dataclass(frozen=True, slots=True)
class ActionConfig:
    """What the columns and rows of a chunk mean.

    Attributes:
        space: meaning of the joint columns.
        dt: seconds between two rows.
        columns: names of the A columns.
    """

    space: ActionSpace = "joint_delta"
    dt: float = 0.1
    columns: tuple[str, ...] = ("J1", "J2", "J3", "J4", "J5", "J6", "gripper")

    def __post_init__(self) -> None:
        """Check the values; raises PolicyError."""
        if not (math.isfinite(self.dt) and 0 < self.dt <= 60):
            raise PolicyError(f"action.dt must be between 0 and 60 seconds, not {self.dt}")
        _check_range("action.columns (number)", len(self.columns), 1, 1024)


@dataclass(frozen=True, slots=True)
class RobotConfig:
    """What the fast half is told of the robot, where it is told anything.

    The joint angles, less `center_deg`, divided by `span_deg`, are six more values of each sample
    of the sensor window, and the joint speeds, divided by `speed_deg_s`, another six: zeros where
    they are not known. The rows begin at the angles: `actions = z + delta` with z the joint angles
    in every row, instead of zeros.

    With `tool_mm` the features are also read as joint angles, where the episode is to end, and six
    more values say where the tool's tip is, and where it points, as seen from there: asinh of
    millimetres divided by `NEAR_MM`. So tenths count near the end, and tens do far from it. Angles
    are taken to be those of a Meca500, see `common.kinematics`.

    Attributes:
        center_deg: joint angles that become zeros.
        span_deg: differences from these that become ones.
        speed_deg_s: joint speeds that become ones; empty where no speeds are told.
        tool_mm: (3,) the tool's tip in the flange's frame; empty where no goal is read out of the
            features.
    """

    center_deg: tuple[float, ...]
    span_deg: tuple[float, ...]
    speed_deg_s: tuple[float, ...] = ()
    tool_mm: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check the values; raises PolicyError."""
        given = {"center_deg": self.center_deg, "span_deg": self.span_deg}
        given |= {"speed_deg_s": self.speed_deg_s} if self.speed_deg_s else {}
        for name, values in given.items():
            if len(values) != JOINTS or not all(math.isfinite(value) for value in values):
                raise PolicyError(f"robot.{name} must be {JOINTS} numbers, one a joint")
            if name != "center_deg" and not all(1e-3 <= value <= 1e6 for value in values):
                raise PolicyError(f"robot.{name} must be within 0.001 and 1000000")

        tool = self.tool_mm
        if tool and (len(tool) != 3 or not all(abs(value) <= 1e4 for value in tool)):
            raise PolicyError("robot.tool_mm must be 3 numbers within 10000, or empty")

    @property
    def reads_goal(self) -> bool:
        """Whether a goal is read out of the features."""
        return bool(self.tool_mm)

    @property
    def channels(self) -> int:
        """How many values of a sample tell of the robot."""
        return JOINTS * (1 + bool(self.speed_deg_s) + self.reads_goal)


@dataclass(frozen=True, slots=True)
class BackboneConfig:
    """Where the vision-language backbone comes from.

    Attributes:
        inside: its weights and tokenizer are in this checkpoint.
        path: Hugging Face id or folder, where it is not inside.
        config: the `Qwen2_5_VLConfig` as a dict, where it is inside.
    """

    inside: bool = False
    path: str | None = None
    config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check the values; raises PolicyError."""
        if self.inside and self.config is None:
            raise PolicyError("backbone.config is missing although backbone.inside is true")
        if not self.inside and self.path is None:
            raise PolicyError("backbone.path must name a folder or id when inside is false")


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """Everything about a policy but its weights; the defaults are those of existing `.pt` files.

    Attributes:
        name: for people.
        views: camera views in the order of the prompt.
        task: the instruction to use when the user gives none.
        image, sensor, expert, action, backbone: see their classes; no sensor with fusion `none`.
        robot: see its class; None where the fast half is told nothing of the robot.
    """

    name: str = "qwen_vla"
    views: tuple[str, ...] = ("View1", "View2", "View3", "View4", "View5")
    task: str = "Perform needle insertion into the eye"
    image: ImageConfig = ImageConfig(rounding="nearest")
    sensor: SensorConfig | None = SensorConfig()
    expert: ExpertConfig = ExpertConfig()
    action: ActionConfig = ActionConfig()
    backbone: BackboneConfig = BackboneConfig(path=DEFAULT_BACKBONE)
    robot: RobotConfig | None = None

    def __post_init__(self) -> None:
        """Check the values; raises PolicyError."""
        if not self.views or len(self.views) > 64 or len(set(self.views)) != len(self.views):
            raise PolicyError("views must be 1 to 64 different names")
        if self.expert.fusion != "none" and self.sensor is None:
            raise PolicyError(f"fusion {self.expert.fusion} needs a sensor section")
        if self.expert.fusion == "none" and self.sensor is not None:
            raise PolicyError("fusion none takes no sensor: the sensor section must be null")
        if self.robot is not None:
            if self.sensor is None or self.sensor.channels <= self.robot.channels:
                raise PolicyError("the robot's joints are part of the sensor window: there is none")
            if self.action.space != "joint_position" or len(self.action.columns) < JOINTS:
                raise PolicyError("rows that begin at the robot's joints are joint positions")

    @property
    def sensor_channels(self) -> int:
        """Values in a sample of the sensor itself; 0 where there is none."""
        if self.sensor is None:
            return 0
        return self.sensor.channels - (self.robot.channels if self.robot else 0)


def default_columns(count: int) -> tuple[str, ...]:
    """Names for `count` columns: joints, gripper last, where a checkpoint names none."""
    return (*(f"J{i + 1}" for i in range(count - 1)), "gripper")


def to_json(config: PolicyConfig) -> dict[str, Any]:
    """The content of `config.json`."""
    return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(config)}


def from_json(data: object) -> PolicyConfig:
    """Read the content of `config.json`.

    Raises:
        PolicyError: another format or version, a key missing, unknown, or of the wrong type.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise PolicyError(f'config.json is not one of a policy: "format" must be "{FORMAT}"')
    if data.get("version") != VERSION:
        raise PolicyError(
            f"config.json has version {data.get('version')!r}, this program reads version "
            f"{VERSION}; convert the checkpoint again or update the program"
        )
    content = {key: value for key, value in data.items() if key not in ("format", "version")}
    return _read(PolicyConfig, content, "config.json")


def _read(kind: type[Config], data: Mapping[str, Any], where: str) -> Config:
    hints = typing.get_type_hints(kind)
    missing = sorted(set(hints) - set(data) - (_ADDED if kind is PolicyConfig else set()))
    unknown = sorted(str(key) for key in set(data) - set(hints))
    if missing or unknown:
        raise PolicyError(f"{where}: missing keys {missing}, unknown keys {unknown}")
    given = {key: hint for key, hint in hints.items() if key in data}
    return kind(**{key: _value(hint, data[key], f"{where}: {key}") for key, hint in given.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        hint = next(arg for arg in args if arg is not type(None))
        return _value(hint, value, where)
    if origin is Literal:
        if value in args:
            return value
        raise PolicyError(f"{where} must be one of {list(args)}, not {value!r}")
    if origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_value(args[0], item, where) for item in value)
        raise PolicyError(f"{where} must be a list, not {value!r}")
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, dict):
            return _read(hint, value, where)
        raise PolicyError(f"{where} must be an object, not {value!r}")
    if hint is float and type(value) is int:
        return float(value)
    expected = origin or hint
    if type(value) is not expected:  # not isinstance: true is no number here
        raise PolicyError(f"{where} must be of type {expected.__name__}, not {value!r:.80}")
    return value
