"""A policy from its checkpoint, ready to run: in the receiver and in its encoding process."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from policies.base import (
    AT_REST,
    ActingPolicy,
    ActionChunk,
    DualRatePolicy,
    Features,
    PolicyError,
    PolicySpec,
)

if TYPE_CHECKING:
    from receiver.options import ReceiverOptions

__all__ = ["CannotRun", "PolicyOptions", "black_pictures", "load", "load_fast_half"]
__all__ += ["on_cpu", "warm_up"]


class CannotRun(PolicyError):
    """A policy that was loaded and fails where it is to run."""


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """What a policy is loaded by; plain values, so that another process can be told."""

    checkpoint: str
    device: str
    dtype: str
    fusion: str | None
    backbone: str | None
    reuse_unchanged_views: bool
    torch_threads: int

    @classmethod
    def of(cls, options: ReceiverOptions) -> PolicyOptions:
        """Those among a receiver's options."""
        return cls(
            options.checkpoint,
            options.device,
            options.dtype,
            options.fusion,
            options.backbone,
            options.reuse_unchanged_views,
            options.torch_threads or max((os.cpu_count() or 2) // 2, 1),
        )


def load(options: PolicyOptions) -> DualRatePolicy:
    """Load both halves of the policy; PolicyError with one line when it cannot be."""
    policies = _policies(options)
    return policies.load_policy(  # type: ignore[no-any-return]
        options.checkpoint,
        device=options.device,
        dtype=options.dtype,
        fusion=options.fusion,
        backbone=options.backbone,
        reuse_unchanged=options.reuse_unchanged_views,
        keep_plain=False,
    )


def load_fast_half(options: PolicyOptions, spec: PolicySpec) -> ActingPolicy:
    """Load what acts, where another process encodes and says `spec`; PolicyError with one line."""
    policies = _policies(options)
    return policies.load_fast_half(  # type: ignore[no-any-return]
        options.checkpoint, spec, dtype=options.dtype
    )


def _policies(options: PolicyOptions) -> Any:
    # Weights and tokenizers come from disk: nothing is asked of a hub while a robot waits.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import torch

        from policies import qwen_vla
    except ModuleNotFoundError as error:
        raise PolicyError(f"{error.name} is missing: pip install '.[receiver]'") from None
    torch.set_num_threads(options.torch_threads)
    return qwen_vla


def on_cpu(device: str) -> bool:
    """Whether a policy asked for on `device` will run on the CPU."""
    if device != "auto":
        return device == "cpu"
    try:
        import torch
    except ModuleNotFoundError:
        return True  # loading says what is missing
    return not torch.cuda.is_available()


def black_pictures(spec: PolicySpec) -> dict[str, NDArray[np.uint8]]:
    """A black picture of each view."""
    width, height = spec.image_size
    return dict.fromkeys(spec.views, np.zeros((height, width, 3), np.uint8))


def warm_up(policy: ActingPolicy, encode: Callable[[], Features]) -> None:
    """Run both halves once: the first pass allocates and compiles what later ones reuse.

    Raises:
        CannotRun: with one line.
    """
    spec = policy.spec
    try:
        features = encode()
        previous: ActionChunk | None = None
        for samples in (spec.sensor_window // 2, spec.sensor_window):
            sensor = np.zeros((samples, spec.sensor_channels), np.float32) if samples else None
            previous = policy.act(features, sensor, AT_REST, previous)
    except Exception as error:  # out of memory, an unsupported operation: anything a device may say
        what = " ".join(str(error).split())[:200]
        raise CannotRun(
            f"the policy cannot run on {spec.device}: {type(error).__name__}: {what}"
        ) from error
