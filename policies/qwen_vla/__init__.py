"""A dual-rate policy on Qwen2.5-VL: pictures and words slowly, touch and actions fast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from policies.qwen_vla.acting import FastHalf
from policies.qwen_vla.checkpoint import save_policy
from policies.qwen_vla.fast import FastParts
from policies.qwen_vla.loading import load_fast_half, load_fast_parts, load_policy

if TYPE_CHECKING:
    from policies.qwen_vla.policy import QwenVlaPolicy

__all__ = ["FastHalf", "FastParts", "QwenVlaPolicy", "load_fast_half", "load_fast_parts"]
__all__ += ["load_policy", "save_policy"]


def __getattr__(name: str) -> Any:
    """The whole policy only when asked for: its backbone's library takes seconds to import."""
    if name != "QwenVlaPolicy":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from policies.qwen_vla.policy import QwenVlaPolicy

    return QwenVlaPolicy
