"""The data that is trained on: files of demonstrations, and the sessions that went well."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.session import Session, find_sessions
from scripts.training.outcomes import went_well
from scripts.training.recorded import TooShort, from_session
from scripts.training.traces import Trace, from_demonstration
from sim.demonstration_files import read_demonstrations

__all__ = ["read_traces"]

log = logging.getLogger(__name__)


def read_traces(folders: Sequence[Path], views: tuple[str, ...]) -> list[Trace]:
    """All traces of some folders: files of demonstrations, a session, or sessions.

    Sessions that did not go well, or of less than a second, are left out with a warning.

    Raises:
        SessionError, ValueError, OSError: with one line, for what cannot be used.
    """
    traces: list[Trace] = []
    for folder in folders:
        sessions = find_sessions(folder)
        # A session's samples are an npz too.
        made = [] if folder in sessions else list(_demonstrated(folder, views))
        if not made and not sessions:
            raise ValueError(f"{folder}: neither demonstrations (*.npz) nor sessions in it")
        seen = [trace for path in sessions if (trace := _recorded(path, views))]
        if sessions and not seen:
            raise ValueError(f"{folder}: no session in it is an example (docs/training.md)")
        if len(seen) < len(sessions):
            log.warning("%s: %d of %d sessions used", folder, len(seen), len(sessions))
        traces += made + seen
    return traces


def _recorded(path: Path, views: tuple[str, ...]) -> Trace | None:
    """A session's trace; None where it is no example."""
    if not went_well(path):
        log.warning("%s: left out, it did not go well", path)
        return None
    try:
        return from_session(Session(path), views)
    except TooShort as short:
        log.warning("%s; left out", short)
        return None


def _demonstrated(folder: Path, views: tuple[str, ...]) -> Iterator[Trace]:
    for path in sorted(folder.glob("*.npz")):
        for made in read_demonstrations(path):
            if missing := [view for view in views if view not in made.pictures]:
                raise ValueError(f"{path}: no pictures of {', '.join(missing)}")
            yield from_demonstration(made)
