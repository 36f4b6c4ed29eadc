"""Tokenizers: loading a backbone's own, and making the small one of the tiny policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from policies.base import PolicyError
from policies.qwen_vla.tensors import read_json

__all__ = ["CHAT_TEMPLATE", "SPECIAL_TOKENS", "load_tokenizer", "make_tokenizer"]

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Renders pictures and text as Qwen2.5-VL does, with its default system message.
CHAT_TEMPLATE = (
    "{% if messages[0].role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CORPUS = (
    "You are a helpful assistant.",
    "system user assistant",
    "Perform needle insertion into the eye",
    "Move the needle towards the surface slowly and stop when it touches the tissue.",
    "Pick up the object, lift it above the table and place it into the box on the left.",
    "The robot arm holds the instrument; the camera sees the eye, the force sensor feels it.",
    "Open the gripper. Close the gripper. Go back to the home position.",
)


def load_tokenizer(folder: Path | None) -> Any:
    """Load the tokenizer of a backbone folder, with its chat template; runs no code of it.

    Raises:
        PolicyError: no tokenizer in the folder, or not a readable one.
    """
    if folder is None or not folder.is_dir():
        raise PolicyError(f"{folder}: no tokenizer folder; the checkpoint is incomplete")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # the library raises many kinds
        reason = " ".join(str(error).split())
        raise PolicyError(
            f"{folder}: no readable tokenizer in this folder: {reason:.200}"
        ) from error
    if not tokenizer.chat_template:
        # Some folders hold it in a file of its own, as part of the processor.
        template = read_json(folder / "chat_template.json").get("chat_template")
        if not isinstance(template, str):
            raise PolicyError(f"{folder}: the tokenizer has no chat template")
        tokenizer.chat_template = template
    return tokenizer


def make_tokenizer(size: int) -> Qwen2Tokenizer:
    """Make a byte-level BPE tokenizer of `size` tokens with Qwen's special tokens, always the same.

    It takes any text; a few sentences of this field make it a little shorter.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        extra_special_tokens=list(SPECIAL_TOKENS),
        chat_template=CHAT_TEMPLATE,
    )
    return tokenizer
