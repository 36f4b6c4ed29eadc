"""The language tower of Qwen2.5-VL over a fixed layout, with the model's own weights.

No language head and no cache of keys. Nothing of the last layer can be left out: the features are
the mean over all tokens, each of which looks at all before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from policies.qwen_vla.joined import Joined, join
from policies.qwen_vla.layout import TextLayout
from policies.qwen_vla.pointwise import Activation, Pointwise

__all__ = ["LanguageTower"]


@dataclass(frozen=True, slots=True)
class _Layer:
    norm1: tuple[Tensor, float]
    qkv: Joined
    out: Tensor
    norm2: tuple[Tensor, float]
    gate_up: Joined
    down: Tensor


class LanguageTower:
    """Embeddings of a prompt to the mean of the last hidden state.

    The weights of query, key and value, and those of gate and up, are joined in place.

    Args:
        language: the library's tower; nothing of it changes but where its weights lie.
        steps: the small steps between products.
    """

    def __init__(self, language: Any, steps: Pointwise) -> None:
        attention = language.layers[0].self_attn
        self._steps = steps
        self._layers = [_layer(layer) for layer in language.layers]
        self._norm = (language.norm.weight, language.norm.variance_epsilon)
        self._size: int = attention.head_dim
        self._heads: int = attention.num_heads
        self._pairs: int = attention.num_key_value_heads
        self._activation: Activation = language.layers[0].mlp.act_fn

    def __call__(self, embedded: Tensor, layout: TextLayout) -> Tensor:
        """Tokens (N, width), left as they are, to their mean after the last norm: (width,)."""
        states = embedded.clone()
        for layer, mask in zip(self._layers, layout.masks, strict=True):
            self._run(layer, states, layout, mask)
        return self._steps.norm(states, *self._norm).mean(dim=0)

    def _run(self, layer: _Layer, states: Tensor, layout: TextLayout, mask: Tensor | None) -> None:
        """Add to `states`, in place, what the layer finds."""
        tokens, steps = len(states), self._steps
        seen = steps.norm(states, *layer.norm1)
        qkv = F.linear(seen, layer.qkv.weight, layer.qkv.bias).view(tokens, -1, self._size)
        turned = steps.rotate(qkv[:, : self._heads + self._pairs], layout.cos, layout.sin)
        parts = (turned[:, : self._heads], turned[:, self._heads :], qkv[:, -self._pairs :])
        query, key, value = (part.transpose(0, 1).unsqueeze(0) for part in parts)
        found = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=self._pairs != self._heads,
        )
        # Adding up inside the product saves a pass over the states.
        states.addmm_(found[0].transpose(0, 1).reshape(tokens, -1), layer.out.T)
        seen = steps.norm(states, *layer.norm2)
        gated = steps.gate(F.linear(seen, layer.gate_up.weight), self._activation)
        states.addmm_(gated, layer.down.T)


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    first, second = layer.input_layernorm, layer.post_attention_layernorm
    return _Layer(
        norm1=(first.weight, first.variance_epsilon),
        qkv=join((attention.q_proj, attention.k_proj, attention.v_proj)),
        out=attention.o_proj.weight,
        norm2=(second.weight, second.variance_epsilon),
        gate_up=join((mlp.gate_proj, mlp.up_proj)),
        down=mlp.down_proj.weight,
    )
