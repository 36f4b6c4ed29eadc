"""What is attached to this machine: what `--list` shows."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from senders.drivers import DriverError
from senders.registry import DriverEntry

__all__ = ["Attached", "table"]

_COLUMNS = ("driver", "name", "source", "model", "state")


@dataclass(frozen=True, slots=True)
class Attached:
    """One camera that a driver sees.

    Attributes:
        name: the name on the wire, where no other is given.
        source: what picks it: a serial number, a device's id, a path.
        model: what it is, as far as that is known without opening it.
        state: whether it can be opened now, in a few words.
    """

    name: str
    source: str
    model: str
    state: str


def table(drivers: Mapping[str, DriverEntry]) -> str:
    """A line for every camera of every driver: those attached, or why there is none.

    A driver's module says what is attached by a function `attached()`; one without it has no
    device to look for.
    """
    rows = [_COLUMNS]
    for name, entry in drivers.items():
        if not entry.installed:
            rows.append((name, "-", "-", "-", f"not installed: {entry.how_to_install}"))
            continue
        try:
            module = importlib.import_module(entry.factory.partition(":")[0])
            look: Callable[[], list[Attached]] | None = getattr(module, "attached", None)
            found = None if look is None else look()
        except (ImportError, DriverError) as error:
            rows.append((name, "-", "-", "-", f"cannot be used: {error}"))
            continue
        if found is None:
            rows.append((name, "-", "-", "-", f"no device: {entry.summary}"))
        elif not found:
            rows.append((name, "-", "-", "-", "none attached"))
        else:
            rows += [(name, c.name, c.source, c.model, c.state) for c in found]
    widths = [max(len(row[k]) for row in rows) for k in range(len(_COLUMNS) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    )
