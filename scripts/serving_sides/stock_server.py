"""LeRobot's own policy server with a policy that repeats the state.

Of `lerobot.async_inference.policy_server` this replaces, by name in that module:

- `get_policy_class`: gives a class whose `predict_action_chunk` repeats the state;
- `make_pre_post_processors`: gives two that hand through what they get;
- without `--prepare`, `raw_observation_to_observation`: takes the state and leaves the pictures
  alone, as the policy behind the other sides does.

All else is LeRobot's: the gRPC service with its four threads, the chunks put together, the
pickles, the filter, the queue, the loop over the chunk's rows, its log on the terminal and in a
file.
"""

from __future__ import annotations

import sys
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if __package__ in (None, ""):
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from common import cli
from scripts.serving_sides.scene import ACTION_ROWS, CAMERAS, HEIGHT, WIDTH

_WORKERS = 4  # as in LeRobot's own `serve`


@dataclass(frozen=True)
class StockServerOptions:
    """Serve until stopped."""

    port: int
    """On 127.0.0.1."""
    prepare: bool = False
    """With LeRobot's own conversion of the pictures into tensors of the policy's size."""


class RepeatsTheState:
    """Stands in for a policy of LeRobot's: every row of the chunk is the state."""

    def __init__(self) -> None:
        """Pictures are wanted in the size in which they come."""
        shape = SimpleNamespace(shape=(3, HEIGHT, WIDTH))
        names = [f"observation.images.{name}" for name in CAMERAS]
        self.config = SimpleNamespace(image_features=dict.fromkeys(names, shape))

    @classmethod
    def from_pretrained(cls, _path: str) -> RepeatsTheState:
        """No weights."""
        return cls()

    def to(self, _device: str) -> RepeatsTheState:
        """Nothing to move."""
        return self

    def predict_action_chunk(self, observation: dict[str, Any]) -> Any:
        """The tensor (1, 50, 6)."""
        return observation["observation.state"].expand(1, ACTION_ROWS, -1).clone()


def _handed_through(value: Any) -> Any:
    return value


def _state_alone(raw: dict[str, Any], features: dict[str, Any], _pictures: Any) -> dict[str, Any]:
    import torch

    values = [raw[name] for name in features["observation.state"]["names"]]
    return {"observation.state": torch.tensor(values, dtype=torch.float32).unsqueeze(0)}


def main() -> int:
    """Serve as LeRobot's `serve` does; the exit code."""
    options = cli.parse(StockServerOptions)
    import grpc
    from lerobot.async_inference import policy_server as stock
    from lerobot.async_inference.configs import PolicyServerConfig
    from lerobot.transport import services_pb2_grpc

    stock.get_policy_class = lambda _name: RepeatsTheState
    stock.make_pre_post_processors = lambda *_, **__: (_handed_through, _handed_through)
    if not options.prepare:
        stock.raw_observation_to_observation = _state_alone
    config = PolicyServerConfig(host="127.0.0.1", port=options.port, inference_latency=0.0)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=_WORKERS))
    services_pb2_grpc.add_AsyncInferenceServicer_to_server(stock.PolicyServer(config), server)
    server.add_insecure_port(f"127.0.0.1:{options.port}")
    server.start()
    server.wait_for_termination()
    return 0


if __name__ == "__main__":
    sys.exit(main())
