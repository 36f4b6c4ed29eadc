from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from policies.base import PolicyError
from policies.qwen_vla import QwenVlaPolicy, load_fast_parts, load_policy, save_policy
from policies.qwen_vla.backbone import Backbone
from policies.qwen_vla.tiny import WIDTH
from tests.policies import qwen_reference as reference
from tests.policies.checkpoints import SIZES, WINDOW, fast_state, saved
from tests.policies.qwen_reference import FUSIONS

State = dict[str, torch.Tensor]
Pictures = dict[str, NDArray[np.uint8]]


def backbone_state(policy: QwenVlaPolicy) -> State:
    return dict(policy.backbone.model.state_dict())


def expected_delta(fusion: str, features: torch.Tensor) -> NDArray[np.float32]:
    with torch.inference_mode():
        window = torch.from_numpy(WINDOW)[None]
        delta: NDArray[np.float32] = reference.act(
            fast_state(fusion), fusion, SIZES, features, window
        )[0].numpy()
    return delta


@pytest.mark.parametrize("fusion", FUSIONS)
def test_pt_with_the_backbone_from_its_folder(
    tmp_path: Path, hub_dir: Path, tiny: QwenVlaPolicy, pictures: Pictures, fusion: str
) -> None:
    path = saved(tmp_path / "p.pt", {"model_state_dict": fast_state(fusion), "epoch": 4})
    policy = load_policy(path, backbone=hub_dir, device="cpu")
    assert policy.spec.fusion == fusion
    assert (policy.spec.space, policy.spec.dt, policy.spec.columns[-1]) == (
        "joint_delta",
        0.1,
        "gripper",
    )
    assert policy.spec.task == "Perform needle insertion into the eye"
    features = policy.encode(pictures, "x")
    # The same weights, at the picture size that such checkpoints were trained with.
    whole = Backbone(tiny.backbone.model, tiny.backbone.tokenizer, policy.config.image)
    assert policy.spec.image_size == (644, 364)
    with torch.inference_mode():
        torch.testing.assert_close(features, whole.encode(list(pictures.values()), "x"))
    chunk = policy.act(features, None if fusion == "none" else WINDOW, None, None)
    np.testing.assert_allclose(chunk.delta, expected_delta(fusion, features), atol=1e-5)


def forms() -> dict[str, Callable[[State], Any]]:
    def stage_1(state: State) -> Any:
        parts = ("sensor_encoder", "action_expert")
        return {part: reference.part(state, part) for part in parts} | {"optimizer": {"lr": 0.1}}

    return {
        "bare": lambda state: state,
        "bare with others": lambda state: {**state, "epoch": 3, "scheduler": {"last": 1}},
        "model_state_dict": lambda state: {"model_state_dict": state, "best_loss": 0.25},
        "stage 1": stage_1,
        "parallel": lambda state: {
            "model_state_dict": {f"module.{k}": v for k, v in state.items()}
        },
    }


@pytest.mark.parametrize("form", forms())
def test_forms_of_pt(tmp_path: Path, form: str) -> None:
    path = saved(tmp_path / "p.pt", forms()[form](fast_state()))
    fast = load_fast_parts(path, device="cpu")
    features = torch.randn(1, 1, SIZES.vl)
    with torch.inference_mode():
        delta = fast(features, torch.from_numpy(WINDOW)[None])[1][0]
    np.testing.assert_allclose(delta, expected_delta("concat", features), atol=1e-5)


def older(state: State) -> State:
    return {
        "vl_model."
        + (k if k.startswith("visual.") else k.replace("language_model.", "model.", 1)): v
        for k, v in state.items()
    }


def newer(state: State) -> State:
    return {f"vl_model.model.{k}": v for k, v in state.items()}


@pytest.mark.parametrize("generation", [older, newer])
def test_pt_with_the_backbone_inside(
    tmp_path: Path,
    hub_dir: Path,
    tiny: QwenVlaPolicy,
    pictures: Pictures,
    generation: Callable[[State], State],
) -> None:
    trained = {k: v * 1.01 for k, v in backbone_state(tiny).items()}
    state = fast_state() | generation(trained)
    state["vl_model.lm_head.weight"] = torch.zeros(3, 3)  # not looked at
    policy = load_policy(saved(tmp_path / "p.pt", state), backbone=hub_dir, device="cpu")
    loaded = policy.backbone.model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in trained.items())
    # Converted, it needs nothing else any more.
    save_policy(policy, tmp_path / "converted")
    again = load_policy(tmp_path / "converted", device="cpu")
    features = policy.encode(pictures, "x")
    assert torch.equal(again.encode(pictures, "x"), features)
    assert np.array_equal(again.act(features, WINDOW).actions, policy.act(features, WINDOW).actions)
    assert again.spec == policy.spec


@pytest.mark.parametrize("prefix", ["vl_model.model.", "vl_model.base_model.model.model."])
@pytest.mark.parametrize("alpha", [None, 8])
def test_lora_factors_are_merged(
    tmp_path: Path, hub_dir: Path, tiny: QwenVlaPolicy, prefix: str, alpha: int | None
) -> None:
    base = backbone_state(tiny)
    layers = tiny.backbone.model.config.text_config.num_hidden_layers
    state: State = {}
    merged = dict(base)
    for key, value in base.items():
        name = key.removesuffix(".weight")
        wanted = key.startswith("language_model") and name.endswith(
            ("q_proj", "k_proj", "v_proj", "o_proj")
        )
        if not (wanted and key.endswith(".weight")):
            in_proj = key.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias"))
            state[prefix + (key.replace(".bias", ".base_layer.bias") if in_proj else key)] = value
            continue
        down, up = torch.randn(16, value.shape[1]) / 8, torch.randn(value.shape[0], 16) / 8
        state[f"{prefix}{name}.base_layer.weight"] = value
        state[f"{prefix}{name}.lora_A.default.weight"] = down
        state[f"{prefix}{name}.lora_B.default.weight"] = up
        merged[key] = value + (32 if alpha is None else alpha) / 16 * up @ down
    content: dict[str, Any] = {"model_state_dict": fast_state() | state}
    if alpha is not None:
        content["config"] = {"lora_alpha": alpha}
    policy = load_policy(saved(tmp_path / "p.pt", content), backbone=hub_dir, device="cpu")
    loaded = backbone_state(policy)
    assert len([k for k in merged if not torch.equal(merged[k], base[k])]) == 4 * layers
    for key, value in merged.items():
        torch.testing.assert_close(loaded[key], value, atol=1e-6, rtol=1e-6)

    factor = next(key for key in state if "lora_B" in key)
    for change in ("missing", "shape", "adapter"):
        broken = dict(state)
        value = broken.pop(factor)
        if change == "shape":
            broken[factor] = value[:, :5]
        elif change == "adapter":
            broken[factor.replace("default", "other")] = value
        path = saved(tmp_path / "broken.pt", fast_state() | broken)
        with pytest.raises(PolicyError, match="LoRA"):
            load_policy(path, backbone=hub_dir, device="cpu")


def test_a_converted_checkpoint_may_name_its_backbone(
    tmp_path: Path, hub_dir: Path, pictures: Pictures
) -> None:
    path = saved(tmp_path / "p.pt", fast_state())
    policy = load_policy(path, backbone=hub_dir, device="cpu")
    save_policy(policy, tmp_path / "named")
    config = json.loads((tmp_path / "named" / "config.json").read_text())
    assert config["backbone"] == {"inside": False, "path": str(hub_dir), "config": None}
    assert not any(
        k.startswith("vl_model") for k in load_file(tmp_path / "named/model.safetensors")
    )
    again = load_policy(tmp_path / "named", device="cpu")
    assert torch.equal(again.encode(pictures, "x"), policy.encode(pictures, "x"))
    assert load_policy(tmp_path / "named", backbone=hub_dir, device="cpu").spec == policy.spec


def test_a_folder_that_cannot_be_written(tmp_path: Path, tiny: QwenVlaPolicy) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PolicyError, match="cannot be written"):
        save_policy(tiny, tmp_path / "file")


def test_fusion_that_contradicts(tmp_path: Path, tiny_dir: Path) -> None:
    path = saved(tmp_path / "p.pt", fast_state("gated"))
    assert load_fast_parts(path, fusion="gated").config.expert.fusion == "gated"
    with pytest.raises(PolicyError, match="fusion is gated, not concat"):
        load_fast_parts(path, fusion="concat")
    with pytest.raises(PolicyError, match="fusion is concat, not none"):
        load_policy(tiny_dir, fusion="none")


def test_none_with_a_sensor_encoder_beside_it(tmp_path: Path, hub_dir: Path) -> None:
    state = {k: v for k, v in fast_state().items() if k.startswith("sensor_encoder.")}
    path = saved(tmp_path / "p.pt", state | fast_state("none"))
    assert load_fast_parts(path, fusion="none").sensor_encoder is None
    policy = load_policy(path, backbone=hub_dir, device="cpu")
    assert (policy.spec.fusion, policy.spec.sensor_window) == ("none", 0)
    assert policy.act(torch.zeros(1, 1, WIDTH), None).actions.shape == (8, 7)


def test_the_file_may_be_replaced_while_the_policy_runs(tmp_path: Path) -> None:
    path = saved(tmp_path / "p.pt", fast_state())
    fast = load_fast_parts(path, device="cpu")
    before = fast.action_expert.pos_embed.clone()
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(fast.action_expert.pos_embed, before)


def test_sharded_backbones(tmp_path: Path, hub_dir: Path) -> None:
    weights = load_file(hub_dir / "model.safetensors")
    names = sorted(weights)
    for number in (0, 1):
        save_file(
            {k: weights[k] for k in names[number::2]}, tmp_path / f"part-{number}.safetensors"
        )
    index = {key: f"part-{number % 2}.safetensors" for number, key in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).symlink_to(hub_dir / name)
    path = saved(tmp_path / "p.pt", fast_state())
    assert load_policy(path, backbone=tmp_path, device="cpu").spec.fusion == "concat"
    index[names[0]] = "../outside.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(PolicyError, match="not a file name"):
        load_policy(path, backbone=tmp_path, device="cpu")
