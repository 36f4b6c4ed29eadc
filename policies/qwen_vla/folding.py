"""Weights of the fast parts multiplied together where nothing stands between them.

Pure mathematics on float64, so that folding itself costs no digits: what a pass then reads is less
than what a checkpoint holds. All of it holds in evaluation only, where batch norm is a fixed scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from policies.qwen_vla.action_expert import ActionExpert
from policies.qwen_vla.sensor_encoder import SensorEncoder

__all__ = [
    "Affine",
    "attention_inputs",
    "attention_output",
    "cross_terms",
    "first_rows",
    "fold_convolutions",
    "of",
    "scaled_inputs",
]


@dataclass(frozen=True, slots=True)
class Affine:
    """y = weight x + bias, in float64.

    Attributes:
        weight: (outputs, inputs).
        bias: (outputs,).
    """

    weight: Tensor
    bias: Tensor

    def after(self, inner: Affine) -> Affine:
        """This map applied to the result of another, as one."""
        return Affine(self.weight @ inner.weight, self.weight @ inner.bias + self.bias)

    def rows(self, begin: int, end: int) -> Affine:
        """Some of the outputs."""
        return Affine(self.weight[begin:end], self.bias[begin:end])

    def columns(self, begin: int, end: int | None = None) -> Tensor:
        """The weight of some of the inputs."""
        return self.weight[:, begin:end]

    def __call__(self, value: Tensor) -> Tensor:
        """Apply it to rows (N, inputs)."""
        return value.to(self.weight) @ self.weight.T + self.bias


def of(module: nn.Module) -> Affine:
    """What an `nn.Linear` does."""
    linear = cast(nn.Linear, module)
    return Affine(linear.weight.detach().double(), linear.bias.detach().double())


def scaled_inputs(affine: Affine, norm: nn.LayerNorm) -> Affine:
    """A map together with the scale and shift of the layer norm before it."""
    scale, shift = norm.weight.detach().double(), norm.bias.detach().double()
    return Affine(affine.weight * scale, affine.weight @ shift + affine.bias)


def fold_convolutions(encoder: SensorEncoder) -> list[Affine]:
    """Each convolution with its batch norm, as a map of three samples in a row, oldest first."""
    stages = encoder.conv_backbone
    folded = []
    for place in range(0, len(stages), 4):
        convolution, norm = cast(nn.Conv1d, stages[place]), cast(nn.BatchNorm1d, stages[place + 1])
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        scale = norm.weight.detach().double() / torch.sqrt(variance.double() + norm.eps)
        bias = cast(Tensor, convolution.bias).detach().double() - mean.double()
        weight = convolution.weight.detach().double().transpose(1, 2).flatten(1)
        folded.append(Affine(weight * scale[:, None], bias * scale + norm.bias.detach().double()))
    return folded


def attention_inputs(attention: nn.MultiheadAttention) -> Affine:
    """Queries, keys and values as one map; the queries hold attention's scale already."""
    weight, bias = cast(Tensor, attention.in_proj_weight), cast(Tensor, attention.in_proj_bias)
    scale = torch.ones_like(bias, dtype=torch.float64)
    scale[: attention.embed_dim] = 1 / math.sqrt(attention.head_dim)
    return Affine(weight.detach() * scale[:, None], bias.detach() * scale)


def attention_output(attention: nn.MultiheadAttention) -> Affine:
    """What attention does with its heads' results."""
    return of(attention.out_proj)


def cross_terms(expert: ActionExpert) -> Affine:
    """What each decoder layer adds because of the memory token, all layers one below the other.

    With one memory token every softmax is 1, so that the cross-attention of layer l adds the same
    to every row: output(values(token)). The shift of the norm before is added here too, since
    `norm1(x) + cross` is then a norm with another shift.

    Returns:
        (layers * hidden, hidden); the fusion's last linear is not in it.
    """
    terms = []
    for layer in _layers(expert):
        attention = layer.multihead_attn
        values = attention_inputs(attention).rows(2 * attention.embed_dim, 3 * attention.embed_dim)
        term = attention_output(attention).after(values)
        terms.append(Affine(term.weight, term.bias + layer.norm1.bias.detach().double()))
    return Affine(torch.cat([t.weight for t in terms]), torch.cat([t.bias for t in terms]))


def first_rows(expert: ActionExpert) -> Tensor:
    """What the first layer's self-attention makes of the queries, (rows, hidden), without shift.

    The queries are learned constants, so that all before the first memory token is constant.
    """
    layer = _layers(expert)[0]
    queries = expert.pos_embed[0].detach().double()
    attention = layer.self_attn
    width, heads = attention.embed_dim, attention.num_heads
    mixed = attention_inputs(attention)(queries)
    query, key, value = mixed.view(len(queries), 3, heads, width // heads).permute(1, 2, 0, 3)
    shares = torch.softmax(query @ key.mT, dim=-1)
    attended = (shares @ value).transpose(0, 1).reshape(len(queries), width)
    states = queries + attention_output(attention)(attended)
    scale = layer.norm1.weight.detach().double()
    return nn.functional.layer_norm(states, (width,), scale, None, layer.norm1.eps)


def _layers(expert: ActionExpert) -> list[nn.TransformerDecoderLayer]:
    return [cast(nn.TransformerDecoderLayer, layer) for layer in expert.temporal_decoder.layers]
