"""Inference as a request over ZeroMQ REQ/REP with msgpack, arrays in NumPy's file format.

The way of GR00T's inference service, written anew: a request is a map of `endpoint` and `data`; an
array inside is a map with the bytes that `numpy.save` gives. Run as a program it serves, with a
policy that repeats the state.
"""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import msgpack
import numpy as np
import zmq
from numpy.typing import NDArray

from common import cli
from scripts.serving_sides.scene import ACTION_ROWS, TASK, Scene

__all__ = ["RequestClient"]

_MARK, _BYTES = "__ndarray_class__", "as_npy"


def _pack_array(value: Any) -> Any:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{type(value).__name__} cannot be sent")
    file = io.BytesIO()
    np.save(file, value, allow_pickle=False)
    return {_MARK: True, _BYTES: file.getvalue()}


def _unpack_array(value: dict[str, Any]) -> Any:
    return np.load(io.BytesIO(value[_BYTES]), allow_pickle=False) if _MARK in value else value


def pack(message: dict[str, Any]) -> bytes:
    """A message as bytes."""
    return bytes(msgpack.packb(message, default=_pack_array))


def unpack(data: bytes) -> dict[str, Any]:
    """The message that `pack` was given."""
    message: dict[str, Any] = msgpack.unpackb(data, object_hook=_unpack_array)
    return message


class RequestClient:
    """One request, one answer."""

    def __init__(self, address: str) -> None:
        """`address`: HOST:PORT."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.REQ)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(f"tcp://{address}")

    def begin(self, timeout_s: float) -> None:
        """Ask whether the server is there."""
        self._socket.send(pack({"endpoint": "ping"}))
        if not self._socket.poll(int(1e3 * timeout_s)):
            raise TimeoutError("no answer to a ping")
        self._socket.recv()

    def exchange(self, scene: Scene) -> NDArray[np.float32]:
        """Ask for actions."""
        data: dict[str, Any] = {f"video.{name}": p for name, p in scene.pictures.items()}
        data |= {"state.joints": scene.state, "annotation.task": TASK}
        self._socket.send(pack({"endpoint": "get_action", "data": data}))
        chunk: NDArray[np.float32] = unpack(self._socket.recv())["action.joints"]
        return chunk

    def close(self) -> None:
        """Close the socket."""
        self._context.destroy(linger=0)


@dataclass(frozen=True)
class MsgpackServiceOptions:
    """Serve until stopped."""

    port: int
    """On 127.0.0.1."""


def main() -> int:
    """Answer one request after the other."""
    options = cli.parse(MsgpackServiceOptions)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.REP)
    socket.bind(f"tcp://127.0.0.1:{options.port}")
    while True:
        request = unpack(socket.recv())
        if request["endpoint"] == "get_action":
            state = request["data"]["state.joints"]
            socket.send(pack({"action.joints": np.tile(state, (ACTION_ROWS, 1))}))
        else:
            socket.send(pack({"status": "ok"}))


if __name__ == "__main__":
    sys.exit(main())
