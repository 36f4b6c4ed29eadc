"""What is known of a simulated environment beside what gymnasium says of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from common.program import OptionError

if TYPE_CHECKING:  # installed only where it is wanted
    import gymnasium

__all__ = ["EnvironmentOptions", "Idle", "Simulator", "missing"]

IdleKind: TypeAlias = Literal["hold", "last", "noop"]
_MOST_FPS = 1000.0
_NAME = re.compile(r"[\w./:@ -]{1,200}")


@dataclass(frozen=True, slots=True)
class Idle:
    """What is executed at a step for which no action is queued.

    Attributes:
        kind: `hold`: the positions that were measured when the hold began, where actions are
            positions of the state's values; `last`: the last action once more; `noop`: `values`.
        values: (A,) for `noop`, and for `last` before there was one; zeros when empty.
        keeps: of `noop`, the columns that keep what they had, a gripper's say.
    """

    kind: IdleKind = "noop"
    values: tuple[float, ...] = ()
    keeps: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Simulator:
    """An environment, and how a client uses it.

    Attributes:
        env: a gymnasium environment; not reset yet.
        fps: its steps a second.
        features: place in its observation → name at the policy; empty: told by its first
            observation. `serving.environments.mapping` has the rules.
        idle: what is executed while no action is queued.
        task: the instruction in words, where the environment does not say one itself.
        state_names: of the state's values; empty: made up.
        action_names: of the action's values; those also among `state_names` are positions of the
            same. Empty: made up.
        bounds: lowest and highest actions (A,) each, where those of its action space are not meant.
    """

    env: gymnasium.Env[Any, Any]
    fps: float
    features: Mapping[str, str] = field(default_factory=dict)
    idle: Idle = field(default_factory=Idle)
    task: str = ""
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    bounds: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True, slots=True)
class EnvironmentOptions:
    """`--env.KEY VALUE`; keys that are not among these go to the environment itself.

    Attributes:
        type: a named environment, `gym`, or the id of one of gymnasium's.
        task: the id with `gym`; else which of the environment's tasks.
        fps: steps a second; 0: its own.
        episode_length: steps of an episode at most; 0: its own.
        features_map: as `Simulator.features`.
        idle: `hold`, `last`, `noop`, or a list of action values.
        state_names: as in `Simulator`.
        action_names: as in `Simulator`.
        module: to be imported first, which registers the environment.
        own: everything else.
    """

    type: str
    task: str = ""
    fps: float = 0.0
    episode_length: int = 0
    features_map: Mapping[str, str] = field(default_factory=dict)
    idle: Idle | None = None
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    module: str = ""
    own: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> EnvironmentOptions:
        """Read a map; OptionError, one line, for what cannot be used."""
        own = dict(given)
        texts = {key: own.pop(key, "") for key in ("type", "task", "module")}
        for key, value in texts.items():
            if not isinstance(value, str) or (value and not _NAME.fullmatch(value)):
                raise OptionError(f"--env.{key} must be a name, not {value!r}")
        features = own.pop("features_map", None) or {}
        if not isinstance(features, Mapping) or not all(
            isinstance(word, str) for pair in features.items() for word in pair
        ):
            raise OptionError(
                '--env.features_map must be names, as "{pixels/top: observation.images.top, '
                'agent_pos: observation.state}"'
            )
        return cls(
            fps=_number("fps", own.pop("fps", 0.0), _MOST_FPS),
            episode_length=int(_number("episode_length", own.pop("episode_length", 0), 1e9)),
            features_map=features,
            idle=_idle(own.pop("idle", None)),
            state_names=_names("state_names", own.pop("state_names", ())),
            action_names=_names("action_names", own.pop("action_names", ())),
            own=own,
            **texts,
        )

    def only(self, *known: str) -> dict[str, Any]:
        """The environment's own options; OptionError where there are others than `known`."""
        if unknown := [key for key in self.own if key not in known]:
            listed = ", ".join(known) or "none but those of every environment"
            raise OptionError(
                f"--env.type {self.type} has no option {unknown[0]!r}: it has {listed}"
            )
        return dict(self.own)


def missing(error: ModuleNotFoundError, extra: str) -> OptionError:
    """What to say when a package is not installed."""
    return OptionError(f"{error.name} is not installed: pip install '.[{extra}]'")


def _number(name: str, value: Any, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
        raise OptionError(f"--env.{name} must be from 0 to {most:g}, not {value!r}")
    return float(value)


def _names(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
        raise OptionError(f'--env.{name} must be a list of names, "[x, y]", not {value!r}')
    return tuple(value)


def _idle(value: Any) -> Idle | None:
    if value is None:
        return None
    if value in ("hold", "last", "noop"):
        return Idle(value)
    if isinstance(value, list) and all(
        isinstance(one, (int, float)) and not isinstance(one, bool) for one in value
    ):
        return Idle("noop", tuple(map(float, value)))
    raise OptionError(f"--env.idle must be hold, last, noop or a list of numbers, not {value!r}")
