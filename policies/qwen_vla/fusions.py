"""Each fusion, folded: what depends on the backbone's features alone, and what is left of it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from policies.qwen_vla.action_expert import ActionExpert
from policies.qwen_vla.folding import (
    Affine,
    attention_inputs,
    attention_output,
    cross_terms,
    of,
)
from policies.qwen_vla.packed import Linear, Packing, dense

__all__ = ["FoldedFusion", "Terms", "fold_fusion"]

Terms = tuple[Tensor, ...]
"""What one update gives to all ticks that use it."""


class FoldedFusion(Protocol):
    """From features and sensor to what each decoder layer adds, (1, layers * hidden)."""

    def prepare(self, features: Tensor) -> tuple[Terms, Tensor | None]:
        """What features (1, N, D) give: terms, and all that is added where no sensor matters."""
        ...

    def added(self, terms: Terms, sensor: Tensor) -> Tensor:
        """What is added, of terms and the sensor's (1, width) before its last linear."""
        ...


def fold_fusion(expert: ActionExpert, last: Affine | None, packing: Packing) -> FoldedFusion:
    """Fold a fusion with the sensor encoder's last linear; None where there is no sensor."""
    fusion = expert.config.fusion
    if fusion == "none" or last is None:
        return _Alone(expert, packing)
    if fusion == "concat":
        return _Concat(expert, last, packing)
    if fusion == "gated":
        return _Gated(expert, last, packing)
    return _CrossAttention(expert, last, packing)


def _once(affine: Affine, packing: Packing) -> Linear:
    """A map used once an update: not worth rounding it."""
    weight, bias = (v.to(packing.device, packing.dtype) for v in (affine.weight, affine.bias))
    return dense(weight, bias)


def _often(affine: Affine, packing: Packing) -> Linear:
    return packing.pack(affine.weight, affine.bias, relu=False)


class _Alone:
    """No sensor: an update decides everything."""

    def __init__(self, expert: ActionExpert, packing: Packing) -> None:
        self._all = _once(cross_terms(expert).after(of(expert.fusion_proj)), packing)

    def prepare(self, features: Tensor) -> tuple[Terms, Tensor | None]:
        return (), self._all(features.mean(dim=1))

    def added(self, terms: Terms, sensor: Tensor) -> Tensor:
        raise NotImplementedError("an update decides everything")


class _Concat:
    """One linear over both: a sum of two."""

    def __init__(self, expert: ActionExpert, last: Affine, packing: Packing) -> None:
        both, seen = of(expert.fusion_proj), expert.config.vl_features
        self._seen = _once(Affine(both.columns(0, seen), both.bias), packing)
        felt = Affine(both.columns(seen), torch.zeros_like(both.bias))
        self._felt = _often(felt.after(last), packing)
        self._all = _often(cross_terms(expert), packing)

    def prepare(self, features: Tensor) -> tuple[Terms, Tensor | None]:
        return (self._seen(features.mean(dim=1)),), None

    def added(self, terms: Terms, sensor: Tensor) -> Tensor:
        return self._all(self._felt(sensor) + terms[0])


class _Gated:
    """A gate between both; the linear after it is folded into what follows."""

    def __init__(self, expert: ActionExpert, last: Affine, packing: Packing) -> None:
        gate, hidden = of(expert.gate[0]), expert.config.hidden
        self._seen = _once(of(expert.vl_proj), packing)
        self._gate_seen = _once(Affine(gate.columns(0, hidden), gate.bias), packing)
        no_bias = torch.zeros_like(gate.bias)
        self._gate_felt = _often(Affine(gate.columns(hidden), no_bias), packing)
        self._felt = _often(of(expert.sensor_proj).after(last), packing)
        self._all = _often(cross_terms(expert).after(of(expert.fusion_proj)), packing)

    def prepare(self, features: Tensor) -> tuple[Terms, Tensor | None]:
        seen = self._seen(features.mean(dim=1))
        return (seen, self._gate_seen(seen)), None

    def added(self, terms: Terms, sensor: Tensor) -> Tensor:
        seen, gate = terms
        felt = self._felt(sensor)
        share = torch.sigmoid(self._gate_felt(felt) + gate)
        return self._all(torch.lerp(felt, seen, share))


class _CrossAttention:
    """The sensor looks at the features: with one of them it sees that one, whatever it feels."""

    def __init__(self, expert: ActionExpert, last: Affine, packing: Packing) -> None:
        attention, hidden = expert.cross_attn, expert.config.hidden
        self._heads = attention.num_heads
        inputs, seen = attention_inputs(attention), of(expert.vl_proj)
        self._keys = _once(inputs.rows(hidden, 2 * hidden).after(seen), packing)
        self._values = _once(inputs.rows(2 * hidden, 3 * hidden).after(seen), packing)
        felt = inputs.rows(0, hidden).after(of(expert.sensor_proj)).after(last)
        self._queries = _often(felt, packing)
        after = of(expert.fusion_proj).after(attention_output(attention))
        self._all = _often(cross_terms(expert).after(after), packing)

    def prepare(self, features: Tensor) -> tuple[Terms, Tensor | None]:
        keys, values = self._keys(features[0]), self._values(features[0])
        if len(keys) == 1:
            return (), self._all(values)
        width = keys.shape[1] // self._heads
        split = (len(keys), self._heads, width)
        return (keys.view(split).permute(1, 2, 0), values.view(split).transpose(0, 1)), None

    def added(self, terms: Terms, sensor: Tensor) -> Tensor:
        keys, values = terms  # (heads, width, N) and (heads, N, width)
        queries = self._queries(sensor).view(self._heads, 1, -1)
        shares = torch.softmax(queries @ keys, dim=-1)
        return self._all((shares @ values).view(1, -1))
