"""Weights of several layers as one matrix, so that one product does their work.

Nothing is held twice: the joined matrix takes the place of the layers' own, which become views of
it. Names and values stay as they were, so that a model can be saved, or run by the library, as
before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Joined", "join", "pad_inputs"]


@dataclass(frozen=True, slots=True)
class Joined:
    """One linear layer made of several.

    Attributes:
        weight: (outputs, inputs), the layers' rows one after the other.
        bias: (outputs,), or None where the layers have none.
    """

    weight: Tensor
    bias: Tensor | None


def join(layers: Sequence[nn.Linear], rows: int | None = None) -> Joined:
    """Put the layers' weights into one matrix, and make theirs views of it.

    Joining what is joined already gives the same matrix again.

    Args:
        layers: with the same number of inputs, all with a bias or all without.
        rows: outputs that each layer gets, the rest of which are zeros; its own by default.
    """
    weight = _stack(layers, "weight", rows)
    bias = None if layers[0].bias is None else _stack(layers, "bias", rows)
    return Joined(weight, bias)


def pad_inputs(layer: nn.Linear, columns: int) -> Tensor:
    """The layer's weight (outputs, columns), zeros added; its own becomes a view of it."""
    weight = layer.weight.data
    outputs, inputs = weight.shape
    if inputs == columns:
        return weight
    if weight.stride() == (columns, 1):  # done before
        return weight.as_strided((outputs, columns), (columns, 1))
    padded = weight.new_zeros(outputs, columns)
    padded[:, :inputs] = weight
    layer.weight = nn.Parameter(padded[:, :inputs], requires_grad=False)
    return padded


def _stack(layers: Sequence[nn.Linear], name: str, rows: int | None) -> Tensor:
    parts: list[Tensor] = [getattr(layer, name).data for layer in layers]
    sizes = [rows or len(part) for part in parts]
    whole = _already(parts, sizes)
    if whole is not None:
        return whole
    whole = parts[0].new_zeros(sum(sizes), *parts[0].shape[1:])
    start = 0
    for layer, part, size in zip(layers, parts, sizes, strict=True):
        place = whole[start : start + len(part)]
        place.copy_(part)
        setattr(layer, name, nn.Parameter(place, requires_grad=False))
        start += size
    return whole


def _already(parts: Sequence[Tensor], sizes: Sequence[int]) -> Tensor | None:
    """The matrix of which the parts are views, where they are."""
    first = parts[0]
    width = first[0].numel()
    place = first.storage_offset()
    for part, size in zip(parts, sizes, strict=True):
        same = part.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and part.is_contiguous() and part.storage_offset() == place):
            return None
        place += size * width
    if first.untyped_storage().nbytes() < place * first.element_size():
        return None
    return torch.as_strided(first, (sum(sizes), *first.shape[1:]), first.stride())
