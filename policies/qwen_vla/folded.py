"""The fast parts as one pass over folded weights: equal to the plain modules, in less time."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from policies.qwen_vla.action_expert import ActionExpert
from policies.qwen_vla.fast import FastParts
from policies.qwen_vla.folding import (
    attention_inputs,
    attention_output,
    first_rows,
    fold_convolutions,
    of,
    scaled_inputs,
)
from policies.qwen_vla.fusions import Terms, fold_fusion
from policies.qwen_vla.packed import Linear, Packing, dense
from policies.qwen_vla.sensor_encoder import SensorEncoder

__all__ = ["FoldedFast"]


class FoldedFast:
    """The fast parts of one policy for inference, one window at a time.

    `prepare` does once an update what depends on the features alone; `run` does the rest at every
    tick. Neither keeps anything between calls.

    Args:
        fast: the plain modules, in float32 or float64 for most digits; nothing of them is kept.
        packing: how the large weights are kept.
    """

    def __init__(self, fast: FastParts, packing: Packing) -> None:
        self.config = fast.config
        self.packing = packing
        encoder, expert = fast.sensor_encoder, fast.action_expert
        last = of(encoder.projection[4]) if encoder is not None else None
        self._encoder = _Encoder(encoder, packing) if encoder is not None else None
        self._fusion = fold_fusion(expert, last, packing)
        self._decoder = _Decoder(expert, packing)
        # In full precision whatever the rest runs in: hundredths of degrees count.
        self.goal_readout = copy.deepcopy(getattr(expert, "goal_readout", None))

    @torch.inference_mode()
    def prepare(self, features: Tensor) -> tuple[Terms, Tensor | None]:
        """What an update gives to all its ticks.

        Args:
            features: (1, N, vl_features), of any dtype and device.

        Returns:
            the terms that `run` takes; and the finished delta (rows, columns) where no window can
            change it: fusion `none`, and `cross_attention` over a single token.
        """
        features = features.to(self.packing.device, self.packing.dtype)
        terms, added = self._fusion.prepare(features)
        return terms, None if added is None else self._decoder(added)

    @torch.inference_mode()
    def run(self, terms: Terms, window: Tensor) -> Tensor:
        """The delta (rows, columns) for a window (window, channels) of the trained length."""
        assert self._encoder is not None  # no window without one
        encoded = self._encoder(window.to(self.packing.dtype))
        return self._decoder(self._fusion.added(terms, encoded))


class _Attention:
    """Self-attention over rows (N, width): one linear in, one out."""

    def __init__(
        self, module: nn.MultiheadAttention, packing: Packing, norm: nn.LayerNorm | None
    ) -> None:
        inputs, output = attention_inputs(module), attention_output(module)
        if norm is not None:
            inputs = scaled_inputs(inputs, norm)
        self._heads = module.num_heads
        self._inputs = packing.pack(inputs.weight, inputs.bias, relu=False)
        self._output = packing.pack(output.weight, output.bias, relu=False)

    def __call__(self, rows: Tensor) -> Tensor:
        count, width = rows.shape
        mixed = self._inputs(rows).view(count, 3, self._heads, width // self._heads)
        query, key, value = mixed.permute(1, 2, 0, 3).unbind()
        # With so few rows three plain operators are quicker than the one for long sequences.
        shares = torch.softmax(torch.bmm(query, key.mT), dim=-1)
        return self._output(torch.bmm(shares, value).transpose(0, 1).reshape(count, width))


@dataclass(frozen=True, slots=True)
class _EncoderLayer:
    attention: _Attention
    widen: Linear
    narrow: Linear
    epsilon: tuple[float, float]


class _Encoder:
    """Window (T, channels) to what the projection's last linear takes, (1, features)."""

    def __init__(self, encoder: SensorEncoder, packing: Packing) -> None:
        first, *others = fold_convolutions(encoder)
        sensed = packing.sensed or packing
        self._stages = [sensed.pack(first.weight, first.bias, relu=False)]
        self._stages += [packing.pack(stage.weight, stage.bias, relu=False) for stage in others]
        self._layers = [
            _encoder_layer(cast(nn.TransformerEncoderLayer, layer), packing)
            for layer in encoder.transformer.layers
        ]
        projection = of(encoder.projection[0])
        self._project = packing.pack(projection.weight, projection.bias, relu=False)
        self._norm = _Norm(cast(nn.LayerNorm, encoder.projection[1]), packing)

    def __call__(self, window: Tensor) -> Tensor:
        states = window
        for stage in self._stages:
            states = F.gelu(stage(_triples(states)))
        width = states.shape[1]
        for layer in self._layers[:-1]:
            states = states + layer.attention(_standard(states, layer.epsilon[0]))
            states = states + layer.narrow(layer.widen(_standard(states, layer.epsilon[1])))
        if self._layers:
            layer = self._layers[-1]
            states = states + layer.attention(_standard(states, layer.epsilon[0]))
            # A mean over time follows: taken before the last linear, that has one row to do.
            wide = layer.widen(_standard(states, layer.epsilon[1])).mean(dim=0, keepdim=True)
            mean = states.mean(dim=0, keepdim=True) + layer.narrow(wide)
        else:
            mean = states.mean(dim=0, keepdim=True)
        assert mean.shape == (1, width)
        return F.gelu(self._norm(self._project(mean)))


def _encoder_layer(layer: nn.TransformerEncoderLayer, packing: Packing) -> _EncoderLayer:
    widen, narrow = scaled_inputs(of(layer.linear1), layer.norm2), of(layer.linear2)
    return _EncoderLayer(
        _Attention(layer.self_attn, packing, layer.norm1),
        packing.pack(widen.weight, widen.bias, relu=True),
        packing.pack(narrow.weight, narrow.bias, relu=False),
        (layer.norm1.eps, layer.norm2.eps),
    )


def _triples(states: Tensor) -> Tensor:
    """What a convolution of size 3, stride 2 and padding 1 sees: (T, C) to (ceil(T / 2), 3 C)."""
    count, width = states.shape
    padded = F.pad(states, (0, 0, 1, 1))
    size = ((count + 1) // 2, 3 * width)
    return padded.as_strided(size, (2 * width, 1)).contiguous()


def _standard(states: Tensor, epsilon: float) -> Tensor:
    """Layer norm without scale and shift, which are in the next linear."""
    return F.layer_norm(states, states.shape[1:], None, None, epsilon)


class _Norm:
    """Layer norm with scale, and with its own shift or another."""

    def __init__(self, norm: nn.LayerNorm, packing: Packing) -> None:
        self._scale = norm.weight.detach().to(packing.device, packing.dtype, copy=True)
        self._shift = norm.bias.detach().to(packing.device, packing.dtype, copy=True)
        self._epsilon = norm.eps

    def __call__(self, states: Tensor, shift: Tensor | None = None) -> Tensor:
        shift = self._shift if shift is None else shift
        return F.layer_norm(states, states.shape[1:], self._scale, shift, self._epsilon)


@dataclass(frozen=True, slots=True)
class _DecoderLayer:
    """Attributes: attention and norm1 are None in the first layer, whose rows are constant."""

    attention: _Attention | None
    norm1: _Norm | None
    norm2: _Norm
    widen: Linear
    narrow: Linear
    norm3: _Norm


class _Decoder:
    """What the memory token adds to every layer, (1, layers * hidden), to delta (rows, columns)."""

    def __init__(self, expert: ActionExpert, packing: Packing) -> None:
        device, dtype = packing.device, packing.dtype
        self._first = first_rows(expert).to(device, dtype)
        self._layers = [
            _decoder_layer(cast(nn.TransformerDecoderLayer, layer), packing, first=index == 0)
            for index, layer in enumerate(expert.temporal_decoder.layers)
        ]
        norm = cast(nn.LayerNorm, expert.output_head[0])
        head = scaled_inputs(of(expert.output_head[1]), norm)
        # A few thousand weights that decide every value: never rounded to integers.
        self._head = dense(head.weight.to(device, dtype), head.bias.to(device, dtype))
        self._epsilon = norm.eps

    def __call__(self, added: Tensor) -> Tensor:
        states = self._first
        parts = added.view(len(self._layers), -1).unbind()
        for layer, part in zip(self._layers, parts, strict=True):
            if layer.attention is None or layer.norm1 is None:
                states = states + part
            else:
                states = layer.norm1(states + layer.attention(states), part)
            states = layer.norm2(states)
            states = layer.norm3(states + layer.narrow(layer.widen(states)))
        return self._head(_standard(states, self._epsilon))


def _decoder_layer(
    layer: nn.TransformerDecoderLayer, packing: Packing, *, first: bool
) -> _DecoderLayer:
    widen, narrow = of(layer.linear1), of(layer.linear2)
    return _DecoderLayer(
        None if first else _Attention(layer.self_attn, packing, None),
        None if first else _Norm(layer.norm1, packing),
        _Norm(layer.norm2, packing),
        packing.pack(widen.weight, widen.bias, relu=True),
        packing.pack(narrow.weight, narrow.bias, relu=False),
        _Norm(layer.norm3, packing),
    )
