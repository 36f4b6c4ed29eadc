"""Observations on their way in over gRPC: bounded in number, size and time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from common.wire.checks import Buffer
from serving.messages import MAX_MESSAGE, BadMessage, ServingError
from serving.packed import MAGIC
from serving.transports import protobuf
from serving.transports.grpc_clients import Caller

__all__ = ["UPLOAD_TIMEOUT_S", "Uploads", "is_joined"]

UPLOAD_TIMEOUT_S = 30.0
"""An observation that takes longer to come in is given up: its client is gone or plays for time."""
_MOST_HELD = 8 * MAX_MESSAGE
"""Bytes of all observations that are being received: 512 MiB."""
MOST_UPLOADS = 2
"""Of one client: the one that it sends, and one that it gave up a moment ago."""


@dataclass(frozen=True, slots=True)
class _Upload:
    context: Any
    since: float


class Uploads:
    """Every method may be called from any thread."""

    def __init__(self, timeout_s: float = UPLOAD_TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        self._open: dict[int, _Upload] = {}
        self._held = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def receiving(self, caller: Caller, context: Any, received: Any) -> Iterator[bytes]:
        """The whole observation; ServingError as soon as it is plain that it cannot be taken."""
        with self._counted(caller, context):
            assembly, held = protobuf.Assembly(), 0
            try:
                for message in _still_coming(received):
                    state, data = protobuf.read_part(message)
                    if not assembly.size:
                        is_joined(data)
                    held += len(data)
                    self._hold(len(data))
                    if assembly.add(state, data):
                        break
                else:
                    raise BadMessage("the observation ended before its last part")
                yield assembly.data
            finally:
                self._hold(-held)

    @contextlib.contextmanager
    def _counted(self, caller: Caller, context: Any) -> Iterator[None]:
        with caller.lock:
            if caller.uploads >= MOST_UPLOADS:
                raise ServingError("busy", f"{MOST_UPLOADS} observations of this client are coming")
            caller.uploads += 1
        with self._lock:
            self._open[id(context)] = _Upload(context, time.monotonic())
        try:
            yield
        finally:
            with caller.lock:
                caller.uploads -= 1
            with self._lock:
                self._open.pop(id(context), None)

    def _hold(self, size: int) -> None:
        with self._lock:
            self._held += size
            if size > 0 and self._held > _MOST_HELD:
                raise ServingError("busy", "too many observations are coming in at once")

    def end_late(self, tell: Callable[[str], None]) -> None:
        """Cancel those that have been coming for too long; `tell` is told of each client."""
        late = time.monotonic() - self.timeout_s
        with self._lock:
            stuck = [upload.context for upload in self._open.values() if upload.since < late]
        for context in stuck:
            tell(context.peer())
            context.cancel()


def is_joined(data: Buffer) -> bool:
    """Whether it is in our encoding; BadMessage where it is not in LeRobot's either."""
    if data[:4] == MAGIC:
        return True
    if data[:1] != b"\x80":
        raise BadMessage("neither our encoding nor a pickle of LeRobot's")
    return False


def _still_coming(received: Any) -> Iterator[Any]:
    """The parts of a stream; BadMessage when it is cut."""
    try:
        yield from received
    except Exception:  # grpcio raises a bare Exception when a stream is cut
        raise BadMessage("an observation was cut off") from None
