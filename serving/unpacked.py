"""Reads messages of our encoding (see `serving.packed`): everything in them is checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from common.jpeg import JpegError, jpeg_size
from common.wire.checks import MAX_JPEG, MAX_JPEG_PIXELS, Buffer
from serving.header import Header, integers, text
from serving.messages import (
    MAX_CAMERAS,
    MAX_MESSAGE,
    MAX_PICTURE_SIDE,
    MAX_ROWS,
    MAX_TIMESTEP,
    MAX_VALUES,
    MAX_WINDOW,
    BadMessage,
    Chunk,
    FeatureReply,
    Instructions,
    Observation,
    Picture,
    Refusal,
    RefusalKind,
    Reply,
)
from serving.packed import MAX_FRAMES, VERSION, Message, Note, Word

__all__ = ["decode", "decode_instructions", "decode_observation", "decode_reply"]


def decode(frames: Sequence[Buffer]) -> Message:
    """The message in the frames; BadMessage for anything else, and nothing but BadMessage.

    Arrays are views of the frames and keep them alive.
    """
    if not 1 <= len(frames) <= MAX_FRAMES:
        raise BadMessage(f"{len(frames)} frames; from 1 to {MAX_FRAMES} can be")
    try:
        views = [memoryview(frame).cast("B") if len(frame) else memoryview(b"") for frame in frames]
    except (TypeError, ValueError):
        raise BadMessage("a frame is not bytes") from None
    if sum(len(view) for view in views) > MAX_MESSAGE:
        raise BadMessage(f"over {MAX_MESSAGE >> 20} MiB")
    header, rest = Header(views[0]), _Frames(views[1:])
    if header.integer("version") != VERSION:
        raise BadMessage(
            f"encoding version {header.value('version')}; this end speaks {VERSION}: "
            "install the same version of dualrate on both"
        )
    message = _decode_kind(header, rest)
    rest.end()
    return message


def _decode_kind(header: Header, frames: _Frames) -> Message:
    kind = header.text("kind", 32)
    match kind:
        case "instructions":
            return _decode_instructions(header)
        case "observation":
            return _decode_observation(header, frames)
        case "chunk":
            return _decode_chunk(header, frames)
        case "features":
            return FeatureReply(
                _timestep(header), _finite(header, "timestamp"), bytes(frames.next()),
                _finite(header, "inference_s"), header.text("identity", 128),
            )  # fmt: skip
        case "refusal":
            reason = header.text("reason", 32)
            if reason not in get_args(RefusalKind):
                raise BadMessage("an unknown reason of refusal")
            return Refusal(cast(RefusalKind, reason), header.text("message"))
        case "note":
            word = header.text("word", 32)
            if word not in get_args(Word):
                raise BadMessage("an unknown word")
            return Note(cast(Word, word))
    raise BadMessage("an unknown kind of message")


def decode_instructions(frames: Sequence[Buffer]) -> Instructions:
    """As `decode`; BadMessage where it is another kind of message."""
    message = decode(frames)
    if not isinstance(message, Instructions):
        raise BadMessage("instructions expected")
    return message


def decode_observation(frames: Sequence[Buffer]) -> Observation:
    """As `decode`; BadMessage where it is another kind of message."""
    message = decode(frames)
    if not isinstance(message, Observation):
        raise BadMessage("an observation expected")
    return message


def decode_reply(frames: Sequence[Buffer]) -> Reply:
    """As `decode`; BadMessage where it is another kind of message."""
    message = decode(frames)
    if not isinstance(message, (Chunk, FeatureReply, Refusal)):
        raise BadMessage("a reply expected")
    return message


class _Frames:
    """The raw frames of a message, taken one after the other."""

    def __init__(self, views: list[memoryview]) -> None:
        self._views = iter(views)

    def next(self) -> memoryview:
        view = next(self._views, None)
        if view is None:
            raise BadMessage("a frame is missing")
        return view

    def values(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The next frame as float32 of this shape, whose sides are known to be sound."""
        view = self.next()
        if len(view) != 4 * math.prod(shape):
            raise BadMessage(f"{len(view)} bytes are not {shape} of float32")
        return np.frombuffer(view, "<f4").reshape(shape)

    def end(self) -> None:
        if next(self._views, None) is not None:
            raise BadMessage("frames after the last")


def _timestep(header: Header) -> int:
    timestep = header.integer("timestep")
    if not 0 <= timestep <= MAX_TIMESTEP:
        raise BadMessage("timestep must be a sound number")
    return timestep


def _finite(header: Header, key: str) -> float:
    value = header.number(key)
    if not math.isfinite(value):
        raise BadMessage(f"{key} must be finite")
    return value


def _within(value: int, most: int, what: str) -> int:
    if not 0 <= value <= most:
        raise BadMessage(f"{what}: at most {most}")
    return value


def _decode_instructions(header: Header) -> Instructions:
    cameras = header.pairs("cameras", integers(3))
    return Instructions(
        policy_type=header.text("policy_type"),
        path=header.text("path"),
        device=header.text("device"),
        actions_per_chunk=header.integer("actions_per_chunk"),
        state_names=header.texts("state_names"),
        cameras={name: (sides[0], sides[1], sides[2]) for name, sides in cameras.items()},
        rename=header.pairs("rename", text),
        fps=header.number("fps"),
    )


def _decode_observation(header: Header, frames: _Frames) -> Observation:
    state = frames.values((_within(header.integer("state"), MAX_VALUES, "state values"),))
    listed = header.items("pictures", _picture_entry)
    if len(listed) > MAX_CAMERAS or len({name for name, _ in listed}) != len(listed):
        raise BadMessage(f"pictures: at most {MAX_CAMERAS}, of as many cameras")
    pictures = {name: _decode_picture(shape, frames.next()) for name, shape in listed}
    sensor = None
    if header.value("sensor") is not None:
        rows, channels = integers(2)(header.value("sensor"), "sensor")
        _within(rows, MAX_WINDOW[0], "samples")
        sensor = frames.values((rows, _within(channels, MAX_WINDOW[1], "sensor channels")))
    speeds = None
    if header.value("speeds") is not None and header.truth("speeds"):
        speeds = frames.values(state.shape)
    wants = header.text("wants", 32)
    return Observation(
        timestep=header.integer("timestep"),
        timestamp=header.number("timestamp"),
        must_go=header.truth("must_go"),
        state=state,
        pictures=pictures,
        task=header.text("task"),
        sensor=sensor,
        wants=cast(Literal["actions", "features"], wants),  # checked by the message itself
        speeds=speeds,
    )


def _picture_entry(value: object, key: str) -> tuple[str, tuple[int, ...]]:
    if not isinstance(value, list) or len(value) != 4:
        raise BadMessage(f"{key}: name, height, width, channels expected")
    return text(value[0], key), integers(3)(value[1:], key)


def _decode_picture(shape: tuple[int, ...], view: memoryview) -> Picture:
    if shape == (0, 0, 0):
        if len(view) > MAX_JPEG:
            raise BadMessage(f"a JPEG of {len(view)} bytes; at most {MAX_JPEG}")
        try:
            width, height = jpeg_size(view)
        except JpegError as error:
            raise BadMessage(f"a picture is not a JPEG: {error}") from None
        if width * height > MAX_JPEG_PIXELS or max(width, height) > MAX_PICTURE_SIDE:
            raise BadMessage(f"a picture of {width}x{height} is too large")
        return Picture(jpeg=view)
    # Sides are checked before they are multiplied and given to NumPy.
    if not all(1 <= side <= MAX_PICTURE_SIDE for side in shape) or math.prod(shape) != len(view):
        raise BadMessage(f"{len(view)} bytes are no picture of {shape}")
    return Picture(pixels=np.frombuffer(view, np.uint8).reshape(shape))


def _decode_chunk(header: Header, frames: _Frames) -> Chunk:
    rows, columns = integers(2)(header.value("shape"), "shape")
    _within(rows, MAX_ROWS, "rows")
    actions = frames.values((rows, _within(columns, MAX_VALUES, "action values")))
    return Chunk(
        timestep=header.integer("timestep"),
        timestamp=header.number("timestamp"),
        actions=actions,
        names=header.texts("names"),
        dt=_finite(header, "dt"),
        inference_s=_finite(header, "inference_s"),
        features_age_s=_finite(header, "features_age_s"),
    )
