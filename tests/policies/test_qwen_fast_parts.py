from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from policies.qwen_vla import load_fast_parts
from policies.qwen_vla.sensor_encoder import resample
from tests.policies import qwen_reference as reference
from tests.policies.qwen_reference import FUSIONS, SMALL, Sizes

FULL = Sizes()


def write(path: Path, fusion: str, sizes: Sizes, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    state = reference.random_state(fusion, sizes, seed=7, dtype=dtype)
    torch.save({"model_state_dict": state, "epoch": 3, "optimizer": {"lr": 1e-4}}, path)
    return {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def inputs(sizes: Sizes, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    vl = torch.randn((1, tokens, sizes.vl), generator=generator)
    return vl, torch.rand((1, 65, sizes.channels), generator=generator)


@torch.inference_mode()
def test_shapes_are_those_of_existing_checkpoints() -> None:
    count = {"sensor_encoder": 0, "action_expert": 0}
    for name, shape in reference.shapes("concat", FULL).items():
        if "running" not in name and "tracked" not in name:
            count[name.split(".")[0]] += torch.Size(shape).numel()
    assert round(count["sensor_encoder"] / 1e6, 1) == 47.2
    assert round(count["action_expert"] / 1e6, 1) == 72.4


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("tokens", [1, 5])
@torch.inference_mode()
def test_float32_agrees_with_plain_mathematics(tmp_path: Path, fusion: str, tokens: int) -> None:
    state = write(tmp_path / "policy.pt", fusion, SMALL, torch.float32)
    fast = load_fast_parts(tmp_path / "policy.pt", device="cpu", dtype="float32")
    assert fast.config.expert.fusion == fusion
    vl, window = inputs(SMALL, tokens)
    actions, delta = fast(vl, None if fusion == "none" else window)
    expected = reference.act(state, fusion, SMALL, vl, window)
    assert delta.shape == (1, 8, 7)
    torch.testing.assert_close(delta, expected, atol=1e-5, rtol=0)
    assert torch.equal(actions, delta)  # z is zeros


@pytest.mark.parametrize("fusion", FUSIONS)
@torch.inference_mode()
def test_bfloat16_agrees_within_two_percent(tmp_path: Path, fusion: str) -> None:
    state = write(tmp_path / "policy.pt", fusion, SMALL, torch.bfloat16)
    fast = load_fast_parts(tmp_path / "policy.pt", device="cpu", dtype="bfloat16")
    vl, window = (value.bfloat16() for value in inputs(SMALL, 1))
    _, delta = fast(vl, None if fusion == "none" else window)
    assert delta.dtype == torch.bfloat16
    expected = reference.act(state, fusion, SMALL, vl.float(), window.float())
    assert (delta.float() - expected).abs().max() <= 2e-2 * expected.abs().max()


@torch.inference_mode()
def test_full_size_checkpoint(tmp_path: Path) -> None:
    state = write(tmp_path / "qwen_vla_sensor_best.pt", "concat", FULL, torch.bfloat16)
    fast = load_fast_parts(tmp_path / "qwen_vla_sensor_best.pt", device="cpu", dtype="float32")
    sensor, expert = fast.config.sensor, fast.config.expert
    assert sensor is not None
    assert (sensor.window, sensor.channels, sensor.features) == (65, 1026, 3072)
    assert (expert.vl_features, expert.hidden, expert.rows, expert.heads) == (2048, 1024, 8, 8)
    vl, window = inputs(FULL, 1)
    expected = reference.act(state, "concat", FULL, vl, window)
    torch.testing.assert_close(fast(vl, window)[1], expected, atol=1e-5, rtol=0)
    del fast
    half = load_fast_parts(tmp_path / "qwen_vla_sensor_best.pt", device="cpu", dtype="bfloat16")
    delta = half(vl.bfloat16(), window.bfloat16())[1].float()
    assert (delta - expected).abs().max() <= 2e-2 * expected.abs().max()


@pytest.mark.parametrize("length", [1, 2, 33, 64, 66, 200])
@torch.inference_mode()
def test_windows_of_another_length_are_resampled(tmp_path: Path, length: int) -> None:
    state = write(tmp_path / "policy.pt", "concat", SMALL, torch.float32)
    fast = load_fast_parts(tmp_path / "policy.pt", device="cpu", dtype="float32")
    vl, _ = inputs(SMALL, 1)
    window = torch.rand(1, length, SMALL.channels)
    resized = F.interpolate(window.transpose(1, 2), size=65, mode="linear").transpose(1, 2)
    expected = reference.act(state, "concat", SMALL, vl, resized)
    torch.testing.assert_close(fast(vl, window)[1], expected, atol=1e-5, rtol=0)


def test_resampling_is_linear_in_time() -> None:
    ramp = torch.arange(130.0).reshape(1, 130, 1)
    torch.testing.assert_close(resample(ramp, 65)[0, :, 0], torch.arange(65.0) * 2 + 0.5)
    assert resample(ramp, 130) is ramp
