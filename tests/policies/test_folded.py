from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from policies.base import PolicyError
from policies.qwen_vla import FastParts, QwenVlaPolicy, load_policy, packed, save_policy
from policies.qwen_vla.captured import Lane
from policies.qwen_vla.config import ExpertConfig, Fusion, PolicyConfig, SensorConfig
from policies.qwen_vla.fast import build_fast
from policies.qwen_vla.folded import FoldedFast
from policies.qwen_vla.packed import Precision, packing
from policies.qwen_vla.runner import FastRunner, Recorded, StaticRun
from policies.qwen_vla.tiny import WIDTH, random_windows
from tests.policies import qwen_reference as reference
from tests.policies.qwen_reference import FUSIONS, SMALL, Sizes
from tests.support import ROOT

CPU = torch.device("cpu")
ODD = Sizes(5, (16, 24), 1, 40, 24, 32, 40, 1, 56, 3, 2)
NO_LAYERS = dataclasses.replace(SMALL, conv=(16,), sensor_layers=2, layers=2, rows=1)
FULL_WIDTH = Sizes(sensor_layers=1, layers=2)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # two would wait for each other on a busy machine
    yield
    torch.set_num_threads(before)


def parts(fusion: Fusion, sizes: Sizes, window: int = 65, seed: int = 7) -> FastParts:
    state = reference.random_state(fusion, sizes, seed=seed, dtype=torch.float32)
    sensor = SensorConfig(
        window, sizes.channels, sizes.conv, sizes.sensor_layers, 8, sizes.sensor_ff, sizes.features
    )
    expert = ExpertConfig(fusion, sizes.vl, sizes.hidden, sizes.layers, 8, sizes.ff, sizes.rows)
    config = PolicyConfig(sensor=None if fusion == "none" else sensor, expert=expert)
    columns = tuple(f"c{i}" for i in range(sizes.columns))
    config = dataclasses.replace(config, action=dataclasses.replace(config.action, columns=columns))
    felt = reference.part(state, "sensor_encoder") if fusion != "none" else {}
    return build_fast(config, felt, reference.part(state, "action_expert"), CPU, torch.float32)


def runner(fast: FastParts, precision: Precision = "float32") -> FastRunner:
    return FastRunner(FoldedFast(fast, packing(precision, CPU)))


def inputs(sizes: Sizes, tokens: int = 1, length: int = 65, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    vl = torch.randn((1, tokens, sizes.vl), generator=generator)
    return vl, torch.rand((1, length, sizes.channels), generator=generator)


@torch.inference_mode()
def plain(fast: FastParts, vl: Tensor, window: Tensor) -> Tensor:
    return fast(vl, None if fast.config.sensor is None else window)[1][0]


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("sizes", [SMALL, ODD, NO_LAYERS], ids=["small", "odd", "flat"])
@pytest.mark.parametrize("large", [False, True], ids=["as small", "as large"])
def test_float32_equals_the_plain_modules(
    fusion: Fusion, tokens: int, sizes: Sizes, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(packed, "SMALL_WEIGHT", 0)
    fast = parts(fusion, sizes)
    vl, window = inputs(sizes, tokens)
    ours = runner(fast)(vl, window)
    assert ours.shape == (sizes.rows, sizes.columns)
    torch.testing.assert_close(ours, plain(fast, vl, window), atol=1e-5, rtol=0)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("own", [True, False], ids=["our kernel", "the library"])
def test_shorter_weights(
    fusion: Fusion, tokens: int, precision: Precision, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "SMALL_WEIGHT", 0)
    fast = parts(fusion, SMALL)
    vl, window = inputs(SMALL, tokens)
    one = FastRunner(FoldedFast(fast, packing(precision, CPU, own=own)))
    error = relative(one(vl, window), plain(fast, vl, window))
    assert 1e-7 < error <= (2e-2 if precision == "bfloat16" else 8e-2)


def test_bfloat16_flows_through_where_there_is_nothing_better() -> None:
    fast = parts("gated", SMALL)
    pack = packed._pack_plain(CPU, torch.bfloat16)
    folded = FoldedFast(fast, packed.Packing("bfloat16", CPU, torch.bfloat16, 2, pack))
    vl, window = inputs(SMALL)
    terms, _ = folded.prepare(vl)
    delta = folded.run(terms, window[0])
    assert delta.dtype == torch.bfloat16
    assert relative(delta.float(), plain(fast, vl, window)) <= 2e-2


@pytest.mark.parametrize("trained", [64, 65])
@pytest.mark.parametrize("length", [1, 2, 33, 64, 66, 200])
def test_windows_of_another_length(trained: int, length: int) -> None:
    fast = parts("concat", SMALL, window=trained)
    vl, window = inputs(SMALL, length=length)
    torch.testing.assert_close(runner(fast)(vl, window), plain(fast, vl, window), atol=1e-5, rtol=0)


@pytest.mark.parametrize("trained", [1, 2, 3, 17])
def test_models_with_short_windows(trained: int) -> None:
    fast = parts("concat", SMALL, window=trained)
    vl, window = inputs(SMALL, length=trained)
    torch.testing.assert_close(runner(fast)(vl, window), plain(fast, vl, window), atol=1e-5, rtol=0)


def test_full_width() -> None:
    fast = parts("concat", FULL_WIDTH)
    vl, window = inputs(FULL_WIDTH)
    expected = plain(fast, vl, window)
    torch.testing.assert_close(runner(fast)(vl, window), expected, atol=1e-5, rtol=0)
    assert relative(runner(fast, "bfloat16")(vl, window), expected) <= 2e-2


@pytest.mark.parametrize("fusion", FUSIONS)
def test_nothing_of_an_update_is_left_in_the_next(fusion: Fusion) -> None:
    fast = parts(fusion, SMALL)
    one = runner(fast)
    updates = [inputs(SMALL, tokens, seed=seed)[0] for seed, tokens in enumerate((1, 1, 4, 2, 1))]
    windows = [inputs(SMALL, seed=10 + seed)[1] for seed in range(2)]
    for vl in [*updates, updates[0], updates[2]]:
        for window in windows:
            torch.testing.assert_close(one(vl, window), plain(fast, vl, window), atol=1e-5, rtol=0)


def test_features_that_fail_leave_nothing_of_those_before() -> None:
    fast = parts("concat", SMALL)
    one = runner(fast)
    vl, window = inputs(SMALL)
    one(vl, window)
    wrong = torch.zeros(1, 1, SMALL.vl + 1)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            one(wrong, window)
    torch.testing.assert_close(one(vl, window), plain(fast, vl, window), atol=1e-5, rtol=0)


@torch.inference_mode()
def test_what_it_gives_is_the_callers_own() -> None:
    for fusion in FUSIONS:
        fast = parts(fusion, SMALL)
        one = runner(fast)
        vl, window = inputs(SMALL)
        first = one(vl, window)
        kept = first.clone()
        first.zero_()
        torch.testing.assert_close(one(vl, window), kept)


def test_one_token_leaves_cross_attention_no_choice() -> None:
    fast = parts("cross_attention", SMALL)
    folded = FoldedFast(fast, packing("float32", CPU))
    vl, window = inputs(SMALL, tokens=1)
    assert folded.prepare(vl)[1] is not None
    assert folded.prepare(inputs(SMALL, tokens=2)[0])[1] is None
    torch.testing.assert_close(plain(fast, vl, window), plain(fast, vl, 0 * window))


@pytest.mark.parametrize("fusion", ["concat", "gated", "cross_attention"])
@torch.inference_mode()
def test_buffers_that_a_graph_would_replay(fusion: Fusion) -> None:
    fast = parts(fusion, SMALL)
    folded = FoldedFast(fast, packing("float32", CPU))
    updates = [inputs(SMALL, 3, seed=seed)[0] for seed in range(3)]
    windows = [inputs(SMALL, seed=10 + seed)[1] for seed in range(3)]
    terms = [folded.prepare(vl)[0] for vl in updates]
    static = StaticRun(folded.run, terms[0], windows[0][0].shape, Lane(CPU, first=True))
    assert static.fits(terms[2])
    other = folded.prepare(inputs(SMALL, 4)[0])[0]
    assert static.fits(other) == (fusion != "cross_attention")
    seen = []
    for vl, term in zip(updates, terms, strict=True):
        static.set_terms(term)
        for window in windows:
            seen.append((static(window[0]), plain(fast, vl, window)))
    for ours, expected in seen:  # compared at the end: no result may change later
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("fusion", ["concat", "gated", "cross_attention"])
@torch.inference_mode()
def test_a_recorded_pass_gives_the_very_same(fusion: Fusion) -> None:
    folded = FoldedFast(parts(fusion, SMALL), packing("float32", CPU))
    tokens = 3 if fusion == "cross_attention" else 1
    terms = folded.prepare(inputs(SMALL, tokens)[0])[0]
    recorded = Recorded(folded.run, terms, inputs(SMALL)[1][0])
    assert recorded._recorded is not None
    for seed in range(3):
        vl, window = inputs(SMALL, tokens, seed=20 + seed)
        others = folded.prepare(vl)[0]
        assert recorded.fits(others, window[0])
        torch.testing.assert_close(
            recorded(others, window[0]), folded.run(others, window[0]), atol=0, rtol=0
        )
    assert not recorded.fits(terms, inputs(SMALL, length=64)[1][0])


@torch.inference_mode()
def test_packed_weights_run_operation_by_operation() -> None:
    folded = FoldedFast(parts("concat", FULL_WIDTH), packing("float32", CPU))
    vl, window = inputs(FULL_WIDTH)
    terms = folded.prepare(vl)[0]
    recorded = Recorded(folded.run, terms, window[0])
    torch.testing.assert_close(
        recorded(terms, window[0]), folded.run(terms, window[0]), atol=0, rtol=0
    )


def test_a_pass_that_cannot_be_recorded_runs_all_the_same(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise RuntimeError("no tracing\nin this version")

    monkeypatch.setattr(torch.jit, "trace", refuses)
    fast = parts("concat", SMALL)
    vl, window = inputs(SMALL)
    with caplog.at_level("DEBUG"):
        delta = runner(fast)(vl, window)
    torch.testing.assert_close(delta, plain(fast, vl, window), atol=1e-5, rtol=0)
    assert "operation by operation: no tracing in this version" in caplog.text


def test_weights_too_large_for_float16_are_not_cut_off() -> None:
    weight = torch.zeros(3, 4, dtype=torch.float64)
    weight[0, 0] = 1e6
    linear = packed._pack_half(weight, torch.zeros(3, dtype=torch.float64), relu=False)
    assert linear(torch.ones(1, 4))[0, 0] == 1e6


def test_rounding_to_int8() -> None:
    weight = torch.randn(6, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weight[2] = 0
    multiples, steps = packed.quantize_rows(weight)
    assert multiples.dtype == torch.int8
    largest = weight.abs().amax(dim=1)
    assert bool(((multiples * steps[:, None] - weight).abs().amax(dim=1) <= largest / 253).all())
    assert multiples.abs().amax(dim=1).tolist() == [127, 127, 0, 127, 127, 127]


def test_without_packing_operators_the_plain_product_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(*_: object, **__: object) -> packed.Linear:
        raise RuntimeError("not for this processor")

    monkeypatch.setattr(packed, "_pack_half", refuses)
    monkeypatch.setattr(packed, "_pack_onednn", lambda _: refuses)
    monkeypatch.setattr(packed, "_int8", lambda *, seven_bits: refuses)
    monkeypatch.setattr(packed, "kernel", lambda: None)
    assert packing("float32", CPU).name == "float32"
    assert packing("bfloat16", CPU).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="FBGEMM"):
        packing("int8", CPU)
    fast = parts("gated", SMALL)
    vl, window = inputs(SMALL)
    torch.testing.assert_close(runner(fast)(vl, window), plain(fast, vl, window), atol=1e-5, rtol=0)


INT8 = """
import torch
from policies.qwen_vla.packed import packing
weight = torch.full((16, 2048), 1.0, dtype=torch.float64)
rows = torch.linspace(0.0, 1.0, 2048).repeat(4, 1)
linear = packing("int8", torch.device("cpu")).pack(
    weight.repeat(256, 1), torch.zeros(4096, dtype=torch.float64), relu=False
)
print(float((linear(rows) / 1024 - 1).abs().max()))
"""


@pytest.mark.parametrize("instructions", ["", "AVX2"])
def test_int8_sums_are_not_cut_off_on_any_processor(instructions: str) -> None:
    # FBGEMM's own variable: use no newer instructions than these, whatever the processor has.
    env = os.environ | {"FBGEMM_ENABLE_INSTRUCTIONS": instructions}
    done = subprocess.run(
        [sys.executable, "-c", INT8], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.01


@pytest.mark.parametrize("overflows", [False, True])
def test_rows_are_rounded_as_finely_as_sums_allow(
    overflows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "_overflows", lambda _: overflows)
    monkeypatch.setattr(packed, "SMALL_WEIGHT", 0)
    # One product for each result: nothing is added up that could be cut off.
    same = torch.eye(64, dtype=torch.float64)
    linear = packing("int8", CPU).pack(same, torch.zeros(64, dtype=torch.float64), relu=False)
    rows = torch.linspace(0.0, 1.0, 64).repeat(2, 1)
    steps = 127 if overflows else 255
    error = float((linear(rows) - rows).abs().max())
    assert 0.4 / steps < error < 0.51 / steps


def test_int8_needs_a_cpu() -> None:
    with pytest.raises(ValueError, match="need a CPU"):
        packing("int8", torch.device("cuda"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int10", "int8"])
def test_a_loaded_policy_acts_as_its_plain_parts(tiny_dir: Path, dtype: packed.Precision) -> None:
    policy = load_policy(tiny_dir, device="cpu", dtype=dtype)
    window = random_windows(np.random.default_rng(2), 1)[0]
    vl = torch.randn(1, 1, WIDTH)
    chunk = policy.act(vl, window)
    exact = load_policy(tiny_dir, device="cpu").fast
    expected = plain(exact, vl, torch.from_numpy(window)[None])
    # Its values are about 60 degrees, where float32 has steps of 4e-6.
    assert relative(torch.from_numpy(chunk.delta), expected) <= (
        1e-6 if dtype != "bfloat16" else 1e-2
    )
    assert np.array_equal(chunk.actions, chunk.delta)


def test_without_its_plain_parts_a_policy_runs_but_is_not_saved(
    tiny: QwenVlaPolicy, tiny_dir: Path, tmp_path: Path
) -> None:
    lean = load_policy(tiny_dir, device="cpu", keep_plain=False)
    assert lean.spec == tiny.spec
    window, vl = np.zeros((65, 1026), np.float32), torch.zeros(1, 1, WIDTH)
    assert np.array_equal(lean.act(vl, window).actions, tiny.act(vl, window).actions)
    with pytest.raises(PolicyError, match="loaded to run only"):
        save_policy(lean, tmp_path / "copy")
