"""Real-time chunking, in virtual time: each new chunk is made in keeping with the one before it.

The bookkeeping is `policies/flow/chunker.py`, which serves a real clock as well. Targets go to the
arm as the robot client's do: as many a second, through the same limits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.base import ActionChunk, DualRatePolicy, PolicyError
from receiver.encoders import LocalEncoder
from scripts.closed_loop.chunks import CONTROL_HZ
from scripts.closed_loop.rig import VirtualRig
from scripts.closed_loop.running import Latencies, Tally

__all__ = ["run_rtc"]

_SAME_S = 1e-9


@dataclass(frozen=True, slots=True)
class _Job:
    """An inference under way; what will come out of it is known already."""

    chunk: ActionChunk
    done_at: float


def run_rtc(
    rig: VirtualRig, policy: DualRatePolicy, latencies: Latencies, least_rows: int
) -> Tally:
    """Run the episode that `rig` has begun to its end.

    An inference begins when the one before is there and `least_rows` rows have gone by since that
    began. Both halves of the policy are in it, one after the other.

    Raises:
        PolicyError: the policy has no flow head: its chunks cannot be guided.
    """
    # Needs PyTorch, which takes seconds to come.
    from policies.flow import FlowPolicy, RtcChunker

    if not isinstance(policy, FlowPolicy):
        raise PolicyError(
            "real-time chunking needs a policy that samples its chunks: train a flow head with "
            "python scripts/train_flow.py, and name its folder"
        )
    spec = policy.spec
    latency_s = latencies.encode_s + latencies.act_s
    chunker = RtcChunker(
        spec.rows, spec.dt, least_rows=min(least_rows, spec.rows), latency_s=latency_s
    )
    limiter = rig.limiter(CONTROL_HZ)
    encoder = LocalEncoder(policy)
    tally = Tally()
    seen_at: dict[float, float] = {}
    job: _Job | None = None
    commanded: NDArray[np.float64] | None = None
    begun, index = rig.time_s, 0

    def predicted(at: float) -> _Job:
        sight, robot = rig.sight(), rig.robot()
        features = encoder.encode(rig.jpegs(spec.views, sight), spec.task)
        window = rig.sensor.window(rig.sensor.newest, spec.sensor_window)
        tally.encoded += 1
        tally.acted += 1
        seen_at[at] = sight.captured_at
        return _Job(
            policy.act(features, window, robot, under_way=chunker.begin(at)), at + latency_s
        )

    try:
        while not rig.over:
            at = begun + index / CONTROL_HZ
            index += 1
            rig.advance_to(at)
            if job is not None and job.done_at <= at + _SAME_S:
                chunker.finish(job.chunk, job.done_at)
                job = None
            if job is None and chunker.wants(at):
                job = predicted(at)
            planned = chunker.target(at)
            if planned is None:
                commanded = None
            else:
                commanded = limiter.next(planned.joints_deg, commanded, rig.rig.joints_deg)
            tally.ticks += 1
            if planned is None or commanded is None:
                tally.held += 1
                rig.stop()
            else:
                tally.ages_s.append(at - seen_at[planned.observed_at])
                rig.move_joints(commanded)
    finally:
        encoder.close()
    return tally
