"""A checkpoint that LeRobot saved: its policy and processors, loaded with nothing executed."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from serving.messages import ServingError

__all__ = ["Checkpoint", "open_checkpoint", "torch_device"]

_BEFORE, _AFTER = "policy_preprocessor.json", "policy_postprocessor.json"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_RENAME, _DEVICE = "rename_observations_processor", "device_processor"
_OFFLINE = "the server looks into the Hugging Face hub's cache alone unless it may download"


@dataclass(frozen=True)
class Checkpoint:
    """What LeRobot needs to predict.

    Attributes:
        policy: a `PreTrainedPolicy` on `device`, ready for inference.
        before: LeRobot's preprocessor; it renames nothing (see `rename`).
        after: LeRobot's postprocessor.
        device: where the policy is.
        rename: the checkpoint's own map of observation keys, for sessions that bring none.
    """

    policy: Any
    before: Any
    after: Any
    device: torch.device
    rename: Mapping[str, str]


def open_checkpoint(kind: str, path: str, device: str) -> Checkpoint:
    """Load a checkpoint: weights from safetensors only, processor steps of LeRobot's alone.

    Args:
        kind: LeRobot's name of the policy's type; that of the checkpoint.
        path: a folder that LeRobot saved, or a hub's name of one.
        device: see `torch_device`.

    Raises:
        ServingError: not_found, or bad_policy; one line that says what to do.
    """
    where = torch_device(device)
    known = _known_types()
    if kind not in known:
        raise ServingError(
            "bad_policy", f"no policy type {kind!r} here; there are {', '.join(sorted(known))}"
        )
    with _as_refusals(kind, path):
        _check_path(path)
        return _open(kind, path, where)


def torch_device(text: str) -> torch.device:
    """The device that is named: cpu, cuda, cuda:N, mps, or auto (the best there is).

    Raises:
        ServingError: bad_policy where this computer has no such device.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if text == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in {"cpu", "cuda", "mps"}:
        raise ServingError("bad_policy", f"no device {text!r}: give cpu, cuda, cuda:N, mps or auto")
    if device.type == "mps" and not mps:
        raise ServingError("bad_policy", "the server has no mps device; give cpu or auto")
    if device.type == "cuda" and not cuda:
        raise ServingError(
            "bad_policy", f"device {text!r}: CUDA is not available on the server; give cpu or auto"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ServingError(
            "bad_policy", f"no device {text!r}: the server has {torch.cuda.device_count()}"
        )
    return device


@functools.cache
def _plugins() -> None:
    """Import what is installed as LeRobot's plugins, once: they register their types."""
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()


def _known_types() -> set[str]:
    import lerobot.policies  # noqa: F401  (registers LeRobot's own)
    from lerobot.configs import PreTrainedConfig

    _plugins()
    return set(PreTrainedConfig.get_known_choices())


def _check_path(path: str) -> None:
    here = Path(path)
    if path and here.is_dir():
        return
    if path and here.exists():
        raise ServingError("not_found", f"{path} is a file: give the folder that LeRobot saved")
    if not _HUB_NAME.fullmatch(path):
        raise ServingError("not_found", f"no folder {path!r} on the server; paths are the server's")


def _open(kind: str, path: str, device: torch.device) -> Checkpoint:
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(path)
    if config.type != kind:
        raise ServingError(
            "bad_policy", f"{path} holds a policy of type {config.type!r}, not {kind!r}"
        )
    if config.use_peft:
        raise ServingError("bad_policy", f"{path} is a PEFT adapter: merge it into its policy")
    steps = {name: _steps(kind, path, name) for name in (_BEFORE, _AFTER)}
    config.device = str(device)
    policy = get_policy_class(kind).from_pretrained(path, config=config)
    policy.to(device).eval().requires_grad_(False)
    before, after = make_pre_post_processors(
        policy.config,
        pretrained_path=path,
        preprocessor_overrides=_overrides(steps[_BEFORE], device),
        postprocessor_overrides=_overrides(steps[_AFTER], device),
    )
    renaming = next((s for s in steps[_BEFORE] or () if s["registry_name"] == _RENAME), {})
    rename = dict(renaming.get("config", {}).get("rename_map") or {})
    return Checkpoint(policy, before, after, device, rename)


def _steps(kind: str, path: str, name: str) -> list[dict[str, Any]] | None:
    """The steps of a processor as they were saved; None where LeRobot makes them itself.

    Only registered steps pass: LeRobot would import and call whatever class the file names.
    """
    try:
        content = json.loads(_file(path, name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if kind == "groot":  # NVIDIA's own checkpoints have none, and LeRobot makes them
            return None
        raise ServingError(
            "not_found",
            f"{path} has no {name}: it was saved by a LeRobot before 0.4; "
            "convert it with lerobot.processor.migrate_policy_normalization",
        ) from None
    except (OSError, ValueError) as error:
        raise ServingError("bad_policy", f"{path}: {name} cannot be read ({error})") from None
    steps = content.get("steps") if isinstance(content, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise ServingError("bad_policy", f"{path}: {name} is not a processor that LeRobot saved")
    for step in steps:
        if not isinstance(step.get("registry_name"), str):
            said = step.get("class")
            raise ServingError(
                "bad_policy",
                f"{path}: {name} names the class {said!r}; only registered steps are loaded",
            )
    return steps


def _file(path: str, name: str) -> Path:
    if Path(path).is_dir():
        return Path(path) / name
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(path, name))


def _overrides(
    steps: list[dict[str, Any]] | None, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Put the processors on the device; keys are renamed by session, not by the processor.

    LeRobot refuses an override whose step is not there.
    """
    wanted: dict[str, dict[str, Any]] = {
        _DEVICE: {"device": str(device)},
        _RENAME: {"rename_map": {}},
    }
    if steps is None:
        return wanted
    there = {step["registry_name"] for step in steps}
    return {name: given for name, given in wanted.items() if name in there}


@contextmanager
def _as_refusals(kind: str, path: str) -> Iterator[None]:
    """What LeRobot raises while it loads, as one line for the client; the store logs the rest."""
    try:
        yield
    except ServingError:
        raise
    except FileNotFoundError as error:
        why = _line(error) if Path(path).is_dir() else f"not on this computer; {_OFFLINE}"
        raise ServingError(
            "not_found", f"no whole {kind} checkpoint at {path!r} (safetensors): {why}"
        ) from error
    except (ImportError, RecursionError) as error:
        raise ServingError(
            "bad_policy", f"a {kind} policy cannot be loaded by this server: {_line(error)}"
        ) from None
    except Exception as error:
        hint = f"; {_OFFLINE}" if isinstance(error, OSError) else ""
        raise ServingError(
            "bad_policy", f"{path} cannot be loaded as {kind}: {_line(error)}{hint}"
        ) from error


def _line(error: BaseException) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
