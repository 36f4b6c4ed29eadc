"""What the benchmarks share: a row of the table, its printing, and its way to `make bench`.

Every benchmark is a program of its own (`python scripts/bench_NAME.py`), so that none inherits
another's threads or caches. Each measures both sides in one run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scripts.processes import ROOT

__all__ = ["SOAK", "SOAK_GOAL", "BenchOutput", "Comparison", "add_rows", "read_rows", "report"]
__all__ += ["show", "wide_console"]

SOAK, SOAK_GOAL = ROOT / "runs" / "soak.json", "no miss in an hour"
"""Where `make soak` leaves its row, and what is asked of it."""
_FILE_WIDTH = 150


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row: our figure, the other side's, and how many times better ours is.

    Attributes:
        name: what was measured.
        ours: our figure with its unit, or "not measured".
        theirs: the other side's.
        ratio: times better; None where there is nothing to divide.
        goal: in words; empty where there is none.
        met: whether the goal is met; None where it was not measured or there is none.
    """

    name: str
    ours: str
    theirs: str = ""
    ratio: float | None = None
    goal: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class BenchOutput:
    """Where a benchmark's results go besides the terminal."""

    json: Path | None = None
    """Write the rows here, for `make bench`."""
    plots: Path = Path("runs/bench")
    """Folder for pictures."""


def add_rows(table: Table, rows: Sequence[Comparison]) -> None:
    """Add rows to a table, and the columns where it has none yet."""
    if not table.columns:
        for name in ("", "ours", "theirs", "ratio", "goal", ""):
            table.add_column(
                name, justify="right" if name in ("ours", "theirs", "ratio") else "left"
            )
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}x"
        mark = {None: "", True: "[green]✓[/green]", False: "[red]✗[/red]"}[row.met]
        table.add_row(escape(row.name), row.ours, row.theirs, ratio, row.goal, mark)


def wide_console() -> Console:
    """A console; into a file it is wide enough for the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=_FILE_WIDTH)


def show(title: str, rows: Sequence[Comparison]) -> None:
    """Print rows as a table."""
    table = Table(title=title)
    add_rows(table, rows)
    wide_console().print(table)


def report(title: str, rows: Sequence[Comparison], output: BenchOutput) -> None:
    """Print rows and, where asked for, write them as JSON."""
    show(title, rows)
    if output.json is not None:
        output.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"title": title, "rows": [asdict(row) for row in rows]}
        output.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_rows(path: Path) -> tuple[str, list[Comparison]]:
    """The title and rows that `report` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["title"], [Comparison(**row) for row in content["rows"]]
