"""Takes recorded sessions elsewhere: MCAP for Foxglove and Rerun, or a LeRobot dataset.

python scripts/export_session.py async_inference_20260101_120000 --format mcap --out session.mcap
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli

if __name__ == "__main__":
    cli.needs("export")

import tyro
from rich.console import Console
from rich.progress import Progress

from common.session import Session, SessionError, find_sessions
from scripts.lerobot_export import LeRobotOptions


@dataclass(frozen=True)
class ExportOptions:
    """Export recorded sessions. Nothing lies under its final name before it is whole."""

    sessions: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SESSION")]
    """Session folders, or folders that hold sessions."""
    format: Literal["mcap", "lerobot"]
    """mcap: a file a session, for Foxglove and Rerun. lerobot: one LeRobot dataset of all."""
    out: Path
    """The file to write; a folder for LeRobot or for several MCAP files."""
    overwrite: bool = False
    """Replace what is there."""
    compression: Literal["none", "lz4", "zstd"] = "none"
    """Of MCAP files. Pictures and A-scans hardly shrink: none is the fastest to write and read."""
    lerobot: LeRobotOptions = field(default_factory=LeRobotOptions)
    """Of LeRobot datasets."""


def main() -> int:
    """Export; the exit code: 0, 2 for what cannot be exported as asked, 1 for a failure."""
    options = cli.parse(ExportOptions)
    out, begun = Console(highlight=False), time.monotonic()
    try:
        sessions = _open(options.sessions)
        with Progress(console=out, transient=True, disable=not out.is_terminal) as bar:
            task = bar.add_task(options.format, total=1.0)

            def progress(share: float, what: str) -> None:
                bar.update(task, description=what, completed=share)

            written = _export(sessions, options, progress)
    except SessionError as error:
        cli.fail(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        cli.fail(f"{where}{error.strerror or error}", 1)
    except KeyboardInterrupt:
        cli.fail("stopped; nothing is left of what was not whole", 130)
    took_s, size = time.monotonic() - begun, _size(written, sessions)
    rate = size / 1e6 / max(took_s, 1e-3)
    out.print(f"{written}: {size / 1e6:.1f} MB in {took_s:.1f} s ({rate:.0f} MB/s)", markup=False)
    return 0


def _open(paths: Sequence[Path]) -> list[Session]:
    """The sessions named, every one finished."""
    if not paths:
        raise SessionError("name the session to export: a folder async_inference_…")
    folders = [folder for path in paths for folder in find_sessions(path)]
    if not folders:
        raise SessionError(f"no session in {', '.join(map(str, paths))}")
    sessions = [Session(folder) for folder in folders]
    for session in sessions:
        if session.unfinished:
            raise SessionError(
                f"{session.folder}: still growing, or its receiver was killed; in that case run "
                "scripts/recover_session.py on it"
            )
    return sessions


def _export(
    sessions: Sequence[Session], options: ExportOptions, progress: Callable[[float, str], None]
) -> Path:
    if options.format == "lerobot":
        from scripts import lerobot_export

        with _moved_away(options.out, options.overwrite):
            return lerobot_export.export(sessions, options.out, options.lerobot, progress)
    try:
        from scripts import mcap_export
    except ImportError as error:
        raise SessionError(f"MCAP needs packages ({error}): pip install '.[export]'") from None
    return mcap_export.export(
        sessions,
        options.out,
        compression=options.compression,
        overwrite=options.overwrite,
        progress=progress,
    )


@contextlib.contextmanager
def _moved_away(dataset: Path, overwrite: bool) -> Iterator[None]:
    """Put a dataset that is to be replaced aside, and back when its replacement fails."""
    if not (dataset.exists() and overwrite):
        yield
        return
    if not (dataset / "meta" / "info.json").is_file():
        raise SessionError(f"{dataset}: no LeRobot dataset, so it is not replaced")
    aside = dataset.with_name(f".{dataset.name}.old")
    dataset.replace(aside)
    try:
        yield
    except BaseException:
        aside.replace(dataset)
        raise
    shutil.rmtree(aside)


def _size(written: Path, sessions: Sequence[Session]) -> int:
    """Bytes of what was written."""
    if written.is_file():
        return written.stat().st_size
    files = [written / f"{session.folder.resolve().name}.mcap" for session in sessions]
    found = [file for file in files if file.is_file()] or written.rglob("*")
    return sum(file.stat().st_size for file in found if file.is_file())


if __name__ == "__main__":
    sys.exit(main())
