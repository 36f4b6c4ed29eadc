"""Where one episode ends and the next begins."""

from __future__ import annotations

from dataclasses import dataclass, replace

from receiver.threads import Latest

__all__ = ["Episode", "Episodes"]


@dataclass(frozen=True, slots=True)
class Episode:
    """One episode: its number from 1, when it started, and whether it still runs."""

    number: int
    started_at: float
    active: bool = True


class Episodes:
    """The current episode. The robot's messages start and end them (receiver's input thread)."""

    def __init__(self) -> None:
        """No episode yet."""
        self._current: Latest[Episode] = Latest()

    @property
    def current(self) -> Episode | None:
        """The newest episode, running or over; None before the first."""
        return self._current.get()

    @property
    def running(self) -> bool:
        """Whether an episode runs now."""
        return (episode := self.current) is not None and episode.active

    def begin_if_none(self, at: float) -> None:
        """A robot state came in `at`: it starts an episode unless one runs."""
        if not self.running:
            episode = self.current
            self._current.put(Episode(episode.number + 1 if episode else 1, at))

    def end(self) -> None:
        """The robot's side ended the episode."""
        if (episode := self.current) and episode.active:
            self._current.put(replace(episode, active=False))
