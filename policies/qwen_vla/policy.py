"""`QwenVlaPolicy`: slow pictures and words, fast touch, one chunk of actions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from policies.base import PolicyError, PolicySpec
from policies.qwen_vla.acting import FastHalf, count, fast_spec
from policies.qwen_vla.backbone import Backbone
from policies.qwen_vla.fast import FastParts
from policies.qwen_vla.images import target_size
from policies.qwen_vla.runner import FastRunner

__all__ = ["QwenVlaPolicy"]

# The cameras of the reference rig; `spec.image_size` is what becomes of their pictures.
REFERENCE_PICTURE = (640, 360)


class QwenVlaPolicy(FastHalf):
    """A dual-rate policy on Qwen2.5-VL; `encode` and `act` may run in two threads at once.

    Args:
        fast: the fast parts.
        backbone: the slow part.
        runner: what evaluates the fast parts; by default they do it themselves.
        keep_plain: keep `fast` beside a runner; without, the policy can run but not be saved.
    """

    def __init__(
        self,
        fast: FastParts,
        backbone: Backbone,
        runner: FastRunner | None = None,
        *,
        keep_plain: bool = True,
        identity: str = "",
    ) -> None:
        plain = fast if keep_plain or runner is None else None
        device = fast.action_expert.pos_embed.device if runner is None else runner.device
        spec = _spec_of(fast, backbone, device, identity)
        super().__init__(fast.config, spec, plain, runner)
        self.backbone = backbone

    @torch.inference_mode()
    def encode(self, images: Mapping[str, NDArray[np.uint8]], task: str) -> Tensor:
        """Turn a picture of each view and an instruction into features (1, 1, D).

        Args:
            images: RGB (h, w, 3) uint8 by view; views the policy does not know are ignored.
            task: the instruction.

        Raises:
            PolicyError: a view is missing, or a picture has another shape or dtype.
        """
        missing = [view for view in self.config.views if view not in images]
        if missing:
            raise PolicyError(
                f"no picture of {', '.join(missing)}; the policy needs "
                f"{', '.join(self.config.views)}"
            )
        pictures = [images[view] for view in self.config.views]
        for view, picture in zip(self.config.views, pictures, strict=True):
            fits = isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.shape[2] == 3
            if not fits or picture.dtype != np.uint8:
                raise PolicyError(
                    f"{view}: a picture must be (height, width, 3) uint8, not "
                    f"{getattr(picture, 'shape', type(picture).__name__)} "
                    f"{getattr(picture, 'dtype', '')}"
                )
        return self.backbone.encode(pictures, task)

    def pack(self, features: Tensor) -> bytes:
        """The features as bytes, for another process with the same policy."""
        data: bytes = save({"features": features.cpu().contiguous()})
        return data

    def state_dicts(self, *, with_backbone: bool) -> dict[str, dict[str, Tensor]]:
        """The weights of each part, as a checkpoint names the parts."""
        states: dict[str, dict[str, Tensor]] = {}
        if with_backbone:
            state = self.backbone.model.state_dict()
            states["vl_model"] = {f"model.{key}": value for key, value in state.items()}
        if self.fast.sensor_encoder is not None:
            states["sensor_encoder"] = dict(self.fast.sensor_encoder.state_dict())
        states["action_expert"] = dict(self.fast.action_expert.state_dict())
        return states


def _spec_of(
    fast: FastParts, backbone: Backbone, device: torch.device, identity: str
) -> PolicySpec:
    modules: list[nn.Module | None] = [backbone.model]
    modules += [fast.sensor_encoder, fast.action_expert]
    return replace(
        fast_spec(fast.config, device, identity),
        image_size=target_size(*REFERENCE_PICTURE, fast.config.image, backbone.shape.factor),
        parameters=sum(count(module.parameters()) for module in modules if module),
    )
