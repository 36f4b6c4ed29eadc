"""Our encoding of what clients and server say: a msgpack header and raw frames.

A message is a list of frames. The first is a header: its kind, this encoding's version, and the
message's fields. The others are raw: the state, sensor window and actions as little-endian float32,
a picture as its pixels in rows or as a JPEG, features as the policy packed them. Encoding copies no
picture and decoding copies nothing: the arrays are views of the frames.

`serving.unpacked` reads them. ZeroMQ sends the frames as they are; `join` and `split` make one
buffer of them for gRPC.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.wire.checks import Buffer
from serving.header import pack_header
from serving.messages import (
    MAX_CAMERAS,
    MAX_MESSAGE,
    MAX_TEXT,
    BadMessage,
    Chunk,
    FeatureReply,
    Instructions,
    Observation,
    Refusal,
)

__all__ = ["MAGIC", "MAX_FRAMES", "VERSION", "Message", "Note", "Word", "encode", "join", "split"]

VERSION = 1
MAGIC = b"DRS1"
"""How a joined message begins. A pickle of LeRobot's begins with 0x80."""
MAX_FRAMES = MAX_CAMERAS + 3
_ALIGNMENT = 16
_ROOM = 1024
"""Bytes that `join` needs for lengths and alignment."""
_COUNT = struct.Struct("<4sI")

Word: TypeAlias = Literal["ready", "accepted", "loading", "ping", "pong", "bye"]
"""ready: a session begins (and the answer to it); accepted: the instructions were taken; loading:
the policy is being loaded; ping, pong: is anyone there; bye: the session is over."""


@dataclass(frozen=True, slots=True)
class Note:
    """A message that is one word; gRPC has calls of its own for them."""

    word: Word


Message: TypeAlias = Instructions | Observation | Chunk | FeatureReply | Refusal | Note


def encode(message: Message) -> list[Buffer]:
    """The frames of a message; BadMessage for one that cannot be encoded.

    The frames of pixels, JPEGs and arrays share the message's memory: it must not change until they
    are sent.
    """
    frames: list[Buffer] = []
    match message:
        case Instructions():
            fields = _instructions_fields(message)
        case Observation():
            fields, frames = _observation_parts(message)
        case Chunk():
            fields = {
                "kind": "chunk",
                "timestep": message.timestep,
                "timestamp": message.timestamp,
                "shape": list(message.actions.shape),
                "names": list(message.names),
                "dt": message.dt,
                "inference_s": message.inference_s,
                "features_age_s": message.features_age_s,
            }
            frames = [_values(message.actions)]
        case FeatureReply():
            fields = {
                "kind": "features",
                "timestep": message.timestep,
                "timestamp": message.timestamp,
                "inference_s": message.inference_s,
                "identity": message.identity,
            }
            frames = [message.packed]
        case Refusal():
            # A reason may quote what somebody sent: it must fit whatever it says.
            said = message.message[:MAX_TEXT].encode("utf-8", "replace").decode()
            fields = {"kind": "refusal", "reason": message.kind, "message": said}
        case Note():
            fields = {"kind": "note", "word": message.word}
    frames = [pack_header(fields | {"version": VERSION}), *frames]
    if sum(map(len, frames)) > MAX_MESSAGE - _ROOM:
        raise BadMessage(f"a message over {MAX_MESSAGE >> 20} MiB: send fewer or smaller pictures")
    return frames


def join(frames: Sequence[Buffer]) -> bytes:
    """One buffer: magic, count, lengths, and each frame at a multiple of 16 bytes (one copy)."""
    lengths = [len(frame) for frame in frames]
    parts: list[Buffer] = [
        _COUNT.pack(MAGIC, len(frames)),
        struct.pack(f"<{len(lengths)}Q", *lengths),
    ]
    position = _COUNT.size + 8 * len(lengths)
    for frame, length in zip(frames, lengths, strict=True):
        padding = -position % _ALIGNMENT
        parts += [bytes(padding), frame]
        position += padding + length
    return b"".join(parts)


def split(data: Buffer) -> list[memoryview]:
    """The frames of a joined message, without copies; BadMessage for anything else."""
    view = memoryview(data)
    if len(view) < _COUNT.size or bytes(view[:4]) != MAGIC:
        raise BadMessage("not a message of ours")
    if len(view) > MAX_MESSAGE:
        raise BadMessage(f"over {MAX_MESSAGE >> 20} MiB")
    _, count = _COUNT.unpack_from(view)
    position = _COUNT.size + 8 * count
    if not 1 <= count <= MAX_FRAMES or position > len(view):
        raise BadMessage(f"{count} frames; from 1 to {MAX_FRAMES} can be")
    frames = []
    for length in struct.unpack_from(f"<{count}Q", view, _COUNT.size):
        start = position + -position % _ALIGNMENT
        position = start + length
        if position > len(view):
            raise BadMessage("truncated")
        frames.append(view[start:position])
    if position != len(view):
        raise BadMessage("bytes after the end")
    return frames


def _values(array: NDArray[np.float32]) -> Buffer:
    """An array's own memory where it is in order and little-endian, a copy otherwise."""
    return _memory(np.ascontiguousarray(array, "<f4"))


def _memory(array: NDArray[Any]) -> Buffer:
    return array.data.cast("B") if array.size else b""


def _instructions_fields(message: Instructions) -> dict[str, Any]:
    return {
        "kind": "instructions",
        "policy_type": message.policy_type,
        "path": message.path,
        "device": message.device,
        "actions_per_chunk": message.actions_per_chunk,
        "state_names": list(message.state_names),
        "cameras": {name: list(shape) for name, shape in message.cameras.items()},
        "rename": dict(message.rename),
        "fps": message.fps,
    }


def _observation_parts(message: Observation) -> tuple[dict[str, Any], list[Buffer]]:
    frames, pictures = [_values(message.state)], []
    for name, picture in message.pictures.items():
        if picture.pixels is not None:
            frames.append(_memory(np.ascontiguousarray(picture.pixels)))
            pictures.append([name, *picture.pixels.shape])
        elif picture.jpeg is not None:
            frames.append(picture.jpeg)
            pictures.append([name, 0, 0, 0])
    if message.sensor is not None:
        frames.append(_values(message.sensor))
    if message.speeds is not None:
        frames.append(_values(message.speeds))
    fields = {
        "kind": "observation",
        "timestep": message.timestep,
        "timestamp": message.timestamp,
        "must_go": message.must_go,
        "state": len(message.state),
        "pictures": pictures,
        "sensor": None if message.sensor is None else list(message.sensor.shape),
        "task": message.task,
        "wants": message.wants,
        "speeds": message.speeds is not None,
    }
    return fields, frames
