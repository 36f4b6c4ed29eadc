"""Finishes recorded sessions whose receiver was killed.

python scripts/recover_session.py async_inference_20260101_120000
"""

from __future__ import annotations

import sys
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
from rich.progress import Progress

from common.session import SessionError, find_sessions
from common.session.recovery import recover


@dataclass(frozen=True)
class RecoverOptions:
    """Turn what a killed receiver left into a session's normal files. Nothing is thrown away."""

    paths: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """Session folders, or folders that hold sessions."""


def main() -> int:
    """Recover each session; the exit code (0: all can be read, 1: one cannot be mended)."""
    options = cli.parse(RecoverOptions)
    if not options.paths:
        cli.fail("name the session to recover: a folder async_inference_…, or one that holds some")
    out, failed = Console(highlight=False), False
    try:
        folders = [folder for path in options.paths for folder in find_sessions(path)]
    except SessionError as error:
        cli.fail(str(error))
    if not folders:
        cli.fail(f"no session in {', '.join(map(str, options.paths))}")
    for folder in folders:
        try:
            with Progress(console=out, transient=True) as bar:
                task = bar.add_task(folder.name, total=1.0)
                done = recover(
                    folder,
                    lambda what, part, task=task: bar.update(  # type: ignore[misc]
                        task, description=what, completed=part
                    ),
                )
        except SessionError as error:
            failed = True
            out.print(f"{folder}: [red]cannot be recovered:[/red] {error}")
            continue
        out.print(f"{folder}: {'recovered' if done else 'nothing to do'}")
        for line in done:
            out.print(f"  {line}", markup=False)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
