"""Shows the score of a rig that judges its episodes in the receiver that drives it."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from pathlib import Path
from typing import IO, Any

__all__ = ["Scoreboard", "read_score"]

_EVERY_S = 0.2


def read_score(path: Path) -> list[dict[str, Any]]:
    """The episodes judged so far; a line that is still being written is left for the next time."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


class Scoreboard:
    """Tells a receiver how many episodes succeeded, by a note on its standard input.

    What a person types goes there too, since the receiver has no terminal of its own then.
    """

    def __init__(self, score: Path, to: IO[bytes]) -> None:
        """Watch the file `score`, which need not be there yet; `to` is the receiver's input."""
        self._score, self._to = score, to
        self._turn = threading.Lock()
        self._stop = threading.Event()
        self._watch = threading.Thread(target=self._watching, name="scoreboard", daemon=True)
        self._watch.start()
        # Ends with the program only: nothing wakes a thread that waits for a terminal.
        threading.Thread(target=self._typing, name="typing", daemon=True).start()

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._watch.join()

    def _watching(self) -> None:
        told = 0
        while not self._stop.wait(_EVERY_S):
            episodes = read_score(self._score)
            if len(episodes) > told:
                told = len(episodes)
                self._tell(f"note {_said(episodes)}\n".encode())

    def _typing(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # no standard input, or closed under us
            for line in sys.stdin.buffer:
                self._tell(line)

    def _tell(self, line: bytes) -> None:
        with self._turn, contextlib.suppress(OSError, ValueError):  # the receiver has ended
            self._to.write(line)
            self._to.flush()


def _said(episodes: list[dict[str, Any]]) -> str:
    succeeded = sum(entry["success"] for entry in episodes)
    last = episodes[-1]
    how = (
        f"success after {last['took_s']:.1f} s" if last["success"] else f"failed, {last['reason']}"
    )
    if last["rms_mm"] is not None:
        how += f", {last['rms_mm']:.2f} mm RMS from the wanted distance"
    return f"{succeeded} of {len(episodes)} episodes succeeded; the last one: {how}"
