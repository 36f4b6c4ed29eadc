"""Everything the receiver says, through a queue: no loop ever waits for a terminal or a pipe."""

from __future__ import annotations

import logging
import logging.handlers
import queue
import sys
from collections import deque

__all__ = ["Console"]

_QUEUE = 2000
_KEPT = 8


class _DroppingHandler(logging.handlers.QueueHandler):
    """Queues records; when whoever reads the output has stopped, lines are dropped and counted."""

    def __init__(self, lines: queue.Queue[logging.LogRecord]) -> None:
        super().__init__(lines)
        self.dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1


class _PlainFormatter(logging.Formatter):
    """Information as it is, so that log readers find their lines; the rest with its level."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno == logging.INFO else f"{record.levelname}: {text}"


class _Recent(logging.Handler):
    """Keeps the last few lines for the live view instead of printing them."""

    def __init__(self, kept: deque[str]) -> None:
        super().__init__()
        self._kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        # The live view shows the loops' state itself; what it cannot show is what happened.
        if not line.startswith(("[ACTION", "[VL Update", "[WAIT]", "---")):
            self._kept.append(line)


class Console:
    """Sets logging up for a program's run; lines go to stdout, or to the live view's tail."""

    def __init__(self, live: bool) -> None:
        """`live`: keep the newest lines in `recent` for a view that draws the whole screen."""
        self.recent: deque[str] = deque(maxlen=_KEPT)
        lines: queue.Queue[logging.LogRecord] = queue.Queue(_QUEUE)
        output = _Recent(self.recent) if live else logging.StreamHandler(sys.stdout)
        output.setFormatter(_PlainFormatter("%(message)s"))
        self._handler = _DroppingHandler(lines)
        self._listener = logging.handlers.QueueListener(lines, output)
        root = logging.getLogger()
        root.handlers = [self._handler]
        root.setLevel(logging.INFO)
        # Libraries may warn; what they inform of is not the receiver's to say.
        for noisy in ("transformers", "torch", "matplotlib", "asyncio", "urllib3", "httpx"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        # A reader of stdout that goes away must not fill stderr with tracebacks.
        logging.raiseExceptions = False
        self._listener.start()

    def also(self, handler: logging.Handler) -> None:
        """Give the lines to this handler too, in the thread that writes them."""
        self._listener.handlers = (*self._listener.handlers, handler)

    @property
    def dropped(self) -> int:
        """Lines that were dropped because nobody took them."""
        return self._handler.dropped

    def close(self) -> None:
        """Say what is queued and go back to printing directly."""
        self._listener.stop()
        root = logging.getLogger()
        root.handlers = [logging.StreamHandler(sys.stdout)]
        root.handlers[0].setFormatter(_PlainFormatter("%(message)s"))
