"""The two sides of `bench_slow_part.py`: the library's own path and ours, on the same weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from policies.qwen_vla.action_expert import ActionExpert
from policies.qwen_vla.backbone import Backbone
from policies.qwen_vla.config import ImageConfig, PolicyConfig
from policies.qwen_vla.fast import FastParts
from policies.qwen_vla.folded import FoldedFast
from policies.qwen_vla.images import target_size
from policies.qwen_vla.packed import packing
from policies.qwen_vla.policy import QwenVlaPolicy
from policies.qwen_vla.runner import FastRunner
from policies.qwen_vla.sensor_encoder import SensorEncoder
from policies.qwen_vla.tokenizer import make_tokenizer

__all__ = ["Picture", "Sides", "Stock", "copy_model", "reference_config", "reference_policy"]

Picture = NDArray[np.uint8]

IMAGE_TOKEN = "<|image_pad|>"


def copy_model(model: Qwen2_5_VLModel) -> Qwen2_5_VLModel:
    """A second model with its own weights, laid out as the library has them."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for module in twin.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                own = parameter.detach().clone(memory_format=torch.contiguous_format)
                setattr(module, name, torch.nn.Parameter(own, requires_grad=False))
    return twin


class Stock:
    """What the library does for an update: its processor, its chat template, its model.

    The language head is left out here too, so that the comparison is with the library at its best.

    Args:
        model: with weights of its own (`copy_model`).
        tokenizer: the model's.
        image: how large pictures are; the library's processor is told the resulting size.
    """

    def __init__(self, model: Qwen2_5_VLModel, tokenizer: Any, image: ImageConfig) -> None:
        self._model, self._tokenizer, self._image = model, tokenizer, image

    def inputs(self, pictures: list[Picture], task: str) -> dict[str, Tensor]:
        """Pictures and words as the model takes them, on its device."""
        height, width, _ = pictures[0].shape
        size = target_size(width, height, self._image, 28)
        area = size[0] * size[1]
        processor = Qwen2VLImageProcessorPil(size={"shortest_edge": area, "longest_edge": area})
        # The processor's own rule of rounding may give another size: resize as it would.
        sized = [Image.fromarray(p).resize(size, Image.Resampling.BICUBIC) for p in pictures]
        seen = processor(sized, return_tensors="pt")
        content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": task}]
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False
        )
        pieces = text.split(IMAGE_TOKEN)
        filled = pieces[0]
        for grid, piece in zip(seen["image_grid_thw"], pieces[1:], strict=True):
            filled += IMAGE_TOKEN * (int(grid.prod()) // 4) + piece
        ids = self._tokenizer(filled, return_tensors="pt")["input_ids"]
        device = self._model.device
        return {
            "input_ids": ids.to(device),
            "attention_mask": torch.ones_like(ids).to(device),
            "mm_token_type_ids": (ids == self._model.config.image_token_id).int().to(device),
            "pixel_values": seen["pixel_values"].to(device, self._model.dtype),
            "image_grid_thw": seen["image_grid_thw"].to(device),
        }

    @torch.inference_mode()
    def features(self, inputs: dict[str, Tensor]) -> Tensor:
        """The mean over all tokens of the last hidden state, done when this returns."""
        states: Tensor = self._model(**inputs, use_cache=False).last_hidden_state
        features = states.mean(dim=1, keepdim=True)
        if features.is_cuda:
            torch.cuda.synchronize(features.device)
        return features


@dataclass(frozen=True)
class Sides:
    """Both sides over the same weights.

    Attributes:
        policy: ours.
        stock: the library's path.
        reuse: our backbone once more, for views that stayed the same; shares our weights.
        quick: once more, with torch's resizing; shares them too.
    """

    policy: QwenVlaPolicy
    stock: Stock
    reuse: Backbone
    quick: Backbone

    @staticmethod
    def of(policy: QwenVlaPolicy, stock: Qwen2_5_VLModel) -> Sides:
        """Both sides; `stock` holds the same weights a second time."""
        ours = policy.backbone
        parts = (ours.model, ours.tokenizer, ours.image)
        return Sides(
            policy,
            Stock(stock, ours.tokenizer, ours.image),
            Backbone(*parts, reuse_unchanged=True),
            Backbone(*parts, exact_resize=False),
        )


def reference_policy(device: torch.device) -> tuple[QwenVlaPolicy, Qwen2_5_VLModel]:
    """A policy of the reference sizes with random weights, and a copy of its backbone.

    The sizes are those of Qwen2.5-VL-3B-Instruct's published configuration, in bfloat16; only the
    tokenizer is a small one, whose ids fit.
    """
    tokenizer = make_tokenizer(640)
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = Qwen2_5_VLModel(reference_config(tokenizer)).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    config = PolicyConfig(image=ImageConfig(rounding="nearest"))
    assert config.sensor is not None
    encoder = SensorEncoder(config.sensor)
    expert = ActionExpert(config.expert, config.sensor.features, len(config.action.columns))
    for part in (encoder, expert):
        part.eval().requires_grad_(False)
    fast = FastParts(config, encoder, expert)
    runner = FastRunner(FoldedFast(fast, packing("float32", device)))
    stock = copy_model(model)
    slow = Backbone(model, tokenizer, config.image)
    return QwenVlaPolicy(fast, slow, runner, keep_plain=False), stock


def reference_config(tokenizer: Any) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL-3B-Instruct's published sizes, with the special ids of `tokenizer`."""
    ids = tokenizer.convert_tokens_to_ids
    return Qwen2_5_VLConfig(
        image_token_id=ids(IMAGE_TOKEN),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        vision_config={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "window_size": 112,
        },
        text_config={
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [16, 24, 24],
            },
            "bos_token_id": ids("<|endoftext|>"),
            "eos_token_id": ids("<|im_end|>"),
        },
    )
