"""Train a flow-matching head for a policy, for real-time chunking (docs/real-time-chunking.md).

    python scripts/train_flow.py --base runs/policy --out runs/flow-policy

Stopped at any moment, the same command goes on where it was.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common import cli

if __name__ == "__main__":
    cli.needs("receiver", "sim")

from scripts.training.command import carry_out

__all__ = ["FlowOptions", "main"]


@dataclass(frozen=True)
class FlowOptions:
    """Train a flow-matching head on demonstrations or recorded sessions."""

    base: Path = Path("runs/policy")
    """The policy whose slow half gives the features, as scripts/train.py makes it."""
    data: tuple[Path, ...] = (Path("runs/demonstrations"),)
    """Folders: files of scripts/demonstrate.py, sessions, or folders of sessions."""
    out: Path = Path("runs/flow-policy")
    """Folder for the head; it says where the base policy is."""
    work: Path = Path("runs/flow-training")
    """Folder for what training goes on from, its figures and its picture."""
    steps: int = 6000
    """Steps of training."""
    batch: int = 32
    """Samples in a batch."""
    draws: int = 4
    """How often each sample is made noisy."""
    rate: float = 1e-3
    """Highest learning rate."""
    begin: Literal["base", "fresh"] = "base"
    """The head's fusion and decoder begin as the base policy's, or as PyTorch begins them."""
    kept: float = 0.08
    """Share of the episodes that is not trained on, to judge by."""
    lag_s: float = 0.012
    """By how much the arm is behind its targets: rows ask for where it was so much later."""
    tool_mm: tuple[float, float, float] = (0.0, 0.0, 70.0)
    """The tool's tip in the flange's frame: errors count by what they do there."""
    threads: int = 0
    """Threads of PyTorch; 0: one for each core."""
    seed: int = 0
    """Of the weights to begin with."""

    def __post_init__(self) -> None:
        """ValueError for numbers that make no sense."""
        if self.steps < 1 or not 1 <= self.batch <= 4096 or not 1 <= self.draws <= 1024:
            raise ValueError("steps, batch and draws must be at least 1; draws at most 1024")
        if not 0 < self.kept < 0.5:
            raise ValueError(f"--kept must be above 0 and below 0.5, not {self.kept}")
        if not 0 < self.rate <= 1:
            raise ValueError("the learning rate must be above 0 and at most 1")


def main() -> int:
    """Train; the exit code."""
    options = cli.parse(FlowOptions)

    def training() -> Iterator[str]:
        from scripts.training.flow import train_flow

        return train_flow(options)

    return carry_out(training, options.work)


if __name__ == "__main__":
    sys.exit(main())
