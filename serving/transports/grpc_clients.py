"""Who a gRPC call comes from.

Our clients name themselves in each call's metadata. LeRobot's do not: there the connection's
address stands for the client, and a client that reconnects comes from another address. It then goes
on with the session of its computer, where there is exactly one and it has gone quiet. With two
such robots on one computer nobody can tell which of them comes back: they must be restarted.
"""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from serving.messages import Chunk, FeatureReply, Instructions, ServingError
from serving.transports.refusals import SAY_READY, told_name

__all__ = ["Caller", "Clients", "host_of"]

_SESSION = re.compile(r"[0-9a-f]{32}")
_QUIET_S = 0.5
"""A LeRobot client asks for actions without a pause: one that is silent for so long has gone."""
_MOST_STRANGERS = 1024
_FORGOTTEN_S = 5.0


@dataclass(slots=True)
class Caller:
    """A client, as far as the transport is concerned.

    Attributes:
        name: what the engine knows it by.
        host: where it calls from.
        named: it is one of ours, which name themselves.
        began_at: when it last said Ready.
        instructions: what it last asked for; None until then.
        joined: it speaks our encoding, not LeRobot's pickles.
        uploads: observations that are being received from it.
        asking: GetActions that are open.
        loading: calls that wait for its policy.
        quiet_since: when its last call ended.
        unsent: an answer whose asker had gone, and when that was.
    """

    name: str
    host: str
    named: bool
    began_at: float
    instructions: Instructions | None = None
    joined: bool = False
    uploads: int = 0
    asking: int = 0
    loading: int = 0
    calls: int = 0
    quiet_since: float = 0.0
    unsent: tuple[Chunk | FeatureReply, float] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


def host_of(peer: str) -> str:
    """The host in what gRPC calls a peer, e.g. `ipv4:10.0.0.2:51234`."""
    return peer.rpartition(":")[0]


class Clients:
    """The callers that have said Ready; every method may be called from any thread."""

    def __init__(
        self, adopt: Callable[[str, str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`adopt(old, new)` tells the engine that a session goes on under another name."""
        self._adopt = adopt
        self._clock = clock
        self._callers: dict[str, Caller] = {}
        self._strangers: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def name(self, peer: str, session: str | None) -> str:
        """What the engine is to know a caller by."""
        if session and _SESSION.fullmatch(session):
            return told_name("grpc", session.encode())
        return peer

    def begin(self, peer: str, session: str | None) -> Caller:
        """Whoever says Ready: a caller with nothing behind it."""
        name, moment = self.name(peer, session), self._clock()
        caller = Caller(name, host_of(peer), name != peer, moment, quiet_since=moment)
        with self._lock:
            self._callers[name] = caller
            self._strangers.pop(name, None)
        return caller

    def drop_but(self, kept: frozenset[str]) -> None:
        """Forget those that the engine has forgotten and that are not calling."""
        with self._lock:
            for name, caller in list(self._callers.items()):
                quiet_s = self._clock() - caller.quiet_since
                # One that began a moment ago may be missing from a list made before.
                if name not in kept and not caller.calls and quiet_s > _FORGOTTEN_S:
                    del self._callers[name]

    @contextmanager
    def calling(self, peer: str, session: str | None) -> Iterator[Caller]:
        """Whoever calls, for the length of a call; ServingError("no_session") for a stranger."""
        caller = self._find(peer, session)
        try:
            yield caller
        finally:
            with self._lock:
                caller.calls -= 1
                caller.quiet_since = self._clock()

    def _find(self, peer: str, session: str | None) -> Caller:
        name = self.name(peer, session)
        with self._lock:
            caller = self._callers.get(name)
            if caller is None and name == peer:
                caller = self._reconnected(peer)
            if caller is None:
                raise ServingError("no_session", SAY_READY)
            caller.calls += 1
            return caller

    def _reconnected(self, peer: str) -> Caller | None:
        """The caller that this new address can only be, None where that is not plain.

        A session that began after this address was first seen is somebody else's: say the server
        was restarted with two robots on one computer, and only one of them has said Ready since.
        """
        host, moment = host_of(peer), self._clock()
        first_seen = self._strangers.setdefault(peer, moment)
        while len(self._strangers) > _MOST_STRANGERS:
            self._strangers.popitem(last=False)
        own = [c for c in self._callers.values() if c.host == host and not c.named]
        if len(own) != 1 or own[0].began_at > first_seen:
            return None
        (caller,) = own
        if caller.calls or moment - caller.quiet_since < _QUIET_S:
            return None
        self._adopt(caller.name, peer)
        del self._callers[caller.name], self._strangers[peer]
        caller.name = peer
        self._callers[peer] = caller
        return caller
