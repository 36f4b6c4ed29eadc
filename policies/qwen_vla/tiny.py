"""A small policy of the real architecture, with random weights, for demos and tests.

It has learned nothing. Its weights are random, and its last layers are set so that its actions
stay near a home pose and move a little with what it sees and feels: enough to run the whole
system on a laptop, no more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from policies.qwen_vla.action_expert import ActionExpert
from policies.qwen_vla.backbone import Backbone, backbone_config
from policies.qwen_vla.config import (
    ActionConfig,
    BackboneConfig,
    ExpertConfig,
    ImageConfig,
    PolicyConfig,
    SensorConfig,
)
from policies.qwen_vla.fast import FastParts
from policies.qwen_vla.policy import QwenVlaPolicy
from policies.qwen_vla.sensor_encoder import SensorEncoder
from policies.qwen_vla.tokenizer import make_tokenizer

__all__ = ["HARD_LIMIT", "HOME_DEG", "Calibration", "backbone_sizes", "make_tiny_policy"]
__all__ += ["random_picture", "random_windows"]

VOCABULARY = 640
WIDTH = 128
# A quarter of the reference's pixels: five views then leave half a core to whatever else runs.
PIXELS = 57_600
SENSOR = SensorConfig(conv=(96, 192, 192, 192), feedforward=384, features=256)
EXPERT = ExpertConfig(vl_features=WIDTH, hidden=192, feedforward=384)

HOME_DEG = (0.0, 0.0, 0.0, 0.0, 60.0, 0.0)
"""Joint angles around which the actions vary by default."""

HARD_LIMIT = 6.0
"""No input moves a joint further from home than this many spreads."""

# Calibration: pairs of what the cameras and the sensor might give.
SCENES = 24
WINDOWS = 96
# Directions in which the features vary most, taken from each of the two.
DIRECTIONS = 6
# How much louder the inputs are than the decoder's own state; from about 8 on the last hidden state
# varies enough for `HARD_LIMIT` to hold with the full spread.
GAIN = 5.0
# How much the rows of a chunk differ; small, so that a chunk is smooth.
ROW_CHANGE = 5.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """Inputs such as the policy will get; its actions are centred on home over these.

    Attributes:
        scenes: for each, view → picture (height, width, 3) uint8 in RGB.
        windows: (N, 65, 1026) float32 sensor windows, N a multiple of the number of scenes.
    """

    scenes: Sequence[Mapping[str, NDArray[np.uint8]]]
    windows: NDArray[np.float32]

    def __post_init__(self) -> None:
        """ValueError when windows and scenes do not go together."""
        if not self.scenes or not len(self.windows) or len(self.windows) % len(self.scenes):
            raise ValueError("calibration needs a whole number of sensor windows for each scene")


def make_tiny_policy(
    *,
    seed: int = 0,
    home_deg: Sequence[float] = HOME_DEG,
    spread_deg: float = 1.0,
    calibration: Calibration | None = None,
) -> QwenVlaPolicy:
    """Make the small policy on the CPU, in float32; the same for the same arguments.

    Args:
        seed: of the random weights.
        home_deg: six joint angles around which the actions vary.
        spread_deg: standard deviation of each joint over the calibration's inputs; no input gives
            more than six times as much.
        calibration: what the policy will see and feel; made up where it is not given.

    Raises:
        ValueError: not six angles, or a spread that is not positive.
    """
    if len(home_deg) != 6 or not all(math.isfinite(angle) for angle in home_deg):
        raise ValueError("home_deg must be six angles in degrees")
    if not (math.isfinite(spread_deg) and spread_deg > 0):
        raise ValueError("spread_deg must be positive")
    config = PolicyConfig(
        name="tiny, random weights",
        image=ImageConfig(min_pixels=PIXELS, max_pixels=PIXELS, rounding="nearest"),
        sensor=SENSOR,
        expert=EXPERT,
        action=ActionConfig(space="joint_position"),
        backbone=BackboneConfig(inside=True, config={}),
    )
    with _one_thread(), torch.inference_mode():
        generator = torch.Generator().manual_seed(seed)
        tokenizer = make_tokenizer(VOCABULARY)
        model = Qwen2_5_VLModel(backbone_config(backbone_sizes(tokenizer)))
        sensor = SensorEncoder(SENSOR)
        expert = ActionExpert(EXPERT, SENSOR.features, len(config.action.columns))
        for module in (model, sensor, expert):
            _randomize(module, generator)
            module.eval().requires_grad_(False)
        _make_force_count(sensor)
        _make_rows_alike(expert, generator)
        policy = QwenVlaPolicy(
            FastParts(config, sensor, expert), Backbone(model, tokenizer, config.image)
        )
        inputs = calibration or _made_up(config, seed)
        _calibrate(policy, inputs, generator, home_deg, spread_deg)
    return policy


def random_picture(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture (360, 640, 3) like a camera's: soft shapes, an edge or two, a little noise."""
    coarse = torch.from_numpy(rng.random((1, 3, 5, 8), dtype=np.float32))
    soft = nn.functional.interpolate(coarse, (360, 640), mode="bilinear", align_corners=False)
    picture = soft[0].permute(1, 2, 0).numpy()
    for _ in range(3):
        top, left = rng.integers(0, 300), rng.integers(0, 560)
        height, width = rng.integers(20, 200), rng.integers(20, 300)
        picture[top : top + height, left : left + width] = rng.random(3)
    light, contrast = rng.uniform(0.25, 0.75), rng.uniform(0.2, 1.0)
    picture = light + contrast * (picture - 0.5) + rng.normal(0, 0.02, picture.shape)
    return (picture.clip(0, 1) * 255).astype(np.uint8)


def random_windows(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Windows (count, 65, 1026): a force of 0 to 1 N, A-scans with the peak of a surface."""
    samples, depth = SENSOR.window, SENSOR.channels - 1
    time = np.linspace(0, 1, samples)[None, :, None]
    start, slope = rng.random((2, count, 1, 1))
    force = np.clip(start + (slope - 0.5) * time, 0, 1)
    place = depth * (0.1 + 0.8 * rng.random((count, 1, 1))) + 40 * (slope - 0.5) * time
    width = 3 + 12 * rng.random((count, 1, 1))
    height = 0.3 + 0.7 * rng.random((count, 1, 1))
    scans = height * np.exp(-(((np.arange(depth) - place) / width) ** 2))
    scans += (
        0.2 * rng.random((count, 1, 1)) * np.exp(-np.clip(np.arange(depth) - place, 0, 999) / 200)
    )
    scans += rng.normal(0, 0.02, scans.shape)
    return np.concatenate((force, scans.clip(0, 1)), axis=2).astype(np.float32)


def backbone_sizes(tokenizer: Qwen2Tokenizer) -> dict[str, Any]:
    """The sizes of a small backbone: the content of its `config.json`."""
    ids = tokenizer.convert_tokens_to_ids
    return {
        "model_type": "qwen2_5_vl",
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
        "vision_config": {
            "depth": 4,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [3],
            "window_size": 112,
        },
        "text_config": {
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [4, 6, 6],
            },
            "bos_token_id": ids("<|endoftext|>"),
            "eos_token_id": ids("<|im_end|>"),
        },
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    # Sums split over threads round differently; one thread gives the same bytes every time.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _randomize(module: nn.Module, generator: torch.Generator) -> None:
    """Give matrices random values that keep the size of what goes through them."""
    for _, parameter in sorted(module.named_parameters()):
        if parameter.ndim == 1:
            continue
        fan_in = parameter[0].numel()
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(fan_in))
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


def _make_force_count(sensor: SensorEncoder) -> None:
    # One force among 1025 values of an A-scan would be lost among random weights.
    first = sensor.get_parameter("conv_backbone.0.weight")
    first[:, 0] *= math.sqrt(SENSOR.channels) / 2


def _make_rows_alike(expert: ActionExpert, generator: torch.Generator) -> None:
    first, last = torch.randn((2, 1, EXPERT.hidden), generator=generator)
    share = torch.linspace(0, ROW_CHANGE, EXPERT.rows).unsqueeze(1)
    expert.pos_embed.copy_((first + share * last).unsqueeze(0))


def _made_up(config: PolicyConfig, seed: int) -> Calibration:
    rng = np.random.default_rng(seed)
    scenes = [{view: random_picture(rng) for view in config.views} for _ in range(SCENES)]
    return Calibration(scenes, random_windows(rng, WINDOWS))


def _calibrate(
    policy: QwenVlaPolicy,
    inputs: Calibration,
    generator: torch.Generator,
    home_deg: Sequence[float],
    spread_deg: float,
) -> None:
    """Set the fusion and the output head so that actions vary about home as they should."""
    seen = torch.cat([policy.encode(scene, policy.config.task) for scene in inputs.scenes])
    seen = seen.flatten(1)
    encoder, expert = policy.fast.sensor_encoder, policy.fast.action_expert
    assert encoder is not None  # the tiny policy has one
    felt = encoder(torch.from_numpy(inputs.windows))
    _fuse(expert, seen, felt, generator)

    # Every window with some scene: their number is a multiple of the scenes'.
    both = torch.cat((seen.repeat(len(felt) // len(seen), 1), felt), dim=1)
    states = expert.output_head[0](expert.decode(expert.fusion_proj(both).unsqueeze(1)))
    _aim(expert, states, generator, home_deg, spread_deg)


def _fuse(expert: ActionExpert, seen: Tensor, felt: Tensor, generator: torch.Generator) -> None:
    """Let the directions in which either feature varies most reach the decoder equally loud."""
    hidden = EXPERT.hidden
    mixed = torch.linalg.qr(torch.randn((hidden, 2 * DIRECTIONS), generator=generator)).Q
    weight = torch.zeros(hidden, seen.shape[1] + felt.shape[1])
    mean = torch.cat((seen.mean(0), felt.mean(0)))
    for part, columns, place in (
        (seen, slice(0, seen.shape[1]), mixed[:, :DIRECTIONS]),
        (felt, slice(seen.shape[1], None), mixed[:, DIRECTIONS:]),
    ):
        _, sizes, axes = torch.linalg.svd(part - part.mean(0), full_matrices=False)
        # A direction that hardly varies is mostly chance: not made as loud as the first.
        deviation = (sizes[:DIRECTIONS] / math.sqrt(len(part))).clamp(min=float(sizes[0]) * 0.02)
        weight[:, columns] = GAIN * (place / deviation) @ axes[:DIRECTIONS]
    expert.fusion_proj.weight.copy_(weight)
    expert.fusion_proj.bias.copy_(-weight @ mean)


def _aim(
    expert: ActionExpert,
    states: Tensor,
    generator: torch.Generator,
    home_deg: Sequence[float],
    spread_deg: float,
) -> None:
    """Set the last layer: home on average, the spread by what varies, the gripper left at 0.

    A layer norm's output has at most the length sqrt(hidden), so that a weight row's own length
    bounds what it can add, whatever the input.
    """
    joints = len(home_deg)
    mean = states.mean(dim=(0, 1))
    ahead = mean / mean.norm()
    varying = (states - mean).mean(dim=1)
    varying = varying - torch.outer(varying @ ahead, ahead)
    _, sizes, axes = torch.linalg.svd(varying, full_matrices=False)
    deviation = sizes[:joints] / math.sqrt(len(states))
    turned = torch.linalg.qr(torch.randn((joints, joints), generator=generator)).Q
    rows = spread_deg * (turned / deviation) @ axes[:joints]
    reach = rows.norm(dim=1, keepdim=True) * math.sqrt(EXPERT.hidden)
    rows = rows * (0.99 * HARD_LIMIT * spread_deg / reach).clamp(max=1.0)
    weight = expert.get_parameter("output_head.1.weight").zero_()
    bias = expert.get_parameter("output_head.1.bias").zero_()
    weight[:joints] = rows
    bias[:joints] = torch.tensor(home_deg) - rows @ mean
