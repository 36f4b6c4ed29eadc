"""What depends on the instruction and on the sizes of the pictures only, computed once.

The library works all of it out again at every pass: positions, the order of windows, masks, bounds
of attention; and it calls attention once for every window (120 times a layer for five views of
640x360). Here windows of equal size lie next to one another, so that one call a size does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.vision_utils import get_vision_position_ids

__all__ = ["Grids", "Segments", "TextLayout", "VisionLayout", "text_layout", "vision_layout"]

Grids = tuple[tuple[int, int], ...]
"""Height and width of each picture in patches."""

Segments = tuple[tuple[int, int], ...]
"""Stretches of tokens that see only one another, in order: (how many, tokens in each), …"""


@dataclass(frozen=True, slots=True)
class VisionLayout:
    """How the patches of some pictures go through the vision tower.

    "A cell" is the 2x2 patches that the merger joins; patches of a cell stay together.

    Attributes:
        order: (cells,) which cell comes where: window by window, those of one size together.
        restore: (cells,) the way back.
        cos: (patches, 1, size of a head), in that order.
        sin: (patches, 1, half of it): the halves are alike.
        windows: the windows as segments.
        by_view: (patches,) from windows to whole pictures, those of one size together; None where
            no patch moves.
        from_view: (patches,) the way back.
        views: the pictures as segments.
    """

    order: Tensor
    restore: Tensor
    cos: Tensor
    sin: Tensor
    windows: Segments
    by_view: Tensor | None
    from_view: Tensor | None
    views: Segments


@dataclass(frozen=True, slots=True)
class TextLayout:
    """How an instruction with some pictures goes through the language tower.

    Attributes:
        prompt: (tokens, width) embeddings, those of the places of pictures overwritten each time.
        places: of each picture, its first place and the one behind its last.
        cos: (tokens, 1, size of a head).
        sin: (tokens, 1, half of it).
        masks: of each layer, which token sees which; None for "all before it".
    """

    prompt: Tensor
    places: tuple[slice, ...]
    cos: Tensor
    sin: Tensor
    masks: tuple[Tensor | None, ...]


def vision_layout(model: Qwen2_5_VLModel, grids: Grids) -> VisionLayout:
    """Lay out pictures of these sizes, on the model's device."""
    vision, device = model.config.vision_config, model.device
    merge = vision.spatial_merge_size
    unit = merge**2
    windows, views = _windows(grids, merge, vision.window_size // merge // vision.patch_size)
    order = torch.cat(windows)
    positions = get_vision_position_ids(torch.tensor([(1, h, w) for h, w in grids]), merge)
    rotary = model.visual.rotary_pos_emb
    cos, sin = rotary(torch.empty(0, device=device), positions.to(device))
    patches = _patches(order, unit).to(device)
    cos, sin = _angles(cos[patches], sin[patches], model.dtype)
    by_view = _patches(torch.cat([order.argsort()[cells] for cells in views]), unit).to(device)
    moved = len(grids) > 1
    return VisionLayout(
        order=order.to(device),
        restore=order.argsort().to(device),
        cos=cos,
        sin=sin,
        windows=_segments(windows, unit),
        by_view=by_view if moved else None,
        from_view=by_view.argsort() if moved else None,
        views=_segments(views, unit),
    )


def text_layout(model: Qwen2_5_VLModel, ids: Sequence[int], grids: Grids) -> TextLayout:
    """Lay out a prompt of these token ids with pictures of these sizes, on the model's device.

    The ids hold one token for each cell of each picture.
    """
    device = model.device
    row = torch.tensor([list(ids)])
    pictured = row == model.config.image_token_id
    grid = torch.tensor([(1, h, w) for h, w in grids])
    # On the CPU: the library goes through the tokens one by one.
    positions, _ = model.get_rope_index(row, pictured.int(), image_grid_thw=grid)
    text = model.language_model
    prompt = text.embed_tokens(row.to(device))[0]
    cos, sin = text.rotary_emb(prompt[None], positions.to(device))
    cos, sin = _angles(cos[0], sin[0], prompt.dtype)
    return TextLayout(
        prompt=prompt,
        places=_places(pictured[0], model.config.vision_config.spatial_merge_size, grids),
        cos=cos,
        sin=sin,
        masks=_masks(model, len(ids)),
    )


def _windows(grids: Grids, merge: int, side: int) -> tuple[list[Tensor], list[Tensor]]:
    """The cells of each window and of each picture, large ones first."""
    windows: list[Tensor] = []
    views: list[Tensor] = []
    first = 0
    for height, width in grids:
        rows, columns = height // merge, width // merge
        cells = torch.arange(first, first + rows * columns).view(rows, columns)
        windows += [
            part.flatten()
            for strip in torch.split(cells, side)
            for part in torch.split(strip, side, dim=1)
        ]
        views.append(cells.flatten())
        first += rows * columns
    return sorted(windows, key=len, reverse=True), sorted(views, key=len, reverse=True)


def _segments(parts: Sequence[Tensor], unit: int) -> Segments:
    return tuple((len(list(same)), size * unit) for size, same in groupby(map(len, parts)))


def _patches(cells: Tensor, unit: int) -> Tensor:
    return (cells[:, None] * unit + torch.arange(unit)).flatten()


def _angles(cos: Tensor, sin: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    half = sin.shape[-1] // 2
    return cos[:, None].to(dtype), sin[:, None, :half].to(dtype).contiguous()


def _places(pictured: Tensor, merge: int, grids: Grids) -> tuple[slice, ...]:
    starts = pictured.nonzero().flatten().tolist()
    places: list[slice] = []
    done = 0
    for height, width in grids:
        count = height * width // merge**2
        places.append(slice(starts[done], starts[done] + count))
        done += count
    return tuple(places)


def _masks(model: Qwen2_5_VLModel, tokens: int) -> tuple[Tensor | None, ...]:
    config = model.config.text_config
    window = config.sliding_window
    near: Tensor | None = None
    if window is not None and window < tokens:
        place = torch.arange(tokens, device=model.device)
        back = place[:, None] - place[None, :]
        near = (back >= 0) & (back < window)
    return tuple(near if kind == "sliding_attention" else None for kind in config.layer_types)
