"""What the engine of a policy server is configured by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

__all__ = ["EngineOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How sessions, predictions and policies are handled. Every length of time is in seconds.

    Attributes:
        fps: control rate of clients that do not say theirs; the rows of their chunks are 1/fps
            apart.
        inference_latency_s: an answer is given out no earlier than this after its prediction
            began; a slower prediction is not delayed. 0.0: at once.
        obs_queue_timeout_s: how long an `answer` waits for an observation to come.
        inference_timeout_s: a prediction that takes longer is taken for hung.
        load_timeout_s: how long `instruct` waits for a policy; loading goes on after that.
        session_timeout_s: a session of which nothing was heard for so long is dropped.
        most_sessions: how many clients there may be at once.
        similarity: how far a state value may be from the one last predicted from and still count
            as the same, as a share of that value's range. 0.0: only the very same state does.
        joint_ranges: state name → lowest and highest value, for `similarity`; for other names the
            range that the session has shown so far counts.
        unchanged_for_s: an observation whose state has not changed is left out for no longer than
            this after the last prediction began: pictures may have changed. 0.0: never left out.
        most_batched: most observations in one prediction; a policy may take fewer.
        batch_window_s: how long a prediction waits for further clients. 0.0: it does not.
        most_policies: how many policies are kept in memory, those being loaded included.
        replace_after_s: a policy hung for so long gets a fresh copy.
        most_replaced: how often, for each policy; every copy left behind keeps its memory.
        most_left_behind: how many policies and copies that hang may be left behind. Then a policy
            among them is not loaded again, no other gets a fresh copy, and one that hangs keeps its
            place.
        features_max_age_s: dual-rate policies: features older than this are not acted on.
        policy_roots: folders that policies may be loaded from. Empty: from anywhere, hub names
            too.
        allow_downloads: whether a policy may be downloaded from a hub.
        torch_threads: threads that PyTorch computes with. 0: as many as it likes; half the cores
            for policies that are loaded from the first `qwen_vla` on.
    """

    fps: float = 30.0
    inference_latency_s: float = 0.033
    obs_queue_timeout_s: float = 1.0
    inference_timeout_s: float = 10.0
    load_timeout_s: float = 600.0
    session_timeout_s: float = 60.0
    most_sessions: int = 64
    similarity: float = 0.0
    joint_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    unchanged_for_s: float = 1.0
    most_batched: int = 16
    batch_window_s: float = 0.0
    most_policies: int = 4
    replace_after_s: float = 30.0
    most_replaced: int = 2
    most_left_behind: int = 8
    features_max_age_s: float = 2.0
    policy_roots: tuple[str, ...] = ()
    allow_downloads: bool = False
    torch_threads: int = 0

    def __post_init__(self) -> None:
        """ValueError, one line, for a value that cannot be used."""
        seconds = [f.name for f in fields(self) if f.name.endswith("_s")]
        lowest = dict.fromkeys([*seconds, "similarity", "torch_threads"], 0.0)
        lowest |= dict.fromkeys(["most_replaced", "most_left_behind"], 0)
        lowest |= dict.fromkeys(["most_sessions", "most_batched", "most_policies"], 1)
        lowest |= {"fps": 0.1, "inference_timeout_s": 0.01, "session_timeout_s": 0.01}
        highest = {"fps": 10_000.0, "similarity": 1.0, "most_sessions": 65_536}
        for name, low in lowest.items():
            high = highest.get(name, 1e6)
            if not low <= getattr(self, name) <= high:  # false for NaN too
                raise ValueError(f"{name} must be from {low:g} to {high:g}")
        for name, (low, high) in self.joint_ranges.items():
            if not -math.inf < low < high < math.inf:
                raise ValueError(f"joint_ranges must have the lower value first: {name} has not")
