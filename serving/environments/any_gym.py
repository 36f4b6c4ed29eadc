"""Any environment of gymnasium's, by its id."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

import gymnasium

from common.program import OptionError
from serving.environments.values import EnvironmentOptions, Simulator

__all__ = ["made_by_id", "make"]

_USUAL_FPS = 30.0


def make(options: EnvironmentOptions, fps: float) -> Simulator:
    """The environment whose id is the type, or the task with `gym`."""
    if options.type != "gym" and options.task:
        raise OptionError(
            f"--env.type {options.type} has no tasks: give the id of an environment as one of them"
        )
    id_ = options.task if options.type == "gym" else options.type
    if not id_:
        raise OptionError("--env.type gym needs --env.task ID, e.g. Pendulum-v1")
    env = made_by_id(id_, options.episode_length, dict(options.own))
    rate = env.metadata.get("render_fps")
    usual = float(rate) if isinstance(rate, (int, float)) and rate > 0 else _USUAL_FPS
    return Simulator(env, fps or usual)


def made_by_id(id_: str, episode_length: int, own: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    """`gymnasium.make` with pictures where it has any; OptionError for an id that there is not."""
    given = dict(own)
    if episode_length:
        given["max_episode_steps"] = episode_length
    try:
        spec = gymnasium.spec(id_)
    except (gymnasium.error.Error, ValueError) as error:
        close = difflib.get_close_matches(id_, list(gymnasium.registry), 3, 0.5)
        near = f"; there are {', '.join(close)}" if close else ""
        said = " ".join(str(error).split())[:200]
        raise OptionError(
            f"no environment {id_!r} ({said}){near}; --env.module imports what registers it"
        ) from None
    if "render_mode" not in given and _renders(spec):
        given["render_mode"] = "rgb_array"
    return gymnasium.make(id_, disable_env_checker=True, **given)


def _renders(spec: Any) -> bool:
    """Whether the class behind an entry can render into an array."""
    entry = spec.entry_point
    if isinstance(entry, str):
        entry = gymnasium.envs.registration.load_env_creator(entry)
    modes = getattr(entry, "metadata", {}).get("render_modes", ())
    if not inspect.isclass(entry):
        return False
    return "rgb_array" in modes
