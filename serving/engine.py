"""The policy server's engine: sessions, the newest observation of each, predictions, answers.

It knows no socket. One lock guards all state: sessions, slots, queues, counts. It is never held
while a policy loads or computes, or while an answer is delivered. The threads are those of the
callers, one for each lane of each policy (`policy_worker.py`), one for each policy that loads
(`policy_store.py`), one that delivers pushed answers (`pusher.py`), and the keeper, which looks a
few times a second for sessions to drop, predictions that hang and copies to replace.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from serving.engine_options import EngineOptions
from serving.messages import (
    Chunk,
    FeatureReply,
    Instructions,
    Observation,
    Refusal,
    RefusalKind,
    Reply,
    ServingError,
)
from serving.metrics import Tally
from serving.policies import load_policy
from serving.policy_store import Load, PolicyStore, admit
from serving.pusher import Pusher
from serving.session import Session, Subscription, check_fits
from serving.session_table import SessionTable, no_session

__all__ = ["Engine", "EngineOptions"]

logger = logging.getLogger("serving.engine")

_LONGEST_TICK_S = 0.25
_CLOSE_S = 2.0


class Engine:
    """Serves policies to many clients; every method may be called from any thread.

    A client is known by an id that the transport chooses. The way of a client: `ready`, `instruct`,
    then `observe` again and again, and either `answer` in a loop or `subscribe` once. A prediction
    begins when an observation waits and somebody waits for its answer, so that the newest is used.
    """

    def __init__(self, options: EngineOptions | None = None, *, load: Load = load_policy) -> None:
        """Begin to serve.

        Args:
            options: how; the defaults when None.
            load: turns instructions into a policy; by default one of the known types.
        """
        self._options = options or EngineOptions()
        self._lock = threading.Lock()
        self._refusals = Tally()
        self._closed = threading.Event()
        self._began_at = time.monotonic()
        self._pusher = Pusher()
        self._store = PolicyStore(self._options, load, self._lock, self._pusher)
        most = self._options.most_sessions
        self._sessions = SessionTable(most, self._lock, self._store.release)
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._keeper.start()

    def ready(self, client: str) -> None:
        """Give the client a fresh session, without a policy; others are left alone.

        An `answer` of its earlier session returns None, and a subscription ends.

        Raises:
            ServingError: busy, when there are too many clients.
        """
        with self._counted(), self._lock:
            self._sessions.begin(client)

    def instruct(self, client: str, instructions: Instructions) -> None:
        """Give the client's session its policy; waits while that loads.

        Raises:
            ServingError: no_session before `ready`; bad_policy, not_found, not_allowed, failed,
                busy or timed_out, with a line that says what to do.
        """
        with self._counted(), self._calling(client) as session:
            entry = self._store.obtain(instructions, lambda: session.closed)
            try:
                while True:
                    worker = entry.worker
                    assert worker is not None  # obtained means loaded
                    memory = admit(worker.policy, entry.title, instructions)
                    with self._lock:
                        if session.closed:
                            raise no_session(client)
                        if entry.worker is not worker:
                            continue  # a fresh copy took its place meanwhile
                        self._sessions.detach(session)
                        session.entry = entry
                        session.begin(instructions, worker, memory, worker.slots(instructions))
                        worker.sessions.add(session)
                        return
            except BaseException:
                with self._lock:
                    self._store.release(entry)
                raise

    def observe(self, client: str, observation: Observation) -> bool:
        """Whether the observation was taken; False where it is not worth predicting from.

        It takes the place of one that still waits (`NewestSlot` says which ones are left out).

        Raises:
            ServingError: no_session; bad_message where it is not as the instructions announced.
        """
        with self._counted():
            with self._lock:
                session = self._sessions.instructed(client)
                instructions, worker = session.instructions, session.worker
            assert instructions is not None and worker is not None
            check_fits(observation, instructions)
            lane = worker.lane_of(observation)
            with self._lock:
                if session.worker is not worker:
                    # A fresh policy since a moment ago: the client goes on with its next one.
                    session = self._sessions.instructed(client)
                    return False
                offered = session.slots[lane].offer(observation, time.monotonic())
                assert session.entry is not None
                for counts in (session.counts, session.entry.tally):
                    counts.observations += 1
                    counts.filtered += offered == "filtered"
                    counts.replaced += offered == "replaced"
                if offered != "filtered":
                    worker.request(session)
                return offered != "filtered"

    def answer(self, client: str, timeout_s: float | None = None) -> Chunk | FeatureReply | None:
        """The session's next answer, no earlier than `inference_latency_s` after its call began.

        Waits for an observation to come, `timeout_s` seconds (by default `obs_queue_timeout_s`),
        and then for its prediction; one that hangs is refused. None where no observation came in
        time, or where the session ended meanwhile.

        Raises:
            ServingError: no_session; failed where the prediction raised; timed_out where it hangs;
                whatever else the policy refuses with.
        """
        with self._counted(), self._lock:
            session = self._sessions.instructed(client)
        with self._calling(client, session), self._lock:
            waits_s = self._options.obs_queue_timeout_s if timeout_s is None else timeout_s
            session.waiting += 1
            try:
                reply = self._next_reply(session, time.monotonic() + waits_s)
            finally:
                session.waiting -= 1
        if isinstance(reply, Refusal):  # counted where it was made
            raise ServingError(reply.kind, reply.message)
        return reply

    def subscribe(self, client: str, deliver: Callable[[Reply], None]) -> None:
        """Have the session's answers delivered from now on, instead of by `answer`.

        `deliver` is called from threads of the engine, one call at a time for all sessions: it
        must not block. When the session is dropped for being idle, it gets a last Refusal,
        no_session. The subscription ends with the session.

        Raises:
            ServingError: no_session.
        """
        with self._counted(), self._lock:
            session = self._sessions.instructed(client)
            if session.subscription is not None:
                session.subscription.ended = True
            session.subscription = Subscription(deliver)
            while session.outbox:
                due = session.outbox.popleft()
                self._pusher.push(due.due_at, session.subscription, due.reply)
            if session.worker is not None:
                session.worker.request(session)

    def forget(self, client: str) -> None:
        """End the client's session, where there is one."""
        with self._lock:
            self._sessions.drop_by_name(client)

    def adopt(self, old_client: str, new_client: str) -> None:
        """Go on with a client's session under another id; a session of that id ends.

        Raises:
            ServingError: no_session where the old id has none.
        """
        with self._counted(), self._lock:
            self._sessions.rename(old_client, new_client)

    def clients(self) -> tuple[str, ...]:
        """The clients that have a session."""
        with self._lock:
            return tuple(session.client for session in self._sessions)

    def note_refusal(self, kind: RefusalKind) -> None:
        """Count what a transport refused before it came here, a message it could not read say."""
        with self._lock:
            self._refusals.refusals[kind] += 1

    def metrics(self) -> dict[str, Any]:
        """Counts and times since the start: `total`, `policies` by title, `clients` by id."""
        with self._lock:
            total = Tally()
            total.add(self._refusals)
            total.add(self._store.past)
            policies: dict[str, Any] = {}
            for entry in self._store.entries():
                total.add(entry.tally)
                policies[entry.title] = entry.tally.report() | {
                    "sessions": entry.pins,
                    "loaded": entry.worker is not None,
                    "stuck_now": entry.worker is not None and entry.worker.stuck,
                }
            now = time.monotonic()
            return {
                "uptime_s": now - self._began_at,
                "sessions": len(self._sessions),
                "total": total.report()
                | {"lost": self._pusher.lost, "left_behind": len(self._store.left)},
                "policies": policies,
                "clients": {
                    session.client: session.counts.report()
                    | {"policy": session.entry and session.entry.title}
                    | {"idle_s": now - session.heard_at}
                    for session in self._sessions
                },
            }

    def close(self) -> None:
        """End everything; whoever waits is let go. Returns within a few seconds, whatever hangs."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
            self._sessions.closed = True
            for session in self._sessions:
                self._sessions.drop(session)
            workers = self._store.end()
        self._pusher.end()
        deadline = time.monotonic() + _CLOSE_S
        for worker in workers:
            worker.join(deadline)
        self._pusher.join(deadline)
        self._keeper.join(max(deadline - time.monotonic(), 0.0))

    def _next_reply(self, session: Session, give_up_at: float) -> Reply | None:
        while not session.closed:
            if session.worker is not None:
                session.worker.request(session)
            now = time.monotonic()
            due_at = session.outbox[0].due_at if session.outbox else None
            if due_at is not None and due_at <= now:
                return session.outbox.popleft().reply
            if due_at is not None:
                session.changed.wait(due_at - now)
            elif session.expecting:
                session.changed.wait()  # for the answer; the keeper sees to it that one comes
            elif now >= give_up_at:
                return None
            else:
                session.changed.wait(give_up_at - now)
        return None

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count what is refused on the way."""
        try:
            yield
        except ServingError as error:
            self.note_refusal(error.kind)
            raise

    @contextmanager
    def _calling(self, client: str, session: Session | None = None) -> Iterator[Session]:
        """The session does not count as idle while this lasts."""
        with self._lock:
            session = session or self._sessions.of(client)
            session.calls += 1
        try:
            yield session
        finally:
            with self._lock:
                session.calls -= 1
                session.heard_at = time.monotonic()

    def _keep(self) -> None:
        limits = (self._options.inference_timeout_s, self._options.session_timeout_s)
        tick_s = min(_LONGEST_TICK_S, min(limits) / 4)
        while not self._closed.wait(tick_s):
            try:
                self._look()
            except Exception:  # without the keeper, who waits for a hung model waits for ever
                logger.exception("an error of the server's own")

    def _look(self) -> None:
        now = time.monotonic()
        with self._lock:
            for entry in self._store.entries():
                if entry.worker is not None:
                    entry.worker.find_overdue(now)
            idle = self._sessions.drop_idle(now, self._options.session_timeout_s)
        for session, idle_s in idle:
            logger.info("%s: nothing heard for %.0f s: dropped", session.client, idle_s)
            if session.subscription is not None:
                message = f"nothing was heard for {idle_s:.0f} s: begin again with Ready"
                refusal = Refusal("no_session", message)
                self._pusher.push(0.0, session.subscription.deliver, refusal)
        with self._lock:
            self._store.replace_stuck(now)
