"""`FlowPolicy`: the slow half of a policy, and a fast half that samples its chunks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.wire import RobotState
from policies.base import ActionChunk, PolicyError
from policies.flow.chunker import UnderWay
from policies.flow.config import FlowConfig, check_base
from policies.flow.head import FlowHead
from policies.flow.sampling import guided, sample, soft_mask
from policies.qwen_vla.acting import FastHalf, count, start_deg, window_of
from policies.qwen_vla.checkpoint import Checkpoint
from policies.qwen_vla.config import JOINTS
from policies.qwen_vla.fast import FastParts
from policies.qwen_vla.policy import QwenVlaPolicy
from policies.qwen_vla.sensor_encoder import SensorEncoder

__all__ = ["FlowPolicy"]


class FlowPolicy(FastHalf):
    """A dual-rate policy whose chunks flow from noise; `encode` and `act` may run at once.

    `act` itself is to be called by one thread at a time: it draws noise.

    Args:
        base: whose slow half gives the features.
        sensor: the head's own sensor encoder.
        head: the head.
        flow: how its values are normalised, and how chunks are sampled.
        seed: of the noise, where `act` is given no generator.
    """

    def __init__(
        self,
        base: QwenVlaPolicy,
        sensor: SensorEncoder,
        head: FlowHead,
        flow: FlowConfig,
        seed: int = 0,
    ) -> None:
        config = base.config
        check_base(config, flow)
        for module in (sensor, head):
            module.eval().requires_grad_(False)
        parts = Checkpoint(config, dict(sensor.state_dict()), dict(head.state_dict()))
        spec = replace(
            base.spec,
            name=f"{config.name} (flow, {config.expert.fusion})",
            parameters=sum(
                count(module.parameters()) for module in (base.backbone.model, sensor, head)
            ),
            # Of the base too: features are those of its slow half.
            identity=parts.identity() + base.spec.identity,
        )
        super().__init__(config, spec, FastParts(config, sensor, head), None)
        self.base, self.flow = base, flow
        self._sensor, self._head = sensor, head
        self._center = torch.tensor(flow.center_deg, device=self._device)
        self._scale = torch.tensor(flow.scale_deg, device=self._device)
        self.reseed(seed)

    def reseed(self, seed: int) -> None:
        """Begin the noise again, e.g. with an episode."""
        self._noise = torch.Generator().manual_seed(seed)

    def encode(self, images: Mapping[str, NDArray[np.uint8]], task: str) -> Tensor:
        """Features (1, 1, D) of the base policy's slow half; as `QwenVlaPolicy.encode`."""
        return self.base.encode(images, task)

    def pack(self, features: Tensor) -> bytes:
        """The features as bytes, for another process with the same policy."""
        return self.base.pack(features)

    @torch.no_grad()  # not inference_mode: guidance goes backwards through the head
    def act(
        self,
        features: Tensor,
        sensor: NDArray[np.float32] | None,
        robot: RobotState | None = None,
        previous: ActionChunk | None = None,
        *,
        under_way: UnderWay | None = None,
        generator: torch.Generator | None = None,
    ) -> ActionChunk:
        """Sample a chunk, in keeping with what is left of the one under execution.

        Args:
            features: what `encode` returned.
            sensor: (T, channels), oldest sample first, T at least 1.
            robot: where the robot is; the rows begin there.
            previous: not used: it does not say when it was made. `under_way` is what counts.
            under_way: what is left of the chunk under execution; None samples freely.
            generator: of the noise, on the CPU; by default the policy's own.

        Returns:
            Rows (H, columns); a gripper, of which the head knows nothing, stays at zero.

        Raises:
            PolicyError: no window or no robot, a wrong shape, or values not finite.
        """
        joints = start_deg(self.config, robot)
        window = window_of(self.config, sensor, robot, self.goal_deg(features))
        assert joints is not None and window is not None  # by check_base
        weight = self._head.pos_embed
        felt = self._sensor(window.to(weight))
        memory = self._head.memory(features.to(weight), felt)
        rows = self._sampled(memory, joints, under_way, generator)
        delta = np.zeros((len(rows), len(self.config.action.columns)), np.float32)
        delta[:, :JOINTS] = (self._center + self._scale * rows).cpu().numpy()
        actions = delta.copy()
        actions[:, :JOINTS] += joints
        if not np.isfinite(actions).all():
            raise PolicyError("the policy gave values that are not finite: do not use the chunk")
        return ActionChunk(actions=actions, delta=delta)

    def _sampled(
        self,
        memory: Tensor,
        joints: NDArray[np.float32],
        under_way: UnderWay | None,
        generator: torch.Generator | None,
    ) -> Tensor:
        """A chunk (H, 6) in normalised action space."""
        most = self.config.expert.rows
        # Always drawn on the CPU: the same seed gives the same chunk wherever the head runs.
        noise = torch.randn((1, most, JOINTS), generator=generator or self._noise)
        noise = noise.to(memory)

        def velocity(rows: Tensor, tau: float) -> Tensor:
            return self._head.velocity(rows, torch.full((1,), tau).to(rows), memory)

        if under_way is None or not len(under_way.rows_deg):
            return sample(velocity, noise, self.flow.steps)[0]
        left = np.asarray(under_way.rows_deg, np.float32)
        if left.ndim != 2 or left.shape[1] != JOINTS or len(left) > most:
            raise PolicyError(
                f"rows under way must be at most {most} rows of {JOINTS} joints, not {left.shape}"
            )
        if not np.isfinite(left).all() or not 0 <= under_way.frozen <= len(left):
            raise PolicyError("rows under way must be finite, and some of them frozen or none")
        wanted = torch.zeros_like(noise)
        from_here = torch.from_numpy(left - joints).to(memory)
        wanted[0, : len(left)] = (from_here - self._center[: len(left)]) / self._scale[: len(left)]
        mask = soft_mask(most, under_way.frozen, len(left))
        return guided(velocity, noise, wanted, mask, self.flow.steps, self.flow.beta)[0]
