"""Our encoding: what goes in comes out, without copies; anything else is refused."""

from __future__ import annotations

import struct
from typing import Any, get_args

import cv2
import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.messages import (
    MAX_MESSAGE,
    BadMessage,
    Chunk,
    FeatureReply,
    Instructions,
    Observation,
    Picture,
    Refusal,
    RefusalKind,
)
from serving.packed import MAGIC, MAX_FRAMES, Message, Note, Word, encode, join, split
from serving.unpacked import decode, decode_instructions, decode_observation, decode_reply

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
some = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
many = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))

_, _JPEG = cv2.imencode(".jpg", np.full((24, 32, 3), 90, np.uint8))
JPEG = _JPEG.tobytes()

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
finite = st.floats(allow_nan=False, allow_infinity=False)
seeds = st.integers(0, 2**32 - 1)


def floats(seed: int, *shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@st.composite
def pictures(draw: st.DrawFn) -> Picture:
    if draw(st.booleans()):
        return Picture(jpeg=JPEG)
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3])))
    pixels = np.random.default_rng(draw(seeds)).integers(0, 256, shape, np.uint8)
    return Picture(pixels=pixels[:, ::-1] if draw(st.booleans()) else pixels)


@st.composite
def instructions(draw: st.DrawFn) -> Instructions:
    sides = st.integers(1, 8192)
    return Instructions(
        draw(names),
        draw(st.text(max_size=40)),
        draw(names),
        draw(st.integers(1, 4096)),
        tuple(draw(st.lists(names, max_size=20, unique=True))),
        draw(st.dictionaries(names, st.tuples(sides, sides, sides), max_size=16)),
        draw(st.dictionaries(names, names, max_size=5)),
        draw(st.floats(0, 10_000)),
    )


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    sensor = st.one_of(st.none(), st.tuples(st.integers(1, 9), st.integers(1, 9)))
    shape, values = draw(sensor), draw(st.integers(0, 256))
    moving = draw(st.booleans())
    return Observation(
        draw(st.integers(0, 1 << 53)),
        draw(finite),
        draw(st.booleans()),
        floats(draw(seeds), values),
        draw(st.dictionaries(names, pictures(), max_size=5)),
        draw(st.text(max_size=40)),
        None if shape is None else floats(draw(seeds), *shape),
        draw(st.sampled_from(["actions", "features"])),
        floats(draw(seeds), values) if moving else None,
    )


@st.composite
def chunks(draw: st.DrawFn) -> Chunk:
    rows, columns = draw(st.tuples(st.integers(1, 60), st.integers(1, 20)))
    named = st.lists(names, min_size=columns, max_size=columns)
    return Chunk(
        draw(st.integers(0, 1 << 53)),
        draw(finite),
        floats(draw(seeds), rows, columns),
        tuple(draw(st.one_of(st.just([]), named))),
        draw(st.floats(0, 10)),
        draw(st.floats(0, 10)),
        draw(st.floats(0, 10)),
    )


messages = st.one_of(
    instructions(),
    observations(),
    chunks(),
    st.builds(FeatureReply, st.integers(0, 1 << 53), finite, st.binary(max_size=99), finite),
    st.builds(Refusal, st.sampled_from(get_args(RefusalKind)), st.text(max_size=99)),
    st.builds(Note, st.sampled_from(get_args(Word))),
)


def same(a: Any, b: Any) -> bool:
    """Equality of messages, which hold arrays."""
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (bytes, memoryview)):
        return bytes(a) == bytes(b)
    if hasattr(a, "__dataclass_fields__"):
        return type(a) is type(b) and all(
            same(getattr(a, name), getattr(b, name)) for name in a.__dataclass_fields__
        )
    return bool(a == b)


@many
@given(messages)
def test_what_goes_in_comes_out(message: Message) -> None:
    frames = encode(message)
    assert same(decode(frames), message)
    assert same(decode(split(join(frames))), message)


def test_pictures_are_copied_neither_way() -> None:
    pixels = np.zeros((360, 640, 3), np.uint8)
    state, sensor = floats(0, 6), floats(1, 65, 3)
    sent = Observation(1, 2.0, True, state, {"front": Picture(pixels=pixels)}, "", sensor)
    frames = encode(sent)
    for array, frame in zip((state, pixels, sensor), frames[1:], strict=True):
        assert np.shares_memory(array, np.frombuffer(frame, array.dtype))
    joined = bytearray(join(frames))
    came = decode_observation(split(joined))
    picture = came.pictures["front"].pixels
    assert picture is not None
    assert came.sensor is not None
    for array in (came.state, picture, came.sensor):
        assert np.shares_memory(array, np.frombuffer(joined, np.uint8))
        assert array.flags.aligned


def unharmed(frames: list[Any]) -> None:
    """Decodes to a message or raises BadMessage; anything else fails the test."""
    try:
        message = decode(frames)
    except BadMessage as error:
        assert str(error)
        assert "\n" not in str(error)
        assert len(str(error)) < 500
    else:
        encode(message)  # whatever passes is sound enough to be encoded again


@many
@given(messages, st.data())
def test_a_mutated_message_is_decoded_or_refused(message: Message, data: st.DataObject) -> None:
    joined = bytearray(join(encode(message)))
    for _ in range(data.draw(st.integers(1, 4))):
        joined[data.draw(st.integers(0, len(joined) - 1))] = data.draw(st.integers(0, 255))
    try:
        frames = split(joined)
    except BadMessage:
        return
    unharmed(list(frames))


@some
@given(messages, st.data())
def test_a_truncated_message_is_refused(message: Message, data: st.DataObject) -> None:
    joined = join(encode(message))
    for cut in {0, 1, 7, len(joined) - 1, data.draw(st.integers(0, len(joined) - 1))}:
        with pytest.raises(BadMessage):
            split(joined[:cut])
    with pytest.raises(BadMessage):
        split(joined + b"\0")


@many
@given(st.lists(st.binary(max_size=60), max_size=5))
def test_garbage_is_refused(frames: list[bytes]) -> None:
    unharmed(list(frames))
    with pytest.raises(BadMessage):
        split(b"".join(frames))


anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1), st.floats())
    | st.text(max_size=9)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=9,
)


@many
@given(messages, anything, st.data())
def test_a_field_of_any_other_value_is_decoded_or_refused(
    message: Message, value: object, data: st.DataObject
) -> None:
    header, *frames = encode(message)
    fields = msgpack.unpackb(header)
    fields[data.draw(st.sampled_from(sorted(fields)))] = value
    unharmed([msgpack.packb(fields), *frames])


OBSERVATION = Observation(1, 2.0, True, floats(0, 6), {"a": Picture(jpeg=JPEG)}, "go")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"version": 2}, "version"),
        ({"kind": "command"}, "unknown kind"),
        ({"timestep": -1}, "timestep"),
        ({"timestep": True}, "timestep"),
        ({"timestamp": float("nan")}, "timestamp"),
        ({"timestamp": "now"}, "timestamp"),
        ({"must_go": 1}, "must_go"),
        ({"state": 7}, "bytes"),
        ({"state": 1 << 40}, "state values"),
        ({"state": -1}, "state values"),
        ({"pictures": [["a", 1, 1]]}, "pictures"),
        ({"pictures": [["a", 1 << 40, 1 << 40, 3]]}, "no picture"),
        ({"pictures": [["a", -1, -1, 3]]}, "no picture"),
        ({"pictures": [["a", 0, 0, 0], ["a", 0, 0, 0]]}, "as many cameras"),
        ({"pictures": [[str(i), 0, 0, 0] for i in range(17)]}, "at most 16"),
        ({"pictures": []}, "frames after"),
        ({"sensor": [1, 1]}, "missing"),
        ({"sensor": [1 << 30, 1 << 30]}, "samples"),
        ({"wants": "money"}, "wants"),
        ({"speeds": True}, "missing"),
        ({"speeds": 1}, "speeds"),
        ({"task": "x" * 5000}, "task"),
    ],
)
def test_a_field_that_cannot_be_is_named(changed: dict[str, Any], why: str) -> None:
    header, *frames = encode(OBSERVATION)
    with pytest.raises(BadMessage, match=why):
        decode([msgpack.packb(msgpack.unpackb(header) | changed), *frames])


def test_a_client_that_knows_nothing_of_speeds_is_understood() -> None:
    header, *frames = encode(OBSERVATION)
    fields = msgpack.unpackb(header)
    del fields["speeds"]
    assert same(decode([msgpack.packb(fields), *frames]), OBSERVATION)


@pytest.mark.parametrize("speeds", [floats(0, 5), np.full(6, np.nan, np.float32)])
def test_speeds_that_cannot_be_are_refused(speeds: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    with pytest.raises(BadMessage, match="speeds"):
        Observation(1, 2.0, True, floats(0, 6), speeds=speeds)


def test_state_that_is_not_finite_is_refused() -> None:
    header, _, *frames = encode(OBSERVATION)
    with pytest.raises(BadMessage, match="finite"):
        decode([header, np.full(6, np.nan, np.float32).tobytes(), *frames])


@pytest.mark.parametrize("jpeg", [b"", JPEG[:-9], b"\xff\xd8" + bytes(99), b"GIF89a"])
def test_what_is_no_jpeg_is_refused(jpeg: bytes) -> None:
    header, state, _ = encode(OBSERVATION)
    with pytest.raises(BadMessage, match="JPEG"):
        decode([header, state, jpeg])


def test_huge_claims_are_refused_before_anything_is_made_of_them() -> None:
    # An array of 2^32 - 1 elements in five bytes, a map, a text, nesting.
    for header in (
        b"\x81\xa1a\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa1a\xdb\xff\xff\xff\xff",
        b"\x81\xa1a" + b"\x91" * 100_000,
        b"\x90" * 10,
        b"",
        bytes(1 << 19),
    ):
        with pytest.raises(BadMessage):
            decode([header])
    for claim in (
        struct.pack("<4sI", MAGIC, 0xFFFF_FFFF),
        struct.pack("<4sI", MAGIC, 0),
        struct.pack("<4sIQ", MAGIC, 1, 1 << 62),
        struct.pack("<4sI2Q", MAGIC, 2, (1 << 64) - 8, 16),
    ):
        with pytest.raises(BadMessage):
            split(claim)
    with pytest.raises(BadMessage, match="frames"):
        decode([encode(Note("ping"))[0]] * (MAX_FRAMES + 1))
    with pytest.raises(BadMessage, match="MiB"):
        decode([encode(Note("ping"))[0], bytes(MAX_MESSAGE)])
    with pytest.raises(BadMessage, match="MiB"):
        split(MAGIC + bytes(MAX_MESSAGE))


def test_one_kind_is_not_taken_for_another() -> None:
    frames = {
        decode_observation: encode(Note("ping")),
        decode_instructions: encode(OBSERVATION),
        decode_reply: encode(OBSERVATION),
    }
    for read, given_frames in frames.items():
        with pytest.raises(BadMessage, match="expected"):
            read(given_frames)
    with pytest.raises(BadMessage, match="not bytes"):
        decode([np.zeros((4, 4))[:, ::2]])  # type: ignore[list-item]


def test_what_cannot_be_encoded_is_refused_too() -> None:
    with pytest.raises(BadMessage, match="encoded"):
        encode(Instructions("act", "\ud800"))
    with pytest.raises(BadMessage, match="header"):
        encode(Instructions("act", "", state_names=tuple(f"{i:04000d}" for i in range(256))))
