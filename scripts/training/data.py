"""The data that is trained on: files of demonstrations, and the sessions that went well."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from common.session import Session, find_sessions
from scripts.training.outcomes import went_well
from scripts.training.recorded import from_session
from scripts.training.traces import Trace, from_demonstration
from sim.demonstration_files import read_demonstrations

__all__ = ["read_traces"]

log = logging.getLogger(__name__)


def read_traces(folders: Sequence[Path], views: tuple[str, ...]) -> list[Trace]:
    """All traces of some folders: files of demonstrations, a session, or sessions.

    Sessions that did not go well are left out, with a warning.

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
        well = [path for path in sessions if went_well(path)]
        if sessions and not well:
            raise ValueError(f"{folder}: no session in it went well (docs/training.md)")
        if len(well) < len(sessions):
            left_out = len(sessions) - len(well)
            log.warning("%s: %d of %d sessions left out", folder, left_out, len(sessions))
        traces += made
        traces += [from_session(Session(path), views) for path in well]
    return traces


def _demonstrated(folder: Path, views: tuple[str, ...]) -> Iterator[Trace]:
    for path in sorted(folder.glob("*.npz")):
        for made in read_demonstrations(path):
            if missing := [view for view in views if view not in made.pictures]:
                raise ValueError(f"{path}: no pictures of {', '.join(missing)}")
            yield from_demonstration(made)
