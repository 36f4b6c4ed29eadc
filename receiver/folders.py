"""The session folder of each episode, for everyone who writes into it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

from common.session import layout

__all__ = ["SessionFolder", "SessionFolders"]

_MOST = 10_000


@dataclass(frozen=True, slots=True)
class SessionFolder:
    """A folder and the stamp in its files' names."""

    path: Path
    stamp: str


class SessionFolders:
    """Makes a folder for each episode the first time that somebody writes into it.

    For the threads that write, not for the loops.
    """

    def __init__(self, output_dir: Path) -> None:
        """Make folders in `output_dir`; OSError when nothing can be written there."""
        output_dir.mkdir(parents=True, exist_ok=True)
        probe = output_dir / f".dualrate_{time.time_ns()}"
        probe.touch()
        probe.unlink()
        self.output_dir = output_dir
        self.made: list[Path] = []
        self._lock = threading.Lock()
        self._of: dict[int, SessionFolder] = {}

    def of_episode(self, number: int, started_at: float) -> SessionFolder:
        """The folder of episode `number`; OSError when it cannot be made."""
        with self._lock:
            if number not in self._of:
                self._of[number] = self._make(layout.stamp_of(started_at))
            return self._of[number]

    def _make(self, stamp: str) -> SessionFolder:
        name = layout.folder_name(stamp)
        for again in range(1, _MOST):
            path = self.output_dir / (name if again == 1 else f"{name}_{again}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            self.made.append(path)
            return SessionFolder(path, stamp)
        raise FileExistsError(17, "too many sessions of one second", str(self.output_dir))
