"""From a checkpoint to a policy on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from policies.base import PolicyError
from policies.qwen_vla.backbone import Backbone, backbone_config, build_model
from policies.qwen_vla.checkpoint import read_checkpoint
from policies.qwen_vla.config import Fusion
from policies.qwen_vla.fast import FastParts, build_fast
from policies.qwen_vla.policy import QwenVlaPolicy
from policies.qwen_vla.tensors import move
from policies.qwen_vla.tokenizer import load_tokenizer

__all__ = ["load_fast_parts", "load_policy"]

Dtype = Literal["auto", "float32", "bfloat16"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_policy(
    path: str | Path,
    *,
    device: str = "auto",
    dtype: Dtype = "auto",
    fusion: Fusion | None = None,
    backbone: str | Path | None = None,
) -> QwenVlaPolicy:
    """Load a policy from a `.pt` file or a directory of ours.

    Args:
        path: the checkpoint.
        device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`, …
        dtype: `auto` (the backbone in bfloat16 on CUDA, all else in float32), or `float32` or
            `bfloat16` for all parts.
        fusion: what the fusion must be; read off the checkpoint by default.
        backbone: folder or Hugging Face id of Qwen2.5-VL where the checkpoint does not hold it
            (a `.pt` with its weights still needs its configuration and tokenizer); by default the
            id in the checkpoint, else Qwen/Qwen2.5-VL-3B-Instruct. Nothing is downloaded.

    Raises:
        PolicyError: one line that says what is wrong and what to do.
    """
    place, number, fast_number = _place(device, dtype)
    checkpoint = read_checkpoint(path, fusion=fusion, backbone=backbone)
    fast = build_fast(checkpoint.config, checkpoint.sensor, checkpoint.expert, place, fast_number)
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    weights = {key: move(value, place, number) for key, value in checkpoint.backbone.items()}
    model = build_model(backbone_config(checkpoint.backbone_config), weights, place)
    return QwenVlaPolicy(fast, Backbone(model, tokenizer, checkpoint.config.image))


def load_fast_parts(
    path: str | Path,
    *,
    device: str = "auto",
    dtype: Dtype = "auto",
    fusion: Fusion | None = None,
) -> FastParts:
    """Load the sensor encoder and the action expert only; needs no backbone.

    Raises:
        PolicyError: one line that says what is wrong and what to do.
    """
    place, _, number = _place(device, dtype)
    checkpoint = read_checkpoint(path, fusion=fusion, with_backbone=False)
    return build_fast(checkpoint.config, checkpoint.sensor, checkpoint.expert, place, number)


def _place(device: str, dtype: str) -> tuple[torch.device, torch.dtype, torch.dtype]:
    """The device, the backbone's dtype and that of the fast parts."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
        torch.empty(1, device=place)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise PolicyError(f"device {device!r} cannot be used here; try cpu or auto") from error
    if dtype == "auto":
        # The fast parts are small: bfloat16 would save little time and cost them two digits.
        slow = torch.bfloat16 if place.type == "cuda" else torch.float32
        return place, slow, torch.float32
    if dtype not in DTYPES:
        raise PolicyError(f"dtype must be auto, float32 or bfloat16, not {dtype!r}")
    return place, DTYPES[dtype], DTYPES[dtype]
