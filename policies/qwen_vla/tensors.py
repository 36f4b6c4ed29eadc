"""Reading tensors from untrusted files, and checking them before anything uses them."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from policies.base import PolicyError

__all__ = [
    "check_finite",
    "check_keys",
    "check_tensors",
    "move",
    "read_folder",
    "read_json",
    "read_pt",
    "read_safetensors",
]

MAX_JSON_BYTES = 1 << 24

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def read_pt(path: Path) -> dict[str, Any]:
    """Read a `.pt` file with `weights_only=True`; its tensors stay on disk until they are used.

    Raises:
        PolicyError: not a file of torch, damaged, or holding anything but plain data.
    """
    try:
        # Mapping the file needs the zip format, which torch has written since 1.6.
        mapped = zipfile.is_zipfile(path)
        with warnings.catch_warnings():
            # torch warns of what it then refuses: the error below says it once.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise PolicyError(
            f"{path}: refused, the file is damaged or holds more than tensors and plain values, "
            "which could run code on loading; save it again with "
            'torch.save({"model_state_dict": model.state_dict()}, path)'
        ) from error
    except Exception as error:  # a damaged file can raise nearly anything
        raise PolicyError(f"{path}: not a readable checkpoint: {_line(error)}") from error
    if not isinstance(content, dict):
        raise PolicyError(f"{path}: holds a {type(content).__name__}, not a dict of weights")
    return content


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a `.safetensors` file.

    Raises:
        PolicyError: no such file, or damaged.
    """
    try:
        weights: dict[str, Tensor] = load_file(path)
        return weights
    except FileNotFoundError as error:
        raise PolicyError(f"{path}: no such file") from error
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise PolicyError(f"{path}: not a readable safetensors file: {_line(error)}") from error


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Read all weights of a Hugging Face model folder, in one file or several.

    Raises:
        PolicyError: no safetensors in it, or a damaged file.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        if not (folder / "model.safetensors").is_file():
            raise PolicyError(f"{folder}: no model.safetensors in this backbone folder")
        return read_safetensors(folder / "model.safetensors")
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict):
        raise PolicyError(f"{index}: has no weight_map")
    weights: dict[str, Tensor] = {}
    for name in sorted({str(name) for name in names.values()}):
        if Path(name).name != name:  # an index must not point outside its folder
            raise PolicyError(f"{index}: {name!r} is not a file name")
        weights.update(read_safetensors(folder / name))
    return weights


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        PolicyError: no such file, too large, or no JSON object.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise PolicyError(f"{path}: too large for a configuration")
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PolicyError(f"{path}: no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise PolicyError(f"{path}: not readable JSON: {_line(error)}") from error
    if not isinstance(data, dict):
        raise PolicyError(f"{path}: must hold a JSON object")
    return data


def check_tensors(weights: Mapping[object, object], where: str) -> dict[str, Tensor]:
    """Check that names are strings and values plain dense tensors.

    Raises:
        PolicyError: something else among them.
    """
    checked: dict[str, Tensor] = {}
    for key, value in weights.items():
        if not isinstance(key, str):
            raise PolicyError(f"{where}: a weight's name is {key!r:.80}, not a string")
        if not isinstance(value, Tensor):
            raise PolicyError(f"{where}: {key} is a {type(value).__name__}, not a tensor")
        dense = value.layout == torch.strided and value.device.type == "cpu"
        if not dense or value.is_complex() or value.is_quantized:
            raise PolicyError(f"{where}: {key} is not a plain dense tensor of real numbers")
        # A few stored bytes can be expanded to any shape; using that would take all memory.
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise PolicyError(f"{where}: {key} has shape {tuple(value.shape)}, more than is stored")
        checked[key] = value.detach()
    return checked


def check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that are not finite numbers of an ordinary type.

    Raises:
        PolicyError: a NaN or an infinity, naming the weight.
    """
    for key, value in weights.items():
        if not value.is_floating_point():
            continue
        if value.dtype not in FLOATS:
            raise PolicyError(f"{where}: {key} is {value.dtype}; save it as bfloat16 or float32")
        if not bool(torch.isfinite(value).all()):
            raise PolicyError(f"{where}: {key} holds NaN or infinite values")


def check_keys(
    part: str, expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], limit: int = 200
) -> None:
    """Compare the names and shapes of weights with those expected.

    Raises:
        PolicyError: they differ; the message lists how.
    """
    missing = sorted(set(expected) - set(weights))
    unexpected = sorted(set(weights) - set(expected))
    if missing or unexpected:
        raise PolicyError(
            f"{part}: {len(missing)} missing keys {_some(missing, limit)}, "
            f"{len(unexpected)} unexpected keys {_some(unexpected, limit)}"
        )
    wrong = [
        f"{key} is {tuple(weights[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if weights[key].shape != value.shape
    ]
    if wrong:
        raise PolicyError(f"{part}: shapes do not fit together: {_some(wrong, limit)}")
    for key, value in expected.items():
        if weights[key].is_floating_point() != value.is_floating_point():
            raise PolicyError(f"{part}: {key} is {weights[key].dtype}, a number of another kind")


def move(value: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A copy on `device`, in `dtype` where it holds real numbers and not counts."""
    # A copy always: the file is mapped, and training may overwrite it while we run.
    kind = dtype if value.is_floating_point() else value.dtype
    return value.to(device=device, dtype=kind, copy=True)


def _some(items: Sequence[str], limit: int) -> str:
    text = "[" + ", ".join(items[:limit]) + "]"
    return text if len(items) <= limit else f"{text} and {len(items) - limit} more"


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{text:.200}" if text else type(error).__name__
