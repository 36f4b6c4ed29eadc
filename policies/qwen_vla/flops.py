"""How much arithmetic an update takes: multiplications and additions of its matrix products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from policies.qwen_vla.layout import Grids, Segments

__all__ = ["Flops", "update_flops"]


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating point operations of one update.

    Attributes:
        vision: of the vision tower, merger included.
        language: of the language tower, without its head.
    """

    vision: float
    language: float

    @property
    def total(self) -> float:
        """Both."""
        return self.vision + self.language


def update_flops(
    config: Any, grids: Grids, windows: Segments, tokens: int, *, causal_half: bool = True
) -> Flops:
    """Count the products' operations, two for each multiplication; nothing else counts.

    Args:
        config: a `Qwen2_5_VLConfig`.
        grids: height and width of each picture in patches.
        windows: segments of the layers that attend within windows (`VisionLayout.windows`).
        tokens: of the whole prompt.
        causal_half: count only the half of the language tower's attention that lies before each
            token, as kernels skip the other.
    """
    return Flops(
        vision=_vision(config.vision_config, grids, windows),
        language=_language(config.text_config, tokens, 0.5 if causal_half else 1.0),
    )


def _vision(config: Any, grids: Grids, windows: Segments) -> float:
    patches = sum(height * width for height, width in grids)
    width, unit = config.hidden_size, config.spatial_merge_size**2
    whole = len(config.fullatt_block_indexes)
    embed = patches * 3 * config.patch_size**2 * width
    block = patches * (4 * width * width + 3 * width * config.intermediate_size)
    pairs = whole * sum((height * width_) ** 2 for height, width_ in grids)
    pairs += (config.depth - whole) * sum(count * length**2 for count, length in windows)
    merged = width * unit
    merger = patches // unit * merged * (merged + config.out_hidden_size)
    return float(2 * (embed + config.depth * block + 2 * pairs * width + merger))


def _language(config: Any, tokens: int, share: float) -> float:
    width = config.hidden_size
    size = width // config.num_attention_heads
    key_value = 2 * config.num_key_value_heads * size
    layer = width * (2 * width + key_value) + 3 * width * config.intermediate_size
    attention = share * 2 * tokens * tokens * width
    return float(2 * config.num_hidden_layers * (tokens * layer + attention))
