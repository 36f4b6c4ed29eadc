"""Lines that a person types while a program runs."""

from __future__ import annotations

import logging
import os
import select
import sys
import threading
from collections.abc import Iterator

__all__ = ["LONGEST_BYTES", "RESUME", "listen_for_leave", "typed_lines"]

logger = logging.getLogger("typed")

LONGEST_BYTES = 16_384
"""What is kept of a line; a person types less, and a program's output by mistake fills nothing."""

RESUME = "resume"
"""What is typed, into whichever program moves the robot, once it may go on after a stop."""

_POLL_S = 0.25
_READ_BYTES = 4096


def typed_lines(stop: threading.Event) -> Iterator[bytes]:
    """Lines from standard input, without their ends, until it ends or `stop` is set.

    Of a longer line the first `LONGEST_BYTES` are given. Notices `stop` within 250 ms. Without a
    standard input, or once its terminal has gone away, there are no (more) lines.
    """
    # Not through sys.stdin.buffer: its lock, held by a thread that waits for a terminal, makes the
    # interpreter abort as the program ends.
    try:
        source = sys.stdin.fileno()
    except (AttributeError, ValueError, OSError):
        return
    pending = b""
    while not stop.is_set():
        try:
            if not select.select([source], [], [], _POLL_S)[0]:
                continue
            if _typed_for_others(source):
                stop.wait(_POLL_S)
                continue
            data = os.read(source, _READ_BYTES)
        except (OSError, ValueError):
            return
        if not data:
            if pending:
                yield pending
            return
        *whole, pending = (pending + data).split(b"\n")
        pending = pending[:LONGEST_BYTES]
        for line in whole:
            yield line[:LONGEST_BYTES]


def listen_for_leave(stop: threading.Event, resumed: threading.Event) -> None:
    """Set `resumed` whenever `resume` is typed, until `stop`."""
    for line in typed_lines(stop):
        if line.strip() == RESUME.encode():
            resumed.set()
        elif line.strip():
            said = line.decode("utf-8", "replace").strip()
            logger.warning("not understood: %.60r; `%s` ends a stop", said, RESUME)


def _typed_for_others(source: int) -> bool:
    """Whether this program runs behind another in its terminal (`… &`).

    To read then would suspend the whole program (SIGTTIN), with a robot in motion.
    """
    try:
        return os.tcgetpgrp(source) != os.getpgrp()
    except OSError:  # no terminal, or not the one that this program is controlled from
        return False
