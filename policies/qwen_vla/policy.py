"""`QwenVlaPolicy`: slow pictures and words, fast touch, one chunk of actions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.wire import RobotState
from policies.base import ActionChunk, PolicyError, PolicySpec
from policies.qwen_vla.backbone import Backbone
from policies.qwen_vla.fast import FastParts
from policies.qwen_vla.images import target_size

__all__ = ["QwenVlaPolicy"]

# The cameras of the reference rig; `spec.image_size` is what becomes of their pictures.
REFERENCE_PICTURE = (640, 360)


class QwenVlaPolicy:
    """A dual-rate policy on Qwen2.5-VL; `encode` and `act` may run in two threads at once.

    Args:
        fast: the fast parts.
        backbone: the slow part.
    """

    def __init__(self, fast: FastParts, backbone: Backbone) -> None:
        self.config = fast.config
        self.fast = fast
        self.backbone = backbone
        self._weight = fast.action_expert.pos_embed
        self._spec = self._make_spec()

    @property
    def spec(self) -> PolicySpec:
        """What the policy takes and gives."""
        return self._spec

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

    @torch.inference_mode()
    def act(
        self,
        features: Tensor,
        sensor: NDArray[np.float32] | None,
        robot: RobotState | None = None,
        previous: ActionChunk | None = None,
    ) -> ActionChunk:
        """Turn features and a sensor window into a chunk.

        Args:
            features: what `encode` returned.
            sensor: (T, channels), oldest sample first, T at least 1, resampled to the trained
                length; None with fusion `none` only.
            robot: not used by this policy.
            previous: not used by this policy.

        Raises:
            PolicyError: no window where one is needed, a wrong shape, or values not finite.
        """
        window = self._window(sensor)
        actions, delta = self.fast(features.to(self._weight), window)
        chunk = torch.stack((actions[0], delta[0])).float().cpu().numpy()
        if not np.isfinite(chunk).all():
            raise PolicyError("the policy gave values that are not finite: do not use the chunk")
        return ActionChunk(actions=chunk[0], delta=chunk[1])

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

    def _window(self, sensor: NDArray[np.float32] | None) -> Tensor | None:
        config = self.config.sensor
        if config is None:
            return None
        if sensor is None:
            raise PolicyError(f"fusion {self.config.expert.fusion} needs a sensor window")
        if sensor.ndim != 2 or sensor.shape[0] < 1 or sensor.shape[1] != config.channels:
            raise PolicyError(
                f"a sensor window must be (samples, {config.channels}), not {sensor.shape}"
            )
        if not np.isfinite(sensor).all():
            raise PolicyError("the sensor window holds values that are not finite")
        # A copy: the window may be a view of a ring that goes on, and torch wants it writable.
        window = torch.from_numpy(np.array(sensor, dtype=np.float32))
        return window.unsqueeze(0).to(self._weight)

    def _make_spec(self) -> PolicySpec:
        config, vision = self.config, self.backbone.shape
        modules: list[nn.Module | None] = [self.backbone.model]
        modules += [self.fast.sensor_encoder, self.fast.action_expert]
        return PolicySpec(
            name=f"{config.name} ({config.expert.fusion})",
            views=config.views,
            image_size=target_size(*REFERENCE_PICTURE, config.image, vision.factor),
            sensor_window=config.sensor.window if config.sensor else 0,
            sensor_channels=config.sensor.channels if config.sensor else 0,
            rows=config.expert.rows,
            columns=config.action.columns,
            space=config.action.space,
            dt=config.action.dt,
            task=config.task,
            fusion=config.expert.fusion,
            device=str(self._weight.device),
            parameters=sum(_count(module.parameters()) for module in modules if module),
        )


def _count(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
