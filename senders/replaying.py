"""The timeline on which a recorded session is played again, shared by robot, cameras and sensor.

Session time 0 is the session's first moment. A reading is due at start + (when it was sent −
first moment) / speed; its stamps move along, so that ages and the relations between the streams
are those of the recording. Three programs that are given the same `start_at` play in step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Lock
from time import monotonic

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.clock import wall
from common.session import Session, SessionError
from senders.drivers import DriverError

__all__ = ["Timeline", "check_speed", "finished_session", "moments_sent", "open_recording"]
__all__ += ["played_span", "wait_until"]

Vector = NDArray[np.float64]

MIN_SPEED, MAX_SPEED = 0.01, 100.0
BETWEEN_ROUNDS_S = 0.1
"""Session seconds from the last reading to the end, and with `loop` to the next round's first."""
_LATE_S = 10.0
_AHEAD_S = 86_400.0
_LONGEST_S = 86_400.0
_LONGEST_DELAY_S = 10.0


def check_speed(speed: float) -> None:
    """ValueError for a speed that cannot be played."""
    if not MIN_SPEED <= speed <= MAX_SPEED:  # false for NaN too
        raise ValueError(f"speed must be from {MIN_SPEED:g} to {MAX_SPEED:g}, not {speed:g}")


class Timeline:
    """Where every moment of a recording lies in this run. `start` is for any thread."""

    def __init__(
        self, begin: float, end: float, speed: float = 1.0, loop: bool = False, start_at: float = 0
    ) -> None:
        """Play the session's seconds `begin` to `end` (UNIX, the receiver's clock).

        Args:
            begin: the moment that session time 0 is.
            end: the moment of the last reading.
            speed: session seconds a second, 0.01 to 100.
            loop: begin again at the end.
            start_at: UNIX seconds at which it begins; 0: when `start` is called first.

        Raises ValueError, one line, for what cannot be played.
        """
        check_speed(speed)
        if start_at != 0:
            ahead_s = start_at - wall()
            if not -_LATE_S <= ahead_s <= _AHEAD_S:
                far = f"{abs(ahead_s):.0f} s {'ahead' if ahead_s > 0 else 'ago'}"
                raise ValueError(f"start_at is {far}: give UNIX seconds that are soon, or 0")
        self.begin, self.speed, self.loop = begin, speed, loop
        self.length_s = end - begin + BETWEEN_ROUNDS_S
        self._start_at = start_at
        self._starts: tuple[float, float] | None = None
        self._lock = Lock()

    def start(self) -> None:
        """Fix when it begins; does nothing when that is fixed already."""
        with self._lock:
            if self._starts is None:
                moment, unix = monotonic(), wall()
                at = self._start_at or unix
                self._starts = (moment + (at - unix), at)

    def rounds(self) -> Iterator[int]:
        """The rounds to play: 0, and with `loop` all that follow."""
        return itertools.count() if self.loop else iter((0,))

    def offset_s(self, moment: float, round_: int = 0) -> float:
        """Seconds from the start to a moment of the session, in a round."""
        return (moment - self.begin + round_ * self.length_s) / self.speed

    def deadline(self, moment: float, round_: int = 0) -> float:
        """When a moment of the session is due, in seconds of the monotonic clock."""
        return self._started()[0] + self.offset_s(moment, round_)

    def stamp(self, moment: float, round_: int = 0) -> float:
        """What UNIX time a moment of the session is in this run."""
        return self._started()[1] + self.offset_s(moment, round_)

    def stamps(self, moments: Vector, round_: int = 0) -> Vector:
        """What UNIX times (N,) moments of the session are in this run."""
        shift = moments - self.begin + round_ * self.length_s
        found: Vector = self._started()[1] + shift / self.speed
        return found

    @property
    def over_at(self) -> float:
        """The monotonic second at which a recording that is not played in a loop is over."""
        return self._started()[0] + self.length_s / self.speed

    def _started(self) -> tuple[float, float]:
        if self._starts is None:
            raise DriverError("the recording is not open")
        return self._starts


def wait_until(deadline: float, stop: Event, timeout_s: float = math.inf) -> bool:
    """Whether `deadline` (monotonic) came before `stop` was set and before the time was up."""
    until = min(deadline, monotonic() + timeout_s)
    while (left := until - monotonic()) > 0:
        if stop.wait(left):
            return False
    return deadline <= until and not stop.is_set()


def moments_sent(sent_at: ArrayLike, stamped_at: ArrayLike, arrived_at: ArrayLike) -> Vector:
    """When (N,) readings were sent, rising, so that their order is that in which they came.

    All in the receiver's clock, NaN where not known. A moment of sending that cannot be (after the
    arrival, or over 10 s before it) is a broken stamp: the arrival counts then. What is not known
    either way stays NaN.
    """
    sent, arrived = np.asarray(sent_at, np.float64), np.asarray(arrived_at, np.float64)
    sent = np.where(np.isfinite(sent), sent, np.asarray(stamped_at, np.float64))
    with np.errstate(invalid="ignore"):
        broken = (sent > arrived) | (sent < arrived - _LONGEST_DELAY_S)
    sent = np.where(broken | ~np.isfinite(sent), arrived, sent)
    found: Vector = np.where(np.isfinite(sent), np.fmax.accumulate(sent), np.nan)
    return found


def _last_moments(session: Session) -> Iterator[float]:
    yield session.span[1]
    for rows in (session.states, session.samples):
        if len(rows):
            sent = moments_sent(rows.sent_at, rows.sampled_at, rows.received_at)
            yield float(np.nanmax(sent, initial=-math.inf))
    for entry in session.all_frames:
        yield min(entry.sent_at, entry.arrived_at if entry.arrived_at > 0 else math.inf)


def played_span(session: Session) -> tuple[float, float]:
    """First and last moment of a session's readings; SessionError where they cannot be played."""
    begin = session.span[0]
    end = max(_last_moments(session))
    if not math.isfinite(end - begin) or begin < 0:
        raise SessionError(
            f"{session.folder}: stamps are broken; scripts/validate_session.py says which"
        )
    if end - begin > _LONGEST_S:
        raise SessionError(
            f"{session.folder}: its streams lie {(end - begin) / 3600:.0f} hours apart, as where "
            "clocks were not set: it cannot be replayed"
        )
    return begin, end


def finished_session(folder: Path) -> Session:
    """The session in `folder`; SessionError, one line, where it is none or was cut short."""
    found = Session(folder.expanduser())
    if found.unfinished:
        raise SessionError(
            f"{found.folder}: {found.unfinished[0].name} is unfinished: run "
            "scripts/recover_session.py on it first"
        )
    return found


def open_recording(
    session: str, speed: float, loop: bool, start_at: float
) -> tuple[Session, Timeline]:
    """The session to play and its timeline; DriverError or ValueError, one line, if it cannot be.

    Reads all of the session but pictures and A-scans, so that every stream's driver comes to the
    same timeline.
    """
    if not session:
        raise DriverError("say which recording: --driver-options session=PATH")
    found = finished_session(Path(session))
    return found, Timeline(*played_span(found), speed, loop, start_at)
