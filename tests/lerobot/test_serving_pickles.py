"""LeRobot's own classes through Python's pickle and through ours, both ways."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if sys.version_info < (3, 12):
    pytest.skip("LeRobot needs Python 3.12: make test-lerobot", allow_module_level=True)
pytest.importorskip("lerobot", reason="LeRobot is not installed: make test-lerobot")
pytest.importorskip("grpc", reason="LeRobot's extra `async` is missing: make test-lerobot")

import torch
from lerobot.async_inference import helpers
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.utils.feature_utils import build_dataset_frame, hw_to_dataset_features

from serving.messages import BadMessage, Chunk, Instructions, Observation, Picture
from serving.pickles import lerobot
from serving.pickles.reader import load
from serving.pickles.values import Bounds, Record
from serving.pickles.values import FeatureType as Ours
from serving.pickles.writer import dump
from tests.serving import record_pickles as recorder

JOINTS = tuple(f"{name}.pos" for name in ("pan", "lift", "elbow", "flex", "roll", "gripper"))
CAMERAS = {"front": (48, 64, 3), "wrist": (36, 64, 3)}
INSTRUCTIONS = Instructions(
    "smolvla", "lerobot/smolvla_base", "cuda", 50, state_names=JOINTS, cameras=dict(CAMERAS)
)
PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)


def hardware() -> dict[str, Any]:
    """A robot's `observation_features`."""
    return {**dict.fromkeys(JOINTS, float), **CAMERAS}


def raw(seed: int = 0) -> dict[str, Any]:
    """A robot's `get_observation`, and the task."""
    chance = np.random.default_rng(seed)
    joints = {name: float(value) for name, value in zip(JOINTS, chance.normal(size=6), strict=True)}
    pictures = {name: chance.integers(0, 256, size, np.uint8) for name, size in CAMERAS.items()}
    return joints | pictures | {"task": "put the cube into the box"}


def stock_setup() -> Any:
    features = hw_to_dataset_features(hardware(), "observation", use_video=False)
    return helpers.RemotePolicyConfig("smolvla", "lerobot/smolvla_base", features, 50, "cuda")


def chunk(rows: int = 50) -> Chunk:
    actions = np.random.default_rng(rows).normal(size=(rows, 6)).astype(np.float32)
    return Chunk(41, 1_700_000_000.125, actions, JOINTS)


def stock_actions(from_: Chunk, dt: float) -> list[Any]:
    """As the server times a chunk: one tensor, its rows in a list."""
    return [
        helpers.TimedAction(from_.timestamp + i * dt, from_.timestep + i, row)
        for i, row in enumerate(list(torch.from_numpy(from_.actions)))
    ]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_stock_setup_is_read(protocol: int) -> None:
    assert lerobot.decode_setup(pickle.dumps(stock_setup(), protocol)) == INSTRUCTIONS


def test_our_setup_equals_the_stock_one() -> None:
    ours = pickle.loads(lerobot.encode_setup(INSTRUCTIONS))
    assert type(ours) is helpers.RemotePolicyConfig
    assert ours == stock_setup()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_stock_observation_is_read(protocol: int) -> None:
    said = raw()
    stock = helpers.TimedObservation(12.5, 3, said, True)
    read = lerobot.decode_observation(pickle.dumps(stock, protocol), INSTRUCTIONS)
    assert (read.timestamp, read.timestep, read.must_go) == (12.5, 3, True)
    assert read.task == said["task"]
    assert np.array_equal(read.state, np.array([said[name] for name in JOINTS], np.float32))
    for name in CAMERAS:
        assert np.array_equal(read.pictures[name].pixels, said[name])


def test_our_observation_gives_the_stock_server_what_a_stock_client_does() -> None:
    said = raw(1)
    state = np.array([said[name] for name in JOINTS], np.float32)
    pictures = {name: Picture(said[name]) for name in CAMERAS}
    made = Observation(3, 12.5, True, state, pictures, said["task"])
    ours = pickle.loads(lerobot.encode_observation(made, INSTRUCTIONS))
    assert type(ours) is helpers.TimedObservation
    assert (ours.timestamp, ours.timestep, ours.must_go) == (12.5, 3, True)
    assert list(ours.observation) == list(said)
    features = stock_setup().lerobot_features
    frame = build_dataset_frame(features, ours.observation, prefix="observation")
    wanted = build_dataset_frame(features, said, prefix="observation")
    assert frame.keys() == wanted.keys()
    for key in wanted:
        assert frame[key].dtype == wanted[key].dtype
        assert np.array_equal(frame[key], wanted[key])
    policy_features = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 24, 24))
        for name in CAMERAS
    }
    ready = helpers.raw_observation_to_observation(ours.observation, features, policy_features)
    stock = helpers.raw_observation_to_observation(said, features, policy_features)
    for key, value in stock.items():
        same = torch.equal(ready[key], value) if torch.is_tensor(value) else ready[key] == value
        assert same, key


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("rows", [1, 50])
def test_a_stock_answer_is_read(protocol: int, rows: int) -> None:
    made = chunk(rows)
    read = lerobot.decode_actions(pickle.dumps(stock_actions(made, 1 / 32), protocol))
    assert (read.timestep, read.timestamp) == (made.timestep, made.timestamp)
    assert read.dt == (1 / 32 if rows > 1 else 0.0)
    assert np.array_equal(read.actions, made.actions)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_a_stock_answer_of_other_precision_is_read(kind: Any) -> None:
    rows = torch.from_numpy(chunk().actions).to(kind)
    answer = [helpers.TimedAction(float(i), i, row) for i, row in enumerate(list(rows))]
    read = lerobot.decode_actions(pickle.dumps(answer))
    assert np.array_equal(read.actions, rows.float().numpy())


@pytest.mark.parametrize("rows", [1, 50, 300])
def test_our_answer_equals_the_stock_one(rows: int) -> None:
    made = chunk(rows)
    ours = pickle.loads(lerobot.encode_actions(made, 1 / 30))
    stock = pickle.loads(pickle.dumps(stock_actions(made, 1 / 30)))
    assert type(ours) is list and len(ours) == len(stock)
    for mine, theirs in zip(ours, stock, strict=True):
        assert type(mine) is helpers.TimedAction
        assert mine.get_timestamp() == theirs.get_timestamp()
        assert mine.get_timestep() == theirs.get_timestep()
        one, other = mine.get_action(), theirs.get_action()
        assert type(one) is torch.Tensor and torch.equal(one, other)
        assert (one.dtype, one.device, one.stride()) == (other.dtype, other.device, other.stride())
        assert one.requires_grad is other.requires_grad is False
        assert one[0].item() == other[0].item()
    ours[0].action += 1  # the rows share memory, as those of a chunk do, and do not overlap
    assert all(torch.equal(ours[i].action, stock[i].action) for i in range(1, len(ours)))


def test_features_and_their_types_both_ways() -> None:
    stock = {kind.value: PolicyFeature(kind, (3, 4)) for kind in FeatureType}
    for protocol in PROTOCOLS:
        read = load(pickle.dumps(stock, protocol), Bounds())
        assert read == {
            kind.value: Record("PolicyFeature", {"type": kind.value, "shape": (3, 4)})
            for kind in FeatureType
        }
    assert all(type(feature.fields["type"]) is Ours for feature in read.values())
    back = pickle.loads(dump(read))
    assert back == stock
    assert all(feature.type is FeatureType(key) for key, feature in back.items())


def test_other_classes_of_lerobot_are_refused() -> None:
    from lerobot.policies.act.configuration_act import ACTConfig

    for value in (ACTConfig(), FeatureType, helpers.FPSTracker(30), torch.nn.Linear(2, 2)):
        with pytest.raises(
            BadMessage, match=r"refused, nothing was executed|only a name|should be"
        ):
            load(pickle.dumps(value), Bounds())


def test_the_recordings_are_what_lerobot_writes_now() -> None:
    """Recorded values and those made now are read alike; a new LeRobot may need new recordings."""
    made = {"setup": recorder.setup(), "observation": recorder.observation()}
    made |= {"actions": recorder.actions(), "actions_bfloat16": recorder.actions("bfloat16")}
    for name, value in made.items():
        for protocol in recorder.PROTOCOLS:
            path = Path(recorder.FOLDER) / f"lerobot_{name}_{protocol}.pickle"
            now = load(pickle.dumps(value, protocol), Bounds())
            np.testing.assert_equal(plain(load(path.read_bytes(), Bounds())), plain(now))


def plain(value: Any) -> Any:
    """Records as their fields, for comparison."""
    if isinstance(value, Record):
        return {"kind": value.kind, **plain(value.fields)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value
