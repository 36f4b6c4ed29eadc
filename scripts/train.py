"""Train the small policy from nothing, or fine-tune the fast half of a checkpoint.

    python scripts/demonstrate.py --out runs/demonstrations
    python scripts/train.py --data runs/demonstrations --out runs/policy

    python scripts/train.py --data SESSIONS --checkpoint qwen_vla_sensor_best.pt --out runs/tuned

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

__all__ = ["TrainOptions", "main"]


@dataclass(frozen=True)
class TrainOptions:
    """Train a policy on demonstrations or recorded sessions."""

    data: tuple[Path, ...] = (Path("runs/demonstrations"),)
    """Folders: files of scripts/demonstrate.py, sessions, or folders of sessions."""
    out: Path = Path("runs/policy")
    """Folder for the checkpoint."""
    work: Path = Path("runs/training")
    """Folder for what training goes on from, its figures and its picture."""
    checkpoint: Path | None = None
    """Fine-tune the fast half of this one, its slow half as it is. Default: train from nothing."""
    backbone: str | None = None
    """Hugging Face folder or id of the backbone, for a checkpoint that does not hold it."""
    views: tuple[str, ...] = ("View3", "View4")
    """The cameras that a policy trained from nothing looks through."""
    rows: int = 16
    """Rows of a chunk of a policy trained from nothing, 0.1 s apart."""
    feel_steps: int = 5000
    """Steps of the first stage: the fast half learns to act, told where episodes end."""
    look_steps: int = 3000
    """Steps of the second stage: the slow half learns to see where episodes end."""
    act_steps: int = 2500
    """Steps of the last stage, or of fine-tuning: the fast half learns to act on what is seen."""
    feel_rate: float = 1e-3
    """Highest learning rate of the first stage."""
    look_rate: float = 1e-3
    """Highest learning rate of the second stage."""
    act_rate: float = 5e-4
    """Highest learning rate of the last stage; for fine-tuning a fifth of it is usual."""
    only: Literal["feel", "look"] | None = None
    """One of the first two stages by itself: they may run side by side, each with a core."""
    batch: int = 32
    """Samples in a batch."""
    kept: float = 0.08
    """Share of the episodes that is not trained on, to judge by."""
    lag_s: float = 0.012
    """By how much the arm is behind its targets: rows ask for where it was so much later."""
    tool_mm: tuple[float, float, float] = (0.0, 0.0, 70.0)
    """The tool's tip in the flange's frame: errors count by what they do there."""
    device: str = "cpu"
    """cpu, cuda, cuda:N."""
    threads: int = 0
    """Threads of PyTorch on the CPU; 0: one for each core."""
    seed: int = 0
    """Of the weights to begin with."""

    def __post_init__(self) -> None:
        """ValueError for numbers that make no sense."""
        if min(self.feel_steps, self.look_steps, self.act_steps) < 1 or not 1 <= self.batch <= 4096:
            raise ValueError("steps and batch must be at least 1, batch at most 4096")
        if not 1 <= self.rows <= 1024:
            raise ValueError(f"--rows must be within 1 and 1024, not {self.rows}")
        if not 0 < self.kept < 0.5:
            raise ValueError(f"--kept must be above 0 and below 0.5, not {self.kept}")
        if not all(0 < rate <= 1 for rate in (self.feel_rate, self.look_rate, self.act_rate)):
            raise ValueError("learning rates must be above 0 and at most 1")


def main() -> int:
    """Train; the exit code."""
    options = cli.parse(TrainOptions)

    def training() -> Iterator[str]:
        from scripts.training.run import train

        return train(options)

    return carry_out(training, options.work)


if __name__ == "__main__":
    sys.exit(main())
