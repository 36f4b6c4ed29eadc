"""Counts what the transports refuse, and logs each sort of refusal at most once a second."""

from __future__ import annotations

import hashlib
import logging
import threading
import time

from serving.messages import RefusalKind

__all__ = ["SAY_READY", "Refusals", "one_line", "told_name"]

logger = logging.getLogger("serving.refused")

SAY_READY = "no session: say Ready and send instructions first (restart the client)"
_MOST_SAID = 500


def told_name(transport: str, session: bytes) -> str:
    """What a session is called in logs and metrics.

    Whoever knows its id can speak for it, and have another policy loaded: nobody may read it there.
    """
    return f"{transport}:{hashlib.sha256(session).hexdigest()[:32]}"


def one_line(message: object) -> str:
    """A message as one printable line of bounded length, whatever it quotes."""
    text = " ".join(str(message)[: 2 * _MOST_SAID].split())
    return "".join(c if c.isprintable() else "?" for c in text)[:_MOST_SAID]


class Refusals:
    """Counters that any thread may add to; kinds are a fixed set, so it stays small."""

    def __init__(self, log_every_s: float = 1.0) -> None:
        """Log each transport's kind at most every `log_every_s` seconds."""
        self._log_every_s = log_every_s
        self._counts: dict[str, dict[str, int]] = {}
        self._logged: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def add(self, transport: str, client: str, kind: RefusalKind, message: str) -> None:
        """Count a refusal."""
        key, moment = (transport, kind), time.monotonic()
        with self._lock:
            kinds = self._counts.setdefault(transport, {})
            count = kinds[kind] = kinds.get(kind, 0) + 1
            due = moment - self._logged.get(key, -self._log_every_s) >= self._log_every_s
            if due:
                self._logged[key] = moment
        if due:
            logger.warning(
                "[SERVER] refused %s (%s): %s; %d of this kind so far",
                client, kind, one_line(message), count,
            )  # fmt: skip

    def snapshot(self) -> dict[str, dict[str, int]]:
        """The counts so far: transport → kind → refusals."""
        with self._lock:
            return {transport: dict(kinds) for transport, kinds in self._counts.items()}

    @property
    def total(self) -> int:
        """All refusals so far."""
        return sum(sum(kinds.values()) for kinds in self.snapshot().values())
