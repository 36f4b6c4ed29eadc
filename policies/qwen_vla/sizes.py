"""Sizes and fusion strategy, read off the shapes of the fast parts' weights."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from policies.base import PolicyError
from policies.qwen_vla.config import ExpertConfig, Fusion, SensorConfig

__all__ = ["DEFAULT_HEADS", "DEFAULT_WINDOW", "expert_sizes", "fusion_of", "sensor_sizes"]

# No shape tells these; existing checkpoints were trained with them.
DEFAULT_HEADS = 8
DEFAULT_WINDOW = 65

# Each stage of the convolutions takes four places: convolution, batch norm, GELU, dropout.
STAGE = 4


def sensor_sizes(weights: Mapping[str, Tensor]) -> SensorConfig:
    """Sizes of a sensor encoder from its weights.

    Raises:
        PolicyError: weights that sizes are read from are missing or have other dimensions.
    """
    part = "sensor_encoder"
    places = _numbers(weights, r"conv_backbone\.(\d+)\.weight")
    stages = [place // STAGE for place in places if place % STAGE == 0]
    if not stages:
        raise PolicyError(f"{part}: missing keys [conv_backbone.0.weight]")
    shapes = [_shape(weights, part, f"conv_backbone.{n * STAGE}.weight", 3) for n in stages]
    layers = _numbers(weights, r"transformer\.layers\.(\d+)\..+")
    return SensorConfig(
        window=DEFAULT_WINDOW,
        channels=shapes[0][1],
        conv=tuple(shape[0] for shape in shapes),
        layers=len(layers),
        heads=DEFAULT_HEADS,
        feedforward=_shape(weights, part, "transformer.layers.0.linear1.weight", 2)[0],
        features=_shape(weights, part, "projection.0.weight", 2)[0],
    )


def expert_sizes(
    weights: Mapping[str, Tensor],
    sensor: SensorConfig | None,
    *,
    fusion: Fusion | None = None,
    vl_features: int | None = None,
) -> tuple[ExpertConfig, int]:
    """Sizes of an action expert from its weights.

    Args:
        weights: of the action expert.
        sensor: sizes of the sensor encoder beside it, if there is one.
        fusion: what the user says it is.
        vl_features: values in the backbone's feature, where that is known already.

    Returns:
        The sizes and the number of columns.

    Raises:
        PolicyError: as for the sensor encoder; or another fusion than the user says; or it was
            trained on features of another size.
    """
    part = "action_expert"
    rows, hidden = _shape(weights, part, "pos_embed", 3)[1:]
    columns = _shape(weights, part, "output_head.1.weight", 2)[0]
    layers = _numbers(weights, r"temporal_decoder\.layers\.(\d+)\..+")
    inputs = _shape(weights, part, "fusion_proj.weight", 2)[1]
    found = fusion_of(weights, sensor, fusion=fusion, vl_features=vl_features)
    if fusion is not None and fusion != found:
        raise PolicyError(
            f"the checkpoint's fusion is {found}, not {fusion}: leave the option out or give the "
            "checkpoint that goes with it"
        )
    if found in ("cross_attention", "gated"):
        inputs = _shape(weights, part, "vl_proj.weight", 2)[1]
    elif found == "concat":
        inputs -= sensor.features if sensor is not None else 0
    if vl_features is not None and inputs != vl_features:
        raise PolicyError(
            f"the action expert was trained on features of {inputs} values but the backbone gives "
            f"{vl_features}: give the backbone it was trained with"
        )
    config = ExpertConfig(
        fusion=found,
        vl_features=inputs,
        hidden=hidden,
        layers=len(layers),
        heads=DEFAULT_HEADS,
        feedforward=_shape(weights, part, "temporal_decoder.layers.0.linear1.weight", 2)[0],
        rows=rows,
    )
    return config, columns


def fusion_of(
    weights: Mapping[str, Tensor],
    sensor: SensorConfig | None,
    *,
    fusion: Fusion | None = None,
    vl_features: int | None = None,
) -> Fusion:
    """Which fusion an action expert's weights are for.

    `concat` and `none` have the same names. The width of the projection tells them apart where the
    backbone's is known; else the user's word is taken, else `concat` where the width allows it.
    """
    if any(key.startswith("gate.") for key in weights):
        return "gated"
    if any(key.startswith("cross_attn.") for key in weights):
        return "cross_attention"
    inputs = _shape(weights, "action_expert", "fusion_proj.weight", 2)[1]
    if sensor is None or inputs == vl_features or inputs <= sensor.features:
        return "none"
    if vl_features is None and fusion == "none":
        return "none"
    return "concat"


def _numbers(weights: Mapping[str, Tensor], pattern: str) -> list[int]:
    # A digit limit: int() of a name with a million digits takes minutes.
    matches = (re.fullmatch(pattern, key) for key in weights)
    return sorted({int(match[1]) for match in matches if match and len(match[1]) < 5})


def _shape(weights: Mapping[str, Tensor], part: str, key: str, dims: int) -> tuple[int, ...]:
    if key not in weights:
        raise PolicyError(f"{part}: missing keys [{key}]")
    shape = tuple(weights[key].shape)
    if len(shape) != dims or 0 in shape:
        raise PolicyError(f"{part}: {key} has shape {shape}, expected {dims} dimensions")
    return shape
