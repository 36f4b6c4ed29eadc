"""Keeps the connection to the server: begins, sends, receives, notices its loss, begins again.

A thread sends, a thread receives and connects again. The control loop never waits for either: it
reads `session`, takes `arrivals`, and hands an observation over when `free`.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue

from common.program import Backoff, OptionError, ProgramError
from serving.control_values import Arrival
from serving.link import Link, LinkLost
from serving.messages import Chunk, FeatureReply, Instructions, Observation, ServingError

__all__ = ["Connection", "ConnectionOptions"]

logger = logging.getLogger("serving.supervisor")

_LOOK_S = 0.25
"""How long to wait for an answer before looking at everything else."""
_REFUSED_WAIT_S = 0.05
_MOST_WAITING = 16
"""Answers that wait for the control loop, which takes them at each tick."""
_FIRST_RETRY_S, _LAST_RETRY_S = 0.1, 2.0
_SHORTEST_TRY_S = 0.2
_CLOSE_S = 5.0


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """How long to wait for what.

    Attributes:
        connect_timeout_s: for the connection and the handshake.
        send_timeout_s: for the server to take an observation.
        answer_timeout_s: for an answer to an observation that must go. (Others may be left out by
            the server, and are not waited for.)
        reconnect_timeout_s: without the server, before giving up. One that is back and loads the
            policy is waited for, however long, while it can be heard.
    """

    connect_timeout_s: float = 5.0
    send_timeout_s: float = 3.0
    answer_timeout_s: float = 15.0
    reconnect_timeout_s: float = 60.0


class Connection:
    """A session with a policy server, begun anew whenever it is lost."""

    def __init__(
        self,
        link: Link,
        instructions: Instructions,
        options: ConnectionOptions,
        consequence: str = "the robot was not touched",
    ) -> None:
        """Use `link`; nothing is sent before `begin`.

        `consequence` is said where `begin` fails.
        """
        self._link, self._instructions, self._options = link, instructions, options
        self._consequence = consequence
        self._session: int | None = None
        self._sessions = 0
        self._renewing = False
        self._news = threading.Event()
        self._changing = threading.Lock()
        self._closing = threading.Event()
        self._idle = threading.Event()
        self._idle.set()
        self._outbox: SimpleQueue[tuple[int, Observation] | None] = SimpleQueue()
        self._inbox: deque[Arrival] = deque(maxlen=_MOST_WAITING)
        self._asked_at: float | None = None
        self._lost_at = 0.0
        self._threads: list[threading.Thread] = []
        self.failure: ProgramError | None = None

    @property
    def session(self) -> int | None:
        """Counts the sessions from 1; None while there is none."""
        return self._session

    @property
    def sessions(self) -> int:
        """How many there have been."""
        return self._sessions

    @property
    def state(self) -> str:
        """In a word: connecting, running or lost."""
        if self._session is not None:
            return "running"
        return "lost" if self._sessions else "connecting"

    @property
    def free(self) -> bool:
        """Whether an observation can be handed over; otherwise the last is still on its way."""
        return self._idle.is_set() and self._session is not None

    def begin(self, stop: threading.Event) -> bool:
        """Connect, and have the policy loaded; False when `stop` was set meanwhile.

        OptionError, one line, where the server is not there or refuses.
        """
        outcome: list[Exception | None] = []
        done = threading.Event()

        def connect() -> None:
            try:
                self._link.begin(self._instructions, self._options.connect_timeout_s)
                outcome.append(None)
            except Exception as error:
                outcome.append(error)
            finally:
                done.set()

        threading.Thread(target=connect, name="connect", daemon=True).start()
        while not done.wait(_LOOK_S):
            if stop.is_set():
                self._link.close()
                return False
        error = outcome[0]
        if isinstance(error, LinkLost):
            raise OptionError(f"no policy server: {error}; {self._consequence}")
        if isinstance(error, ServingError):
            raise OptionError(f"the policy server refuses: {error}; {self._consequence}")
        if error is not None:
            raise error
        self._began()
        return True

    def start(self, receiving: bool = True) -> None:
        """Send and receive from now on, after `begin`; without `receiving`, `receive` does that."""
        jobs = [("send", self._send_all), ("receive", self._receive_all)]
        for name, work in jobs if receiving else jobs[:1]:
            thread = threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def receive(self) -> None:
        """Receive in the calling thread until `close`, or until the server is given up."""
        self._guarded(self._receive_all)

    def renew(self) -> None:
        """Begin a fresh session: what the server remembers and may still answer is of the last."""
        with self._changing:
            if self._session is not None and not self._closing.is_set():
                self._session, self._renewing = None, True
                self._lost_at = time.monotonic()

    def wait(self, timeout_s: float) -> None:
        """Until an answer came, or the session changed, since the last call; or the time is up."""
        self._news.wait(timeout_s)
        self._news.clear()

    def arrivals(self) -> list[Arrival]:
        """What came since the last call."""
        came = []
        with contextlib.suppress(IndexError):  # another thread may empty it for a new session
            while self._inbox:
                came.append(self._inbox.popleft())
        return came

    def send(self, observation: Observation, session: int) -> None:
        """Hand an observation over; only when `free`. It is dropped with the session it is of."""
        self._idle.clear()
        self._outbox.put((session, observation))

    def close(self) -> None:
        """Let go of the server; safe to call twice."""
        self._closing.set()
        self._outbox.put(None)
        self._link.close()
        for thread in self._threads:
            thread.join(_CLOSE_S)
        self._session = None

    def _began(self) -> None:
        self._asked_at = None
        self._inbox.clear()
        with self._changing:
            self._sessions += 1
            self._session = self._sessions
        self._news.set()

    def _lose(self, session: int, why: str) -> None:
        """The session is over; whoever notices first says so."""
        with self._changing:
            if self._session != session or self._closing.is_set():
                return
            self._session = None
            self._lost_at = time.monotonic()
        self._news.set()
        logger.warning(
            "[CLIENT] the server is lost: %s; holding, and trying again for up to %g s",
            why,
            self._options.reconnect_timeout_s,
        )

    def _guarded(self, work: Callable[[], None]) -> None:
        """An error of our own ends the program rather than leave it without a thread."""
        try:
            work()
        except Exception:
            if not self._closing.is_set():
                logger.exception("the connection's thread fails")
                self.failure = ProgramError("the connection failed by an error of its own")
                self._news.set()

    def _send_all(self) -> None:
        while (item := self._outbox.get()) is not None:
            session, observation = item
            if session == self._session:
                self._send(session, observation)
            self._idle.set()

    def _send(self, session: int, observation: Observation) -> None:
        if observation.must_go and self._asked_at is None:
            self._asked_at = time.monotonic()
        try:
            self._link.send(observation, self._options.send_timeout_s)
        except LinkLost as error:
            self._lose(session, str(error))
        except ServingError as error:
            self._refused(session, error)

    def _receive_all(self) -> None:
        while not self._closing.is_set():
            if (session := self._session) is None:
                if not self._connect_again():
                    return
                continue
            try:
                reply = self._link.receive(_LOOK_S)
            except LinkLost as error:
                self._lose(session, str(error))
                continue
            except ServingError as error:
                self._refused(session, error)
                self._closing.wait(_REFUSED_WAIT_S)
                continue
            if reply is not None:
                self._put(reply)
            asked_at, limit_s = self._asked_at, self._options.answer_timeout_s
            if asked_at is not None and time.monotonic() - asked_at > limit_s:
                self._lose(session, f"no answer for {limit_s:g} s (--answer_timeout)")

    def _refused(self, session: int, error: ServingError) -> None:
        if error.kind == "no_session":
            self._lose(session, str(error))
        else:
            self._put(error)

    def _put(self, reply: Chunk | FeatureReply | ServingError) -> None:
        self._asked_at = None
        self._inbox.append(Arrival(reply, time.monotonic()))
        self._news.set()

    def _connect_again(self) -> bool:
        """Try until there is a session; False when it is time to give up or to close."""
        backoff = Backoff(_FIRST_RETRY_S, _LAST_RETRY_S)
        deadline = self._lost_at + self._options.reconnect_timeout_s
        why = "no time was left to try"
        while (left_s := deadline - time.monotonic()) > 0:
            # A send that has not given up yet uses the connection that is to be replaced.
            while not self._idle.wait(_LOOK_S):
                if self._closing.is_set():
                    return False
            timeout_s = max(_SHORTEST_TRY_S, min(self._options.connect_timeout_s, left_s))
            try:
                self._link.begin(self._instructions, timeout_s)
            except (LinkLost, ServingError) as error:
                why = str(error)
                wait_s = min(backoff.failed(), max(0.0, deadline - time.monotonic()))
                logger.info("[CLIENT] no server yet: %s; next try in %.1f s", why, wait_s)
                if self._closing.wait(wait_s):
                    return False
                continue
            if self._closing.is_set():
                return False
            self._began()
            lost_s = time.monotonic() - self._lost_at
            if not self._renewing:
                logger.info("[CLIENT] connected again after %.1f s", lost_s)
            self._renewing = False
            return True
        limit_s = self._options.reconnect_timeout_s
        self.failure = ProgramError(
            f"the server did not come back within {limit_s:g} s (--reconnect_timeout): {why}"
        )
        self._news.set()
        return False
