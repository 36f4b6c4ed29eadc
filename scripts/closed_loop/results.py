"""The study's rows in a CSV file, to which a later run adds what is missing."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from scripts.closed_loop.episode import EpisodeResult

__all__ = ["Key", "ResultsError", "ResultsFile", "read_results"]

Key = tuple[str, float, int]
"""Method, latency in ms, seed."""

_COLUMNS = tuple(field.name for field in fields(EpisodeResult))
_TYPES: Mapping[str, type] = {
    "method": str,
    "reason": str,
    "seed": int,
    "encoded": int,
    "acted": int,
    "success": bool,
}
# Settings that studies did not always write down, and what they were before they did.
_BEFORE: Mapping[str, Any] = {"tissue": "regular"}


class ResultsError(ValueError):
    """Results that cannot be read, or are of another study; one line."""


class ResultsFile:
    """Appends rows, each of which is on the disk before the next; the settings lie beside it."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Begin the file, or go on with one of the same settings; ResultsError, OSError."""
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".json")
        self.rows: list[EpisodeResult] = []
        if path.exists():
            _check_settings(beside, settings)
            self.rows = read_results(path)
            _drop_torn_end(path)
        else:
            beside.write_text(json.dumps(dict(settings), indent=2) + "\n", encoding="utf-8")
            path.write_text(",".join(_COLUMNS) + "\n", encoding="utf-8")
        self._file = path.open("a", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")

    @property
    def done(self) -> set[Key]:
        """What need not be run again."""
        return {(row.method, row.latency_ms, row.seed) for row in self.rows}

    def add(self, row: EpisodeResult) -> None:
        """Write a row."""
        cells = [_text(value) for value in astuple(row)]
        self._writer.writerow(cells)
        self._file.flush()
        self.rows.append(_row(cells))  # as it will be read again

    def close(self) -> None:
        """Write what is left; safe to call twice."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()


def read_results(path: Path) -> list[EpisodeResult]:
    """The rows of a file; a last line that was cut off is left out. ResultsError, OSError."""
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")[:-1]  # what follows the last line end was cut off, or is nothing
    if not lines or tuple(lines[0].split(",")) != _COLUMNS:
        raise ResultsError(f"{path}: not results of this study, or of an older one: move it away")
    rows = []
    for number, cells in enumerate(csv.reader(lines[1:]), 2):
        try:
            rows.append(_row(cells))
        except (ValueError, KeyError) as error:
            raise ResultsError(f"{path}, line {number}: {error}") from None
    return rows


def _row(cells: Sequence[str]) -> EpisodeResult:
    if len(cells) != len(_COLUMNS):
        raise ValueError(f"{len(cells)} values, {len(_COLUMNS)} expected")
    values: dict[str, Any] = {}
    for name, cell in zip(_COLUMNS, cells, strict=True):
        wanted = _TYPES.get(name, float)
        values[name] = {"1": True, "0": False}[cell] if wanted is bool else wanted(cell)
    return EpisodeResult(**values)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float):
        # Enough digits for every purpose, and the same on every machine.
        return "nan" if math.isnan(value) else f"{value:.6g}"
    return str(value)


def _check_settings(beside: Path, settings: Mapping[str, Any]) -> None:
    try:
        before = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ResultsError(f"{beside} cannot be read: name another folder by --out") from None
    wanted = {**_BEFORE, **json.loads(json.dumps(dict(settings)))}
    known = {**_BEFORE, **(before if isinstance(before, dict) else {})}
    if known != wanted:
        other = [name for name in wanted if known.get(name) != wanted[name]] or sorted(known)
        raise ResultsError(
            f"{beside.parent} holds results of another study ({', '.join(other)}): "
            "name another folder by --out"
        )


def _drop_torn_end(path: Path) -> None:
    """Remove a line that was being written when the machine went down."""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        path.write_bytes(whole)
