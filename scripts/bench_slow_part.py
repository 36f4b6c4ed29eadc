"""One update of the features: our path beside the library's, on the same weights, in turns.

python scripts/bench_slow_part.py            # the small model
python scripts/bench_slow_part.py --full     # the reference sizes, random weights; needs a GPU
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from torch import Tensor

from common import cli
from policies.base import PolicyError
from policies.qwen_vla import load_policy
from policies.qwen_vla.backbone import Backbone
from policies.qwen_vla.flops import update_flops
from policies.qwen_vla.images import resize, target_size
from policies.qwen_vla.tiny import random_picture
from scripts.benches import BenchOutput, Comparison, report
from scripts.demo import ensure_checkpoint
from scripts.slow_part_actions import action_times_ms
from scripts.slow_part_models import Picture, Sides, copy_model, reference_policy
from scripts.slow_part_plot import draw_times

VIEWS = 5
# An H200's measured rate for large products in bfloat16, 10^12 a second.
H200_TFLOP_S = 790.0
GOALS = {
    "update": "at most 33 ms on an H200",
    "ratio": "at least 2x the library",
    "action": "p99 under 3 ms during an update, on an H200",
    "equal": "at most 1e-4 in float32, 2e-2 in bfloat16",
}
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class SlowPartBenchOptions:
    """Time an update of the features, beside the library's own path in the same run."""

    rounds: int = 20
    """Updates of each side, in turns."""
    full: bool = False
    """The reference sizes with random weights, rather than the small model; needs a GPU."""
    checkpoint: Path = Path("runs/tiny-checkpoint")
    """The small policy; made when nothing is there."""
    threads: int = 1
    """PyTorch's threads on a CPU; the receiver gives it half the cores."""
    actions: int = 2000
    """With --full: actions timed while updates run."""
    output: BenchOutput = field(default_factory=BenchOutput)
    """Where results go."""


def measure(sides: Sides, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each round, by what was run; all of it once a round, in turns."""
    rng = np.random.default_rng(0)
    scenes = [[random_picture(rng) for _ in range(VIEWS)] for _ in range(2)]
    fresh = random_picture(rng)
    ours, stock, task = sides.policy.backbone, sides.stock, sides.policy.config.task
    size = target_size(640, 360, ours.image, ours.shape.factor)
    times: dict[str, list[float]] = {}

    def timed(name: str, run: Callable[[], object]) -> None:
        begin = time.perf_counter()
        run()
        times.setdefault(name, []).append(1e3 * (time.perf_counter() - begin))

    for number in range(-2, rounds):  # two to warm up
        if number == 0:
            times.clear()
        scene = scenes[number % 2]
        changed = [scene[0] if number % 2 else fresh, *scenes[0][1:]]
        # What is left without resizing, and without words: of the library, only its model.
        inputs = stock.inputs(scene, task)
        sized = [resize(picture, *size) for picture in scene]

        def reuse(pictures: list[Picture] = changed) -> None:
            timed("one view changed", lambda: sides.reuse.encode(pictures, task))
            timed("no view changed", lambda: sides.reuse.encode(pictures, task))

        def library(pictures: list[Picture] = scene) -> None:
            timed("library", lambda: stock.features(stock.inputs(pictures, task)))

        def library_model(given: dict[str, Tensor] = inputs) -> None:
            timed("library, model only", lambda: stock.features(given))

        def own(pictures: list[Picture] = scene) -> None:
            timed("ours", lambda: ours.encode(pictures, task))

        def quick(pictures: list[Picture] = scene) -> None:
            timed("quick resize", lambda: sides.quick.encode(pictures, task))

        def own_model(pictures: list[Picture] = sized) -> None:
            timed("ours, resized before", lambda: ours.encode(pictures, task))

        # Another order each time: what runs after its like finds its weights in the cache.
        kinds = [reuse, library, library_model, own, quick, own_model]
        for kind in rng.permutation(len(kinds)):
            kinds[kind]()
    return times


def difference(sides: Sides) -> float:
    """The largest difference between the two sides' features, relative to the largest value."""
    rng = np.random.default_rng(1)
    scene = [random_picture(rng) for _ in range(VIEWS)]
    task = sides.policy.config.task
    expected = sides.stock.features(sides.stock.inputs(scene, task)).float()
    found = sides.policy.backbone.encode(scene, task).float()
    return float((found - expected).abs().max() / expected.abs().max())


def first_update_ms(backbone: Backbone, task: str) -> float:
    """How long the first update of a new instruction takes, with all that is computed once."""
    picture = np.zeros((360, 640, 3), dtype=np.uint8)
    begin = time.perf_counter()
    backbone.encode([picture] * VIEWS, task)
    return 1e3 * (time.perf_counter() - begin)


def rows_of(
    sides: Sides, times: dict[str, list[float]], options: SlowPartBenchOptions
) -> list[Comparison]:
    """The table of one measurement."""
    middle = {name: float(np.median(values)) for name, values in times.items()}
    library = middle["library"]
    full = options.full

    def row(name: str, key: str, other: str = "library", goal: str = "") -> Comparison:
        ratio = middle[other] / middle[key]
        met = ratio >= 2 if goal else None
        return Comparison(
            name, f"{middle[key]:.1f} ms", f"{middle[other]:.1f} ms", ratio, goal, met
        )

    model = "reference sizes" if full else "small model"
    rows = [
        row(
            f"an update, five views of 640x360, {model}",
            "ours",
            goal=GOALS["ratio"] if full else "",
        ),
        row(
            "the same, pictures resized before; of the library the model only",
            "ours, resized before",
            "library, model only",
        ),
        row("four of five views unchanged, asked to reuse them", "one view changed"),
        row("all five unchanged", "no view changed"),
    ]
    if not full:
        rows.insert(1, row("the same, resizing with torch instead of Pillow", "quick resize"))
    apart = difference(sides)
    limit = 2e-2 if sides.policy.backbone.model.dtype == torch.bfloat16 else 1e-4
    rows.append(
        Comparison(
            "largest difference of the features, of the largest value",
            f"{apart:.1e}", goal=GOALS["equal"], met=apart <= limit,
        )
    )  # fmt: skip
    first = first_update_ms(sides.policy.backbone, "an instruction that is new")
    rows.append(Comparison("the first update of a new instruction", f"{first:.0f} ms"))
    return rows + _gpu_rows(sides, middle["ours"], library, options)


def _gpu_rows(
    sides: Sides, ours_ms: float, library_ms: float, options: SlowPartBenchOptions
) -> list[Comparison]:
    work = _reference_work()
    rows = [
        Comparison(
            "products of an update at the reference sizes: vision + language",
            f"{work[0]:.1f} + {work[1]:.1f} TFLOP",
            f"{1e3 * sum(work) / H200_TFLOP_S:.0f} ms at {H200_TFLOP_S:.0f} TFLOP/s",
        )
    ]
    if not options.full:
        rows += [
            Comparison(f"on an H200: {name}", NOT_MEASURED, goal=GOALS[key])
            for name, key in (
                ("an update at the reference sizes", "update"),
                ("the same against the library", "ratio"),
                ("an action while an update runs", "action"),
            )
        ]
        return rows
    rate = sum(work) / (1e-3 * ours_ms)
    rows.append(
        Comparison(
            "an update at the reference sizes",
            f"{ours_ms:.1f} ms, {rate:.0f} TFLOP/s",
            f"{library_ms:.1f} ms", library_ms / ours_ms, GOALS["update"], ours_ms <= 33,
        )
    )  # fmt: skip
    alone, beside = action_times_ms(sides.policy, options.actions)
    p50, p99 = np.percentile(beside, (50, 99))
    rows.append(
        Comparison(
            "an action while updates run, p50 / p99; alone on the right",
            f"{p50:.2f} / {p99:.2f} ms",
            "{:.2f} / {:.2f} ms".format(*np.percentile(alone, (50, 99))),
            goal=GOALS["action"], met=bool(p99 < 3),
        )
    )  # fmt: skip
    return rows


def _reference_work() -> tuple[float, float]:
    """10^12 operations of vision and language for five views of 640x360 and a short task."""
    from policies.qwen_vla.tokenizer import make_tokenizer
    from scripts.slow_part_models import reference_config

    # 46x26 patches; windows of 8x8 patches, smaller at two edges.
    windows = ((75, 64), (15, 48), (25, 16), (5, 12))
    config = reference_config(make_tokenizer(640))
    work = update_flops(config, ((26, 46),) * VIEWS, windows, VIEWS * 301 + 30)
    return work.vision / 1e12, work.language / 1e12


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"


def main() -> int:
    """Measure, print, draw; the exit code."""
    options = cli.parse(SlowPartBenchOptions)
    torch.set_num_threads(options.threads)
    if options.full:
        if not torch.cuda.is_available():
            cli.fail("--full takes a GPU: five views at the reference sizes are 16.6 TFLOP")
        sides = Sides.of(*reference_policy(torch.device("cuda")))
    else:
        ensure_checkpoint(options.checkpoint)
        try:
            policy = load_policy(options.checkpoint)
        except PolicyError as error:
            cli.fail(str(error))
        sides = Sides.of(policy, copy_model(policy.backbone.model))
    times = measure(sides, options.rounds)
    rows = rows_of(sides, times, options)
    title = "The slow part" + (" at the reference sizes" if options.full else ", small model")
    title += f", on {_name_of(sides.policy.backbone.model.device)}"
    report(title, rows, options.output)
    draw_times(times, title, options.output.plots / "slow_part.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
