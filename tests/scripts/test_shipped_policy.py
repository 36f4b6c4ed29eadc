"""The policy in `assets/` does the rig's task: judged by the rig, in virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from policies.qwen_vla import load_policy
from policies.qwen_vla.policy import QwenVlaPolicy
from scripts.closed_loop.episode import run_episode
from scripts.closed_loop.rig import VirtualRig
from scripts.demo import POLICY


@pytest.fixture(scope="module")
def policy() -> QwenVlaPolicy:
    return load_policy(POLICY, device="cpu")


@pytest.fixture(scope="module")
def rig() -> Iterator[VirtualRig]:
    with closing(VirtualRig()) as made:
        yield made


def test_it_is_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in POLICY.rglob("*") if path.is_file()) < 25e6


# Neither is among those trained on, nor among those of the table in docs/evaluation.md.
@pytest.mark.parametrize(("seed", "latency_ms"), [(10, 0.0), (11, 381.0)])
def test_it_inserts_and_follows(
    rig: VirtualRig, policy: QwenVlaPolicy, seed: int, latency_ms: float
) -> None:
    result = run_episode(rig, policy, "dual-4", latency_ms, seed, 5.0)
    assert result.success, result
    assert result.best_rms_mm < 0.4
    assert result.force_n < 0.5
