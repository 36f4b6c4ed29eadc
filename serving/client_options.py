"""The options of the robot client, and what is made of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
import yaml

from common import endpoints
from common.program import OptionError, check_number
from serving.aggregation import choose
from serving.control_values import LoopOptions
from serving.link import Link
from serving.messages import BadMessage, Instructions, ServingError
from serving.split import FastHalfHere, load_here
from serving.supervisor import ConnectionOptions

__all__ = ["ClientOptions"]

Switch = tyro.conf.FlagConversionOff[bool]
_MOST_FPS = 1000.0


@dataclass(frozen=True)
class ClientOptions:
    """Run a robot from a policy server. The robot's own options are --robot.KEY VALUE.

    E.g. --robot.type so101_follower --robot.port /dev/ttyACM0; --robot.type simulated needs none.
    --config FILE reads options from a YAML file, the robot's from its `robot:` map.
    """

    policy_type: str
    """Type of the policy: act, smolvla, pi0, qwen_vla, builtin, …"""
    pretrained_name_or_path: str = ""
    """Where the policy is, as the server sees it."""
    server_address: str = f"localhost:{endpoints.GRPC.port}"
    """HOST:PORT of the policy server; tcp://HOST:PORT for ZeroMQ."""
    transport: Literal["auto", "grpc", "zmq"] = "auto"
    """How to talk to the server; auto is gRPC unless the address begins with tcp://."""
    policy_device: str = "cpu"
    """Where the server runs the policy: cpu, cuda, cuda:1, mps, auto."""
    client_device: str = "cpu"
    """Taken from LeRobot's command lines and not used: actions stay in this computer's memory."""
    task: str = ""
    """The instruction in words."""
    actions_per_chunk: int = 50
    """The most actions to be given at once."""
    chunk_size_threshold: float = 0.5
    """Ask for the next chunk when at most this part of one is left."""
    aggregate_fn_name: str = "weighted_average"
    """For actions both queued and new: weighted_average, latest_only, average, conservative, or
    module:function of yours."""
    fps: float = 30.0
    """Control ticks a second."""
    rename_map: str = ""
    """Observations of the robot that the policy knows by another name, as "{name: name, …}"."""
    resample: Switch = False
    """Follow chunks in time where their rows are not one control tick apart; otherwise one row is
    executed each tick."""
    low_pass_hz: float | None = None
    """Smooth the motion with a Butterworth low-pass of this cut-off; without it, not at all."""
    low_pass_order: int = 2
    """Order of the low-pass."""
    low_pass_except: tuple[str, ...] = ("gripper",)
    """Actions with one of these in their name are not smoothed."""
    max_input_age: float | None = None
    """Hold rather than execute what was computed from an observation that is older, in seconds;
    without it, the time a chunk spans and one second."""
    latch_stops: Switch = True
    """After an emergency stop or an error of the robot, hold until `resume` is typed; otherwise go
    on by itself as soon as the robot can be used again."""
    camera_timeout: float = 1.0
    """Hold when a camera has given no picture for so many seconds."""
    sensor_samples: int = 65
    """Samples of a force sensor that go with an observation, where the robot has one."""
    split: Switch = False
    """Run the policy's fast half on this computer (qwen_vla): pictures go to the server, features
    come back, and the robot carries on with them while the network is gone."""
    split_checkpoint: str = ""
    """--split: where the checkpoint is on this computer; without it, where it is on the server."""
    split_device: str = "auto"
    """--split: where the fast half runs: auto, cpu, cuda."""
    features_max_age: float = 2.0
    """--split: hold when the features are older than so many seconds."""
    must_go_after: float = 2.0
    """Ask again when an empty queue was not filled for so many seconds."""
    connect_timeout: float = 5.0
    """Seconds for the server to answer at the start (loading the policy is waited for)."""
    send_timeout: float = 3.0
    """The server is lost when it takes no observation for so many seconds."""
    answer_timeout: float = 15.0
    """The server is lost when an observation that must go has no answer for so many seconds."""
    reconnect_timeout: float = 60.0
    """Give up, with exit code 1, when a lost server is not back after so many seconds (loading the
    policy is waited for)."""
    token_file: Path | None = None
    """File with the token that the server asks for (gRPC)."""
    token_in_the_clear: Switch = False
    """Send the token without TLS to a server on another computer."""
    tls: Switch = False
    """Use TLS with the certificates that this computer trusts (gRPC)."""
    tls_ca: Path | None = None
    """PEM of the authority behind the server's certificate; switches TLS on."""
    tls_cert: Path | None = None
    """PEM of the client's own certificate, where the server asks for one."""
    tls_key: Path | None = None
    """PEM of its private key."""
    tls_name: str | None = None
    """The name in the server's certificate, where it is not the host's."""
    curve_keys: Path | None = None
    """Folder with client.key_secret and server.key (ZeroMQ)."""
    debug_visualize_queue_size: Switch = False
    """Write a picture of the action queue over time at the end."""
    queue_plot: Path | None = None
    """The picture's file; giving one writes it. Without it: action_queue.png."""
    summary: Path | None = None
    """Write what was counted to this file, as JSON, at the end."""
    duration: Annotated[float | None, tyro.conf.arg(metavar="S")] = None
    """Stop after so many seconds; without it, run until Ctrl+C."""

    def check(self) -> None:
        """Raise OptionError for a value that cannot be used."""
        check_number("--fps", self.fps, 0.1, _MOST_FPS)
        check_number("--actions_per_chunk", self.actions_per_chunk, 1, 4096)
        check_number("--chunk_size_threshold", self.chunk_size_threshold, 0, 1)
        check_number("--sensor_samples", self.sensor_samples, 1, 1 << 16)
        check_number("--low_pass_order", self.low_pass_order, 1, 8)
        if self.low_pass_hz is not None and not 0 < self.low_pass_hz < self.fps / 2:
            raise OptionError(
                f"--low_pass_hz must be above 0 and below {self.fps / 2:g}, half of --fps, "
                f"not {self.low_pass_hz:g}"
            )
        for name in ("camera_timeout", "must_go_after", "connect_timeout", "send_timeout"):
            check_number(f"--{name}", getattr(self, name), 0.01, 3600)
        for name in ("answer_timeout", "reconnect_timeout"):
            check_number(f"--{name}", getattr(self, name), 0.01, 1e6)
        if self.max_input_age is not None:
            check_number("--max_input_age", self.max_input_age, 0.01, 3600)
        check_number("--features_max_age", self.features_max_age, 0.01, 3600)
        if self.split and self.policy_type != "qwen_vla":
            raise OptionError(
                f"--split is for policies with two halves (qwen_vla), not {self.policy_type}"
            )
        self.address()
        self._rename()
        self.loop()

    @property
    def uses_zmq(self) -> bool:
        """Whether the server is talked to over ZeroMQ."""
        if self.transport == "auto":
            return self.server_address.startswith("tcp://")
        return self.transport == "zmq"

    def address(self) -> str:
        """HOST:PORT of the server; OptionError for what is none."""
        text = self.server_address.removeprefix("tcp://")
        host, colon, port = text.rpartition(":")
        if not (colon and host and port.isdecimal() and 1 <= int(port) <= 65_535):
            raise OptionError(
                f"--server_address must be HOST:PORT, e.g. "
                f"192.168.0.10:{endpoints.GRPC.port}, not {text!r}"
            )
        if self.transport == "grpc" and text != self.server_address:
            raise OptionError(
                "--server_address tcp://… is ZeroMQ: leave out tcp://, or --transport"
            )
        return text

    def plot_file(self) -> Path | None:
        """Where the picture of the queue goes; None for no picture."""
        if self.queue_plot is not None:
            return self.queue_plot
        return Path("action_queue.png") if self.debug_visualize_queue_size else None

    def loop(self) -> LoopOptions:
        """What the control loop is run with."""
        return LoopOptions(
            fps=self.fps,
            task=self.task,
            actions_per_chunk=self.actions_per_chunk,
            chunk_size_threshold=self.chunk_size_threshold,
            aggregation=choose(self.aggregate_fn_name),
            max_input_age_s=self.max_input_age,
            camera_timeout_s=self.camera_timeout,
            must_go_after_s=self.must_go_after,
            resample=self.resample,
            low_pass_hz=self.low_pass_hz,
            low_pass_order=self.low_pass_order,
            low_pass_except=self.low_pass_except,
            sensor_samples=self.sensor_samples,
        )

    def fast_half(self, instructions: Instructions) -> FastHalfHere | None:
        """The policy's fast half, with --split; OptionError where it cannot be used."""
        if not self.split:
            return None
        checkpoint = self.split_checkpoint or self.pretrained_name_or_path
        try:
            return load_here(instructions, checkpoint, self.split_device, self.features_max_age)
        except ServingError as error:
            raise OptionError(str(error)) from None

    def connection(self) -> ConnectionOptions:
        """What the connection is kept with."""
        return ConnectionOptions(
            connect_timeout_s=self.connect_timeout,
            send_timeout_s=self.send_timeout,
            answer_timeout_s=self.answer_timeout,
            reconnect_timeout_s=self.reconnect_timeout,
        )

    def instructions(
        self, state_names: tuple[str, ...], cameras: dict[str, tuple[int, int, int]]
    ) -> Instructions:
        """What is asked of the server for a robot; OptionError for what makes no sense."""
        try:
            return Instructions(
                policy_type=self.policy_type,
                path=self.pretrained_name_or_path,
                device=self.policy_device,
                actions_per_chunk=self.actions_per_chunk,
                state_names=state_names,
                cameras=cameras,
                rename=self._rename(),
                fps=self.fps,
            )
        except BadMessage as error:
            raise OptionError(str(error)) from None

    def _rename(self) -> dict[str, str]:
        try:
            found = yaml.safe_load(self.rename_map) if self.rename_map else {}
        except yaml.YAMLError:
            found = None
        if not isinstance(found, dict) or not all(
            isinstance(text, str) for pair in found.items() for text in pair
        ):
            raise OptionError('--rename_map must be names, as "{front: camera1, side: camera2}"')
        return found

    def link(self) -> Link:
        """The way to the server, not connected yet; OptionError for keys that cannot be used."""
        from serving.transports.security import AuthError, ClientKeys, Tls, read_token

        try:
            if self.uses_zmq:
                from serving.transports.zmq_link import ZmqLink

                keys = None if self.curve_keys is None else ClientKeys.load(self.curve_keys)
                return ZmqLink(self.address(), keys=keys)
            from serving.transports.grpc_link import GrpcLink

            wanted = self.tls or any((self.tls_ca, self.tls_cert, self.tls_name))
            tls = Tls(self.tls_ca, self.tls_cert, self.tls_key, self.tls_name)
            return GrpcLink(
                self.address(),
                token=None if self.token_file is None else read_token(self.token_file),
                tls=tls if wanted else None,
                token_in_the_clear=self.token_in_the_clear,
            )
        except (AuthError, ServingError) as error:
            raise OptionError(str(error)) from None
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in ("grpc", "google", "zmq"):
                raise
            raise OptionError(f"{error.name} is not installed: pip install '.[serving]'") from None
