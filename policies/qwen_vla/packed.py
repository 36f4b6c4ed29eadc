"""Linear maps whose weights are laid out once for what multiplies them with few rows.

With 1 to 33 rows, reading the weights takes about as long as multiplying them: what counts is how
many bytes a weight has, and that nobody lays them out anew at every pass.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from policies.qwen_vla.few_rows import BYTES, FewRows, Kernel, Unrounded, kernel

__all__ = ["Linear", "Packing", "Precision", "dense", "packing", "quantize_rows"]

Precision = Literal["float32", "bfloat16", "int10", "int8"]

Linear = Callable[[Tensor], Tensor]
"""(rows, inputs) to (rows, outputs)."""

CPU = torch.device("cpu")
LARGEST_HALF = 65504.0

# Values in a weight that stays in the cache between two passes: on a CPU the plain product starts
# 10 to 30 µs sooner than the packed ones, which is more than they save on less than this.
SMALL_WEIGHT = 400_000


class Pack(Protocol):
    """Lay out a weight (outputs, inputs) and a bias (outputs), float64, for use."""

    def __call__(self, weight: Tensor, bias: Tensor, *, relu: bool) -> Linear:
        """Make the linear map, followed by a relu where asked for."""
        ...


@dataclass(frozen=True, slots=True)
class Packing:
    """How the large weights are kept and what multiplies them.

    Attributes:
        name: for people, e.g. `float16 weights, FBGEMM`.
        device: where everything happens.
        dtype: of what flows between the linear maps.
        weight_bytes: bytes of a large weight.
        pack: makes a linear map.
        sensed: the layout of the map that reads what sensors give, where that is another: values
            of different units side by side, perhaps a thousand times as large as each other, to
            which no common step does justice.
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    weight_bytes: float
    pack: Pack
    sensed: Packing | None = None


def packing(precision: Precision, device: torch.device, *, own: bool = True) -> Packing:
    """Choose what multiplies on this device.

    `int10` keeps the weights as whole numbers of ten bits for our own kernel (`few_rows.py`), and
    so does `bfloat16` on a CPU for which that was compiled: faster than bfloat16, and closer to
    float32. Else, on a CPU without bfloat16 instructions, `bfloat16` keeps them in float16, three
    bits more, and adds up in float32: faster there than bfloat16, and closer to float32. `int8`
    rounds what flows into each linear map too, to 255 steps, or to 127 where the processor has no
    instructions for bytes that add up without overflow.

    Args:
        precision: of the large weights.
        device: where they are multiplied.
        own: use our own kernel for `bfloat16` where there is one.

    Raises:
        ValueError: int8 elsewhere than on a CPU with FBGEMM, int10 elsewhere than on one for which
            the kernel was compiled.
    """
    here = device.type == "cpu"
    if precision == "int8":
        whole = _int8(seven_bits=False)
        pack = whole if here and not _overflows(whole) else _int8(seven_bits=True)
        if not (here and _works(pack)):
            raise ValueError("int8 weights need a CPU for which PyTorch has FBGEMM")
        return _mixed("int8 weights, FBGEMM", 1, pack)
    wanted = precision == "int10" or (precision == "bfloat16" and own)
    ours = kernel() if here and wanted else None
    if precision == "int10" and ours is None:
        raise ValueError(
            "ten-bit weights need an x86 CPU with AVX2, and a C compiler at the installation"
        )
    narrow = precision != "float32"
    dtype = torch.bfloat16 if narrow else torch.float32
    plain = _pack_plain(device, dtype)
    layout = Packing(precision, device, dtype, dtype.itemsize, plain)
    if here:
        onednn = _pack_onednn(dtype)
        if _works(onednn):
            layout = _mixed(f"{precision} weights, oneDNN", dtype.itemsize, onednn)
        elif narrow and _works(_pack_half):
            layout = _mixed("float16 weights, FBGEMM", 2, _pack_half)
    if ours is None:
        return layout
    # Between its maps float32 flows: so it must in those that it leaves to the library.
    return _with_kernel(
        ours, layout if layout.dtype == torch.float32 else packing("float32", device)
    )


def _mixed(name: str, weight_bytes: int, large: Pack) -> Packing:
    """For a CPU: small weights in float32, large ones packed, float32 between them."""
    small = _pack_plain(CPU, torch.float32)

    def pack(weight: Tensor, bias: Tensor, *, relu: bool) -> Linear:
        which = small if weight.numel() < SMALL_WEIGHT else large
        return which(weight, bias, relu=relu)

    return Packing(name, CPU, torch.float32, weight_bytes, pack)


def _with_kernel(ours: Kernel, otherwise: Packing) -> Packing:
    """Large weights for our own kernel, those it should not round for the library's."""

    def pack(weight: Tensor, bias: Tensor, *, relu: bool) -> Linear:
        if weight.numel() >= SMALL_WEIGHT:
            with contextlib.suppress(Unrounded):
                return FewRows(weight, bias, relu=relu, kernel=ours)
        return otherwise.pack(weight, bias, relu=relu)

    name = f"10-bit weights, {ours.name}"
    return Packing(name, CPU, torch.float32, BYTES, pack, otherwise)


def dense(weight: Tensor, bias: Tensor, *, relu: bool = False) -> Linear:
    """A linear map as PyTorch does it, from a weight (outputs, inputs)."""
    if relu:
        return lambda rows: F.linear(rows, weight, bias).relu_()
    return lambda rows: F.linear(rows, weight, bias)


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row of a weight to whole multiples of a 127th of its largest value.

    Returns:
        the multiples, int8 of the weight's shape, and the step of each row, float64.
    """
    low, high = torch.aminmax(weight, dim=1)
    steps = torch.maximum(-low, high).double().clamp(min=1e-12) / 127
    return (weight / steps[:, None]).round_().to(torch.int8), steps


def _works(pack: Pack) -> bool:
    """Whether this PyTorch has the operators on this processor: asked by using them once."""
    weight = torch.ones(16, 16, dtype=torch.float64)
    try:
        result = pack(weight, weight[0], relu=False)(torch.ones(1, 16))
    except (RuntimeError, AttributeError):
        return False
    return bool((result - 17).abs().max() < 1)


def _pack_plain(device: torch.device, dtype: torch.dtype) -> Pack:
    def pack(weight: Tensor, bias: Tensor, *, relu: bool) -> Linear:
        return dense(weight.to(device, dtype), bias.to(device, dtype), relu=relu)

    return pack


def _pack_onednn(dtype: torch.dtype) -> Pack:
    operators: Any = torch.ops.mkldnn

    def pack(weight: Tensor, bias: Tensor, *, relu: bool) -> Linear:
        packed = operators._reorder_linear_weight(weight.to(dtype))
        added, after = bias.to(dtype), "relu" if relu else "none"
        multiply = operators._linear_pointwise

        def linear(rows: Tensor) -> Tensor:
            result: Tensor = multiply(rows, packed, added, after, [], "")
            return result

        def narrow(rows: Tensor) -> Tensor:
            result: Tensor = multiply(rows.to(dtype), packed, added, after, [], "")
            return result.float()

        return linear if dtype == torch.float32 else narrow

    return pack


def _pack_half(weight: Tensor, bias: Tensor, *, relu: bool) -> Linear:
    operators: Any = torch.ops.quantized
    low, high = torch.aminmax(weight)
    if not max(float(-low), float(high)) <= LARGEST_HALF:  # would be cut off without a word
        return dense(weight.float(), bias.float(), relu=relu)
    packed = operators.linear_prepack_fp16(weight.float().contiguous(), bias.float())
    # The variant with a relu does that as a second pass too; this one is in every PyTorch.
    multiply = operators.linear_dynamic_fp16

    def linear(rows: Tensor) -> Tensor:
        result: Tensor = multiply(rows, packed)
        return result.relu_() if relu else result

    return linear


def _overflows(pack: Pack) -> bool:
    """Whether this processor cuts off sums of two products of 8 bits: asked by making one.

    AVX2 and the first AVX-512 add pairs of products up in 16 bits (`vpmaddubsw`); VNNI adds four
    up in 32 (`vpdpbusd`).
    """
    weight = torch.ones(64, 64, dtype=torch.float64)
    rows = torch.ones(1, 64)
    rows[0, 0] = 0.0  # so that one is 255 steps
    try:
        result = pack(weight, torch.zeros_like(weight[0]), relu=False)(rows)
    except (RuntimeError, AttributeError):
        return True
    return bool((result - 63).abs().max() > 1)


def _int8(*, seven_bits: bool) -> Pack:
    operators: Any = torch.ops.quantized

    def pack(weight: Tensor, bias: Tensor, *, relu: bool) -> Linear:
        multiples, steps = quantize_rows(weight)
        zeros = torch.zeros(len(steps), dtype=torch.int64)
        with warnings.catch_warnings():  # of a type that is to leave PyTorch; no other way yet
            warnings.simplefilter("ignore", UserWarning)
            quantized = torch._make_per_channel_quantized_tensor(  # type: ignore[attr-defined]
                multiples, steps, zeros, 0
            )
            packed = operators.linear_prepack(quantized, bias.float())
        multiply = operators.linear_relu_dynamic if relu else operators.linear_dynamic

        def linear(rows: Tensor) -> Tensor:
            result: Tensor = multiply(rows, packed, seven_bits)
            return result

        return linear

    return pack
