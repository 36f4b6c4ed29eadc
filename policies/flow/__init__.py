"""A flow-matching head for a dual-rate policy, and real-time chunking with it."""

from __future__ import annotations

from policies.flow.chunker import RtcChunker, Target, UnderWay
from policies.flow.policy import FlowPolicy
from policies.flow.storing import is_flow, load_flow, save_flow

__all__ = ["FlowPolicy", "RtcChunker", "Target", "UnderWay"]
__all__ += ["is_flow", "load_flow", "save_flow"]
