"""From a checkpoint to a policy on a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from policies.base import PolicyError, PolicySpec
from policies.qwen_vla.acting import FastHalf, fast_spec
from policies.qwen_vla.checkpoint import read_checkpoint
from policies.qwen_vla.config import Fusion
from policies.qwen_vla.fast import FastParts, build_fast
from policies.qwen_vla.folded import FoldedFast
from policies.qwen_vla.packed import Packing, Precision, packing
from policies.qwen_vla.runner import FastRunner
from policies.qwen_vla.tensors import move

if TYPE_CHECKING:
    from policies.qwen_vla.policy import QwenVlaPolicy

__all__ = ["load_fast_half", "load_fast_parts", "load_policy"]

Dtype = Literal["auto", "float32", "bfloat16", "int10", "int8"]
# The fast parts with short weights, all else as with `auto`.
SHORT: dict[str, Precision] = {"int10": "int10", "int8": "int8"}

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CPU = torch.device("cpu")


def load_policy(
    path: str | Path,
    *,
    device: str = "auto",
    dtype: Dtype = "auto",
    fusion: Fusion | None = None,
    backbone: str | Path | None = None,
    keep_plain: bool = True,
    exact_resize: bool = True,
    reuse_unchanged: bool = False,
) -> QwenVlaPolicy:
    """Load a policy from a `.pt` file or a directory of ours.

    Args:
        path: the checkpoint.
        device: `auto` (CUDA where there is one), `cpu`, `cuda`, `cuda:1`, …
        dtype: `auto` (the backbone in bfloat16 on CUDA, all else in float32), or `float32` or
            `bfloat16` for all parts. `int10` and `int8`: as `auto`, but the fast parts with
            weights of ten or eight bits, on a CPU only; of the largest value, the first costs
            about half a percent and the second 2 to 5. On a CPU the fast parts' weights are no
            bfloat16 where there is something closer and faster (`packing`).
        fusion: what the fusion must be; read off the checkpoint by default.
        backbone: folder or Hugging Face id of Qwen2.5-VL where the checkpoint does not hold it
            (a `.pt` with its weights still needs its configuration and tokenizer); by default the
            id in the checkpoint, else Qwen/Qwen2.5-VL-3B-Instruct. Nothing is downloaded.
        keep_plain: keep the fast parts' weights as the checkpoint has them, beside those folded
            to run: needed by `save_policy`, and 480 MB of main memory at the reference sizes.
        exact_resize: resize pictures to the last bit as training did; otherwise faster, and up to
            two levels of 255 off.
        reuse_unchanged: views whose picture is the one before are not encoded again.

    Raises:
        PolicyError: one line that says what is wrong and what to do.
    """
    # The backbone's library takes seconds to import: a fast half does without.
    from policies.qwen_vla.backbone import Backbone, backbone_config, build_model
    from policies.qwen_vla.policy import QwenVlaPolicy
    from policies.qwen_vla.tokenizer import load_tokenizer

    place, number, fast_number = _place(device, dtype)
    layout = _packing(dtype, place)
    checkpoint = read_checkpoint(path, fusion=fusion, backbone=backbone)
    # Folded from float32, whatever the weights become: bfloat16 would be rounded twice.
    fast = build_fast(checkpoint.config, checkpoint.sensor, checkpoint.expert, CPU, torch.float32)
    runner = FastRunner(FoldedFast(fast, layout))
    if keep_plain and fast_number != torch.float32:
        fast = build_fast(checkpoint.config, checkpoint.sensor, checkpoint.expert, CPU, fast_number)
    tokenizer = load_tokenizer(checkpoint.tokenizer)
    weights = {key: move(value, place, number) for key, value in checkpoint.backbone.items()}
    model = build_model(backbone_config(checkpoint.backbone_config), weights, place)
    slow = Backbone(
        model,
        tokenizer,
        checkpoint.config.image,
        exact_resize=exact_resize,
        reuse_unchanged=reuse_unchanged,
    )
    return QwenVlaPolicy(fast, slow, runner, keep_plain=keep_plain, identity=checkpoint.identity())


def load_fast_half(
    path: str | Path,
    spec: PolicySpec | None = None,
    *,
    device: str = "auto",
    dtype: Dtype = "auto",
    fusion: Fusion | None = None,
) -> FastHalf:
    """Load what acts, for features that are computed elsewhere from the same checkpoint.

    Args:
        path: the checkpoint.
        spec: what the other side says of the whole policy, its device and fusion too; None: what
            the checkpoint says of the fast half.
        device: as for `load_policy`, where there is no spec.
        dtype: as for `load_policy`.
        fusion: as for `load_policy`, where there is no spec.

    Raises:
        PolicyError: one line that says what is wrong and what to do.
    """
    place, _, _ = _place(spec.device if spec else device, dtype)
    layout = _packing(dtype, place)
    checkpoint = read_checkpoint(path, fusion=spec.fusion if spec else fusion, with_backbone=False)
    fast = build_fast(checkpoint.config, checkpoint.sensor, checkpoint.expert, CPU, torch.float32)
    spec = spec or fast_spec(checkpoint.config, place, checkpoint.identity())
    return FastHalf(fast.config, spec, None, FastRunner(FoldedFast(fast, layout)))


def load_fast_parts(
    path: str | Path,
    *,
    device: str = "auto",
    dtype: Dtype = "auto",
    fusion: Fusion | None = None,
) -> FastParts:
    """Load the sensor encoder and the action expert only, as plain modules; needs no backbone.

    Raises:
        PolicyError: one line that says what is wrong and what to do.
    """
    if dtype in SHORT:
        raise PolicyError(f"plain modules have no {dtype} weights: use float32 or bfloat16")
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
    if dtype == "auto" or dtype in SHORT:
        # The fast parts are small: bfloat16 would save little time and cost them two digits.
        slow = torch.bfloat16 if place.type == "cuda" else torch.float32
        return place, slow, torch.float32
    if dtype not in DTYPES:
        raise PolicyError(f"dtype must be auto, float32, bfloat16, int10 or int8, not {dtype!r}")
    return place, DTYPES[dtype], DTYPES[dtype]


def _packing(dtype: str, place: torch.device) -> Packing:
    """How the fast parts' large weights are kept."""
    precision: Precision = "bfloat16" if dtype == "bfloat16" else "float32"
    try:
        return packing(SHORT.get(dtype, precision), place)
    except ValueError as error:
        raise PolicyError(f"dtype {dtype} cannot be used here: {error}; try bfloat16") from None
