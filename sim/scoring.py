"""Keeps the score of a rig that runs by itself: when episodes end, and how they went."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from sim.rig import Reading
from sim.task import Judge, Verdict

__all__ = ["Episode", "Score"]


@dataclass(frozen=True, slots=True)
class Episode:
    """How one episode went.

    Attributes:
        number: from 0.
        seed: of the layout.
        verdict: what was judged.
        took_s: from the first command that moved the arm to the end.
    """

    number: int
    seed: int
    verdict: Verdict
    took_s: float

    def line(self) -> str:
        """For a person."""
        verdict = self.verdict
        how = "success" if verdict.success else f"failed ({verdict.reason})"
        figures = ""
        if math.isfinite(verdict.rms_mm):
            figures = f", {verdict.rms_mm:.2f} mm RMS, {verdict.lateral_mm:.2f} mm aside"
        return (
            f"rig: episode {self.number} (seed {self.seed}): {how} after {self.took_s:.1f} s"
            f"{figures}, at most {verdict.force_n:.2f} N"
        )


class Score:
    """Judges one episode after the other.

    An episode is over `linger_s` after its success, at once where it can be none any more, and
    `limit_s` after its first command: whoever drives the arm may need a while to get ready.
    """

    def __init__(self, limit_s: float, linger_s: float, path: Path | None = None) -> None:
        """Write each episode as a line of JSON to `path`; raises OSError when that cannot be."""
        self._limit_s, self._linger_s = limit_s, linger_s
        self._file = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", encoding="utf-8")
        self.episodes = self.successes = 0
        self.begin()

    def begin(self) -> None:
        """Another episode starts."""
        self._judge = Judge()
        self._moved_s = math.nan

    def moved(self, time_s: float) -> None:
        """The arm was told to move, `time_s` into the episode."""
        if math.isnan(self._moved_s):
            self._moved_s = time_s

    def see(self, reading: Reading, number: int, seed: int) -> Episode | None:
        """Take a reading; the episode when it is over."""
        verdict = self._judge.see(reading)
        if math.isnan(self._moved_s):
            return None
        took_s = reading.time_s - self._moved_s
        done = verdict.success and reading.time_s - verdict.done_s >= self._linger_s
        if not (done or verdict.reason == "force" or took_s >= self._limit_s):
            return None
        ended_s = verdict.done_s if math.isfinite(verdict.done_s) else reading.time_s
        episode = Episode(number, seed, verdict, ended_s - self._moved_s)
        self.episodes += 1
        self.successes += verdict.success
        if self._file is not None:
            entry = {"number": number, "seed": seed, "took_s": round(episode.took_s, 3)}
            figures = {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in asdict(verdict).items()
            }
            self._file.write(json.dumps(entry | figures) + "\n")
            self._file.flush()
        return episode

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._file is not None:
            self._file.close()
