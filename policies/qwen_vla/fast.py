"""The fast half: both modules together, made from weights that have been checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from policies.qwen_vla.action_expert import ActionExpert
from policies.qwen_vla.config import PolicyConfig
from policies.qwen_vla.sensor_encoder import SensorEncoder
from policies.qwen_vla.tensors import check_keys, move

__all__ = ["FastParts", "build_fast", "check_fast"]


@dataclass(frozen=True, slots=True)
class FastParts:
    """The two fast modules, in eval mode, on their device.

    Attributes:
        config: sizes and meanings.
        sensor_encoder: None with fusion `none`.
        action_expert: the decoder of chunks.
    """

    config: PolicyConfig
    sensor_encoder: SensorEncoder | None
    action_expert: ActionExpert

    def __call__(self, features: Tensor, sensor: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features (1, N, D) and a window (1, T, channels) to actions and delta (1, H, A)."""
        encoded = None
        if self.sensor_encoder is not None and sensor is not None:
            encoded = self.sensor_encoder(sensor)
        actions, delta = self.action_expert(features, encoded)
        return actions, delta


def check_fast(
    config: PolicyConfig, sensor: Mapping[str, Tensor], expert: Mapping[str, Tensor]
) -> tuple[SensorEncoder | None, ActionExpert]:
    """Check that weights are those of the modules that `config` describes; give these, empty.

    Raises:
        PolicyError: keys missing or unexpected, or shapes that differ; the message lists them.
    """
    width = config.sensor.features if config.sensor else 0
    with torch.device("meta"):  # no memory for weights that are replaced at once
        encoder = SensorEncoder(config.sensor) if config.sensor else None
        goal = config.robot is not None and config.robot.reads_goal
        decoder = ActionExpert(config.expert, width, len(config.action.columns), goal)
    expected: dict[str, Tensor] = {}
    given: dict[str, Tensor] = {}
    for part, module, weights in (
        ("sensor_encoder", encoder, sensor),
        ("action_expert", decoder, expert),
    ):
        state = module.state_dict() if module is not None else {}
        expected.update({f"{part}.{key}": value for key, value in state.items()})
        given.update({f"{part}.{key}": value for key, value in weights.items()})
    check_keys("the fast parts", expected, given)
    return encoder, decoder


def build_fast(
    config: PolicyConfig,
    sensor: Mapping[str, Tensor],
    expert: Mapping[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
) -> FastParts:
    """Make the fast parts from their weights, in eval mode.

    Raises:
        PolicyError: as `check_fast`.
    """
    encoder, decoder = check_fast(config, sensor, expert)
    for module, weights in ((encoder, sensor), (decoder, expert)):
        if module is not None:
            moved = {key: move(value, device, dtype) for key, value in weights.items()}
            module.load_state_dict(moved, assign=True)
            module.eval().requires_grad_(False)
    return FastParts(config, encoder, decoder)
