"""The small policy that is trained from nothing: its sizes, and its untrained parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from policies.qwen_vla.action_expert import ActionExpert
from policies.qwen_vla.backbone import Backbone, backbone_config
from policies.qwen_vla.config import (
    JOINTS,
    ActionConfig,
    BackboneConfig,
    ExpertConfig,
    ImageConfig,
    PolicyConfig,
    RobotConfig,
    SensorConfig,
)
from policies.qwen_vla.fast import FastParts
from policies.qwen_vla.images import PatchShape, target_size
from policies.qwen_vla.layout import Grids
from policies.qwen_vla.policy import QwenVlaPolicy
from policies.qwen_vla.prompt import Prompt
from policies.qwen_vla.sensor_encoder import SensorEncoder
from policies.qwen_vla.tiny import backbone_sizes
from policies.qwen_vla.tokenizer import make_tokenizer
from scripts.training.towers import TrainableSlowHalf
from sim.layout import TIP_FROM_FLANGE_MM

__all__ = ["PICTURE", "SmallParts", "make_small", "without_dropout"]

VOCABULARY = 640
WIDTH = 128
PIXELS = 21_952  # 196 x 112 of a picture of 640 x 360: 28 tokens
PICTURE = (640, 360)
CHANNELS = 1026


@dataclass(frozen=True)
class SmallParts:
    """What is trained of a small policy.

    Attributes:
        config: everything but the weights.
        model: the backbone.
        tokenizer: its tokenizer.
        sensor: the sensor encoder.
        expert: the action expert.
    """

    config: PolicyConfig
    model: Qwen2_5_VLModel
    tokenizer: Any
    sensor: SensorEncoder
    expert: ActionExpert

    def slow(self, grids: Grids | None = None) -> TrainableSlowHalf:
        """The slow half, trainable, for the policy's own task.

        `grids` are height and width of each view in patches; by default of 640 x 360 pixels.
        """
        shape = PatchShape()
        if grids is None:
            width, height = target_size(*PICTURE, self.config.image, shape.factor)
            grids = ((height // shape.patch, width // shape.patch),) * len(self.config.views)
        cells = [height * width // shape.merge**2 for height, width in grids]
        prompt = Prompt(self.tokenizer, self.model.config.image_token_id)
        return TrainableSlowHalf(self.model, prompt.ids(self.config.task, cells), grids)

    def policy(self) -> QwenVlaPolicy:
        """The policy with the weights as they are; they are not to be trained any further."""
        for module in (self.model, self.sensor, self.expert):
            module.eval().requires_grad_(False)
        fast = FastParts(self.config, self.sensor, self.expert)
        return QwenVlaPolicy(fast, Backbone(self.model, self.tokenizer, self.config.image))


def make_small(
    views: tuple[str, ...],
    goals_deg: Tensor,
    rows: int = 16,
    seed: int = 0,
    tool_mm: tuple[float, float, float] = (0.0, 0.0, TIP_FROM_FLANGE_MM),
) -> SmallParts:
    """Untrained parts; joint angles are told relative to the goals (N, 6) of what is trained on."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(VOCABULARY)
    sizes = backbone_sizes(tokenizer)
    # Less deep than the one for demonstrations of speed: two cores train it in an hour.
    sizes["vision_config"].update(depth=3, fullatt_block_indexes=[0, 2])
    sizes["text_config"].update(num_hidden_layers=3, intermediate_size=256)
    model = Qwen2_5_VLModel(backbone_config(sizes))
    _spread(model)
    center = goals_deg.mean(dim=0)
    # A joint that hardly moves tells little: it is not made loud. One goal does not vary.
    spread = goals_deg.std(dim=0) if len(goals_deg) > 1 else torch.zeros_like(center)
    spans = tuple(spread.clamp(min=2.0).tolist())
    robot = RobotConfig(tuple(center.tolist()), spans, spans, tool_mm)
    sensor = SensorConfig(
        channels=CHANNELS + robot.channels, conv=(96, 192, 192, 192), feedforward=384, features=256
    )
    expert = ExpertConfig(vl_features=WIDTH, hidden=192, layers=2, feedforward=768, rows=rows)
    config = PolicyConfig(
        name="insertion, small",
        views=views,
        image=ImageConfig(min_pixels=PIXELS, max_pixels=PIXELS, rounding="nearest"),
        sensor=sensor,
        expert=expert,
        action=ActionConfig(space="joint_position"),
        backbone=BackboneConfig(inside=True, config={}),
        robot=robot,
    )
    small = SmallParts(
        config,
        model,
        tokenizer,
        SensorEncoder(sensor),
        ActionExpert(expert, sensor.features, len(config.action.columns), reads_goal=True),
    )
    for module in (small.sensor, small.expert):
        without_dropout(module)
    nn.init.normal_(small.expert.pos_embed, std=0.5)
    # The gripper's column has no example: it stays at zero.
    with torch.no_grad():
        small.expert.get_parameter("output_head.1.weight")[JOINTS:].zero_()
        small.expert.get_parameter("output_head.1.bias")[JOINTS:].zero_()
    return small


def _spread(model: Qwen2_5_VLModel) -> None:
    """Begin with weights that keep the size of what goes through them.

    The library's (a deviation of 0.02) are meant for widths of thousands: at 64 and 128 next to
    nothing of the pictures would reach the features, and training would begin with a long plateau.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed_tokens" not in name:
                parameter.normal_(std=parameter[0].numel() ** -0.5)


def without_dropout(module: nn.Module) -> None:
    """Turn dropout off: what is learned is a tenth of a millimetre, which its noise would drown."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(part, nn.MultiheadAttention):
            part.dropout = 0.0
