"""Names of weights: one form for every generation of transformers, LoRA factors merged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from policies.base import PolicyError

__all__ = ["DEFAULT_LORA_ALPHA", "PARTS", "backbone_weights", "lora_alpha", "split_parts"]

PARTS = ("vl_model", "sensor_encoder", "action_expert")
DEFAULT_LORA_ALPHA = 32.0

_LORA = re.compile(r"^(.+)\.lora_(A|B)\.([^.]+)\.weight$")


def split_parts(content: Mapping[Any, Any], where: str) -> dict[str, dict[Any, Any]]:
    """Sort the content of a `.pt` file into the three parts, names without the part.

    Takes `{"model_state_dict": {…}}`, a bare state dict, or one dict for each part; other entries
    beside these (optimizer, epoch, …) are none of our business.

    Raises:
        PolicyError: no weights in it, or weights of an unknown part.
    """
    parts: dict[str, dict[Any, Any]] = {}
    if "model_state_dict" in content:
        state = content["model_state_dict"]
        if not isinstance(state, dict):
            raise PolicyError(f"{where}: model_state_dict is no dict of weights")
        return _split_flat(state, where)
    for part in PARTS:
        if isinstance(content.get(part), dict):
            parts[part] = {_bare(key): value for key, value in content[part].items()}
    if parts:
        return parts
    weights = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not any(_part(key) for key in weights):
        raise PolicyError(
            f"{where}: no policy weights in it; expected model_state_dict, or names that begin "
            f"with {', '.join(PARTS)}"
        )
    return _split_flat(weights, where)


def _split_flat(state: Mapping[Any, Any], where: str) -> dict[str, dict[Any, Any]]:
    parts: dict[str, dict[Any, Any]] = {}
    strangers: list[str] = []
    for key, value in state.items():
        part = _part(key)
        if part is None:
            strangers.append(str(key)[:200])
        else:
            parts.setdefault(part, {})[_bare(key).removeprefix(part + ".")] = value
    if strangers:
        raise PolicyError(f"{where}: unexpected keys [{', '.join(sorted(strangers)[:200])}]")
    return parts


def _bare(key: object) -> Any:
    # DataParallel and DistributedDataParallel put `module.` before every name.
    return key.removeprefix("module.") if isinstance(key, str) else key


def _part(key: object) -> str | None:
    name = _bare(key)
    if not isinstance(name, str):
        return None
    return next((part for part in PARTS if name.startswith(part + ".")), None)


def backbone_weights(weights: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Rename a backbone's weights to those of `Qwen2_5_VLModel`; LoRA merged, language head left.

    Args:
        weights: names of either generation (`visual.…`, `model.layers.…` or `model.visual.…`,
            `model.language_model.…`), with or without peft's prefixes and factors.
        alpha: the LoRA alpha; the rank is read off the shapes.

    Raises:
        PolicyError: factors without their partner or base, of several adapters, or of wrong shape.
    """
    base: dict[str, Tensor] = {}
    factors: dict[str, dict[str, Tensor]] = {}
    adapters: set[str] = set()
    for key, value in weights.items():
        name = _backbone_name(key)
        if match := _LORA.match(name):
            factors.setdefault(match[1] + ".weight", {})[match[2]] = value
            adapters.add(match[3])
        elif not name.startswith("lm_head."):
            base[name.replace(".base_layer.", ".")] = value
    if len(adapters) > 1:
        raise PolicyError(f"LoRA factors of several adapters {sorted(adapters)}: merge them first")
    for name, pair in factors.items():
        base[name] = _merge(name, base.get(name), pair, alpha)
    return base


def lora_alpha(content: Mapping[Any, Any]) -> float:
    """The LoRA alpha that a `.pt` file's own configuration entry states, else 32.

    Raises:
        PolicyError: it states something that is no number.
    """
    places = [content]
    for entry in ("config", "args", "lora_config", "peft_config"):
        if isinstance(content.get(entry), dict):
            places.append(content[entry])
    for place in places:
        value = place.get("lora_alpha")
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
                raise PolicyError(f"lora_alpha must be a positive number, not {value!r:.80}")
            return float(value)
    return DEFAULT_LORA_ALPHA


def _backbone_name(key: str) -> str:
    name = key.removeprefix("base_model.model.")
    for inner in ("model.visual.", "model.language_model."):
        if name.startswith(inner):
            return name.removeprefix("model.")
    if name.startswith("model."):  # before transformers 4.52 the text model was all of `model`
        return "language_" + name
    return name


def _merge(name: str, base: Tensor | None, pair: Mapping[str, Tensor], alpha: float) -> Tensor:
    if base is None or set(pair) != {"A", "B"}:
        raise PolicyError(f"LoRA factors of {name} are incomplete: A, B and the base are needed")
    down, up = pair["A"], pair["B"]
    fits = down.ndim == up.ndim == base.ndim == 2 and down.shape[0] == up.shape[1] > 0
    if not fits or (up.shape[0], down.shape[1]) != tuple(base.shape):
        raise PolicyError(
            f"LoRA factors of {name} do not fit: A {tuple(down.shape)}, B {tuple(up.shape)}, "
            f"base {tuple(base.shape)}"
        )
    change = torch.matmul(up.float(), down.float()) * (alpha / down.shape[0])
    return (base.float() + change).to(base.dtype)
