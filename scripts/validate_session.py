"""Looks at recorded sessions and says whether they can be used.

python scripts/validate_session.py dataset/async_inference_20261009_103000
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli

if __name__ == "__main__":
    cli.needs()

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.session import SessionError, find_sessions
from common.session.checks import check_session
from common.session.findings import SessionReport, StreamReport

_STYLE = {"ok": "green", "ok with remarks": "yellow", "broken": "red"}


_WIDTH = 150


@dataclass(frozen=True)
class ValidateOptions:
    """Check recorded sessions: counts, rates, gaps, clocks, pictures, numbers. Changes nothing.

    Ends with 0 when all can be used, with 1 when one is broken.
    """

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Sessions' folders, or folders of sessions."""
    quick: bool = False
    """Open some 200 pictures a view and a tenth of the A-scans instead of all."""
    json: Path | None = None
    """File to write all of it to."""

    def __post_init__(self) -> None:
        """ValueError without a path."""
        if not self.paths:
            raise ValueError("give a session's folder, or a folder of sessions")


def main() -> int:
    """Check each session, print the table; the exit code."""
    options = cli.parse(ValidateOptions)
    # Where nobody looks at a terminal's width, a session has a row to itself.
    out = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    folders = _folders(options.paths)
    reports: list[SessionReport] = []
    for number, folder in enumerate(folders, 1):
        with out.status(f"{number} of {len(folders)}: {folder.name}"):
            reports.append(check_session(folder, options.quick))
    out.print(_table(reports))
    for report in reports:
        for finding in report.findings:
            style = "red" if finding.broken else "yellow"
            line = f"{report.folder.name}: {finding.stream}: {finding.text}"
            out.print(Text(line, style), soft_wrap=True)
    if options.json is not None:
        text = json.dumps([report.to_json() for report in reports], indent=1)
        try:
            options.json.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            cli.fail(f"--json {options.json}: {error.strerror}", 1)
    return 1 if any(report.verdict == "broken" for report in reports) else 0


def _folders(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        try:
            there = find_sessions(path)
        except SessionError as error:
            cli.fail(str(error))
        if not there:
            cli.fail(f"{path}: no session in it")
        found += there
    return found


def _table(reports: Sequence[SessionReport]) -> Table:
    table = Table(title="sessions", title_style="bold")
    table.add_column("session", overflow="fold")
    table.add_column("verdict")
    for name in ("seconds", "covered", "pictures", "states", "samples", "longest gaps", "actions"):
        table.add_column(name, justify="right")
    for report in reports:
        views = [s for s in report.streams if s.stream not in ("robot", "sensor")]
        robot = [s for s in report.streams if s.stream == "robot"]
        sensor = [s for s in report.streams if s.stream == "sensor"]
        gaps = [
            max((s.longest_gap_s for s in kind), default=0.0) for kind in (views, robot, sensor)
        ]
        table.add_row(
            report.folder.name,
            Text(report.verdict, _STYLE[report.verdict]),
            f"{report.seconds:.1f}",
            f"{max(report.covered_s, 0.0):.1f}",
            _counted(views) + (f" in {len(views)} views" if views else ""),
            _counted(robot),
            _counted(sensor),
            " / ".join(f"{1000 * gap:.0f}" for gap in gaps) + " ms",
            str(report.actions),
        )
    return table


def _counted(streams: Sequence[StreamReport]) -> str:
    """How many, and at which rate (a view's: the slowest)."""
    if not streams:
        return "–"
    slowest = min(stream.rate_hz for stream in streams)
    return f"{sum(stream.count for stream in streams):,} at {slowest:.1f} Hz"


if __name__ == "__main__":
    sys.exit(main())
