"""One LeRobot policy for many sessions: observations in, action chunks out, several at once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from serving.messages import Instructions, ServingError
from serving.policies.lerobot_checkpoint import Checkpoint
from serving.policies.lerobot_history import Queues
from serving.policies.lerobot_inputs import Fit, Inputs, expected, fit, tensors
from serving.seldom import Seldom
from serving.served import Predicted, Request, SessionMemory

__all__ = ["LeRobotPolicy"]

_seldom = Seldom(logging.getLogger("serving.lerobot"))

_FIT = "fit"
_BATCHED = {"act": 32, "diffusion": 16, "vqbet": 16, "multi_task_dit": 8}
_BATCHED |= {"smolvla": 8, "pi0": 8, "pi05": 8}
"""Types whose rows do not depend on each other. Others are asked one by one: a policy may assume
one robot without saying so (tdmpc's plans, world models with a cache)."""
_TRIED_ROWS = 64


class LeRobotPolicy:
    """A policy of LeRobot behind the engine. One thread calls it."""

    dt = 0.0
    """LeRobot's policies do not say how far apart their rows are: the client's control period."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Take a loaded checkpoint and predict once from noise.

        Raises:
            ServingError: bad_policy for one that cannot predict.
        """
        self._policy, self._device = checkpoint.policy, checkpoint.device
        self._before, self._after = checkpoint.before, checkpoint.after
        self._rename = checkpoint.rename
        config = self._policy.config
        self._expected = expected(config)
        self._kind: str = config.type
        self._queues = Queues(self._policy)
        self._whole = False
        self.action_names = _names(checkpoint)
        self.most_batched = 1 if self._queues.one_by_one else _BATCHED.get(self._kind, 1)
        self._try()

    def admit(self, instructions: Instructions) -> SessionMemory:
        """Begin a session; ServingError("bad_policy") where the robot is not the policy's."""
        match = fit(self._expected, instructions, self._rename)
        return SessionMemory(instructions, {_FIT: match})

    def predict(self, requests: Sequence[Request]) -> Sequence[Predicted | Exception]:
        """Chunks as LeRobot's server computes them; what can be computed at once is."""
        results: list[Predicted | Exception] = [ServingError("failed", "not computed")] * len(
            requests
        )
        rows: list[tuple[int, Inputs]] = []
        for number, request in enumerate(requests):
            try:
                rows.append((number, self._inputs(request)))
            except Exception as error:
                results[number] = error
        rows.sort(key=lambda row: row[1].shapes)
        for _, alike in groupby(rows, key=lambda row: row[1].shapes):
            for some in _cut(list(alike), self.most_batched):
                for number, result in self._computed(some, requests):
                    results[number] = result
        return results

    def _inputs(self, request: Request) -> Inputs:
        if request.observation.wants != "actions":
            raise ServingError(
                "bad_message", f"a policy of type {self._kind} gives actions, not features"
            )
        match: Fit = request.memory.values[_FIT]
        return tensors(self._expected, match, request.observation)

    def _computed(
        self, rows: list[tuple[int, Inputs]], requests: Sequence[Request]
    ) -> Iterator[tuple[int, Predicted | Exception]]:
        """The results of rows that fit together; one by one where that fails."""
        asked = [requests[number] for number, _ in rows]
        most = max(request.memory.instructions.actions_per_chunk for request in asked)
        try:
            chunks = self._chunks([inputs for _, inputs in rows], asked, most)
        except Exception as error:
            if len(rows) > 1:
                _seldom.log(
                    logging.WARNING,
                    "%s: %d at once failed, now one by one",
                    self._kind,
                    len(rows),
                )
                for row in rows:
                    yield from self._computed([row], requests)
                return
            yield rows[0][0], error
            return
        for (number, _), request, chunk in zip(rows, asked, chunks, strict=True):
            actions = chunk[: request.memory.instructions.actions_per_chunk]
            if np.isfinite(actions).all():
                yield number, Predicted(actions=actions)
            else:
                yield number, ServingError("failed", "the policy gave actions that are not finite")

    @torch.inference_mode()
    def _chunks(
        self, rows: Sequence[Inputs], asked: Sequence[Request], most: int
    ) -> NDArray[np.float32]:
        """(B, H, A) of B observations, each row as if it had been alone."""
        try:
            chunk = self._forward(
                rows,
                [request.observation.timestep for request in asked],
                [request.memory for request in asked],
            )[:, :most]
            chunk = self._finished(chunk) if self._whole else self._finished_by_row(chunk)
        finally:
            self._queues.forget()
        return chunk.detach().to("cpu", torch.float32).numpy()

    def _forward(
        self, rows: Sequence[Inputs], steps: Sequence[int], memories: Sequence[SessionMemory]
    ) -> torch.Tensor:
        values: dict[str, Any] = {
            key: torch.cat([row.values[key] for row in rows]) for key in rows[0].values
        }
        values["task"] = rows[0].task if len(rows) == 1 else [row.task for row in rows]
        batch = self._queues.fill(self._before(values), steps, memories)
        chunk: torch.Tensor = self._policy.predict_action_chunk(batch)
        self._queues.keep_plan(memories)
        if chunk.ndim == 2:
            chunk = chunk[None]
        if self._kind == "tdmpc":  # gives its plan with the time first
            chunk = chunk.transpose(0, 1)
        if chunk.ndim != 3 or chunk.shape[0] != len(rows):
            raise ServingError(
                "failed", f"{len(rows)} chunks expected of the policy, {tuple(chunk.shape)} came"
            )
        return chunk

    def _finished(self, chunk: torch.Tensor) -> torch.Tensor:
        done: torch.Tensor = self._after(chunk)
        return done

    def _finished_by_row(self, chunk: torch.Tensor) -> torch.Tensor:
        """LeRobot's own way: its postprocessors are made for (B, A)."""
        return torch.stack([self._after(chunk[:, k]) for k in range(chunk.shape[1])], dim=1)

    @torch.inference_mode()
    def _try(self) -> None:
        """Predict from noise: does it work, for two at once, and is a chunk finished in one go?"""
        while True:
            count = min(2, self.most_batched)
            try:
                self._whole = self._same_in_one_go(self._forward_noise(count))
                break
            except Exception as error:
                if count > 1:
                    _seldom.log(logging.WARNING, "%s predicts one at a time: %s", self._kind, error)
                    self.most_batched = 1
                    continue
                raise ServingError(
                    "bad_policy", f"the {self._kind} policy loads and cannot predict: {error}"
                ) from error
            finally:
                self._queues.forget()

    def _forward_noise(self, count: int) -> torch.Tensor:
        shapes: dict[str, tuple[int, ...]] = dict(self._expected.cameras)
        if self._expected.state is not None:
            shapes["observation.state"] = (self._expected.state,)
        rows = [
            Inputs({key: torch.rand(1, *shape) for key, shape in shapes.items()}, "try")
            for _ in range(count)
        ]
        memories = [SessionMemory(Instructions(self._kind, "")) for _ in rows]
        return self._forward(rows, [0] * count, memories)

    def _same_in_one_go(self, chunk: torch.Tensor) -> bool:
        """Whether the postprocessor does with a whole chunk what it does row by row."""
        chunk = chunk[:, :_TRIED_ROWS]
        for tried in (chunk, torch.randn_like(chunk)):
            by_row = self._finished_by_row(tried)
            try:
                at_once = self._finished(tried)
            except Exception:
                return False
            if at_once.shape != by_row.shape or not torch.equal(at_once, by_row):
                return False
        return True


def _names(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The names of the action's columns, where the checkpoint knows them."""
    config = checkpoint.policy.config
    given = getattr(config, "action_feature_names", None)
    size = config.action_feature.shape[0] if config.action_feature else 0
    if not isinstance(given, list | tuple) or len(given) != size:
        return ()
    return tuple(map(str, given))


def _cut(rows: list[tuple[int, Inputs]], most: int) -> Iterator[list[tuple[int, Inputs]]]:
    for start in range(0, len(rows), most):
        yield rows[start : start + most]
