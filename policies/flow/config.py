"""Configuration of a flow head: what `flow.json` holds, read strictly."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from policies.base import PolicyError
from policies.flow.sampling import BETA, STEPS
from policies.qwen_vla.config import JOINTS, PolicyConfig

__all__ = ["FORMAT", "VERSION", "FlowConfig", "check_base", "from_json", "to_json"]

FORMAT = "dualrate-flow"
VERSION = 1

# Nothing useful is near these; a hostile file must not keep us busy for ever.
_MOST_STEPS = 1000
_MOST_ROWS = 1024
_LONGEST_TEXT = 4096
_FARTHEST_DEG = 1e4
_LEAST_SCALE_DEG = 1e-4

Table = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class FlowConfig:
    """Everything about a flow head but its weights and its base.

    Attributes:
        center_deg: (H, 6) mean of the rows, less the joints that they begin at, over the data.
        scale_deg: (H, 6) their standard deviation; so much becomes 1 in normalised action space.
        base: folder of the base policy, from the folder of this file.
        identity: of the base policy; its features mean nothing to the head of another.
        steps: Euler steps that a chunk takes.
        beta: the greatest weight of guidance.
    """

    center_deg: Table
    scale_deg: Table
    base: str = "."
    identity: str = ""
    steps: int = STEPS
    beta: float = BETA

    def __post_init__(self) -> None:
        """Check the values; raises PolicyError."""
        for name, table in (("center_deg", self.center_deg), ("scale_deg", self.scale_deg)):
            if not 1 <= len(table) <= _MOST_ROWS or any(len(row) != JOINTS for row in table):
                raise PolicyError(f"{name} must be 1 to {_MOST_ROWS} rows of {JOINTS} values")
            if not all(abs(value) <= _FARTHEST_DEG for row in table for value in row):
                raise PolicyError(f"{name} must be angles of at most {_FARTHEST_DEG:g} degrees")
        if len(self.center_deg) != len(self.scale_deg):
            raise PolicyError("center_deg and scale_deg must have as many rows as each other")
        if min(value for row in self.scale_deg for value in row) < _LEAST_SCALE_DEG:
            raise PolicyError(f"scale_deg must be {_LEAST_SCALE_DEG:g} at least")
        if not 1 <= self.steps <= _MOST_STEPS:
            raise PolicyError(f"steps must be between 1 and {_MOST_STEPS}, not {self.steps}")
        if not (math.isfinite(self.beta) and 0 <= self.beta <= 1e6):
            raise PolicyError(f"beta must be between 0 and 1000000, not {self.beta}")
        if not self.base or max(len(self.base), len(self.identity)) > _LONGEST_TEXT:
            raise PolicyError(f"base and identity must be texts of at most {_LONGEST_TEXT} letters")


def check_base(config: PolicyConfig, flow: FlowConfig | None = None) -> None:
    """Raise PolicyError for a policy that cannot be the base of a flow head."""
    if config.robot is None or config.sensor is None:
        raise PolicyError(
            "a flow head begins at the robot's joints and feels: its base policy needs the "
            "sections sensor and robot, as scripts/train.py makes them"
        )
    if flow is not None and len(flow.scale_deg) != config.expert.rows:
        raise PolicyError(
            f"the flow head is for chunks of {len(flow.scale_deg)} rows, its base policy's have "
            f"{config.expert.rows}"
        )


def to_json(config: FlowConfig) -> dict[str, Any]:
    """The content of `flow.json`."""
    return {"format": FORMAT, "version": VERSION, **dataclasses.asdict(config)}


def from_json(data: dict[str, Any]) -> FlowConfig:
    """Read the content of `flow.json`.

    Raises:
        PolicyError: another format or version, a key missing, unknown, or of the wrong type.
    """
    if data.get("format") != FORMAT:
        raise PolicyError(f'not a flow head: "format" must be "{FORMAT}"')
    if data.get("version") != VERSION:
        raise PolicyError(
            f"version {data.get('version')!r}, this program reads version {VERSION}; train the "
            "flow head again or update the program"
        )
    content = {key: value for key, value in data.items() if key not in ("format", "version")}
    expected = {field.name for field in dataclasses.fields(FlowConfig)}
    missing, unknown = sorted(expected - set(content)), sorted(set(content) - expected)
    if missing or unknown:
        raise PolicyError(f"missing keys {missing}, unknown keys {unknown}")
    for name in ("base", "identity"):
        if not isinstance(content[name], str):
            raise PolicyError(f"{name} must be a text, not {content[name]!r:.80}")
    if type(content["steps"]) is not int:  # not isinstance: true is no number here
        raise PolicyError(f"steps must be a whole number, not {content['steps']!r:.80}")
    return FlowConfig(
        center_deg=_table(content["center_deg"], "center_deg"),
        scale_deg=_table(content["scale_deg"], "scale_deg"),
        base=content["base"],
        identity=content["identity"],
        steps=content["steps"],
        beta=_number(content["beta"], "beta"),
    )


def _table(value: object, where: str) -> Table:
    if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
        raise PolicyError(f"{where} must be a list of rows")
    return tuple(tuple(_number(item, where) for item in row) for row in value)


def _number(value: object, where: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise PolicyError(f"{where} must be finite numbers, not {value!r:.80}")
    return float(value)  # type: ignore[arg-type]
