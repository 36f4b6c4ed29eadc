"""Lines typed while the receiver runs: `task TEXT`, `note TEXT`, `record on|off`, `resume`."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Protocol

from common.typed import RESUME, typed_lines
from receiver.threads import Latest

__all__ = ["Heard", "listen"]

logger = logging.getLogger(__name__)

_LONGEST = 2000


class Switch(Protocol):
    """What can be switched on and off."""

    def start(self) -> None:
        """On."""
        ...

    def stop(self) -> None:
        """Off."""
        ...


@dataclass(frozen=True, slots=True)
class Heard:
    """Where what is typed goes to.

    Attributes:
        task: the instruction.
        note: what is shown.
        resumed: a value whenever a latched hold is to be released.
        recorder: what `record on` and `record off` switch.
    """

    task: Latest[str]
    note: Latest[str]
    resumed: Latest[str]
    recorder: Switch


def _obey(line: str, heard: Heard) -> None:
    word, _, text = line.strip().partition(" ")
    text = text.strip()
    if not word:
        return
    if word == "record" and text in ("on", "off"):
        (heard.recorder.start if text == "on" else heard.recorder.stop)()
    elif word == RESUME and not text:
        heard.resumed.put(RESUME)
    elif word not in ("task", "note") or not text:
        known = "`task TEXT` changes the instruction, `note TEXT` is shown and logged, "
        known += "`record on` and `record off` switch the recording, "
        known += f"`{RESUME}` releases a latched hold"
        logger.warning("not understood: %.60r; %s", line.strip(), known)
    elif len(text) > _LONGEST:
        logger.warning("a line of over %d characters is refused", _LONGEST)
    elif word == "note":
        shown = "".join(c if c.isprintable() else "?" for c in text)
        heard.note.put(shown)
        logger.info("[NOTE] %s", shown)
    else:
        heard.task.put(text)
        logger.info("task is now: %s", text)


def listen(heard: Heard, stop: threading.Event) -> None:
    """Obey lines from stdin until it ends or `stop` is set."""
    for line in typed_lines(stop):
        _obey(line.decode("utf-8", "replace"), heard)
