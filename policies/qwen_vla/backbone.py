"""The slow half: pictures and an instruction through Qwen2.5-VL, without its language head."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from policies.base import PolicyError
from policies.qwen_vla.config import MAX_LAYERS, MAX_WIDTH, ImageConfig
from policies.qwen_vla.prompt import Prompt
from policies.qwen_vla.slow_pass import SlowPass
from policies.qwen_vla.tensors import check_keys

__all__ = ["Backbone", "backbone_config", "build_model"]


class Backbone:
    """A Qwen2.5-VL model with its tokenizer.

    Args:
        model: in eval mode, on its device, with its final weights: some are joined in place
            (`joined.py`), those of the first layer are copied in another form.
        tokenizer: the model's own.
        image: how large pictures are.
        exact_resize: on a CPU, resize pictures with Pillow, to the last bit as the library's Pillow
            backend does; otherwise with torch, six times faster, up to two levels off. On a GPU it
            is to the last bit either way.
        reuse_unchanged: do not encode a view again whose picture is the same, byte for byte, as in
            the last update.
    """

    def __init__(
        self,
        model: Qwen2_5_VLModel,
        tokenizer: Any,
        image: ImageConfig,
        *,
        exact_resize: bool = True,
        reuse_unchanged: bool = False,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.image = image
        self.features: int = model.config.text_config.hidden_size
        self._prompt = Prompt(tokenizer, model.config.image_token_id)
        with torch.no_grad():
            self._pass = SlowPass(
                model,
                self._prompt,
                image,
                exact_resize=exact_resize,
                reuse_unchanged=reuse_unchanged,
            )
        self.shape = self._pass.shape
        self._turn = threading.Lock()

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        device: torch.device = self.model.device
        return device

    @property
    def reuse_unchanged(self) -> bool:
        """Whether a view whose picture stayed the same is not encoded again; may be changed."""
        return self._pass.reuse_unchanged

    @reuse_unchanged.setter
    def reuse_unchanged(self, value: bool) -> None:
        self._pass.reuse_unchanged = value

    @torch.inference_mode()
    def encode(self, images: Sequence[NDArray[np.uint8]], task: str) -> Tensor:
        """Mean over all tokens of the last hidden state: (1, 1, features), the model's dtype.

        The tensor is the caller's own and ready for use on any stream. Calls from several threads
        take turns.

        Args:
            images: RGB pictures (h, w, 3), in the order of the prompt.
            task: the instruction.

        Raises:
            PolicyError: a picture or an instruction that cannot be used.
        """
        with self._turn:  # updates share their buffers
            return self._pass(images, task)


def backbone_config(data: Mapping[str, Any]) -> Qwen2_5_VLConfig:
    """Read a `Qwen2_5_VLConfig` from the content of an untrusted `config.json`.

    Raises:
        PolicyError: another model type, or values the model cannot be made with.
    """
    if data.get("model_type") != "qwen2_5_vl":
        raise PolicyError(
            f"the backbone's model type is {data.get('model_type')!r}, it must be 'qwen2_5_vl'"
        )
    try:
        config = Qwen2_5_VLConfig(**_harmless(data))
        text, vision = config.text_config, config.vision_config
        widths = [text.vocab_size, text.hidden_size, text.intermediate_size]
        widths += [vision.hidden_size, vision.intermediate_size, vision.out_hidden_size]
        layers = [text.num_hidden_layers, vision.depth]
    except Exception as error:  # the library raises many kinds
        reason = " ".join(str(error).split())
        raise PolicyError(f"the backbone's configuration is not valid: {reason:.300}") from error
    if not all(0 < layer <= MAX_LAYERS for layer in layers):
        raise PolicyError(f"the backbone's number of layers {layers} is out of range")
    if not all(0 < width <= 4 * MAX_WIDTH for width in widths):
        raise PolicyError(f"the backbone's sizes {widths} are out of range")
    return config


def build_model(
    config: Qwen2_5_VLConfig, weights: Mapping[str, Tensor], device: torch.device
) -> Qwen2_5_VLModel:
    """Make a model that takes over `weights` (its own names) as they are, in eval mode.

    Raises:
        PolicyError: keys missing or unexpected, or shapes that differ.
    """
    try:
        with torch.device("meta"):  # no memory for weights that are replaced at once
            model = Qwen2_5_VLModel(config)
    except Exception as error:
        raise PolicyError(f"the backbone's configuration is not valid: {error}") from error
    expected = model.state_dict()
    check_keys("the backbone", expected, weights)
    model.load_state_dict(weights, assign=True)
    # Rope frequencies are computed, not stored, and came out empty on the meta device.
    vision, text = model.visual, model.language_model
    vision.rotary_pos_emb = type(vision.rotary_pos_emb)(config.vision_config)
    text.rotary_emb = type(text.rotary_emb)(config.text_config)
    return model.to(device).eval().requires_grad_(False)


def _harmless(data: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without what makes the library load code: kernels, remote code, quantizers."""
    refused = ("auto_map", "attn_implementation", "experts_implementation", "quantization_config")
    return {
        key: _harmless(value) if isinstance(value, Mapping) else value
        for key, value in data.items()
        if not key.startswith("_") and key not in refused
    }
