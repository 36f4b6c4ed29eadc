"""Counts malformed messages by stream and reason, and logs each reason at most once a second."""

from __future__ import annotations

import logging
import threading
import time

from common.wire import MalformedMessage

__all__ = ["MalformedCounters"]

logger = logging.getLogger(__name__)


class MalformedCounters:
    """Counters that any thread may add to; reasons are a fixed set of slugs, so it stays small."""

    def __init__(self, log_every_s: float = 1.0) -> None:
        """Log each stream's reason at most every `log_every_s` seconds."""
        self._log_every_s = log_every_s
        self._counts: dict[str, dict[str, int]] = {}
        self._logged: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def add(self, error: MalformedMessage) -> None:
        """Count a dropped message."""
        key, moment = (error.stream, error.reason), time.monotonic()
        with self._lock:
            reasons = self._counts.setdefault(error.stream, {})
            count = reasons[error.reason] = reasons.get(error.reason, 0) + 1
            due = moment - self._logged.get(key, -self._log_every_s) >= self._log_every_s
            if due:
                self._logged[key] = moment
        if due:
            logger.warning("dropped a message, %s; %d so far", error, count)

    def snapshot(self) -> dict[str, dict[str, int]]:
        """The counts so far: stream → reason → messages."""
        with self._lock:
            return {stream: dict(reasons) for stream, reasons in self._counts.items()}

    @property
    def total(self) -> int:
        """All messages dropped so far."""
        return sum(sum(reasons.values()) for reasons in self.snapshot().values())
