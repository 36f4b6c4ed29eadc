"""Whatever arrives, a decoder returns something usable or raises MalformedMessage."""

from __future__ import annotations

import contextlib
import json
import math
import struct
import tracemalloc
from collections.abc import Callable
from typing import get_args

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from common import wire
from common.wire import MalformedMessage

MakeJpeg = Callable[..., bytes]
Decoder = Callable[..., object]

pytestmark = pytest.mark.filterwarnings("error")
few = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
many = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])

ALINE = 5  # short A-scans: the bits of a message are then worth flipping
REASONS = {
    "robot": {"parts", "type", "topic", "size", "timestamp", "values", "status"},
    "camera": {"parts", "type", "header_size", "header", "header_field", "timestamp"}
    | {"size", "oversized", "not_jpeg"},
    "sensor": {"type", "truncated", "oversized", "count", "size", "timestamp", "values"},
    "action": {"parts", "type", "topic", "size", "body", "header_field", "space", "timestamp"}
    | {"values", "actions"},
}


def assert_stamp(value: float) -> None:
    assert type(value) is float
    assert 0.0 <= value < 2.0**33


def assert_usable(value: object) -> None:
    """What every decoder promises of what it returns."""
    if isinstance(value, wire.RobotState):
        assert_stamp(value.origin_timestamp)
        assert_stamp(value.send_timestamp)
        assert len(value.joints) == len(value.pose) == 6
        assert all(abs(x) <= 1e6 for x in (value.force, *value.joints, *value.pose))
    elif isinstance(value, wire.CameraFrame):
        assert_stamp(value.timestamp)
        assert value.camera.isprintable()
        assert 1 <= len(value.camera.encode()) <= 128
        assert not {"/", "\\"} & set(value.camera)
        assert value.seq is None or (type(value.seq) is int and 0 <= value.seq < 1 << 63)
        assert value.send_timestamp is None or 0.0 <= value.send_timestamp < 2.0**33
        assert value.width is not None and value.height is not None
        assert 1 <= value.width * value.height <= 4096 * 4096
        assert len(value.jpeg) <= 16 << 20
        assert bytes(value.jpeg[:2]) == b"\xff\xd8"
    elif isinstance(value, wire.SampleBatch):
        n = len(value)
        assert n >= 1
        assert value.timestamps.shape == value.send_timestamps.shape == value.forces.shape == (n,)
        assert value.alines.shape == (n, ALINE)
        for stamps in (value.timestamps, value.send_timestamps):
            assert ((stamps >= 0) & (stamps < 2.0**33)).all()
        for values in (value.forces, value.alines):
            assert values.dtype == np.float32
            assert (np.abs(values) <= 1e6).all()
    elif isinstance(value, wire.Action):
        assert_stamp(value.timestamp)
        assert_stamp(value.observed_at)
        assert value.actions.ndim == 2
        assert 1 <= value.actions.size <= 4096
        assert value.actions.dtype == np.float32
        assert (np.abs(value.actions) <= 1e6).all()
        assert value.space in get_args(wire.ActionSpace)
        assert type(value.hold) is bool
        assert isinstance(value.reason, str)
        assert min(value.seq, value.feature_update) >= 0
        assert all(math.isfinite(x) and x >= 0 for x in (value.feature_age, value.dt))
    elif isinstance(value, wire.RobotStatus):
        assert value.condition in get_args(wire.RobotCondition)
        assert value.detail.isprintable() and len(value.detail) <= 200
        assert_stamp(value.timestamp)
    else:
        assert isinstance(value, wire.EpisodeEnd)


def check(decode: Decoder, *args: object) -> object:
    """Decode; None when it was refused in the one way that is allowed."""
    try:
        value = decode(*args)
    except MalformedMessage as error:
        assert error.reason in REASONS[error.stream]
        assert str(error).isprintable()
        assert len(str(error)) < 120
        return None
    assert_usable(value)
    return value


def check_samples(data: object) -> object:
    return check(wire.decode_samples, data, ALINE)


# --- bytes that mean nothing, and parts that are no bytes ----------------------------------------

TOPICS = [b"robot_state", b"robot_status", b"episode_end", b"action", b"{", b""]
part = st.one_of(st.binary(max_size=200), st.sampled_from(TOPICS))
oddity = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(0, 255), max_size=5),
    st.builds(np.zeros, st.tuples(st.integers(0, 3), st.integers(0, 3))),
    st.builds(lambda data: memoryview(data)[::2], st.binary(min_size=4)),
    st.builds(lambda n: memoryview(bytes(8 * n)).cast("d"), st.integers(1, 9)),
)


@many
@given(st.lists(st.one_of(part, oddity), max_size=4))
@example([b"robot_state", memoryview(bytes(136))[::2]])
def test_any_parts(frames: list[bytes]) -> None:
    for decode in (wire.decode_robot, wire.decode_camera, wire.decode_action):
        check(decode, frames)


@many
@given(st.one_of(st.binary(max_size=300), oddity))
def test_any_datagram(data: object) -> None:
    check_samples(data)


@few
@given(st.binary(min_size=68, max_size=68))
def test_any_robot_payload(payload: bytes) -> None:
    check(wire.decode_robot, [b"robot_state", payload])


@few
@given(st.integers(0, 5), st.integers(0, 6), st.data())
def test_any_samples(declared: int, count: int, data: st.DataObject) -> None:
    size = count * (20 + 4 * ALINE)
    body = data.draw(st.binary(min_size=size, max_size=size))
    value = check_samples(struct.pack("<I", declared) + body)
    assert value is None or declared == count


# --- valid messages, damaged ---------------------------------------------------------------------


def damaged(valid: bytes) -> st.SearchStrategy[bytes]:
    """Cut, extended, spliced, or with a few bits flipped."""

    def flip(bits: list[int]) -> bytes:
        data = bytearray(valid)
        for bit in bits:
            data[bit // 8] ^= 1 << bit % 8
        return bytes(data)

    return st.one_of(
        st.lists(st.integers(0, 8 * len(valid) - 1), min_size=1, max_size=4).map(flip),
        st.integers(0, len(valid) - 1).map(lambda n: valid[:n]),
        st.binary(min_size=1, max_size=40).map(lambda more: valid + more),
        st.tuples(st.integers(0, len(valid)), st.binary(max_size=9)).map(
            lambda at: valid[: at[0]] + at[1] + valid[at[0] + len(at[1]) :]
        ),
    )


ROBOT = wire.encode_robot(wire.RobotState(1e9, 1e9, 0.0, (1.0,) * 6, (2.0,) * 6))
SAMPLES = wire.encode_samples(
    wire.SampleBatch(
        np.full(3, 1e9), np.full(3, 1e9), np.ones(3, np.float32), np.ones((3, ALINE), np.float32)
    )
)
ACTION = wire.encode_action(
    wire.Action(1, 1e9, 1e9, 2, 0.5, 0.1, "pose_delta", np.ones((2, 7), np.float32), True, "robot")
)


@many
@given(damaged(ROBOT[1]))
def test_damaged_robot_state(payload: bytes) -> None:
    check(wire.decode_robot, [b"robot_state", payload])


@many
@given(damaged(wire.encode_robot_status(wire.RobotStatus("error", 1e9, "stalled"))[1]))
def test_damaged_robot_status(payload: bytes) -> None:
    check(wire.decode_robot, [b"robot_status", payload])


@many
@given(damaged(SAMPLES))
def test_damaged_samples(data: bytes) -> None:
    check_samples(data)


@many
@given(damaged(ACTION[1]))
def test_damaged_action(body: bytes) -> None:
    check(wire.decode_action, [b"action", body])


@many
@given(data=st.data(), header_format=st.sampled_from(["msgpack", "json"]), which=st.integers(0, 1))
def test_damaged_camera_frame(
    make_jpeg: MakeJpeg, data: st.DataObject, header_format: str, which: int
) -> None:
    frame = wire.CameraFrame("OAK", 1e9, make_jpeg(640, 360), 5, 1e9, 640, 360)
    message = [bytes(p) for p in wire.encode_camera(frame, header_format)]  # type: ignore[arg-type]
    message[which] = data.draw(damaged(message[which]))
    check(wire.decode_camera, message)
    if which == 1:  # a header that fits the damaged picture: only the picture's own walk is left
        message[0] = msgpack.packb({"camera": "OAK", "timestamp": 1.0, "size": len(message[1])})
        check(wire.decode_camera, message)


@many
@given(segments=st.lists(st.binary(max_size=30), max_size=8), width=st.integers(0, 65535))
def test_any_segments_between_the_markers(
    make_jpeg: MakeJpeg, segments: list[bytes], width: int
) -> None:
    data = b"\xff\xd8" + b"\xff".join(segments) + make_jpeg(width, 65535)[2:]
    header = msgpack.packb({"camera": "OAK", "timestamp": 1.0, "size": len(data)})
    check(wire.decode_camera, [header, data])


# --- maps with anything in them ------------------------------------------------------------------

scalar = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.floats(),
    st.text(max_size=10),
)
anything = st.recursive(
    scalar,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)
binary_too = st.one_of(anything, st.binary(max_size=60))
KEYS = ["camera", "timestamp", "size", "seq", "send_timestamp", "width", "height"]


def json_bytes(header: object) -> bytes:
    return json.dumps(header).encode()  # writes NaN, Infinity and lone surrogates as they are


@many
@given(changes=st.dictionaries(st.sampled_from(KEYS), anything, min_size=1), as_json=st.booleans())
@example(changes={"camera": "\ud800"}, as_json=True)
@example(changes={"timestamp": 10**400}, as_json=True)
@example(changes={"size": 10**3500}, as_json=True)
@example(changes={"timestamp": True}, as_json=True)
def test_any_value_in_a_header(
    make_jpeg: MakeJpeg, changes: dict[str, object], as_json: bool
) -> None:
    jpeg = make_jpeg(640, 360)
    header = {"camera": "OAK", "timestamp": 1.0, "size": len(jpeg), **changes}
    packed = json_bytes(header) if as_json else msgpack.packb(header, unicode_errors="ignore")
    value = check(wire.decode_camera, [packed, jpeg])
    if isinstance(value, wire.CameraFrame):
        assert value.jpeg is jpeg


@many
@given(
    changes=st.dictionaries(
        st.sampled_from(sorted(msgpack.unpackb(ACTION[1]))), binary_too, min_size=1, max_size=4
    )
)
def test_any_value_in_an_action(changes: dict[str, object]) -> None:
    body = {**msgpack.unpackb(ACTION[1]), **changes}
    check(wire.decode_action, [b"action", msgpack.packb(body)])


@few
@given(shape=st.lists(st.integers(-2, 1 << 63), max_size=3), raw=st.binary(max_size=60))
def test_any_shape(shape: list[int], raw: bytes) -> None:
    body = {**msgpack.unpackb(ACTION[1]), "shape": shape, "actions": raw}
    value = check(wire.decode_action, [b"action", msgpack.packb(body)])
    if isinstance(value, wire.Action):
        assert list(value.actions.shape) == shape


def msgpack_bombs() -> dict[str, bytes]:
    """Small bodies that claim, or nest, far more than they hold."""
    lengths = {"array16": b"\xdc\xff\xff", "array32": b"\xdd\xff\xff\xff\xff"}
    lengths |= {"map16": b"\xde\xff\xff", "map32": b"\xdf\xff\xff\xff\xff"}
    lengths |= {"str32": b"\xdb\xff\xff\xff\xff", "bin32": b"\xc6\xff\xff\xff\xff"}
    lengths |= {"ext32": b"\xc9\xff\xff\xff\xff\x01", "array16 of 4095": b"\xdc\x0f\xff"}
    bombs = {f"{name} alone": head for name, head in lengths.items()}
    for name, head in lengths.items():
        bombs[f"{name} as a value"] = b"\x81\xa4size" + head
        bombs[f"{name} nested"] = (head * 1300)[:4000]
        bombs[f"{name} as a key"] = b"\x81" + head + b"\xc0"
    bombs["nested arrays"] = b"\x81\xa4size" + b"\x91" * 900 + b"\xc0"
    bombs["nested arrays, deeper"] = b"\x81\xa4size" + b"\x91" * 4000 + b"\xc0"
    bombs["nested maps"] = b"\x81\xa1a" * 1300 + b"\xc0"
    bombs["maps as keys"] = b"\x81" * 1300
    bombs["array as a key"] = b"\x81\x91\x01\x02"
    bombs["number as a key"] = b"\x81\x01\x02"
    bombs["many empty maps"] = b"\xdc\x0f\x00" + b"\x80" * 0xF00
    bombs["ext of a key"] = b"\x81\xd4\x01\x00\xc0"
    bombs["timestamp ext"] = b"\x81\xa9timestamp\xd6\xff\x00\x00\x00\x01"
    bombs["empty ext"] = b"\x81\xa4size\xc7\x00\x05"
    bombs["broken utf-8"] = b"\x81\xa6camera\xa2\xff\xfe"
    bombs["surrogate in utf-8"] = b"\x81\xa6camera\xa3\xed\xa0\x80"
    bombs["duplicate keys"] = b"\x82\xa4size\x01\xa4size\x02"
    return bombs


def json_bombs() -> dict[str, bytes]:
    return {
        "nested arrays": b'{"size":' + b"[" * 4000,
        "nested arrays, closed": b'{"size":' + b"[" * 900 + b"]" * 900 + b"}",
        "nested arrays, closed, deeper": b'{"size":' + b"[" * 2000 + b"]" * 2000 + b"}",
        "nested maps": b'{"a":' * 800,
        "long number": b'{"timestamp":' + b"9" * 4000 + b"}",
        "large exponent": b'{"timestamp": 1e999999}',
        "not a number": b'{"timestamp": NaN, "size": Infinity, "seq": -Infinity}',
        "lone surrogate": rb'{"camera": "\ud800", "timestamp": 1, "size": 1}',
        "duplicate keys": b'{"size": 1, "size": 2}',
        "many empty maps": b'{"a":[' + b"{}," * 1300 + b"{}]}",
        "broken utf-8": b'{"camera": "\xff\xfe"}',
        "utf-16": '{"camera": "OAK"}'.encode("utf-16-le"),
        "nul": b'{"camera": "OAK\0"}',
    }


@pytest.mark.parametrize("name", sorted(msgpack_bombs()))
def test_msgpack_bomb(name: str) -> None:
    bomb = msgpack_bombs()[name]
    assert check(wire.decode_camera, [bomb, b""]) is None
    assert check(wire.decode_action, [b"action", bomb]) is None


@pytest.mark.parametrize("name", sorted(json_bombs()))
def test_json_bomb(name: str) -> None:
    assert check(wire.decode_camera, [json_bombs()[name], b""]) is None


@pytest.mark.parametrize("depth", [500, 900, 1000])
def test_nested_size_in_a_header_that_is_right_otherwise(depth: int) -> None:
    """Such a value cannot even be printed."""
    for header in (
        b"\x83\xa6camera\xa1a\xa9timestamp\x01\xa4size" + b"\x91" * depth + b"\xc0",
        b'{"camera":"a","timestamp":1,"size":' + b"[" * depth + b"]" * depth + b"}",
    ):
        assert check(wire.decode_camera, [header, b"x"]) is None


def test_the_last_of_duplicate_keys_counts(make_jpeg: MakeJpeg) -> None:
    jpeg = make_jpeg(640, 360)
    header = f'{{"camera":"OAK","timestamp":1,"size":0,"size":{len(jpeg)}}}'.encode()
    assert isinstance(check(wire.decode_camera, [header, jpeg]), wire.CameraFrame)


# --- memory --------------------------------------------------------------------------------------


def peak_of(decode: Decoder, *args: object) -> int:
    """Bytes that a decode holds at its worst."""

    def decode_once() -> None:
        with contextlib.suppress(MalformedMessage):
            decode(*args)

    tracemalloc.start()
    try:
        decode_once()  # what is allocated once and kept does not count
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        decode_once()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


SLACK = 64 << 10


@pytest.mark.parametrize("name", sorted(msgpack_bombs()))
def test_memory_of_a_msgpack_bomb(name: str) -> None:
    bomb = msgpack_bombs()[name]
    assert peak_of(wire.decode_camera, [bomb, b""]) < SLACK + 100 * len(bomb)
    assert peak_of(wire.decode_action, [b"action", bomb]) < SLACK + 100 * len(bomb)


@pytest.mark.parametrize("name", sorted(json_bombs()))
def test_memory_of_a_json_bomb(name: str) -> None:
    bomb = json_bombs()[name]
    assert peak_of(wire.decode_camera, [bomb, b""]) < SLACK + 100 * len(bomb)


def test_memory_of_nested_arrays_that_claim_what_is_allowed() -> None:
    """The parser reserves room for every array on its stack."""
    for body in (b"\xdc\x00\x40" * 1300, b"\xdc\x10\x00" * 1300, b"\xdc\xff\xff" * 20_000):
        assert peak_of(wire.decode_camera, [body[:4096], b""]) < 1 << 20
        assert peak_of(wire.decode_action, [b"action", body]) < 1 << 20


def test_memory_of_ordinary_messages(make_jpeg: MakeJpeg) -> None:
    jpeg = make_jpeg(1920, 1080, scan=bytes(8 << 20))
    frame = wire.CameraFrame("OAK", 1.0, jpeg)
    assert peak_of(wire.decode_camera, wire.encode_camera(frame)) < SLACK  # no copy of the picture
    huge = make_jpeg(65535, 65535)
    assert peak_of(wire.decode_camera, wire.encode_camera(wire.CameraFrame("a", 1.0, huge))) < SLACK
    samples = struct.pack("<I", 15) + bytes(15 * 4120)
    assert peak_of(wire.decode_samples, samples) < SLACK + 2 * len(samples)
    assert peak_of(wire.decode_samples, b"\xff" * 4 + samples[4:]) < SLACK
    assert peak_of(wire.decode_action, ACTION) < SLACK
    assert peak_of(wire.decode_robot, [b"robot_state", bytes(1 << 20)]) < SLACK
    assert peak_of(wire.decode_robot, [bytes(1 << 20), b""]) < SLACK


@few
@given(data=st.binary(max_size=4096))
def test_memory_of_any_header(data: bytes) -> None:
    assert peak_of(wire.decode_camera, [data, b""]) < SLACK + 100 * len(data)
    assert peak_of(wire.decode_action, [b"action", data]) < SLACK + 100 * len(data)
