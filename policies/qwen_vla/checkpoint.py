"""Checkpoints of both kinds, read into one form: existing `.pt` files and our directories."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from policies.base import PolicyError
from policies.qwen_vla.config import (
    DEFAULT_BACKBONE,
    ActionConfig,
    BackboneConfig,
    Fusion,
    PolicyConfig,
    default_columns,
    from_json,
    to_json,
)
from policies.qwen_vla.fast import check_fast
from policies.qwen_vla.names import PARTS, backbone_weights, lora_alpha, split_parts
from policies.qwen_vla.sizes import expert_sizes, fusion_of, sensor_sizes
from policies.qwen_vla.tensors import (
    check_finite,
    check_tensors,
    read_folder,
    read_json,
    read_pt,
    read_safetensors,
)

if TYPE_CHECKING:  # it needs the library of the backbone, which takes seconds to import
    from policies.qwen_vla.policy import QwenVlaPolicy

__all__ = ["Checkpoint", "find_backbone", "read_checkpoint", "save_policy"]

log = logging.getLogger(__name__)

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer"
_DIGESTED = 1024  # values of each tensor; all 120 million would take a second


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as read, before any module is made.

    Attributes:
        config: everything but the weights.
        sensor: weights of the sensor encoder, empty where there is none.
        expert: weights of the action expert.
        backbone: weights of the backbone in `Qwen2_5_VLModel`'s names, empty where not wanted.
        tokenizer: the folder of the backbone's tokenizer; None where not wanted.
        backbone_config: content of the backbone's own configuration, empty where not wanted.
    """

    config: PolicyConfig
    sensor: dict[str, Tensor]
    expert: dict[str, Tensor]
    backbone: dict[str, Tensor] = field(default_factory=dict)
    tokenizer: Path | None = None
    backbone_config: dict[str, Any] = field(default_factory=dict)

    def identity(self) -> str:
        """A digest of the fast half's weights: training changes every one of them."""
        digest = hashlib.sha256()
        for part in (self.sensor, self.expert):
            for name in sorted(part):
                some = part[name].flatten()[:_DIGESTED].float().contiguous()
                digest.update(f"{name} {tuple(part[name].shape)}".encode())
                digest.update(some.numpy().tobytes())
        return digest.hexdigest()


def read_checkpoint(
    path: str | Path,
    *,
    fusion: Fusion | None = None,
    backbone: str | Path | None = None,
    with_backbone: bool = True,
) -> Checkpoint:
    """Read a checkpoint and check all of it.

    Args:
        path: a `.pt` file or a directory of ours.
        fusion: what the user says the fusion is.
        backbone: Hugging Face id or folder of the backbone, where it is not inside.
        with_backbone: False reads the fast parts only, and needs no backbone.

    Raises:
        PolicyError: whatever is wrong with it, in one line.
    """
    path = Path(os.path.expanduser(path))
    if os.path.isdir(path):
        return _read_directory(path, fusion, backbone, with_backbone)
    if not os.path.isfile(path):
        raise PolicyError(
            f"{path}: no such checkpoint; give a .pt file or a policy directory, or make a small "
            "one with python scripts/make_tiny_checkpoint.py --out DIR"
        )
    return _read_pt(path, fusion, backbone, with_backbone)


def find_backbone(name: str | Path) -> Path:
    """The folder of a backbone: the one named, or the one in the local Hugging Face cache.

    Raises:
        PolicyError: there is none; the message says how to get it. Nothing is downloaded here.
    """
    folder = Path(os.path.expanduser(name))
    if os.path.isdir(folder):
        if (folder / CONFIG).is_file():
            return folder
        raise PolicyError(f"{folder}: not a backbone, it has no config.json; give backbone=FOLDER")
    try:
        cached = try_to_load_from_cache(str(name), CONFIG)
    except ValueError:  # not of the form owner/name
        cached = None
    if isinstance(cached, str):
        return Path(cached).parent
    raise PolicyError(
        f"backbone {name}: neither a folder nor in the Hugging Face cache; run "
        f"`hf download {name}` once, or give the folder with the backbone option"
    )


def _read_pt(
    path: Path, fusion: Fusion | None, backbone: str | Path | None, with_backbone: bool
) -> Checkpoint:
    content = read_pt(path)
    parts = split_parts(content, str(path))
    tensors = {name: check_tensors(part, f"{path}: {name}") for name, part in parts.items()}
    expert = tensors.get("action_expert", {})
    if not expert:
        raise PolicyError(
            f"{path}: missing keys [action_expert.*]: there is no action expert in it"
        )
    sensor = tensors.get("sensor_encoder", {})
    for part, weights in (("sensor_encoder", sensor), ("action_expert", expert)):
        check_finite(weights, f"{path}: {part}")
    try:
        # Before the backbone is looked for, so that a broken file is called broken.
        config = _infer(sensor, expert, fusion, None)
        check_fast(config, sensor if config.sensor else {}, expert)
        if not with_backbone:
            return Checkpoint(config, sensor if config.sensor else {}, expert)
        name = str(backbone or DEFAULT_BACKBONE)
        folder = find_backbone(name)
        own = read_json(folder / CONFIG)
        config = _infer(sensor, expert, fusion, _hidden_size(own))
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from error
    if config.sensor is None and sensor:
        log.warning("%s: fusion none does not use the sensor encoder in it", path)
        sensor = {}
    inside = bool(tensors.get("vl_model"))
    if inside:
        vl = backbone_weights(tensors["vl_model"], lora_alpha(content))
        check_finite(vl, f"{path}: vl_model")
    else:
        vl = backbone_weights(read_folder(folder), lora_alpha({}))
    if os.path.isdir(os.path.expanduser(name)):
        name = str(folder.resolve())
    section = BackboneConfig(inside=inside, path=name, config=own if inside else None)
    config = dataclasses.replace(config, backbone=section)
    return Checkpoint(config, sensor, expert, vl, folder, own)


def _infer(
    sensor: Mapping[str, Tensor],
    expert: Mapping[str, Tensor],
    fusion: Fusion | None,
    vl_features: int | None,
) -> PolicyConfig:
    """The configuration of a `.pt` file: sizes off the shapes, the defaults for the rest."""
    sizes = sensor_sizes(sensor) if sensor else None
    found = fusion_of(expert, sizes, fusion=fusion, vl_features=vl_features)
    if found != "none" and sizes is None:
        raise PolicyError(f"missing keys [sensor_encoder.*]: fusion {found} needs the sensor")
    config, columns = expert_sizes(expert, sizes, fusion=fusion, vl_features=vl_features)
    return PolicyConfig(
        sensor=None if found == "none" else sizes,
        expert=config,
        action=ActionConfig(columns=default_columns(columns)),
    )


def _read_directory(
    path: Path, fusion: Fusion | None, backbone: str | Path | None, with_backbone: bool
) -> Checkpoint:
    if not (path / CONFIG).is_file():
        raise PolicyError(f"{path}: not a policy directory, it has no config.json")
    data = read_json(path / CONFIG)
    if "format" not in data and "model_type" in data:
        raise PolicyError(
            f"{path}: a Hugging Face model, not a policy; give the policy's checkpoint, and this "
            "folder with the backbone option"
        )
    try:
        config = from_json(data)
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from error
    if fusion is not None and fusion != config.expert.fusion:
        raise PolicyError(
            f"{path}: the checkpoint's fusion is {config.expert.fusion}, not {fusion}"
        )
    parts = _split_flat_parts(read_safetensors(path / WEIGHTS), path)
    for name in PARTS:
        check_finite(parts[name], f"{path}: {name}")
    if config.backbone.inside:
        if backbone is not None:
            raise PolicyError(f"{path}: has its own backbone inside; leave the option out")
        own = config.backbone.config or {}
        vl, folder = backbone_weights(parts["vl_model"], lora_alpha({})), path / TOKENIZER
    elif parts["vl_model"]:
        raise PolicyError(f"{path}: unexpected keys [vl_model.*]: backbone.inside is false")
    elif with_backbone:
        folder = find_backbone(backbone or config.backbone.path or DEFAULT_BACKBONE)
        own, vl = read_json(folder / CONFIG), backbone_weights(read_folder(folder), lora_alpha({}))
    if not with_backbone:
        return Checkpoint(config, parts["sensor_encoder"], parts["action_expert"])
    if config.expert.vl_features != _hidden_size(own):
        raise PolicyError(
            f"{path}: the action expert takes features of {config.expert.vl_features} values but "
            f"the backbone gives {_hidden_size(own)}"
        )
    return Checkpoint(config, parts["sensor_encoder"], parts["action_expert"], vl, folder, own)


def _split_flat_parts(weights: Mapping[str, Tensor], path: Path) -> dict[str, dict[str, Tensor]]:
    parts = split_parts({"model_state_dict": dict(weights)}, str(path / WEIGHTS))
    return {name: parts.get(name, {}) for name in PARTS}


def _hidden_size(config: Mapping[str, Any]) -> int:
    # Files of before transformers 4.52 hold the text model's sizes at the top.
    text = config.get("text_config")
    size = (text if isinstance(text, dict) else config).get("hidden_size")
    size = size if size is not None else config.get("hidden_size")
    if type(size) is not int:
        raise PolicyError("the backbone's configuration states no hidden_size")
    return size


def save_policy(
    policy: QwenVlaPolicy, folder: str | Path, *, include_backbone: bool | None = None
) -> None:
    """Write a policy as a directory of ours, e.g. to convert a `.pt` file.

    Args:
        policy: as loaded; the weights are written in its dtype.
        folder: made where it is not there.
        include_backbone: write the backbone's weights and tokenizer too. By default where they
            came with the checkpoint; otherwise its id or folder is written.

    Raises:
        PolicyError: the policy was loaded without its backbone, or the folder cannot be written.
    """
    folder = Path(os.path.expanduser(folder))
    backbone = policy.config.backbone
    inside = backbone.inside if include_backbone is None else include_backbone
    if inside:
        section = BackboneConfig(
            inside=True, config=_backbone_section(policy.backbone.model.config)
        )
    else:
        section = BackboneConfig(path=backbone.path)
    config = dataclasses.replace(policy.config, backbone=section)
    weights = {
        f"{part}.{key}": value.detach().cpu().contiguous()
        for part, state in policy.state_dicts(with_backbone=inside).items()
        for key, value in state.items()
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        text = json.dumps(to_json(config), indent=2, sort_keys=False, default=str)
        (folder / WEIGHTS).chmod(0o644)  # the library makes it readable by its owner only
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
        if inside:
            policy.backbone.tokenizer.save_pretrained(folder / TOKENIZER)
    except (OSError, SafetensorError) as error:
        raise PolicyError(f"{folder}: cannot be written: {error}") from error


def _backbone_section(config: Any) -> dict[str, Any]:
    """What describes a Qwen2.5-VL model: the fields its own classes declare."""
    section: dict[str, Any] = {"model_type": config.model_type}
    for name in type(config).__annotations__:
        value = getattr(config, name, None)
        if hasattr(type(value), "model_type"):
            section[name] = _backbone_section(value)
        elif value is not None and not name.startswith("_"):
            section[name] = value
    section.pop("sub_configs_defaults", None)
    return section
