"""Simulated environments by name: a table, and whatever gymnasium has by its id."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from common.program import OptionError
from serving.environments.values import EnvironmentOptions, Simulator, missing

__all__ = ["make", "names"]


@dataclass(frozen=True, slots=True)
class _Named:
    """An environment of the table.

    Attributes:
        maker: `module:function` of (options, fps), fps being 0 where nobody asked for any.
        extra: of this project's packages, which brings it.
    """

    maker: str
    extra: str


_TABLE = {
    "insertion": _Named("serving.environments.insertion:make", "gym,sim"),
    "pusht": _Named("serving.environments.pusht:make", "pusht"),
    "aloha": _Named("serving.environments.aloha:make", "aloha"),
    "metaworld": _Named("serving.environments.metaworld:make", "metaworld"),
    "libero": _Named("serving.environments.libero:make", "libero"),
}
_RIG_ID = "dualrate/Insertion-v0"
"""What gymnasium knows the rig by (`sim.environment.ENVIRONMENT_ID`); the client knows more."""
_GYM = _Named("serving.environments.any_gym:make", "gym")


def names() -> tuple[str, ...]:
    """The names of the table."""
    return tuple(sorted(_TABLE))


def make(env: Mapping[str, Any], fps: float = 0.0) -> Simulator:
    """The environment that the options `env` describe, not reset yet.

    `fps` is the control rate that the client was asked for, 0 for none. OptionError, one line that
    says what to do, for a type or an option that cannot be used, or a package that is missing.
    """
    options = EnvironmentOptions.of(env)
    if not options.type:
        raise OptionError(
            f"no environment is given: --env.type is one of {', '.join(names())}, or gym with "
            "--env.task ID for any of gymnasium's"
        )
    _render_without_a_display()
    if _RIG_ID in (options.type, options.task) and options.type in (_RIG_ID, "gym"):
        options = replace(options, type="insertion", task="")
    named = _TABLE.get(options.type, _GYM)
    fps = fps or options.fps
    try:
        if options.module:
            importlib.import_module(options.module)
        module, _, function = named.maker.partition(":")
        maker: Callable[[EnvironmentOptions, float], Simulator]
        maker = getattr(importlib.import_module(module), function)
        made = maker(options, fps)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("serving", "common", "sim", "senders"):
            raise
        raise missing(error, named.extra) from None
    except OptionError:
        raise
    except Exception as error:
        # Simulators raise what they like for what they cannot do.
        said = " ".join(str(error).split())[:300]
        raise OptionError(f"--env.type {options.type} cannot be made: {said}") from None
    return replace(
        made,
        fps=fps or made.fps,
        features=options.features_map or made.features,
        idle=options.idle or made.idle,
        state_names=options.state_names or made.state_names,
        action_names=options.action_names or made.action_names,
    )


def _render_without_a_display() -> None:
    """Have MuJoCo draw through EGL where there is no display; it reads this when imported."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")
        if os.environ["MUJOCO_GL"] == "egl":
            os.environ.setdefault("PYOPENGL_PLATFORM", "egl")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
