"""Which chunk length and threshold suit a policy's speed and a network: a sweep, and advice.

python scripts/tune_chunking.py --inference-ms 50 --delay-ms 20 --jitter-ms 5 --loss 0.001

Every setting runs a simulated robot against a real server, through a proxy that is the network.
With --quick it takes seconds: the same client code in virtual time.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli

if __name__ == "__main__":
    cli.needs("serving")

from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from scripts.benches import wide_console
from scripts.chunking_advice import Advice, advise
from scripts.chunking_model import (
    Conditions,
    Outcome,
    Setting,
    answer_s,
    reserve_s,
    span_s,
    speed_ratio,
)
from scripts.chunking_plot import draw
from scripts.chunking_quick import simulate
from scripts.chunking_real import RealSweep, SweepError
from scripts.network_lane import Network

__all__ = ["TuneOptions", "main"]


@dataclass(frozen=True)
class TuneOptions:
    """Sweep actions_per_chunk and chunk_size_threshold; say which to use."""

    inference_ms: float = 50.0
    """One prediction of the policy."""
    fps: float = 30.0
    """Control rate of the robot."""
    delay_ms: float = 0.0
    """One-way delay of the network."""
    jitter_ms: float = 0.0
    """It varies by up to so much both ways."""
    loss: float = 0.0
    """Share of segments that the network loses, e.g. 0.01."""
    actions_per_chunk: tuple[int, ...] = (20, 30, 50, 100)
    """Chunk lengths to try."""
    chunk_size_threshold: tuple[float, ...] = (0.3, 0.5, 0.7)
    """Thresholds to try."""
    aggregate_fn_name: str = "weighted_average"
    """What becomes of steps that are queued and in the new chunk."""
    transport: Literal["grpc", "zmq"] = "grpc"
    """Between client and server."""
    cameras: int = 1
    """How many the simulated robot has."""
    width: int = 320
    """Pixels across."""
    height: int = 240
    """Pixels down."""
    seconds: float = 6.0
    """Of motion, for each setting; with --quick of virtual time, then at least 60."""
    quick: bool = False
    """In virtual time, without sockets."""
    seed: int = 0
    """Of jitter, losses and the policy's wandering."""
    plot: Path = Path("runs/tuning/chunking.png")
    """The picture."""
    json: Path | None = None
    """Write the figures here too."""

    @property
    def given(self) -> Conditions:
        """What is given."""
        ms = 1e-3
        return Conditions(
            self.fps,
            self.inference_ms * ms,
            self.delay_ms * ms,
            self.jitter_ms * ms,
            self.loss,
        )

    @property
    def settings(self) -> tuple[Setting, ...]:
        """What is tried."""
        return tuple(
            Setting(rows, threshold)
            for rows in self.actions_per_chunk
            for threshold in self.chunk_size_threshold
        )

    def __post_init__(self) -> None:
        """ValueError, one line, for what cannot be tried."""
        if not (1.0 <= self.fps <= 1000.0 and 0.0 <= self.inference_ms <= 60_000.0):
            raise ValueError("--fps must be from 1 to 1000, --inference-ms from 0 to 60000")
        if not self.settings:
            raise ValueError("nothing to try: name chunk lengths and thresholds")
        if not all(2 <= rows <= 4096 for rows in self.actions_per_chunk):
            raise ValueError("--actions-per-chunk must be from 2 to 4096 each")
        if not all(0.0 <= share <= 1.0 for share in self.chunk_size_threshold):
            raise ValueError("--chunk-size-threshold must be from 0 to 1 each")
        if not (math.isfinite(self.seconds) and self.seconds >= 1.0):
            raise ValueError("--seconds must be 1 or more")
        Network(self.given.delay_s, self.given.jitter_s, self.given.loss)


def _quick(options: TuneOptions) -> Iterator[Outcome]:
    # Of 30 chunks one may not be typical; virtual seconds cost nothing.
    logging.getLogger("serving").setLevel(logging.CRITICAL)
    pixels = options.cameras * options.width * options.height * 3
    for setting in options.settings:
        yield simulate(
            setting,
            options.given,
            max(60.0, options.seconds),
            observation_bytes=pixels + 500,
            aggregation=options.aggregate_fn_name,
            seed=options.seed,
        )


def _real(options: TuneOptions) -> Iterator[Outcome]:
    pictures = (options.cameras, options.width, options.height)
    with RealSweep(options.given, options.transport, pictures, options.seed) as sweep:
        for setting in options.settings:
            yield sweep.run(setting, options.seconds, options.aggregate_fn_name)


def _table(outcomes: Sequence[Outcome], given: Conditions, advice: Advice) -> Table:
    table = Table(
        title=f"{given.fps:g} Hz, inference {1e3 * given.inference_s:g} ms, "
        f"{1e3 * given.delay_s:g} ± {1e3 * given.jitter_s:g} ms one way, loss {given.loss:.2%}; "
        f"an answer takes {1e3 * answer_s(given):.0f} ms on paper"
    )
    heads: tuple[str, ...]
    heads = ("actions per chunk", "threshold", "span ms", "span / inference", "reserve ms")
    heads += ("queue empty", "jerk RMS units/s³", "rate Hz", "answer ms", "reaction ms", "chunks")
    for head in (*heads, ""):
        table.add_column(head, justify="right")
    for outcome in outcomes:
        rows, threshold = outcome.setting.actions_per_chunk, outcome.setting.chunk_size_threshold
        best = outcome is advice.best
        table.add_row(
            str(rows),
            f"{threshold:g}",
            f"{1e3 * span_s(rows, given.fps):.0f}",
            f"{speed_ratio(rows, given.fps, given.inference_s):.1f}",
            f"{1e3 * reserve_s(outcome.setting, given):.0f}",
            f"{outcome.empty:.2%}",
            f"{outcome.jerk:.0f}",
            f"{outcome.rate_hz:.2f}",
            f"{outcome.answer_ms:.0f}",
            f"{outcome.reaction_ms:.0f}",
            str(outcome.chunks),
            "◀ use this" if best else "",
            style="bold green" if best else None,
        )
    return table


def _as_json(outcomes: Sequence[Outcome], options: TuneOptions, advice: Advice) -> dict[str, Any]:
    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    rows = []
    for outcome in outcomes:
        row: dict[str, Any] = asdict(outcome.setting)
        row |= {
            "span_s": span_s(outcome.setting.actions_per_chunk, options.fps),
            "speed_ratio": finite(
                speed_ratio(
                    outcome.setting.actions_per_chunk, options.fps, options.given.inference_s
                )
            ),
            "reserve_s": reserve_s(outcome.setting, options.given),
            "reaction_ms": finite(outcome.reaction_ms),
        }
        figures = ("empty", "jerk", "rate_hz", "answer_ms", "age_ms", "chunks", "seconds")
        rows.append(row | {name: finite(getattr(outcome, name)) for name in figures})
    return {
        "given": asdict(options.given),
        "virtual_time": options.quick,
        "transport": options.transport,
        "settings": rows,
        "recommended": asdict(advice.best.setting) if advice.best else None,
        "words": advice.words,
        "warnings": list(advice.warnings),
    }


def main() -> int:
    """Sweep, show, advise; the exit code: 1 when no setting moved the robot or a run failed."""
    options = cli.parse(TuneOptions)
    out = wide_console()
    outcomes: list[Outcome] = []
    try:
        with Progress(console=out, transient=True) as progress:
            task = progress.add_task("settings", total=len(options.settings))
            for outcome in _quick(options) if options.quick else _real(options):
                outcomes.append(outcome)
                progress.advance(task)
    except SweepError as error:
        cli.fail(str(error), 1)
    advice = advise(outcomes, options.given)
    out.print(_table(outcomes, options.given, advice))
    out.print(escape(advice.words))
    for line in advice.warnings:
        out.print(f"[yellow]warning:[/yellow] {escape(line)}")
    how = "virtual time" if options.quick else f"measured over {options.transport}"
    try:
        draw(outcomes, options.given, advice.best, options.plot, how)
        if options.json is not None:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps(_as_json(outcomes, options, advice), indent=1, allow_nan=False)
            options.json.write_text(content + "\n", encoding="utf-8")
    except OSError as error:
        cli.fail(f"cannot be written: {error.filename}: {error.strerror}", 1)
    out.print(f"picture: {options.plot}")
    return 0 if advice.best else 1


if __name__ == "__main__":
    sys.exit(main())
