"""Predicts for all sessions of one policy: a thread a lane, as many sessions at once as wait.

All state is guarded by the engine's one lock, which nobody holds while a policy computes. Per lane:

- `ready` holds the sessions whose slot is filled and whose client waits for an answer, each once,
  in the order in which they came. A client that floods only renews its own slot: it waits its turn.
- `batch` is what the thread is at. It is the thread's until the keeper finds it overdue. From then
  on its sessions have been refused, and what still comes of it is thrown away.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from serving.engine_options import EngineOptions
from serving.lane import Batch, Lane, Taken
from serving.messages import Instructions, Observation, Refusal, Reply, ServingError
from serving.metrics import Tally
from serving.newest import Likeness, NewestSlot
from serving.pusher import Pusher
from serving.replies import Replier, in_one_line
from serving.seldom import Seldom
from serving.served import ClosingPolicy, LanedPolicy, Predicted, ServedPolicy, SessionMemory
from serving.session import DueReply, Session, Subscription

__all__ = ["PolicyWorker"]

logger = logging.getLogger("serving.engine")

_COMPLAIN_EVERY_S = 5.0


class PolicyWorker:
    """One copy of a policy and the threads that call it. Methods are called with the lock held.

    Args:
        title: what the policy is called in messages, e.g. `act from /models/pick`.
        policy: to call.
        tally: to count in.
        options: of the engine.
        lock: the engine's.
        pusher: for sessions that have answers pushed.
        seldom: logs what clients can cause.
    """

    def __init__(
        self,
        title: str,
        policy: ServedPolicy,
        tally: Tally,
        options: EngineOptions,
        lock: threading.Lock,
        pusher: Pusher,
        seldom: Seldom,
    ) -> None:
        self.title, self.policy, self.sessions = title, policy, set[Session]()
        self._tally, self._options, self._lock, self._pusher = tally, options, lock, pusher
        self._seldom = seldom
        self._replier = Replier(title, policy, options.fps)
        self._laned = policy if isinstance(policy, LanedPolicy) else None
        names = self._laned.lanes if self._laned else ("predict",)
        self._lanes = [
            Lane(name, number, threading.Condition(lock)) for number, name in enumerate(names)
        ]
        self._most_batched = max(min(options.most_batched, policy.most_batched), 1)
        self._ended, self._complains_at = False, 0.0
        for lane in self._lanes:
            # A call that hangs is left behind: it must not keep the program from ending.
            lane.thread = threading.Thread(
                target=self._run, args=(lane,), name=f"{lane.name} {title}"[:60], daemon=True
            )
            lane.thread.start()

    @property
    def stuck(self) -> bool:
        """Whether a prediction hangs."""
        return any(lane.stuck for lane in self._lanes)

    @property
    def computing(self) -> bool:
        """Whether a prediction is under way, one that hangs or not."""
        return any(lane.batch is not None for lane in self._lanes)

    @property
    def stuck_message(self) -> str:
        """What is told to those who are refused for it."""
        return (
            f"{self.title} has not answered for over {self._options.inference_timeout_s:g} s: "
            "requests are refused until it does or a fresh copy has taken its place; if it stays "
            "so, restart the policy server"
        )

    def stuck_for(self, now: float) -> float:
        """Seconds since a prediction that hangs was found to; 0.0 where none does."""
        began = [lane.batch.began_at for lane in self._lanes if lane.batch and lane.stuck]
        return now - min(began) - self._options.inference_timeout_s if began else 0.0

    def slots(self, instructions: Instructions) -> list[NewestSlot]:
        """Empty slots for a session, one a lane."""
        options, names = self._options, instructions.state_names
        # A policy with lanes answers to more than the state: to touch quickly, to pictures slowly.
        unchanged_for_s = 0.0 if self._laned else options.unchanged_for_s
        return [
            NewestSlot(Likeness(options.similarity, names, options.joint_ranges), unchanged_for_s)
            for _ in self._lanes
        ]

    def lane_of(self, observation: Observation) -> int:
        """Which of a session's slots the observation belongs into; needs no lock."""
        return self._laned.lane_of(observation) if self._laned else 0

    def request(self, session: Session) -> None:
        """Queue the session's observations if somebody waits for answers; refuse where it hangs."""
        for lane, slot in zip(self._lanes, session.slots, strict=True):
            if not slot.filled or not session.wants_answers or self._ended:
                continue
            if lane.stuck:
                slot.clear()
                self._give(session, Refusal("timed_out", self.stuck_message), 0.0)
            elif session not in lane.ready:
                lane.ready[session] = time.monotonic()
                lane.changed.notify_all()

    def drop(self, session: Session) -> None:
        """Do nothing more for the session."""
        self.sessions.discard(session)
        for lane in self._lanes:
            lane.ready.pop(session, None)

    def take_over(self, session: Session, memory: SessionMemory | ServingError) -> None:
        """Go on with a session of a copy that hangs; what its client is told otherwise."""
        if session.closed or session.instructions is None:
            return
        if isinstance(memory, ServingError):
            self._give(session, Refusal(memory.kind, str(memory)), 0.0)
            session.worker = session.memory = None
            return
        outbox = list(session.outbox)
        session.begin(session.instructions, self, memory, self.slots(session.instructions))
        session.outbox.extend(outbox)
        self.sessions.add(session)

    def find_overdue(self, now: float) -> None:
        """Give up predictions that take too long, and refuse who waits for them."""
        for lane in self._lanes:
            batch = lane.batch
            if batch is None or batch.overdue:
                continue
            if now - batch.began_at <= self._options.inference_timeout_s:
                continue
            self._tally.stuck += 1
            logger.error("%s", self.stuck_message)
            for session in lane.give_up(now):
                self._give(session, Refusal("timed_out", self.stuck_message), 0.0)

    def end(self) -> None:
        """Let the threads end; the one that hangs is left behind."""
        self._ended = True
        if isinstance(self.policy, ClosingPolicy):
            self.policy.close()
        for lane in self._lanes:
            lane.ready.clear()
            lane.changed.notify_all()

    def join(self, deadline: float) -> None:
        """Wait for the threads to end, until `deadline`; without the lock, after `end`."""
        for lane in self._lanes:
            if lane.thread is not None and not lane.stuck:
                lane.thread.join(max(deadline - time.monotonic(), 0.0))

    def _run(self, lane: Lane) -> None:
        while (batch := self._next(lane)) is not None:
            self._predict(batch)
            with self._lock:
                was_overdue, lane.batch = batch.overdue, None
                if was_overdue and not self._ended:
                    logger.warning("%s answers again", self.title)
                    for session in self.sessions:
                        self.request(session)

    def _predict(self, batch: Batch) -> None:
        # A method of its own: the thread must not hold on to observations while it waits for more.
        taken = list(batch.taken)
        began_at, results = self._call(taken)
        if isinstance(results, BaseException) and len(taken) > 1:
            logger.debug("%s: %s: one by one", self.title, in_one_line(results))
            for one in taken:
                if not self._begin_again(batch):
                    break
                began_at, results = self._call([one])
                self._finish(batch, [one], results, began_at)
        else:
            self._finish(batch, taken, results, began_at)

    def _next(self, lane: Lane) -> Batch | None:
        """Wait for sessions that want an answer and take their observations; None at the end."""
        with self._lock:
            while not self._ended:
                if not lane.ready:
                    lane.changed.wait()
                    continue
                gather_s = self._options.batch_window_s
                if gather_s and len(lane.ready) < self._most_batched:
                    left_s = next(iter(lane.ready.values())) + gather_s - time.monotonic()
                    if left_s > 0:
                        lane.changed.wait(left_s)
                        continue
                now = time.monotonic()
                if taken := lane.take(self._most_batched, now):
                    lane.batch = Batch(taken, now)
                    return lane.batch
        return None

    def _call(
        self, taken: Sequence[Taken]
    ) -> tuple[float, Sequence[Predicted | BaseException] | BaseException]:
        """When the call began, and its results or what it raised."""
        began_at = time.monotonic()
        try:
            results = self.policy.predict([one.request for one in taken])
            if len(results) != len(taken):
                raise ValueError(f"{len(results)} results for {len(taken)} observations")
        except BaseException as error:
            # Whatever a model does, SystemExit too, it must not end the thread. The traceback would
            # hold on to the observations, in a ring, until the garbage collector comes by.
            return began_at, error.with_traceback(None)
        return began_at, results

    def _begin_again(self, batch: Batch) -> bool:
        """Give the next call its own time to hang; False where the batch was given up."""
        with self._lock:
            batch.began_at = time.monotonic()
            return not batch.overdue and not self._ended

    def _finish(
        self,
        batch: Batch,
        taken: Sequence[Taken],
        results: Sequence[Predicted | BaseException] | BaseException,
        began_at: float,
    ) -> None:
        ended_at = time.monotonic()
        due_at = began_at + self._options.inference_latency_s
        if isinstance(results, BaseException):
            results = [results] * len(taken)
        replies = [
            self._replier.reply(result, one.waiting, one.instructions, ended_at - began_at)
            for one, result in zip(taken, results, strict=True)
        ]
        pushed: list[tuple[Subscription, Reply]] = []
        with self._lock:
            if batch.overdue:
                return
            self._tally.predictions += len(taken)
            self._tally.batch_sizes[len(taken)] += 1
            self._tally.inference_s.append(ended_at - began_at)
            for one, reply in zip(taken, replies, strict=True):
                batch.taken.remove(one)
                if not one.concerns_session:
                    continue
                session = one.session
                session.running -= 1
                if isinstance(reply, Refusal):
                    one.failed()
                    self._complain(reply.message)
                if session.subscription is None or isinstance(reply, Refusal):
                    self._give(session, reply, due_at)
                else:
                    session.counts.answers += 1
                    session.changed.notify_all()
                    pushed.append((session.subscription, reply))
                self.request(session)
        for subscription, reply in pushed:
            self._pusher.deliver(due_at, subscription, reply)

    def _complain(self, message: str) -> None:
        """Log a failure, unless one was logged just now: a policy may fail with every call."""
        now = time.monotonic()
        if now >= self._complains_at:
            self._complains_at = now + _COMPLAIN_EVERY_S
            self._seldom.log(logging.WARNING, "%s", message)

    def _give(self, session: Session, reply: Reply, due_at: float) -> None:
        if session.closed:
            return
        if isinstance(reply, Refusal):
            due_at = 0.0
            session.counts.refusals += 1
            self._tally.refusals[reply.kind] += 1
        else:
            session.counts.answers += 1
        if session.subscription is not None:
            self._pusher.push(due_at, session.subscription, reply)
            session.changed.notify_all()
        else:
            session.keep(DueReply(reply, due_at))
