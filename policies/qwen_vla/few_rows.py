"""Linear maps on few rows, with weights of ten bits and values of sixteen: our own kernel.

The library's products are made for many rows. With the one to 33 that the fast half has, they use
less than half of what a core computes, and a weight takes two bytes where ten bits do. Here each
row of a weight is rounded to whole numbers from -511 to 511, in groups of 128 inputs with a step of
their own, and each row of values to whole numbers from -32767 to 32767: products then add up
without rounding in 32 bits, by what processors have for that (`vpdpwssd`, `vpmaddwd`).

Eight weights lie in five words of 16 bits: five of them in the upper ten bits, the other three in
the lower six of these. So a shift is all that most of them cost.

The kernel is C (`kernels/`), compiled when the package is installed and left out where that fails
or the processor is another: `kernel()` says whether there is one.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["BYTES", "FewRows", "Kernel", "Unrounded", "kernel", "rounded"]

_log = logging.getLogger(__name__)

GROUP, PANEL, LARGEST = 128, 32, 511
BYTES = 10 / 8 + 4 / GROUP
"""What a weight takes, with its share of the group's step."""

# Rounding to bfloat16 moves a weight by at most a 256th of itself. A weight with a few values far
# above all others may lose more here, all of it together: it is left to others.
MOST_LOST = 1 / 256

_VERSION = 1
_NAMES = {1: "AVX2", 2: "AVX-512"}


class Unrounded(ValueError):
    """A weight that ten bits do not do justice to, or of a size the kernel has no loops for."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """The compiled kernel.

    Attributes:
        name: of the processor's instructions that it uses.
        instructions: their number, as the kernel counts.
        multiply: `few_rows_multiply`.
        parallel: what runs a function on all threads of the library's own pool, an address; None
            where it cannot be found, so that one thread does everything.
    """

    name: str
    instructions: int
    multiply: Callable[..., None]
    parallel: int | None


class _Map(ctypes.Structure):
    """`struct few_rows_map`."""

    _fields_ = (
        ("words", ctypes.c_void_p),
        ("steps", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("inputs", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        ("relu", ctypes.c_int32),
        ("instructions", ctypes.c_int32),
    )


@functools.cache
def kernel() -> Kernel | None:
    """The kernel for this processor; None where it was not compiled, or cannot run here."""
    place = Path(__file__).parent / f"_few_rows{EXTENSION_SUFFIXES[0]}"
    try:
        library = ctypes.CDLL(str(place))
        version, instructions = library.few_rows_version(), library.few_rows_instructions()
    except (OSError, AttributeError) as error:
        _log.debug("no kernel for few rows, the library's are used: %s", error)
        return None
    if version != _VERSION:
        _log.warning(
            "the kernel for few rows is of another version, slower ones run: "
            "install the package again (pip install -e .)"
        )
        return None
    if instructions not in _NAMES:
        return None
    multiply = library.few_rows_multiply
    multiply.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int] * 2 + [ctypes.c_void_p]
    multiply.restype = None
    found = Kernel(_NAMES[instructions], instructions, multiply, _parallel())
    if not _computes(found):
        _log.warning("the kernel for few rows does not compute what it should: slower ones run")
        return None
    return found


def _computes(kernel: Kernel) -> bool:
    """Whether a kernel, whatever compiler made it, gives the products that it is to give."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(2 * PANEL, 2 * GROUP + 9, dtype=torch.float64, generator=generator)
    rows = torch.randn(9, weight.shape[1], dtype=torch.float64, generator=generator)
    product = FewRows(weight, weight[:, 0], relu=False, kernel=kernel)(rows.float())
    expected = rows @ weight.T + weight[:, 0]
    return bool((product - expected).abs().max() < 1e-2 * expected.abs().max())


def _parallel() -> int | None:
    """OpenMP's function by which PyTorch's own operators use their threads, in this process.

    A pool of our own would stand beside the library's, whose threads go on turning for a while
    after each operator and would keep ours from the cores.
    """
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None


def rounded(weight: Tensor) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Round a weight (outputs, inputs) in groups of 128 inputs.

    Returns:
        the whole numbers (outputs, groups, 128), zeros after the last input; and the size of one
        in each group (outputs, groups).

    Raises:
        Unrounded: too much is lost, or there are values that are not finite.
    """
    outputs, inputs = weight.shape
    padded = torch.nn.functional.pad(weight.double(), (0, -inputs % GROUP))
    groups = padded.view(outputs, -1, GROUP)
    # As the kernel has them, in float32, so that rounding makes up for what that changes.
    steps = (groups.abs().amax(dim=2) / LARGEST).float()
    whole = (groups / steps.double().clamp(min=1e-30)[:, :, None]).round_()
    lost = torch.linalg.vector_norm(whole * steps.double()[:, :, None] - groups)
    if not lost <= MOST_LOST * torch.linalg.vector_norm(groups):
        raise Unrounded("a few of its values are far above all others")
    return whole.clamp_(-LARGEST, LARGEST).to(torch.int16).numpy(), steps.numpy()


def _words(whole: NDArray[np.int16]) -> NDArray[np.uint16]:
    """Whole numbers (outputs, groups, 128) as the kernel reads them."""
    outputs, groups, _ = whole.shape
    parts = whole.reshape(outputs // PANEL, 2, 16, groups, 8, 8, 2).astype(np.uint16) & 1023
    # One of eight pairs of inputs for each of 16 outputs: a vector of 32 numbers.
    first, second, third, fourth, fifth, *others = parts.transpose(5, 0, 3, 4, 1, 2, 6)
    sixth, seventh, eighth = others
    words = (
        first << 6 | sixth >> 4,
        second << 6 | (eighth >> 2 & 3) << 4 | sixth & 15,
        third << 6 | seventh >> 4,
        fourth << 6 | (eighth & 3) << 4 | seventh & 15,
        fifth << 6 | eighth >> 4,
    )
    return np.stack(words, axis=4)


class FewRows:
    """A linear map of a weight (outputs, inputs) and a bias (outputs), float64; (rows, inputs)
    to (rows, outputs), float32 on the CPU.

    Results are the same whatever the processor and the number of threads. A row that holds a value
    that is not finite gives a row of NaN.

    Raises:
        Unrounded: others should multiply this weight.
    """

    def __init__(self, weight: Tensor, bias: Tensor, *, relu: bool, kernel: Kernel) -> None:
        self._outputs, self._inputs = weight.shape
        if self._outputs % PANEL:
            raise Unrounded(f"its outputs are no multiple of {PANEL}")
        whole, sizes = rounded(weight)
        words = _in_large_pages(_words(whole))
        panels = sizes.reshape(self._outputs // PANEL, PANEL, -1).transpose(0, 2, 1)
        self._kept = (words, torch.from_numpy(panels.copy()), bias.float().contiguous())
        places = [part.data_ptr() for part in self._kept]
        self._map = _Map(*places, self._inputs, self._outputs, relu, kernel.instructions)
        self._address = ctypes.addressof(self._map)
        self._room = self._inputs + -self._inputs % GROUP
        self._multiply, self._parallel = kernel.multiply, kernel.parallel

    def __call__(self, rows: Tensor) -> Tensor:
        """Multiply, on as many threads as PyTorch's own operators use.

        Raises:
            RuntimeError: rows of another width, or while operators are recorded.
        """
        # A record would keep the place of results, not what made them.
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            raise RuntimeError("the kernel for few rows cannot be recorded")
        if rows.shape[1:] != (self._inputs,):  # the kernel would read what is not theirs
            raise RuntimeError(f"rows of {self._inputs} values expected, not {tuple(rows.shape)}")
        given = rows.to(torch.float32).contiguous()
        count = given.shape[0]
        values = torch.empty(count, self._room, dtype=torch.int16)
        results = torch.empty(count, self._outputs)
        self._multiply(
            self._address,
            given.data_ptr(),
            results.data_ptr(),
            values.data_ptr(),
            count,
            torch.get_num_threads(),
            self._parallel,
        )
        return results


def _in_large_pages(values: NDArray[np.uint16]) -> Tensor:
    """A copy in memory for which the system is asked for large pages (3 to 10 % less time)."""
    area = mmap.mmap(-1, values.nbytes)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            area.madvise(mmap.MADV_HUGEPAGE)
        except OSError:  # a system without
            pass
    place = np.frombuffer(area, np.uint16)
    place[:] = values.ravel()
    return torch.from_numpy(place.view(np.int16))
