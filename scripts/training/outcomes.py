"""Which recorded sessions show how the task is done: a session itself does not say."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.session import Session
from scripts.scoreboard import read_score
from sim.trace import read_trace

__all__ = ["FAILED", "went_well"]

FAILED = "failed"
"""A file of this name in a session's folder says that it is no example."""
_SCORE, _TRACE = "score.jsonl", "rig.csv"


def went_well(folder: Path) -> bool:
    """Whether a session is an example of how to do the task, as far as anything says so.

    It is none where a person has put a file `failed` into its folder. Beside sessions of the
    simulated rig lies what the rig's judge said: there it is one only if its episode succeeded; one
    that was not over yet did not.

    Raises:
        SessionError, ValueError, OSError: it cannot be read.
    """
    if (folder / FAILED).exists():
        return False
    beside = folder.resolve().parent
    if not (beside / _SCORE).exists() or not (beside / _TRACE).exists():
        return True
    at = Session(folder).states.sampled_at
    episode = _rig_of(beside).episode_at(float(np.median(at))) if len(at) else None
    return any(one["number"] == episode and one["success"] for one in read_score(beside / _SCORE))


@dataclass(frozen=True, slots=True)
class _Rig:
    """Which episode of the rig was when.

    Attributes:
        at: (N,) UNIX seconds, rising.
        episode: (N,) its number.
    """

    at: NDArray[np.float64]
    episode: NDArray[np.float64]

    def episode_at(self, moment: float) -> int | None:
        """The episode at a moment; None where the rig did not run."""
        place = int(np.searchsorted(self.at, moment))
        return int(self.episode[place]) if 0 < place < len(self.at) else None


@cache
def _rig_of(folder: Path) -> _Rig:
    columns = read_trace(folder / _TRACE, ("wall_time", "episode"))
    return _Rig(columns["wall_time"], columns["episode"])
