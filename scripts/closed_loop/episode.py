"""One episode of the study, and what is written down of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from policies.base import DualRatePolicy
from scripts.closed_loop.methods import method
from scripts.closed_loop.rig import VirtualRig
from scripts.closed_loop.running import Latencies, Sampling
from scripts.closed_loop.score import Outcome

__all__ = ["EpisodeResult", "run_episode"]


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """A row of the study's table; the fields are its columns.

    Attributes:
        method: its name.
        latency_ms: of the policy's slow half.
        seed: of the episode's layout.
        success, reason, done_s, end_s, rms_mm, best_rms_mm, lateral_mm, force_n: of its `Outcome`.
        encoded: passes of the slow half.
        acted: chunks.
        held: share of the control ticks without a motion.
        age_ms: mean age of the pictures behind what was executed.
    """

    method: str
    latency_ms: float
    seed: int
    success: bool
    reason: str
    done_s: float
    end_s: float
    rms_mm: float
    best_rms_mm: float
    lateral_mm: float
    force_n: float
    encoded: int
    acted: int
    held: float
    age_ms: float

    @classmethod
    def of(
        cls,
        outcome: Outcome,
        *,
        method: str,
        latency_ms: float,
        seed: int,
        encoded: int,
        acted: int,
        held: float,
        age_ms: float,
    ) -> EpisodeResult:
        """The row of an episode with this outcome."""
        return cls(
            method=method,
            latency_ms=latency_ms,
            seed=seed,
            **asdict(outcome),
            encoded=encoded,
            acted=acted,
            held=held,
            age_ms=age_ms,
        )


def run_episode(
    rig: VirtualRig,
    policy: DualRatePolicy,
    name: str,
    latency_ms: float,
    seed: int,
    act_ms: float = 5.0,
) -> EpisodeResult:
    """Run the episode of `seed` to its end; the same every time, whatever was run before it.

    MethodError for a method that there is not.
    """
    chosen = method(name)
    rig.reset(seed)
    if isinstance(policy, Sampling):
        policy.reseed(seed)
    tally = chosen.run(rig, policy, Latencies(latency_ms / 1e3, act_ms / 1e3))
    outcome = rig.score.outcome()
    return EpisodeResult.of(
        outcome,
        method=name,
        latency_ms=latency_ms,
        seed=seed,
        encoded=tally.encoded,
        acted=tally.acted,
        held=tally.held / tally.ticks if tally.ticks else 0.0,
        age_ms=1e3 * tally.age_s,
    )
