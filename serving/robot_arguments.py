"""The `--robot.…` or `--env.…` options of a client, written as LeRobot's programs take them.

`--robot.type so101_follower --robot.cameras "{front: {type: opencv, index_or_path: 0}}"`: a dotted
name and a value in YAML's flow style. Which options there are is the robot's (the environment's)
own business, so they are taken out of the command line before it is read into the client's options.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from common.cli import ConfigError

__all__ = ["combined", "split"]

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_MOST_OPTIONS = 256
_MOST_TEXT = 1 << 16
_MOST_DEPTH = 8
_MOST_VALUES = 4096


class _Loader(yaml.SafeLoader):
    """YAML whose plain words are true, false, null, decimal numbers, and else text.

    YAML 1.1 reads `no` as false, 007 as an octal number and 11:22:33 as one to the base of sixty:
    in names, serial numbers and addresses that is never what was meant.
    """


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
):  # fmt: skip
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first)
    )


def split(argv: Sequence[str], section: str = "robot") -> tuple[dict[str, Any], list[str]]:
    """Take the robot's options, or those of another `section`, out of a command line.

    `--robot.KEY VALUE` and `--robot.KEY=VALUE`, KEY with dots for maps within maps and hyphens as
    good as underscores; the last of two wins. Returns the options as nested maps, and the rest of
    the command line in its order. Raises ConfigError, one line, for what cannot be read.
    """
    prefix = f"--{section}."
    robot: dict[str, Any] = {}
    rest: list[str] = []
    waiting = list(argv)
    count = 0
    while waiting:
        word = waiting.pop(0)
        if word == "--":
            rest += [word, *waiting]
            break
        if not word.startswith(prefix):
            rest.append(word)
            continue
        option, equals, text = word.partition("=")
        keys = _keys(option, prefix)
        if not equals:
            if not waiting or waiting[0].startswith("--"):
                raise ConfigError(f"{option} needs a value, e.g. {option} VALUE")
            text = waiting.pop(0)
        if (count := count + 1) > _MOST_OPTIONS:
            raise ConfigError(f"over {_MOST_OPTIONS} options {prefix}…: put them into a file")
        _put(robot, option, keys, _value(option, text), prefix)
    return robot, rest


def combined(
    from_file: Mapping[str, Any], given: Mapping[str, Any], section: str = "robot"
) -> dict[str, Any]:
    """A file's `robot:` map (or another `section`), with what the command line says instead.

    Maps are combined key by key, all else is replaced. Raises ConfigError for a file's map that
    is no such thing.
    """
    checked = _checked(section, dict(from_file))
    return _over(checked, given)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        inner = isinstance(old, dict) and isinstance(value, dict)
        both[key] = _over(old, value) if inner else value  # type: ignore[arg-type]
    return both


def _keys(option: str, prefix: str) -> list[str]:
    keys = option.removeprefix(prefix).split(".")
    if len(keys) > _MOST_DEPTH or not all(_KEY.fullmatch(key) for key in keys):
        raise ConfigError(
            f"{option[:80]!r} is no option: {prefix} and names with dots between are expected"
        )
    return [key.replace("-", "_") for key in keys]


def _put(robot: dict[str, Any], option: str, keys: list[str], value: Any, prefix: str) -> None:
    *path, last = keys
    place = robot
    for key in path:
        inner = place.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{option}: {prefix}{key} was given a value, and is no map")
        place = inner
    old = place.get(last)
    place[last] = _over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value


def _value(option: str, text: str) -> Any:
    if len(text) > _MOST_TEXT:
        raise ConfigError(f"{option}: over {_MOST_TEXT} characters: put it into a file")
    try:
        value = yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        problem = getattr(error, "problem", None) or error
        why = " ".join(str(problem).split())[:120]
        raise ConfigError(
            f'{option}: not YAML ({why}); maps are written "{{name: value, other: value}}"'
        ) from None
    except RecursionError:
        raise ConfigError(f"{option}: nested too deeply") from None
    return _checked(option, value)


def _checked(option: str, value: Any) -> Any:
    """The value, if it is one of plain maps, lists, text and numbers of bearable size."""
    left = _MOST_VALUES

    def look(item: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if depth > _MOST_DEPTH or left < 0:
            raise ConfigError(f"{option}: too large, or nested too deeply")
        if isinstance(item, dict):
            if not all(isinstance(key, (str, int)) for key in item):
                raise ConfigError(f"{option}: the keys of a map must be names")
            return {str(key): look(inner, depth + 1) for key, inner in item.items()}
        if isinstance(item, list):
            return [look(inner, depth + 1) for inner in item]
        if item is None or isinstance(item, (str, bool, int, float)):
            return item
        raise ConfigError(f"{option}: {type(item).__name__} is no value of an option")

    return look(value, 0)
