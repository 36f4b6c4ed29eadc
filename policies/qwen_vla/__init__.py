"""A dual-rate policy on Qwen2.5-VL: pictures and words slowly, touch and actions fast."""

from policies.qwen_vla.checkpoint import save_policy
from policies.qwen_vla.fast import FastParts
from policies.qwen_vla.loading import load_fast_parts, load_policy
from policies.qwen_vla.policy import QwenVlaPolicy

__all__ = ["FastParts", "QwenVlaPolicy", "load_fast_parts", "load_policy", "save_policy"]
