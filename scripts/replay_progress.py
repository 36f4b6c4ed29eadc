"""One line that says where a replay is."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from common.clock import wall
from scripts.processes import Program
from senders.replaying import BETWEEN_ROUNDS_S

__all__ = ["POLL_S", "Played", "Progress"]

POLL_S = 0.25
_PLAIN_EVERY_S = 5.0
_GRACE_S = 10.0
_TAIL_BYTES = 1 << 16
_READY = re.compile(r"^\[(ROBOT|SENSOR)\] driver |^\[CAMERA\] \[", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Played:
    """What is played: session seconds, readings of each stream, and how."""

    seconds: float
    counts: dict[str, int]
    speed: float
    loop: bool


class Progress:
    """One line that says where the replay is; on a terminal always the same line."""

    def __init__(
        self,
        played: Played,
        start_at: float,
        programs: Sequence[Program],
        out: Console,
    ) -> None:
        """Say where `programs` (`robot sender` …) are; they begin at `start_at` (UNIX)."""
        self._played, self._programs = played, programs
        self._start, self._out = time.monotonic() + (start_at - wall()), out
        self._asked = self._shown = False
        self._next = 0.0

    def show(self) -> None:
        """Say it, if it is time to."""
        moment = time.monotonic()
        if not self._asked and moment >= self._start:
            self._asked = True
            self._check_ready()
        if moment < self._next:
            return
        self._next = moment + (POLL_S if self._out.is_terminal else _PLAIN_EVERY_S)
        # Blanks wipe out what a longer line left.
        line = self._line(moment)[: self._out.width - 1].ljust(self._out.width - 1)
        if self._out.is_terminal:
            self._out.print(line, end="\r", markup=False)
        else:
            self._out.print(line.rstrip(), markup=False)
        self._shown = True

    @property
    def overdue(self) -> bool:
        """Whether all should have been over for a good while."""
        length_s = (self._played.seconds + BETWEEN_ROUNDS_S) / self._played.speed
        return not self._played.loop and time.monotonic() > self._start + length_s + _GRACE_S

    def say_overdue(self) -> None:
        """Say who still has something to send: pictures wait while no receiver takes them."""
        left = [p.name for p in self._programs if p.process.poll() is None]
        self._out.print(
            f"\n{', '.join(left)}: not over in time, stopped; is the receiver running?",
            markup=False,
        )

    def end(self) -> None:
        """Leave the line, and say what was sent."""
        if self._shown and self._out.is_terminal:
            self._out.print()
        self._out.print(f"sent: {self.sent()}", markup=False)

    def _check_ready(self) -> None:
        late = [p.name for p in self._programs if not _READY.search(_log(p))]
        if late:
            self._out.print(
                f"{', '.join(late)}: not ready in time, what was due comes late; --lead "
                "gives them more",
                markup=False,
            )

    def _line(self, moment: float) -> str:
        if moment < self._start:
            return f"begins in {self._start - moment:.0f} s"
        played_s = (moment - self._start) * self._played.speed
        seconds, round_ = self._played.seconds, 0
        if self._played.loop and seconds > 0:
            round_, played_s = int(played_s // seconds), played_s % seconds
        line = f"{min(played_s, seconds):.1f} of {seconds:.1f} s"
        if self._played.loop:
            line += f", round {round_ + 1}"
        return f"{line} | {self.sent()}"

    def sent(self) -> str:
        """What each sender said that it sent, at its last status (every 5 s)."""
        parts = []
        for program in self._programs:
            name = program.name.partition(" ")[0]
            parts.append(f"{name} {_sent(_log(program))} of {self._played.counts[name]:,}")
        return ", ".join(parts)


def _log(program: Program) -> str:
    """The end of what a program said."""
    if program.log is None:
        return ""
    with program.log.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(file.tell() - _TAIL_BYTES, 0))
        return file.read().decode("utf-8", "replace")


def _sent(log: str) -> str:
    """The count in the last status line, the cameras' summed up; a dash before the first."""
    status = re.findall(r"^\[(?:ROBOT|CAMERA|SENSOR)\].* sent \d.*$", log, re.MULTILINE)
    if not status:
        return "–"
    total = sum(int(count) for count in re.findall(r" sent (\d+)", status[-1]))
    return f"{total:,}"
