"""The slow half with gradients, for batches of pictures of one size and one instruction.

`policies.qwen_vla` runs a pass with weights that are joined, folded and changed in place. Here the
library's modules are called as they are, on many samples at once; the result is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from policies.qwen_vla.layout import Grids, VisionLayout, vision_layout
from policies.qwen_vla.vision_tower import attend

__all__ = ["TrainableSlowHalf"]


class TrainableSlowHalf(nn.Module):
    """Pictures and an instruction to the mean of the last hidden state, (batch, width).

    Args:
        model: the backbone, its parameters trainable.
        ids: token ids of the prompt, as `policies.qwen_vla.prompt.Prompt` makes them.
        grids: height and width of each view in patches.
    """

    _row: Tensor
    _pictured: Tensor
    _positions: Tensor

    def __init__(self, model: Qwen2_5_VLModel, ids: Sequence[int], grids: Grids) -> None:
        super().__init__()
        self.model = model
        self._grids = grids
        row = torch.tensor([list(ids)])
        pictured = row == model.config.image_token_id
        grid = torch.tensor([(1, h, w) for h, w in grids])
        positions, _ = model.get_rope_index(row, pictured.int(), image_grid_thw=grid)
        self.register_buffer("_row", row, persistent=False)
        self.register_buffer("_pictured", pictured[0], persistent=False)
        self.register_buffer("_positions", positions, persistent=False)
        self._layouts: dict[int, VisionLayout] = {}

    def forward(self, levels: Tensor) -> Tensor:
        """Features (batch, width) of patches (batch, patches of all views, values) uint8."""
        batch = len(levels)
        tokens = self._look(levels.flatten(0, 1), batch)
        text: Any = self.model.language_model
        prompt = text.embed_tokens(self._row).expand(batch, -1, -1).clone()
        prompt[:, self._pictured] = tokens.view(batch, -1, tokens.shape[-1])
        positions = self._positions.expand(-1, batch, -1)
        mask = torch.ones(batch, prompt.shape[1], dtype=torch.long, device=prompt.device)
        states = text(
            inputs_embeds=prompt, position_ids=positions, attention_mask=mask, use_cache=False
        ).last_hidden_state
        mean: Tensor = states.mean(dim=1)
        return mean

    def _look(self, levels: Tensor, batch: int) -> Tensor:
        """Patches (N, values) of a batch to tokens (N / 4, width), in the same order."""
        visual: Any = self.model.visual
        layout = self._layout(batch)
        unit = visual.spatial_merge_unit
        cells = levels.view(len(layout.order), -1).index_select(0, layout.order)
        states = _patches(visual.patch_embed.proj, cells.view(levels.shape))
        whole = set(visual.fullatt_block_indexes)
        for number, block in enumerate(visual.blocks):
            states = states + self._attend(block, states, layout, number in whole)
            states = states + block.mlp(block.norm2(states))
        merger = visual.merger
        merged: Tensor = merger.mlp(merger.ln_q(states).view(-1, unit * states.shape[-1]))
        return merged.index_select(0, layout.restore)

    def _attend(self, block: Any, states: Tensor, layout: VisionLayout, whole: bool) -> Tensor:
        count = len(states)
        qkv = block.attn.qkv(block.norm1(states)).view(count, 3, block.attn.num_heads, -1)
        query, key = (_rotate(qkv[:, part], layout.cos, layout.sin) for part in (0, 1))
        value = qkv[:, 2]
        if whole and layout.by_view is not None and layout.from_view is not None:
            by = layout.by_view
            query, key, value = (part.index_select(0, by) for part in (query, key, value))
            found = attend(query, key, value, layout.views).index_select(0, layout.from_view)
        else:
            found = attend(query, key, value, layout.views if whole else layout.windows)
        projected: Tensor = block.attn.proj(found)
        return projected

    def _layout(self, batch: int) -> VisionLayout:
        layout = self._layouts.get(batch)
        if layout is None:
            layout = self._layouts[batch] = vision_layout(self.model, self._grids * batch)
        return layout


def _patches(proj: nn.Conv3d, levels: Tensor) -> Tensor:
    """Embeddings of patches as they are cut: rows, columns, colours; a picture is a still film."""
    weight = proj.weight.sum(dim=2).permute(0, 2, 3, 1).flatten(1)
    mean = torch.tensor(OPENAI_CLIP_MEAN, device=levels.device)
    std = torch.tensor(OPENAI_CLIP_STD, device=levels.device)
    values = (levels.view(len(levels), -1, 3).float() / 255 - mean) / std
    return F.linear(values.flatten(1), weight)


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs of values by their position's angles, as `pointwise.rotate`, with gradients."""
    half = states.shape[-1] // 2
    first, second = states[..., :half], states[..., half:]
    return torch.cat(
        (first * cos[..., :half] - second * sin, second * cos[..., half:] + first * sin), dim=-1
    )
