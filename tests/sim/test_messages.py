"""Messages between the rig and its drivers, whole and broken."""

from __future__ import annotations

from dataclasses import replace

import msgpack
import numpy as np
import pytest

from sim.layout import RigConfig
from sim.messages import (
    Command,
    RigState,
    decode_command,
    decode_state,
    encode_command,
    encode_state,
)

STATE = RigState(
    seq=7,
    run=1234,
    time=1.7e9,
    sim_time_s=2.5,
    episode=1,
    seed=42,
    config=RigConfig(tissue_hz=0.5),
    qpos=np.arange(10.0),
    pose=np.arange(6.0),
    force_n=0.25,
    samples=np.arange(9.0).reshape(3, 3),
)


def test_a_state_survives_the_wire() -> None:
    back = decode_state(encode_state(STATE))
    for name in ("qpos", "pose", "samples"):
        assert np.array_equal(getattr(back, name), getattr(STATE, name))
    same = replace(back, qpos=STATE.qpos, pose=STATE.pose, samples=STATE.samples)
    assert same == STATE


def test_the_tissues_motion_survives_the_wire() -> None:
    irregular = replace(STATE, config=RigConfig(tissue="irregular"))
    assert decode_state(encode_state(irregular)).config == irregular.config


@pytest.mark.parametrize(
    "change",
    [
        {"seq": -1},
        {"seq": True},
        {"time": float("nan")},
        {"time": "now"},
        {"qpos": b"\0" * 79},
        {"qpos": b"\xff" * 80},
        {"pose": [0.0] * 6},
        {"samples": b"\0" * 8},
        {"samples": b"\0" * 24 * 257},
        {"config": {"tissue_hz": 99.0}},
        {"config": {"tissue": "wild"}},
        {"config": {"tissue": ["irregular"]}},
        {"config": {"new": 1.0}},
        {"config": None},
        {"seed": 2**31},
        {"pose": None},
    ],
)
def test_a_broken_state_is_a_value_error(change: dict[str, object]) -> None:
    fields = msgpack.unpackb(encode_state(STATE)) | change
    with pytest.raises(ValueError):
        decode_state(msgpack.packb(fields))


@pytest.mark.parametrize(
    "command",
    [
        Command("joints", np.arange(6.0)),
        Command("pose", np.arange(6.0) - 3),
        Command("hold"),
        Command("reset", seed=5),
    ],
)
def test_a_command_survives_the_wire(command: Command) -> None:
    back = decode_command(encode_command(command))
    assert back.kind == command.kind and back.seed == command.seed
    if command.values is None:
        assert back.values is None
    else:
        assert back.values is not None
        assert np.array_equal(back.values, command.values)


BROKEN = [
    b"",
    b"\xc1",
    b"not msgpack at all",
    msgpack.packb([1, 2]),
    msgpack.packb({}),
    msgpack.packb({"joints": [0.0] * 5}),
    msgpack.packb({"joints": [0.0] * 5 + ["x"]}),
    msgpack.packb({"joints": [0.0] * 5 + [True]}),
    msgpack.packb({"joints": [0.0] * 5 + [float("nan")]}),
    msgpack.packb({"joints": [[0.0]] * 6}),
    msgpack.packb({"joints": "abcdef"}),
    msgpack.packb({"pose": {"x": 1}}),
    msgpack.packb({"hold": False}),
    msgpack.packb({"reset": -1}),
    msgpack.packb({"reset": 1.5}),
    msgpack.packb({"jump": 1}),
    msgpack.packb({"hold": True, "reset": 1}),
    msgpack.packb({1: 2}),
    b"\x81" * 900,
    b"\0" * 5000,
]


@pytest.mark.parametrize("payload", BROKEN)
def test_a_broken_command_is_a_value_error(payload: bytes) -> None:
    with pytest.raises(ValueError):
        decode_command(payload)
    with pytest.raises(ValueError):
        decode_state(payload)


def test_random_bytes_are_value_errors(rng: np.random.Generator) -> None:
    good = encode_state(STATE)
    for _ in range(500):
        raw = bytearray(good)
        for at in rng.integers(0, len(raw), 4):
            raw[at] = int(rng.integers(0, 256))
        for decode in (decode_state, decode_command):
            try:
                decode(bytes(raw[: rng.integers(0, len(raw))]))
                decode(bytes(raw))
            except ValueError:
                pass
