"""The messages of an exported session: Foxglove's well-known ones, and three of dualrate's own.

Foxglove's definitions come with the package foxglove-schemas-protobuf. Those of dualrate are
protobuf too, built here, so that Foxglove and Rerun can plot their fields by name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from numpy.typing import NDArray

__all__ = ["ACTION", "FORCE", "UPDATE", "mobile_xyz_quaternion"]

_Field = descriptor_pb2.FieldDescriptorProto
_KINDS = {
    "double": _Field.TYPE_DOUBLE,
    "uint64": _Field.TYPE_UINT64,
    "string": _Field.TYPE_STRING,
    "Timestamp": _Field.TYPE_MESSAGE,
    "Row": _Field.TYPE_MESSAGE,
}
_NAMES = {"Timestamp": ".google.protobuf.Timestamp", "Row": ".dualrate.Row"}

# Message → its fields in order. "?" marks a value that may be missing, "[]" a list of them.
_MESSAGES = {
    "Row": {"values": "double[]"},
    "Force": {"timestamp": "Timestamp", "force_n": "double"},
    "FeatureUpdate": {
        "timestamp": "Timestamp",
        "number": "uint64",
        "duration_ms": "double",
        "task": "string",
    },
    "ActionChunk": {
        "timestamp": "Timestamp",
        "episode": "uint64?",
        "action_number": "uint64?",
        "vl_update_number": "uint64?",
        "vl_reuse": "uint64?",
        "inference_ms": "double?",
        "lateness_ms": "double?",
        "feature_age_ms": "double?",
        "sensor_samples": "uint64?",
        "force_n": "double?",
        "first": "double[]",
        "rows": "Row[]",
        "proposed": "Row[]",
        "delta": "Row[]",
        "limits_applied": "string[]",
        "task": "string",
    },
}


def _add_field(message: descriptor_pb2.DescriptorProto, name: str, kind: str) -> None:
    base = kind.rstrip("?[]")
    field = message.field.add(name=name, number=len(message.field) + 1, type=_KINDS[base])
    field.label = _Field.LABEL_REPEATED if kind.endswith("[]") else _Field.LABEL_OPTIONAL
    if base in _NAMES:
        field.type_name = _NAMES[base]
    if kind.endswith("?"):
        # proto3 tells a missing number from 0 by a group of its own around the field.
        field.proto3_optional, field.oneof_index = True, len(message.oneof_decl)
        message.oneof_decl.add(name=f"_{name}")


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="dualrate/session.proto", package="dualrate", syntax="proto3"
    )
    file.dependency.append("google/protobuf/timestamp.proto")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, kind in fields.items():
            _add_field(message, field, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"dualrate.{name}"))
        for name in _MESSAGES
    }


_CLASSES = _classes()
FORCE: Any = _CLASSES["Force"]
"""dualrate.Force: one sample, newtons."""
UPDATE: Any = _CLASSES["FeatureUpdate"]
"""dualrate.FeatureUpdate: one slow pass."""
ACTION: Any = _CLASSES["ActionChunk"]
"""dualrate.ActionChunk: one action as it was published, with its timing."""


def mobile_xyz_quaternion(angles_deg: Sequence[float] | NDArray[np.float64]) -> tuple[float, ...]:
    """x, y, z, w of mobile XYZ Euler angles in degrees (Mecademic's): R = Rx(α) Ry(β) Rz(γ).

    The product of the three axes' quaternions qx · qy · qz, multiplied out.
    """
    a, b, c = (math.radians(float(angle)) / 2 for angle in angles_deg)
    sa, sb, sc, ca, cb, cc = (*map(math.sin, (a, b, c)), *map(math.cos, (a, b, c)))
    return (
        sa * cb * cc + ca * sb * sc,
        ca * sb * cc - sa * cb * sc,
        ca * cb * sc + sa * sb * cc,
        ca * cb * cc - sa * sb * sc,
    )
