from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from policies.base import PolicyError
from policies.qwen_vla import QwenVlaPolicy, load_policy
from policies.qwen_vla.tiny import (
    HARD_LIMIT,
    WIDTH,
    make_tiny_policy,
    random_picture,
    random_windows,
)

Pictures = dict[str, NDArray[np.uint8]]
HOME = np.array([0, 0, 0, 0, 60, 0, 0], np.float32)
ROOT = Path(__file__).resolve().parents[2]


def test_the_script_makes_the_same_bytes_again(tiny_dir: Path, tmp_path: Path) -> None:
    script = [sys.executable, "scripts/make_tiny_checkpoint.py", "--out", str(tmp_path / "again")]
    done = subprocess.run(
        [*script, "--seed", "3"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "random weights" in done.stdout
    for name in ("model.safetensors", "config.json", "tokenizer/tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tiny_dir / name).read_bytes()


def test_spec(tiny: QwenVlaPolicy) -> None:
    spec = tiny.spec
    assert spec.views == ("View1", "View2", "View3", "View4", "View5")
    assert (spec.rows, spec.columns[-1], len(spec.columns)) == (8, "gripper", 7)
    assert (spec.space, spec.dt, spec.fusion) == ("joint_position", 0.1, "concat")
    assert (spec.sensor_window, spec.sensor_channels) == (65, 1026)
    assert 2e6 < spec.parameters < 6e6
    assert "random weights" in spec.name


def test_actions_vary_gently_about_home(tiny: QwenVlaPolicy) -> None:
    rng = np.random.default_rng(99)
    views = tiny.spec.views
    features = [
        tiny.encode({view: random_picture(rng)[::3, ::3] for view in views}, tiny.spec.task)
        for _ in range(6)
    ]
    windows = random_windows(rng, 24)
    chunks = np.array([[tiny.act(f, w).actions for w in windows] for f in features])
    joints = chunks[..., :6]
    assert np.abs(joints.mean((0, 1, 2)) - HOME[:6]).max() < 1.5
    assert 0.3 < joints.std((0, 1)).mean() < 1.5
    assert joints.std(0).mean() > 0.1, "hardly moves with the pictures"
    assert joints.std(1).mean() > 0.1, "hardly moves with the sensor"
    assert (chunks[..., 6] == 0).all(), "the gripper stays"
    assert np.abs(np.diff(joints, axis=2)).max() < 0.5, "a chunk is smooth"


def test_no_input_moves_a_joint_far(tiny: QwenVlaPolicy) -> None:
    head = tiny.fast.action_expert.output_head[1]
    weight, bias = head.weight.numpy(), head.bias.numpy()
    # A layer norm's output is never longer than the root of its width.
    reach = np.linalg.norm(weight, axis=1) * np.sqrt(weight.shape[1]) + np.abs(bias - HOME)
    assert reach.max() <= HARD_LIMIT
    rng = np.random.default_rng(4)
    for size in (0.0, 1.0, 1e3, 1e6, -1e6):
        window = (size * rng.standard_normal((65, 1026))).astype(np.float32)
        features = torch.full((1, 1, WIDTH), size) * torch.randn(1, 1, WIDTH)
        actions = tiny.act(features, window).actions
        assert np.abs(actions - HOME).max() <= HARD_LIMIT


def test_another_home(pictures: Pictures) -> None:
    home = (10.0, -20.0, 30.0, 0.0, 45.0, 5.0)
    policy = make_tiny_policy(home_deg=home, spread_deg=0.5)
    actions = policy.act(policy.encode(pictures, "x"), np.zeros((65, 1026), np.float32)).actions
    assert np.abs(actions[:, :6] - home).max() <= 0.5 * HARD_LIMIT
    with pytest.raises(ValueError, match="six"):
        make_tiny_policy(home_deg=(0.0,))
    with pytest.raises(ValueError, match="spread"):
        make_tiny_policy(spread_deg=0.0)


def test_chunks_are_float32_arrays(tiny: QwenVlaPolicy, pictures: Pictures) -> None:
    features = tiny.encode(pictures, tiny.spec.task)
    window = random_windows(np.random.default_rng(0), 1)[0]
    chunk = tiny.act(features, window, None, None)
    assert chunk.actions.shape == chunk.delta.shape == (8, 7)
    assert chunk.actions.dtype == chunk.delta.dtype == np.float32
    assert np.array_equal(chunk.actions, chunk.delta)
    # Half as many samples of the same second give nearly the same actions.
    assert np.abs(tiny.act(features, window[::2]).actions - chunk.actions).max() < 2.5
    assert tiny.act(features, window[:1]).actions.shape == (8, 7)
    assert tiny.act(features, window.astype(np.float64)).actions.shape == (8, 7)


def test_windows_that_cannot_be_used(tiny: QwenVlaPolicy) -> None:
    features = torch.zeros(1, 1, WIDTH)
    with pytest.raises(PolicyError, match="needs a sensor window"):
        tiny.act(features, None)
    for shape in ((65, 1025), (0, 1026), (65,), (1, 65, 1026)):
        with pytest.raises(PolicyError, match="must be"):
            tiny.act(features, np.zeros(shape, np.float32))
    window = np.zeros((65, 1026), np.float32)
    window[3, 4] = np.nan
    with pytest.raises(PolicyError, match="not finite"):
        tiny.act(features, window)
    with pytest.raises(PolicyError, match="not finite"):
        tiny.act(torch.full((1, 1, WIDTH), torch.nan), np.zeros((65, 1026), np.float32))


def test_bfloat16(tiny: QwenVlaPolicy, tiny_dir: Path, pictures: Pictures) -> None:
    half = load_policy(tiny_dir, device="cpu", dtype="bfloat16")
    ours, theirs = (p.encode(pictures, "x").float() for p in (tiny, half))
    assert (ours - theirs).norm() < 0.05 * ours.norm()
    chunk = half.act(half.encode(pictures, "x"), np.zeros((65, 1026), np.float32))
    assert chunk.actions.dtype == np.float32


def test_quick_enough_for_a_laptop(tiny: QwenVlaPolicy, pictures: Pictures) -> None:
    features = tiny.encode(pictures, "x")
    start = time.perf_counter()
    tiny.encode(pictures, "x")
    assert time.perf_counter() - start < 2, "ten times what it takes on an idle core"
    window = np.zeros((65, 1026), np.float32)
    start = time.perf_counter()
    tiny.act(features, window)
    assert time.perf_counter() - start < 0.5
