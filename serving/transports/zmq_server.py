"""The ZeroMQ end of the policy server: one ROUTER, owned by one thread.

What others have for clients (answers from the engine's threads, policies that are loaded) goes
through a queue, and a byte through a socket pair wakes the thread.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zmq

from common.endpoints import address
from serving.engine import Engine
from serving.messages import (
    BadMessage,
    Instructions,
    Observation,
    Refusal,
    Reply,
    ServingError,
)
from serving.packed import Note, encode
from serving.transports.refusals import SAY_READY, Refusals, one_line, told_name
from serving.transports.security import Door, ServerKeys
from serving.transports.zmq_common import MAX_PARTS, Envelope, tune
from serving.unpacked import decode

__all__ = ["ZmqServer"]

logger = logging.getLogger("serving.zmq")

_TICK_S = 1.0
_HEARTBEAT_MS = 2_000
_MOST_LOADING = 32
"""Threads that wait for a policy, those of sessions that have begun again meanwhile too."""
_MOST_AT_ONCE = 16
"""Messages taken in before answers are sent again."""
_UNSENT_S = 1.0
"""An answer that met a broken connection waits so long for the client to come back."""


@dataclass(slots=True)
class _Session:
    """A client that has said Ready. Only the ROUTER's thread changes it.

    Attributes:
        client: what the engine knows it by.
        attempt: of the client's, to begin.
        route: where its answers go: the routing id of the connection on which it listens.
        instructed: its instructions were taken.
        loading: its policy is being loaded.
        began_at: when it said Ready.
        unsent: an answer that could not be delivered, and when that was.
    """

    client: str
    attempt: int
    route: bytes
    began_at: float
    instructed: bool = False
    loading: bool = False
    unsent: tuple[Reply, float] | None = None


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What came of instructions: None when they were taken."""

    error: ServingError | None


class ZmqServer:
    """Listens until `close`."""

    def __init__(
        self,
        engine: Engine,
        host: str,
        port: int,
        *,
        refusals: Refusals | None = None,
        keys: ServerKeys | None = None,
    ) -> None:
        """Listen at once; zmq.ZMQError (EADDRINUSE …) where that cannot be. Port 0 takes any."""
        self.refusals = refusals or Refusals()
        self.undelivered = 0
        self._engine = engine
        self._sessions: dict[bytes, _Session] = {}
        self._may_load = threading.BoundedSemaphore(_MOST_LOADING)
        self._outbox: queue.SimpleQueue[tuple[Envelope, Reply | _Loaded]] = queue.SimpleQueue()
        self._awake, self._waker = socket.socketpair()
        self._awake.setblocking(False)
        self._waker.setblocking(False)
        self._closing = threading.Event()
        self._context: zmq.Context[Any] = zmq.Context()
        # The door must be there before anyone can knock: ZAP is asked in the socket's context.
        self._door = None if keys is None else Door(self._context, keys, self._turned_away)
        self._router = self._context.socket(zmq.ROUTER)
        try:
            tune(self._router, _HEARTBEAT_MS)
            self._router.router_mandatory = True  # what cannot be delivered is an error, not lost
            self._router.ipv6 = ":" in host
            if self._door is not None:
                self._door.guard(self._router)
            if port:
                self._router.bind(address(host, port))
                self.port = port
            else:
                self.port = self._router.bind_to_random_port(address(host, 0).removesuffix(":0"))
        except zmq.ZMQError:
            self._context.destroy(0)
            raise
        self._thread = threading.Thread(target=self._run, name="zmq-router", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; safe to call twice."""
        self._closing.set()
        self._wake()
        self._thread.join(10.0)

    # From any thread --------------------------------------------------------------------------

    def _post(self, envelope: Envelope, what: Reply | _Loaded) -> None:
        self._outbox.put((envelope, what))
        self._wake()

    def _wake(self) -> None:
        try:
            self._waker.send(b"\0")
        except BlockingIOError:
            pass  # bytes enough to wake anyone are waiting already
        except OSError:
            pass  # closed

    def _load(self, envelope: Envelope, session: _Session, instructions: Instructions) -> None:
        """Waits for the policy, in a thread of its own; one of `_MOST_LOADING`."""
        error = None
        try:
            # The engine knows the client, not the attempt: a thread that only now gets to run must
            # not give another attempt's session its policy, nor take that one's answers.
            if self._sessions.get(envelope.session) is not session:
                raise ServingError("no_session", "the client has begun again")
            self._engine.instruct(session.client, instructions)
            self._engine.subscribe(session.client, self._deliverer(envelope))
        except ServingError as refused:
            error = refused
        except Exception:
            logger.exception("[SERVER] an error of the server's own")
            error = ServingError("failed", "an error of the server's own; its log has it")
        finally:
            self._may_load.release()
        self._post(envelope, _Loaded(error))

    def _deliverer(self, envelope: Envelope) -> Callable[[Reply], None]:
        return lambda reply: self._post(envelope, reply)

    # The ROUTER's thread ----------------------------------------------------------------------

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._awake, zmq.POLLIN)
        if self._door is not None:
            poller.register(self._door.socket, zmq.POLLIN)
        tick_at = time.monotonic() + _TICK_S
        try:
            while not self._closing.is_set():
                left_s = max(tick_at - time.monotonic(), 0.0)
                ready = dict(poller.poll(int(1000 * left_s) + 1))
                if self._awake.fileno() in ready:
                    self._awake.recv(4096)
                if self._door is not None and self._door.socket in ready:
                    self._door.answer(time.monotonic())
                self._send_waiting()
                if self._router in ready:
                    self._receive_some()
                if time.monotonic() >= tick_at:
                    tick_at = time.monotonic() + _TICK_S
                    self._tick()
        except Exception:
            logger.exception("[SERVER] the ZeroMQ transport was ended by an error of its own")
        finally:
            if self._door is not None:
                self._door.close()
            self._context.destroy(0)
            self._awake.close()
            self._waker.close()

    def _turned_away(self, stranger: str) -> None:
        self.refusals.add("zmq", stranger, "not_allowed", "a client's key that is not known")

    def _tick(self) -> None:
        """Tell who waits for a policy that it is being loaded; forget whom the engine forgot."""
        kept, moment = set(self._engine.clients()), time.monotonic()
        for name, session in list(self._sessions.items()):
            if session.loading:
                self._say(session.route, Envelope(name, session.attempt), Note("loading"))
            elif session.client not in kept and moment - session.began_at > _TICK_S:
                del self._sessions[name]

    def _receive_some(self) -> None:
        for _ in range(_MOST_AT_ONCE):
            try:
                frames = self._receive()
            except zmq.Again:
                return
            route, source = frames[0].bytes, frames[0]
            envelope = None
            try:
                if not 3 <= len(frames) <= MAX_PARTS:
                    raise BadMessage(f"{len(frames)} frames are no message of ours")
                envelope = Envelope.unpack(frames[1].buffer)
                self._take(route, envelope, decode([frame.buffer for frame in frames[2:]]))
                continue
            except ServingError as error:
                refused = error
            except Exception:  # one client's message must not end the transport of them all
                logger.exception("[SERVER] an error of the server's own")
                refused = ServingError("failed", "an error of the server's own; its log has it")
            session = self._session(envelope) if envelope else None
            # A client that is known hears of it where it listens.
            self._refuse(session.route if session else route, envelope, refused, _where(source))

    def _receive(self) -> list[zmq.Frame]:
        """One message, its frames not copied; of one with too many frames only the first."""
        frames: list[zmq.Frame] = []
        flags = zmq.NOBLOCK
        while True:
            frame: Any = self._router.recv(flags, copy=False)
            if len(frames) <= MAX_PARTS:
                frames.append(frame)
            if not frame.more:
                return frames
            flags = zmq.Flag(0)  # the rest of a message is there

    def _take(self, route: bytes, envelope: Envelope, message: object) -> None:
        """Do what a client asks; ServingError says why not."""
        session = self._session(envelope)
        if isinstance(message, Note) and message.word == "ready":
            client = told_name("zmq", envelope.session)
            self._engine.ready(client)
            began = _Session(client, envelope.attempt, route, time.monotonic())
            self._sessions[envelope.session] = began
            self._say(route, envelope, Note("ready"))
        elif isinstance(message, Note) and message.word == "bye":
            if session is not None:
                del self._sessions[envelope.session]
                self._engine.forget(session.client)
        elif session is None:
            raise ServingError("no_session", SAY_READY)
        elif isinstance(message, Note) and message.word == "ping":
            session.route = route
            self._say(route, envelope, Note("pong"))
            self._send_unsent(session, envelope)
        elif isinstance(message, Instructions):
            self._start_loading(session, envelope, message)
        elif isinstance(message, Observation):
            if not session.instructed:
                raise ServingError("no_session", SAY_READY)
            self._engine.observe(session.client, message)
        else:
            raise BadMessage("not a message of a client's")

    def _session(self, envelope: Envelope) -> _Session | None:
        """The session, where the message is of its latest attempt."""
        session = self._sessions.get(envelope.session)
        return session if session and session.attempt == envelope.attempt else None

    def _start_loading(
        self, session: _Session, envelope: Envelope, instructions: Instructions
    ) -> None:
        if session.loading:
            raise ServingError("busy", "the policy of this client is being loaded already")
        # Each Ready makes another session; the thread of the one before may not have ended yet.
        if not self._may_load.acquire(blocking=False):
            raise ServingError("busy", f"{_MOST_LOADING} calls wait for policies; try again")
        loading = threading.Thread(
            target=self._load,
            args=(envelope, session, instructions),
            name="zmq-loading",
            daemon=True,
        )
        try:
            loading.start()
        except RuntimeError:  # the system has no thread left
            self._may_load.release()
            raise
        session.loading, session.instructed = True, False

    def _send_waiting(self) -> None:
        while True:
            try:
                envelope, what = self._outbox.get_nowait()
            except queue.Empty:
                return
            session = self._session(envelope)
            if session is None:
                continue  # of an earlier attempt
            if isinstance(what, _Loaded):
                session.loading, session.instructed = False, what.error is None
                if what.error is None:
                    self._say(session.route, envelope, Note("accepted"))
                else:
                    self._refuse(session.route, envelope, what.error, session.client)
                continue
            if isinstance(what, Refusal):
                self.refusals.add("zmq", session.client, what.kind, what.message)
            if not self._say(session.route, envelope, what):
                session.unsent = (what, time.monotonic())

    def _send_unsent(self, session: _Session, envelope: Envelope) -> None:
        unsent, session.unsent = session.unsent, None
        if unsent is not None and time.monotonic() - unsent[1] < _UNSENT_S:
            self._say(session.route, envelope, unsent[0])

    def _refuse(
        self, route: bytes, envelope: Envelope | None, error: ServingError, who: str
    ) -> None:
        self.refusals.add("zmq", who, error.kind, str(error))
        if envelope is not None:
            self._say(route, envelope, Refusal(error.kind, one_line(error)))

    def _say(self, route: bytes, envelope: Envelope, what: Note | Reply) -> bool:
        """Whether it went out; nobody is waited for."""
        try:
            self._router.send_multipart([route, envelope.pack(), *encode(what)], zmq.NOBLOCK)
        except zmq.ZMQError:  # EHOSTUNREACH: gone; EAGAIN: takes nothing
            self.undelivered += 1
            return False
        except ServingError as error:
            logger.warning("[SERVER] an answer cannot be sent: %s", error)
        return True


def _where(frame: zmq.Frame) -> str:
    try:
        return str(frame.get("Peer-Address"))
    except zmq.ZMQError:
        return "unknown"
