from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.torch import save_file

from policies.qwen_vla import QwenVlaPolicy, load_policy, save_policy
from policies.qwen_vla.tiny import make_tiny_policy, random_picture


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    save_policy(make_tiny_policy(seed=3), folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_dir: Path) -> QwenVlaPolicy:
    return load_policy(tiny_dir)


@pytest.fixture(scope="session")
def hub_dir(tiny: QwenVlaPolicy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone folder as the hub has it: names of before transformers 4.52, a language head."""
    folder = tmp_path_factory.mktemp("hub")
    weights = {
        key if key.startswith("visual.") else key.replace("language_model.", "model.", 1): value
        for key, value in tiny.backbone.model.state_dict().items()
    }
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors")
    tiny.backbone.model.config.to_json_file(folder / "config.json")
    tiny.backbone.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pictures() -> dict[str, NDArray[np.uint8]]:
    rng = np.random.default_rng(11)
    # Small, so that tests are quick; the policy enlarges them all the same.
    return {f"View{i}": random_picture(rng)[::4, ::4].copy() for i in range(1, 6)}
