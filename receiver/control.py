"""Lines typed while the receiver runs: `task TEXT`, `note TEXT`, `record on`, `record off`."""

from __future__ import annotations

import logging
import threading
from typing import Protocol

from common.typed import typed_lines
from receiver.threads import Latest

__all__ = ["listen"]

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


def _obey(line: str, task: Latest[str], note: Latest[str], recorder: Switch) -> None:
    word, _, text = line.strip().partition(" ")
    text = text.strip()
    if not word:
        return
    if word == "record" and text in ("on", "off"):
        (recorder.start if text == "on" else recorder.stop)()
    elif word not in ("task", "note") or not text:
        known = "`task TEXT` changes the instruction, `note TEXT` is shown and logged, "
        known += "`record on` and `record off` switch the recording"
        logger.warning("not understood: %.60r; %s", line.strip(), known)
    elif len(text) > _LONGEST:
        logger.warning("a line of over %d characters is refused", _LONGEST)
    elif word == "note":
        shown = "".join(c if c.isprintable() else "?" for c in text)
        note.put(shown)
        logger.info("[NOTE] %s", shown)
    else:
        task.put(text)
        logger.info("task is now: %s", text)


def listen(task: Latest[str], note: Latest[str], recorder: Switch, stop: threading.Event) -> None:
    """Obey lines from stdin until it ends or `stop` is set."""
    for line in typed_lines(stop):
        _obey(line.decode("utf-8", "replace"), task, note, recorder)
