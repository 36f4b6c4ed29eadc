"""Names and shapes of existing checkpoints, and the fast parts written out as plain mathematics.

Nothing here uses the product: it is what the product is compared with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

HEADS = 8
FUSIONS = ("concat", "cross_attention", "gated", "none")


@dataclass(frozen=True)
class Sizes:
    """The sizes of existing checkpoints."""

    channels: int = 1026
    conv: tuple[int, ...] = (512, 1024, 1024, 1024)
    sensor_layers: int = 2
    sensor_ff: int = 4096
    features: int = 3072
    vl: int = 2048
    hidden: int = 1024
    layers: int = 4
    ff: int = 4096
    rows: int = 8
    columns: int = 7


SMALL = Sizes(11, (32, 48, 64, 64), 2, 96, 40, 64, 56, 3, 72, 8, 7)


def shapes(fusion: str, s: Sizes) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}

    def linear(name: str, outputs: int, inputs: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name: str, width: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (width,), (width,)

    def attention(name: str, width: int) -> None:
        found[f"{name}.in_proj_weight"] = (3 * width, width)
        found[f"{name}.in_proj_bias"] = (3 * width,)
        linear(f"{name}.out_proj", width, width)

    inputs = s.channels
    for stage, outputs in enumerate(s.conv):
        place = f"sensor_encoder.conv_backbone.{4 * stage}"
        found[f"{place}.weight"], found[f"{place}.bias"] = (outputs, inputs, 3), (outputs,)
        place = f"sensor_encoder.conv_backbone.{4 * stage + 1}"
        norm(place, outputs)
        found[f"{place}.running_mean"] = found[f"{place}.running_var"] = (outputs,)
        found[f"{place}.num_batches_tracked"] = ()
        inputs = outputs
    for layer in range(s.sensor_layers):
        place = f"sensor_encoder.transformer.layers.{layer}"
        attention(f"{place}.self_attn", inputs)
        linear(f"{place}.linear1", s.sensor_ff, inputs)
        linear(f"{place}.linear2", inputs, s.sensor_ff)
        norm(f"{place}.norm1", inputs)
        norm(f"{place}.norm2", inputs)
    linear("sensor_encoder.projection.0", s.features, inputs)
    norm("sensor_encoder.projection.1", s.features)
    linear("sensor_encoder.projection.4", s.features, s.features)

    found["action_expert.pos_embed"] = (1, s.rows, s.hidden)
    fused = {"concat": s.vl + s.features, "none": s.vl}.get(fusion, s.hidden)
    linear("action_expert.fusion_proj", s.hidden, fused)
    if fusion in ("cross_attention", "gated"):
        linear("action_expert.vl_proj", s.hidden, s.vl)
        linear("action_expert.sensor_proj", s.hidden, s.features)
    if fusion == "cross_attention":
        attention("action_expert.cross_attn", s.hidden)
    if fusion == "gated":
        linear("action_expert.gate.0", s.hidden, 2 * s.hidden)
    for layer in range(s.layers):
        place = f"action_expert.temporal_decoder.layers.{layer}"
        attention(f"{place}.self_attn", s.hidden)
        attention(f"{place}.multihead_attn", s.hidden)
        linear(f"{place}.linear1", s.ff, s.hidden)
        linear(f"{place}.linear2", s.hidden, s.ff)
        for number in (1, 2, 3):
            norm(f"{place}.norm{number}", s.hidden)
    norm("action_expert.output_head.0", s.hidden)
    linear("action_expert.output_head.1", s.columns, s.hidden)
    if fusion == "none":
        found = {k: v for k, v in found.items() if not k.startswith("sensor_encoder.")}
    return found


def random_state(
    fusion: str, s: Sizes, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Random weights, none of them where training starts: norms, biases, batch-norm statistics."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for name, shape in shapes(fusion, s).items():
        value = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(1234)
            continue
        if name.endswith("running_var"):
            value = 0.5 + value.abs()
        elif len(shape) == 1 and name.endswith("weight"):
            value = 1 + 0.2 * value
        elif len(shape) == 1:
            value = 0.2 * value
        elif not name.endswith("pos_embed"):
            value = value / math.sqrt(math.prod(shape[1:]))
        state[name] = value.to(dtype)
    return state


def part(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k.removeprefix(name + "."): v for k, v in state.items() if k.startswith(name + ".")}


def norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    var = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(var + 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def attention(state: dict[str, Tensor], name: str, q: Tensor, kv: Tensor) -> Tensor:
    width = q.shape[-1]
    weight, bias = state[f"{name}.in_proj_weight"], state[f"{name}.in_proj_bias"]
    heads = []
    query, key, value = (
        x @ weight[i * width : (i + 1) * width].T + bias[i * width : (i + 1) * width]
        for i, x in enumerate((q, kv, kv))
    )
    size = width // HEADS
    for head in range(HEADS):
        at = slice(head * size, (head + 1) * size)
        scores = query[..., at] @ key[..., at].transpose(-1, -2) / math.sqrt(size)
        heads.append(torch.softmax(scores, -1) @ value[..., at])
    return linear(state, f"{name}.out_proj", torch.cat(heads, -1))


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def encode_sensor(state: dict[str, Tensor], s: Sizes, window: Tensor) -> Tensor:
    """(1, T, channels) with T as trained → (1, features)."""
    x = window.transpose(1, 2)
    for stage in range(len(s.conv)):
        a, b = f"conv_backbone.{4 * stage}", f"conv_backbone.{4 * stage + 1}"
        x = F.conv1d(x, state[f"{a}.weight"], state[f"{a}.bias"], stride=2, padding=1)
        scale = state[f"{b}.weight"] / torch.sqrt(state[f"{b}.running_var"] + 1e-5)
        x = (x - state[f"{b}.running_mean"][:, None]) * scale[:, None] + state[f"{b}.bias"][:, None]
        x = gelu(x)
    x = x.transpose(1, 2)
    for layer in range(s.sensor_layers):
        at = f"transformer.layers.{layer}"
        y = norm(state, f"{at}.norm1", x)
        x = x + attention(state, f"{at}.self_attn", y, y)
        y = linear(state, f"{at}.linear1", norm(state, f"{at}.norm2", x)).clamp(min=0)
        x = x + linear(state, f"{at}.linear2", y)
    x = linear(state, "projection.0", x.mean(1))
    return linear(state, "projection.4", gelu(norm(state, "projection.1", x)))


def fuse(state: dict[str, Tensor], fusion: str, vl: Tensor, sensor: Tensor | None) -> Tensor:
    pooled = vl.mean(1)
    if fusion == "none":
        return linear(state, "fusion_proj", pooled)
    assert sensor is not None
    if fusion == "concat":
        return linear(state, "fusion_proj", torch.cat((pooled, sensor), -1))
    own = linear(state, "sensor_proj", sensor)
    if fusion == "cross_attention":
        tokens = linear(state, "vl_proj", vl)
        mixed = attention(state, "cross_attn", own[:, None], tokens)[:, 0]
        return linear(state, "fusion_proj", mixed)
    seen = linear(state, "vl_proj", pooled)
    share = torch.sigmoid(linear(state, "gate.0", torch.cat((seen, own), -1)))
    return linear(state, "fusion_proj", share * seen + (1 - share) * own)


def act(
    state: dict[str, Tensor], fusion: str, s: Sizes, vl: Tensor, window: Tensor | None
) -> Tensor:
    """Features (1, N, vl) and a window (1, T, channels) → delta (1, rows, columns)."""
    sensor = None
    if window is not None and fusion != "none":
        sensor = encode_sensor(part(state, "sensor_encoder"), s, window)
    state = part(state, "action_expert")
    memory = fuse(state, fusion, vl, sensor)[:, None]
    x = state["pos_embed"]
    for layer in range(s.layers):
        at = f"temporal_decoder.layers.{layer}"
        x = norm(state, f"{at}.norm1", x + attention(state, f"{at}.self_attn", x, x))
        x = norm(state, f"{at}.norm2", x + attention(state, f"{at}.multihead_attn", x, memory))
        y = linear(state, f"{at}.linear2", linear(state, f"{at}.linear1", x).clamp(min=0))
        x = norm(state, f"{at}.norm3", x + y)
    return linear(state, "output_head.1", norm(state, "output_head.0", x))
