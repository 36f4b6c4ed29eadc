"""Does asynchrony help? The rig's task over the latency of vision, run in three ways.

    python scripts/study_latency.py --policy assets/policy

Time is virtual: the latency is modelled, and an episode takes as long as it takes to compute. A run
that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli

if __name__ == "__main__":
    cli.needs("receiver", "sim")

import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from policies.base import PolicyError, PolicySpec
from scripts.closed_loop.episode import EpisodeResult
from scripts.closed_loop.estimates import points
from scripts.closed_loop.methods import USUAL, MethodError, method
from scripts.closed_loop.results import Key, ResultsError, ResultsFile
from scripts.closed_loop.score import ScoreOptions
from scripts.closed_loop.table import markdown
from scripts.closed_loop.workers import ORACLE, Workers, WorkersError
from senders.drivers import DriverError
from sim.layout import TissueKind

__all__ = ["StudyOptions", "main"]

_LATENCIES_MS = (0.0, 100.0, 200.0, 381.0, 800.0)
_FIRST_SEED = 100_000
_MOST_WORKERS = 64


@dataclass(frozen=True)
class StudyOptions:
    """Run every method at every latency over the same episodes; table, plots, rows as CSV."""

    policy: str
    """Folder of a checkpoint; `oracle`: a policy that is told where the port is."""
    out: Path = Path("runs/study")
    """Folder of the results; one that holds some is gone on with."""
    methods: tuple[str, ...] = USUAL
    """sync, sync-ROWS, async-AGGREGATION, async-AGGREGATION@THRESHOLD, rtc, rtc-ROWS (with a
    policy of scripts/train_flow.py), dual-REUSE."""
    latencies_ms: tuple[float, ...] = _LATENCIES_MS
    """Of the policy's slow half."""
    act_ms: float = 5.0
    """Latency of its fast half."""
    episodes: int = 100
    """A point."""
    first_seed: int = _FIRST_SEED
    """Of the first episode's layout; far from those that a policy is trained on."""
    workers: int = 2
    """Processes that run episodes."""
    tissue: TissueKind = "regular"
    """A swing that a policy can foresee, or a motion that it cannot."""
    score: tyro.conf.OmitArgPrefixes[ScoreOptions] = field(default_factory=ScoreOptions)
    """When an episode is over."""

    def __post_init__(self) -> None:
        """ValueError for what cannot be run."""
        for name in self.methods:
            method(name)
        if not self.methods or not self.latencies_ms:
            raise ValueError("--methods and --latencies-ms must name one at least")
        if not all(0.0 <= ms <= 10_000.0 for ms in (*self.latencies_ms, self.act_ms)):
            raise ValueError("latencies are from 0 to 10000 ms")
        if not 1 <= self.episodes <= 1_000_000 or not 0 <= self.first_seed < 2**31 - 1_000_000:
            raise ValueError("--episodes must be at least 1, --first-seed from 0 to 2145483647")
        if not 1 <= self.workers <= _MOST_WORKERS:
            raise ValueError(f"--workers must be from 1 to {_MOST_WORKERS}")

    @property
    def keys(self) -> list[Key]:
        """All episodes; seed by seed, so that what is there at any time covers all points."""
        seeds = range(self.first_seed, self.first_seed + self.episodes)
        keys = ((m, ms, seed) for seed in seeds for m in self.methods for ms in self.latencies_ms)
        return list(dict.fromkeys(keys))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, and show all of it; the exit code."""
    try:
        options = cli.parse(StudyOptions, arguments)
    except MethodError as error:
        cli.fail(str(error))
    if options.policy != ORACLE and not Path(options.policy).exists():
        cli.fail(f"--policy {options.policy}: there is no such folder")
    out = Console()
    try:
        with Workers(
            options.workers, options.policy, options.act_ms, options.score, options.tissue
        ) as workers:
            spec = workers.spec()
            results = ResultsFile(options.out / "episodes.csv", _settings(options, spec))
            try:
                whole = _run(options, workers, results, out)
            finally:
                results.close()
    except (PolicyError, DriverError, ResultsError) as error:
        cli.fail(str(error))
    except WorkersError as error:
        cli.fail(str(error), 1)
    except OSError as error:
        cli.fail(f"--out {options.out}: {error.strerror}; name a folder to write to")
    _show(options, spec, results.rows, out)
    return 0 if whole else 130


def _settings(options: StudyOptions, spec: PolicySpec) -> dict[str, object]:
    """What must be the same for rows to stand in one table."""
    return {
        "policy": spec.identity or options.policy,
        "act_ms": options.act_ms,
        "limit_s": options.score.limit_s,
        "tail_s": options.score.tail_s,
        "tissue": options.tissue,
    }


def _run(options: StudyOptions, workers: Workers, results: ResultsFile, out: Console) -> bool:
    """Run what is missing; False when it was interrupted."""
    keys = [key for key in options.keys if key not in results.done]
    done = len(options.keys) - len(keys)
    if done:
        out.print(f"{done} of {len(options.keys)} episodes are there already")
    columns = (
        TextColumn("episodes"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=out) as progress:
        task = progress.add_task("", total=len(keys))
        try:
            for row in workers.run(keys):
                results.add(row)
                progress.advance(task)
        except KeyboardInterrupt:
            out.print("stopping …; the same command goes on from here")
            return False
    return True


def _show(
    options: StudyOptions, spec: PolicySpec, rows: Sequence[EpisodeResult], out: Console
) -> None:
    """Write the table and the plots of the points asked for, and say where."""
    wanted = set(options.keys)
    places = {key: place for place, key in enumerate(options.keys)}
    chosen = [row for row in rows if (row.method, row.latency_ms, row.seed) in wanted]
    chosen.sort(key=lambda row: places[row.method, row.latency_ms, row.seed])
    if not chosen:
        return
    from scripts.closed_loop.plots import plot_error, plot_success

    found = points(chosen)
    table = options.out / "table.md"
    table.write_text(markdown(found), encoding="utf-8")
    most = max(point.episodes for point in found)
    title = f"{spec.name}, {most} episodes a point"
    if options.tissue != "regular":
        title += f"\n{options.tissue} tissue"
    plot_success(found, title, options.out / "success.png")
    plot_error(found, title, options.out / "error.png")
    summary = {
        f"{p.method} at {p.latency_ms:g} ms": {
            "episodes": p.episodes,
            "success": p.success.value,
            "interval": [p.success.low, p.success.high],
        }
        for p in found
    }
    (options.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    out.print(markdown(found), markup=False, soft_wrap=True)
    out.print(f"table    {table}")
    for name in ("success.png", "error.png"):
        out.print(f"picture  {options.out / name}")


if __name__ == "__main__":
    sys.exit(main())
