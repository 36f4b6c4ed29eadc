"""The messages of LeRobot's asynchronous inference (0.4 to 0.6), both ways.

A client sends a `RemotePolicyConfig` and then `TimedObservation`s; the server answers a list of
`TimedAction`s. LeRobot pickles all three; here they are read and written without `pickle`,
without torch and without LeRobot. Everything raises BadMessage and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.messages import (
    MAX_ROWS,
    MAX_TEXT,
    MAX_TIMESTEP,
    MAX_VALUES,
    BadMessage,
    Chunk,
    Instructions,
    Observation,
    Picture,
)  # fmt: skip
from serving.pickles.reader import load
from serving.pickles.values import Bounds, Record, Tensor, excerpt
from serving.pickles.writer import dump

__all__ = ["decode_actions", "decode_observation", "decode_setup"]
__all__ += ["encode_actions", "encode_observation", "encode_setup"]

_STATE = "observation.state"
_IMAGES = "observation.images."
_SETUP = Bounds(size=1 << 20)
_OBSERVATION = Bounds()
_ACTIONS = Bounds(opcodes=200_000, nodes=50_000)


def decode_setup(data: bytes) -> Instructions:
    """What a client asks for, from its `RemotePolicyConfig`.

    `lerobot_features` gives the names of the state values and the shapes of the cameras, in
    its order; `fps` is 0.0, since LeRobot's clients do not say it.
    """
    fields = _fields(load(data, _SETUP), "RemotePolicyConfig")
    features = fields.get("lerobot_features")
    if not isinstance(features, dict):
        raise BadMessage("lerobot_features is not a dictionary")
    rename = fields.get("rename_map", {})
    if not isinstance(rename, dict) or not all(isinstance(to, str) for to in rename.values()):
        raise BadMessage("rename_map is not a dictionary of texts")
    policy_type, path = _text(fields, "policy_type"), _text(fields, "pretrained_name_or_path")
    device = _text(fields, "device", "cpu")
    for name in (policy_type, path, device, *features, *rename, *rename.values()):
        _check_printable(name)
    return Instructions(
        policy_type=policy_type,
        path=path,
        device=device,
        actions_per_chunk=_integer(fields, "actions_per_chunk"),
        state_names=_state_names(features),
        cameras={
            key.removeprefix(_IMAGES): _picture_shape(key, feature)
            for key, feature in features.items()
            if key.startswith(_IMAGES)
        },
        rename=rename,
    )


def encode_setup(instructions: Instructions) -> bytes:
    """The same for a stock server: features as LeRobot's own client describes its robot."""
    features: dict[str, Any] = {}
    names = instructions.state_names
    if names:
        features[_STATE] = {"dtype": "float32", "shape": (len(names),), "names": list(names)}
    for camera, shape in instructions.cameras.items():
        features[_IMAGES + camera] = {
            "dtype": "image",
            "shape": tuple(shape),
            "names": ["height", "width", "channels"],
            "info": {"is_depth_map": shape[2] == 1},
        }
    fields = {
        "policy_type": instructions.policy_type,
        "pretrained_name_or_path": instructions.path,
        "lerobot_features": features,
        "actions_per_chunk": instructions.actions_per_chunk,
        "device": instructions.device,
        "rename_map": dict(instructions.rename),
    }
    return _dumped(Record("RemotePolicyConfig", fields))


def decode_observation(data: bytes, instructions: Instructions) -> Observation:
    """What a robot saw and felt, from a `TimedObservation`.

    The state's values and the pictures are looked up by the names that the instructions give;
    what else the robot says is left out. The pictures refer to `data` and are read-only.
    """
    fields = _fields(load(data, _OBSERVATION), "TimedObservation")
    raw = fields.get("observation")
    if not isinstance(raw, dict):
        raise BadMessage("the observation is not a dictionary")
    must_go = fields.get("must_go", False)
    if not isinstance(must_go, bool | np.bool_):
        raise BadMessage("must_go is true or false")
    wanted = (*instructions.state_names, *instructions.cameras)
    missing = [name for name in wanted if name not in raw]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BadMessage(f"the observation lacks {excerpt(missing[0])}{more}, as was announced")
    return Observation(
        timestep=_integer(fields, "timestep"),
        timestamp=_number(fields, "timestamp"),
        must_go=bool(must_go),
        state=_float32([_number(raw, name) for name in instructions.state_names]),
        pictures={name: _picture(raw, name) for name in instructions.cameras},
        task=_text(raw, "task", ""),
    )


def encode_observation(observation: Observation, instructions: Instructions) -> bytes:
    """The same for a stock server, which needs a picture of every camera that was announced."""
    names = instructions.state_names
    if len(names) != len(observation.state):
        raise BadMessage(f"a state of {len(observation.state)} values; {len(names)} were announced")
    if observation.wants != "actions":
        raise BadMessage("LeRobot's server answers with actions only")
    raw: dict[str, Any] = dict(zip(names, observation.state.tolist(), strict=True))
    for camera in instructions.cameras:
        if camera not in observation.pictures:
            raise BadMessage(f"no picture of {excerpt(camera)}; LeRobot's server needs every one")
        raw[camera] = _pixels(camera, observation.pictures[camera])
    raw["task"] = observation.task
    fields = {
        "timestamp": float(observation.timestamp),
        "timestep": int(observation.timestep),
        "observation": raw,
        "must_go": bool(observation.must_go),
    }
    return _dumped(Record("TimedObservation", fields))


def encode_actions(chunk: Chunk, dt: float) -> bytes:
    """The answer to a stock client: a list of `TimedAction`, one a row, `dt` seconds apart."""
    if not (math.isfinite(dt) and dt >= 0.0):
        raise BadMessage("dt must be a number of seconds")
    rows = np.ascontiguousarray(chunk.actions, np.float32)
    return _dumped(
        [
            Record(
                "TimedAction",
                {
                    "timestamp": float(chunk.timestamp + i * dt),
                    "timestep": int(chunk.timestep + i),
                    "action": Tensor(rows, i),
                },
            )
            for i in range(len(rows))
        ]
    )


def decode_actions(data: bytes) -> Chunk:
    """The answer of a stock server; `dt` from its times, 0.0 for a single row."""
    actions = load(data, _ACTIONS)
    if not isinstance(actions, list) or not 1 <= len(actions) <= MAX_ROWS:
        raise BadMessage(f"the answer is not a list of 1 to {MAX_ROWS} actions")
    rows = [_fields(action, "TimedAction") for action in actions]
    steps = [_integer(row, "timestep") for row in rows]
    if steps != list(range(steps[0], steps[0] + len(steps))):
        raise BadMessage("the actions' timesteps do not follow one another")
    times = [_number(row, "timestamp") for row in rows]
    return Chunk(
        timestep=steps[0],
        timestamp=times[0],
        actions=_action_rows(row.get("action") for row in rows),
        dt=max(0.0, (times[-1] - times[0]) / (len(times) - 1)) if len(times) > 1 else 0.0,
    )


# Fields, each checked.


def _fields(value: Any, kind: str) -> Mapping[str, Any]:
    if not isinstance(value, Record) or value.kind != kind:
        held = f"a {value.kind}" if isinstance(value, Record) else excerpt(value)
        raise BadMessage(f"a {kind} was expected, and {held} came")
    return value.fields or {}


def _text(fields: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = fields.get(name, default)
    if type(value) is not str or len(value) > MAX_TEXT:
        raise BadMessage(f"{name} is not a text of at most {MAX_TEXT} characters")
    return value


def _check_printable(name: str) -> None:
    """Names end up in logs and in messages: nothing in them may move a terminal's cursor."""
    if not name.isprintable():
        raise BadMessage(f"the name {excerpt(name)} holds characters that cannot be printed")


def _integer(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise BadMessage(f"{name} is {excerpt(value)}, not a whole number")
    if not 0 <= value <= MAX_TIMESTEP:
        raise BadMessage(f"{name} is from 0 to {MAX_TIMESTEP}, not {excerpt(int(value))}")
    return int(value)


def _number(fields: Mapping[str, Any], name: str) -> float:
    value = fields.get(name)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        raise BadMessage(f"{excerpt(name)} is {excerpt(value)}, not a number")
    number = float(value)  # an integer of the reader has at most sixteen bytes
    if not math.isfinite(number):
        raise BadMessage(f"{excerpt(name)} is not a finite number")
    return number


def _float32(values: list[float]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # becomes infinite, and is refused as such
        return np.array(values, np.float64).astype(np.float32)


def _state_names(features: dict[str, Any]) -> tuple[str, ...]:
    feature = features.get(_STATE)
    if feature is None:
        return ()
    names = feature.get("names") if isinstance(feature, dict) else None
    if not isinstance(names, list | tuple) or not all(type(name) is str for name in names):
        raise BadMessage(f"{_STATE} does not name its values")
    if len(names) > MAX_VALUES:
        raise BadMessage(f"{_STATE} has {len(names)} values; at most {MAX_VALUES} are taken")
    if (shape := feature.get("shape")) is not None and _sides(shape, _STATE) != (len(names),):
        raise BadMessage(f"{_STATE} has another shape than {len(names)} names")
    for name in names:
        _check_printable(name)
    return tuple(names)


def _picture_shape(key: str, feature: Any) -> tuple[int, int, int]:
    """(height, width, channels); a `PolicyFeature` says (channels, height, width)."""
    fields = feature.fields if isinstance(feature, Record) else feature
    if not isinstance(fields, dict):
        raise BadMessage(f"{excerpt(key)} is not described")
    shape = _sides(fields.get("shape"), key)
    if len(shape) != 3:
        raise BadMessage(f"{excerpt(key)} has {len(shape)} axes, not three")
    if isinstance(feature, Record):
        return shape[1], shape[2], shape[0]
    return shape[0], shape[1], shape[2]


def _sides(shape: Any, key: str) -> tuple[int, ...]:
    if not isinstance(shape, list | tuple) or not all(type(side) is int for side in shape):
        raise BadMessage(f"the shape of {excerpt(key)} is not whole numbers")
    return tuple(shape)


def _picture(raw: Mapping[str, Any], name: str) -> Picture:
    value = raw[name]
    if not isinstance(value, np.ndarray):
        raise BadMessage(f"the picture of {excerpt(name)} is {excerpt(value)}, not an array")
    try:
        return Picture(np.ascontiguousarray(value))
    except BadMessage as error:
        raise BadMessage(f"the picture of {excerpt(name)}: {error}") from None


def _pixels(name: str, picture: Picture) -> NDArray[np.uint8]:
    if picture.pixels is not None:
        return picture.pixels
    import cv2

    assert picture.jpeg is not None
    decoded = cv2.imdecode(np.frombuffer(picture.jpeg, np.uint8), cv2.IMREAD_COLOR)
    if decoded is None:
        raise BadMessage(f"the picture of {excerpt(name)} is not a JPEG")
    pixels: NDArray[np.uint8] = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    return pixels


def _action_rows(actions: Iterable[Any]) -> NDArray[np.float32]:
    rows: list[NDArray[Any]] = []
    for action in actions:
        if not isinstance(action, np.ndarray) or action.ndim != 1 or action.dtype.kind not in "fiu":
            raise BadMessage("an action is not a row of numbers")
        if action.size > MAX_VALUES or (rows and action.size != rows[0].size):
            raise BadMessage(f"an action of {action.size} values, unlike the others or too long")
        rows.append(action)
    with np.errstate(over="ignore", invalid="ignore"):  # becomes infinite, and is refused as such
        return np.stack([row.astype(np.float32) for row in rows])


def _dumped(value: Any) -> bytes:
    try:
        return dump(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadMessage(f"cannot be said to LeRobot: {' '.join(str(error).split())}") from None
