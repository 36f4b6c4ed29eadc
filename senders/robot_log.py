"""Writes what was sampled from a robot into a CSV file, from a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from pathlib import Path

from common.program import OptionError
from common.wire import RobotState

__all__ = ["COLUMNS", "RobotLog"]

logger = logging.getLogger("senders.robot_log")

COLUMNS = (
    "origin_timestamp",
    "send_timestamp",
    "force_placeholder",
    *(f"joint_{n}" for n in range(1, 7)),
    *(f"pose_{axis}" for axis in "xyzabr"),
)
_FLUSH_EVERY_S = 0.5
_MOST_WAITING = 60_000


class RobotLog:
    """A CSV file that grows by whole rows twice a second; the control loop never waits for it.

    Rows that a stuck disk makes wait are kept up to a limit, beyond which the oldest are lost.
    """

    def __init__(self, directory: Path) -> None:
        """Make `directory` and a file named after this moment; OptionError when that fails."""
        stem = f"robot_state_{time.strftime('%Y%m%d_%H%M%S')}"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self.path = _unused(directory, stem)
            # Unbuffered: one write of whole rows at a time is all that a kill can interrupt.
            self._file = self.path.open("xb", buffering=0)
            self._file.write((",".join(COLUMNS) + "\n").encode())
        except OSError as error:
            raise OptionError(f"--output-dir {directory}: {error.strerror}") from None
        self._rows: deque[RobotState] = deque(maxlen=_MOST_WAITING)
        self._closing = threading.Event()
        self._failed = False
        self.written = 0
        self._thread = threading.Thread(target=self._write_on, name="robot-log", daemon=True)
        self._thread.start()

    def add(self, state: RobotState) -> None:
        """Take one row; returns at once."""
        self._rows.append(state)

    def close(self) -> None:
        """Write what is left; waits for a slow disk for a few seconds at most."""
        self._closing.set()
        self._thread.join(5.0)

    def _write_on(self) -> None:
        while not self._closing.wait(_FLUSH_EVERY_S):
            self._flush()
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        rows = [self._rows.popleft() for _ in range(len(self._rows))]
        if not rows:
            return
        try:
            self._file.write("".join(map(_line, rows)).encode())
            self.written += len(rows)
            self._failed = False
        except OSError as error:
            if not self._failed:
                logger.error("%s: rows are being lost: %s", self.path, error.strerror)
            self._failed = True


def _unused(directory: Path, stem: str) -> Path:
    path, n = directory / f"{stem}.csv", 2
    while path.exists():
        path, n = directory / f"{stem}_{n}.csv", n + 1
    return path


def _line(state: RobotState) -> str:
    values = (state.force, *state.joints, *state.pose)
    stamps = f"{state.origin_timestamp:.6f},{state.send_timestamp:.6f}"
    return f"{stamps},{','.join(f'{value:.6f}' for value in values)}\n"
