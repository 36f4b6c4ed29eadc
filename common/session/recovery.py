"""Makes a session whose receiver was killed into one with its normal files. Nothing is thrown away.

Every step can be interrupted and done again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.jpeg import JpegError, jpeg_size
from common.session import layout
from common.session.frames import index_line, indexed, unindexed
from common.session.layout import PART, SAMPLE_ROW, SessionError
from common.session.npz import resumed
from common.session.reader import read_results
from common.session.rows import ALINES, finish_samples

__all__ = ["recover"]

_SHAPE = re.compile(rb"'shape': \(\d+, (\d+)\)")
_BROKEN = ".broken"
_MOST_VALUES = 16_000


def recover(folder: Path, progress: Callable[[str, float], None] = lambda *_: None) -> list[str]:
    """Finish what a killed receiver left in `folder`; what was done, a line each.

    `progress` is told what is being worked on and the part of it that is done. Raises SessionError
    for what cannot be mended. A session that needs nothing is left as it is: no lines.
    """
    with _one_line(folder):
        done = _sensor_files(folder, progress)
        done += _torn_lines(folder)
        done += _pictures(folder, progress)
        done += _results(folder)
        # The note last: it says that the rest is done.
        done += _notes(folder, bool(done))
    return done


@contextmanager
def _one_line(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SessionError(f"{error.filename or folder}: {error.strerror}") from None


def _sensor_files(folder: Path, progress: Callable[[str, float], None]) -> list[str]:
    done = []
    for stamp, part in layout.stamps_in(folder, "sensor_data_", f".npz{PART}"):
        path, rows_path = folder / layout.sensor_name(stamp), folder / layout.row_file_name(stamp)
        with part.open("rb") as file:
            found = _SHAPE.search(file.read(512))
        width = int(found[1]) if found else 0
        rows = rows_path.stat().st_size // SAMPLE_ROW.itemsize if rows_path.exists() else 0
        if not rows or not 0 < width <= _MOST_VALUES:
            # Killed before the first sample, or something that is not ours: kept, out of the way.
            for odd in (part, rows_path):
                if odd.exists():
                    odd.rename(odd.with_name(odd.name.removesuffix(PART) + _BROKEN))
            done.append(f"{path.name}: no whole sample in it")
            continue
        npz, work = resumed(part, ALINES, width, rows)
        for count in work:
            progress(path.name, count / rows)
        count = npz.rows
        finish_samples(npz, part, rows_path, path)
        done.append(f"{path.name}: finished, {count} samples")
    for stamp, rows_path in layout.stamps_in(folder, "sensor_data_", f".rows{PART}"):
        if (folder / layout.sensor_name(stamp)).exists():  # killed between the last two steps
            rows_path.unlink()
            done.append(f"{rows_path.name}: no longer needed")
    return done


def _torn_lines(folder: Path) -> list[str]:
    done = []
    for prefix in ("robot_state_", "frames_"):
        for _, path in layout.stamps_in(folder, prefix, ".csv"):
            with path.open("r+b") as file:
                size = file.seek(0, 2)
                file.seek(max(size - (1 << 16), 0))
                tail = file.read()
                kept = size - len(tail) + tail.rfind(b"\n") + 1
                if kept < size:
                    file.truncate(kept)
                    done.append(f"{path.name}: a torn last line taken off")
    return done


def _pictures(folder: Path, progress: Callable[[str, float], None]) -> list[str]:
    indexes = [path for _, path in layout.stamps_in(folder, "frames_", ".csv")]
    if not indexes:
        return []  # an older rig's session: the names are all there is
    new = unindexed(folder, indexed(folder))
    added = broken = 0
    with indexes[-1].open("ab") as index:
        for number, entry in enumerate(new):
            progress("pictures", number / len(new))
            try:
                jpeg_size(entry.read())
            except (JpegError, SessionError):
                entry.path.rename(entry.path.with_name(entry.file + _BROKEN))
                broken += 1
                continue
            at, size = repr(entry.timestamp), entry.path.stat().st_size
            values = (entry.view, entry.file, entry.camera, None, at, None, None, None, size)
            index.write(index_line(values))
            added += 1
    done = [f"{indexes[-1].name}: {added} pictures that it did not know added"] if added else []
    return done + ([f"{broken} half-written pictures set aside"] if broken else [])


def _results(folder: Path) -> list[str]:
    done = []
    for _, path in layout.stamps_in(folder, "inference_results_", ".json"):
        try:
            read_results(path)
            continue
        except SessionError:
            lines = path.read_bytes().splitlines()
        kept = [line.rstrip(b",") for line in lines if _is_entry(line)]
        draft = path.with_suffix(".tmp")
        draft.write_bytes(b"[\n" + b",\n".join(kept) + b"\n]\n")
        draft.replace(path)
        done.append(f"{path.name}: cut short, {len(kept)} entries are whole")
    return done


def _is_entry(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.rstrip(b",")), dict)
    except (ValueError, RecursionError):
        return False


def _notes(folder: Path, changed: bool) -> list[str]:
    done = []
    for _, path in layout.stamps_in(folder, "session_", ".json"):
        try:
            note: Any = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            note = {}
        if not isinstance(note, dict):
            note = {}
        if note.get("finished") is True and not changed:
            continue
        note |= {"finished": True, "recovered": True}
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
        draft.replace(path)
        done.append(f"{path.name}: marked as recovered")
    return done
