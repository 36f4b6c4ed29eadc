"""The small steps between matrix products: norm, rotation by position, gate.

They do little arithmetic and move much memory. On a GPU each is compiled to one kernel; run one by
one, five views at the reference sizes would spend several milliseconds of an update on them.
Compiling is confined to these, rather than to whole towers: seconds instead of minutes, nothing
that depends on a model's sizes, and where it fails the same functions run as they are.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["EAGER", "Activation", "Pointwise", "compiled_for", "compiled_pointwise"]

_log = logging.getLogger(__name__)

Activation = Callable[[Tensor], Tensor]


def rms_norm(states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """States (N, width) divided by their root mean square, times the weight."""
    width = states.shape[-1]
    if states.device.type != "cpu" or states.dtype != torch.float32:
        return F.rms_norm(states, (width,), weight, epsilon)
    # On a CPU the library call is many small steps; these are fewer (0.6 of the time).
    length = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
    scale = length.square_().mul_(1 / width).add_(epsilon).rsqrt_()
    scaled: Tensor = states * scale
    return scaled.mul_(weight)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs of values by their position's angles (rotary embedding, halves paired).

    Args:
        states: (N, heads, size).
        cos: (N, 1, size).
        sin: (N, 1, size / 2): the two halves have the same angles.
    """
    half = states.shape[-1] // 2
    turned = states * cos
    turned[..., :half].addcmul_(states[..., half:], sin, value=-1)
    turned[..., half:].addcmul_(states[..., :half], sin)
    return turned


def gate(both: Tensor, activation: Activation) -> Tensor:
    """Both halves (N, 2 * width) to activation(first) * second."""
    half = both.shape[-1] // 2
    return activation(both[..., :half]).mul_(both[..., half:])


@dataclass(frozen=True, slots=True)
class Pointwise:
    """The three steps, as they are or compiled.

    Attributes:
        norm: `rms_norm`.
        rotate: `rotate`.
        gate: `gate`.
    """

    norm: Callable[[Tensor, Tensor, float], Tensor] = rms_norm
    rotate: Callable[[Tensor, Tensor, Tensor], Tensor] = rotate
    gate: Callable[[Tensor, Activation], Tensor] = gate


EAGER = Pointwise()


def compiled_pointwise() -> Pointwise:
    """The steps compiled, for any number of tokens; compiling happens at their first use."""
    return Pointwise(
        norm=torch.compile(rms_norm, dynamic=True),
        rotate=torch.compile(rotate, dynamic=True),
        gate=torch.compile(gate, dynamic=True),
    )


def compiled_for(device: torch.device, dtype: torch.dtype, activation: Activation) -> Pointwise:
    """Compiled steps on a GPU that has what it takes, else the plain ones; tries them out."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return EAGER
    steps = compiled_pointwise()
    try:
        _try_out(steps, device, dtype, activation)
    except Exception as error:  # compilers fail in many ways
        reason = " ".join(str(error).split())
        _log.warning("compiling the backbone's small steps failed, slower ones run: %.200s", reason)
        return EAGER
    return steps


@torch.inference_mode()
def _try_out(
    steps: Pointwise, device: torch.device, dtype: torch.dtype, activation: Activation
) -> None:
    for tokens in (48, 96):  # the second is to show that no number is compiled in
        states = torch.ones(tokens, 64, device=device, dtype=dtype)
        steps.norm(states, states[0], 1e-6)
        steps.gate(states, activation)
        heads = states.view(tokens, 2, 32)
        steps.rotate(heads, heads[:, :1], heads[:, :1, :16])
