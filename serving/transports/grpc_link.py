"""A client's link to a policy server over gRPC: this project's, or LeRobot's own.

Which of the two answers is found out at Ready: ours says so in the answer's metadata and is then
spoken to in our encoding; LeRobot's gets the pickles that it expects.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, cast, get_args

import grpc

from serving.link import LinkLost, Loading
from serving.messages import (
    MAX_MESSAGE,
    BadMessage,
    Chunk,
    FeatureReply,
    Instructions,
    Observation,
    Refusal,
    RefusalKind,
    ServingError,
)
from serving.packed import encode, join, split
from serving.pickles import lerobot
from serving.transports import protobuf
from serving.transports.grpc_common import (
    END_METHOD,
    OURS,
    REFUSAL,
    SESSION,
    STATUS,
    metadata_value,
    method,
)
from serving.transports.refusals import one_line
from serving.transports.security import Tls, is_loopback
from serving.unpacked import decode_reply

__all__ = ["GrpcLink"]

_KEEPALIVE_S = 1.0
_KEEPALIVE_TIMEOUT_S = 2.0
"""Our server is asked every second whether it is there, and given up two seconds later: a network
that was cut without a word is noticed in three. A stock server ends the connection after a few
pings that are not five minutes apart ("too_many_pings"); with it, `begin`, `send` and `receive`
notice by their own time."""
_LOOK_S = 0.5
_LOADING_MOST_S = 1800.0
_BYE_S = 1.0
_STOCK_SILENT_S = 20.0
"""LeRobot's server answers each GetActions after its obs_queue_timeout, 2 s unless told otherwise,
or a prediction; one that says nothing for so long is not there. `send` notices sooner."""
_STOCK_LOADING_SILENT_S = 60.0
"""The same while it loads a policy: that can keep its interpreter from anything else for long, and
to begin again would have it load the policy twice."""
_LOST = {"UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED"}
_KINDS: dict[str, RefusalKind] = {
    # Two kinds are INVALID_ARGUMENT; without our metadata it stands for the first of them.
    **{status: kind for kind, status in reversed(STATUS.items())},
    "UNKNOWN": "failed",
    "PERMISSION_DENIED": "not_allowed",
    "UNIMPLEMENTED": "bad_message",
}


class GrpcLink:
    """Implements `serving.link.Link`."""

    def __init__(
        self,
        address: str,
        *,
        token: str | None = None,
        tls: Tls | None = None,
        token_in_the_clear: bool = False,
    ) -> None:
        """`address` is host:port.

        ServingError where the token would travel unprotected, AuthError for unusable files.
        """
        host = address.rpartition(":")[0]
        if token and tls is None and not token_in_the_clear and not is_loopback(host):
            raise ServingError(
                "not_allowed",
                f"the token would travel to {address} for all to read: use TLS (--tls_ca)",
            )
        self._address = address
        self._credentials = None if tls is None else tls.credentials()
        self._server_name = None if tls is None else tls.name
        self._metadata: tuple[tuple[str, str], ...] = ((SESSION, uuid.uuid4().hex),)
        if token:
            self._metadata += (("authorization", f"Bearer {token}"),)
        self._connection: _Connection | None = None
        self._instructions: Instructions | None = None
        self._starting: Any = None
        self._lock = threading.Lock()
        self._closed = False

    @property
    def stock(self) -> bool | None:
        """Whether LeRobot's own server answered; None before one has."""
        connection = self._connection
        return None if connection is None else connection.stock

    def begin(self, instructions: Instructions, timeout_s: float) -> None:
        """See `Link.begin`. It takes half an hour at most."""
        deadline = time.monotonic() + timeout_s
        self._drop()
        connection = self._connect(True)
        try:
            stock = self._ready(connection, deadline)
            if stock:
                # Again without keepalive, which a stock server does not take.
                connection.close()
                connection = self._connect(False)
                self._ready(connection, deadline)
            data = lerobot.encode_setup(instructions) if stock else join(encode(instructions))
            call = connection.instruct.future(
                protobuf.PolicySetup(data=data), timeout=_LOADING_MOST_S, metadata=self._metadata
            )
            loading = Loading(self._address)

            def look() -> None:
                # Of ours keepalive would have ended the call.
                if not stock or connection.is_heard(self._metadata):
                    loading.heard()

            self._finish(call, look)
        except BaseException:
            connection.close()
            raise
        connection.stock = stock
        with self._lock:
            if self._closed:
                connection.close()
                raise LinkLost("the link was closed")
            self._instructions, self._connection = instructions, connection

    def _connect(self, keepalive: bool) -> _Connection:
        return _Connection(self._address, self._credentials, self._server_name, keepalive)

    def _ready(self, connection: _Connection, deadline: float) -> bool:
        """Say Ready; whether it is LeRobot's server that answers."""
        left_s = max(deadline - time.monotonic(), 0.001)
        call = connection.ready.future(
            protobuf.Empty(), timeout=left_s, metadata=self._metadata, wait_for_ready=False
        )
        self._finish(call)
        return metadata_value(call.initial_metadata(), OURS) is None

    def _finish(self, call: Any, look: Callable[[], None] = lambda: None) -> Any:
        """Wait for a call that `close` may cancel; `look`, called meanwhile, may give it up."""
        with self._lock:
            if self._closed:
                call.cancel()
            self._starting = call
        try:
            while True:
                with contextlib.suppress(grpc.FutureTimeoutError):
                    return call.result(_LOOK_S)
                look()
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            _raise(error, self._address)
        finally:
            self._starting = None

    def send(self, observation: Observation, timeout_s: float) -> None:
        """See `Link.send`."""
        connection, instructions = self._open()
        if connection.stock:
            data = lerobot.encode_observation(observation, instructions)
        else:
            data = join(encode(observation))
        if len(data) > MAX_MESSAGE:
            raise BadMessage(f"an observation over {MAX_MESSAGE >> 20} MiB")
        try:
            connection.observe(protobuf.parts(data), timeout=timeout_s, metadata=self._metadata)
        except (grpc.RpcError, ValueError) as error:
            _raise(error, self._address)

    def receive(self, timeout_s: float) -> Chunk | FeatureReply | None:
        """See `Link.receive`.

        A request that was not answered in time stays open and is gone on with in the next call:
        giving it up could lose the answer.
        """
        connection, _ = self._open()
        try:
            return self._receive(connection, timeout_s)
        except ServingError:
            if self._closed:  # it was asked for while the session was being ended
                raise LinkLost("closed") from None
            raise

    def _receive(self, connection: _Connection, timeout_s: float) -> Chunk | FeatureReply | None:
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                data = connection.answer(left_s, self._metadata)
            except grpc.FutureTimeoutError:
                return None
            except (grpc.RpcError, grpc.FutureCancelledError, ValueError) as error:
                _raise(error, self._address)
            if data and connection.stock:
                return lerobot.decode_actions(data)
            if data:
                reply = decode_reply(split(data))
                if isinstance(reply, Refusal):
                    raise ServingError(reply.kind, reply.message)
                return reply
        return None

    def _open(self) -> tuple[_Connection, Instructions]:
        with self._lock:
            if self._connection is None or self._instructions is None:
                raise LinkLost("not connected")
            return self._connection, self._instructions

    def _drop(self) -> None:
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """See `Link.close`. Our server is told, so that it need not find out."""
        with self._lock:
            self._closed, starting, connection = True, self._starting, self._connection
        if starting is not None:
            starting.cancel()
        if connection is not None:
            connection.give_up()
        if connection is not None and not connection.stock:
            with contextlib.suppress(grpc.RpcError, ValueError):
                connection.end(protobuf.Empty(), timeout=_BYE_S, metadata=self._metadata)
        self._drop()


@dataclass(slots=True)
class _Asked:
    """A GetActions that is open."""

    call: Any
    since: float


class _Connection:
    """One channel; made anew for each `begin`, so that no backoff of an old one is waited for."""

    def __init__(self, address: str, credentials: Any, name: str | None, keepalive: bool) -> None:
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            ("grpc.max_send_message_length", MAX_MESSAGE),
            # What is refused or lost is for the client to know, not for the channel to try again.
            ("grpc.enable_retries", 0),
            # Channels to one address would share a connection, and how long it waits to try again.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if keepalive:
            options += [
                ("grpc.keepalive_time_ms", int(1000 * _KEEPALIVE_S)),
                ("grpc.keepalive_timeout_ms", int(1000 * _KEEPALIVE_TIMEOUT_S)),
                # Newer versions of the library go by this instead; it is a minute otherwise.
                ("grpc.http2.ping_timeout_ms", int(1000 * _KEEPALIVE_TIMEOUT_S)),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.max_pings_without_data", 0),
            ]
        if name is not None:
            options.append(("grpc.ssl_target_name_override", name))
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            self._channel = grpc.secure_channel(address, credentials, options)
        empty = protobuf.Empty
        unary = self._channel.unary_unary
        self.ready = unary(method("Ready"), empty.SerializeToString, empty.FromString)
        self.instruct = unary(
            method("SendPolicyInstructions"),
            protobuf.PolicySetup.SerializeToString,
            empty.FromString,
        )
        # The parts come serialized.
        self.observe = self._channel.stream_unary(
            method("SendObservations"), None, empty.FromString
        )
        self._answer = unary(
            method("GetActions"), empty.SerializeToString, protobuf.Actions.FromString
        )
        self.end = unary(END_METHOD, empty.SerializeToString, empty.FromString)
        self._asked: _Asked | None = None
        self.stock = False

    def answer(self, timeout_s: float, metadata: Any) -> bytes:
        """What GetActions gives, empty for nothing; grpc.FutureTimeoutError when not in time."""
        asked = self._ask(metadata)
        try:
            data: bytes = asked.call.result(timeout_s).data
        except grpc.FutureTimeoutError:
            if self.stock and time.monotonic() - asked.since > _STOCK_SILENT_S:
                asked.call.cancel()
                self._asked = None
                raise LinkLost(f"no answer to GetActions for {_STOCK_SILENT_S:g} s") from None
            raise
        except BaseException:
            self._asked = None
            raise
        self._asked = None
        return data

    def is_heard(self, metadata: Any) -> bool:
        """Whether LeRobot's server, which is loading, has answered since the last call.

        Asked for actions it says before long that there are none, also while it loads, and nothing
        is lost by asking. LinkLost when it has said nothing for a minute.
        """
        asked = self._ask(metadata)
        if asked.call.done():  # whatever it says, it is there
            self._asked = None
            return True
        if time.monotonic() - asked.since > _STOCK_LOADING_SILENT_S:
            limit_s = _STOCK_LOADING_SILENT_S
            raise LinkLost(f"no answer to GetActions for {limit_s:g} s while it loads the policy")
        return False

    def _ask(self, metadata: Any) -> _Asked:
        """The GetActions that is open."""
        if self._asked is None:
            call = self._answer.future(protobuf.Empty(), metadata=metadata)
            self._asked = _Asked(call, time.monotonic())
        return self._asked

    def give_up(self) -> None:
        """Wait no longer for the answer that is asked for."""
        if (asked := self._asked) is not None:
            asked.call.cancel()

    def close(self) -> None:
        """End every call."""
        self._channel.close()


def _raise(error: Exception, address: str) -> NoReturn:
    """LinkLost where the server cannot be reached, ServingError where it refuses."""
    if not isinstance(error, grpc.Call):
        raise LinkLost(f"{address}: the connection was ended") from None
    status, details = error.code().name, one_line(error.details() or "")
    kind = metadata_value(error.trailing_metadata(), REFUSAL)
    if kind in get_args(RefusalKind):
        raise ServingError(cast(RefusalKind, kind), details) from None
    if status in _LOST:
        raise _lost(status, details, address) from None
    if status == "UNIMPLEMENTED":
        details = f"{address} is no policy server ({details})"
    raise ServingError(_KINDS.get(status, "failed"), details) from None


def _lost(status: str, details: str, address: str) -> Exception:
    low = details.lower()
    if "certificate" in low or "handshake" in low or "ssl" in low:
        return ServingError(
            "not_allowed", f"{address}: TLS failed ({details}); does --tls_ca fit the server?"
        )
    if status == "DEADLINE_EXCEEDED":
        return LinkLost(f"{address} did not answer in time")
    return LinkLost(f"{address} cannot be reached ({details or status.lower()})")
