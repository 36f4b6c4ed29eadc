"""Our towers over fixed layouts against the library's own, on small models of odd sizes."""

from __future__ import annotations

import copy
import logging
import math
import shutil
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from policies.qwen_vla import slow_pass
from policies.qwen_vla.backbone import Backbone, backbone_config
from policies.qwen_vla.captured import Captured, Lane
from policies.qwen_vla.config import ImageConfig
from policies.qwen_vla.flops import update_flops
from policies.qwen_vla.images import PatchShape, target_size
from policies.qwen_vla.intake import DeviceIntake, Sizes
from policies.qwen_vla.joined import join, pad_inputs
from policies.qwen_vla.layout import text_layout, vision_layout
from policies.qwen_vla.pointwise import EAGER, compiled_pointwise
from policies.qwen_vla.tokenizer import make_tokenizer

Pictures = list[NDArray[np.uint8]]
TASK = "Perform needle insertion into the eye"
SMALL = ImageConfig(20_000, 60_000)
VIEW = [(320, 180)]


def make_model(seed: int = 0, *, sliding: int | None = None) -> Qwen2_5_VLModel:
    """Random weights everywhere, biases and norms too; widths that are no multiples of eight."""
    ids = make_tokenizer(640).convert_tokens_to_ids
    text: dict[str, Any] = {
        "vocab_size": 640,
        "hidden_size": 72,
        "intermediate_size": 130,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 2, 2]},
    }
    if sliding is not None:
        text |= {"use_sliding_window": True, "sliding_window": sliding, "max_window_layers": 1}
    config = backbone_config(
        {
            "model_type": "qwen2_5_vl",
            "image_token_id": ids("<|image_pad|>"),
            "video_token_id": ids("<|video_pad|>"),
            "vision_start_token_id": ids("<|vision_start|>"),
            "vision_end_token_id": ids("<|vision_end|>"),
            "vision_config": {
                "depth": 4,
                "hidden_size": 48,
                "intermediate_size": 100,
                "num_heads": 3,
                "out_hidden_size": 72,
                "fullatt_block_indexes": [1, 3],
                "window_size": 112,
            },
            "text_config": text,
        }
    )
    model = Qwen2_5_VLModel(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        value = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            parameter.data = 0.5 + 0.2 * value
        else:
            parameter.data = value / math.sqrt(parameter[0].numel())
    return model


def pictures_of(sizes: Sequence[tuple[int, int]], seed: int = 0) -> Pictures:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in sizes]


@torch.inference_mode()
def stock(model: Qwen2_5_VLModel, pictures: Pictures, image: ImageConfig = SMALL) -> Tensor:
    """The library's processor and model, as they come."""
    limits = {"shortest_edge": image.min_pixels, "longest_edge": image.max_pixels}
    seen = Qwen2VLImageProcessorPil(size=limits)(
        [Image.fromarray(picture) for picture in pictures], return_tensors="pt"
    )
    tokenizer = make_tokenizer(640)
    content = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": TASK}]
    text = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    pieces = text.split("<|image_pad|>")
    counts = [int(grid.prod()) // 4 for grid in seen["image_grid_thw"]]
    for place, count in enumerate(counts):
        pieces[place] += "<|image_pad|>" * count
    ids = tokenizer("".join(pieces), return_tensors="pt")["input_ids"]
    states: Tensor = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
        pixel_values=seen["pixel_values"].to(model.dtype),
        image_grid_thw=seen["image_grid_thw"],
        use_cache=False,
    ).last_hidden_state
    return states.mean(dim=1, keepdim=True)


def backbone_of(model: Qwen2_5_VLModel, **options: bool) -> Backbone:
    return Backbone(model, make_tokenizer(640), SMALL, **options)


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    "sizes",
    [
        VIEW,
        VIEW * 5,
        [(224, 224)] * 2,  # whole windows only
        [(640, 360), (100, 300), (640, 360), (333, 77)],
        [(1000, 30), (28, 56), (113, 111)],  # slivers: windows of a cell or two
    ],
)
def test_float32_is_the_librarys(sizes: list[tuple[int, int]]) -> None:
    model = make_model()
    pictures = pictures_of(sizes)
    expected = stock(model, pictures)
    backbone = backbone_of(model)
    found = backbone.encode(pictures, TASK)
    assert found.shape == (1, 1, 72) and found.dtype == torch.float32
    assert apart(found, expected) < 1e-5
    assert apart(backbone.encode(pictures_of(sizes, 1), TASK), expected) > 1e-3
    assert torch.equal(backbone.encode(pictures, TASK), found)


@pytest.mark.parametrize("sizes", [VIEW * 3, [(640, 360), (100, 300)]])
def test_bfloat16_is_the_librarys(sizes: list[tuple[int, int]]) -> None:
    model = make_model().to(torch.bfloat16)
    pictures = pictures_of(sizes)
    expected = stock(model, pictures).float()
    found = backbone_of(model).encode(pictures, TASK)
    assert found.dtype == torch.bfloat16
    assert apart(found.float(), expected) < 2e-2


@pytest.mark.parametrize("sliding", [16, 4000])
def test_layers_that_look_back_a_little(sliding: int) -> None:
    model = make_model(sliding=sliding)
    assert model.config.text_config.layer_types[1] == "sliding_attention"
    pictures = pictures_of(VIEW * 2)
    assert apart(backbone_of(model).encode(pictures, TASK), stock(model, pictures)) < 1e-5


def test_the_quick_resizing_changes_little() -> None:
    model, pictures = make_model(), pictures_of(VIEW * 2)
    expected = stock(model, pictures)
    assert apart(backbone_of(model, exact_resize=False).encode(pictures, TASK), expected) < 2e-2


def test_nothing_is_held_twice_and_the_library_still_runs() -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pictures = pictures_of(VIEW)
    expected = stock(model, pictures)
    first, second = backbone_of(model), backbone_of(model)  # joined once
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert apart(stock(model, pictures), expected) < 1e-6
    assert torch.equal(first.encode(pictures, TASK), second.encode(pictures, TASK))

    tower, language = first._pass._vision_tower, first._pass._language_tower
    used = [block.gate_up.weight for block in tower._blocks]
    used += [block.down for block in tower._blocks]
    used += [layer.qkv.weight for layer in language._layers]
    used += [layer.gate_up.weight for layer in language._layers]
    own = {value.untyped_storage().data_ptr() for value in after.values()}
    assert {value.untyped_storage().data_ptr() for value in used} <= own
    held = {v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in after.values()}
    plain = sum(value.numel() * value.element_size() for value in before.values())
    assert sum(held.values()) <= 1.04 * plain  # the zeros that widths are filled up with


def test_joining_and_padding() -> None:
    layers = [torch.nn.Linear(6, width).requires_grad_(False) for width in (3, 5)]
    states = torch.randn(4, 6)
    expected = [layer(states) for layer in layers]
    joined = join(layers, rows=8)
    assert joined.weight.shape == (16, 6) and joined.bias is not None
    found = torch.nn.functional.linear(states, joined.weight, joined.bias)
    torch.testing.assert_close(found[:, :3], expected[0])
    torch.testing.assert_close(found[:, 8:13], expected[1])
    assert not found[:, 3:8].any() and not found[:, 13:].any()
    torch.testing.assert_close(layers[1](states), expected[1])
    again = join(layers, rows=8)
    assert again.weight.data_ptr() == joined.weight.data_ptr()
    assert again.weight.shape == joined.weight.shape

    padded = pad_inputs(layers[0], 8)
    assert padded.shape == (3, 8) and not padded[:, 6:].any()
    torch.testing.assert_close(layers[0](states), expected[0])
    assert pad_inputs(layers[0], 8).data_ptr() == padded.data_ptr()
    # Two layers that happen to be of one matrix, but not one after the other, are joined anew.
    whole = torch.randn(9, 6)
    for layer, rows in zip(layers, (whole[6:], whole[:5]), strict=True):
        layer.weight = torch.nn.Parameter(rows, requires_grad=False)
    assert torch.equal(join(layers).weight, torch.cat((whole[6:], whole[:5])))


def count_vision(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of patches of each run of the vision tower from now on."""
    runs: list[int] = []
    tower = backbone._pass._vision_tower
    plain = type(tower).__call__

    def counted(self: Any, levels: Tensor, layout: Any) -> Tensor:
        runs.append(len(levels))
        return plain(self, levels, layout)

    monkeypatch.setattr(type(tower), "__call__", counted)
    return runs


def test_views_that_did_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    plain, reusing = backbone_of(model), backbone_of(model, reuse_unchanged=True)
    pictures = pictures_of([(320, 180), (320, 180), (200, 200)])
    steps: list[tuple[Pictures, str, str]] = [(pictures, TASK, "012")]
    steps.append(([picture.copy() for picture in pictures], TASK, ""))
    changed = [pictures[0], pictures[1].copy(), pictures[2]]
    changed[1][-1, -1, -1] ^= 64
    steps.append((changed, TASK, "1"))
    steps.append((changed, "another task, with the pictures of before", ""))
    steps.append(([changed[1], changed[0], changed[2]], TASK, "01"))
    steps.append(([changed[2], *changed[1:]], TASK, "01"))  # another size in the first place
    steps.append((changed[:2], TASK, "01"))  # another number of views
    for images, task, encoded in steps:
        expected = plain.encode(images, task)
        with monkeypatch.context() as patch:
            runs = count_vision(reusing, patch)
            found = reusing.encode(images, task)
        grids = [reusing._pass._grid((image.shape[1], image.shape[0])) for image in images]
        patches = [grids[int(view)][0] * grids[int(view)][1] for view in encoded]
        assert runs == ([sum(patches)] if patches else [])
        assert apart(found, expected) < 1e-5


def test_after_a_failure_nothing_is_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    plain, reusing = backbone_of(model), backbone_of(model, reuse_unchanged=True)
    pictures = pictures_of(VIEW * 2)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="broken"):
        patch.setattr(Lane, "finish", lambda _: (_ for _ in ()).throw(RuntimeError("broken")))
        reusing.encode(pictures, TASK)
    runs = count_vision(reusing, monkeypatch)
    assert apart(reusing.encode(pictures, TASK), plain.encode(pictures, TASK)) < 1e-5
    assert len(runs) == 2  # one each


def test_a_caller_may_change_its_picture_in_place() -> None:
    model = make_model()
    plain, reusing = backbone_of(model), backbone_of(model, reuse_unchanged=True)
    pictures = pictures_of(VIEW)
    reusing.encode(pictures, TASK)
    pictures[0][:] = 255 - pictures[0]
    assert apart(reusing.encode(pictures, TASK), plain.encode(pictures, TASK)) < 1e-5
    reusing.reuse_unchanged = False
    assert not reusing.reuse_unchanged
    assert apart(reusing.encode(pictures, TASK), plain.encode(pictures, TASK)) < 1e-5


def test_the_devices_way_in_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    pictures = pictures_of([(320, 180), (320, 180), (100, 300)])
    expected = backbone_of(model).encode(pictures, TASK)

    def on_device(sizes: Sizes, config: ImageConfig, shape: PatchShape, *_: Any, **__: Any) -> Any:
        targets = [target_size(*size, config, shape.factor) for size in sizes]
        return DeviceIntake(sizes, targets, shape, torch.device("cpu"))

    monkeypatch.setattr(slow_pass, "make_intake", on_device)
    backbone = backbone_of(model, reuse_unchanged=True)
    for _ in range(2):
        assert torch.equal(backbone.encode(pictures, TASK), expected)


@pytest.mark.parametrize("size", [(320, 180), (308, 168)])  # to be resized, or not
def test_pictures_that_are_views(size: tuple[int, int]) -> None:
    backbone = backbone_of(make_model())
    (picture,) = pictures_of([size])
    turned = picture[:, ::-1, ::-1]
    turned.flags.writeable = False
    found = backbone.encode([turned], TASK)
    assert torch.equal(found, backbone.encode([turned.copy()], TASK))


def test_features_are_the_callers_own() -> None:
    backbone = backbone_of(make_model())
    first = backbone.encode(pictures_of(VIEW, 1), TASK)
    kept = first.clone()
    backbone.encode(pictures_of(VIEW, 2), TASK)
    assert torch.equal(first, kept)


def test_two_threads_take_turns() -> None:
    backbone = backbone_of(make_model())
    scenes = [pictures_of(VIEW * 2, seed) for seed in range(2)]
    expected = [backbone.encode(scene, TASK) for scene in scenes]
    found: list[list[Tensor]] = [[], []]

    def run(number: int) -> None:
        found[number] = [backbone.encode(scenes[number], TASK) for _ in range(10)]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(2):
        assert len(found[number]) == 10
        assert all(torch.equal(features, expected[number]) for features in found[number])


@pytest.mark.parametrize("grids", [((12, 22),) * 5, ((16, 16),), ((4, 34), (26, 46))])
def test_a_layout_keeps_every_cell_once(grids: tuple[tuple[int, int], ...]) -> None:
    layout = vision_layout(make_model(), grids)
    cells = sum(height * width for height, width in grids) // 4
    assert layout.order.sort().values.tolist() == list(range(cells))
    assert torch.equal(layout.order[layout.restore], torch.arange(cells))
    for segments in (layout.windows, layout.views):
        assert sum(count * length for count, length in segments) == 4 * cells
        lengths = [length for _, length in segments]
        assert lengths == sorted(set(lengths), reverse=True)  # one call of attention a size
    assert max(length for _, length in layout.windows) <= 64


def test_the_reference_layout() -> None:
    layout = vision_layout(make_model(), ((26, 46),) * 5)
    assert layout.windows == ((75, 64), (15, 48), (25, 16), (5, 12))
    assert layout.views == ((5, 1196),)


def test_operations_are_counted_as_torch_counts_them() -> None:
    model, grids = make_model(), ((12, 22),) * 3
    backbone = backbone_of(model)
    layout = vision_layout(model, grids)
    ids = backbone._prompt.ids(TASK, [66] * 3)
    text = text_layout(model, ids, grids)
    levels = torch.zeros(3 * 264, 588, dtype=torch.uint8)
    tower, language = backbone._pass._vision_tower, backbone._pass._language_tower
    counted: list[float] = []

    def added(_: Any, left: Any, right: Any, out_shape: Any = None, **__: Any) -> int:
        return 2 * int(left[0] * left[1] * right[1])

    in_place = {torch.ops.aten.addmm_: added}
    # Of all of torch's ways to compute attention on a CPU, the counter knows this one.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        for run in (lambda: tower(levels, layout), lambda: language(text.prompt, text)):
            with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
                run()
            counted.append(counter.get_total_flops())
    work = update_flops(model.config, grids, layout.windows, len(ids), causal_half=False)
    # Of the vision tower, 4 of 104 inputs of `down` and 8 of 208 outputs before it are zeros.
    assert work.vision == pytest.approx(counted[0], rel=0.03)
    assert work.vision < counted[0]
    assert work.language == counted[1]


def test_what_cannot_be_captured_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    class Stream:
        def synchronize(self) -> None: ...

    lane = Lane(torch.device("cpu"))
    calls: list[int] = []

    def work() -> Tensor:
        calls.append(1)
        return torch.tensor(len(calls))

    plain = Captured(work, lane, "the work")
    assert plain() == 1 and plain() == 2
    if torch.cuda.is_available():
        return
    lane.stream = Stream()  # as on a GPU; capturing then fails here
    broken = Captured(work, lane, "the work")
    with caplog.at_level(logging.WARNING):
        first, second = broken(), broken()
    assert second == first + 1
    assert [record.message.split(",")[0] for record in caplog.records] == [
        "the work cannot be captured as a graph"
    ]


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
@pytest.mark.slow
def test_compiled_steps_are_the_plain_ones() -> None:
    steps = compiled_pointwise()
    activation = torch.nn.SiLU()
    with torch.inference_mode():
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
            for tokens in (40, 56):
                states = torch.randn(tokens, 96, dtype=dtype)
                weight = torch.nn.Parameter(torch.randn(96, dtype=dtype), requires_grad=False)
                heads = states.view(tokens, 3, 32)
                cos, sin = torch.randn(tokens, 1, 32).to(dtype), torch.randn(tokens, 1, 16)
                pairs = [
                    (steps.norm(states, weight, 1e-6), EAGER.norm(states, weight, 1e-6)),
                    (steps.gate(states, activation), EAGER.gate(states, activation)),
                    (
                        steps.rotate(heads[:, :2], cos, sin.to(dtype)),
                        EAGER.rotate(heads[:, :2], cos, sin.to(dtype)),
                    ),
                ]
                for found, expected in pairs:
                    assert apart(found.float(), expected.float()) < tolerance


def test_copies_of_a_model_do_not_share() -> None:
    model = make_model()
    backbone_of(model)
    twin = copy.deepcopy(model)
    twin.language_model.layers[0].mlp.up_proj.weight.zero_()
    assert model.language_model.layers[0].mlp.up_proj.weight.any()
