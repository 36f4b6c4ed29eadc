"""Memory, files and threads of processes over time, and whether they grow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

__all__ = ["Growth", "Sample", "growth", "sampled"]

_PAGE = os.sysconf("SC_PAGE_SIZE")
_FEWEST = 12
_MOST_MB, _MOST_SHARE = 16.0, 0.1
_MOST_MORE = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """A process at a moment.

    Attributes:
        at: monotonic seconds.
        pid: which process.
        rss_mb: memory in use, MB.
        files: open file descriptors.
        threads: threads.
    """

    at: float
    pid: int
    rss_mb: float
    files: int
    threads: int


def sampled(pid: int, at: float) -> Sample | None:
    """How a process is now (Linux); None when there is none."""
    try:
        base = Path(f"/proc/{pid}")
        pages = int((base / "statm").read_text().split()[1])
        files = len(os.listdir(base / "fd"))
        threads = len(os.listdir(base / "task"))
    except (OSError, IndexError, ValueError):
        return None
    return Sample(at, pid, pages * _PAGE / 1e6, files, threads)


@dataclass(frozen=True, slots=True)
class Growth:
    """What a process has more of at the end than after warming up; medians of a quarter each.

    Attributes:
        seconds: between the middles of the two quarters.
        rss_mb: MB of memory, and what it had at first.
        first_mb: MB at first.
        files: file descriptors.
        threads: threads.
    """

    seconds: float
    rss_mb: float
    first_mb: float
    files: float
    threads: float

    @property
    def leaks(self) -> list[str]:
        """What grew by more than it may, in words."""
        found = []
        if self.rss_mb > _MOST_MB + _MOST_SHARE * self.first_mb:
            found.append(f"memory by {self.rss_mb:.0f} MB in {self.seconds:.0f} s")
        if self.files > _MOST_MORE:
            found.append(f"open files by {self.files:.0f}")
        if self.threads > _MOST_MORE:
            found.append(f"threads by {self.threads:.0f}")
        return found


def growth(samples: Sequence[Sample], warm_s: float) -> Growth | None:
    """Growth of one process from `warm_s` seconds after its first sample on.

    None where there are fewer than twelve samples: it did not live long enough to tell.
    """
    warm = [sample for sample in samples if sample.at >= samples[0].at + warm_s]
    if len(warm) < _FEWEST:
        return None
    quarter = len(warm) // 4
    first, last = warm[:quarter], warm[-quarter:]

    def more(name: str) -> float:
        return float(
            median(getattr(sample, name) for sample in last)
            - median(getattr(sample, name) for sample in first)
        )

    return Growth(
        seconds=more("at"),
        rss_mb=more("rss_mb"),
        first_mb=median(sample.rss_mb for sample in first),
        files=more("files"),
        threads=more("threads"),
    )
