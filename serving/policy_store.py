"""The policies that a server holds: each loaded once, shared, and kept while there is room."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from serving.engine_options import EngineOptions
from serving.left_behind import LeftBehind
from serving.messages import Instructions, ServingError
from serving.metrics import Tally
from serving.policies import check_path
from serving.policy_worker import PolicyWorker
from serving.pusher import Pusher
from serving.replies import in_one_line, printable
from serving.seldom import Seldom
from serving.served import ServedPolicy, SessionMemory

__all__ = ["Load", "PolicyEntry", "PolicyStore", "admit"]

logger = logging.getLogger("serving.engine")

Load = Callable[[Instructions, EngineOptions], ServedPolicy]

_MOST_FILES_LOOKED_AT = 1000
_LOOK_S = 0.25
"""How often one that waits for a policy looks whether its session is still there."""


@dataclass(slots=True, eq=False)
class PolicyEntry:
    """A policy that is there or being loaded. Who reads or changes it holds the engine's lock.

    Attributes:
        key: what it was asked for by.
        title: what it is called in messages.
        instructions: what it is loaded from.
        changed: notified when loading has ended.
        tally: of all its copies.
        worker: the copy in use; None while it loads.
        error: why it cannot be loaded.
        pins: sessions that use it or wait for it; an entry without any may be dropped.
        used_at: when it was last asked for.
        copying: whether a fresh copy is being loaded.
        tries_at: when the next copy may be loaded.
        copies: how many were begun.
    """

    key: tuple[object, ...]
    title: str
    instructions: Instructions
    changed: threading.Condition
    tally: Tally = field(default_factory=Tally)
    worker: PolicyWorker | None = None
    error: ServingError | None = None
    pins: int = 0
    used_at: float = 0.0
    copying: bool = False
    tries_at: float = 0.0
    copies: int = 0


class PolicyStore:
    """Loads policies, each in a thread of its own, so that no session waits for another's."""

    def __init__(
        self, options: EngineOptions, load: Load, lock: threading.Lock, pusher: Pusher
    ) -> None:
        """Share the engine's lock; `pusher` is for sessions that have answers pushed.

        `past` is what the policies did that are no longer kept, `left` those of them that hang.
        """
        self._options, self._load, self._lock, self._pusher = options, load, lock, pusher
        self._entries: dict[tuple[object, ...], PolicyEntry] = {}
        self._ended = False
        self._seldom = Seldom(logger)
        self.past = Tally()
        self.left = LeftBehind(options.most_left_behind)

    def obtain(self, instructions: Instructions, gone: Callable[[], bool]) -> PolicyEntry:
        """The policy, loaded and pinned; waits while it loads, without the lock.

        Args:
            instructions: what to load.
            gone: whether nobody wants it any more, asked with the lock held.

        Raises:
            ServingError: with a line that says what to do.
        """
        instructions = check_path(instructions, self._options)
        key = _key(instructions)
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                entry = self._begin(key, instructions)
            entry.pins += 1
            entry.used_at = time.monotonic()
            give_up_at = entry.used_at + self._options.load_timeout_s
            try:
                self._wait_loaded(entry, give_up_at, gone)
            except ServingError:
                entry.pins -= 1
                raise
            return entry

    def release(self, entry: PolicyEntry) -> None:
        """One session less uses the policy; with the lock."""
        entry.pins -= 1
        entry.used_at = time.monotonic()

    def entries(self) -> list[PolicyEntry]:
        """All of them; with the lock."""
        return list(self._entries.values())

    def replace_stuck(self, now: float) -> None:
        """Begin to load a fresh copy of what has been stuck for too long; with the lock."""
        for entry in self._entries.values():
            if entry.worker is None or entry.copying or now < entry.tries_at:
                continue
            stuck_s = entry.worker.stuck_for(now)
            if not stuck_s or stuck_s < self._options.replace_after_s:
                continue
            if entry.copies >= self._options.most_replaced or self.left.full:
                continue
            entry.copying = True
            entry.copies += 1
            logger.warning(
                "%s has been stuck for %.0f s: loading a fresh copy (%d of %d)",
                entry.title, stuck_s, entry.copies, self._options.most_replaced,
            )  # fmt: skip
            threading.Thread(
                target=self._copy, args=(entry, entry.worker), name="load copy", daemon=True
            ).start()

    def end(self) -> list[PolicyWorker]:
        """End all workers and let go of whoever waits; with the lock. They can be joined then."""
        self._ended = True
        workers = [entry.worker for entry in self._entries.values() if entry.worker]
        for worker in workers:
            worker.end()
        for entry in self._entries.values():
            entry.changed.notify_all()
        return workers

    def _wait_loaded(self, entry: PolicyEntry, give_up_at: float, gone: Callable[[], bool]) -> None:
        while entry.worker is None:
            left_s = give_up_at - time.monotonic()
            if entry.error is not None:
                raise ServingError(entry.error.kind, str(entry.error))
            if self._ended:
                raise ServingError("busy", "the policy server is stopping")
            if gone():
                raise ServingError("no_session", "the session ended while its policy loaded")
            if left_s <= 0:
                raise ServingError(
                    "timed_out", f"{entry.title} is still loading: ask again to go on waiting"
                )
            entry.changed.wait(min(left_s, _LOOK_S))
        if entry.worker.stuck:
            raise ServingError("timed_out", entry.worker.stuck_message)

    def _begin(self, key: tuple[object, ...], instructions: Instructions) -> PolicyEntry:
        if self._ended:
            raise ServingError("busy", "the policy server is stopping")
        title = f"{instructions.policy_type} from {instructions.path}"
        title = printable(f"{title} on {instructions.device}")
        self.left.check(title)
        self._make_room()
        entry = PolicyEntry(key, title, instructions, threading.Condition(self._lock))
        self._entries[key] = entry
        threading.Thread(target=self._fill, args=(entry,), name="load", daemon=True).start()
        return entry

    def _make_room(self) -> None:
        full = self.left.full
        unused = [
            entry
            for entry in self._entries.values()
            if entry.worker and not entry.pins and not (full and entry.worker.computing)
        ]
        unused.sort(key=lambda entry: entry.used_at)
        while len(self._entries) >= self._options.most_policies:
            if not unused:
                raise ServingError(
                    "busy",
                    f"{len(self._entries)} policies are in use, loading or hung, which is all "
                    "this server keeps: ask for one of them, or try again when a client has left",
                )
            oldest = unused.pop(0)
            assert oldest.worker is not None
            self._seldom.log(logging.INFO, "%s is not in use: making room", oldest.title)
            oldest.worker.end()
            self.left.add(oldest.worker)
            self.past.add(oldest.tally)
            del self._entries[oldest.key]

    def _fill(self, entry: PolicyEntry) -> None:
        began_at = time.monotonic()
        try:
            policy = self._load(entry.instructions, self._options)
            with self._lock:
                if not self._ended:
                    entry.worker = self._work(entry, policy)
                entry.changed.notify_all()
        except BaseException as error:
            # Loading runs a library's code: whatever it raises, whoever waits must hear of it.
            refusal = self._not_loaded(entry, error)
            with self._lock:
                entry.error = refusal
                del self._entries[entry.key]
                entry.changed.notify_all()
        else:
            took_s = time.monotonic() - began_at
            self._seldom.log(logging.INFO, "%s is loaded, in %.1f s", entry.title, took_s)

    def _not_loaded(self, entry: PolicyEntry, error: BaseException) -> ServingError:
        """What is told of a load that failed; logged with the error behind a refusal."""
        refusal = _refusal(entry.title, error)
        self._seldom.log(logging.WARNING, "not loaded: %s", refusal, cause=error.__cause__)
        return refusal

    def _work(self, entry: PolicyEntry, policy: ServedPolicy) -> PolicyWorker:
        shared = (self._options, self._lock, self._pusher, self._seldom)
        return PolicyWorker(entry.title, policy, entry.tally, *shared)

    def _copy(self, entry: PolicyEntry, old: PolicyWorker) -> None:
        """Load a copy and give it the sessions of the one that hangs, if that still does."""
        try:
            policy = self._load(entry.instructions, self._options)
            moved = self._move(entry, old, policy)
        except BaseException as error:
            self._not_loaded(entry, error)
            moved = False
        with self._lock:
            entry.copying = False
            entry.tries_at = time.monotonic() + self._options.replace_after_s
            if moved:
                entry.tally.fresh_copies += 1
                logger.warning("%s goes on with a fresh copy", entry.title)

    def _move(self, entry: PolicyEntry, old: PolicyWorker, policy: ServedPolicy) -> bool:
        memories: dict[object, SessionMemory | ServingError] = {}
        while True:
            with self._lock:
                new = [session for session in old.sessions if session not in memories]
                if self._ended or not old.stuck or self._entries.get(entry.key) is not entry:
                    return False
                if not new:
                    worker = entry.worker = self._work(entry, policy)
                    for session in list(old.sessions):
                        worker.take_over(session, memories[session])
                    old.sessions.clear()
                    old.end()
                    self.left.add(old)
                    return True
                asked = [(session, session.instructions) for session in new]
            for session, instructions in asked:
                try:
                    assert instructions is not None  # a worker's sessions have some
                    memories[session] = admit(policy, entry.title, instructions)
                except ServingError as error:
                    memories[session] = error


def admit(policy: ServedPolicy, title: str, instructions: Instructions) -> SessionMemory:
    """Begin a session of the policy; ServingError where it does not fit, or raises another."""
    try:
        return policy.admit(instructions)
    except ServingError:
        raise
    except Exception as error:
        raise ServingError("failed", f"{title} cannot begin: {in_one_line(error)}") from error


def _refusal(title: str, error: BaseException) -> ServingError:
    if isinstance(error, ServingError):
        return ServingError(error.kind, printable(error))
    return ServingError("failed", f"{title} cannot be loaded: {in_one_line(error)}")


def _key(instructions: Instructions) -> tuple[object, ...]:
    """What makes two policies the same one; new files under an old name make another.

    How a client's observations are renamed is the session's affair, not the weights'.
    """
    wanted = (instructions.policy_type, instructions.path, instructions.device)
    return (*wanted, _stamp(instructions.path))


def _stamp(path: str) -> int:
    """When the newest file of a policy was changed, in nanoseconds; 0 for what is no file."""
    try:
        place = Path(path)
        stamps = [place.stat().st_mtime_ns]
        if place.is_dir():
            with os.scandir(place) as found:
                for _, file in zip(range(_MOST_FILES_LOOKED_AT), found, strict=False):
                    stamps.append(file.stat().st_mtime_ns)
    except (OSError, ValueError):
        return 0
    return max(stamps)
