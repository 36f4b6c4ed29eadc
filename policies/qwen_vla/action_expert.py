"""The fast half's second part: features and sensor feature become rows of actions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from policies.qwen_vla.config import JOINTS, ExpertConfig

__all__ = ["ActionExpert"]

DROPOUT = 0.1


class ActionExpert(nn.Module):
    """Fuses both features into one memory token and decodes every row of the chunk at once.

    Which of the projections exist depends on the fusion; names are those of existing checkpoints.

    Args:
        config: sizes.
        sensor_features: width of the sensor feature.
        columns: values of a row.
        reads_goal: with `goal_readout`, see `RobotConfig`.
    """

    def __init__(
        self, config: ExpertConfig, sensor_features: int, columns: int, reads_goal: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        hidden = config.hidden
        self.pos_embed = nn.Parameter(torch.zeros(1, config.rows, hidden))
        if config.fusion == "concat":
            self.fusion_proj = nn.Linear(config.vl_features + sensor_features, hidden)
        elif config.fusion == "none":
            self.fusion_proj = nn.Linear(config.vl_features, hidden)
        else:
            self.vl_proj = nn.Linear(config.vl_features, hidden)
            self.sensor_proj = nn.Linear(sensor_features, hidden)
            self.fusion_proj = nn.Linear(hidden, hidden)
        if config.fusion == "cross_attention":
            self.cross_attn = nn.MultiheadAttention(
                hidden, config.heads, dropout=DROPOUT, batch_first=True
            )
        if config.fusion == "gated":
            self.gate = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.Sigmoid())
        layer = nn.TransformerDecoderLayer(
            hidden,
            config.heads,
            config.feedforward,
            dropout=DROPOUT,
            activation="relu",
            batch_first=True,
        )
        self.temporal_decoder = nn.TransformerDecoder(layer, config.layers)
        self.output_head = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, columns))
        if reads_goal:
            self.goal_readout = nn.Linear(config.vl_features, JOINTS).requires_grad_(False)

    def goal_deg(self, vl: Tensor) -> Tensor | None:
        """Joint angles (B, 6) at which the episode is to end, read out of features (B, N, D)."""
        if not hasattr(self, "goal_readout"):
            return None
        goal: Tensor = self.goal_readout(vl.mean(dim=1))
        return goal

    def memory(self, vl: Tensor, sensor: Tensor | None) -> Tensor:
        """Fuse features (B, N, vl_features) and (B, sensor_features) into a token (B, 1, hidden).

        Raises:
            ValueError: no sensor feature although the fusion needs one.
        """
        if self.config.fusion != "none" and sensor is None:
            raise ValueError(f"fusion {self.config.fusion} needs a sensor feature")
        token: Tensor = self.fusion_proj(self._fuse(vl, sensor))
        return token.unsqueeze(1)

    def _fuse(self, vl: Tensor, sensor: Tensor | None) -> Tensor:
        pooled = vl.mean(dim=1)
        if self.config.fusion == "none" or sensor is None:
            return pooled
        if self.config.fusion == "concat":
            return torch.cat((pooled, sensor), dim=-1)
        own: Tensor = self.sensor_proj(sensor)
        if self.config.fusion == "cross_attention":
            tokens = self.vl_proj(vl)
            mixed: Tensor = self.cross_attn(own.unsqueeze(1), tokens, tokens, need_weights=False)[0]
            return mixed.squeeze(1)
        seen: Tensor = self.vl_proj(pooled)
        share: Tensor = self.gate(torch.cat((seen, own), dim=-1))
        return share * seen + (1 - share) * own

    def decode(self, memory: Tensor) -> Tensor:
        """Decode memory tokens (B, 1, hidden) into the last hidden state (B, rows, hidden)."""
        queries = self.pos_embed.expand(memory.shape[0], -1, -1)
        states: Tensor = self.temporal_decoder(queries, memory)
        return states

    def forward(
        self, vl: Tensor, sensor: Tensor | None, start: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute a chunk.

        Args:
            vl: features of the backbone (B, N, vl_features).
            sensor: features of the sensor (B, sensor_features), or None with fusion `none`.
            start: z (B, rows, columns), zeros by default.

        Returns:
            actions = z + delta, and delta; both (B, rows, columns).
        """
        delta = self.output_head(self.decode(self.memory(vl, sensor)))
        return (delta if start is None else start + delta), delta
