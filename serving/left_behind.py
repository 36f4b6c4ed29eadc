"""Policies that were let go of while they computed: what hangs can be neither ended nor freed."""

from __future__ import annotations

from serving.messages import ServingError
from serving.policy_worker import PolicyWorker

__all__ = ["LeftBehind"]


class LeftBehind:
    """Workers whose call has not returned. Every call is made with the engine's lock held.

    Each keeps a thread, its policy and the observation that it hangs at.
    """

    def __init__(self, most: int) -> None:
        """Be full with `most` of them."""
        self._most = most
        self._workers: list[PolicyWorker] = []

    def __len__(self) -> int:
        """How many there are; one whose call returns in the end is none any more."""
        self._workers = [worker for worker in self._workers if worker.computing]
        return len(self._workers)

    @property
    def full(self) -> bool:
        """Whether no more may be left behind."""
        return len(self) >= self._most

    def add(self, worker: PolicyWorker) -> None:
        """A worker was ended, whatever it was at."""
        self._workers.append(worker)

    def check(self, title: str) -> None:
        """ServingError("failed") for a policy that is among them, when there may be no more."""
        if self.full and any(worker.title == title for worker in self._workers):
            raise ServingError(
                "failed",
                f"{title} hangs, and {len(self)} policies that hang were left behind already: "
                "restart the policy server",
            )
