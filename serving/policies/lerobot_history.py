"""Policies that look back: the observations of each session, laid into the policy's queues.

diffusion, vqbet, tdmpc and others keep what they saw in `_queues`, filled by LeRobot's
`select_action` and read by `predict_action_chunk`. LeRobot's server calls the second alone, for
everybody: such policies fail behind it. Here the queues are filled for each prediction with what
belongs to the sessions in it, and emptied again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from serving.served import SessionMemory

__all__ = ["Queues"]

_KEPT, _MEAN = "history", "plan"
_ACTION = "action"
_PLAN = "_prev_mean"
"""What tdmpc starts its next plan from."""


class Queues:
    """The queues of one policy, if it has any that hold observations."""

    def __init__(self, policy: Any) -> None:
        """Find out what the policy keeps; it is reset."""
        policy.reset()
        self._policy = policy
        queues = getattr(policy, "_queues", None) or {}
        self._depths = {key: queue.maxlen or 1 for key, queue in queues.items() if key != _ACTION}
        self._plans = hasattr(policy, _PLAN)

    @property
    def keeps(self) -> bool:
        """Whether the policy looks at queues at all."""
        return bool(self._depths)

    @property
    def one_by_one(self) -> bool:
        """Whether it keeps something that cannot be put together of several sessions."""
        return self._plans

    def forget(self) -> None:
        """Leave nothing of a session in the policy."""
        self._policy.reset()

    def fill(
        self, ready: Mapping[str, Any], steps: Sequence[int], memories: Sequence[SessionMemory]
    ) -> dict[str, Any]:
        """Take an observation of each session and lay the queues of all; the batch to predict from.

        Args:
            ready: preprocessed observations, the sessions along the first dimension.
            steps: the control step of each.
            memories: what is kept of each; the observation is added to it.
        """
        if not self._depths:
            return dict(ready)
        batch = {key: value for key, value in ready.items() if key != _ACTION}
        batch |= {key: self._gathered(key, ready) for key in self._depths}
        for row, (step, memory) in enumerate(zip(steps, memories, strict=True)):
            seen = {key: batch[key][row : row + 1].clone() for key in self._depths}
            self._keep(memory, step, seen)
        for key, depth in self._depths.items():
            self._policy._queues[key] = deque(maxlen=depth)
            for back in range(depth - 1, -1, -1):
                then = [_at(m, s - back)[key] for m, s in zip(memories, steps, strict=True)]
                self._policy._queues[key].append(torch.cat(then))
        if self._plans:
            setattr(self._policy, _PLAN, memories[0].values.get(_MEAN))
        return batch

    def keep_plan(self, memories: Sequence[SessionMemory]) -> None:
        """Put aside what the next prediction of the session begins with."""
        if self._plans:
            memories[0].values[_MEAN] = getattr(self._policy, _PLAN)

    def _gathered(self, key: str, ready: Mapping[str, Any]) -> torch.Tensor:
        """What goes into a queue: the policy's pictures are in one tensor there."""
        if key in ready:
            found: torch.Tensor = ready[key]
            return found
        pictures = [ready[name] for name in self._policy.config.image_features]
        if key == "observation.images":
            return torch.stack(pictures, dim=-4)
        if key == "observation.image":
            first: torch.Tensor = pictures[0]
            return first
        raise KeyError(f"the policy keeps {key!r}, and no observation has it")

    def _keep(self, memory: SessionMemory, step: int, seen: dict[str, torch.Tensor]) -> None:
        kept: list[tuple[int, dict[str, torch.Tensor]]] = memory.values.setdefault(_KEPT, [])
        if kept and kept[-1][0] > step:  # a robot that began anew
            kept.clear()
        elif kept and kept[-1][0] == step:  # a newer look at the same step
            kept.pop()
        kept.append((step, seen))
        del kept[: -max(self._depths.values())]


def _at(memory: SessionMemory, step: int) -> dict[str, torch.Tensor]:
    """The observation nearest in time, the newer of two.

    A policy was trained on consecutive steps, and a client sends an observation every few. An old
    one in the place of the step before would look like a fast motion; the newest repeated looks
    like none, which is also how an episode begins.
    """
    kept: list[tuple[int, dict[str, torch.Tensor]]] = memory.values[_KEPT]
    return min(reversed(kept), key=lambda item: abs(item[0] - step))[1]
