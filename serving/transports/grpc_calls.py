"""What each method of the gRPC service does."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc

from serving.engine import Engine
from serving.engine_options import EngineOptions
from serving.messages import Chunk, FeatureReply, ServingError
from serving.packed import encode, join, split
from serving.pickles import lerobot
from serving.transports import protobuf
from serving.transports.grpc_clients import Caller, Clients
from serving.transports.grpc_common import OURS, REFUSAL, SESSION, STATUS, metadata_value
from serving.transports.grpc_uploads import Uploads, is_joined
from serving.transports.refusals import SAY_READY, Refusals, one_line
from serving.unpacked import decode_instructions, decode_observation

__all__ = ["MOST_ASKING", "MOST_LOADING", "Calls"]

_SLICE_S = 0.1
"""How often a waiting GetActions looks whether its client is still there."""
MOST_ASKING = 2
"""GetActions of one client: the one it waits for, and one that it gave up a moment ago."""
MOST_LOADING = 2
"""Calls of one client that wait for its policy: one, and one that it gave up a moment ago."""
_REFUSED_PAUSE_S = 0.25
"""LeRobot's client asks for actions again the moment it is refused: so often is it answered."""
_MOST_PACED = 16
"""So many answers are held back at once: each keeps a thread."""
_MOST_REMEMBERED = 1024


class Calls:
    """What each method of the service does."""

    def __init__(
        self, engine: Engine, options: EngineOptions, refusals: Refusals, upload_timeout_s: float
    ) -> None:
        self._engine, self._options, self._refusals = engine, options, refusals
        self._clients = Clients(engine.adopt)
        self._uploads = Uploads(upload_timeout_s)
        self._paced = self._loading_now = 0
        self._refused_at: dict[str, float] = {}
        self._lock = threading.Lock()
        self.closing = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="grpc-watch", daemon=True)
        self._watcher.start()

    def ready(self, _: Any, context: Any) -> Any:
        """A fresh session; the answer's metadata tells our clients who we are."""
        peer, session = _who(context)
        self._engine.ready(self._clients.name(peer, session))
        self._clients.begin(peer, session)
        context.send_initial_metadata(((OURS, "1"),))
        return protobuf.Empty()

    def end(self, _: Any, context: Any) -> Any:
        """Forget one of our clients; what LeRobot's have is left to time."""
        peer, session = _who(context)
        self._engine.forget(self._clients.name(peer, session))
        return protobuf.Empty()

    def instruct(self, request: Any, context: Any) -> Any:
        """Waits while the policy loads."""
        with self._clients.calling(*_who(context)) as caller:
            joined = is_joined(request.data)
            if joined:
                instructions = decode_instructions(split(request.data))
            else:
                instructions = lerobot.decode_setup(request.data)
            with self._loading(caller):
                self._engine.instruct(caller.name, instructions)
            caller.instructions, caller.joined, caller.unsent = instructions, joined, None
        return protobuf.Empty()

    def observe(self, received: Any, context: Any) -> Any:
        """Takes the parts together and hands the observation on."""
        with self._clients.calling(*_who(context)) as caller:
            instructions = caller.instructions
            if instructions is None:
                raise ServingError("no_session", SAY_READY)
            with self._uploads.receiving(caller, context, received) as data:
                if is_joined(data):
                    observation = decode_observation(split(data))
                else:
                    observation = lerobot.decode_observation(data, instructions)
            self._engine.observe(caller.name, observation)
        return protobuf.Empty()

    def answer(self, _: Any, context: Any) -> Any:
        """The next actions, or an empty message when no observation came in time."""
        try:
            return self._answer(context)
        except ServingError:
            self._pace(context.peer())
            raise

    def _answer(self, context: Any) -> Any:
        with self._clients.calling(*_who(context)) as caller:
            if caller.instructions is None:
                raise ServingError("no_session", SAY_READY)
            with self._asking(caller):
                reply = self._wait(caller, context)
            if reply is None:
                return protobuf.Actions()
            return protobuf.Actions(data=self._encode(caller, reply))

    def _wait(self, caller: Caller, context: Any) -> Chunk | FeatureReply | None:
        """The engine's answer, waited for in slices: one that nobody waits for is not wasted."""
        timeout_s = self._options.obs_queue_timeout_s
        deadline = time.monotonic() + timeout_s
        while context.is_active() and not self.closing.is_set():
            unsent, caller.unsent = caller.unsent, None
            if unsent is not None and time.monotonic() - unsent[1] < timeout_s:
                return unsent[0]
            left_s = deadline - time.monotonic()
            reply = self._engine.answer(caller.name, min(max(left_s, 0.0), _SLICE_S))
            if reply is None and left_s <= 0.0:
                return None
            if reply is None:
                continue
            if context.is_active():
                return reply
            caller.unsent = (reply, time.monotonic())
        return None

    def _encode(self, caller: Caller, reply: Chunk | FeatureReply) -> bytes:
        if caller.joined:
            return join(encode(reply))
        if not isinstance(reply, Chunk):
            raise ServingError("bad_message", "LeRobot's protocol has no features to send")
        fps = caller.instructions.fps if caller.instructions else 0.0
        dt = reply.dt or 1.0 / (fps or self._options.fps)
        data: bytes = lerobot.encode_actions(reply, dt)
        return data

    @contextlib.contextmanager
    def _loading(self, caller: Caller) -> Iterator[None]:
        """A policy may take minutes: not every thread may wait for one, robots need them."""
        with self._lock:
            if caller.loading >= MOST_LOADING:
                raise ServingError("busy", "the policy of this client is being loaded already")
            # Each Ready makes another caller, the calls of the one before go on.
            if self._loading_now >= MOST_LOADING * self._options.most_sessions:
                raise ServingError("busy", f"{self._loading_now} calls wait for policies")
            caller.loading += 1
            self._loading_now += 1
        try:
            yield
        finally:
            with self._lock:
                caller.loading -= 1
                self._loading_now -= 1

    @contextlib.contextmanager
    def _asking(self, caller: Caller) -> Iterator[None]:
        with caller.lock:
            if caller.asking >= MOST_ASKING:
                raise ServingError("busy", f"{MOST_ASKING} GetActions of this client wait already")
            caller.asking += 1
        try:
            yield
        finally:
            with caller.lock:
                caller.asking -= 1

    def refuse(self, context: Any, error: ServingError) -> None:
        """End the call with a status; never returns."""
        with contextlib.suppress(Exception):  # the client may be gone, or the headers are sent
            # A status alone would make LeRobot's channel try again by itself, without a word.
            context.send_initial_metadata(())
        context.set_trailing_metadata(((REFUSAL, error.kind),))
        context.abort(getattr(grpc.StatusCode, STATUS[error.kind]), one_line(error))

    def _pace(self, who: str) -> None:
        """Hold the answer to a client that was refused a moment ago, but not of too many."""
        moment = time.monotonic()
        with self._lock:
            if len(self._refused_at) > _MOST_REMEMBERED:
                self._refused_at.clear()
            due = self._refused_at.get(who, 0.0) + _REFUSED_PAUSE_S
            self._refused_at[who] = moment
            if due <= moment or self._paced >= _MOST_PACED:
                return
            self._paced += 1
        try:
            self.closing.wait(due - moment)
        finally:
            with self._lock:
                self._paced -= 1

    def _watch(self) -> None:
        """Ends observations that take too long to come in, and forgets clients that are gone."""

        def tell(peer: str) -> None:
            self._refusals.add("grpc", peer, "timed_out", "an observation that never ended")

        while not self.closing.wait(min(1.0, self._uploads.timeout_s / 4)):
            self._uploads.end_late(tell)
            self._clients.drop_but(frozenset(self._engine.clients()))

    def close(self) -> None:
        """Wait for the thread of this."""
        self.closing.set()
        self._watcher.join(5.0)


def _who(context: Any) -> tuple[str, str | None]:
    return context.peer(), metadata_value(context.invocation_metadata(), SESSION)
