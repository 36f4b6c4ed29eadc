"""The flow head as a policy: it samples, keeps to what is under way, and is loaded strictly."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from policies.base import AT_REST, DualRatePolicy, PolicyError
from policies.flow import FlowPolicy, RtcChunker, UnderWay, load_flow, save_flow
from policies.flow.config import FlowConfig, from_json, to_json
from policies.flow.head import FlowHead, time_waves
from policies.flow.storing import empty_parts
from policies.qwen_vla import load_policy, save_policy
from policies.qwen_vla.config import ExpertConfig, Fusion, PolicyConfig
from policies.qwen_vla.policy import QwenVlaPolicy
from scripts.training.small import make_small

JOINTS = (21.0, 33.0, -12.0, 2.0, 28.0, 1.0)
ROBOT = dataclasses.replace(AT_REST, joints=JOINTS)
ROWS = 16
FLOW = FlowConfig(
    center_deg=tuple((0.1 * k,) * 6 for k in range(1, ROWS + 1)),
    scale_deg=tuple((0.5 * k,) * 6 for k in range(1, ROWS + 1)),
)


def window(seed: int = 0) -> Any:
    return np.random.default_rng(seed).random((65, 1026), dtype=np.float32)


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    goals = torch.tensor([JOINTS, JOINTS]) + torch.arange(2).unsqueeze(1)
    folder = tmp_path_factory.mktemp("flow") / "policy"
    save_policy(make_small(("View3", "View4"), goals).policy(), folder)
    return folder


@pytest.fixture(scope="module")
def base(base_dir: Path) -> QwenVlaPolicy:
    return load_policy(base_dir, device="cpu")


@pytest.fixture(scope="module")
def policy(base: QwenVlaPolicy) -> FlowPolicy:
    torch.manual_seed(0)
    sensor, head = empty_parts(base.config)
    return FlowPolicy(base, sensor, head, FLOW)


@pytest.fixture
def flow_dir(policy: FlowPolicy, base_dir: Path, tmp_path: Path) -> Path:
    shutil.copytree(base_dir, tmp_path / "policy")
    save_flow(policy, tmp_path / "flow", tmp_path / "policy")
    return tmp_path / "flow"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_it_says_what_its_base_says(policy: FlowPolicy, base: QwenVlaPolicy) -> None:
    whole: DualRatePolicy = policy
    spec = whole.spec
    assert spec.name == "insertion, small (flow, concat)"
    same = ("views", "image_size", "sensor_window", "sensor_channels", "rows", "columns", "space")
    for name in (*same, "dt", "task"):
        assert getattr(spec, name) == getattr(base.spec, name)
    assert spec.identity != base.spec.identity
    rng = np.random.default_rng(0)
    pictures = {view: rng.integers(0, 256, (360, 640, 3), dtype=np.uint8) for view in spec.views}
    features = policy.encode(pictures, spec.task)
    assert torch.equal(features, base.encode(pictures, spec.task))
    assert torch.equal(policy.unpack(policy.pack(features)), features)
    # Made in inference mode, and yet guidance goes backwards through what is made of them.
    under_way = UnderWay(np.tile(np.array(JOINTS), (5, 1)), 2)
    assert policy.act(features, window(), ROBOT, under_way=under_way).actions.shape == (16, 7)


def test_rows_begin_at_the_robots_joints(policy: FlowPolicy) -> None:
    chunk = policy.act(policy.blank(), window(), ROBOT, generator=seeded(1))
    assert chunk.actions[:, :6] - chunk.delta[:, :6] == pytest.approx(
        np.tile(np.float32(JOINTS), (ROWS, 1)), abs=1e-5
    )
    assert not chunk.actions[:, 6].any()
    elsewhere = dataclasses.replace(ROBOT, joints=tuple(j + 5 for j in JOINTS))
    other = policy.act(policy.blank(), window(), elsewhere, generator=seeded(1))
    assert not np.allclose(other.delta, chunk.delta)


def test_the_same_seed_gives_the_same_chunk(policy: FlowPolicy) -> None:
    def acted(generator: torch.Generator | None = None) -> Any:
        return policy.act(policy.blank(), window(), ROBOT, generator=generator).actions

    assert np.array_equal(acted(seeded(1)), acted(seeded(1)))
    assert not np.allclose(acted(seeded(1)), acted(seeded(2)))
    policy.reseed(7)
    first, second = acted(), acted()
    policy.reseed(7)
    assert np.array_equal(acted(), first)
    assert np.array_equal(acted(), second)
    assert not np.allclose(first, second)


class _Gaussian(FlowHead):
    """The exact flow to normalised rows of mean 0 and variance 1, whatever is seen or felt."""

    def velocity(self, rows: Any, tau: Any, memory: Any, unknown: Any = None) -> torch.Tensor:
        part = tau.view(-1, 1, 1)
        expected: torch.Tensor = part * rows / (part**2 + (1 - part) ** 2)
        return (expected - rows) / (1 - part)


def test_frozen_rows_come_out_as_they_are_executed(base: QwenVlaPolicy) -> None:
    assert base.config.sensor is not None
    sensor, _ = empty_parts(base.config)
    head = _Gaussian(base.config.expert, base.config.sensor.features, 6, reads_goal=True)
    policy = FlowPolicy(base, sensor, head, FLOW)
    # What is left of a chunk that was made when the arm was elsewhere.
    chunker = RtcChunker(ROWS, 0.1)
    chunker.begin(0.0, 0.0)
    before = dataclasses.replace(ROBOT, joints=tuple(j - 1 for j in JOINTS))
    chunker.finish(policy.act(policy.blank(), window(), before, generator=seeded(1)), 0.0)
    under_way = chunker.begin(0.4, 0.3)
    assert under_way is not None
    assert (len(under_way.rows_deg), under_way.frozen) == (12, 3)
    given: dict[str, Any] = {"features": policy.blank(), "sensor": window(), "robot": ROBOT}
    chunk = policy.act(**given, under_way=under_way, generator=seeded(2))
    free = policy.act(**given, generator=seeded(2))
    assert chunk.actions[:3, :6] == pytest.approx(under_way.rows_deg[:3], abs=1e-4)
    assert np.abs(free.actions[:3, :6] - under_way.rows_deg[:3]).max() > 0.1
    # Those after them are drawn the less the later they are; the last four not at all.
    share = np.abs(chunk.actions[:, :6] - free.actions[:, :6]).mean(axis=1)
    share[:12] /= np.abs(under_way.rows_deg - free.actions[:12, :6]).mean(axis=1)
    assert share[3] > 0.5
    assert share[3] > share[7] > share[11] > 0
    assert chunk.actions[12:] == pytest.approx(free.actions[12:], abs=1e-5)
    # The hand-over is where the frozen rows end: what was planned until then stays.
    chunker.finish(chunk, 0.7)
    target = chunker.target(0.7)
    assert target is not None
    assert target.joints_deg == pytest.approx(under_way.rows_deg[2], abs=1e-4)


def test_an_empty_rest_is_no_rest(policy: FlowPolicy) -> None:
    nothing = UnderWay(np.empty((0, 6)), 0)
    given: dict[str, Any] = {"features": policy.blank(), "sensor": window(), "robot": ROBOT}
    chunk = policy.act(**given, under_way=nothing, generator=seeded(3))
    assert np.array_equal(chunk.actions, policy.act(**given, generator=seeded(3)).actions)


@pytest.mark.parametrize(
    ("rows", "frozen", "said"),
    [
        (np.zeros((17, 6)), 0, "at most 16 rows"),
        (np.zeros((3, 7)), 0, "6 joints"),
        (np.zeros((3, 6)), 4, "frozen"),
        (np.zeros((3, 6)), -1, "frozen"),
        (np.full((3, 6), np.nan), 1, "finite"),
    ],
)
def test_bad_rows_under_way(policy: FlowPolicy, rows: Any, frozen: int, said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        policy.act(policy.blank(), window(), ROBOT, under_way=UnderWay(rows, frozen))


def test_bad_inputs(policy: FlowPolicy) -> None:
    with pytest.raises(PolicyError, match="no robot was seen"):
        policy.act(policy.blank(), window(), None)
    with pytest.raises(PolicyError, match="needs a sensor window"):
        policy.act(policy.blank(), None, ROBOT)
    with pytest.raises(PolicyError, match="not finite"):
        policy.act(torch.full((1, 1, 128), float("inf")), window(), ROBOT)


def test_it_is_loaded_as_saved(policy: FlowPolicy, flow_dir: Path, base: QwenVlaPolicy) -> None:
    loaded = load_flow(flow_dir, device="cpu", seed=4)
    shared = load_flow(flow_dir, base=base, seed=4)
    policy.reseed(4)
    assert loaded.spec.identity == policy.spec.identity
    assert loaded.flow.base == "../policy"
    expected = policy.act(policy.blank(), window(), ROBOT)
    for one in (loaded, shared):
        assert one.act(one.blank(), window(), ROBOT).actions == pytest.approx(
            expected.actions, abs=1e-5
        )
    assert shared.base is base
    assert (flow_dir / "flow.safetensors").stat().st_size < 25e6


def test_base_and_head_in_one_folder(policy: FlowPolicy, base_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(base_dir, tmp_path / "both")
    save_flow(policy, tmp_path / "both", tmp_path / "both")
    moved = tmp_path / "elsewhere"
    (tmp_path / "both").rename(moved)
    assert load_flow(moved, device="cpu").spec.identity == policy.spec.identity


def _changed(name: str, value: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = json.loads((folder / "flow.json").read_text())
        if value is None:
            del data[name]
        else:
            data[name] = value
        (folder / "flow.json").write_text(json.dumps(data))

    return change


def _weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def changed(folder: Path) -> None:
        weights = load_file(folder / "flow.safetensors")
        change(weights)
        save_file(weights, folder / "flow.safetensors")

    return changed


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "flow.json").unlink(), "no flow.json"),
        (lambda folder: (folder / "flow.json").write_text("[1]"), "must hold a JSON object"),
        (lambda folder: (folder / "flow.safetensors").unlink(), "no such file"),
        (lambda folder: (folder / "flow.safetensors").write_bytes(b"x" * 99), "not a readable"),
        (
            lambda folder: (folder / "flow.safetensors").write_bytes(bytes(60_000_000)),
            "such a head has",
        ),
        (_changed("format", "else"), '"format" must be'),
        (_changed("version", 2), "version 2"),
        (_changed("beta", None), "missing keys ['beta']"),
        (_changed("more", 1), "unknown keys ['more']"),
        (_changed("steps", True), "whole number"),
        (_changed("steps", 0), "between 1 and 1000"),
        (_changed("beta", float("inf")), "finite"),
        (_changed("beta", -1), "beta must be"),
        (_changed("base", 3), "base must be a text"),
        (_changed("scale_deg", [[0.0] * 6] * ROWS), "scale_deg must be"),
        (_changed("scale_deg", "no"), "a list of rows"),
        (_changed("center_deg", [[0.0] * 5] * ROWS), "rows of 6 values"),
        (_changed("center_deg", [[0.0] * 6]), "as many rows"),
        (_changed("identity", "another"), "made for another base policy"),
        (_changed("base", "nowhere"), "no such checkpoint"),
        (_weights(lambda weights: weights.pop("flow_head.row_in.bias")), "flow_head.row_in.bias"),
        (_weights(lambda weights: weights.update(more=torch.zeros(1))), "unexpected keys [more]"),
        (
            _weights(lambda weights: weights.update({"flow_head.row_in.bias": torch.zeros(3)})),
            "shapes do not fit",
        ),
        (_weights(lambda weights: weights["flow_head.row_in.bias"].fill_(torch.nan)), "NaN"),
    ],
)
def test_what_is_not_loaded(
    flow_dir: Path, base: QwenVlaPolicy, spoil: Callable[[Path], Any], said: str
) -> None:
    spoil(flow_dir)
    own = None if "no such checkpoint" in said else base
    with pytest.raises(PolicyError) as refused:
        load_flow(flow_dir, base=own, device="cpu")
    message = str(refused.value)
    assert said in message
    assert "\n" not in message
    assert str(flow_dir.parent) in message


def test_rows_of_another_base(base: QwenVlaPolicy) -> None:
    sensor, head = empty_parts(base.config)
    short = FlowConfig(FLOW.center_deg[:8], FLOW.scale_deg[:8])
    with pytest.raises(PolicyError, match="chunks of 8 rows"):
        FlowPolicy(base, sensor, head, short)


def test_a_policy_that_does_not_begin_at_joints_is_no_base() -> None:
    with pytest.raises(PolicyError, match="begins at the robot's joints"):
        empty_parts(PolicyConfig())


def test_the_configuration_is_read_as_written() -> None:
    flow = dataclasses.replace(FLOW, base="../p", identity="ab", steps=7, beta=3.0)
    assert from_json(json.loads(json.dumps(to_json(flow)))) == flow


def test_flow_times_are_told_apart() -> None:
    waves = time_waves(torch.linspace(0, 1, 101), 192)
    assert waves.shape == (101, 192)
    gaps = torch.cdist(waves, waves) + 100 * torch.eye(101)
    assert gaps.min() > 0.3


@pytest.mark.parametrize("fusion", ["concat", "cross_attention", "gated", "none"])
def test_a_head_of_each_fusion_depends_on_all_it_is_given(fusion: Fusion) -> None:
    torch.manual_seed(0)
    config = ExpertConfig(
        fusion=fusion, vl_features=8, hidden=16, layers=2, heads=2, feedforward=32, rows=4
    )
    head = FlowHead(config, 5, 3).eval()
    torch.nn.init.normal_(head.pos_embed)
    sensor = None if fusion == "none" else torch.randn(2, 5)
    memory = head.memory(torch.randn(2, 6, 8), sensor)
    rows, tau = torch.randn(2, 4, 3), torch.tensor([0.2, 0.2])
    velocity = head.velocity(rows, tau, memory)
    assert velocity.shape == (2, 4, 3)
    for other in (
        head.velocity(rows + 1, tau, memory),
        head.velocity(rows, tau + 0.3, memory),
        head.velocity(rows, tau, memory + 1),
    ):
        assert not torch.allclose(other, velocity, atol=1e-3)
    # Rows that are not known change nothing in the others.
    unknown = torch.tensor([[False, False, True, True]] * 2)
    hidden = head.velocity(rows, tau, memory, unknown)
    changed = head.velocity(torch.cat((rows[:, :2], rows[:, 2:] + 1), 1), tau, memory, unknown)
    assert torch.allclose(hidden[:, :2], changed[:, :2], atol=1e-6)
