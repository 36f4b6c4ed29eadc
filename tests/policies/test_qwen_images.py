from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from policies.base import PolicyError
from policies.qwen_vla.config import ImageConfig
from policies.qwen_vla.device_resize import DeviceResize, can_resize
from policies.qwen_vla.images import PatchShape, resize, target_size
from policies.qwen_vla.intake import DeviceIntake, make_intake
from policies.qwen_vla.tiny import random_picture

CPU = torch.device("cpu")


def normalised(levels: torch.Tensor) -> torch.Tensor:
    """Levels as cut, to the library's values: scaled, colours first, a film of two frames."""
    mean, std = torch.tensor(OPENAI_CLIP_MEAN), torch.tensor(OPENAI_CLIP_STD)
    values = (levels.view(-1, 14, 14, 3) / 255 - mean) / std
    film = values.permute(0, 3, 1, 2).unsqueeze(2).expand(-1, -1, 2, -1, -1)
    return film.reshape(len(levels), -1)


def pictures_of(*sizes: tuple[int, int]) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in sizes]


@pytest.mark.parametrize("size", [(640, 360), (640, 480), (1280, 720), (320, 180), (644, 364)])
@pytest.mark.parametrize("limits", [(230_400, 230_400), (3136, 12_845_056)])
def test_same_as_the_library(size: tuple[int, int], limits: tuple[int, int]) -> None:
    images = pictures_of(size, size)
    low, high = limits
    library = Qwen2VLImageProcessorPil(size={"shortest_edge": low, "longest_edge": high})
    expected = library([Image.fromarray(image) for image in images], return_tensors="pt")
    intake = make_intake([size, size], ImageConfig(low, high), PatchShape(), CPU, exact=True)
    intake.load(images)
    levels = intake.levels()
    assert levels.dtype == torch.uint8
    # Levels are the same to the last; only the order of the float operations differs.
    torch.testing.assert_close(normalised(levels), expected["pixel_values"], atol=2e-6, rtol=0)


def test_resizing_is_pillow_to_the_last_bit() -> None:
    (image,) = pictures_of((640, 360))
    expected = np.asarray(Image.fromarray(image).resize((644, 364), Image.Resampling.BICUBIC))
    assert np.array_equal(resize(image, 644, 364), expected)
    assert resize(image, 640, 360) is image
    assert np.array_equal(resize(image[:, ::-1], 644, 364)[:, ::-1][:9], expected[:9])


@pytest.mark.parametrize("target", [(308, 168), (644, 364), (1288, 728), (28, 140)])
def test_quick_resizing_is_at_most_two_levels_off(target: tuple[int, int]) -> None:
    image = random_picture(np.random.default_rng(4))
    image.flags.writeable = False
    exact, quick = (resize(image, *target, exact=way).astype(int) for way in (True, False))
    apart = np.abs(exact - quick)
    assert quick.shape == (target[1], target[0], 3)
    assert apart.max() <= 2 and (apart > 0).mean() < 0.02


@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((640, 360), (644, 364)),
        ((640, 360), (308, 168)),
        ((1280, 720), (644, 364)),
        ((1920, 1080), (644, 364)),
        ((97, 53), (28, 56)),
        ((640, 364), (644, 364)),
        ((644, 364), (644, 364)),
    ],
)
def test_the_device_resizes_to_the_last_bit(size: tuple[int, int], target: tuple[int, int]) -> None:
    images = np.stack(pictures_of(size, size))
    images[1] = np.where(images[1] > 127, 255, 0)  # overshoots, so that levels are cut
    assert can_resize(size, target)
    found = DeviceResize(size, target, CPU)(torch.from_numpy(images)).numpy()
    for image, resized in zip(images, found, strict=True):
        assert np.array_equal(resized, resize(image, *target))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 400), st.integers(1, 60))
def test_any_size_is_resized_to_the_last_bit_or_refused(old: int, new: int) -> None:
    if not can_resize((old, old), (new, new)):
        assert old > 7 * new
        return
    (image,) = pictures_of((old, old))
    found = DeviceResize((old, old), (new, new), CPU)(torch.from_numpy(image)[None]).numpy()[0]
    assert np.array_equal(found, resize(image, new, new))


def test_the_device_takes_in_what_the_host_does() -> None:
    sizes = [(640, 360), (640, 360), (320, 240), (640, 360), (644, 6000)]
    config = ImageConfig(57_600, 57_600, rounding="nearest")
    targets = [target_size(*size, config, 28) for size in sizes]
    assert not can_resize((644, 6000), (28, 28))
    images = pictures_of(*sizes)
    host = make_intake(sizes, config, PatchShape(), CPU, exact=True)
    device = DeviceIntake(sizes, targets, PatchShape(), CPU)
    for _ in range(2):  # the second time the buffers hold something
        for intake in (host, device):
            intake.load(images)
        assert torch.equal(device.levels(), host.levels())
        images = [255 - image for image in images]


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
