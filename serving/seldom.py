"""Log lines that clients can cause at will, each sort at most once a second."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter

__all__ = ["Seldom"]


class Seldom:
    """Logs for any thread; what is left out is counted, and said with the next line of its sort.

    A line's sort is its text as it stands in the code, without values: there are few of them.
    """

    def __init__(self, logger: logging.Logger, every_s: float = 1.0) -> None:
        """Log each sort at most every `every_s` seconds."""
        self._logger, self._every_s = logger, every_s
        self._due_at: dict[str, float] = {}
        self._left_out: Counter[str] = Counter()
        self._lock = threading.Lock()

    def log(
        self, level: int, line: str, *values: object, cause: BaseException | None = None
    ) -> None:
        """Log `line % values`, with the traceback of `cause` where there is one."""
        now = time.monotonic()
        with self._lock:
            if now < self._due_at.get(line, now):
                self._left_out[line] += 1
                return
            self._due_at[line] = now + self._every_s
            left_out = self._left_out.pop(line, 0)
        if left_out:
            line, values = f"{line}; %d more like it were left out", (*values, left_out)
        self._logger.log(level, line, *values, exc_info=cause)
