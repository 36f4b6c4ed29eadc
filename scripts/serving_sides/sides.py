"""The clients by the name of their side."""

from __future__ import annotations

from typing import Literal, TypeAlias

from scripts.serving_sides.msgpack_service import RequestClient
from scripts.serving_sides.our_client import PATH, POLICY, OurClient
from scripts.serving_sides.scene import Exchange
from scripts.serving_sides.stock_client import StockClient

__all__ = ["SideName", "connect"]

SideName: TypeAlias = Literal["zmq", "grpc", "pickles", "stock", "msgpack"]
"""zmq, grpc: this project's client on its own server; pickles: LeRobot's client on this project's
server; stock: LeRobot's client on LeRobot's server; msgpack: REQ and REP."""

_STOCK_POLICY = "act"  # LeRobot's server serves only types of its own


def connect(side: SideName, address: str) -> Exchange:
    """The client of a side, for the server at HOST:PORT."""
    match side:
        case "stock":
            return StockClient(address, _STOCK_POLICY, "-")
        case "pickles":
            return StockClient(address, POLICY, PATH)
        case "msgpack":
            return RequestClient(address)
        case "grpc":
            from serving.transports.grpc_link import GrpcLink

            return OurClient(GrpcLink(address))
        case "zmq":
            from serving.transports.zmq_link import ZmqLink

            return OurClient(ZmqLink(address))
