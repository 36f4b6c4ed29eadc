"""A client's command line: the robot's or the environment's options, those of a file, switches."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from common.cli import ConfigError, load_yaml
from common.program import OptionError
from serving import robot_arguments
from serving.client_options import ClientOptions

__all__ = ["arguments"]


def arguments(
    argv: Sequence[str] | None = None,
    section: str = "robot",
    options: type[ClientOptions] = ClientOptions,
) -> tuple[dict[str, Any], list[str]]:
    """The robot's options as nested maps, and the rest of the command line for `options`.

    Options of `--config FILE` come first, so that the command line wins; switches are written out
    (`--tls` becomes `--tls True`). OptionError for what cannot be read.
    """
    try:
        robot, rest = robot_arguments.split(sys.argv[1:] if argv is None else argv, section)
        rest, file = _without_config(rest)
        if file is not None:
            found = load_yaml(file)
            inside = found.pop(section, {})
            if not isinstance(inside, dict):
                raise ConfigError(f"{file}: {section}: a map is expected")
            robot = robot_arguments.combined(inside, robot, section)
            rest = _written_out(found, rest, file, options) + rest
    except ConfigError as error:
        raise OptionError(str(error)) from None
    return robot, _switches(rest, options)


def _name(word: str) -> str:
    return word.partition("=")[0].removeprefix("--").replace("-", "_")


def _without_config(words: Sequence[str]) -> tuple[list[str], Path | None]:
    rest, file, waiting = [], None, list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--") or _name(word) not in ("config", "config_path"):
            rest.append(word)
            continue
        _, equals, text = word.partition("=")
        if not equals:
            if not waiting:
                raise ConfigError("--config needs a file")
            text = waiting.pop(0)
        file = Path(text)
    return rest, file


def _written_out(
    options: dict[str, Any], given: Sequence[str], file: Path, cls: type[ClientOptions]
) -> list[str]:
    """A file's options as words of a command line, but for those that are given there."""
    known = {field.name for field in dataclasses.fields(cls)}
    there = {_name(word) for word in given if word.startswith("--")}
    words: list[str] = []
    for key, value in options.items():
        name = key.replace("-", "_")
        if name not in known:
            raise ConfigError(f"{file}: no option {key!r}; see --help")
        if name in there or value is None:
            continue
        if isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        elif isinstance(value, dict):
            words += [f"--{name}", yaml.safe_dump(value, default_flow_style=True).strip()]
        else:
            words.append(f"--{name}={value}")
    return words


def _switches(words: Sequence[str], cls: type[ClientOptions]) -> list[str]:
    """Every switch with its True or False behind it, however it was written."""
    hints = typing.get_type_hints(cls)
    switches = {name for name, hint in hints.items() if hint is bool}
    spoken = {"true": "True", "1": "True", "yes": "True", "false": "False", "0": "False"}
    spoken["no"] = "False"
    rest, waiting = [], list(words)
    while waiting:
        word = waiting.pop(0)
        name = _name(word)
        if not word.startswith("--") or name not in switches:
            rest.append(word)
            continue
        _, equals, text = word.partition("=")
        if not equals:
            text = waiting.pop(0) if waiting and waiting[0].lower() in spoken else "True"
        rest += [f"--{name}", spoken.get(text.lower(), text)]
    return rest
