"""Samples in lines of text, as a serial port delivers them: any bytes, cut anywhere; pure."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

__all__ = ["MAX_LINE", "LineFormat", "LineParser"]

MAX_LINE = 256

_NUMBER = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:nan|inf)", re.IGNORECASE)
_ENDS = {"lf": b"\n", "cr": b"\r"}
_REPEATS = re.compile(r"(?<!\\)(?:\\\\)*(?:\*|(?<!\()\+|\{)")
_REPEATED_GROUP = re.compile(r"(?<!\\)(?:\\\\)*\)(?:\*|\+|\{)")
_MAX_REPEATS = 4


@dataclass(frozen=True, slots=True)
class LineFormat:
    """Where a line holds the force.

    Attributes:
        separator: between the columns; `space` for any white space.
        column: which one is the force; the first is 1.
        columns: how many there must be; 0 for any number.
        ticks_column: which one counts samples or time; 0 for none.
        pattern: instead of columns, a regular expression for the whole line, its group the force;
            groups named `force` and `ticks` where it has several.
        line_end: `lf` (with or without a carriage return) or `cr`.
    """

    separator: str = ","
    column: int = 1
    columns: int = 0
    ticks_column: int = 0
    pattern: str = ""
    line_end: str = "lf"

    def __post_init__(self) -> None:
        """ValueError for a format that no line can have."""
        if self.line_end not in _ENDS:
            raise ValueError(f"line_end must be lf or cr, not {self.line_end!r}")
        if not self.separator:
            raise ValueError("separator must not be empty; space stands for white space")
        if self.column < 1 or self.ticks_column < 0 or self.columns < 0:
            raise ValueError("columns are counted from 1")
        if self.columns and max(self.column, self.ticks_column) > self.columns:
            raise ValueError(f"a line of {self.columns} columns has no column {self.column}")


class LineParser:
    """Takes bytes in any pieces, gives (value, ticks) of each line; ticks NaN without a column.

    Lines longer than 256 bytes are thrown away as they come. The first line is left out: it may
    have begun before the port was open.
    """

    def __init__(self, form: LineFormat) -> None:
        """Raises ValueError for a pattern that is wrong, or that some line could keep busy."""
        self._form = form
        self._pattern = _compiled(form.pattern) if form.pattern else None
        self._end = _ENDS[form.line_end]
        space = form.separator == "space"
        self._separator = None if space else form.separator.encode("latin-1", "replace")
        self.bad = 0
        self._tail = b""
        self._skipping = True

    @property
    def held(self) -> int:
        """Bytes of an unfinished line that are kept."""
        return len(self._tail)

    def begin_again(self) -> None:
        """Forget what came before; the next line is taken for torn again."""
        self._tail, self._skipping = b"", True

    def feed(self, data: bytes) -> list[tuple[float, float]]:
        """(value, ticks) of each good line that these bytes end, oldest first; never raises."""
        *lines, tail = (self._tail + data).split(self._end)
        if lines and self._skipping:
            lines, self._skipping = lines[1:], False
        self._tail = b"" if self._skipping else tail
        if len(self._tail) > MAX_LINE:
            self.bad += 1
            self._tail, self._skipping = b"", True
        found = []
        for line in lines:
            if len(line) > MAX_LINE:
                self.bad += 1
            elif stripped := line.strip():
                sample = self._sample(stripped)
                if sample is None:
                    self.bad += 1
                else:
                    found.append(sample)
        return found

    def _sample(self, line: bytes) -> tuple[float, float] | None:
        form = self._form
        if self._pattern is not None:
            match = self._pattern.fullmatch(line)
            if match is None:
                return None
            named = match.groupdict()
            value = _number(named.get("force") or match.group(1))
            ticks = _number(named["ticks"]) if "ticks" in named else math.nan
        else:
            fields = line.split(self._separator)
            if len(fields) < max(form.column, form.ticks_column):
                return None
            if form.columns and len(fields) != form.columns:
                return None
            value = _number(fields[form.column - 1])
            ticks = _number(fields[form.ticks_column - 1]) if form.ticks_column else math.nan
        return None if value is None or ticks is None else (value, ticks)


def _number(text: bytes | None) -> float | None:
    """A plain decimal number; None for anything else that Python would take too."""
    text = (text or b"").strip()
    return float(text) if _NUMBER.fullmatch(text) else None


def _compiled(pattern: str) -> re.Pattern[bytes]:
    """The pattern; ValueError for one that a hostile line could keep busy for long.

    Matching without repeated groups takes at most about len(line) ** repetitions steps.
    """
    if _REPEATED_GROUP.search(pattern) or len(_REPEATS.findall(pattern)) > _MAX_REPEATS:
        raise ValueError(
            f"pattern {pattern!r}: no repeated groups and at most {_MAX_REPEATS} of * + {{…}}, "
            "as others may take forever on some lines"
        )
    try:
        compiled = re.compile(pattern.encode("latin-1", "replace"))
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is no regular expression: {error}") from None
    named = set(compiled.groupindex)
    if not named <= {"force", "ticks"} or (compiled.groups != 1 and "force" not in named):
        raise ValueError(f"pattern {pattern!r}: one group is expected, or (?P<force>…)")
    if named == {"ticks"}:
        raise ValueError(f"pattern {pattern!r}: there must be a group (?P<force>…)")
    return compiled
