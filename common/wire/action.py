"""Actions for the robot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import msgpack
import numpy as np
from numpy.typing import NDArray

from common import endpoints
from common.wire.checks import (
    MAX_ACTION,
    MAX_ACTION_VALUES,
    MAX_HEADER,
    MAX_MAGNITUDE,
    ActionSpace,
    Buffer,
    MalformedMessage,
    optional_count,
    stamp,
    unpack_map,
    view,
)


@dataclass(frozen=True, slots=True)
class Action:
    """A chunk of actions for the robot, or the order to hold.

    Attributes:
        seq: counts the published messages.
        timestamp: when inference ended.
        observed_at: capture time of the oldest input used.
        feature_update: number of the vision-language update used.
        feature_age: seconds.
        dt: seconds between rows.
        space: what the rows mean.
        actions: (H, A) float32; the columns are six joint (or pose) values and a gripper value.
        hold: stay where you are; then the rows mean nothing.
        reason: why to hold, empty otherwise.
    """

    seq: int
    timestamp: float
    observed_at: float
    feature_update: int
    feature_age: float
    dt: float
    space: ActionSpace
    actions: NDArray[np.float32]
    hold: bool = False
    reason: str = ""


def encode_action(action: Action) -> list[bytes]:
    """Topic and msgpack map of an action message."""
    rows = np.ascontiguousarray(action.actions, dtype="<f4")
    body = {
        "seq": action.seq,
        "timestamp": action.timestamp,
        "observed_at": action.observed_at,
        "feature_update": action.feature_update,
        "feature_age": action.feature_age,
        "dt": action.dt,
        "space": action.space,
        "actions": rows.tobytes(),
        "shape": list(rows.shape),
        "dtype": "float32",
        "hold": action.hold,
        "reason": action.reason,
    }
    packed: bytes = msgpack.packb(body)
    return [endpoints.ACTION.topic, packed]


def _rows(stream: str, body: dict[Any, Any]) -> NDArray[np.float32]:
    raw, shape = body.get("actions"), body.get("shape")
    if body.get("dtype") != "float32" or not isinstance(raw, bytes):
        raise MalformedMessage(stream, "actions", "not float32 bytes")
    if not (
        isinstance(shape, list)
        and len(shape) == 2
        and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in shape)
        and shape[0] * shape[1] <= MAX_ACTION_VALUES
        and len(raw) == 4 * shape[0] * shape[1]
    ):
        raise MalformedMessage(stream, "actions", "shape")
    rows = np.frombuffer(raw, "<f4").reshape(shape)
    if not float(np.abs(rows).max()) <= MAX_MAGNITUDE:
        raise MalformedMessage(stream, "values", "not finite or absurd")
    return rows


def decode_action(frames: Sequence[Buffer]) -> Action:
    """Decode a message of the action stream; raises MalformedMessage and nothing else."""
    stream = endpoints.ACTION.stream
    if len(frames) != 2:
        raise MalformedMessage(stream, "parts", str(len(frames)))
    if view(stream, frames[0]) != endpoints.ACTION.topic:
        raise MalformedMessage(stream, "topic")
    data = view(stream, frames[1])
    if not 0 < len(data) <= MAX_ACTION:
        raise MalformedMessage(stream, "size", f"{len(data)} bytes")
    try:
        body = unpack_map(data)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException):
        raise MalformedMessage(stream, "body", "not msgpack") from None
    if not isinstance(body, dict):
        raise MalformedMessage(stream, "body", "not a map")
    seq = optional_count(stream, body, "seq")
    update = optional_count(stream, body, "feature_update")
    hold, reason, space = body.get("hold"), body.get("reason", ""), body.get("space")
    if seq is None or update is None or not isinstance(hold, bool):
        raise MalformedMessage(stream, "body", "seq, feature_update or hold")
    if not isinstance(reason, str) or len(reason) > MAX_HEADER:
        raise MalformedMessage(stream, "body", "reason")
    if space not in get_args(ActionSpace):
        raise MalformedMessage(stream, "space")
    seconds = [body.get(key) for key in ("feature_age", "dt")]
    for value in seconds:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise MalformedMessage(stream, "body", "feature_age or dt")
        if not (math.isfinite(value) and 0.0 <= value <= MAX_MAGNITUDE):
            raise MalformedMessage(stream, "values", "feature_age or dt")
    return Action(
        seq=seq,
        timestamp=stamp(stream, body.get("timestamp")),
        observed_at=stamp(stream, body.get("observed_at")),
        feature_update=update,
        feature_age=float(seconds[0]),  # type: ignore[arg-type]
        dt=float(seconds[1]),  # type: ignore[arg-type]
        space=space,  # type: ignore[arg-type]
        actions=_rows(stream, body),
        hold=hold,
        reason=reason,
    )
