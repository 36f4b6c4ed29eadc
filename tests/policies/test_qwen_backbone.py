from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from policies.base import PolicyError
from policies.qwen_vla import QwenVlaPolicy
from policies.qwen_vla.backbone import Backbone, backbone_config
from policies.qwen_vla.config import ImageConfig
from policies.qwen_vla.images import target_size
from policies.qwen_vla.tiny import random_windows

Pictures = dict[str, NDArray[np.uint8]]
TASK = "Perform needle insertion into the eye"


@torch.inference_mode()
def stock_features(policy: QwenVlaPolicy, images: Pictures, task: str) -> torch.Tensor:
    """The library's own path: its processor's pictures, its chat template, its whole model."""
    backbone = policy.backbone
    model = Qwen2_5_VLForConditionalGeneration(backbone.model.config).eval()
    model.model.load_state_dict(backbone.model.state_dict())
    first = next(iter(images.values()))
    width, height = target_size(first.shape[1], first.shape[0], backbone.image, 28)
    exact = {"shortest_edge": width * height, "longest_edge": width * height}
    sized = [Image.fromarray(images[view]) for view in policy.config.views]
    sized = [image.resize((width, height), Image.Resampling.BICUBIC) for image in sized]
    pixels = Qwen2VLImageProcessorPil(size=exact)(sized, return_tensors="pt")
    content = [{"type": "image"} for _ in sized] + [{"type": "text", "text": task}]
    text = backbone.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False
    )
    for number, grid in enumerate(pixels["image_grid_thw"]):
        text = text.replace("<|image_pad|>", f"<{number}>" * int(grid.prod() // 4), 1)
    for number in range(len(sized)):
        text = text.replace(f"<{number}>", "<|image_pad|>")
    ids = backbone.tokenizer(text, return_tensors="pt")["input_ids"]
    output = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
        output_hidden_states=True,
        **pixels,
    )
    last: torch.Tensor = output.hidden_states[-1]
    return last.mean(dim=1, keepdim=True)


@pytest.mark.parametrize("task", [TASK, "Größe 5 mm, <b>now</b>\n"])
def test_encode_is_the_librarys_last_hidden_state(
    tiny: QwenVlaPolicy, pictures: Pictures, task: str
) -> None:
    features = tiny.encode(pictures, task)
    assert features.shape == (1, 1, tiny.config.expert.vl_features)
    torch.testing.assert_close(features, stock_features(tiny, pictures, task), atol=1e-5, rtol=1e-5)


def test_the_published_configuration_is_read() -> None:
    """Qwen2.5-VL-3B's `config.json` has the text model's sizes at the top, as files of 2025 do."""
    config = backbone_config(
        {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"],
            "model_type": "qwen2_5_vl",
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
            "image_token_id": 151655,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "vision_config": {
                "depth": 32,
                "hidden_size": 1280,
                "num_heads": 16,
                "in_chans": 3,
                "intermediate_size": 3420,
                "out_hidden_size": 2048,
                "patch_size": 14,
                "spatial_merge_size": 2,
                "spatial_patch_size": 14,
                "window_size": 112,
                "fullatt_block_indexes": [7, 15, 23, 31],
                "tokens_per_second": 2,
                "temporal_patch_size": 2,
            },
        }
    )
    assert config.text_config.rope_parameters["mrope_section"] == [16, 24, 24]
    assert config.text_config.rope_parameters["rope_theta"] == 1e6
    with torch.device("meta"):
        model = Qwen2_5_VLModel(config)
    assert 3.7e9 < sum(value.numel() for value in model.parameters()) < 3.8e9
    assert model.language_model.norm.weight.shape == (2048,)


def test_the_prompt_reads_as_qwen_does(tiny: QwenVlaPolicy) -> None:
    ids = tiny.backbone._prompt.ids("Go home.", [3, 1])
    place = "<|vision_start|>{}<|vision_end|>"
    assert tiny.backbone.tokenizer.decode(ids) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        + place.format("<|image_pad|>" * 3)
        + place.format("<|image_pad|>")
        + "Go home.<|im_end|>\n"
    )


def test_299_tokens_a_view_at_the_reference_size(tiny: QwenVlaPolicy, pictures: Pictures) -> None:
    image = ImageConfig(rounding="nearest")
    whole = Backbone(tiny.backbone.model, tiny.backbone.tokenizer, image)
    with torch.inference_mode():
        features = whole.encode(list(pictures.values()), TASK)
    (language,) = whole._pass._languages.values()
    assert [place.stop - place.start for place in language.layout.places] == [299] * 5
    expected = stock_features(QwenVlaPolicy(tiny.fast, whole), pictures, TASK)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


def test_the_tiny_policy_says_what_size_it_looks_at(tiny: QwenVlaPolicy) -> None:
    assert tiny.spec.image_size == target_size(640, 360, tiny.backbone.image, 28) == (308, 168)


@torch.inference_mode()
def test_many_tasks_do_not_fill_the_memory(tiny: QwenVlaPolicy) -> None:
    slow = tiny.backbone._pass
    for number in range(40):
        slow.language(f"task {number}", ((4, 4),))
    assert len(slow._languages) <= 16


@pytest.mark.parametrize("task", ["look <|image_pad|>", "x" * 5000])
def test_a_task_cannot_pretend_to_be_a_picture(
    tiny: QwenVlaPolicy, pictures: Pictures, task: str
) -> None:
    with pytest.raises(PolicyError, match="task"):
        tiny.encode(pictures, task)


def test_pictures_that_cannot_be_used(tiny: QwenVlaPolicy, pictures: Pictures) -> None:
    def with_first(value: object) -> Pictures:
        return {**pictures, "View1": value}  # type: ignore[dict-item]

    with pytest.raises(PolicyError, match="no picture of View3"):
        tiny.encode({k: v for k, v in pictures.items() if k != "View3"}, TASK)
    picture = pictures["View1"]
    for wrong in (picture.astype(np.float32), picture[..., 0], picture[..., :2], None, picture[:0]):
        with pytest.raises(PolicyError, match="picture"):
            tiny.encode(with_first(wrong), TASK)


def test_encode_and_act_at_the_same_time(tiny: QwenVlaPolicy, pictures: Pictures) -> None:
    features = tiny.encode(pictures, TASK)
    windows = random_windows(np.random.default_rng(2), 4)
    alone = [tiny.act(features, window).actions for window in windows]
    others: list[torch.Tensor] = []

    def slow() -> None:
        others.extend(tiny.encode(pictures, f"{TASK}{i % 2}") for i in range(4))

    thread = threading.Thread(target=slow)
    thread.start()
    together = []
    while thread.is_alive():
        together.append([tiny.act(features, window).actions for window in windows])
    thread.join()
    assert together and len(others) == 4
    for chunks in together:
        np.testing.assert_allclose(chunks, alone, atol=1e-4)
    torch.testing.assert_close(others[0], others[2])
    torch.testing.assert_close(tiny.encode(pictures, TASK), features)
