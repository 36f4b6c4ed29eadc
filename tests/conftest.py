"""Fixtures that whole-program tests share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import Child

# Nothing in a test may ask a hub for anything, or take more than its share of two cores.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def program() -> Iterator[Callable[..., Child]]:
    """Starts programs of the project; whatever still runs at the end of the test is killed."""
    children: list[Child] = []

    def start(*arguments: str, cwd: Path | None = None) -> Child:
        children.append(Child(*arguments, cwd=cwd))
        return children[-1]

    yield start
    for child in children:
        child.kill()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small policy, as `scripts/make_tiny_checkpoint.py` makes it, made once a test run."""
    from policies.qwen_vla import save_policy
    from policies.qwen_vla.tiny import make_tiny_policy

    folder = tmp_path_factory.mktemp("policy") / "tiny"
    save_policy(make_tiny_policy(), folder)
    return folder
