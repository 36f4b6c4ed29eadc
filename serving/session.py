"""One client's state in the engine: its policy, its newest observations, its answers."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from common.jpeg import JpegError, jpeg_size
from serving.messages import BadMessage, Instructions, Observation, Reply
from serving.metrics import SessionCounts
from serving.newest import NewestSlot
from serving.served import SessionMemory

if TYPE_CHECKING:
    from serving.policy_store import PolicyEntry
    from serving.policy_worker import PolicyWorker

__all__ = ["DueReply", "Session", "Subscription", "check_fits"]


@dataclass(frozen=True, slots=True)
class DueReply:
    """An answer that may be given out from `due_at` on (`time.monotonic()` seconds)."""

    reply: Reply
    due_at: float


@dataclass(slots=True, eq=False)
class Subscription:
    """Passes answers on to a client until its session has ended.

    An answer that was held back until it is due must not reach the client's next session.
    """

    deliver: Callable[[Reply], None]
    ended: bool = False

    def __call__(self, reply: Reply) -> None:
        """Deliver the answer, unless it comes too late."""
        if not self.ended:
            self.deliver(reply)


@dataclass(slots=True, eq=False)
class Session:
    """What the engine keeps of one client. Who reads or changes it holds the engine's lock.

    Attributes:
        client: its id.
        changed: notified when an answer comes or the session ends; waited on by `answer`.
        heard_at: when the client last asked for anything.
        calls: calls of the client's that are under way; such a session is not idle.
        instructions: what it asked for; None before.
        entry: the policy it uses, pinned; None before the instructions.
        worker: who predicts for it; None before the instructions.
        memory: the policy's; a new one whenever the session gets a policy, so that what comes of
            an earlier one is known by it.
        slots: the newest observation of each of the policy's lanes.
        waiting: how many `answer` calls wait.
        running: how many of its observations are being predicted from.
        outbox: answers that wait for an `answer` call, the oldest first.
        subscription: takes the answers instead of `answer`.
        closed: the session has ended.
        counts: what the client sent and got.
    """

    client: str
    changed: threading.Condition
    heard_at: float
    calls: int = 0
    instructions: Instructions | None = None
    entry: PolicyEntry | None = None
    worker: PolicyWorker | None = None
    memory: SessionMemory | None = None
    slots: list[NewestSlot] = field(default_factory=list)
    waiting: int = 0
    running: int = 0
    outbox: deque[DueReply] = field(default_factory=deque)
    subscription: Subscription | None = None
    closed: bool = False
    counts: SessionCounts = field(default_factory=SessionCounts)

    @property
    def wants_answers(self) -> bool:
        """Whether somebody waits for more than there is: only then is anything predicted."""
        return self.subscription is not None or self.waiting > len(self.outbox)

    @property
    def expecting(self) -> bool:
        """Whether an observation waits or is being predicted from."""
        return self.running > 0 or any(slot.filled for slot in self.slots)

    def keep(self, due: DueReply) -> None:
        """Keep an answer until somebody asks; of those that nobody waits for, the newest."""
        self.outbox.append(due)
        while len(self.outbox) > max(self.waiting, len(self.slots), 1):
            self.outbox.popleft()
        self.changed.notify_all()

    def begin(
        self,
        instructions: Instructions,
        worker: PolicyWorker,
        memory: SessionMemory,
        slots: list[NewestSlot],
    ) -> None:
        """Start afresh with a policy."""
        self.instructions, self.worker = instructions, worker
        self.memory, self.slots = memory, slots
        self.running = 0
        self.outbox.clear()
        self.changed.notify_all()


def check_fits(observation: Observation, instructions: Instructions) -> None:
    """BadMessage unless the observation is of the shape that the instructions announced.

    Pictures may be missing (a camera can fail); which ones it needs, the policy says.
    """
    names = instructions.state_names
    if names and len(observation.state) != len(names):
        raise BadMessage(
            f"{len(observation.state)} state values came, {len(names)} were announced: send what "
            "state_names of the instructions says"
        )
    for camera, picture in observation.pictures.items():
        announced = instructions.cameras.get(camera)
        if announced is None:
            known = ", ".join(instructions.cameras) or "none"
            raise BadMessage(f"camera {camera!r} was not announced in the instructions: {known}")
        if picture.pixels is not None:
            shape: tuple[int, ...] = picture.pixels.shape
        else:
            try:
                width, height = jpeg_size(picture.jpeg or b"")
            except JpegError as error:
                raise BadMessage(f"camera {camera!r}: not a JPEG ({error})") from None
            shape = (height, width, announced[2])
        if shape != tuple(announced):
            raise BadMessage(
                f"camera {camera!r}: a picture of {shape} came, {tuple(announced)} was announced"
            )
