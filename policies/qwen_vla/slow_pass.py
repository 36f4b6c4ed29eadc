"""One update of the features: pictures in, through both towers, features out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

from policies.qwen_vla.captured import Captured, Lane
from policies.qwen_vla.config import ImageConfig
from policies.qwen_vla.images import PatchShape, target_size
from policies.qwen_vla.intake import Picture, make_intake
from policies.qwen_vla.language_tower import LanguageTower
from policies.qwen_vla.layout import Grids, TextLayout, text_layout, vision_layout
from policies.qwen_vla.pointwise import compiled_for
from policies.qwen_vla.prompt import Prompt
from policies.qwen_vla.vision_tower import VisionTower

__all__ = ["MAX_LAYOUTS", "SlowPass"]

# A user changes the task a few times a session; a client that sends a new one every time must not
# fill the memory.
MAX_LAYOUTS = 16

Key = TypeVar("Key")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class _Vision:
    """The way of pictures of certain sizes: `load` them, then `run`."""

    load: Callable[[Sequence[Picture]], None]
    run: Captured


@dataclass(frozen=True, slots=True)
class _Language:
    """The way of an instruction: put the pictures' tokens in their places, then `run`."""

    layout: TextLayout
    run: Captured


@dataclass(frozen=True, slots=True)
class _Seen:
    """A picture that was encoded, and its tokens."""

    picture: Picture
    tokens: Tensor


class SlowPass:
    """Runs updates, and keeps what they have in common. One thread at a time.

    Args:
        model: in eval mode, on its device; afterwards its weights lie elsewhere, with the same
            names and values.
        prompt: makes token ids of an instruction.
        image: how large pictures are.
        exact_resize: on a CPU, resize with Pillow rather than with torch (`images.resize`).
        reuse_unchanged: do not encode a view again whose picture is the same as in the last update.
    """

    def __init__(
        self,
        model: Qwen2_5_VLModel,
        prompt: Prompt,
        image: ImageConfig,
        *,
        exact_resize: bool,
        reuse_unchanged: bool,
    ) -> None:
        vision = model.config.vision_config
        self.shape = PatchShape(
            vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
        )
        self.reuse_unchanged = reuse_unchanged
        self._model, self._prompt, self._image = model, prompt, image
        self._exact_resize = exact_resize
        self._lane = Lane(model.device)
        steps = compiled_for(model.device, model.dtype, model.language_model.layers[0].mlp.act_fn)
        self._vision_tower = VisionTower(model.visual, steps)
        self._language_tower = LanguageTower(model.language_model, steps)
        self._visions: dict[tuple[tuple[int, int], ...], _Vision] = {}
        self._languages: dict[tuple[str, Grids], _Language] = {}
        self._seen: list[_Seen | None] = []

    def __call__(self, images: Sequence[Picture], task: str) -> Tensor:
        """Features (1, 1, width), the caller's own, ready on every stream.

        Raises:
            PolicyError: a picture of impossible size, or an instruction that cannot be used.
        """
        sizes = [(image.shape[1], image.shape[0]) for image in images]
        grids = tuple(self._grid(size) for size in sizes)
        with self._lane.entered():
            language = self.language(task, grids)
            try:
                self._look(images, language.layout)
                features = language.run().clone()  # the next update writes over the result
                self._lane.finish()
            except Exception:
                self._seen = []  # on a GPU, tokens may be kept that were never computed
                raise
        return features.view(1, 1, -1)

    def language(self, task: str, grids: Grids) -> _Language:
        """The way of an instruction with pictures of these sizes, made where it is new."""
        return _kept(self._languages, (task, grids), lambda: self._make_language(task, grids))

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        width, height = target_size(*size, self._image, self.shape.factor)
        return height // self.shape.patch, width // self.shape.patch

    def _changed(self, images: Sequence[Picture]) -> list[int]:
        """The views to encode: all, or those whose picture is another than the last time."""
        if not self.reuse_unchanged or len(self._seen) != len(images):
            self._seen = [None] * len(images)
        return [
            view
            for view, (image, seen) in enumerate(zip(images, self._seen, strict=True))
            if seen is None or not np.array_equal(image, seen.picture)
        ]

    def _look(self, images: Sequence[Picture], layout: TextLayout) -> None:
        """Encode what has to be, and put the tokens of all views in their places."""
        changed = self._changed(images)
        for view in set(range(len(images))) - set(changed):
            seen = self._seen[view]
            assert seen is not None  # or it would have changed
            layout.prompt[layout.places[view]] = seen.tokens
        if not changed:
            return
        pictures = [images[view] for view in changed]
        vision = self._vision(tuple((image.shape[1], image.shape[0]) for image in pictures))
        vision.load(pictures)
        counts = [layout.places[view].stop - layout.places[view].start for view in changed]
        found = torch.split(vision.run(), counts)
        for view, tokens in zip(changed, found, strict=True):
            layout.prompt[layout.places[view]] = tokens
            if self.reuse_unchanged:
                self._seen[view] = _Seen(images[view].copy(), tokens.clone())

    def _vision(self, sizes: tuple[tuple[int, int], ...]) -> _Vision:
        return _kept(self._visions, sizes, lambda: self._make_vision(sizes))

    def _make_vision(self, sizes: tuple[tuple[int, int], ...]) -> _Vision:
        intake = make_intake(
            sizes, self._image, self.shape, self._model.device, exact=self._exact_resize
        )
        layout = vision_layout(self._model, tuple(self._grid(size) for size in sizes))
        tower = self._vision_tower
        run = Captured(lambda: tower(intake.levels(), layout), self._lane, "the vision tower")
        return _Vision(intake.load, run)

    def _make_language(self, task: str, grids: Grids) -> _Language:
        cells = [h * w // self.shape.merge**2 for h, w in grids]
        layout = text_layout(self._model, self._prompt.ids(task, cells), grids)
        tower = self._language_tower
        run = Captured(lambda: tower(layout.prompt, layout), self._lane, "the language tower")
        return _Language(layout, run)


def _kept(kept: dict[Key, Made], key: Key, make: Callable[[], Made]) -> Made:
    made = kept.get(key)
    if made is None:
        made = make()
        if len(kept) >= MAX_LAYOUTS:
            kept.clear()
        kept[key] = made
    return made
