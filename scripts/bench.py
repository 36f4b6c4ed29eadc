"""Runs every benchmark in turn and prints one table: our figure, the other side's, the goal.

python scripts/bench.py
python scripts/bench.py --only clocks freshness
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli

if __name__ == "__main__":
    cli.needs("receiver", "sim", "serving")

from rich.table import Table

from scripts.benches import SOAK, SOAK_GOAL, Comparison, add_rows, read_rows, wide_console
from scripts.loaded_receiver import Machine
from scripts.processes import ROOT

BENCHES = (
    "clocks",
    "ingest",
    "lateness",
    "fast_parts",
    "slow_part",
    "freshness",
    "scale",
    "serving",
)


@dataclass(frozen=True)
class BenchOptions:
    """Measure everything that the project promises, both sides in one run each."""

    only: tuple[str, ...] = ()
    """Some of them: clocks ingest lateness fast_parts slow_part freshness scale serving."""
    plots: Path = Path("runs/bench")
    """Folder for the pictures."""

    def __post_init__(self) -> None:
        """ValueError for a name that is none."""
        unknown = sorted(set(self.only) - set(BENCHES))
        if unknown:
            raise ValueError(f"--only {' '.join(unknown)}: choose from {', '.join(BENCHES)}")


Section: TypeAlias = tuple[str, list[Comparison]]
"""A title and its rows."""


def _command(name: str, plots: Path, output: Path) -> list[str]:
    command = [sys.executable, f"scripts/bench_{name}.py", "--output.json", str(output)]
    command += ["--output.plots", str(plots)]
    if name == "slow_part":
        import torch

        # What is promised of the slow part is promised of a GPU.
        command += ["--full"] * torch.cuda.is_available()
    return command


def _run(name: str, plots: Path, folder: Path) -> Section:
    """One benchmark in a process of its own; a row that says so where it fails."""
    output = folder / f"{name}.json"
    command = _command(name, plots, output)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if output.exists() and done.returncode == 0:
        return read_rows(output)
    words = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
    return name, [Comparison(f"ended with code {done.returncode}: {' '.join(words)}", "failed")]


def soaked() -> Section:
    """What the last `make soak` found: an hour is too long for this."""
    if SOAK.exists():
        return read_rows(SOAK)
    row = Comparison("1 h at 10 Hz under full load", "not measured: make soak", goal=SOAK_GOAL)
    return "the fast loop over hours", [row]


def main() -> int:
    """Run the benchmarks; 1 when one of them failed, whether or not goals are met."""
    options = cli.parse(BenchOptions)
    out, failed = wide_console(), False
    chosen = [name for name in BENCHES if name in options.only or not options.only]
    plots = options.plots.resolve()
    table = Table(title="dualrate against how rigs work today")
    add_rows(table, [])
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            begun, machine = time.monotonic(), Machine()
            with out.status(f"{name} …"):
                sections = [_run(name, plots, Path(folder))]
            failed = failed or any(row.ours == "failed" for _, rows in sections for row in rows)
            out.print(f"{name}: {time.monotonic() - begun:.0f} s, {machine.line()}")
            sections += [soaked()] if name == "lateness" else []
            for title, rows in sections:
                table.add_section()
                table.add_row(f"[bold]{title}")
                add_rows(table, rows)
    out.print(table)
    out.print(f"pictures in {options.plots}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
