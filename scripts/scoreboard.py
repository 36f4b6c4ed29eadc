"""Shows the score of a rig that judges its episodes in the receiver that drives it."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path
from typing import IO, Any

from common.typed import typed_lines

__all__ = ["Scoreboard", "read_score"]

_EVERY_S = 0.2
_TYPING_ENDS_S = 2.0
_FIGURES = {"number", "success", "took_s", "reason", "rms_mm"}


def read_score(path: Path) -> list[dict[str, Any]]:
    """The episodes judged so far; a line that is still being written is left for the next time.

    Empty where there is no such file. ValueError, one line, for one that is no score; OSError.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [_entry(path, number, line) for number, line in enumerate(lines, 1)]


def _entry(path: Path, number: int, line: str) -> dict[str, Any]:
    entry: Any = None
    with contextlib.suppress(ValueError):
        entry = json.loads(line)
    whole = isinstance(entry, dict) and set(entry) >= _FIGURES
    if not whole or not isinstance(entry["number"], int) or not isinstance(entry["success"], bool):
        raise ValueError(f"{path}: line {number} is no judged episode: {line[:60]!r}")
    return dict(entry)


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
        self._type = threading.Thread(target=self._typing, name="typing", daemon=True)
        self._watch.start()
        self._type.start()

    def close(self) -> None:
        """Stop watching and passing on; safe to call twice."""
        self._stop.set()
        self._watch.join()
        # Not for ever: another program may take from the terminal what this one was to read.
        self._type.join(_TYPING_ENDS_S)

    def _watching(self) -> None:
        told = 0
        while not self._stop.wait(_EVERY_S):
            try:
                episodes = read_score(self._score)
            except (OSError, ValueError) as error:
                self._tell(f"note no score: {error}\n".encode())
                return
            if len(episodes) > told:
                told = len(episodes)
                self._tell(f"note {_said(episodes)}\n".encode())

    def _typing(self) -> None:
        for line in typed_lines(self._stop):
            self._tell(line + b"\n")

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
