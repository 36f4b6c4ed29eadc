from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from policies.base import PolicyError
from policies.qwen_vla import load_fast_parts, load_policy
from policies.qwen_vla.tiny import WIDTH
from tests.policies import qwen_reference as reference
from tests.policies.checkpoints import fast_state, saved
from tests.policies.qwen_reference import SMALL


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.target}",))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_does_not_run(tmp_path: Path, zipped: bool) -> None:
    target = tmp_path / "ran"
    content = {"model_state_dict": fast_state(), "note": Evil(target)}
    torch.save(content, tmp_path / "evil.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(PolicyError, match=r"evil\.pt: refused"):
        load_policy(tmp_path / "evil.pt")
    assert not target.exists()


def one_line(error: pytest.ExceptionInfo[PolicyError]) -> str:
    text = str(error.value)
    assert "\n" not in text and text
    return text


def test_missing_and_unexpected_keys_are_listed(tmp_path: Path) -> None:
    state = fast_state()
    del state["action_expert.temporal_decoder.layers.1.norm2.bias"]
    del state["sensor_encoder.conv_backbone.5.running_var"]
    state["sensor_encoder.extra"] = torch.zeros(1)
    with pytest.raises(PolicyError) as error:
        load_policy(saved(tmp_path / "p.pt", state), backbone="nobody/nothing")
    text = one_line(error)
    for name in ("layers.1.norm2.bias", "conv_backbone.5.running_var", "sensor_encoder.extra"):
        assert name in text
    with pytest.raises(PolicyError, match=r"unexpected keys \[value_head.weight\]"):
        state = fast_state() | {"value_head.weight": torch.zeros(1)}
        load_fast_parts(saved(tmp_path / "p.pt", {"model_state_dict": state}))


def changed(key: str, value: Any) -> Callable[[], Any]:
    return lambda: {**fast_state(), key: value}


def without(prefix: str) -> Callable[[], Any]:
    return lambda: {k: v for k, v in fast_state().items() if not k.startswith(prefix)}


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "a list": (lambda: [1, 2], "not a dict"),
    "a tensor": (lambda: torch.zeros(3), "not a dict"),
    "nothing": (dict, "no policy weights"),
    "another model": (lambda: {"layer.weight": torch.zeros(1)}, "no policy weights"),
    "a state that is none": (lambda: {"model_state_dict": 3}, "no dict"),
    "no expert": (without("action_expert"), "action_expert"),
    "no sensor": (without("sensor_encoder"), "sensor_encoder|trained on"),
    "no positions": (without("action_expert.pos_embed"), "missing keys.*pos_embed"),
    "no layers": (without("action_expert.temporal_decoder"), "missing keys.*layers.0"),
    "a text": (
        lambda: {"model_state_dict": {**fast_state(), "action_expert.pos_embed": "x"}},
        "is a str, not a tensor",
    ),
    "a number as a name": (
        lambda: {"sensor_encoder": {}, "action_expert": {3: torch.zeros(1)}},
        "not a string",
    ),
    "too few dimensions": (changed("action_expert.pos_embed", torch.zeros(8)), "dimensions"),
    "no rows": (changed("action_expert.pos_embed", torch.zeros(1, 0, 56)), "dimensions"),
    "other width": (changed("action_expert.pos_embed", torch.zeros(1, 8, 64)), "do not fit"),
    "no heads": (changed("action_expert.pos_embed", torch.zeros(1, 8, 57)), "divided among"),
    "two of pos_embed": (changed("action_expert.pos_embed", torch.zeros(2, 8, 56)), "do not fit"),
    "not a number": (
        changed("action_expert.output_head.1.bias", torch.full((7,), torch.nan)),
        "NaN or infinite",
    ),
    "infinite": (
        changed("sensor_encoder.projection.4.bias", torch.full((40,), torch.inf)),
        "NaN or infinite",
    ),
    "expanded": (
        changed("action_expert.pos_embed", torch.zeros(1).expand(1, 1 << 20, 1 << 20)),
        "more than is stored",
    ),
    "whole numbers": (
        changed("action_expert.output_head.1.bias", torch.zeros(7, dtype=torch.int64)),
        "another kind",
    ),
    "tiny numbers": (
        changed("action_expert.output_head.1.bias", torch.zeros(7).to(torch.float8_e4m3fn)),
        "save it as bfloat16",
    ),
    "sparse": (changed("action_expert.pos_embed", torch.zeros(1, 8, 56).to_sparse()), "dense"),
    "complex": (
        changed("action_expert.pos_embed", torch.zeros(1, 8, 56, dtype=torch.complex64)),
        "real numbers",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pt(tmp_path: Path, hub_dir: Path, name: str) -> None:
    make, message = BAD[name]
    path = saved(tmp_path / "p.pt", make())
    with pytest.raises(PolicyError, match=message) as error:
        load_policy(path, backbone=hub_dir, device="cpu")
    one_line(error)


@pytest.mark.parametrize("keep", [0, 10, 5000, -100])
def test_truncated_pt(tmp_path: Path, keep: int) -> None:
    data = saved(tmp_path / "p.pt", fast_state()).read_bytes()
    (tmp_path / "p.pt").write_bytes(data[:keep])
    with pytest.raises(PolicyError) as error:
        load_fast_parts(tmp_path / "p.pt")
    assert "p.pt" in one_line(error)


def test_bytes_that_are_no_checkpoint(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(20):
        (tmp_path / "p.pt").write_bytes(rng.bytes(50 * number))
        with pytest.raises(PolicyError):
            load_fast_parts(tmp_path / "p.pt")


def test_places_where_there_is_nothing(tmp_path: Path, hub_dir: Path) -> None:
    with pytest.raises(PolicyError, match="no such checkpoint"):
        load_policy(tmp_path / "absent.pt")
    with pytest.raises(PolicyError, match=r"no config\.json"):
        load_policy(tmp_path)
    with pytest.raises(PolicyError, match="Hugging Face model"):
        load_policy(hub_dir)
    path = saved(tmp_path / "p.pt", fast_state())
    with pytest.raises(PolicyError, match="hf download nobody/nothing"):
        load_policy(path, backbone="nobody/nothing")
    for name in ("a/b/c", "../nowhere", "~nobody/x", "x" * 300, "a\0b"):
        with pytest.raises(PolicyError):
            load_policy(path, backbone=name)
        with pytest.raises(PolicyError):
            load_policy(name)
    with pytest.raises(PolicyError, match="not a backbone"):
        load_policy(path, backbone=tmp_path)
    with pytest.raises(PolicyError, match="device"):
        load_policy(path, device="cuda:99")
    with pytest.raises(PolicyError, match="dtype"):
        load_policy(path, dtype="int3")  # type: ignore[arg-type]


def test_the_default_backbone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policies.qwen_vla.checkpoint.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(PolicyError, match=r"hf download Qwen/Qwen2\.5-VL-3B-Instruct"):
        load_policy(saved(tmp_path / "p.pt", fast_state()))


def test_a_backbone_of_another_size(tmp_path: Path, hub_dir: Path) -> None:
    state = reference.random_state("concat", replace(SMALL, vl=80))
    with pytest.raises(PolicyError, match=f"features of 80 values but the backbone gives {WIDTH}"):
        load_policy(saved(tmp_path / "p.pt", state), backbone=hub_dir)


# --- Our own directories ---------------------------------------------------------------------


def copy(tiny_dir: Path, folder: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    folder.mkdir()
    for name in ("model.safetensors", "tokenizer"):
        (folder / name).symlink_to(tiny_dir / name)
    config = json.loads((tiny_dir / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "format": (lambda c: c.update(format="other"), "format"),
    "version": (lambda c: c.update(version=99), "version 99"),
    "unknown key": (lambda c: c["image"].update(colour="red"), "unknown keys.*colour"),
    "missing key": (lambda c: c["action"].pop("dt"), "missing keys.*dt"),
    "type": (lambda c: c["expert"].update(hidden="192"), "expert: hidden must be of type int"),
    "boolean": (lambda c: c["expert"].update(layers=True), "layers must be of type int"),
    "choice": (lambda c: c["action"].update(space="volts"), "space must be one of"),
    "no views": (lambda c: c.update(views=[]), "views"),
    "same views": (lambda c: c.update(views=["a", "a"]), "views"),
    "list": (lambda c: c.update(sensor=[1]), "must be an object"),
    "dt": (lambda c: c["action"].update(dt=0), "dt"),
    "endless": (lambda c: c["expert"].update(layers=10**9), "layers"),
    "pixels": (lambda c: c["image"].update(max_pixels=10**12), "max_pixels"),
    "no sensor": (lambda c: c.update(sensor=None), "needs a sensor"),
    "columns": (lambda c: c["action"].update(columns=["a"]), "do not fit"),
    "rows": (lambda c: c["expert"].update(rows=9), "do not fit"),
    "features": (lambda c: c["expert"].update(vl_features=65), "features of 65"),
    "more layers": (lambda c: c["expert"].update(layers=5), "missing keys.*layers.4"),
    "other model": (lambda c: c["backbone"]["config"].update(model_type="bert"), "model type"),
    "no backbone": (lambda c: c["backbone"].update(config=None), "backbone.config is missing"),
    "outside": (lambda c: c["backbone"].update(inside=False, path="a/b"), "vl_model"),
    "deep": (
        lambda c: c["backbone"]["config"]["text_config"].update(num_hidden_layers=10**9),
        "layers",
    ),
    "nonsense": (
        lambda c: c["backbone"]["config"]["text_config"].update(num_attention_heads="x"),
        "configuration is not valid",
    ),
    "backbone layers": (
        lambda c: c["backbone"]["config"]["text_config"].update(
            num_hidden_layers=3, layer_types=None
        ),
        "the backbone: .* missing keys",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_bad_config(tmp_path: Path, tiny_dir: Path, name: str) -> None:
    edit, message = EDITS[name]
    folder = copy(tiny_dir, tmp_path / "policy", edit)
    with pytest.raises(PolicyError, match=message) as error:
        load_policy(folder, device="cpu")
    one_line(error)


def test_a_config_cannot_load_code(tmp_path: Path, tiny_dir: Path) -> None:
    def edit(config: dict[str, Any]) -> None:
        inner = config["backbone"]["config"]
        for section in (inner, inner["text_config"], inner["vision_config"]):
            section["_attn_implementation"] = "somebody/kernel"
            section["attn_implementation"] = "somebody/kernel"
            section["auto_map"] = {"AutoModel": "evil.Model"}
            section["quantization_config"] = {"quant_method": "bitsandbytes"}

    policy = load_policy(copy(tiny_dir, tmp_path / "policy", edit), device="cpu")
    assert policy.backbone.model.config._attn_implementation == "sdpa"
    assert policy.backbone.model.visual.config._attn_implementation == "sdpa"


def test_damaged_directories(tmp_path: Path, tiny_dir: Path) -> None:
    folder = copy(tiny_dir, tmp_path / "policy", lambda _: None)
    for text in ("", "{", "[]", "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass")):
        data = text if isinstance(text, bytes) else text.encode()
        (folder / "config.json").write_bytes(data)
        with pytest.raises(PolicyError):
            load_policy(folder)
    folder = copy(tiny_dir, tmp_path / "again", lambda _: None)
    (folder / "tokenizer").unlink()
    with pytest.raises(PolicyError, match="tokenizer"):
        load_policy(folder)
    (folder / "tokenizer").mkdir()
    with pytest.raises(PolicyError, match="no readable tokenizer"):
        load_policy(folder)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    with pytest.raises(PolicyError, match="no such file"):
        load_policy(folder)
    for part in (data[:0], data[:50], data[:-10], b"\xff" * 100):
        (folder / "model.safetensors").write_bytes(part)
        with pytest.raises(PolicyError, match="safetensors"):
            load_policy(folder)
    weights = load_file(tiny_dir / "model.safetensors")
    weights["action_expert.output_head.1.bias"] = torch.full((7,), torch.nan)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(PolicyError, match="NaN"):
        load_policy(folder)


def test_backbone_for_a_policy_that_has_one(tiny_dir: Path, hub_dir: Path) -> None:
    with pytest.raises(PolicyError, match="its own backbone"):
        load_policy(tiny_dir, backbone=hub_dir)
