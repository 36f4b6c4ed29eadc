from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from policies.base import PolicyError
from policies.qwen_vla.config import ImageConfig
from policies.qwen_vla.images import PatchShape, prepare, resize, target_size

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [(640, 360), (640, 480), (1280, 720), (320, 180), (644, 364)])
@pytest.mark.parametrize("limits", [(230_400, 230_400), (3136, 12_845_056)])
def test_same_as_the_library(size: tuple[int, int], limits: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8) for _ in range(2)]
    low, high = limits
    library = Qwen2VLImageProcessorPil(size={"shortest_edge": low, "longest_edge": high})
    expected = library([Image.fromarray(image) for image in images], return_tensors="pt")
    values, grids = prepare(images, ImageConfig(low, high), PatchShape(), CPU)
    assert [[1, *grid] for grid in grids] == expected["image_grid_thw"].tolist()
    assert values.dtype == torch.float32
    # Levels are the same to the last; only the order of the float operations differs.
    torch.testing.assert_close(values, expected["pixel_values"], atol=2e-6, rtol=0)


def test_resizing_is_pillow_to_the_last_bit() -> None:
    image = np.random.default_rng(1).integers(0, 256, (360, 640, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((644, 364), Image.Resampling.BICUBIC))
    assert np.array_equal(resize(image, 644, 364), expected)
    assert resize(image, 640, 360) is image
    assert np.array_equal(resize(image[:, ::-1], 644, 364)[:, ::-1][:9], expected[:9])


@given(
    st.integers(1, 3000), st.integers(1, 3000), st.integers(28 * 28, 10**6), st.integers(0, 10**6)
)
def test_sizes_are_the_librarys(width: int, height: int, low: int, more: int) -> None:
    config = ImageConfig(low, low + more)
    try:
        expected = smart_resize(height, width, 28, low, low + more)
    except ValueError:
        with pytest.raises(PolicyError):
            target_size(width, height, config, 28)
        return
    if 0 in expected:  # the library's own rule fails on slivers
        return
    assert target_size(width, height, config, 28) == expected[::-1]


def test_existing_checkpoints_see_299_tokens_a_view() -> None:
    config = ImageConfig(230_400, 230_400, rounding="nearest")
    assert target_size(640, 360, config, 28) == (644, 364)
    assert target_size(1280, 720, config, 28) == (644, 364)
    assert 644 // 28 * (364 // 28) == 299
    # The library's rule rounds the same picture down.
    assert target_size(640, 360, ImageConfig(230_400, 230_400), 28) == (616, 336)


def test_impossible_pictures() -> None:
    for size in ((0, 10), (10, 0), (5000, 10)):
        with pytest.raises(PolicyError, match="cannot be used"):
            target_size(*size, ImageConfig(), 28)
