"""What may look on while the receiver works: a recorder, a viewer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from receiver.actions import ActionRecord
    from receiver.inputs import StoredFrame, StoredState

__all__ = ["Tap"]


class Tap(Protocol):
    """Is shown everything that comes in and goes out, from the thread that handles it.

    Every call returns in microseconds, never waits and never raises: what cannot be taken is
    dropped and counted by the tap.
    """

    def frame(self, view: str, stored: StoredFrame) -> None:
        """A picture came (the camera thread)."""
        ...

    def state(self, stored: StoredState) -> None:
        """A robot state came (the robot thread)."""
        ...

    def samples(self, datagram: memoryview, arrived_at: float) -> None:
        """A sound datagram came (the sensor thread); its bytes are good during the call only."""
        ...

    def action(self, record: ActionRecord) -> None:
        """An action was published (the fast loop)."""
        ...
