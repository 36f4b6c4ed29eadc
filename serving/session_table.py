"""Who is connected: the sessions by client, and the checks of a call's turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from serving.messages import ServingError
from serving.policy_store import PolicyEntry
from serving.session import Session

__all__ = ["SessionTable", "no_session"]


class SessionTable:
    """Sessions by client id, a bounded number. Every call is made with the engine's lock held.

    Args:
        most: how many sessions there may be.
        lock: the engine's; conditions of sessions use it.
        release: told of a policy that a session uses no more.
    """

    def __init__(
        self, most: int, lock: threading.Lock, release: Callable[[PolicyEntry], None]
    ) -> None:
        self._most, self._lock, self._release = most, lock, release
        self._sessions: dict[str, Session] = {}
        self.closed = False

    def __len__(self) -> int:
        """How many there are."""
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        """Over the sessions as they are now; dropping some meanwhile does no harm."""
        return iter(list(self._sessions.values()))

    def check_open(self) -> None:
        """ServingError("busy") once everything has been closed."""
        if self.closed:
            raise ServingError("busy", "the policy server is stopping")

    def begin(self, client: str) -> Session:
        """A fresh session, in the place of an earlier one; busy when there are too many."""
        self.check_open()
        self.drop(self._sessions.get(client))
        if len(self._sessions) >= self._most:
            self._make_room()
        session = Session(client, threading.Condition(self._lock), heard_at=time.monotonic())
        self._sessions[client] = session
        return session

    def of(self, client: str) -> Session:
        """The client's session, which was heard of just now; no_session where there is none."""
        self.check_open()
        session = self._sessions.get(client)
        if session is None:
            raise no_session(client)
        session.heard_at = time.monotonic()
        return session

    def instructed(self, client: str) -> Session:
        """The client's session, which has a policy; no_session where it has not."""
        session = self.of(client)
        if session.worker is None:
            raise ServingError("no_session", "no policy was asked for yet: send instructions first")
        return session

    def drop(self, session: Session | None) -> None:
        """End a session; who waits for its answers is let go."""
        if session is None or session.closed:
            return
        self.detach(session)
        session.closed = True
        session.memory = None
        if session.subscription is not None:
            session.subscription.ended = True
        del self._sessions[session.client]
        session.changed.notify_all()

    def drop_by_name(self, client: str) -> None:
        """End the client's session, where there is one."""
        self.drop(self._sessions.get(client))

    def detach(self, session: Session) -> None:
        """Take the session's policy from it."""
        if session.worker is not None:
            session.worker.drop(session)
        if session.entry is not None:
            self._release(session.entry)
        session.worker = session.entry = None

    def rename(self, old_client: str, new_client: str) -> None:
        """Move a session to another id; the one that id had ends. no_session without the first."""
        session = self.of(old_client)
        if old_client == new_client:
            return
        self.drop_by_name(new_client)
        del self._sessions[old_client]
        session.client = new_client
        self._sessions[new_client] = session

    def drop_idle(self, now: float, timeout_s: float) -> list[tuple[Session, float]]:
        """Drop the sessions of which nothing was heard for so long; each, with for how long."""
        idle = [
            (session, now - session.heard_at)
            for session in self
            if not session.calls and now - session.heard_at > timeout_s
        ]
        for session, _ in idle:
            self.drop(session)
        return idle

    def _make_room(self) -> None:
        """Drop the oldest session that never asked for a policy; busy where there is none."""
        for session in self:  # in the order in which they began
            if session.instructions is None and not session.calls:
                self.drop(session)
                return
        raise ServingError(
            "busy",
            f"{len(self._sessions)} clients are connected, which is all this server takes: try "
            "again when one has left, or start it with room for more",
        )


def no_session(client: str) -> ServingError:
    """What a client without a session is told."""
    return ServingError("no_session", f"no session of {client[:100]!r}: say Ready first")
