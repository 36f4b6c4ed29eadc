"""The fast half's first part: a window of force and A-scans becomes one feature."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from policies.qwen_vla.config import SensorConfig

__all__ = ["SensorEncoder", "resample"]

DROPOUT = 0.1


def resample(window: Tensor, length: int) -> Tensor:
    """Resample a window linearly along time, samples at the centres of equal intervals.

    Args:
        window: (B, T, C), T at least 1.
        length: the number of samples to give.

    Returns:
        (B, length, C); the window itself where T is `length` already.
    """
    if window.shape[1] == length:
        return window
    resized = F.interpolate(window.transpose(1, 2), size=length, mode="linear", align_corners=False)
    return resized.transpose(1, 2)


class SensorEncoder(nn.Module):
    """Convolutions over time, a small transformer, a mean over time and a projection.

    Parameter names are those of existing checkpoints (`conv_backbone.0.weight`, …); the places
    without parameters in each `Sequential` (GELU, dropout) are there to keep those numbers.
    """

    def __init__(self, config: SensorConfig) -> None:
        super().__init__()
        self.config = config
        stages: list[nn.Module] = []
        for inputs, outputs in zip((config.channels, *config.conv), config.conv, strict=False):
            stages += [
                nn.Conv1d(inputs, outputs, kernel_size=3, stride=2, padding=1),
                nn.BatchNorm1d(outputs),
                nn.GELU(),
                nn.Dropout(DROPOUT),
            ]
        self.conv_backbone = nn.Sequential(*stages)
        width = config.conv[-1]
        layer = nn.TransformerEncoderLayer(
            width,
            config.heads,
            config.feedforward,
            dropout=DROPOUT,
            activation="relu",
            batch_first=True,
            norm_first=True,
        )
        self.transformer = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.projection = nn.Sequential(
            nn.Linear(width, config.features),
            nn.LayerNorm(config.features),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(config.features, config.features),
        )

    def forward(self, window: Tensor) -> Tensor:
        """Encode windows (B, T, channels), oldest sample first, into features (B, features)."""
        window = resample(window, self.config.window)
        states = self.conv_backbone(window.transpose(1, 2)).transpose(1, 2)
        states = self.transformer(states)
        feature: Tensor = self.projection(torch.mean(states, dim=1))
        return feature
