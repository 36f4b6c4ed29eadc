"""A recorded session as one MCAP file that Foxglove and Rerun open.

Every message's log time is when it came to the receiver, its publish time and its `timestamp` when
it was captured, both in the receiver's clock; messages are in the order of their log times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from mcap.well_known import MessageEncoding
from mcap.writer import CompressionType, Writer
from mcap_protobuf.schema import register_schema
from numpy.typing import NDArray

from common.session import Session, SessionError
from common.wire import MAX_TIMESTAMP
from scripts.mcap_streams import Stream, streams_of

__all__ = ["Progress", "export", "write_mcap"]

Progress = Callable[[float, str], None]
"""Takes the share that is done, 0 to 1, and what is being done."""

_CHUNK = 4 << 20
_PROGRESS_EVERY = 500
_COMPRESSIONS = {
    "none": CompressionType.NONE,
    "lz4": CompressionType.LZ4,
    "zstd": CompressionType.ZSTD,
}


def export(
    sessions: Sequence[Session],
    out: Path,
    *,
    compression: str = "none",
    overwrite: bool = False,
    progress: Progress = lambda share, what: None,
) -> Path:
    """Write one session to the file `out`, or several into the folder `out`; what was written.

    Nothing is left under its final name unless it is whole. `compression` is "none", "lz4" or
    "zstd". Raises SessionError for a session that cannot be used and for a file that exists (unless
    `overwrite`), OSError when writing fails.
    """
    into_folder = len(sessions) > 1 or out.is_dir()
    files = [out / f"{s.folder.resolve().name}.mcap" for s in sessions] if into_folder else [out]
    if len(set(files)) < len(files):
        raise SessionError("two sessions of one name; export them to places of their own")
    for file in files:
        if file.exists() and (file.is_dir() or not overwrite):
            raise SessionError(f"{file}: exists; --overwrite replaces it")
    for number, (session, file) in enumerate(zip(sessions, files, strict=True)):
        what, done = session.folder.name, number / len(files)
        progress(done, what)
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}.part")
        try:
            with draft.open("wb", buffering=1 << 20) as target:
                write_mcap(
                    session,
                    target,
                    compression,
                    lambda share, done=done, what=what: progress(  # type: ignore[misc]
                        done + share / len(files), what
                    ),
                )
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)
    progress(1.0, "done")
    return out


def _nanoseconds(times: NDArray[np.float64], what: str) -> NDArray[np.int64]:
    if len(times) and not (times.min() >= 0.0 and times.max() < MAX_TIMESTAMP):  # false for NaN
        raise SessionError(f"{what}: time points that are not UNIX seconds")
    return np.round(times * 1e9).astype(np.int64)


def write_mcap(
    session: Session,
    target: BinaryIO,
    compression: str = "none",
    progress: Callable[[float], None] = lambda share: None,
) -> None:
    """Write a session's messages, in the order of their log times, to an open file.

    Pictures are read one at a time and A-scans where the session's file is mapped, so that memory
    grows with the count of messages (32 bytes each) and not with their size.
    """
    streams = streams_of(session)
    if not streams:
        raise SessionError(f"{session.folder}: nothing was recorded")
    writer = Writer(target, chunk_size=_CHUNK, compression=_COMPRESSIONS[compression])
    writer.start(profile="", library="dualrate")
    writer.add_metadata("dualrate.session", _about(session))
    channels = _channels(writer, streams)
    logged = [_nanoseconds(s.logged_at, f"{session.folder}: {s.topic}") for s in streams]
    captured = [_nanoseconds(s.captured_at, f"{session.folder}: {s.topic}") for s in streams]
    owner = np.repeat(np.arange(len(streams), dtype=np.int16), [len(times) for times in logged])
    row = np.concatenate([np.arange(len(times), dtype=np.int32) for times in logged])
    order = np.argsort(np.concatenate(logged), kind="stable")
    for count, place in enumerate(order):
        which, index = int(owner[place]), int(row[place])
        stream, at = streams[which], int(captured[which][index])
        message = stream.message(index)
        message.timestamp.FromNanoseconds(at)
        writer.add_message(
            channels[which],
            log_time=int(logged[which][index]),
            data=message.SerializeToString(),
            publish_time=at,
            sequence=stream.sequence(index) & 0xFFFFFFFF,
        )
        if count % _PROGRESS_EVERY == 0:
            progress(count / len(order))
    writer.finish()


def _channels(writer: Writer, streams: Sequence[Stream]) -> list[int]:
    """Register every stream, its schema once; the channels' numbers."""
    schemas: dict[str, int] = {}
    channels: list[int] = []
    for stream in streams:
        name = stream.kind.DESCRIPTOR.full_name
        if name not in schemas:
            schemas[name] = register_schema(writer, stream.kind)
        channels.append(
            writer.register_channel(
                stream.topic, MessageEncoding.Protobuf, schemas[name], dict(stream.about)
            )
        )
    return channels


def _about(session: Session) -> dict[str, str]:
    """What was noted of the recording, for the file's metadata."""
    about: dict[str, Any] = {"folder": session.folder.resolve().name, "task": session.task}
    for note in session.notes:
        plain = {k: v for k, v in note.items() if isinstance(v, (str, int, float, bool))}
        about |= {k: v for k, v in plain.items() if not (isinstance(v, float) and math.isnan(v))}
    return {str(key): str(value) for key, value in about.items()}
