"""The action expert with another end: it gives the velocity of a flow from noise to a chunk."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from policies.qwen_vla.action_expert import ActionExpert
from policies.qwen_vla.config import ExpertConfig

__all__ = ["FlowHead", "time_waves"]

# Periods of the waves that tell a flow time from another; those of Black et al. 2025
# (arXiv 2506.07339, code of the simulated experiments): flow time runs from 0 to 1.
_PERIODS = (4e-3, 4.0)


def time_waves(tau: Tensor, width: int) -> Tensor:
    """Sines and cosines (B, width) of flow times (B,); their periods are a geometric series."""
    count = (width + 1) // 2
    shortest, longest = _PERIODS
    part = torch.linspace(0.0, 1.0, count, device=tau.device)
    period = shortest * (longest / shortest) ** part
    angle = 2.0 * math.pi * tau.unsqueeze(1) / period
    return torch.cat((angle.sin(), angle.cos()), dim=1)[:, :width]


class FlowHead(ActionExpert):
    """Fusion, row embeddings, decoder and output of the action expert; noisy rows go in.

    The convention of flow times is that of Black et al. 2025 (arXiv 2506.07339): x_τ = τ·a +
    (1 − τ)·ε is noise ε at τ = 0 and the chunk a at τ = 1, so the velocity is a − ε. Paths are
    straight, as in rectified flow (Liu et al. 2022, arXiv 2209.03003). Others count backwards.

    Args:
        config: sizes and fusion of the action expert.
        sensor_features: values in a feature of the sensor encoder.
        columns: values in a row.
        reads_goal: as the action expert.
    """

    def __init__(
        self, config: ExpertConfig, sensor_features: int, columns: int, reads_goal: bool = False
    ) -> None:
        super().__init__(config, sensor_features, columns, reads_goal)
        self.columns = columns
        hidden = config.hidden
        self.row_in = nn.Linear(columns, hidden)
        self.time_in = nn.Sequential(
            nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden)
        )

    def velocity(
        self, rows: Tensor, tau: Tensor, memory: Tensor, unknown: Tensor | None = None
    ) -> Tensor:
        """Velocities (B, rows, columns).

        Args:
            rows: noisy chunks (B, rows, columns) in normalised action space.
            tau: flow times (B,), 0 to 1.
            memory: tokens (B, 1, hidden) that `memory` gives.
            unknown: (B, rows), true for rows that the others must not look at.
        """
        moment: Tensor = self.time_in(time_waves(tau, self.config.hidden)).unsqueeze(1)
        queries = self.pos_embed + self.row_in(rows) + moment
        states = self.temporal_decoder(queries, memory, tgt_key_padding_mask=unknown)
        velocity: Tensor = self.output_head(states)
        return velocity

    def errors(
        self,
        rows: Tensor,
        memory: Tensor,
        tau: Tensor,
        noise: Tensor,
        unknown: Tensor | None = None,
    ) -> Tensor:
        """Errors (B, rows, columns) of the velocity on the way from noise to rows.

        Their mean square is the loss of conditional flow matching (Lipman et al. 2022, arXiv
        2210.02747), whose smallest value is where the flow gives the rows' own distribution.

        Args:
            rows: chunks (B, rows, columns) in normalised action space.
            memory: tokens (B, 1, hidden).
            tau: flow times (B,).
            noise: of the shape of `rows`, normally distributed.
            unknown: as for `velocity`.
        """
        part = tau.view(-1, 1, 1)
        between = part * rows + (1.0 - part) * noise
        return self.velocity(between, tau, memory, unknown) - (rows - noise)

    def begin_as(self, expert: ActionExpert) -> None:
        """Take over fusion, row embeddings and decoder of an action expert of the same sizes."""
        own = self.state_dict()
        shared = {
            name: value
            for name, value in expert.state_dict().items()
            if not name.startswith("output_head.") and name in own
        }
        # The way in and the way out are new: they are of another space.
        self.load_state_dict(shared, strict=False)
