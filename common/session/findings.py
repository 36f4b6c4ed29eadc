"""What a look at a recorded session comes to: its streams, what is wrong with it, a verdict."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["Finding", "SessionReport", "StreamReport"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        stream: a view, `robot`, `sensor`, or `session` for all of it.
        text: what it is, in a line.
        broken: the session cannot be used as it is; otherwise it is a remark.
    """

    stream: str
    text: str
    broken: bool = False


@dataclass(frozen=True, slots=True)
class StreamReport:
    """One stream of a session; times in UNIX seconds of the receiver's clock.

    Attributes:
        stream: a view, `robot` or `sensor`.
        count: pictures, states or samples.
        rate_hz: their mean rate.
        begin: the first one's time.
        end: the last one's time.
        longest_gap_s: the longest time between two.
        gaps: how many times between two are over 3 periods (medians).
    """

    stream: str
    count: int
    rate_hz: float
    begin: float
    end: float
    longest_gap_s: float
    gaps: int


@dataclass
class SessionReport:
    """A session and what was found in it."""

    folder: Path
    streams: list[StreamReport] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    actions: int = 0
    pictures_checked: int = 0

    @property
    def verdict(self) -> Literal["ok", "ok with remarks", "broken"]:
        """Whether it can be used."""
        if any(finding.broken for finding in self.findings):
            return "broken"
        return "ok with remarks" if self.findings else "ok"

    @property
    def seconds(self) -> float:
        """From the first reading of any stream to the last of any."""
        spans = [(s.begin, s.end) for s in self.streams]
        return max(e for _, e in spans) - min(b for b, _ in spans) if spans else 0.0

    @property
    def covered_s(self) -> float:
        """Seconds for which all streams that there are have data; below 0: how far they miss."""
        spans = [(s.begin, s.end) for s in self.streams]
        return min(e for _, e in spans) - max(b for b, _ in spans) if spans else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a file."""
        return {
            "folder": str(self.folder),
            "verdict": self.verdict,
            "seconds": self.seconds,
            "covered_s": self.covered_s,
            "actions": self.actions,
            "pictures_checked": self.pictures_checked,
            "streams": [dataclasses.asdict(stream) for stream in self.streams],
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
        }
