"""The two sides of `bench_ingest.py`: this receiver's inputs, and the loop that rigs run today."""

from __future__ import annotations

import socket
import struct
import threading
from abc import ABC, abstractmethod
from collections import deque

import cv2
import msgpack
import numpy as np
import zmq

from common import endpoints, wire
from common.clock import Ticker
from common.counters import MalformedCounters
from receiver.decoding import Decoder
from receiver.episodes import Episodes
from receiver.inputs import CameraInput, RobotInput, SensorInput
from receiver.observation import Observer

__all__ = ["SAMPLE", "Ours", "Side", "Theirs"]

SAMPLE = struct.Struct(f"<ddf{wire.ALINE_LENGTH}f")
_VIEWS = tuple(f"View{number}" for number in range(1, 6))
_WINDOW = 65
_UPDATE_HZ = 2.5
_POLL_MS = 100


class Side(ABC):
    """Takes a rig's streams in, in this process, until closed."""

    def __init__(self) -> None:
        """Nothing runs yet."""
        self._stop = threading.Event()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._threads: list[threading.Thread] = []

    @abstractmethod
    def frames(self) -> int:
        """Frames taken in so far."""

    @abstractmethod
    def samples(self) -> int:
        """Samples taken in so far."""

    def close(self) -> None:
        """Stop and let go of the ports."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._context.destroy(linger=0)


class Ours(Side):
    """The receiver's own threads, and a slow loop that decodes five views 2.5 times a second."""

    def __init__(
        self, offset: int, image_size: tuple[int, int], sensor_offset: int | None = None
    ) -> None:
        """Listen on the usual ports and `offset`."""
        super().__init__()
        counters = MalformedCounters()
        ports = (endpoints.CAMERA.port + offset, endpoints.ROBOT.port + offset)
        self._cameras = CameraInput(self._context, "127.0.0.1", ports[0], _VIEWS, {}, counters)
        self._robot = RobotInput(self._context, "127.0.0.1", ports[1], Episodes(), counters)
        port = endpoints.SENSOR.port + (offset if sensor_offset is None else sensor_offset)
        rate_hz = endpoints.SENSOR.rate_hz
        self._sensor = SensorInput(
            "127.0.0.1", port, _WINDOW, wire.ALINE_LENGTH, rate_hz, 0.5, counters
        )
        self._observer = Observer(self._cameras, self._robot, self._sensor, _WINDOW)
        self._decoder = Decoder(image_size)
        for work in (self._cameras.run, self._robot.run, self._sensor.run, self._update):
            self._threads.append(threading.Thread(target=work, args=(self._stop,)))
            self._threads[-1].start()

    def _update(self, stop: threading.Event) -> None:
        for _ in Ticker(_UPDATE_HZ).ticks(stop):
            frames = self._observer.observe().frames
            self._decoder.decode({view: f.frame.jpeg for view, f in frames.items()})
        self._decoder.close()

    def frames(self) -> int:
        """Frames taken in so far."""
        return sum(stream.meter.total for stream in self._cameras.views.values())

    def samples(self) -> int:
        """Samples taken in so far."""
        return self._sensor.meter.total


class Theirs(Side):
    """One thread that polls: each frame decoded as it comes, each sample unpacked by itself."""

    def __init__(self, offset: int, sensor_offset: int | None = None) -> None:
        """Listen on the usual ports and `offset`."""
        super().__init__()
        self._cameras = self._context.socket(zmq.PULL)
        self._cameras.setsockopt(zmq.RCVHWM, endpoints.CAMERA.hwm)
        self._cameras.bind(endpoints.address("127.0.0.1", endpoints.CAMERA.port + offset))
        self._robot = self._context.socket(zmq.SUB)
        self._robot.setsockopt(zmq.SUBSCRIBE, b"robot_state")
        self._robot.connect(endpoints.address("127.0.0.1", endpoints.ROBOT.port + offset))
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        port = endpoints.SENSOR.port + (offset if sensor_offset is None else sensor_offset)
        self._udp.bind(("127.0.0.1", port))
        self._udp.setblocking(False)
        self._frames = self._samples = 0
        self.images: dict[str, object] = {}
        self.window: deque[tuple[float, ...]] = deque(maxlen=_WINDOW)
        self.state: tuple[float, ...] = ()
        self._threads.append(threading.Thread(target=self._run))
        self._threads[-1].start()

    def _run(self) -> None:
        poller = zmq.Poller()
        for sock in (self._cameras, self._robot, self._udp):
            poller.register(sock, zmq.POLLIN)
        while not self._stop.is_set():
            ready = dict(poller.poll(_POLL_MS))
            if self._cameras in ready:
                self._take_frame()
            if self._robot in ready:
                self.state = struct.unpack("<ddf12f", self._robot.recv_multipart()[1])
            if self._udp.fileno() in ready:
                self._take_samples(self._udp.recv(65_536))
        self._udp.close()

    def _take_frame(self) -> None:
        header, jpeg = self._cameras.recv_multipart()
        view = msgpack.unpackb(header)["camera"]
        self.images[view] = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        self._frames += 1

    def _take_samples(self, data: bytes) -> None:
        (count,) = struct.unpack_from("<I", data)
        for index in range(count):
            self.window.append(SAMPLE.unpack_from(data, 4 + index * SAMPLE.size))
        self._samples += count

    def frames(self) -> int:
        """Frames taken in so far."""
        return self._frames

    def samples(self) -> int:
        """Samples taken in so far."""
        return self._samples
