"""The tables of drivers: picking one by name, and making it.

`senders/robots`, `senders/cameras` and `senders/sensors` each hold a table; a driver is one line
of it. It is imported only when asked for by name, so that a machine needs the vendor package of
its own device and no other.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.program import OptionError, ProgramError
from senders.drivers import DriverError

__all__ = ["DriverEntry", "choose", "make"]


@dataclass(frozen=True, slots=True)
class DriverEntry:
    """One line of a table.

    Attributes:
        factory: `module:callable` that makes the driver (for cameras: a list of them).
        summary: what it drives, in a few words.
        needs: the package that must be importable, empty where none must.
        extra: what `pip install '.[extra]'` gets it with.
        real: a device that can be used without being told more. The rest (made-up data, a
            recording, a device whose options must be given) is used only when asked for by name.
        install: how to get the package where pip alone does not.
    """

    factory: str
    summary: str
    needs: str = ""
    extra: str = ""
    real: bool = True
    install: str = ""

    @property
    def installed(self) -> bool:
        """Whether the package that it needs is there."""
        try:
            return not self.needs or importlib.util.find_spec(self.needs) is not None
        except ImportError:
            return False

    @property
    def how_to_install(self) -> str:
        """The command that gets the package."""
        if self.install:
            return self.install
        return f"pip install '.[{self.extra}]'" if self.extra else f"pip install {self.needs}"

    def describe(self, name: str) -> str:
        """One phrase for a message."""
        return f"{name} ({self.summary}{'' if self.installed else '; ' + self.how_to_install})"


def choose(table: Mapping[str, DriverEntry], name: str | None) -> str:
    """The name of the driver to use: the given one, else the one device whose package is there.

    Raises OptionError (one line that says what to do) when that does not settle it.
    """
    known = ", ".join(entry.describe(key) for key, entry in table.items())
    if name is not None:
        if name not in table:
            raise OptionError(f"there is no driver {name!r}; --driver is one of: {known}")
        if not table[name].installed:
            entry = table[name]
            raise OptionError(f"driver {name} needs {entry.needs}: {entry.how_to_install}")
        return name
    ready = [key for key, entry in table.items() if entry.real and entry.installed]
    if len(ready) == 1:
        return ready[0]
    why = f"several are installed: {', '.join(ready)}" if ready else "no device's is installed"
    raise OptionError(f"no driver was picked and {why}; pick one with --driver: {known}")


def make(
    table: Mapping[str, DriverEntry],
    name: str,
    offered: Mapping[str, Any],
    given: Sequence[str] = (),
) -> Any:
    """Import the driver `name` and make it.

    It gets what the program offers as far as it takes that, and the user's `key=value` options.
    Raises OptionError for an option it does not take or that is the program's to set, or a package
    that is not there, ProgramError when the device refuses.
    """
    entry = table[name]
    module, _, attribute = entry.factory.partition(":")
    try:
        factory: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        hint = f": {entry.how_to_install}" if entry.extra or entry.needs else ""
        raise OptionError(f"driver {name} cannot be loaded ({error}){hint}") from None
    takes = inspect.signature(factory).parameters
    arguments = {key: value for key, value in offered.items() if key in takes}
    for text in given:
        key, equals, value = text.partition("=")
        # Whether an arm moves, and how fast, must not be said in two places: one is overlooked.
        if key in offered and key in takes:
            raise OptionError(
                f"driver {name}: {key} is not a driver's option, the program's own options set it: "
                "see --help"
            )
        if not equals or key not in takes:
            raise OptionError(
                f"driver {name} does not take {text!r}; --driver-options: "
                + (" ".join(f"{key}=…" for key in takes if key not in offered) or "none")
            )
        arguments[key] = _typed(name, key, value, takes[key].default)
    try:
        return factory(**arguments)
    except DriverError as error:
        raise ProgramError(f"driver {name}: {error}") from None
    except (TypeError, ValueError) as error:
        raise OptionError(f"driver {name}: {error}") from None


def _typed(driver: str, key: str, text: str, default: object) -> Any:
    """Text as the type of the parameter's default; without one, as what it looks like."""
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[text.lower()]
        if isinstance(default, (int, float)):
            number = type(default)(text)
            if not math.isfinite(number):
                raise OptionError(f"driver {driver}: {key} must be a finite number, not {text}")
            return number
        if isinstance(default, (tuple, list)):
            return type(default)(text.split(","))
    except (KeyError, ValueError):
        kind = type(default).__name__
        raise OptionError(f"driver {driver}: {key} must be a {kind}, not {text!r}") from None
    if isinstance(default, str):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
