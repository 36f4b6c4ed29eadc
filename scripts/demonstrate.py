"""Make demonstrations of the scripted expert on the simulated rig, to train on.

    python scripts/demonstrate.py --out runs/demonstrations --count 6000

It goes on where it was stopped: files that are there are not made again.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli

if __name__ == "__main__":
    cli.needs("sim")

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress import TimeRemainingColumn as Remaining

from senders.drivers import DriverError
from sim.demonstration_files import write_demonstrations
from sim.demonstrations import Demonstrator

__all__ = ["FIRST_SEED", "main"]

FIRST_SEED = 1_000_000
"""Seeds below are for evaluation: what is trained on is never judged on."""
_A_FILE = 60


@dataclass(frozen=True)
class Options:
    """Make demonstrations in simulated time, as fast as the processor allows."""

    out: Path = Path("runs/demonstrations")
    """Folder for the files."""
    count: int = 6000
    """How many; one in three moves, the others are only looked at."""
    first_seed: int = FIRST_SEED
    """Of the first one."""
    kind: Literal["mixed", "home", "inside", "look"] = "mixed"
    """Where they begin; mixed: a sixth at home, a sixth inside, the rest are looks."""
    views: tuple[str, ...] = ("View3", "View4")
    """The cameras to take pictures from."""
    workers: int = 0
    """Processes; 0: one for each core."""

    def __post_init__(self) -> None:
        """ValueError for numbers that make no sense."""
        if not 1 <= self.count <= 10_000_000:
            raise ValueError(f"--count must be within 1 and 10000000, not {self.count}")
        if not FIRST_SEED <= self.first_seed <= 2**31 - 10_000_001:
            raise ValueError(f"--first-seed must be at least {FIRST_SEED}: below is for evaluation")
        if not 0 <= self.workers <= 256:
            raise ValueError(f"--workers must be within 0 and 256, not {self.workers}")


def main() -> int:
    """Make what is missing; the exit code."""
    options = cli.parse(Options)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        Demonstrator(options.views).close()  # fails here rather than in every process
    except OSError as error:
        cli.fail(f"--out {options.out}: {error.strerror}")
    except (DriverError, KeyError) as error:
        cli.fail(str(error))
    files = -(-options.count // _A_FILE)
    tasks = []
    for number in range(files):
        path = options.out / f"{number:05d}.npz"
        if not path.exists():
            size = min(_A_FILE, options.count - number * _A_FILE)
            tasks.append((path, options.first_seed + number * _A_FILE, size))
    workers = min(options.workers or os.cpu_count() or 1, max(len(tasks), 1))
    columns = (TextColumn("demonstrations"), BarColumn(), MofNCompleteColumn(), Remaining())
    with (
        multiprocessing.get_context("spawn").Pool(
            workers, _begin, (options.views, options.kind)
        ) as pool,
        Progress(*columns) as progress,
    ):
        bar = progress.add_task("", total=options.count)
        progress.update(bar, completed=options.count - sum(size for *_, size in tasks))
        for made in pool.imap_unordered(_make, tasks):
            progress.update(bar, advance=made)
    print(f"{options.out}: {options.count} demonstrations in {files} files")
    return 0


_mine: list[tuple[Demonstrator, str | None]] = []


def _begin(views: tuple[str, ...], kind: str) -> None:
    _mine.append((Demonstrator(views), None if kind == "mixed" else kind))


def _make(task: tuple[Path, int, int]) -> int:
    path, first, size = task
    demonstrator, kind = _mine[0]
    write_demonstrations(path, [demonstrator.make(s, kind) for s in range(first, first + size)])
    return size


if __name__ == "__main__":
    sys.exit(main())
