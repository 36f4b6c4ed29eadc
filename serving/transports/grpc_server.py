"""The gRPC end of the policy server: LeRobot's service, for its clients and for ours.

A message's first bytes say who wrote it: our magic, or a pickle's 0x80. Pickles are read by
`serving.pickles`, which executes nothing. An error is a gRPC status with one line that says what to
do; LeRobot's client logs it and goes on asking.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc

from common.endpoints import address
from serving.engine import Engine
from serving.engine_options import EngineOptions
from serving.messages import MAX_MESSAGE, ServingError
from serving.transports import protobuf
from serving.transports.grpc_calls import MOST_ASKING, MOST_LOADING, Calls
from serving.transports.grpc_common import END_SERVICE, MAX_PART, metadata_value
from serving.transports.grpc_uploads import MOST_UPLOADS, UPLOAD_TIMEOUT_S
from serving.transports.refusals import Refusals
from serving.transports.security import bearer_matches

__all__ = ["CannotListen", "GrpcServer"]

logger = logging.getLogger("serving.grpc")

_SPARE_CALLS = 32
_MOST_THREADS = 1024


class CannotListen(Exception):
    """gRPC does not listen there, and does not say why."""


class GrpcServer:
    """Listens, and turns calls into calls of the engine. Threads: one a call, bounded."""

    def __init__(
        self,
        engine: Engine,
        options: EngineOptions,
        host: str,
        port: int,
        *,
        refusals: Refusals | None = None,
        token: str | None = None,
        credentials: Any = None,
        upload_timeout_s: float = UPLOAD_TIMEOUT_S,
    ) -> None:
        """Listen at once; CannotListen where that cannot be. `port` 0 takes any: see `port`."""
        self.refusals = refusals or Refusals()
        self._token = token
        self._calls = Calls(engine, options, self.refusals, upload_timeout_s)
        # Each client has a GetActions and an observation under way, or waits for its policy, and
        # may have given up as many.
        most_calls = MOST_ASKING + MOST_UPLOADS + MOST_LOADING
        most_calls = most_calls * options.most_sessions + _SPARE_CALLS
        most_calls = min(most_calls, _MOST_THREADS)
        self._server = grpc.server(
            futures.ThreadPoolExecutor(most_calls, thread_name_prefix="grpc"),
            maximum_concurrent_rpcs=most_calls,
            options=[
                ("grpc.max_receive_message_length", MAX_PART),
                ("grpc.max_send_message_length", MAX_MESSAGE),
                # Two servers on one port would share the robots between them.
                ("grpc.so_reuseport", 0),
                # Of one connection. A client has one or two calls open; an upload that was refused
                # before its end counts for a while longer, and some try again at once.
                ("grpc.max_concurrent_streams", 64),
                # Our clients ask every second whether we are there, also while a policy loads.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
                ("grpc.http2.max_ping_strikes", 0),
                ("grpc.keepalive_permit_without_calls", 1),
                # A client whose network was cut holds its session's calls for no longer than this.
                ("grpc.keepalive_time_ms", 10_000),
                ("grpc.keepalive_timeout_ms", 5_000),
                ("grpc.http2.ping_timeout_ms", 5_000),
            ],
        )
        self._server.add_generic_rpc_handlers((self._handlers(), self._own_handlers()))
        where = address(host, port).removeprefix("tcp://")
        try:
            if credentials is None:
                self.port = self._server.add_insecure_port(where)
            else:
                self.port = self._server.add_secure_port(where, credentials)
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise CannotListen(where)
        self._server.start()

    def _handlers(self) -> Any:
        empty, actions = protobuf.Empty, protobuf.Actions
        calls, guarded = self._calls, self._guarded
        unary = grpc.unary_unary_rpc_method_handler
        return grpc.method_handlers_generic_handler(
            protobuf.SERVICE,
            {
                "Ready": unary(
                    guarded(calls.ready), empty.FromString, empty.SerializeToString
                ),
                "SendPolicyInstructions": unary(
                    guarded(calls.instruct),
                    protobuf.PolicySetup.FromString,
                    empty.SerializeToString,
                ),
                "SendObservations": grpc.stream_unary_rpc_method_handler(
                    guarded(calls.observe),
                    None,  # read by `protobuf.read_part`
                    empty.SerializeToString,
                ),
                "GetActions": unary(
                    guarded(calls.answer), empty.FromString, actions.SerializeToString
                ),
            },
        )  # fmt: skip

    def _own_handlers(self) -> Any:
        end = grpc.unary_unary_rpc_method_handler(
            self._guarded(self._calls.end),
            protobuf.Empty.FromString,
            protobuf.Empty.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(END_SERVICE, {"End": end})

    def _guarded(self, call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """The call behind the token, and with refusals as statuses."""

        def guarded(request: Any, context: Any) -> Any:
            try:
                if self._token is not None:
                    given = metadata_value(context.invocation_metadata(), "authorization")
                    if not bearer_matches(self._token, given):
                        raise ServingError(
                            "not_allowed", "a token is needed, the one in the server's --token_file"
                        )
                return call(request, context)
            except ServingError as error:
                refused = error
            except Exception:
                logger.exception("[SERVER] an error of the server's own")
                refused = ServingError("failed", "an error of the server's own; its log has it")
            self.refusals.add("grpc", context.peer(), refused.kind, str(refused))
            self._calls.refuse(context, refused)

        return guarded

    def close(self, grace_s: float = 0.5) -> None:
        """Stop listening; calls that are under way are ended after `grace_s`."""
        self._calls.closing.set()
        self._server.stop(grace_s).wait(grace_s + 5.0)
        self._calls.close()
