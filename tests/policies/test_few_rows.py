from __future__ import annotations

import ctypes
import dataclasses
import itertools
import math
import platform
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from policies.base import PolicyError
from policies.qwen_vla import few_rows, packed
from policies.qwen_vla.few_rows import FewRows, Kernel, Unrounded, rounded
from policies.qwen_vla.folded import FoldedFast
from policies.qwen_vla.loading import load_fast_half
from policies.qwen_vla.packed import packing
from policies.qwen_vla.runner import Recorded
from tests.policies.qwen_reference import SMALL
from tests.policies.test_folded import inputs, parts, plain, relative
from tests.support import ROOT

CPU = torch.device("cpu")
KERNELS = ROOT / "policies" / "qwen_vla" / "kernels"
SOURCES = sorted(KERNELS.glob("*.c"))
COMPILER = shutil.which("cc")


def kernels() -> list[Kernel]:
    """The kernel with each set of instructions that this processor has."""
    best = few_rows.kernel()
    if best is None:
        return []
    return [
        dataclasses.replace(best, name=few_rows._NAMES[number], instructions=number)
        for number in range(1, best.instructions + 1)
    ]


needs_kernel = pytest.mark.skipif(not kernels(), reason="the kernel was not compiled")
each_kernel = pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: kernel.name)


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def as_rounded(weight: Tensor) -> Tensor:
    """The weight (outputs, inputs) that is multiplied in the place of this one."""
    whole, steps = rounded(weight)
    groups = torch.from_numpy(whole).double() * torch.from_numpy(steps).double()[:, :, None]
    return groups.flatten(1)[:, : weight.shape[1]]


def values_as_rounded(rows: Tensor) -> Tensor:
    steps = rows.double().abs().amax(dim=1, keepdim=True).clamp(min=1e-300) / 32767
    return (rows / steps).round() * steps


@pytest.mark.skipif(
    COMPILER is None or platform.machine() != "x86_64", reason="no compiler, or another processor"
)
def test_the_kernel_was_compiled_with_the_package() -> None:
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    if "avx2" in flags:
        assert few_rows.kernel() is not None
    if "avx512_vnni" in flags:
        assert kernels()[-1].name == "AVX-512"


@pytest.mark.skipif(COMPILER is None, reason="no compiler")
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "on another processor"])
def test_it_compiles_without_a_warning(elsewhere: bool, tmp_path: Path) -> None:
    place = tmp_path / "kernel.so"
    command = [str(COMPILER), "-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    command += ["-DFEW_ROWS_ELSEWHERE"] if elsewhere else []
    done = subprocess.run(
        [*command, *map(str, SOURCES), "-o", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(place))
    assert library.few_rows_version() == few_rows._VERSION
    if elsewhere:
        assert library.few_rows_instructions() == 0


@pytest.mark.parametrize("inputs", [1, 100, 128, 300])
def test_weights_are_rounded_in_groups(inputs: int) -> None:
    weight = random(6, inputs)
    weight[2] = 0
    weight[3, :128] *= 1e6
    whole, steps = rounded(weight)
    groups = math.ceil(inputs / 128)
    assert whole.shape == (6, groups, 128) and steps.shape == (6, groups)
    assert abs(whole).max() == 511
    assert not whole.reshape(6, -1)[:, inputs:].any()
    error = (as_rounded(weight) - weight).abs()
    for row, group in itertools.product(range(6), range(groups)):
        place = slice(128 * group, 128 * (group + 1))
        assert float(error[row, place].max()) <= 0.5001 * float(steps[row, group]) + 1e-12
        assert float(steps[row, group]) == pytest.approx(
            float(weight[row, place].abs().max()) / 511
        )


def test_weights_that_ten_bits_do_not_do_justice_to() -> None:
    weight = random(32, 256)
    weight[:, 5] = 100
    with pytest.raises(Unrounded, match="far above"):
        rounded(weight)
    for value in (math.nan, math.inf):
        weight = random(32, 256)
        weight[3, 4] = value
        with pytest.raises(Unrounded):
            rounded(weight)


@each_kernel
@pytest.mark.parametrize("size", [(32, 1), (32, 16), (64, 130), (96, 1024), (64, 3078)])
def test_products_are_those_of_the_rounded_numbers(kernel: Kernel, size: tuple[int, int]) -> None:
    outputs, width = size
    weight, bias = random(outputs, width), random(outputs, seed=1)
    exact = as_rounded(weight)
    for relu in (False, True):
        linear = FewRows(weight, bias, relu=relu, kernel=kernel)
        for count in (*range(1, 18), 33, 63, 64, 65, 130):
            rows = random(count, width, seed=count).float()
            expected = values_as_rounded(rows.double()) @ exact.T + bias
            expected = expected.relu() if relu else expected
            result = linear(rows)
            assert result.shape == (count, outputs) and result.dtype == torch.float32
            # A value half-way between two whole numbers may go either way: one step of one input.
            allowed = 2e-5 * float(expected.abs().max()) + 1e-5
            torch.testing.assert_close(result.double(), expected, atol=allowed, rtol=0)


@needs_kernel
def test_all_instructions_and_numbers_of_threads_give_the_same() -> None:
    weight, bias = random(1024, 700), random(1024, seed=1)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for kernel in [*kernels(), dataclasses.replace(kernels()[-1], parallel=None)]:
                linear = FewRows(weight, bias, relu=True, kernel=kernel)
                results += [linear(random(11, 700, seed=seed).float()) for seed in (2, 3)]
    finally:
        torch.set_num_threads(before)
    for place, result in enumerate(results):
        assert torch.equal(result, results[place % 2])


@each_kernel
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_fit(kernel: Kernel, sign: int) -> None:
    weight = torch.full((32, 4096), float(sign), dtype=torch.float64)
    linear = FewRows(weight, torch.zeros(32, dtype=torch.float64), relu=False, kernel=kernel)
    result = linear(torch.full((8, 4096), 3.0))
    torch.testing.assert_close(result, torch.full((8, 32), sign * 3.0 * 4096), rtol=1e-6, atol=0)


@each_kernel
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 128, 199])
def test_what_is_not_finite_stays_so(kernel: Kernel, value: float, place: int) -> None:
    weight, bias = random(64, 200), random(64, seed=1)
    rows = random(9, 200, seed=2).float()
    for relu in (False, True):
        linear = FewRows(weight, bias, relu=relu, kernel=kernel)
        expected = linear(rows)
        spoilt = rows.clone()
        spoilt[4, place] = value
        result = linear(spoilt)
        assert bool(result[4].isnan().all())
        kept = [row for row in range(9) if row != 4]
        assert torch.equal(result[kept], expected[kept])


@each_kernel
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-38, 1e-31])
def test_next_to_nothing_gives_the_bias(kernel: Kernel, size: float) -> None:
    bias = random(32, seed=1)
    linear = FewRows(random(32, 200), bias, relu=False, kernel=kernel)
    torch.testing.assert_close(linear(torch.full((3, 200), size)), bias.float().expand(3, 32))


@each_kernel
def test_rows_of_another_layout_or_type(kernel: Kernel) -> None:
    linear = FewRows(random(32, 200), random(32, seed=1), relu=False, kernel=kernel)
    rows = random(200, 5, seed=2).float()
    expected = linear(rows.T.contiguous())
    assert torch.equal(linear(rows.T), expected)
    assert torch.equal(linear(rows.T.double()), expected)
    assert linear(rows.T[:0]).shape == (0, 32)


@needs_kernel
def test_outputs_that_are_no_multiple_are_left_to_others() -> None:
    with pytest.raises(Unrounded, match="multiple of 32"):
        FewRows(random(40, 64), random(40), relu=False, kernel=kernels()[0])


def layouts(monkeypatch: pytest.MonkeyPatch) -> list[packed.Packing]:
    """The layout of each kernel, all weights counting as large."""
    monkeypatch.setattr(packed, "SMALL_WEIGHT", 0)
    found = []
    for kernel in kernels():
        monkeypatch.setattr(packed, "kernel", lambda kernel=kernel: kernel)
        found.append(packing("bfloat16", CPU))
    return found


@needs_kernel
def test_sixteen_bits_are_ten_where_the_kernel_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for layout in layouts(monkeypatch):
        assert layout.name.startswith("10-bit weights, AVX")
        assert layout.weight_bytes == pytest.approx(1.28125)
        bias = torch.zeros(64, dtype=torch.float64)
        assert isinstance(layout.pack(random(64, 64), bias, relu=False), FewRows)
        assert layout.sensed is not None
        assert not isinstance(layout.sensed.pack(random(64, 64), bias, relu=False), FewRows)
        spiked = random(64, 256)
        spiked[:, 7] = 1000
        linear = layout.pack(spiked, bias, relu=False)
        assert not isinstance(linear, FewRows)
        rows = random(3, 256, seed=1).float()
        rows[:, 7] = 0  # its weight, 1000, would hide what the others lost
        error = relative(linear(rows), (rows.double() @ spiked.T).float())
        assert error < 1e-2
    monkeypatch.setattr(packed, "SMALL_WEIGHT", 10_000)
    assert not isinstance(layout.pack(random(64, 64), bias, relu=False), FewRows)


@needs_kernel
def test_a_sensor_of_large_numbers_does_not_drown_one_of_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fast = parts("concat", SMALL)
    vl, window = inputs(SMALL)
    with torch.no_grad():
        first = fast.sensor_encoder.conv_backbone[0]
        first.weight[:, 2:] /= 1e5
    window[..., 2:] *= 1e5
    moved = window.clone()
    moved[..., 0] += 2
    expected = plain(fast, vl, moved) - plain(fast, vl, window)

    def error(layout: packed.Packing) -> float:
        folded = FoldedFast(fast, layout)
        terms, _ = folded.prepare(vl)
        return relative(folded.run(terms, moved[0]) - folded.run(terms, window[0]), expected)

    for layout in layouts(monkeypatch):
        assert error(layout) < 0.2
        assert error(dataclasses.replace(layout, sensed=None)) > 0.4


@each_kernel
def test_the_kernel_refuses_to_be_recorded(kernel: Kernel) -> None:
    linear = FewRows(random(32, 200), random(32, seed=1), relu=False, kernel=kernel)
    with pytest.raises(RuntimeError, match="cannot be recorded"):
        torch.jit.trace(linear.__call__, (torch.zeros(3, 200),), check_trace=False)


@needs_kernel
@torch.inference_mode()
def test_a_pass_with_the_kernel_is_never_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = parts("concat", SMALL)
    for layout in layouts(monkeypatch):
        folded = FoldedFast(fast, layout)
        vl, window = inputs(SMALL)
        terms = folded.prepare(vl)[0]
        recorded = Recorded(folded.run, terms, window[0])
        assert recorded._recorded is None
        other = inputs(SMALL, seed=5)[1][0]
        assert torch.equal(recorded(terms, other), folded.run(terms, other))


@needs_kernel
def test_ten_bits_may_be_asked_for() -> None:
    assert packing("int10", CPU).name == packing("bfloat16", CPU).name
    assert packing("int10", CPU, own=False).name == packing("int10", CPU).name
    with pytest.raises(ValueError, match="x86 CPU"):
        packing("int10", torch.device("cuda"))


def test_without_the_kernel_the_library_multiplies(
    tiny_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(few_rows, "EXTENSION_SUFFIXES", [".none.so"])
    with caplog.at_level("DEBUG"):
        assert few_rows.kernel.__wrapped__() is None
    assert "no kernel for few rows" in caplog.text
    monkeypatch.setattr(packed, "kernel", lambda: None)
    assert packing("bfloat16", CPU).name == packing("bfloat16", CPU, own=False).name
    assert "10-bit" not in packing("bfloat16", CPU).name
    with pytest.raises(ValueError, match="C compiler"):
        packing("int10", CPU)
    with pytest.raises(PolicyError, match=r"dtype int10 cannot be used here: .* try bfloat16"):
        load_fast_half(tiny_dir, dtype="int10")


@needs_kernel
def test_a_kernel_of_another_version_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(few_rows, "_VERSION", 0)
    assert few_rows.kernel.__wrapped__() is None
    assert "install the package again" in caplog.text


@needs_kernel
@pytest.mark.parametrize("wrong", [0.0, 0.97, float("nan")])
def test_a_kernel_that_computes_something_else_is_not_used(
    wrong: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    call = FewRows.__call__
    assert few_rows.kernel.__wrapped__() is not None
    monkeypatch.setattr(FewRows, "__call__", lambda self, rows: wrong * call(self, rows))
    assert few_rows.kernel.__wrapped__() is None
    assert "does not compute what it should" in caplog.text


@each_kernel
@pytest.mark.parametrize("shape", [(3, 199), (3, 201), (200,), (3, 1, 200)])
def test_rows_of_another_width_are_refused(kernel: Kernel, shape: tuple[int, ...]) -> None:
    linear = FewRows(random(32, 200), random(32, seed=1), relu=False, kernel=kernel)
    with pytest.raises(RuntimeError, match="rows of 200 values"):
        linear(torch.zeros(shape))


@needs_kernel
def test_it_uses_the_threads_that_the_library_has() -> None:
    found = few_rows.kernel()
    assert found is not None
    if "OpenMP" in torch.__config__.parallel_info():
        assert found.parallel is not None


@needs_kernel
def test_ten_bits_lose_less_than_bfloat16() -> None:
    weight = random(256, 1024)
    error = float(torch.linalg.vector_norm(as_rounded(weight) - weight))
    half = float(torch.linalg.vector_norm(weight.bfloat16().double() - weight))
    assert error < half
