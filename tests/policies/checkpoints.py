"""Small checkpoints in the form of existing ones, for the tests that load them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from policies.qwen_vla.tiny import WIDTH
from tests.policies import qwen_reference as reference

# The tiny policy's backbone gives features of this size.
SIZES = replace(reference.SMALL, vl=WIDTH)
WINDOW = np.random.default_rng(0).random((65, SIZES.channels), dtype=np.float32)
State = dict[str, torch.Tensor]


def fast_state(fusion: str = "concat") -> State:
    return reference.random_state(fusion, SIZES, seed=2)


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path
