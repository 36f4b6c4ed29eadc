"""Command lines from dataclasses (tyro), YAML files for the same dataclasses, plain errors."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import re
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

# tyro and yaml are imported where they are used: `needs` is what says that a package is missing.

__all__ = ["ConfigError", "fail", "from_mapping", "load_yaml", "needs", "parse", "read"]

T = TypeVar("T")
_MAX_CONFIG_BYTES = 1 << 20


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is one line."""


def fail(message: str, code: int = 2) -> NoReturn:
    """End the program: one line on stderr, no traceback. 2 for the user's input, 1 otherwise."""
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    raise SystemExit(code)


def needs(*extras: str) -> None:
    """Let the program end with one line, and not a traceback, where a package is missing.

    For a program to call before it imports anything that is to be installed: with the extras of
    this project that bring it all.
    """
    brings = f"pip install '.[{','.join(extras)}]'" if extras else "pip install ."

    def said(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            fail(f"{error.name} is missing: {brings}")
        sys.__excepthook__(kind, error, trace)

    sys.excepthook = said


def parse(options: type[T], args: Sequence[str] | None = None) -> T:
    """Read the command line into `options`, a dataclass; exits with 2 and one line if it cannot."""
    try:
        return read(options, args)
    except ConfigError as error:
        fail(str(error))


def read(options: type[T], args: Sequence[str] | None = None) -> T:
    """Read the command line into `options`, a dataclass; ConfigError with one line if it cannot.

    Where the dataclass has a field `config`, the YAML file it names is read first and the other
    options on the command line win over it. `--help` prints the help and exits with 0.
    """
    import tyro

    arguments = list(sys.argv[1:] if args is None else args)
    default = _from_config(options, arguments)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            given: T = tyro.cli(
                options,
                args=arguments,
                default=tyro.MISSING_NONPROP if default is None else default,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
            return given
    except SystemExit as leaving:
        if not leaving.code:
            raise
        raise ConfigError(_one_line(said.getvalue())) from None
    except ValueError as error:  # raised by the dataclass itself
        raise ConfigError(str(error)) from None


def _from_config(options: type[T], arguments: Sequence[str]) -> T | None:
    """The defaults that a YAML file on the command line gives."""
    if all(field.name != "config" for field in dataclasses.fields(options)):  # type: ignore[arg-type]
        return None
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", nargs="?")
    named = finder.parse_known_args(arguments)[0].config
    return from_mapping(options, load_yaml(Path(named)), named) if named else None


def _one_line(box: str) -> str:
    """The message inside tyro's framed error, without the frame and the repeated help text."""
    lines = [line.strip().strip("│").strip() for line in box.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("╭", "╰"))]
    # The parts are separated by rules; those that only repeat or point to the help are left out.
    parts = "\n".join("" if set(line) <= {"─"} else line for line in lines).split("\n\n")
    said = [part for part in parts if not part.startswith(("Argument help", "For full help"))]
    message = re.sub(r"\s+", " ", "; ".join(said)).strip()
    return f"{message or 'bad options'}; see --help"


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's top-level map; ConfigError when it cannot be read or is not a map."""
    import yaml

    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: over 1 MiB, not a configuration")
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"{path}: a map of option names to values is expected")
    return content


def from_mapping(cls: type[T], mapping: dict[str, Any], where: str) -> T:
    """Fill a dataclass, nested ones too, from a map; ConfigError names the option at fault.

    Keys may be written with hyphens or underscores. A required field that the map lacks is left
    for the command line.
    """
    import tyro

    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        name = str(key).replace("-", "_")
        if name not in fields:
            raise ConfigError(f"{where}: no option {key!r}; there are {', '.join(sorted(fields))}")
        values[name] = _convert(hints[name], value, f"{where}: {key}")
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in values:
            values[name] = tyro.MISSING
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _convert(inner[0], value, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return _convert(next(part for part in inner if part is not type(None)), value, where)
    if origin is typing.Literal:
        if isinstance(value, bool) and {"on", "off"} <= set(inner):
            value = "on" if value else "off"  # as YAML reads either word
        if value in inner:
            return value
        raise ConfigError(f"{where}: {value!r} is none of {', '.join(map(repr, inner))}")
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: a map is expected")
        return from_mapping(typing.cast(type, hint), value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: a map is expected")
        return {
            _convert(inner[0], str(key), where): _convert(inner[1], item, f"{where}: {key}")
            for key, item in value.items()
        }
    if origin is tuple:
        return _convert_tuple(inner, value, where)
    return _convert_plain(hint, value, where)


def _convert_tuple(inner: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if isinstance(value, dict) and inner == (str, Ellipsis):
        # A map where KEY=VALUE texts are expected: the driver's options, say.
        value = [f"{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in value.items()]
    if not isinstance(value, list):
        raise ConfigError(f"{where}: a list is expected")
    if inner[-1] is not Ellipsis and len(inner) != len(value):
        raise ConfigError(f"{where}: a list of {len(inner)} values is expected")
    return tuple(_convert(inner[0], item, where) for item in value)


def _convert_plain(hint: Any, value: Any, where: str) -> Any:
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    fits = isinstance(hint, type) and isinstance(value, hint)
    if fits and (hint is bool or not isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}: {getattr(hint, '__name__', hint)} expected, not {value!r}")
