"""The slow half: pictures and an instruction through Qwen2.5-VL, without its language head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_position_ids,
    get_vision_window_index,
)

from policies.base import PolicyError
from policies.qwen_vla.config import MAX_LAYERS, MAX_WIDTH, ImageConfig
from policies.qwen_vla.images import PatchShape, prepare
from policies.qwen_vla.prompt import Prompt
from policies.qwen_vla.tensors import check_keys

__all__ = ["Backbone", "backbone_config", "build_model"]

Grids = tuple[tuple[int, int], ...]

# A user changes the task a few times a session; a client that sends a new one every time must not
# fill the memory.
MAX_LAYOUTS = 16


@dataclass(frozen=True, slots=True)
class _Layout:
    """What depends on the instruction and the shapes of the pictures only.

    Attributes:
        ids: (1, L) token ids.
        positions: (3, 1, L) rope positions: time, height, width.
        places: (picture tokens,) indices into L of the places of pictures.
        grid: (views, 3) of (1, height, width) in patches.
        vision: the vision tower's own position ids, window order and segment bounds.
    """

    ids: Tensor
    positions: Tensor
    places: Tensor
    grid: Tensor
    vision: dict[str, Tensor]


class Backbone:
    """A Qwen2.5-VL model with its tokenizer.

    Args:
        model: in eval mode, on its device.
        tokenizer: the model's own.
        image: how large pictures are.
    """

    def __init__(self, model: Qwen2_5_VLModel, tokenizer: Any, image: ImageConfig) -> None:
        vision = model.config.vision_config
        self.model = model
        self.tokenizer = tokenizer
        self.image = image
        self.shape = PatchShape(
            vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        )
        self.features: int = model.config.text_config.hidden_size
        self._prompt = Prompt(tokenizer, model.config.image_token_id)
        self._layouts: dict[tuple[str, Grids], _Layout] = {}

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        device: torch.device = self.model.device
        return device

    def encode(self, images: Sequence[NDArray[np.uint8]], task: str) -> Tensor:
        """Mean over all tokens of the last hidden state: (1, 1, features), the model's dtype.

        Args:
            images: RGB pictures (h, w, 3), in the order of the prompt.
            task: the instruction.

        Raises:
            PolicyError: a picture or an instruction that cannot be used.
        """
        pixels, grids = prepare(images, self.image, self.shape, self.device)
        layout = self._layout(task, grids)
        # The model's own forward would store rope offsets in the model; calling its two halves
        # keeps `encode` free of side effects.
        seen = self.model.visual(
            pixels.to(self.model.dtype), grid_thw=layout.grid, **layout.vision
        ).pooler_output
        embedded = self.model.language_model.embed_tokens(layout.ids)
        embedded = embedded.index_copy(1, layout.places, seen.unsqueeze(0).to(embedded.dtype))
        states: Tensor = self.model.language_model(
            inputs_embeds=embedded, position_ids=layout.positions, use_cache=False
        ).last_hidden_state
        return states.mean(dim=1, keepdim=True)

    def _layout(self, task: str, grids: Grids) -> _Layout:
        layout = self._layouts.get((task, grids))
        if layout is None:
            layout = self._make_layout(task, grids)
            if len(self._layouts) >= MAX_LAYOUTS:
                self._layouts.clear()
            # Two threads at worst make the same layout twice.
            self._layouts[(task, grids)] = layout
        return layout

    def _make_layout(self, task: str, grids: Grids) -> _Layout:
        merge = self.shape.merge
        ids = self._prompt.ids(task, [h * w // merge**2 for h, w in grids])
        row = torch.tensor([ids])
        pictured = row == self.model.config.image_token_id
        grid = torch.tensor([(1, h, w) for h, w in grids])
        positions, _ = self.model.get_rope_index(row, pictured.int(), image_grid_thw=grid)
        window = self.model.config.vision_config.window_size
        order, bounds = get_vision_window_index(grid, merge, window, self.shape.patch)
        vision = {
            "position_ids": get_vision_position_ids(grid, merge),
            "cu_seqlens": get_vision_cu_seqlens(grid),
            "window_index": order,
            "cu_window_seqlens": bounds,
        }
        return _Layout(
            ids=row.to(self.device),
            positions=positions.to(self.device),
            places=pictured[0].nonzero().flatten().to(self.device),
            grid=grid.to(self.device),
            vision={name: value.to(self.device) for name, value in vision.items()},
        )


def backbone_config(data: Mapping[str, Any]) -> Qwen2_5_VLConfig:
    """Read a `Qwen2_5_VLConfig` from the content of an untrusted `config.json`.

    Raises:
        PolicyError: another model type, or values the model cannot be made with.
    """
    if data.get("model_type") != "qwen2_5_vl":
        raise PolicyError(
            f"the backbone's model type is {data.get('model_type')!r}, it must be 'qwen2_5_vl'"
        )
    try:
        config = Qwen2_5_VLConfig(**_harmless(data))
        text, vision = config.text_config, config.vision_config
        widths = [text.vocab_size, text.hidden_size, text.intermediate_size]
        widths += [vision.hidden_size, vision.intermediate_size, vision.out_hidden_size]
        layers = [text.num_hidden_layers, vision.depth]
    except Exception as error:  # the library raises many kinds
        reason = " ".join(str(error).split())
        raise PolicyError(f"the backbone's configuration is not valid: {reason:.300}") from error
    if not all(0 < layer <= MAX_LAYERS for layer in layers):
        raise PolicyError(f"the backbone's number of layers {layers} is out of range")
    if not all(0 < width <= 4 * MAX_WIDTH for width in widths):
        raise PolicyError(f"the backbone's sizes {widths} are out of range")
    return config


def build_model(
    config: Qwen2_5_VLConfig, weights: Mapping[str, Tensor], device: torch.device
) -> Qwen2_5_VLModel:
    """Make a model that takes over `weights` (its own names) as they are, in eval mode.

    Raises:
        PolicyError: keys missing or unexpected, or shapes that differ.
    """
    try:
        with torch.device("meta"):  # no memory for weights that are replaced at once
            model = Qwen2_5_VLModel(config)
    except Exception as error:
        raise PolicyError(f"the backbone's configuration is not valid: {error}") from error
    expected = model.state_dict()
    check_keys("the backbone", expected, weights)
    model.load_state_dict(weights, assign=True)
    # Rope frequencies are computed, not stored, and came out empty on the meta device.
    vision, text = model.visual, model.language_model
    vision.rotary_pos_emb = type(vision.rotary_pos_emb)(config.vision_config)
    text.rotary_emb = type(text.rotary_emb)(config.text_config)
    return model.to(device).eval().requires_grad_(False)


def _harmless(data: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without what makes the library load code: kernels, remote code, quantizers."""
    refused = ("auto_map", "attn_implementation", "experts_implementation", "quantization_config")
    return {
        key: _harmless(value) if isinstance(value, Mapping) else value
        for key, value in data.items()
        if not key.startswith("_") and key not in refused
    }
