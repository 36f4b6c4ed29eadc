"""The user's message as token ids: the views in order, then the instruction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from policies.base import PolicyError

__all__ = ["MAX_TASK_LENGTH", "Prompt"]

MAX_TASK_LENGTH = 4096


class Prompt:
    """Applies a tokenizer's chat template, without a generation prompt.

    Args:
        tokenizer: a transformers tokenizer with a chat template for pictures.
        image_token: the id that stands for a place of a picture.
    """

    def __init__(self, tokenizer: Any, image_token: int) -> None:
        self.tokenizer = tokenizer
        self.image_token = image_token

    def ids(self, task: str, tokens: Sequence[int]) -> list[int]:
        """The token ids of a message holding `len(tokens)` pictures, then `task`.

        Args:
            task: the instruction.
            tokens: how many places each picture takes.

        Raises:
            PolicyError: the instruction is too long or holds picture tokens, or the chat template
                does not take pictures.
        """
        if len(task) > MAX_TASK_LENGTH:
            raise PolicyError(f"the task is longer than {MAX_TASK_LENGTH} characters: shorten it")
        content: list[dict[str, str]] = [{"type": "image"} for _ in tokens]
        content.append({"type": "text", "text": task})
        try:
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=False
            )
            short = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        except Exception as error:  # the template is part of an untrusted checkpoint
            raise PolicyError(f"the tokenizer's chat template failed: {error}") from error
        if short.count(self.image_token) != len(tokens):
            raise PolicyError(
                f"the prompt holds {short.count(self.image_token)} pictures instead of "
                f"{len(tokens)}: the task must not contain picture tokens, and the tokenizer's "
                "chat template must take pictures"
            )
        counts = iter(tokens)
        full: list[int] = []
        for token in short:
            full += [token] * (next(counts) if token == self.image_token else 1)
        return full
