"""A TCP proxy in one thread that behaves like a bad network, and can be told to fail."""

from __future__ import annotations

import contextlib
import math
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from scripts.network_lane import Network
from scripts.network_pair import Pair

__all__ = ["NetworkProxy", "Traffic"]

_ANSWER_S = 10.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """What went through a proxy so far.

    Attributes:
        connections: how many were accepted.
        open: how many are open.
        up: bytes to the target.
        down: bytes from the target.
        stalls: segments that were lost, in the model of `Network`.
    """

    connections: int
    open: int
    up: int
    down: int
    stalls: int


class NetworkProxy:
    """Forwards TCP connections to `target` as a network with these faults would.

    One thread serves all connections. Bytes are neither changed nor reordered; what waits is
    bounded, and a source is not read beyond that. As a proxy ends TCP on both sides, a connect
    succeeds at once even while the network is cut; nothing comes back on it, though. A target that
    is not there shows as a reset of the accepted connection.

    A context manager; all methods may be called from any thread and have taken effect when they
    return.
    """

    def __init__(
        self,
        target: tuple[str, int],
        delay_s: float = 0.0,
        jitter_s: float = 0.0,
        loss: float = 0.0,
        seed: int = 0,
        *,
        listen: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        """Listen at once; OSError where the address cannot be had, ValueError for bad figures."""
        self._network = Network(delay_s, jitter_s, loss)
        found = socket.getaddrinfo(*target, type=socket.SOCK_STREAM)
        # Servers listen on IPv4 unless told otherwise, and `localhost` may name both.
        found.sort(key=lambda entry: entry[0] != socket.AF_INET)
        self._family, self._target = found[0][0], found[0][4]
        self._seed = seed
        self._accepted = 0
        self._gone = [0, 0, 0]
        self._cut = False
        self._stopping = False
        self._pairs: set[Pair] = set()
        self._asked: deque[Callable[[], None]] = deque()
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._listen_family = socket.AF_INET6 if ":" in listen[0] else socket.AF_INET
        self._listener = self._bound(listen)
        self._address: tuple[str, int] = self._listener.getsockname()[:2]
        self._accepting = False
        self._listener.listen(128)
        self._attend(True)
        self._thread = threading.Thread(target=self._run, name="network proxy", daemon=True)
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that clients connect to."""
        return self._address

    @property
    def port(self) -> int:
        """The port that clients connect to."""
        return self._address[1]

    def __enter__(self) -> NetworkProxy:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def shape(self, delay_s: float = 0.0, jitter_s: float = 0.0, loss: float = 0.0) -> None:
        """Treat what comes from now on so; what is under way keeps its time."""
        network = Network(delay_s, jitter_s, loss)

        def change() -> None:
            self._network = network

        self._do(change)

    def cut(self) -> None:
        """Black hole: no byte moves, connections stay, new ones hear nothing."""

        def change() -> None:
            self._cut = True
            self._attend(False)

        self._do(change)

    def heal(self) -> None:
        """End a cut or a refusal; what waited goes on at once."""

        def change() -> None:
            self._cut = False
            self._listener.listen(128)
            self._attend(True)

        self._do(change)

    def reset(self) -> None:
        """RST to both ends of every connection; new ones are welcome."""
        self._do(self._reset_all)

    def refuse(self) -> None:
        """RST to all, and every new connection is refused until `heal`."""

        def change() -> None:
            self._attend(False)
            self._listener.close()
            # Bound but not listening: the port stays ours, and the kernel refuses.
            self._listener = self._bound(self._address)
            self._reset_all()

        self._do(change)

    def traffic(self) -> Traffic:
        """What went through so far."""
        counted: list[Traffic] = []

        def count() -> None:
            up_down_stalls = list(self._gone)
            for pair in self._pairs:
                self._count(pair, up_down_stalls)
            up, down, stalls = up_down_stalls
            counted.append(Traffic(self._accepted, len(self._pairs), up, down, stalls))

        self._do(count)
        return counted[0]

    def close(self) -> None:
        """Reset all connections and let go of the port; safe to call twice."""

        def stop() -> None:
            self._stopping = True

        if self._thread.is_alive():
            self._do(stop)
            self._thread.join(_ANSWER_S)

    def _do(self, action: Callable[[], None]) -> None:
        """Have the proxy's thread do something, and wait until it has."""
        done = threading.Event()

        def act() -> None:
            try:
                action()
            finally:
                done.set()

        self._asked.append(act)
        with contextlib.suppress(OSError):
            self._wake_writer.send(b".")
        deadline = time.monotonic() + _ANSWER_S
        while not done.wait(0.1):
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("the proxy is closed")

    # From here on everything runs in the proxy's thread (the constructor's calls aside).

    def _bound(self, where: tuple[str, int]) -> socket.socket:
        made = socket.socket(self._listen_family, socket.SOCK_STREAM)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.setblocking(False)
            made.bind(where)
        except OSError:
            made.close()
            raise
        return made

    def _attend(self, accepting: bool) -> None:
        """Accept new connections, or leave them to the kernel."""
        if accepting and not self._accepting:
            self._selector.register(self._listener, selectors.EVENT_READ)
        elif self._accepting and not accepting:
            self._selector.unregister(self._listener)
        self._accepting = accepting

    def _run(self) -> None:
        try:
            while not self._stopping:
                for key, events in self._selector.select(self._wait_s()):
                    self._handle(key, events)
                now = time.monotonic()
                for pair in list(self._pairs):
                    if not self._cut:
                        self._forward(pair, now)
                for pair in self._pairs:
                    pair.watch(self._selector, self._cut)
        finally:
            self._reset_all()
            for sock in (self._listener, self._wake_reader, self._wake_writer):
                sock.close()
            self._selector.close()

    def _wait_s(self) -> float | None:
        next_at = min((pair.next_at for pair in self._pairs), default=math.inf)
        if self._cut or math.isinf(next_at):
            return None
        return max(0.0, next_at - time.monotonic())

    def _handle(self, key: selectors.SelectorKey, events: int) -> None:
        if key.fileobj is self._wake_reader:
            with contextlib.suppress(BlockingIOError):
                self._wake_reader.recv(4096)
            while self._asked:
                self._asked.popleft()()
        elif key.fileobj is self._listener:
            if self._accepting:  # while cut, a new connection waits in the kernel, hears nothing
                self._accept()
        elif not self._cut and key.data.pair in self._pairs:
            try:
                key.data.pair.handle(key.data, events, self._network, time.monotonic())
            except OSError:  # this end was reset: so is the other
                self._drop(key.data.pair, reset=True)

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError:
            return
        self._accepted += 1
        name = f"{self._seed}/{self._accepted}"
        pair = Pair(accepted, self._family, self._target, name)
        self._pairs.add(pair)
        if pair.failed:
            self._drop(pair, reset=True)

    def _forward(self, pair: Pair, now: float) -> None:
        try:
            pair.forward(now)
        except OSError:
            self._drop(pair, reset=True)
            return
        if pair.finished:
            self._drop(pair, reset=False)

    def _reset_all(self) -> None:
        for pair in list(self._pairs):
            self._drop(pair, reset=True)

    def _drop(self, pair: Pair, *, reset: bool) -> None:
        self._pairs.discard(pair)
        self._count(pair, self._gone)
        pair.close(self._selector, reset=reset)

    @staticmethod
    def _count(pair: Pair, into: list[int]) -> None:
        into[0] += pair.client.lane.forwarded
        into[1] += pair.target.lane.forwarded
        into[2] += pair.stalls
