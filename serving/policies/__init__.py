"""Policies by type: what a server can load. A type's module is imported when it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from serving.engine_options import EngineOptions
from serving.messages import Instructions, ServingError
from serving.served import ServedPolicy

__all__ = ["PolicyType", "check_path", "known_types", "load_policy"]


@dataclass(frozen=True, slots=True)
class PolicyType:
    """How policies of a type are loaded.

    The loader is called with the instructions, of which type, path and device count, for the
    policy is shared; the rest is for `admit`. It raises ServingError with a line that says what to
    do, or anything else, which becomes `failed` with that error's type and message.

    Attributes:
        loader: `module:function`.
        from_files: whether a path means files; otherwise it is the loader's own affair.
        from_hub: whether a path that is no file may be the name of a model on a hub.
        takes_options: whether the loader is called with the EngineOptions too.
        at_once: how many calls of a policy compute with PyTorch at once; 0: it needs none.
    """

    loader: str
    from_files: bool = True
    from_hub: bool = False
    takes_options: bool = False
    at_once: int = 1


_TYPES = {
    "builtin": PolicyType("serving.policies.builtin:load", from_files=False, at_once=0),
    "qwen_vla": PolicyType("serving.policies.dual_rate:load", takes_options=True, at_once=2),
}
_LEROBOT = PolicyType("serving.policies.lerobot_policy:load", from_hub=True)
_TYPE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def known_types() -> tuple[str, ...]:
    """The types that need no LeRobot."""
    return tuple(sorted(_TYPES))


def load_policy(instructions: Instructions, options: EngineOptions) -> ServedPolicy:
    """Load what the instructions ask for; `check_path` has been called with them.

    Raises:
        ServingError: with a line that says what to do.
        Exception: whatever else a loader raises.
    """
    kind = _type_of(instructions.policy_type)
    # Read by the hub's library once, when it is imported: set before any loader is.
    if options.allow_downloads:
        os.environ.setdefault("HF_HUB_OFFLINE", "0")
    else:
        os.environ["HF_HUB_OFFLINE"] = "1"
    module, _, name = kind.loader.partition(":")
    try:
        if kind.at_once:
            _set_torch_threads(options.torch_threads, kind.at_once)
        loader: Callable[..., ServedPolicy] = getattr(importlib.import_module(module), name)
        return loader(instructions, options) if kind.takes_options else loader(instructions)
    except ModuleNotFoundError as error:
        raise ServingError(
            "bad_policy",
            f"policy type {instructions.policy_type} needs {error.name} on the server, which is "
            "not installed: pip install '.[receiver]' there",
        ) from None


def _set_torch_threads(threads: int, at_once: int) -> None:
    """Set PyTorch's threads, for the whole process; 0 leaves them be unless calls run at once.

    Each of those would have as many threads as there are cores: they would wait for each other.
    """
    import torch  # here, because a server may have none

    if threads or at_once > 1:
        torch.set_num_threads(threads or max((os.cpu_count() or at_once) // at_once, 1))


def check_path(instructions: Instructions, options: EngineOptions) -> Instructions:
    """The instructions with the path as the server is to open it: absolute, links followed.

    With `policy_roots` a path must lie in one of these folders (a relative one is looked for in
    each of them), wherever its links lead to; without, it may be any path of the server's or, for
    types that have some, a hub's name.

    Raises:
        ServingError: not_allowed for a path outside, or one with `..` or control characters;
            not_found for one that is not there; bad_policy for an unknown type.
    """
    kind, path = _type_of(instructions.policy_type), instructions.path
    if not kind.from_files:
        return instructions
    if not path or not path.isprintable() or ".." in re.split(r"[/\\]", path):
        raise ServingError(
            "not_allowed", f"path {path[:200]!r}: give a path on the server, without '..'"
        )
    given = Path(path)
    roots = [Path(root).resolve() for root in options.policy_roots]
    # An absolute path stays as it is when joined to a root.
    for place in [root / given for root in roots] or [given.expanduser()]:
        try:
            found = place.resolve(strict=True)
        except (OSError, RuntimeError):  # not there, or links that go round
            continue
        if roots and not any(found.is_relative_to(root) for root in roots):
            continue
        return replace(instructions, path=str(found))
    if roots:
        raise ServingError(
            "not_allowed",
            f"path {path[:200]!r} is in none of the folders that this server loads policies from",
        )
    if kind.from_hub and _HUB_NAME.fullmatch(path):
        return instructions
    raise ServingError(
        "not_found", f"there is no {path[:200]!r} on the server: give a path as the server sees it"
    )


def _type_of(name: str) -> PolicyType:
    if name in _TYPES:
        return _TYPES[name]
    known = ", ".join(known_types())
    if not _TYPE_NAME.fullmatch(name):
        raise ServingError("bad_policy", f"no policy type {name[:64]!r}: there are {known}")
    if importlib.util.find_spec("lerobot") is None:
        raise ServingError(
            "bad_policy",
            f"policy type {name!r} is none of {known}, and for LeRobot's types the server needs "
            "LeRobot: pip install '.[lerobot]' there (Python 3.12)",
        )
    return _LEROBOT
