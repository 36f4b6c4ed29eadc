"""LeRobot's messages without LeRobot: recorded ones are read, written ones read back by pickle."""

from __future__ import annotations

import ast
import io
import pickle
import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.messages import BadMessage, Chunk, Instructions, Observation, Picture
from serving.pickles import lerobot
from serving.pickles.reader import load
from serving.pickles.values import Bounds, FeatureType, Record, Tensor, excerpt
from serving.pickles.writer import dump
from tests.serving.record_pickles import CAMERAS, FOLDER, JOINTS, PROTOCOLS, ROWS, picture
from tests.support import ROOT

WIDE = Bounds(opcodes=200_000, nodes=200_000)
INSTRUCTIONS = Instructions(
    "act", "someone/act", "cuda", 50, state_names=JOINTS, cameras=dict(CAMERAS)
)


def recorded(name: str, protocol: int) -> bytes:
    return (FOLDER / f"lerobot_{name}_{protocol}.pickle").read_bytes()


# Stand-ins for LeRobot's classes, so that Python's own pickle can check what is written.


@dataclass
class RemotePolicyConfig:
    policy_type: str
    pretrained_name_or_path: str
    lerobot_features: dict[str, Any]
    actions_per_chunk: int
    device: str = "cpu"
    rename_map: dict[str, str] = field(default_factory=dict)


@dataclass
class TimedAction:
    timestamp: float
    timestep: int
    action: Any


@dataclass
class TimedObservation:
    timestamp: float
    timestep: int
    observation: dict[str, Any]
    must_go: bool = False


class Stock(pickle.Unpickler):
    """Python's own reader, with the stand-ins where LeRobot would be."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "lerobot.async_inference.helpers":
            return globals()[name]
        return super().find_class(module, name)


def stock_loads(data: bytes) -> Any:
    return Stock(io.BytesIO(data)).load()


def without_frames(data: bytes) -> bytes:
    """The same pickle of a small message without its one frame."""
    assert data[2] == 0x95
    return data[:2] + data[11:]


# Recorded messages.


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_recorded_setup(protocol: int) -> None:
    assert lerobot.decode_setup(recorded("setup", protocol)) == INSTRUCTIONS


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_recorded_observation(protocol: int) -> None:
    read = lerobot.decode_observation(recorded("observation", protocol), INSTRUCTIONS)
    assert (read.timestep, read.timestamp, read.must_go) == (7, 1700000000.25, True)
    assert read.task == "pick the cube" and read.sensor is None and read.wants == "actions"
    assert read.state.dtype == np.float32
    assert read.state.tolist() == [1.5, -2.25, 30.0]
    assert list(read.pictures) == list(CAMERAS)
    for name, seen in read.pictures.items():
        assert seen.pixels is not None
        assert np.array_equal(seen.pixels, picture(name))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", ["actions", "actions_bfloat16"])
def test_a_recorded_answer(protocol: int, kind: str) -> None:
    chunk = lerobot.decode_actions(recorded(kind, protocol))
    assert (chunk.timestep, chunk.timestamp, chunk.dt) == (7, 1700000000.25, 1 / 32)
    assert chunk.actions.dtype == np.float32
    assert np.array_equal(chunk.actions, ROWS)  # eighths: exact in bfloat16 as well


def test_the_pictures_are_views_of_the_message() -> None:
    data = recorded("observation", 4)
    first = lerobot.decode_observation(data, INSTRUCTIONS).pictures["front"].pixels
    second = lerobot.decode_observation(data, INSTRUCTIONS).pictures["front"].pixels
    assert first is not None and second is not None
    assert np.shares_memory(first, second) and not first.flags.writeable


def test_names_come_in_the_order_of_the_instructions() -> None:
    turned = Instructions("act", "p", state_names=JOINTS[::-1], cameras={"wrist": (2, 3, 3)})
    read = lerobot.decode_observation(recorded("observation", 4), turned)
    assert read.state.tolist() == [30.0, -2.25, 1.5]
    assert list(read.pictures) == ["wrist"]


def test_the_earlier_place_of_the_classes_is_known() -> None:
    """`lerobot.scripts.server.helpers`, where they were when the messages were made."""
    new, old = b"\x1flerobot.async_inference.helpers", b"\x1elerobot.scripts.server.helpers"
    data = without_frames(recorded("observation", 4))
    assert data.count(new) == 1
    read = lerobot.decode_observation(data.replace(new, old), INSTRUCTIONS)
    assert read.state.tolist() == [1.5, -2.25, 30.0]


# What we write.


def test_a_setup_that_we_write() -> None:
    mapped = Instructions(
        "smolvla",
        "/models/é",
        "cuda:1",
        30,
        state_names=JOINTS,
        cameras={"front": (480, 640, 3), "depth": (480, 640, 1)},
        rename={"observation.images.front": "observation.images.camera1"},
    )
    data = lerobot.encode_setup(mapped)
    assert lerobot.decode_setup(data) == mapped
    stock = stock_loads(data)
    assert type(stock) is RemotePolicyConfig
    assert stock.rename_map == {"observation.images.front": "observation.images.camera1"}
    assert stock.lerobot_features == {
        "observation.state": {"dtype": "float32", "shape": (3,), "names": list(JOINTS)},
        "observation.images.front": {
            "dtype": "image",
            "shape": (480, 640, 3),
            "names": ["height", "width", "channels"],
            "info": {"is_depth_map": False},
        },
        "observation.images.depth": {
            "dtype": "image",
            "shape": (480, 640, 1),
            "names": ["height", "width", "channels"],
            "info": {"is_depth_map": True},
        },
    }


def test_a_setup_equals_the_recorded_one_when_stock_reads_both() -> None:
    assert stock_loads(lerobot.encode_setup(INSTRUCTIONS)) == stock_loads(recorded("setup", 4))


def test_an_observation_that_we_write() -> None:
    pictures = {name: Picture(picture(name)) for name in CAMERAS}
    state = np.array([0.5, -1.0, 3.0], np.float32)
    made = Observation(12, 99.5, True, state, pictures, "stack", None)
    data = lerobot.encode_observation(made, INSTRUCTIONS)
    stock = stock_loads(data)
    assert type(stock) is TimedObservation
    assert (stock.timestamp, stock.timestep, stock.must_go) == (99.5, 12, True)
    assert {name: stock.observation[name] for name in JOINTS} == dict(
        zip(JOINTS, (0.5, -1.0, 3.0), strict=True)
    )
    assert all(type(stock.observation[name]) is float for name in JOINTS)
    assert stock.observation["task"] == "stack"
    for name in CAMERAS:
        assert stock.observation[name].dtype == np.uint8
        assert np.array_equal(stock.observation[name], picture(name))
        stock.observation[name][:] = 0  # a stock server may write into its pictures
    back = lerobot.decode_observation(data, INSTRUCTIONS)
    assert np.array_equal(back.state, state) and back.task == "stack" and back.must_go


def test_an_observation_with_a_jpeg_is_sent_as_pixels() -> None:
    pixels = np.full((16, 24, 3), (200, 40, 90), np.uint8)
    _, jpeg = cv2.imencode(".jpg", pixels[..., ::-1])
    one = Instructions("act", "p", cameras={"front": (16, 24, 3)})
    empty = np.zeros(0, np.float32)
    made = Observation(0, 0.0, False, empty, {"front": Picture(jpeg=jpeg.tobytes())})
    seen = lerobot.decode_observation(lerobot.encode_observation(made, one), one)
    shown = seen.pictures["front"].pixels
    assert shown is not None
    assert np.abs(shown.astype(int) - pixels).max() < 6
    broken = Observation(0, 0.0, False, empty, {"front": Picture(jpeg=b"\xff\xd8no")})
    with pytest.raises(BadMessage, match="front"):
        lerobot.encode_observation(broken, one)


def test_what_a_stock_server_cannot_use_is_not_sent() -> None:
    state = np.zeros(3, np.float32)
    pictures = {name: Picture(picture(name)) for name in CAMERAS}
    with pytest.raises(BadMessage, match="'wrist'"):
        some = {"front": pictures["front"]}
        lerobot.encode_observation(Observation(0, 0.0, False, state, some), INSTRUCTIONS)
    with pytest.raises(BadMessage, match="2 values; 3"):
        lerobot.encode_observation(Observation(0, 0.0, False, state[:2], pictures), INSTRUCTIONS)
    with pytest.raises(BadMessage, match="actions only"):
        wants = Observation(0, 0.0, False, state, pictures, wants="features")
        lerobot.encode_observation(wants, INSTRUCTIONS)
    with pytest.raises(BadMessage, match="cannot be said"):
        odd = Observation(0, 0.0, False, state, pictures, task="\ud800")
        lerobot.encode_observation(odd, INSTRUCTIONS)


def test_an_answer_that_we_write_is_tensors_that_share_one_storage() -> None:
    torch = pytest.importorskip("torch")
    rows = np.random.default_rng(1).normal(size=(50, 6)).astype(np.float32)
    data = lerobot.encode_actions(Chunk(20, 1000.5, rows), 0.125)
    stock = stock_loads(data)
    assert type(stock) is list and {type(action) for action in stock} == {TimedAction}
    assert [action.timestep for action in stock] == list(range(20, 70))
    assert [action.timestamp for action in stock] == [1000.5 + i * 0.125 for i in range(50)]
    assert all(type(action.action) is torch.Tensor for action in stock)
    assert {action.action.dtype for action in stock} == {torch.float32}
    assert np.array_equal(torch.stack([action.action for action in stock]).numpy(), rows)
    assert len({action.action.untyped_storage().data_ptr() for action in stock}) == 1
    assert data.count(rows.tobytes()) == 1 and len(data) < rows.nbytes + 50 * 60 + 1000
    back = lerobot.decode_actions(data)
    assert (back.timestep, back.timestamp, back.dt) == (20, 1000.5, 0.125)
    assert np.array_equal(back.actions, rows)


@pytest.mark.parametrize("shape", [(1, 1), (1, 256), (4096, 7)])
def test_answers_of_other_sizes(shape: tuple[int, int]) -> None:
    rows = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    back = lerobot.decode_actions(lerobot.encode_actions(Chunk(0, 5.0, rows), 0.5))
    assert np.array_equal(back.actions, rows)
    assert back.dt == (0.5 if shape[0] > 1 else 0.0)


@pytest.mark.parametrize("dt", [float("nan"), float("inf"), -0.1])
def test_an_answer_with_impossible_times_is_not_written(dt: float) -> None:
    with pytest.raises(BadMessage, match="dt"):
        lerobot.encode_actions(Chunk(0, 0.0, np.zeros((2, 2), np.float32)), dt)


# Single kinds of values, against Python's own pickle.

PLAIN = [
    None, True, False, 0, 255, 256, 65535, 65536, -1, 2**31, -(2**31), 2**100, -(2**127), 0.1,
    float("-inf"), "", "é" * 300, "a\nb", [], [1], [[1], [2.0, "x"]], (), (1,), (1, 2), (1, 2, 3),
    (1, 2, 3, 4), {}, {"a": 1}, {"a": {"b": [None]}}, list(range(3000)), OrderedDict(a=(1, 2)),
]  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values(protocol: int) -> None:
    shared = ["x", {"y": 1}]
    for value in [*PLAIN, [shared, shared]]:
        read = load(pickle.dumps(value, protocol), WIDE)
        assert read == value
        assert type(read) in (type(value), dict)
    read = load(pickle.dumps([shared, shared], protocol), WIDE)
    assert read[0] is not read[1]  # nothing is shared in what is read


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_bytes(protocol: int) -> None:
    for value in (b"", b"ab", bytes(range(256)) * 2):
        assert bytes(load(pickle.dumps(value, protocol), WIDE)) == value
    if protocol == 5:
        assert bytes(load(pickle.dumps(bytearray(b"xyz"), protocol), WIDE)) == b"xyz"


ARRAYS = [
    np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(24.0).reshape(2, 3, 4).transpose(1, 2, 0),
    np.arange(24, dtype=">i2").reshape(4, 6)[::2, ::-1],
    np.array([True, False]),
    np.zeros((3, 0, 2), np.float16),
    np.array(7, np.int64),
    np.float32(1.5),
    np.float64(2.5),
    np.int16(-3),
    np.bool_(True),
    *(np.ones(2, code) for code in ("i1", "i2", "i4", "i8", "u2", "u4", "u8", "f2", ">f8")),
]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("array", ARRAYS, ids=[f"{a.dtype.str}{a.shape}" for a in ARRAYS])
def test_numpy(array: Any, protocol: int) -> None:
    """Whatever forms the installed NumPy writes, those of its protocol 5 included."""
    if protocol == 2 and array.size == 0:  # empty bytes are a call of `bytes` there
        with pytest.raises(BadMessage, match="bytes"):
            load(pickle.dumps(array, protocol), WIDE)
        return
    read = load(pickle.dumps(array, protocol), WIDE)
    assert type(read) is type(array) and read.dtype == array.dtype and read.shape == array.shape
    assert np.array_equal(read, array)


def test_numpy_of_other_versions() -> None:
    """NumPy 1 calls its modules `numpy.core`; NumPy 2.3 and later say how axes are turned."""
    data = without_frames(pickle.dumps(ARRAYS[0], 4))
    new, old = b"\x16numpy._core.multiarray", b"\x15numpy.core.multiarray"
    assert data.count(new) == 1
    assert np.array_equal(load(data.replace(new, old), WIDE), ARRAYS[0])

    turned = ARRAYS[0].transpose(1, 2, 0)  # its memory is in the order (2, 3, 4)
    frombuffer = b"\x8c\x13numpy._core.numeric\x8c\x0b_frombuffer\x93"
    parts = [dump(part)[2:-1] for part in (ARRAYS[0].tobytes(), (2, 3, 4), "K", (1, 2, 0))]
    dtype = b"\x8c\x05numpy\x8c\x05dtype\x93\x8c\x02u1\x89\x88\x87R"
    data = b"".join([b"\x80\x05", frombuffer, b"(", parts[0], dtype, *parts[1:], b"tR."])
    assert np.array_equal(load(data, WIDE), turned)


def test_torch() -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32) / 4
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32]
    kinds += [torch.int16, torch.int8, torch.uint8, torch.bool]
    tensors = [
        base,
        base.reshape(4, 6).T,
        base[3:11:2],
        base.view(4, 6)[2],
        torch.zeros(2, 0),
        torch.zeros(0, dtype=torch.bfloat16),
        torch.tensor(3.0),
        torch.zeros(3, requires_grad=True),
        torch.ones(1).expand(3, 4),
        *(base.to(kind) for kind in kinds),
    ]
    for protocol in (2, 3, 4, 5):
        for tensor in tensors:
            read = load(pickle.dumps(tensor, protocol), WIDE)
            wanted = tensor.detach()
            wanted = wanted.float() if wanted.dtype == torch.bfloat16 else wanted
            assert read.shape == tuple(tensor.shape) and read.dtype == wanted.numpy().dtype
            assert np.array_equal(read, wanted.numpy())


WORD = b"X\x03\x00\x00\x00cpu"
"""How the file of a storage says its device."""


def test_a_tensor_of_an_accelerator_is_data_like_any_other() -> None:
    """It is pickled from a copy in memory, and says `cuda:0` in the place of `cpu`."""
    data = without_frames(recorded("actions", 4))
    assert data.count(WORD) == len(ROWS)
    # The word is three letters longer, and so is the file that it is in.
    start = data.index(b"\x80\x02\x8a") - 4
    size = int.from_bytes(data[start : start + 4], "little")
    old, new = (b"B" + (size + more).to_bytes(4, "little") for more in (0, 3))
    assert data.count(old) == len(ROWS)
    moved = data.replace(old, new).replace(WORD, b"X\x06\x00\x00\x00cuda:0")
    assert np.array_equal(lerobot.decode_actions(moved).actions, ROWS)


@pytest.mark.parametrize("device", [b"met", b"nul", b"CPU", b"cu\n"])
def test_other_devices_are_refused(device: bytes) -> None:
    with pytest.raises(BadMessage, match="device"):
        data = recorded("actions", 4)
        lerobot.decode_actions(data.replace(WORD, WORD[:5] + device))


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**120), 2**120)
    | st.floats(allow_nan=False)
    | st.text(max_size=300)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(st.text(max_size=20), inner, max_size=5)
        | st.builds(
            Record,
            st.sampled_from(["TimedAction", "PolicyFeature", "RemotePolicyConfig"]),
            st.dictionaries(st.text(max_size=20), inner, max_size=3),
        )
    ),
    max_leaves=20,
)


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(VALUES)
def test_what_is_written_is_read_back(value: Any) -> None:
    deep = Bounds(depth=64)
    assert load(dump(value), deep) == value


def test_what_cannot_be_written_says_so() -> None:
    odd = [object(), {1, 2}, np.array(["a"]), np.array([None]), 1 << 3000, {1: 2}]
    odd += [Tensor(np.zeros((2, 2)).T), Tensor(np.zeros(2))]  # type: ignore[list-item]
    for value in odd:
        with pytest.raises((TypeError, AttributeError)):
            dump(value)


# Sense and nonsense in sound pickles.


def written(kind: str = "RemotePolicyConfig", **changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "RemotePolicyConfig": {
            "policy_type": "act",
            "pretrained_name_or_path": "p",
            "lerobot_features": {},
            "actions_per_chunk": 5,
        },
        "TimedObservation": {
            "timestamp": 1.0,
            "timestep": 2,
            "observation": {"a": 1.0, "front": picture("front"), "task": "go"},
        },
        "TimedAction": {"timestamp": 1.0, "timestep": 2, "action": Tensor(ROWS, 0)},
    }[kind] | changes
    return dump(Record(kind, {key: part for key, part in fields.items() if part is not ...}))


def test_the_least_setup() -> None:
    assert lerobot.decode_setup(written()) == Instructions("act", "p", "cpu", 5)


def test_features_as_policy_features() -> None:
    """The field is declared as a dictionary of those, channels first; stock sends plain ones."""
    shape = Record("PolicyFeature", {"type": FeatureType("VISUAL"), "shape": (3, 480, 640)})
    data = written(lerobot_features={"observation.images.top": shape, "action": {"shape": (6,)}})
    assert lerobot.decode_setup(data).cameras == {"top": (480, 640, 3)}
    state = Record("PolicyFeature", {"type": FeatureType("STATE"), "shape": (6,)})
    with pytest.raises(BadMessage, match=r"observation\.state does not name"):
        lerobot.decode_setup(written(lerobot_features={"observation.state": state}))


STATE = {"dtype": "float32", "shape": (2,), "names": ["a", "b"]}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"policy_type": 5}, "policy_type"),
        ({"policy_type": ""}, "policy type"),
        ({"pretrained_name_or_path": ...}, "pretrained_name_or_path"),
        ({"pretrained_name_or_path": "x" * 5000}, "pretrained_name_or_path"),
        ({"actions_per_chunk": True}, "actions_per_chunk"),
        ({"actions_per_chunk": 0}, "actions_per_chunk"),
        ({"actions_per_chunk": 2**100}, "actions_per_chunk"),
        ({"device": None}, "device"),
        ({"rename_map": {"a": 1}}, "rename_map"),
        ({"rename_map": []}, "rename_map"),
        ({"lerobot_features": None}, "lerobot_features"),
        ({"device": "cpu\x1b[2J"}, "printed"),
        ({"rename_map": {"a": "b\nc"}}, "printed"),
        ({"lerobot_features": {"observation.images.c\n": {"shape": (4, 6, 3)}}}, "printed"),
        ({"lerobot_features": {"observation.state": STATE | {"names": ["a", "\r"]}}}, "printed"),
        ({"lerobot_features": {"observation.state": STATE | {"names": None}}}, "name"),
        ({"lerobot_features": {"observation.state": STATE | {"names": ["a", 1]}}}, "name"),
        ({"lerobot_features": {"observation.state": STATE | {"names": ["a", "a"]}}}, "one name"),
        ({"lerobot_features": {"observation.state": STATE | {"shape": (3,)}}}, "shape"),
        ({"lerobot_features": {"observation.state": STATE | {"names": ["a"] * 300}}}, "256"),
        ({"lerobot_features": {"observation.images.c": {"shape": (480, 640)}}}, "three"),
        ({"lerobot_features": {"observation.images.c": {"shape": (480, 640, 2.0)}}}, "shape"),
        ({"lerobot_features": {"observation.images.c": {"shape": (480, 640, -3)}}}, "camera c"),
        ({"lerobot_features": {"observation.images.c": {"shape": (10**6, 10**6, 3)}}}, "camera c"),
        ({"lerobot_features": {"observation.images.c": 5}}, "described"),
    ],
)
def test_setups_that_make_no_sense(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BadMessage, match=says):
        lerobot.decode_setup(written(**changes))


ONE = Instructions("act", "p", state_names=("a",), cameras={"front": (4, 6, 3)})
RAW: dict[str, Any] = {"a": 1.0, "front": picture("front")}


def test_the_least_observation_and_what_is_left_out() -> None:
    odd = RAW | {"battery": [1, {"x": (b"y", np.float32(1))}], "note": None}
    read = lerobot.decode_observation(written("TimedObservation", observation=odd), ONE)
    assert read.task == "" and not read.must_go and read.state.tolist() == [1.0]


@pytest.mark.parametrize(
    ("value", "number"),
    [(2, 2.0), (np.float64(0.5), 0.5), (np.array([0.25]), 0.25), (np.int32(-4), -4.0)],
)
def test_kinds_of_numbers_in_a_state(value: Any, number: float) -> None:
    data = written("TimedObservation", observation=RAW | {"a": value}, timestep=np.int64(9))
    read = lerobot.decode_observation(data, ONE)
    assert read.state.tolist() == [number] and read.timestep == 9


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"observation": None}, "dictionary"),
        ({"observation": {"front": RAW["front"]}}, "lacks 'a'"),
        ({"observation": {"a": 1.0}}, "lacks 'front'"),
        ({"observation": {}}, "lacks 'a' and 1 more"),
        ({"observation": RAW | {"a": "1.0"}}, "'a' is '1.0'"),
        ({"observation": RAW | {"a": True}}, "'a'"),
        ({"observation": RAW | {"a": float("nan")}}, "finite"),
        ({"observation": RAW | {"a": 1e300}}, "finite"),
        ({"observation": RAW | {"a": np.zeros(2)}}, "'a'"),
        ({"observation": RAW | {"front": b"jpeg"}}, "'front'"),
        ({"observation": RAW | {"front": np.zeros((4, 6), np.uint8)}}, "'front'"),
        ({"observation": RAW | {"front": np.zeros((4, 6, 3), np.float32)}}, "'front'"),
        ({"observation": RAW | {"front": np.zeros((0, 6, 3), np.uint8)}}, "'front'"),
        ({"observation": RAW | {"task": 5}}, "task"),
        ({"observation": RAW | {"task": "x" * 5000}}, "task"),
        ({"must_go": 1}, "must_go"),
        ({"timestep": -1}, "timestep"),
        ({"timestep": 1.0}, "timestep"),
        ({"timestep": 2**60}, "timestep"),
        ({"timestamp": float("inf")}, "timestamp"),
        ({"timestamp": ...}, "timestamp"),
    ],
)
def test_observations_that_make_no_sense(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BadMessage, match=says):
        lerobot.decode_observation(written("TimedObservation", **changes), ONE)


def action(step: int, values: Any, at: float = 0.0) -> Record:
    return Record("TimedAction", {"timestamp": at, "timestep": step, "action": values})


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ([], "list"),
        (action(0, np.zeros(3)), "list"),
        ([5], "TimedAction"),
        ([Record("TimedObservation", {})], "TimedObservation came"),
        ([action(0, np.zeros(3)), action(2, np.zeros(3))], "follow"),
        ([action(0, np.zeros(3)), action(1, np.zeros(2))], "unlike"),
        ([action(0, np.zeros(257))], "257"),
        ([action(0, np.zeros((1, 3)))], "row"),
        ([action(0, [0.0, 1.0])], "row"),
        ([action(0, np.array([True]))], "row"),
        ([action(0, np.zeros(0))], "chunk"),
        ([action(0, np.array([np.inf]))], "finite"),
        ([action(0, np.array([1e300]))], "finite"),
        ([action(0, np.zeros(3), float("nan"))], "finite"),
        ([action(i, np.zeros(1)) for i in range(4097)], "4096"),
    ],
)
def test_answers_that_make_no_sense(answer: Any, says: str) -> None:
    with pytest.raises(BadMessage, match=says):
        lerobot.decode_actions(dump(answer))


def test_times_that_run_backwards_give_no_period() -> None:
    rows = [action(0, np.zeros(2), 5.0), action(1, np.ones(2), 4.0)]
    assert lerobot.decode_actions(dump(rows)).dt == 0.0


def test_a_message_of_another_kind_is_named() -> None:
    with pytest.raises(BadMessage, match="RemotePolicyConfig was expected, and a TimedObs"):
        lerobot.decode_setup(recorded("observation", 4))
    with pytest.raises(BadMessage, match="TimedObservation was expected, and a list"):
        lerobot.decode_observation(recorded("actions", 4), INSTRUCTIONS)


def test_excerpts_are_short_and_printable() -> None:
    for value in ("\x1b[31m" + "é" * 500, 10**40, [1] * 1000, 1.5, None, b"\n"):
        text = excerpt(value)
        assert len(text) <= 80 and text.isascii() and text.isprintable()


# What the package is made of.

CALLS = {"eval", "exec", "compile", "__import__", "getattr", "setattr", "import_module", "vars"}
MODULES = {"pickle", "_pickle", "pickletools", "importlib", "marshal", "copyreg", "torch"}
MODULES |= {"lerobot", "os", "sys", "subprocess", "ctypes", "builtins", "operator"}


def test_the_package_has_no_way_to_import_or_to_call_by_name() -> None:
    for path in sorted((ROOT / "serving" / "pickles").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not {alias.name.partition(".")[0] for alias in node.names} & MODULES, path
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in MODULES, path
            elif isinstance(node, ast.Name | ast.Attribute):
                name = node.id if isinstance(node, ast.Name) else node.attr
                if name == "compile" and isinstance(node, ast.Attribute):
                    continue  # re.compile
                assert name not in CALLS, f"{path}, line {node.lineno}: {name}"


def test_neither_torch_nor_lerobot_is_loaded() -> None:
    data = str(FOLDER / "lerobot_actions_4.pickle")
    code = (
        "import sys; from pathlib import Path; from serving.pickles import lerobot;"
        f"chunk = lerobot.decode_actions(Path({data!r}).read_bytes());"
        "lerobot.encode_actions(chunk, 0.1);"
        "print(sorted({'torch', 'lerobot', 'cv2'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_the_recordings_are_small() -> None:
    files = list(Path(FOLDER).glob("lerobot_*.pickle"))
    assert len(files) == 8 and sum(path.stat().st_size for path in files) < 20_000
