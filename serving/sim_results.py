"""What came of the episodes: each one, and all together as a table and as JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

__all__ = ["Episode", "SimReport", "wilson"]

_Z95 = 1.959963984540054
_QUEUE_HOLDS = ("no_action", "server", "not_connected", "columns", "old_input", "features")
"""Reasons to hold for which nothing was executed of what the policy planned."""


def wilson(successes: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a success rate, as Wilson has it (1927, JASA 22, p. 209)."""
    if count < 1:
        return 0.0, 1.0
    share, square = successes / count, _Z95**2 / count
    middle = (share + square / 2) / (1 + square)
    half = _Z95 * math.sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, slots=True)
class Episode:
    """One episode.

    Attributes:
        number: from 0.
        seed: of its reset.
        task: the instruction in words.
        success: whether the task was done at any step; None where the environment does not say.
        reward: sum over the steps.
        steps: of the environment.
        seconds: that they took by the wall clock.
        simulated_s: steps over the control rate.
        late_s: how much longer the steps took than the control rate allows for.
        held: steps on hold, by reason.
        first_action_step: the first step with an action of the policy; None without any.
        chunks: that were taken into the queue.
        observations: that were sent.
        round_trip_ms: median time from an observation to its answer; None without one.
        sessions_lost: how often the server was lost meanwhile.
        ended: terminated, truncated.
        reason: why it is no success, where the environment says so.
        video: the file, or empty.
    """

    number: int
    seed: int
    task: str
    success: bool | None
    reward: float
    steps: int
    seconds: float
    simulated_s: float
    late_s: float = 0.0
    held: Mapping[str, int] = field(default_factory=dict)
    first_action_step: int | None = None
    chunks: int = 0
    observations: int = 0
    round_trip_ms: float | None = None
    sessions_lost: int = 0
    ended: str = ""
    reason: str = ""
    video: str = ""

    @property
    def empty_steps(self) -> int:
        """Steps for which no action was queued."""
        return sum(self.held.get(reason, 0) for reason in _QUEUE_HOLDS)

    @property
    def empty(self) -> float:
        """Share of such steps."""
        return self.empty_steps / self.steps if self.steps else 0.0

    @property
    def control_hz(self) -> float:
        """Steps a second by the wall clock."""
        return self.steps / self.seconds if self.seconds > 0 else 0.0

    @property
    def end(self) -> str:
        """How it ended, and why it is no success where that is known."""
        return f"{self.ended} ({self.reason})" if self.reason else self.ended

    def line(self, of: int, fps: float) -> str:
        """In one line."""
        done = {True: "success", False: "no success", None: "done"}[self.success]
        return (
            f"[SIM] episode {self.number + 1}/{of}, seed {self.seed}: {done}, reward "
            f"{self.reward:.3f}, {self.steps} steps ({self.end}) | {self.control_hz:.1f}/{fps:g} "
            f"Hz | queue empty {self.empty:.1%}"
        )


@dataclass(frozen=True, slots=True)
class SimReport:
    """All episodes of a run.

    Attributes:
        episodes: those that came to their end.
        fps: control ticks a second that were asked for.
        mode: `wall`, `stretched` or `lockstep`.
        setting: what was run, for the file.
    """

    episodes: Sequence[Episode]
    fps: float
    mode: str
    setting: Mapping[str, Any] = field(default_factory=dict)

    @property
    def judged(self) -> list[Episode]:
        """The episodes of which success is known."""
        return [one for one in self.episodes if one.success is not None]

    @property
    def successes(self) -> int:
        """How many succeeded."""
        return sum(one.success is True for one in self.episodes)

    @property
    def success_rate(self) -> float | None:
        """Of the episodes of which it is known; None without one."""
        return self.successes / len(self.judged) if self.judged else None

    @property
    def empty(self) -> float:
        """Share of all steps for which no action was queued."""
        steps = sum(one.steps for one in self.episodes)
        return sum(one.empty_steps for one in self.episodes) / steps if steps else 0.0

    @property
    def control_hz(self) -> float:
        """Steps a second by the wall clock, over all episodes."""
        seconds = sum(one.seconds for one in self.episodes)
        return sum(one.steps for one in self.episodes) / seconds if seconds > 0 else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Everything, for a file or a test."""
        rate, judged = self.success_rate, len(self.judged)
        mean = self._mean
        return {
            "setting": dict(self.setting),
            "mode": self.mode,
            "fps": self.fps,
            "n_episodes": len(self.episodes),
            "success_rate": rate,
            "success_interval_95": None if rate is None else wilson(self.successes, judged),
            "successes": self.successes,
            "mean_reward": mean([one.reward for one in self.episodes]),
            "mean_steps": mean([one.steps for one in self.episodes]),
            "control_hz": self.control_hz,
            "empty_share": self.empty,
            "held_steps": dict(sum((Counter(one.held) for one in self.episodes), Counter())),
            "by_task": self._by_task(),
            "episodes": [
                asdict(one)
                | {"held": dict(one.held), "control_hz": one.control_hz, "empty_share": one.empty}
                for one in self.episodes
            ],
        }

    def table(self) -> str:
        """The episodes and their summary, for a terminal."""
        said = {True: "yes", False: "no", None: "-"}
        rows = ["episode        seed  success     reward   steps     s    Hz  queue empty  ended"]
        rows += [
            f"{one.number + 1:7d}  {one.seed:10d}  {said[one.success]:>7}  {one.reward:9.3f}  "
            f"{one.steps:6d} {one.seconds:5.1f} {one.control_hz:5.1f}  {one.empty:11.1%}  "
            f"{one.end}"
            for one in self.episodes
        ]
        return "\n".join([*rows, *self._summary()])

    def _summary(self) -> list[str]:
        if not self.episodes:
            return ["no episode came to its end"]
        lines = []
        if self.success_rate is None:
            lines.append("success rate   not known: the environment does not say")
        else:
            low, high = wilson(self.successes, len(self.judged))
            lines.append(
                f"success rate   {self.success_rate:.1%} ({self.successes} of {len(self.judged)}; "
                f"95 % interval {low:.1%} to {high:.1%})"
            )
        rewards = [one.reward for one in self.episodes]
        lines.append(
            f"reward         {np.mean(rewards):.3f} mean, {min(rewards):.3f} to {max(rewards):.3f}"
        )
        lines.append(f"episode length {np.mean([one.steps for one in self.episodes]):.1f} steps")
        pace = {"lockstep": "the simulation waits", "stretched": "its clock is stretched"}
        note = f" ({pace[self.mode]})" if self.mode in pace else f" of {self.fps:g} Hz"
        lines.append(f"control rate   {self.control_hz:.1f} Hz{note}")
        lines.append(f"queue empty    {self.empty:.1%} of the steps")
        lines += [
            f"  {task[:60]}: {told['successes']} of {told['n_episodes']}"
            for task, told in self._by_task().items()
        ]
        return lines

    def _by_task(self) -> dict[str, dict[str, Any]]:
        """Success by task, where there are several."""
        tasks = list(dict.fromkeys(one.task for one in self.episodes))
        if len(tasks) < 2:
            return {}
        found = {}
        for task in tasks:
            ours = [one for one in self.episodes if one.task == task]
            done = sum(one.success is True for one in ours)
            found[task] = {
                "n_episodes": len(ours),
                "successes": done,
                "success_interval_95": wilson(done, len(ours)),
                "mean_reward": self._mean([one.reward for one in ours]),
            }
        return found

    @staticmethod
    def _mean(values: Sequence[float]) -> float | None:
        return float(np.mean(values)) if values else None
