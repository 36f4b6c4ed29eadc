"""Every packet against bytes put together by hand from the description of the wire."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable

import cv2
import msgpack
import numpy as np
import pytest

from common import wire
from common.wire import MalformedMessage

MakeJpeg = Callable[..., bytes]

JOINTS = (1.5, -2.25, 3.0, -4.5, 5.125, -6.0)
POSE = (190.0, 0.0, 308.0, 0.0, 90.0, -0.5)
CAPTURED_AT, SENT_AT = 1_700_000_000.125, 1_700_000_000.25


def reason_of(decode: Callable[..., object], *args: object) -> tuple[str, str]:
    with pytest.raises(MalformedMessage) as caught:
        decode(*args)
    return caught.value.stream, caught.value.reason


# --- robot state ---------------------------------------------------------------------------------


def robot_payload(origin: float = CAPTURED_AT, sent: float = SENT_AT, force: float = 0.0) -> bytes:
    """Field after field, so that no format string is shared with the code under test."""
    fields = [struct.pack("<d", origin), struct.pack("<d", sent), struct.pack("<f", force)]
    fields += [struct.pack("<f", value) for value in (*JOINTS, *POSE)]
    return b"".join(fields)


def test_robot_state_is_68_bytes_in_the_documented_order() -> None:
    state = wire.RobotState(CAPTURED_AT, SENT_AT, 0.5, JOINTS, POSE)
    assert wire.encode_robot(state) == [b"robot_state", robot_payload(force=0.5)]
    assert len(robot_payload()) == 68
    assert wire.decode_robot([b"robot_state", robot_payload(force=0.5)]) == state


def test_robot_state_of_an_all_distinct_payload() -> None:
    """Distinct values in every field: a swap of any two would show."""
    payload = struct.pack("<ddf12f", 1.0, 2.0, 3.0, *range(4, 16))
    state = wire.decode_robot([b"robot_state", payload])
    assert isinstance(state, wire.RobotState)
    assert (state.origin_timestamp, state.send_timestamp, state.force) == (1.0, 2.0, 3.0)
    assert state.joints == (4, 5, 6, 7, 8, 9)
    assert state.pose == (10, 11, 12, 13, 14, 15)


def test_robot_state_from_any_buffer() -> None:
    payload = robot_payload()
    expected = wire.decode_robot([b"robot_state", payload])
    for kind in (bytes, bytearray, memoryview):
        assert wire.decode_robot([kind(b"robot_state"), kind(payload)]) == expected


@pytest.mark.parametrize(
    "frames", [[b"episode_end"], [b"episode_end", b""], [b"episode_end", b"x"]]
)
def test_episode_end_with_and_without_a_payload(frames: list[bytes]) -> None:
    assert isinstance(wire.decode_robot(frames), wire.EpisodeEnd)


def test_episode_end_bytes() -> None:
    assert wire.encode_episode_end() == [b"episode_end", b""]


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], "parts"),
        ([b"robot_state"], "parts"),
        ([b"robot_state", robot_payload(), b""], "parts"),
        ([b"episode_end", b"", b""], "parts"),
        ([b"robot_stat", robot_payload()], "topic"),
        ([b"robot_state2", robot_payload()], "topic"),
        ([b"", robot_payload()], "topic"),
        ([b"robot_state", robot_payload()[:-1]], "size"),
        ([b"robot_state", robot_payload() + b"\0"], "size"),
        ([b"robot_state", b""], "size"),
        ([b"robot_state", robot_payload(origin=math.nan)], "timestamp"),
        ([b"robot_state", robot_payload(sent=math.inf)], "timestamp"),
        ([b"robot_state", robot_payload(origin=-1.0)], "timestamp"),
        ([b"robot_state", robot_payload(sent=float(1 << 33))], "timestamp"),
        ([b"robot_state", robot_payload(force=math.nan)], "values"),
        ([b"robot_state", robot_payload()[:-4] + struct.pack("<f", math.inf)], "values"),
        ([b"robot_state", robot_payload(force=-1.1e6)], "values"),
        (["robot_state", robot_payload()], "type"),
        ([b"robot_state", None], "type"),
        ([3, b""], "type"),
    ],
)
def test_malformed_robot_message(frames: list[bytes], reason: str) -> None:
    assert reason_of(wire.decode_robot, frames) == ("robot", reason)


def robot_status(**changes: object) -> list[bytes]:
    body = {"condition": "error", "timestamp": SENT_AT, "detail": "joint 3 stalled"} | changes
    return [b"robot_status", msgpack.packb(body)]


def test_robot_status_is_a_map() -> None:
    status = wire.RobotStatus("error", SENT_AT, "joint 3 stalled")
    topic, body = wire.encode_robot_status(status)
    assert (topic, msgpack.unpackb(body)) == (b"robot_status", msgpack.unpackb(robot_status()[1]))
    assert wire.decode_robot(robot_status()) == status
    assert wire.decode_robot([topic, msgpack.packb({"condition": "ok", "timestamp": 1})]) == (
        wire.RobotStatus("ok", 1.0)
    )


def test_a_devices_own_text_is_made_one_line_before_it_is_sent() -> None:
    sent = wire.encode_robot_status(wire.RobotStatus("lost", 1.0, "a\nb\x1b[31m" + 300 * "c"))
    status = wire.decode_robot(sent)
    assert isinstance(status, wire.RobotStatus)
    assert status.detail.startswith("a b [31mccc") and len(status.detail) == 200


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([b"robot_status"], "parts"),
        ([b"robot_status", b""], "size"),
        ([b"robot_status", bytes(5000)], "size"),
        ([b"robot_status", b"\xc1"], "status"),
        ([b"robot_status", msgpack.packb(["ok"])], "status"),
        (robot_status(condition="fine"), "status"),
        (robot_status(condition=["ok"]), "status"),
        (robot_status(detail=7), "status"),
        (robot_status(detail="two\nlines"), "status"),
        (robot_status(detail="x" * 201), "status"),
        (robot_status(timestamp=None), "timestamp"),
        (robot_status(timestamp=math.nan), "timestamp"),
    ],
)
def test_malformed_robot_status(frames: list[bytes], reason: str) -> None:
    assert reason_of(wire.decode_robot, frames) == ("robot", reason)


# --- camera frames -------------------------------------------------------------------------------


def test_header_of_a_deployed_sender(make_jpeg: MakeJpeg) -> None:
    jpeg = make_jpeg(1280, 720)
    for side in ("left", "right"):
        header = (
            f'{{"camera": "ZED_41182735_{side}", "timestamp": 1700000000.125, "size": {len(jpeg)}}}'
        )
        frame = wire.decode_camera([header.encode(), jpeg])
        assert frame.camera == f"ZED_41182735_{side}"
        assert frame.timestamp == CAPTURED_AT
        assert frame.jpeg is jpeg  # the very bytes that came in
        assert (frame.seq, frame.send_timestamp) == (None, None)
        assert (frame.width, frame.height) == (1280, 720)  # from the JPEG: the header has none


def test_msgpack_header_byte_for_byte(make_jpeg: MakeJpeg) -> None:
    jpeg = make_jpeg(640, 360, scan=b"\x55" * 300)
    header = b"".join(
        [
            b"\x87",  # a map of seven
            b"\xa6camera\xa5View3",
            b"\xa9timestamp\xcb" + struct.pack(">d", CAPTURED_AT),
            b"\xa4size\xcd" + struct.pack(">H", len(jpeg)),
            b"\xa3seq\x2a",
            b"\xaesend_timestamp\xcb" + struct.pack(">d", SENT_AT),
            b"\xa5width\xcd" + struct.pack(">H", 640),
            b"\xa6height\xcd" + struct.pack(">H", 360),
        ]
    )
    frame = wire.CameraFrame("View3", CAPTURED_AT, jpeg, 42, SENT_AT, 640, 360)
    assert wire.encode_camera(frame) == [header, jpeg]
    assert wire.decode_camera([header, jpeg]) == frame


def test_json_header_is_what_deployed_senders_write(make_jpeg: MakeJpeg) -> None:
    jpeg = make_jpeg(640, 360)
    header, sent = wire.encode_camera(wire.CameraFrame("OAK", CAPTURED_AT, jpeg), "json")
    expected = {"camera": "OAK", "timestamp": CAPTURED_AT, "size": len(jpeg)}
    assert bytes(header).startswith(b"{")
    assert bytes(header) == json.dumps(expected).encode()
    assert sent is jpeg


@pytest.mark.parametrize("pack", [msgpack.packb, lambda header: json.dumps(header).encode()])
def test_unknown_header_keys_are_ignored(
    make_jpeg: MakeJpeg, pack: Callable[[object], bytes]
) -> None:
    jpeg = make_jpeg(640, 360)
    header = {"camera": "OAK-D", "timestamp": 5, "size": len(jpeg), "gain": [1, {"x": None}]}
    header["exposure"] = {"ms": 8.5, "auto": True}
    assert wire.decode_camera([pack(header), jpeg]) == wire.CameraFrame(
        "OAK-D", 5.0, jpeg, None, None, 640, 360
    )


def test_size_of_the_picture_comes_from_the_jpeg(make_jpeg: MakeJpeg) -> None:
    jpeg = make_jpeg(640, 360)
    header = {"camera": "OAK", "timestamp": 1.0, "size": len(jpeg), "width": 9999, "height": 1}
    frame = wire.decode_camera([msgpack.packb(header), jpeg])
    assert (frame.width, frame.height) == (640, 360)


@pytest.mark.parametrize(("width", "height"), [(640, 360), (1280, 720), (1920, 1080), (1, 1)])
def test_a_real_encoders_jpeg_passes(width: int, height: int) -> None:
    picture = np.random.default_rng(1).integers(0, 255, (height, width, 3), np.uint8)
    _, encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 75])
    jpeg = encoded.tobytes()
    for padded in (jpeg, jpeg + bytes(512)):  # hardware encoders pad with zeros
        message = wire.encode_camera(wire.CameraFrame("OAK", 1.0, padded))
        frame = wire.decode_camera(message)
        assert (frame.width, frame.height) == (width, height)
        assert frame.jpeg is padded


def camera_message(make_jpeg: MakeJpeg, **changes: object) -> list[bytes]:
    jpeg = make_jpeg(640, 360)
    header = {"camera": "OAK", "timestamp": 1.0, "size": len(jpeg), **changes}
    return [msgpack.packb({k: v for k, v in header.items() if v is not ...}), jpeg]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"camera": ...}, "header_field"),
        ({"camera": 7}, "header_field"),
        ({"camera": b"OAK"}, "header_field"),
        ({"camera": ""}, "header_field"),
        ({"camera": "x" * 129}, "header_field"),
        ({"camera": "é" * 65}, "header_field"),
        ({"camera": "OAK\n[ACTION #1]"}, "header_field"),
        ({"camera": "../../OAK"}, "header_field"),
        ({"camera": "..\\OAK"}, "header_field"),
        ({"timestamp": ...}, "timestamp"),
        ({"timestamp": "1.0"}, "timestamp"),
        ({"timestamp": True}, "timestamp"),
        ({"timestamp": math.nan}, "timestamp"),
        ({"timestamp": -math.inf}, "timestamp"),
        ({"timestamp": (1 << 64) - 1}, "timestamp"),
        ({"send_timestamp": math.inf}, "timestamp"),
        ({"send_timestamp": [1.0]}, "timestamp"),
        ({"size": ...}, "size"),
        ({"size": 3}, "size"),
        ({"size": True}, "size"),
        ({"size": -1}, "size"),
        ({"size": "52"}, "size"),
        ({"seq": -1}, "header_field"),
        ({"seq": 1.0}, "header_field"),
        ({"seq": False}, "header_field"),
        ({"seq": 1 << 63}, "header_field"),
        ({"width": "640"}, "header_field"),
        ({"height": -360}, "header_field"),
    ],
)
def test_malformed_camera_header(
    make_jpeg: MakeJpeg, changes: dict[str, object], reason: str
) -> None:
    message = camera_message(make_jpeg, **changes)
    assert reason_of(wire.decode_camera, message) == ("camera", reason)


def test_the_longest_camera_name_passes(make_jpeg: MakeJpeg) -> None:
    name = "é" * 64
    assert wire.decode_camera(camera_message(make_jpeg, camera=name)).camera == name


def test_malformed_camera_parts(make_jpeg: MakeJpeg) -> None:
    header, jpeg = camera_message(make_jpeg)
    for frames in ([], [header], [header, jpeg, b""]):
        assert reason_of(wire.decode_camera, frames) == ("camera", "parts")
    for frames in ([header, None], [None, jpeg], [header, "x"], [{}, jpeg]):
        assert reason_of(wire.decode_camera, frames) == ("camera", "type")


def test_malformed_header_bytes(make_jpeg: MakeJpeg) -> None:
    jpeg = make_jpeg(640, 360)
    for header in (b"", b"{" + b" " * 4096):
        assert reason_of(wire.decode_camera, [header, jpeg]) == ("camera", "header_size")
    not_maps = (
        b"{",
        b'{"camera"',
        b"\x93\1\2\3",
        b"[1]",
        b"\xc0",
        b"\xff",
        b'"{}"',
        b"\x81",
        b"\xc1",
    )
    camera, timestamp, size = (
        b"\xa6camera\xa1a",
        b"\xa9timestamp\x01",
        b"\xa4size\xcc%c" % len(jpeg),
    )
    assert wire.decode_camera([b"\x83" + camera + timestamp + size, jpeg]).camera == "a"
    number_as_key = b"\x84" + camera + timestamp + size + b"\x01\x02"
    for header in (*not_maps, number_as_key):
        assert reason_of(wire.decode_camera, [header, jpeg]) == ("camera", "header")


def test_a_header_of_just_the_largest_size_passes(make_jpeg: MakeJpeg) -> None:
    jpeg = make_jpeg(640, 360)
    header = f'{{"camera": "OAK", "timestamp": 1, "size": {len(jpeg)}}}'.encode().ljust(4096)
    assert wire.decode_camera([header, jpeg]).camera == "OAK"


def test_pictures_that_are_too_large(make_jpeg: MakeJpeg) -> None:
    for width, height, passes in ((4096, 4096, True), (4096, 4097, False), (65535, 65535, False)):
        jpeg = make_jpeg(width, height)
        message = wire.encode_camera(wire.CameraFrame("OAK", 1.0, jpeg))
        if passes:
            assert wire.decode_camera(message).width == width
        else:
            assert reason_of(wire.decode_camera, message) == ("camera", "oversized")
    jpeg = make_jpeg(640, 360, scan=bytes(16 << 20))
    message = wire.encode_camera(wire.CameraFrame("OAK", 1.0, jpeg))
    assert reason_of(wire.decode_camera, message) == ("camera", "oversized")


def test_bytes_that_are_no_whole_jpeg(make_jpeg: MakeJpeg) -> None:
    jpeg = make_jpeg(640, 360)
    frame_at, scan_at = jpeg.index(b"\xff\xc0"), jpeg.index(b"\xff\xda")
    broken = {
        "empty": b"",
        "text": b"hello, world",
        "png": cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes(),
        "no start": jpeg[1:],
        "no end": jpeg[:-1],
        "half": jpeg[: len(jpeg) // 2],
        "only markers": b"\xff\xd8\xff\xd9",
        "no frame header": jpeg[:frame_at] + jpeg[scan_at:],
        "no scan": jpeg[:scan_at] + b"\xff\xd9",
        "no width": make_jpeg(0, 360),
        "no height": make_jpeg(640, 0),
        "segment too long": jpeg[: frame_at + 2] + b"\xff\xff" + jpeg[frame_at + 4 :],
        "segment too short": jpeg[: frame_at + 2] + b"\x00\x01" + jpeg[frame_at + 4 :],
        "frame header too short": jpeg[: frame_at + 2] + b"\x00\x04" + jpeg[frame_at + 4 :],
        "frame header just too short": b"\xff\xd8\xff\xc0\0\7\x08\1\1\1\1" + jpeg[scan_at:],
        "no marker": jpeg[:frame_at] + b"\x00" + jpeg[frame_at + 1 :],
        "fill bytes only": b"\xff\xd8" + b"\xff" * 5000 + b"\xff\xd9",
        "too many segments": b"\xff\xd8" + b"\xff\xfe\0\2" * 300 + jpeg[2:],
        "lossless": jpeg.replace(b"\xff\xc0", b"\xff\xc3"),
    }
    for what, data in broken.items():
        header = msgpack.packb({"camera": "OAK", "timestamp": 1.0, "size": len(data)})
        assert reason_of(wire.decode_camera, [header, data]) == ("camera", "not_jpeg"), what


# --- force sensor --------------------------------------------------------------------------------


def datagram(count: int, aline: int = 1025, declared: int | None = None) -> bytes:
    """Every value of every sample is distinct (and exact in float32)."""
    parts = [struct.pack("<I", count if declared is None else declared)]
    for i in range(count):
        parts.append(struct.pack("<ddf", 1000.0 + i, 2000.0 + i, 0.5 * i))
        parts.append(b"".join(struct.pack("<f", 10_000 * i + depth) for depth in range(aline)))
    return b"".join(parts)


@pytest.mark.parametrize(("count", "aline"), [(1, 1025), (10, 1025), (15, 1025), (1, 1), (40, 7)])
def test_datagram_byte_for_byte(count: int, aline: int) -> None:
    data = datagram(count, aline)
    assert len(data) == 4 + count * (20 + 4 * aline)
    batch = wire.decode_samples(data, aline)
    assert len(batch) == count
    assert batch.timestamps.tolist() == [1000.0 + i for i in range(count)]
    assert batch.send_timestamps.tolist() == [2000.0 + i for i in range(count)]
    assert batch.forces.tolist() == [0.5 * i for i in range(count)]
    assert batch.alines.tolist() == [[10_000 * i + d for d in range(aline)] for i in range(count)]
    assert (batch.forces.dtype, batch.alines.dtype) == (np.float32, np.float32)
    assert wire.encode_samples(batch) == data


def test_fifteen_samples_are_the_largest_datagram() -> None:
    assert wire.MAX_DATAGRAM == 65_507
    assert len(datagram(1)) == 4 + 4120
    assert len(datagram(15)) == 61_804
    assert wire.max_samples() == 15
    assert wire.max_samples(1) == (65_507 - 4) // 24
    zeros = np.zeros(16)
    for count in (0, 16):
        with pytest.raises(ValueError, match="datagram"):
            wire.encode_samples(
                wire.SampleBatch(
                    zeros[:count],
                    zeros[:count],
                    np.zeros(count, np.float32),
                    np.zeros((count, 1025), np.float32),
                )
            )
    assert reason_of(wire.decode_samples, datagram(16)) == ("sensor", "oversized")


def test_force_without_a_scan() -> None:
    batch = wire.decode_samples(datagram(3, aline=0), 0)
    assert batch.forces.tolist() == [0.0, 0.5, 1.0]
    assert batch.alines.shape == (3, 0)


def test_decoding_samples_copies_nothing() -> None:
    data = bytearray(datagram(2))
    batch = wire.decode_samples(memoryview(data))
    assert np.shares_memory(batch.alines, np.frombuffer(data, np.uint8))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (b"\1\0\0", "truncated"),
        (b"\1\0\0\0", "size"),
        (b"\0\0\0\0", "count"),
        (b"\0\0\0\0" + bytes(4120), "count"),
        (datagram(2)[:-1], "size"),
        (datagram(2) + b"\0", "size"),
        (datagram(2, declared=1), "size"),
        (datagram(2, declared=3), "size"),
        (datagram(1, declared=0xFFFFFFFF), "size"),
        (datagram(1, aline=1024), "size"),
        (bytes(65_508), "oversized"),
        (None, "type"),
        ("text", "type"),
    ],
)
def test_malformed_datagram(data: bytes, reason: str) -> None:
    assert reason_of(wire.decode_samples, data) == ("sensor", reason)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, float(1 << 33)])
@pytest.mark.parametrize("at", [0, 8])
@pytest.mark.parametrize("sample", [0, 1, 2])
def test_broken_stamp_in_any_sample(value: float, at: int, sample: int) -> None:
    data = bytearray(datagram(3))
    struct.pack_into("<d", data, 4 + 4120 * sample + at, value)
    assert reason_of(wire.decode_samples, data) == ("sensor", "timestamp")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0x7F800000, 0xFF800000, 0x49742408])
@pytest.mark.parametrize("channel", [0, 1, 500, 1025])
def test_broken_value_in_any_channel(bits: int, channel: int) -> None:
    """NaN (quiet and signalling), the infinities, and a little over a million."""
    data = bytearray(datagram(3))
    struct.pack_into("<I", data, 4 + 4120 + 16 + 4 * channel, bits)
    assert reason_of(wire.decode_samples, data) == ("sensor", "values")


# --- actions -------------------------------------------------------------------------------------

ROWS = np.arange(56, dtype=np.float32).reshape(8, 7)
ACTION = wire.Action(42, 10.5, 10.25, 7, 0.5, 0.1, "joint_delta", ROWS)
KEYS = ["seq", "timestamp", "observed_at", "feature_update", "feature_age", "dt", "space"]
KEYS += ["actions", "shape", "dtype", "hold", "reason"]


def float64(value: float) -> bytes:
    return b"\xcb" + struct.pack(">d", value)


def action_body() -> bytes:
    values = [b"\x2a", float64(10.5), float64(10.25), b"\x07", float64(0.5), float64(0.1)]
    values += [b"\xabjoint_delta", b"\xc4\xe0" + struct.pack("<56f", *range(56)), b"\x92\x08\x07"]
    values += [b"\xa7float32", b"\xc2", b"\xa0"]
    keys = [bytes([0xA0 + len(key)]) + key.encode() for key in KEYS]
    return b"\x8c" + b"".join(key + value for key, value in zip(keys, values, strict=True))


def assert_same_action(got: wire.Action, expected: wire.Action) -> None:
    assert got.actions.dtype == np.float32
    np.testing.assert_array_equal(got.actions, expected.actions)
    for field in ("seq", "timestamp", "observed_at", "feature_update", "feature_age", "dt"):
        assert getattr(got, field) == getattr(expected, field), field
    assert (got.space, got.hold, got.reason) == (expected.space, expected.hold, expected.reason)


def test_action_byte_for_byte() -> None:
    assert wire.encode_action(ACTION) == [b"action", action_body()]
    assert_same_action(wire.decode_action([b"action", action_body()]), ACTION)


def test_action_keys() -> None:
    body = msgpack.unpackb(wire.encode_action(ACTION)[1])
    assert list(body) == KEYS
    assert isinstance(body["actions"], bytes)


def test_hold_order() -> None:
    hold = wire.Action(
        1, 2.0, 2.0, 0, 0.0, 0.1, "joint_position", np.zeros((8, 7), np.float32), True, "sensor"
    )
    body = msgpack.unpackb(wire.encode_action(hold)[1])
    assert (body["hold"], body["reason"]) == (True, "sensor")
    assert_same_action(wire.decode_action(wire.encode_action(hold)), hold)


def test_rows_are_little_endian_float32_whatever_was_given() -> None:
    for rows in (ROWS.astype(">f4"), ROWS.astype(np.float64), np.asfortranarray(ROWS)):
        action = wire.Action(42, 10.5, 10.25, 7, 0.5, 0.1, "joint_delta", rows)
        assert wire.encode_action(action) == [b"action", action_body()]


def action_message(**changes: object) -> list[bytes]:
    body = {**msgpack.unpackb(action_body()), **changes}
    return [b"action", msgpack.packb({k: v for k, v in body.items() if v is not ...})]


def test_unknown_action_keys_are_ignored() -> None:
    assert_same_action(wire.decode_action(action_message(gripper={"force": [1]})), ACTION)


def test_an_action_without_a_reason() -> None:
    assert wire.decode_action(action_message(reason=...)).reason == ""


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seq": ...}, "body"),
        ({"seq": True}, "header_field"),
        ({"seq": -1}, "header_field"),
        ({"seq": 1 << 63}, "header_field"),
        ({"feature_update": "7"}, "header_field"),
        ({"feature_update": None}, "body"),
        ({"timestamp": math.nan}, "timestamp"),
        ({"timestamp": ...}, "timestamp"),
        ({"observed_at": math.inf}, "timestamp"),
        ({"observed_at": "now"}, "timestamp"),
        ({"feature_age": ...}, "body"),
        ({"feature_age": -0.5}, "values"),
        ({"feature_age": math.nan}, "values"),
        ({"dt": math.inf}, "values"),
        ({"dt": (1 << 64) - 1}, "values"),
        ({"dt": True}, "body"),
        ({"space": "joint_velocity"}, "space"),
        ({"space": ["joint_delta"]}, "space"),
        ({"space": ...}, "space"),
        ({"hold": 1}, "body"),
        ({"hold": ...}, "body"),
        ({"reason": 5}, "body"),
        ({"reason": "x" * 4097}, "body"),
        ({"actions": ...}, "actions"),
        ({"actions": "x" * 224}, "actions"),
        ({"actions": bytes(223)}, "actions"),
        ({"actions": b""}, "actions"),
        ({"dtype": "float64"}, "actions"),
        ({"dtype": "object"}, "actions"),
        ({"dtype": ["float32"]}, "actions"),
        ({"shape": [7, 7]}, "actions"),
        ({"shape": [56]}, "actions"),
        ({"shape": [2, 4, 7]}, "actions"),
        ({"shape": [-8, -7]}, "actions"),
        ({"shape": [8.0, 7]}, "actions"),
        ({"shape": [True, 56]}, "actions"),
        ({"shape": [0, 7], "actions": b""}, "actions"),
        ({"shape": [(1 << 64) - 1, (1 << 64) - 1]}, "actions"),
        ({"shape": [4097, 1], "actions": bytes(4 * 4097)}, "actions"),
        ({"actions": struct.pack("<I", 0x7F800001) * 56}, "values"),
        ({"actions": bytes(220) + struct.pack("<f", math.nan)}, "values"),
        ({"actions": bytes(220) + struct.pack("<f", -math.inf)}, "values"),
        ({"actions": bytes(220) + struct.pack("<f", 1.1e6)}, "values"),
        ({"padding": bytes(1 << 16)}, "size"),
        ({"matrix": [0] * 65}, "body"),
    ],
)
def test_malformed_action(changes: dict[str, object], reason: str) -> None:
    assert reason_of(wire.decode_action, action_message(**changes)) == ("action", reason)


def test_the_largest_action_passes() -> None:
    rows = action_message(shape=[64, 64], actions=bytes(4 * 4096), matrix=[0] * 64)
    assert wire.decode_action(rows).actions.shape == (64, 64)


def test_malformed_action_frames() -> None:
    body = action_body()
    for frames in ([], [b"action"], [b"action", body, b""]):
        assert reason_of(wire.decode_action, frames) == ("action", "parts")
    for topic in (b"actions", b"", b"robot_state"):
        assert reason_of(wire.decode_action, [topic, body]) == ("action", "topic")
    for frames in ([b"action", None], ["action", body]):
        assert reason_of(wire.decode_action, frames) == ("action", "type")
    assert reason_of(wire.decode_action, [b"action", b""]) == ("action", "size")
    for data in (b"{}", body[:-1], body + b"\0", b"\x90", b"\x81\x90\x02"):
        assert reason_of(wire.decode_action, [b"action", data]) == ("action", "body")
    number_as_key = b"\x8d" + body[1:] + b"\x01\x02"
    assert reason_of(wire.decode_action, [b"action", number_as_key]) == ("action", "body")


# --- all -----------------------------------------------------------------------------------------


def test_a_malformed_message_says_where_and_why() -> None:
    error = MalformedMessage("camera", "not_jpeg", "no start marker")
    assert isinstance(error, ValueError)
    assert (error.stream, error.reason) == ("camera", "not_jpeg")
    assert str(error) == "camera: not_jpeg (no start marker)"
    assert str(MalformedMessage("robot", "topic")) == "robot: topic"
