"""The policy server's options."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from common import endpoints
from common.program import OptionError, check_number
from serving.engine_options import EngineOptions

__all__ = ["ServerOptions"]

# The engine's name of a setting → the option's, where that is not the name without its unit.
_OPTIONS = {
    "most_sessions": "max_clients",
    "most_policies": "max_policies",
    "most_batched": "max_batch",
    "unchanged_for_s": "unchanged_for",
}


@dataclass(frozen=True)
class ServerOptions:
    """Serve policies to robots and simulators: over gRPC as LeRobot's server does, and ZeroMQ."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every network of this computer."""
    port: int = endpoints.GRPC.port
    """TCP port for gRPC."""
    zmq_port: int = endpoints.SERVING.port
    """TCP port for ZeroMQ; 0 does without."""
    grpc: bool = True
    """Listen for gRPC."""
    fps: float = 30.0
    """Control rate of clients that do not say theirs: their actions are 1/fps apart."""
    inference_latency: float = 0.033
    """Seconds that a prediction takes at least; a faster one is held back, a slower one is not."""
    obs_queue_timeout: float = 1.0
    """Seconds that a request for actions waits for an observation."""
    inference_timeout: float = 10.0
    """Seconds after which a prediction is taken for hung."""
    load_timeout: float = 600.0
    """Seconds that a client waits for its policy to load."""
    session_timeout: float = 60.0
    """Seconds after which a client that says nothing is forgotten."""
    max_clients: int = 64
    """Clients at once."""
    max_policies: int = 4
    """Policies in memory at once."""
    max_batch: int = 16
    """Observations in one prediction."""
    batch_window: float = 0.0
    """Seconds that a prediction waits for further clients."""
    similarity: float = 0.0
    """Leave out observations whose joints moved less than this share of their ranges."""
    joint_ranges: Annotated[
        dict[str, tuple[float, float]], tyro.conf.arg(metavar="NAME LOW HIGH …")
    ] = field(default_factory=dict)
    """--similarity: ranges by the joints' names; of others, what the client has shown so far."""
    unchanged_for: float = 1.0
    """Seconds for which an observation of an unmoved robot is left out."""
    features_max_age: float = 2.0
    """Seconds for which a dual-rate policy acts on the same features."""
    preload: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TYPE:PATH[@DEVICE]")] = ()
    """Policies to load before the first client asks; DEVICE is cpu unless given."""
    policy_roots: tuple[Path, ...] = ()
    """Folders that policies may be loaded from; without it, from anywhere."""
    allow_downloads: bool = False
    """Let clients have policies downloaded from a hub."""
    torch_threads: int = 0
    """Threads that PyTorch computes with; 0: as many as it likes, and half the cores for policies
    that are loaded from the first qwen_vla on."""
    tls_cert: Path | None = None
    """gRPC: this server's certificate, PEM."""
    tls_key: Path | None = None
    """gRPC: its private key, PEM."""
    tls_client_ca: Path | None = None
    """gRPC: clients must show a certificate that this one vouches for."""
    token_file: Path | None = None
    """gRPC: clients must show the token in this file."""
    curve_keys: Path | None = None
    """ZeroMQ: folder of this server's keys and the clients' that may come in (DIR/server)."""
    make_keys: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Make the keys for --curve_keys and those of one more client in DIR, and leave."""
    metrics_json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write counts and times here every few seconds and at the end."""
    config: Path | None = None
    """YAML file with any of these options; the command line wins over it."""
    duration: Annotated[float | None, tyro.conf.arg(metavar="S")] = None
    """Stop after so many seconds; without it, run until Ctrl+C."""

    def check(self) -> None:
        """Raise OptionError for a value that cannot be used."""
        check_number("--port", self.port, 1, 65_535)
        check_number("--zmq_port", self.zmq_port, 0, 65_535)
        if not self.grpc and not self.zmq_port:
            raise OptionError("--no-grpc and --zmq_port 0 leave nothing to listen on")
        if self.grpc and self.port == self.zmq_port:
            raise OptionError("--port and --zmq_port must differ")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise OptionError("--tls_cert and --tls_key belong together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise OptionError("--tls_client_ca needs --tls_cert and --tls_key")
        for text in self.preload:
            if not all(text.partition(":")[::2]):
                raise OptionError(f"--preload {text}: TYPE:PATH expected, e.g. act:/models/cube")
        self.engine()

    def engine(self) -> EngineOptions:
        """The engine's share; OptionError for a value that cannot be used."""
        try:
            return EngineOptions(
                fps=self.fps,
                inference_latency_s=self.inference_latency,
                obs_queue_timeout_s=self.obs_queue_timeout,
                inference_timeout_s=self.inference_timeout,
                load_timeout_s=self.load_timeout,
                session_timeout_s=self.session_timeout,
                most_sessions=self.max_clients,
                similarity=self.similarity,
                joint_ranges=self.joint_ranges,
                unchanged_for_s=self.unchanged_for,
                most_batched=self.max_batch,
                batch_window_s=self.batch_window,
                most_policies=self.max_policies,
                features_max_age_s=self.features_max_age,
                policy_roots=tuple(str(root) for root in self.policy_roots),
                allow_downloads=self.allow_downloads,
                torch_threads=self.torch_threads,
            )
        except ValueError as error:
            name, _, rest = str(error).partition(" ")
            raise OptionError(f"--{_OPTIONS.get(name, name.removesuffix('_s'))} {rest}") from None
