"""What a simulated arm was told: the newest commands in memory, all of them in a CSV file."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TextIO

import numpy as np
from numpy.typing import NDArray

from serving.body import BodyError

__all__ = ["Command", "CommandRecord"]

logger = logging.getLogger("serving.simulated")

_MOST_KEPT = 20_000
_MOST_LINES = 2_000_000


@dataclass(frozen=True, slots=True)
class Command:
    """One thing that the arm was told.

    Attributes:
        at: `time.monotonic()` seconds.
        target: (A,) as sent; for a hold where the joints were.
        measured: (A,) where the joints were.
        is_hold: whether it was told to stay.
    """

    at: float
    target: NDArray[np.float64]
    measured: NDArray[np.float64]
    is_hold: bool


@dataclass(slots=True)
class CommandRecord:
    """The commands: the newest 20,000 in memory, all of them in a file where one is named.

    Attributes:
        path: the file, empty for none; what was in it is replaced.
        names: of the A values of a target.
        newest: the newest commands, oldest first.
    """

    path: str
    names: tuple[str, ...]
    newest: deque[Command] = field(default_factory=lambda: deque(maxlen=_MOST_KEPT))
    file: TextIO | None = None
    lines: int = 0

    def open(self) -> None:
        """Open the file; BodyError where it cannot be written."""
        if not self.path:
            return
        try:
            mode: Literal["a", "w"] = "a" if self.lines else "w"
            self.file = Path(self.path).open(mode, encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise BodyError(f"--robot.record {self.path}: {error.strerror}") from None
        if not self.lines:
            columns = [f"target {name}" for name in self.names]
            columns += [f"measured {name}" for name in self.names]
            self.file.write(",".join(["monotonic_s", "command", *columns]) + "\n")

    def add(self, command: Command) -> None:
        """Write one down."""
        self.newest.append(command)
        if self.file is None or self.lines >= _MOST_LINES:
            return
        numbers = [f"{x:.9g}" for x in (*command.target.tolist(), *command.measured.tolist())]
        what = "hold" if command.is_hold else "move"
        self.file.write(",".join([f"{command.at:.6f}", what, *numbers]) + "\n")
        self.lines += 1
        if self.lines == _MOST_LINES:
            logger.warning("%s has %d lines: no more are written", self.path, self.lines)

    def close(self) -> None:
        """Close the file; it can be opened again, and goes on."""
        if self.file is not None:
            self.file.close()
            self.file = None
