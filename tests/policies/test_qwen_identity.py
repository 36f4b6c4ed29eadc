"""What tells a checkpoint's weights from another's, and a fast half loaded by itself."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from policies import qwen_vla
from policies.qwen_vla import QwenVlaPolicy


def test_a_fast_half_by_itself_says_what_the_whole_policy_says_of_it(
    tiny: QwenVlaPolicy, tiny_dir: Path
) -> None:
    whole, half = tiny, qwen_vla.load_fast_half(tiny_dir, device="cpu")
    assert len(half.spec.identity) == 64
    assert half.spec == replace(whole.spec, image_size=(0, 0), parameters=0)
    picture = np.zeros((72, 128, 3), np.uint8)
    features = whole.encode(dict.fromkeys(whole.spec.views, picture), "insert")
    sensor = np.random.default_rng(0).normal(size=(65, whole.spec.sensor_channels))
    window = sensor.astype(np.float32)
    sent = half.unpack(whole.pack(features))
    np.testing.assert_array_equal(
        half.act(sent, window).actions, whole.act(features, window).actions
    )


def test_other_weights_have_another_identity(tiny_dir: Path, tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    shutil.copytree(tiny_dir, trained)
    weights = load_file(trained / "model.safetensors")
    name = next(key for key in sorted(weights) if "action_expert" in key)
    weights[name] = weights[name] + 1e-6
    save_file(weights, trained / "model.safetensors")
    before = qwen_vla.load_fast_half(tiny_dir, device="cpu").spec.identity
    after = qwen_vla.load_fast_half(trained, device="cpu").spec.identity
    assert before == qwen_vla.load_fast_half(tiny_dir, device="cpu").spec.identity
    assert before != after
