"""The fast parts at full size: plain modules against folded weights, beside what memory allows.

python scripts/bench_fast_parts.py --rounds 9
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor, nn

from common import cli
from policies.qwen_vla import FastParts, tiny
from policies.qwen_vla.action_expert import ActionExpert
from policies.qwen_vla.config import PolicyConfig
from policies.qwen_vla.fast import build_fast
from policies.qwen_vla.folded import FoldedFast
from policies.qwen_vla.packed import Linear, Packing, Precision, packing
from policies.qwen_vla.runner import FastRunner
from policies.qwen_vla.sensor_encoder import SensorEncoder
from scripts.bench_fast_plot import draw
from scripts.benches import BenchOutput, Comparison, report

GOAL_CPU_MS, GOAL_GPU_MS = 8.0, 1.0
READ_MB = 240
CPU = torch.device("cpu")

LIMITS: dict[Precision, float] = {"float32": 1e-5, "bfloat16": 2e-2, "int10": 2e-2, "int8": 2e-2}
"""What a folded side may differ by from the plain evaluation, of the largest value."""


@dataclass(frozen=True)
class FastPartsBenchOptions:
    """Time a tick of the fast parts, plain and folded, in turns and in one run."""

    rounds: int = 9
    """Times that each side has its turn, for each number of threads."""
    threads: tuple[int, ...] = (2, 1)
    """Numbers of threads to measure with; the goal is held against the first."""
    inputs: int = 24
    """Inputs over which the error is the largest."""
    output: BenchOutput = field(default_factory=BenchOutput)
    """Where results go."""


@dataclass(frozen=True)
class Side:
    """One way to evaluate the fast parts.

    Attributes:
        name: for people.
        run: features and window to delta (rows, columns).
        read_mb: what a pass reads of weights.
        limit: what `error` may be; infinite where it is held to nothing.
        error: largest difference from float64, relative to the largest value.
    """

    name: str
    run: Callable[[Tensor, Tensor], Tensor]
    read_mb: float
    limit: float = math.inf
    error: float = math.nan

    @property
    def is_equal(self) -> bool:
        """Whether it computes the same, as far as it has to."""
        return self.error <= self.limit


Weights = tuple[dict[str, Tensor], dict[str, Tensor]]


def random_weights(config: PolicyConfig, seed: int = 0) -> Weights:
    """Random weights of both parts that keep the size of what goes through them."""
    assert config.sensor is not None
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        encoder = SensorEncoder(config.sensor)
        expert = ActionExpert(config.expert, config.sensor.features, len(config.action.columns))
    return _random_state(encoder, generator), _random_state(expert, generator)


def _random_state(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        if not value.is_floating_point():
            state[name] = torch.zeros(value.shape, dtype=value.dtype)
            continue
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            state[name] = noise / math.sqrt(value[0].numel() if value.shape[0] > 1 else 1)
        elif name.endswith(("bias", "running_mean")):
            state[name] = 0.1 * noise
        else:
            state[name] = 1 + 0.1 * noise.clamp(-3, 3)
    return state


def folded_side(fast: FastParts, layout: Packing, limit: float) -> Side:
    """Fold, counting what a pass reads."""
    read = 0.0

    def counting(layout: Packing) -> Packing:
        def counted(weight: Tensor, bias: Tensor, *, relu: bool) -> Linear:
            nonlocal read
            read += weight.numel() * layout.weight_bytes
            return layout.pack(weight, bias, relu=relu)

        sensed = counting(layout.sensed) if layout.sensed else None
        return dataclasses.replace(layout, pack=counted, sensed=sensed)

    runner = FastRunner(FoldedFast(fast, counting(layout)))
    return Side(f"folded, {layout.name}", runner, read / 1e6, limit)


def folded_sides(fast: FastParts) -> list[Side]:
    """Every layout that there is here, the library's own 16-bit one too."""
    sides = []
    for precision, limit in LIMITS.items():
        try:
            layout = packing(precision, CPU, own=False)
        except ValueError:  # not on this processor
            continue
        sides.append(folded_side(fast, layout, limit))
    return sides


def plain_side(fast: FastParts, name: str) -> Side:
    """The modules as they are."""
    weight = fast.action_expert.pos_embed
    assert fast.sensor_encoder is not None
    count = sum(
        parameter.numel()
        for module in (fast.sensor_encoder, fast.action_expert)
        for parameter in module.parameters()
    )

    def run(vl: Tensor, window: Tensor) -> Tensor:
        return fast(vl.to(weight), window.to(weight))[1][0]

    return Side(f"plain, {name}", run, count * weight.element_size() / 1e6)


def with_errors(
    sides: list[Side], config: PolicyConfig, weights: Weights, count: int
) -> list[Side]:
    """Compare every side with the plain modules in float64, over some inputs."""
    exact = build_fast(config, *weights, CPU, torch.float64)
    pairs = [inputs(config, seed) for seed in range(count)]
    expected = [exact(vl.double(), window.double())[1][0] for vl, window in pairs]
    found = []
    for side in sides:
        errors = [
            float((side.run(*pair).double() - truth).abs().max() / truth.abs().max())
            for pair, truth in zip(pairs, expected, strict=True)
        ]
        found.append(dataclasses.replace(side, error=max(errors)))
    return found


def inputs(config: PolicyConfig, seed: int) -> tuple[Tensor, Tensor]:
    """Features of one token and a window."""
    assert config.sensor is not None
    generator = torch.Generator().manual_seed(seed)
    vl = torch.randn((1, 1, config.expert.vl_features), generator=generator)
    return vl, torch.rand((1, config.sensor.window, config.sensor.channels), generator=generator)


def measure(
    sides: list[Side], config: PolicyConfig, rounds: int
) -> tuple[dict[str, list[float]], float]:
    """Sorted milliseconds of each side, taken in turns; and gigabytes a second that can be read.

    The features stay the same: an update serves many ticks.
    """
    vl, window = inputs(config, 0)
    block = torch.ones(READ_MB * 1_000_000 // 4)
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    reading = []
    for side in sides:
        side.run(vl, window)
    for _ in range(rounds):
        for side in sides:
            # Twice: what the side before left in the cache and in the pool is no part of a tick.
            side.run(vl, window)
            begin = time.perf_counter()
            side.run(vl, window)
            times[side.name].append((time.perf_counter() - begin) * 1e3)
        begin = time.perf_counter()
        block.sum()
        reading.append(time.perf_counter() - begin)
    return {name: sorted(values) for name, values in times.items()}, READ_MB / 1e3 / min(reading)


def _shown(times: list[float]) -> str:
    return f"{statistics.median(times):.1f} / {times[0]:.1f} ms"


def gpu_row(config: PolicyConfig, weights: Weights, rounds: int) -> Comparison:
    """A captured graph on a GPU; "not measured" where there is none."""
    name, goal = "GPU, captured graph, a tick, bfloat16", f"< {GOAL_GPU_MS:g} ms"
    if not torch.cuda.is_available():
        return Comparison(name, "not measured", goal=goal)
    device = torch.device("cuda")
    fast = build_fast(config, *weights, CPU, torch.float32)
    runner = FastRunner(FoldedFast(fast, packing("bfloat16", device)))
    vl, window = inputs(config, 0)
    features = vl.to(device)
    assert fast.sensor_encoder is not None
    half = [part.to(device, torch.bfloat16) for part in (fast.sensor_encoder, fast.action_expert)]
    ours, theirs = [], []
    for _ in range(5 + 20 * rounds):
        begin = time.perf_counter()
        runner(features, window)
        middle = time.perf_counter()
        vl16, window16 = features.bfloat16(), window.to(device, torch.bfloat16)
        half[1](vl16, half[0](window16))[1].cpu()
        ours.append((middle - begin) * 1e3)
        theirs.append((time.perf_counter() - middle) * 1e3)
    mine, other = statistics.median(ours[5:]), statistics.median(theirs[5:])
    return Comparison(
        name, f"{mine:.2f} ms", f"{other:.2f} ms", other / mine, goal, mine < GOAL_GPU_MS
    )


def rows_of(
    sides: list[Side], times: dict[str, list[float]], bandwidth: float, threads: int, goal: bool
) -> list[Comparison]:
    """A row for each precision: folded against plain, in the same precision where there is one."""
    rows = []
    plain = {side.name.removeprefix("plain, "): side for side in sides if "plain" in side.name}
    for side in sides:
        if side.name.startswith("plain"):
            continue
        other = plain["float32" if "float32" in side.name else "bfloat16"]
        ours, theirs = (statistics.median(times[one.name]) for one in (side, other))
        rows.append(
            Comparison(
                f"{threads} thr., {side.name}, {side.read_mb:.0f} MB, "
                f"{side.read_mb / ours:.1f} of {bandwidth:.0f} GB/s",
                _shown(times[side.name]),
                _shown(times[other.name]),
                theirs / ours,
                f"<= {GOAL_CPU_MS:g} ms, error within {side.limit:g}" if goal else "",
                ours <= GOAL_CPU_MS and side.is_equal if goal else None,
            )
        )
    return rows


def error_rows(sides: list[Side]) -> list[Comparison]:
    """What each side differs from float64 by, where model.md says how much it may."""
    rows = []
    for side in sides:
        held = math.isfinite(side.limit)
        goal, met = (f"<= {side.limit:g}", side.is_equal) if held else ("", None)
        name = f"error, {side.name}"
        rows.append(Comparison(name, f"{side.error:.1e}", goal=goal, met=met))
    return rows


@torch.inference_mode()
def main() -> int:
    """Measure, print, draw."""
    options = cli.parse(FastPartsBenchOptions)
    config = PolicyConfig()
    weights = random_weights(config)
    fast = build_fast(config, *weights, CPU, torch.float32)
    sides = [
        plain_side(fast, "float32"),
        plain_side(build_fast(config, *weights, CPU, torch.bfloat16), "bfloat16"),
        *folded_sides(fast),
    ]
    sides = with_errors(sides, config, weights, options.inputs)
    rows: list[Comparison] = []
    panels = []
    before = torch.get_num_threads()
    for number, threads in enumerate(options.threads):
        torch.set_num_threads(threads)
        times, bandwidth = measure(sides, config, options.rounds)
        rows += rows_of(sides, times, bandwidth, threads, goal=number == 0)
        floors = {side.name: side.read_mb / bandwidth for side in sides}
        panels.append((f"{threads} thread{'s' * (threads > 1)}", times, floors))
    rows += _small_rows(options)
    torch.set_num_threads(before)
    rows += [*error_rows(sides), gpu_row(config, weights, options.rounds)]
    report(
        "Fast parts at full size, a tick: folded (ours), plain (theirs); p50 / best; "
        f"errors against float64, relative to the largest value, over {options.inputs} inputs",
        rows,
        options.output,
    )
    draw(panels, GOAL_CPU_MS, options.output.plots / "fast_parts.png")
    return 0


def _small_rows(options: FastPartsBenchOptions) -> list[Comparison]:
    """The small policy, in which starting the operators takes longer than their work."""
    config = dataclasses.replace(PolicyConfig(), sensor=tiny.SENSOR, expert=tiny.EXPERT)
    fast = build_fast(config, *random_weights(config), CPU, torch.float32)
    plain = plain_side(fast, "float32")
    small = folded_side(fast, packing("float32", CPU), LIMITS["float32"])
    torch.set_num_threads(1)
    times, _ = measure([plain, small], config, 10 * options.rounds)
    ours, theirs = (statistics.median(times[side.name]) for side in (small, plain))
    name = "1 thr., folded, float32, the small policy"
    shown, other = _shown(times[small.name]), _shown(times[plain.name])
    return [Comparison(name, shown, other, theirs / ours)]


if __name__ == "__main__":
    sys.exit(main())
