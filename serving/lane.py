"""One lane of a policy: the sessions that wait for it, and what its thread is at."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from serving.messages import Instructions
from serving.newest import NewestSlot, Waiting
from serving.served import Request, SessionMemory
from serving.session import Session

__all__ = ["Batch", "Lane", "Taken"]


@dataclass(slots=True, eq=False)
class Taken:
    """An observation that is being predicted from, and its session as it was then."""

    session: Session
    memory: SessionMemory
    instructions: Instructions
    slot: NewestSlot
    waiting: Waiting

    @property
    def request(self) -> Request:
        """What the policy is asked."""
        return Request(self.waiting.observation, self.memory, self.waiting.arrived_at)

    @property
    def concerns_session(self) -> bool:
        """Whether the session is still what it was: not ended, nor begun again."""
        return self.session.memory is self.memory and not self.session.closed

    def failed(self) -> None:
        """No answer comes of it: the same step may be tried again."""
        self.slot.failed(self.waiting.observation.timestep)


@dataclass(slots=True, eq=False)
class Batch:
    """What a thread is at.

    Attributes:
        taken: the observations without a result yet.
        began_at: when the call that is under way began, `time.monotonic()` seconds.
        overdue: whether the call was given up; then whatever comes of it is thrown away.
    """

    taken: list[Taken]
    began_at: float
    overdue: bool = False


@dataclass(slots=True, eq=False)
class Lane:
    """Who reads or changes it holds the engine's lock.

    Attributes:
        name: for people.
        number: which of the policy's lanes it is, and which slot of a session.
        changed: notified when a session becomes ready, and at the end.
        ready: sessions to predict for, in their order, and since when.
        batch: what the thread is at.
        thread: it.
    """

    name: str
    number: int
    changed: threading.Condition
    ready: dict[Session, float] = field(default_factory=dict)
    batch: Batch | None = None
    thread: threading.Thread | None = None

    @property
    def stuck(self) -> bool:
        """Whether its call was given up and has not returned."""
        return self.batch is not None and self.batch.overdue

    def take(self, most: int, now: float) -> list[Taken]:
        """The observations of up to `most` sessions, those first that have waited longest."""
        taken = []
        for session in list(self.ready)[:most]:
            del self.ready[session]
            slot, memory = session.slots[self.number], session.memory
            if slot.filled and memory is not None and session.instructions is not None:
                session.running += 1
                taken.append(Taken(session, memory, session.instructions, slot, slot.take(now)))
        return taken

    def give_up(self, now: float) -> list[Session]:
        """Give up the call that is under way; the sessions that wait for this lane in vain."""
        refused = dict(self.ready)
        for session in refused:
            session.slots[self.number].clear()
        if self.batch is not None:
            self.batch.overdue = True
            for taken in self.batch.taken:
                if taken.concerns_session:
                    taken.session.running -= 1
                    taken.failed()
                    refused[taken.session] = now
            self.batch.taken.clear()
        self.ready.clear()
        return list(refused)
