"""The vision tower of Qwen2.5-VL over a fixed layout, with the model's own weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from policies.qwen_vla.joined import Joined, join, pad_inputs
from policies.qwen_vla.layout import Segments, VisionLayout
from policies.qwen_vla.pointwise import Activation, Pointwise

__all__ = ["VisionTower", "attend"]

# Levels are counted from the middle of their range: small numbers sum up more exactly in bfloat16,
# which holds each of them to the last bit.
MIDDLE = 128
# Matrix units read 16 bytes at a time: eight values of 16 bits.
ALIGNED = 8


@dataclass(frozen=True, slots=True)
class _Block:
    norm1: tuple[Tensor, float]
    qkv: nn.Linear
    proj: nn.Linear
    norm2: tuple[Tensor, float]
    gate_up: Joined
    down: Tensor
    down_bias: Tensor | None
    whole: bool


class VisionTower:
    """Levels of patches to embeddings of tokens.

    The weights of gate and up are joined in place; those of `down` get a few columns of zeros where
    its width (3,420 in the published models) is no multiple of eight, since 16-bit products of
    such a width run on slow kernels. The first layer is a copy, made for levels.

    Args:
        visual: the library's tower; nothing of it changes but where its weights lie.
        steps: the small steps between products.
    """

    def __init__(self, visual: Any, steps: Pointwise) -> None:
        self._steps = steps
        self._weight, self._bias = _level_weights(visual.patch_embed.proj)
        whole = set(visual.fullatt_block_indexes)
        self._blocks = [_block(block, i in whole) for i, block in enumerate(visual.blocks)]
        self._heads: int = visual.config.num_heads
        self._activation: Activation = visual.blocks[0].mlp.act_fn
        self._unit: int = visual.spatial_merge_unit
        self._merger = visual.merger

    def __call__(self, levels: Tensor, layout: VisionLayout) -> Tensor:
        """Patches (N, values) uint8, as cut, to tokens (N / 4, width) in the same order."""
        # index_select: ten times faster than an index in brackets on a CPU.
        cells = levels.view(len(layout.order), -1).index_select(0, layout.order)
        patches = cells.view(levels.shape).to(self._weight.dtype).sub_(MIDDLE)
        states = F.linear(patches, self._weight, self._bias)
        for block in self._blocks:
            self._run(block, states, layout)
        norm = self._merger.ln_q
        states = self._steps.norm(states, norm.weight, norm.variance_epsilon)
        merged: Tensor = self._merger.mlp(states.view(-1, self._unit * states.shape[-1]))
        return merged.index_select(0, layout.restore)

    def _run(self, block: _Block, states: Tensor, layout: VisionLayout) -> None:
        """Add to `states`, in place, what the block finds."""
        tokens, steps = len(states), self._steps
        seen = steps.norm(states, *block.norm1)
        qkv = F.linear(seen, block.qkv.weight, block.qkv.bias).view(tokens, 3 * self._heads, -1)
        turned = steps.rotate(qkv[:, : 2 * self._heads], layout.cos, layout.sin)
        query, key = turned.chunk(2, dim=1)
        value = qkv[:, 2 * self._heads :]
        if block.whole and layout.by_view is not None and layout.from_view is not None:
            query, key, value = (
                part.index_select(0, layout.by_view) for part in (query, key, value)
            )
            found = attend(query, key, value, layout.views).index_select(0, layout.from_view)
        else:
            found = attend(query, key, value, layout.views if block.whole else layout.windows)
        states.add_(F.linear(found, block.proj.weight, block.proj.bias))
        seen = steps.norm(states, *block.norm2)
        gated = steps.gate(
            F.linear(seen, block.gate_up.weight, block.gate_up.bias), self._activation
        )
        states.add_(F.linear(gated, block.down, block.down_bias))


def attend(query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
    """Attention within each segment: three of (N, heads, size) to (N, heads * size)."""
    found: list[Tensor] = []
    start = 0
    for count, length in segments:
        stop = start + count * length
        query_, key_, value_ = (
            part[start:stop].view(count, length, *part.shape[1:]).transpose(1, 2)
            for part in (query, key, value)
        )
        mixed = F.scaled_dot_product_attention(query_, key_, value_)
        found.append(mixed.transpose(1, 2).reshape(stop - start, -1))
        start = stop
    return found[0] if len(found) == 1 else torch.cat(found)


def _block(block: Any, whole: bool) -> _Block:
    mlp = block.mlp
    width = mlp.down_proj.in_features
    padded = -(-width // ALIGNED) * ALIGNED
    return _Block(
        norm1=(block.norm1.weight, block.norm1.variance_epsilon),
        qkv=block.attn.qkv,
        proj=block.attn.proj,
        norm2=(block.norm2.weight, block.norm2.variance_epsilon),
        gate_up=join((mlp.gate_proj, mlp.up_proj), padded),
        down=pad_inputs(mlp.down_proj, padded),
        down_bias=mlp.down_proj.bias,
        whole=whole,
    )


def _level_weights(proj: nn.Conv3d) -> tuple[Tensor, Tensor]:
    """Weights (outputs, values) and bias for levels less 128, rather than for normalised values.

    The library feeds (level / 255 - mean) / std, and a still picture as a film of equal frames: the
    weights of the frames add up, the rest is a factor and an offset for each colour.
    """
    weight = proj.weight.float().sum(dim=2).permute(0, 2, 3, 1)  # (outputs, rows, columns, colours)
    mean = torch.tensor(OPENAI_CLIP_MEAN, device=weight.device)
    std = torch.tensor(OPENAI_CLIP_STD, device=weight.device)
    offset = (MIDDLE / 255 - mean) / std
    bias = (weight.double() * offset.double()).sum(dim=(1, 2, 3))
    scaled = (weight / (255 * std)).flatten(1)
    return scaled.to(proj.weight.dtype).contiguous(), bias.to(proj.weight.dtype)
