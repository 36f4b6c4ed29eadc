"""What the rig process and its drivers say to each other: states out, commands in.

Both directions are msgpack maps. Whatever arrives is checked here; a message that is not as it
should be raises ValueError and nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import msgpack
import numpy as np
from numpy.typing import ArrayLike, NDArray

from sim.layout import RigConfig

__all__ = ["MAX_COMMAND_BYTES", "MAX_SAMPLES", "MAX_STATE_BYTES", "QPOS", "SAMPLE_FIELDS"]
__all__ += ["Command", "RigState", "decode_command", "decode_state", "encode_command"]
__all__ += ["encode_state"]

# Six joints, the eye's displacement (3), the tissue's (1).
QPOS = 10
# One force sample: wall-clock seconds, newtons along the needle, tip-to-tissue distance in mm.
SAMPLE_FIELDS = 3
# A tick has two or three samples; one that makes up for lost time at most a tenth of a second's.
MAX_SAMPLES = 256
MAX_STATE_BYTES = 16384
MAX_COMMAND_BYTES = 1024
_MAX_SEED = 2**31 - 1


@dataclass(frozen=True, slots=True)
class RigState:
    """The rig at one tick.

    Attributes:
        seq: counts ticks of one rig process.
        run: tells one rig process from the next.
        time: wall-clock seconds at which the rig was in this state.
        sim_time_s: simulated seconds since the episode began.
        episode: counts resets.
        seed: what the port's place was drawn from.
        config: the rig's options.
        qpos: (QPOS,) float64, all of the model's coordinates (radians, metres).
        pose: (6,) float64, the flange in mm and degrees.
        force_n: newtons along the needle.
        samples: (N, SAMPLE_FIELDS) float64, the force sensor's since the last tick, oldest first.
    """

    seq: int
    run: int
    time: float
    sim_time_s: float
    episode: int
    seed: int
    config: RigConfig
    qpos: NDArray[np.float64]
    pose: NDArray[np.float64]
    force_n: float
    samples: NDArray[np.float64]

    @property
    def joints_deg(self) -> NDArray[np.float64]:
        """(6,) joint angles in degrees."""
        return np.degrees(self.qpos[:6])


def encode_state(state: RigState) -> bytes:
    """The bytes of a state."""
    return bytes(
        msgpack.packb(
            {
                "seq": state.seq,
                "run": state.run,
                "time": state.time,
                "sim_time_s": state.sim_time_s,
                "episode": state.episode,
                "seed": state.seed,
                "config": _options_of(state.config),
                "qpos": state.qpos.astype("<f8", copy=False).tobytes(),
                "pose": state.pose.astype("<f8", copy=False).tobytes(),
                "force_n": state.force_n,
                "samples": state.samples.astype("<f8", copy=False).tobytes(),
            }
        )
    )


def decode_state(payload: bytes) -> RigState:
    """The state that bytes hold; raises ValueError."""
    fields = _unpack(payload, MAX_STATE_BYTES)
    samples = _floats(fields, "samples")
    if samples.size % SAMPLE_FIELDS or samples.size > MAX_SAMPLES * SAMPLE_FIELDS:
        raise ValueError(f"samples of {samples.size} numbers")
    return RigState(
        seq=_integer(fields, "seq"),
        run=_integer(fields, "run"),
        time=_number(fields, "time"),
        sim_time_s=_number(fields, "sim_time_s"),
        episode=_integer(fields, "episode"),
        seed=_integer(fields, "seed"),
        config=_config(fields.get("config")),
        qpos=_floats(fields, "qpos", QPOS),
        pose=_floats(fields, "pose", 6),
        force_n=_number(fields, "force_n"),
        samples=samples.reshape(-1, SAMPLE_FIELDS),
    )


@lru_cache(maxsize=8)
def _options_of(config: RigConfig) -> dict[str, float | str]:
    return config.as_dict()


def _config(options: Any) -> RigConfig:
    # The same in every message of a rig: checked when it is new.
    try:
        return _config_of(tuple(options.items()))
    except (AttributeError, TypeError) as error:
        raise ValueError("config is not a map of options") from error


@lru_cache(maxsize=8)
def _config_of(items: tuple[tuple[Any, Any], ...]) -> RigConfig:
    return RigConfig.from_dict(dict(items))


@dataclass(frozen=True, slots=True)
class Command:
    """What the rig is asked to do.

    Attributes:
        kind: which of them; `values` are (6,) for joints and pose, `seed` is for reset. In an
            episode's first 50 ms those that move the arm are not heard.
    """

    kind: Literal["joints", "pose", "hold", "reset"]
    values: NDArray[np.float64] | None = None
    seed: int = 0


def encode_command(command: Command) -> bytes:
    """The bytes of a command.

    One of `{"joints": [6]}`, `{"pose": [6]}`, `{"hold": true}`, `{"reset": seed}`; raises
    ValueError for values that are not six finite numbers.
    """
    if command.kind in ("joints", "pose"):
        return bytes(msgpack.packb({command.kind: _six(command.values).tolist()}))
    return bytes(msgpack.packb({command.kind: True if command.kind == "hold" else command.seed}))


def decode_command(payload: bytes) -> Command:
    """The command that bytes hold; raises ValueError."""
    fields = _unpack(payload, MAX_COMMAND_BYTES)
    if len(fields) != 1:
        raise ValueError("a command has exactly one key")
    ((kind, value),) = fields.items()
    if kind in ("joints", "pose"):
        if not isinstance(value, list):
            raise ValueError(f"{kind} is not a list")
        return Command("joints" if kind == "joints" else "pose", _six(value))
    if kind == "hold":
        if value is not True:
            raise ValueError("hold is not true")
        return Command("hold")
    if kind == "reset":
        return Command("reset", seed=_integer(fields, "reset"))
    raise ValueError("unknown command")


def _six(values: ArrayLike | None) -> NDArray[np.float64]:
    if isinstance(values, list) and not all(
        isinstance(v, (int, float)) and not isinstance(v, bool) for v in values
    ):
        raise ValueError("not numbers")
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, OverflowError) as error:
        raise ValueError("not numbers") from error
    if array.shape != (6,) or not np.isfinite(array).all():
        raise ValueError("not six finite numbers")
    return array


def _unpack(payload: bytes, limit: int) -> dict[Any, Any]:
    if len(payload) > limit:
        raise ValueError(f"a message of {len(payload)} bytes")
    try:
        fields = msgpack.unpackb(payload, raw=False, strict_map_key=True)
    except Exception as error:
        # msgpack raises a dozen types, of its own and of Python, for bytes it cannot read.
        raise ValueError("not msgpack") from error
    if not isinstance(fields, dict):
        raise ValueError("not a map")
    return fields


def _integer(fields: dict[Any, Any], name: str) -> int:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_SEED:
        raise ValueError(f"{name} is not a count")
    return value


def _number(fields: dict[Any, Any], name: str) -> float:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{name} is not a finite number")
    return float(value)


def _floats(fields: dict[Any, Any], name: str, count: int | None = None) -> NDArray[np.float64]:
    raw = fields.get(name)
    if not isinstance(raw, bytes) or len(raw) % 8 or (count is not None and len(raw) != 8 * count):
        raise ValueError(f"{name} is not an array of the right size")
    array = np.frombuffer(raw, dtype="<f8")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has numbers that are not finite")
    return array
