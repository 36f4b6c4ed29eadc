"""From what a policy gave to what a client gets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving.messages import (
    BadMessage,
    Chunk,
    FeatureReply,
    Instructions,
    Refusal,
    Reply,
    ServingError,
)
from serving.newest import Waiting
from serving.served import Predicted, ServedPolicy

__all__ = ["Replier", "in_one_line", "printable"]

_MOST_CHARACTERS = 300


def in_one_line(error: BaseException) -> str:
    """The error's type and message in one line, cut to a bearable length."""
    said = printable(error)
    name = type(error).__name__
    return f"{name}: {said}"[:_MOST_CHARACTERS] if said else name


def printable(said: object) -> str:
    """In one line, without what a terminal would obey: clients' texts get into logs."""
    text = " ".join(str(said).split())
    return "".join(c if c.isprintable() else "?" for c in text)


@dataclass(frozen=True, slots=True)
class Replier:
    """Turns one policy's results into answers.

    Attributes:
        title: what the policy is called in messages.
        policy: whose results they are.
        fps: rate of the rows where neither the policy nor the client says one.
    """

    title: str
    policy: ServedPolicy
    fps: float

    def reply(
        self,
        result: Predicted | BaseException,
        waiting: Waiting,
        instructions: Instructions,
        inference_s: float,
    ) -> Reply:
        """The answer: at most `actions_per_chunk` rows, features, or why there is none."""
        if isinstance(result, ServingError):
            return Refusal(result.kind, printable(result)[:_MOST_CHARACTERS])
        if isinstance(result, BaseException):
            return Refusal("failed", f"{self.title} failed: {in_one_line(result)}")
        if not isinstance(result, Predicted):
            return Refusal("failed", f"{self.title} gave a {type(result).__name__}, no prediction")
        observation = waiting.observation
        if observation.wants == "features":
            if not isinstance(result.features, bytes):
                return Refusal("bad_policy", f"{self.title} gives no features: ask for actions")
            return FeatureReply(
                observation.timestep,
                observation.timestamp,
                result.features,
                inference_s,
                result.identity,
            )
        if result.actions is None:
            return Refusal("failed", f"{self.title} gave no actions")
        try:
            actions = np.asarray(result.actions, np.float32)
            actions = np.ascontiguousarray(actions[: instructions.actions_per_chunk])
            names = result.names or self.policy.action_names
            return Chunk(
                observation.timestep,
                observation.timestamp,
                actions,
                names=names if actions.ndim == 2 and len(names) == actions.shape[1] else (),
                dt=self.policy.dt or 1.0 / (instructions.fps or self.fps),
                inference_s=inference_s,
                features_age_s=result.features_age_s,
            )
        except (BadMessage, TypeError, ValueError, IndexError) as error:
            # Not the client's fault, whatever the check says.
            return Refusal("failed", f"{self.title} gave no sound actions: {in_one_line(error)}")
