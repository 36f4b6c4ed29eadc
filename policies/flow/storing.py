"""A flow head in a folder: `flow.json` and `flow.safetensors`, with or beside its base policy."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from policies.base import PolicyError
from policies.flow.config import check_base, from_json, to_json
from policies.flow.head import FlowHead
from policies.flow.policy import FlowPolicy
from policies.qwen_vla.config import JOINTS, PolicyConfig
from policies.qwen_vla.loading import load_policy
from policies.qwen_vla.policy import QwenVlaPolicy
from policies.qwen_vla.sensor_encoder import SensorEncoder
from policies.qwen_vla.tensors import check_finite, check_keys, move, read_json, read_safetensors

__all__ = ["CONFIG", "WEIGHTS", "empty_parts", "is_flow", "load_flow", "save_flow"]

CONFIG = "flow.json"
WEIGHTS = "flow.safetensors"
_HEADER_BYTES = 1 << 20
_PARTS = ("sensor_encoder", "flow_head")


def empty_parts(config: PolicyConfig) -> tuple[SensorEncoder, FlowHead]:
    """The two modules of a flow head for a base policy, their weights as PyTorch begins them.

    Raises:
        PolicyError: the policy cannot be the base of one.
    """
    check_base(config)
    assert config.sensor is not None and config.robot is not None  # by check_base
    head = FlowHead(config.expert, config.sensor.features, JOINTS, config.robot.reads_goal)
    return SensorEncoder(config.sensor), head


def save_flow(policy: FlowPolicy, folder: str | Path, base: str | Path | None = None) -> None:
    """Write a flow head.

    Args:
        policy: its weights are written in their dtype.
        folder: made where it is not there.
        base: folder of the base policy, which is noted as seen from `folder`; by default what the
            policy's own configuration says.

    Raises:
        PolicyError: the folder cannot be written.
    """
    folder = Path(os.path.expanduser(folder))
    flow = dataclasses.replace(policy.flow, identity=policy.base.spec.identity)
    if base is not None:
        flow = dataclasses.replace(flow, base=os.path.relpath(os.path.expanduser(base), folder))
    parts = (policy.fast.sensor_encoder, policy.fast.action_expert)
    weights = {
        f"{name}.{key}": value.detach().cpu().contiguous()
        for name, module in zip(_PARTS, parts, strict=True)
        if module is not None
        for key, value in module.state_dict().items()
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / WEIGHTS).chmod(0o644)  # the library makes it readable by its owner only
        text = json.dumps(to_json(flow), indent=2)
        (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise PolicyError(f"{folder}: cannot be written: {error}") from error


def is_flow(folder: str | Path) -> bool:
    """Whether a flow head lies in a folder, to be loaded with `load_flow`."""
    return (Path(os.path.expanduser(folder)) / CONFIG).is_file()


def load_flow(
    folder: str | Path,
    *,
    base: str | Path | QwenVlaPolicy | None = None,
    device: str = "auto",
    seed: int = 0,
) -> FlowPolicy:
    """Load a flow head and the policy that it is for.

    Args:
        folder: of `save_flow`.
        base: the base policy, or its folder, where it is not where `flow.json` says.
        device: as for `load_policy`; where the base is given it is the base's.
        seed: of the noise, where `act` is given no generator.

    Raises:
        PolicyError: one line that says what is wrong and what to do.
    """
    folder = Path(os.path.expanduser(folder))
    if not is_flow(folder):
        raise PolicyError(
            f"{folder}: not a flow head, it has no {CONFIG}; make one with "
            f"python scripts/train_flow.py --out {folder}"
        )
    try:
        flow = from_json(read_json(folder / CONFIG))
    except PolicyError as error:
        raise PolicyError(f"{folder / CONFIG}: {_without(error, folder / CONFIG)}") from None
    if not isinstance(base, QwenVlaPolicy):
        base = load_policy(base or folder / flow.base, device=device)
    try:
        if flow.identity and flow.identity != base.spec.identity:
            raise PolicyError(
                "made for another base policy, or for the same before it was trained further; "
                "train the flow head again"
            )
        check_base(base.config, flow)
        sensor, head = _read_parts(folder / WEIGHTS, base.config, torch.device(base.spec.device))
    except PolicyError as error:
        raise PolicyError(f"{folder}: {error}") from error
    return FlowPolicy(base, sensor, head, flow, seed)


def _read_parts(
    path: Path, config: PolicyConfig, device: torch.device
) -> tuple[SensorEncoder, FlowHead]:
    with torch.device("meta"):  # no memory for weights that are replaced at once
        modules: tuple[nn.Module, ...] = empty_parts(config)
    expected = {
        f"{name}.{key}": value
        for name, module in zip(_PARTS, modules, strict=True)
        for key, value in module.state_dict().items()
    }
    most = sum(8 * value.numel() for value in expected.values()) + _HEADER_BYTES
    if path.is_file() and path.stat().st_size > most:
        raise PolicyError(f"{path.name} has {path.stat().st_size} bytes, such a head has {most}")
    weights = read_safetensors(path)
    check_keys(path.name, expected, weights)
    check_finite(weights, path.name)
    for name, module in zip(_PARTS, modules, strict=True):
        own: dict[str, Tensor] = {
            key.removeprefix(f"{name}."): move(value, device, torch.float32)
            for key, value in weights.items()
            if key.startswith(f"{name}.")
        }
        module.load_state_dict(own, assign=True)
    sensor, head = modules
    assert isinstance(sensor, SensorEncoder) and isinstance(head, FlowHead)
    return sensor, head


def _without(error: PolicyError, path: Path) -> str:
    """What was said, without the path that it may begin with."""
    return str(error).removeprefix(f"{path}: ")
