"""Speaks the Meca500's text protocol on its two ports and moves an arm kinematically.

It listens on a loopback address of its own (all of 127.0.0.0/8 is this machine), with the ports
that the maker's library connects to, so that the library runs as it is. Codes and answers are those
of Mecademic's programming manual and of the library's `mx_robot_def`.
"""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.kinematics import MECA500, flange_pose, flange_transform
from senders.robots.meca500_motion import rotation_vector_deg

CONTROL_PORT, MONITOR_PORT = 10_000, 10_001
ESTOP, PSTOP2, CONNECTION_DROPPED = 3070, 3032, 3086
HOME = (0.0, -10.0, 20.0, 0.0, 35.0, 0.0)


def own_address() -> str:
    """A loopback address on which both of the robot's ports are free."""
    for _ in range(20):
        host = f"127.{random.randint(1, 250)}.{random.randint(0, 250)}.{random.randint(2, 250)}"
        try:
            for port in (CONTROL_PORT, MONITOR_PORT):
                with socket.socket() as probe:
                    probe.bind((host, port))
        except OSError:
            continue
        return host
    raise AssertionError(f"ports {CONTROL_PORT} and {MONITOR_PORT} are taken on every address")


def jacobian(joints_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    """(6, 6): mm and degrees (about the base's axes) of the flange for a degree of each joint."""
    rotation, position = flange_transform(joints_deg)
    columns = []
    for k in range(6):
        turned, moved = flange_transform(joints_deg + 1e-4 * np.eye(6)[k])
        turn = rotation_vector_deg(turned @ rotation.T)
        columns.append(np.concatenate([moved - position, turn]) / 1e-4)
    return np.column_stack(columns)


class FakeMeca500:
    """A robot: `start`, misuse it, `stop`; everything that it is told is kept in `told`."""

    def __init__(self, firmware: str = "10.2.5", host: str | None = None) -> None:
        self.host, self.firmware = host or own_address(), firmware
        self.version = tuple(int(part) for part in firmware.split("."))
        self.told: list[tuple[float, str, list[float]]] = []
        self.unknown: list[str] = []
        self.joints = np.array(HOME)
        self.activated = self.homed = self.paused = self.cleared = False
        self.error: tuple[int, str] | None = None
        self.resettable = self.mute = False
        self.takes_timeout = True
        self.stops: dict[int, int] = {}
        self.activating_s = self.homing_s = 0.05
        self.delay_s = 0.0
        self.timeout_s, self.interval_s = 0.05, 0.015
        self.trf: list[float] = [1.0] * 6  # somebody's tool, from before
        self.events: list[int] = []
        self._queue: list[tuple[str, NDArray[np.float64]]] = []
        self._velocity: tuple[str, NDArray[np.float64], float] | None = None
        self._lock = threading.RLock()
        self._released = threading.Condition(self._lock)
        self._stop = threading.Event()

    # --- what a test does to it -------------------------------------------------------------------

    def start(self) -> FakeMeca500:
        """Switch it on: deactivated, not homed, its clock at zero."""
        self._stop = threading.Event()
        self._boot = self._moved_at = time.monotonic() - 5.0
        self._moved_at = time.monotonic()
        self._control: socket.socket | None = None
        self._monitors: list[socket.socket] = []
        self._ctrl_monitoring = self._json = False
        self.activated = self.homed = self.paused = self.cleared = False
        self._listeners = [self._listen(CONTROL_PORT), self._listen(MONITOR_PORT)]
        takers = (self._serve_control, self._serve_monitor)
        for listener, serve in zip(self._listeners, takers, strict=True):
            threading.Thread(target=self._accept, args=(listener, serve), daemon=True).start()
        self._simulator = threading.Thread(target=self._simulate, daemon=True)
        self._simulator.start()
        return self

    def stop(self) -> None:
        """Switch it off."""
        self._stop.set()
        for listener in self._listeners:
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut()
        self._simulator.join(5)

    def cut(self) -> None:
        """End all connections."""
        with self._lock:
            links = [*self._monitors, *([self._control] if self._control else [])]
            self._monitors, self._control = [], None
            self._velocity = None
            self._released.notify_all()
        for link in links:
            try:
                link.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            link.close()

    def fail(self, code: int = 3005, text: str = "Motion error") -> None:
        """Go into error."""
        with self._lock:
            self.error, self.paused, self.cleared = (code, text), True, True
            self._velocity = None
            self._say_all(f"[{code}][{text}.]")
            self._say_all(self._status())

    def set_stop(self, code: int, state: int) -> None:
        """A safety stop: 1 active, 2 over but not reset, 0 reset."""
        with self._lock:
            self.stops[code] = state
            if state == 1:
                self._velocity, self.paused = None, True
                if code == ESTOP:
                    self.activated = self.homed = False
            self._say_all(f"[{code}][{state}]")
            self._say_all(self._status())

    def pause(self) -> None:
        """Pause its motion, as by something else than the program under test."""
        with self._lock:
            self.paused, self._velocity = True, None
            self._say_all("[2042][Motion paused.]")
            self._say_all(self._status())

    def count(self, name: str) -> int:
        """How often a command was given."""
        return sum(told == name for _, told, _ in list(self.told))

    def last(self, name: str) -> list[float]:
        """The arguments that a command was last given with."""
        return [arguments for _, told, arguments in list(self.told) if told == name][-1]

    @property
    def controlled(self) -> bool:
        """Whether something is connected to its control port."""
        return self._control is not None

    @property
    def moving(self) -> bool:
        """Whether it obeys a velocity other than zero at this moment."""
        velocity = self._velocity
        return velocity is not None and time.monotonic() < velocity[2] and bool(velocity[1].any())

    @property
    def resting(self) -> bool:
        """Whether it has come to rest."""
        return self._velocity is None

    # --- the connections --------------------------------------------------------------------------

    def _listen(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host, port))
        listener.listen()
        return listener

    def _accept(self, listener: socket.socket, serve: Callable[[socket.socket], None]) -> None:
        while not self._stop.is_set():
            try:
                link, _ = listener.accept()
            except OSError:
                return
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=serve, args=(link,), daemon=True).start()

    def _serve_monitor(self, link: socket.socket) -> None:
        with self._lock:
            self._monitors.append(link)
            self._say(link, self._welcome())
            self._say_state(link)

    def _welcome(self) -> str:
        return f"[3000][Connected to Meca500 R4 v{self.firmware}]"

    def _serve_control(self, link: socket.socket) -> None:
        with self._lock:
            # Who has just left is noticed by another thread, which may be slower than who comes.
            if not self._released.wait_for(lambda: self._control is None, 0.5):
                self._say(link, "[3001][Another user is already connected.]")
                link.close()
                return
            self._control, self._ctrl_monitoring, self._json = link, False, False
            self._say(link, self._welcome())
        rest = ""
        while True:
            try:
                data = link.recv(4096)
            except OSError:
                data = b""
            if not data:
                break
            *lines, rest = (rest + data.decode("ascii")).split("\0")
            for line in lines:
                if line:
                    self._obey(line.lstrip("-"))
        with self._lock:  # a robot that nobody controls stands still
            if self._control is link:
                self._control, self._velocity, self.paused = None, None, True
                self._released.notify_all()
        link.close()

    def _say(self, link: socket.socket | None, text: str) -> None:
        if link is None:
            return
        try:
            link.sendall(text.encode("ascii") + b"\0")
        except OSError:
            pass

    def _say_all(self, text: str) -> None:
        for link in self._monitors:
            self._say(link, text)
        if self._ctrl_monitoring:
            self._say(self._control, text)

    def _say_state(self, link: socket.socket | None) -> None:
        for code, state in self.stops.items():
            self._say(link, f"[{code}][{state}]")
        self._say(link, self._status())

    def _status(self) -> str:
        eob = self._velocity is None
        if not self._json:
            flags = (self.activated, self.homed, False, bool(self.error), self.paused, eob, eob)
            return f"[2007][{','.join(str(int(flag)) for flag in flags)}]"
        state = 7 if self.homed else 4 if self.activated else 2
        code, text = self.error or (0, "")
        robot = {"state": state, "simMode": 0, "recovery": 0, "brakesEngaged": 0}
        robot |= {"errorCode": code, "errorMsg": text}
        motion = {"paused": self.paused, "cleared": self.cleared, "eob": eob}
        data = {"robotStatus": robot, "motionStatus": motion, "safetyStatus": {"resetReady": 0}}
        return json.dumps({"code": 2007, "metaData": {"msgType": 0}, "data": data})

    # --- commands ---------------------------------------------------------------------------------

    def _obey(self, line: str) -> None:
        name, _, rest = line.partition("(")
        text = rest.rstrip(")")
        try:
            arguments = [float(value) for value in text.split(",")] if text else []
        except ValueError:
            arguments = []
        with self._lock:
            self.told.append((time.monotonic(), name, arguments))
            answer = getattr(self, f"_on_{name.lower()}", None)
            if answer is None:
                self.unknown.append(line)
            else:
                said = answer(*arguments)
                for reply in [said] if isinstance(said, str) else said or []:
                    self._say(self._control, reply)

    def _changed(self, *replies: str) -> list[str]:
        """Answers, and the new status for everybody."""
        for reply in replies:
            self._say(self._control, reply)
        self._say_all(self._status())
        return []

    def _on_getstatusrobot(self) -> str:
        return self._status()

    def _on_getrobotserial(self) -> str:
        return "[2083][M500-0001]"

    def _on_getfwversionfull(self) -> str:
        return f"[2082][{self.firmware}.1]"

    def _on_getrealtimemonitoring(self) -> str:
        return f"[2117][{','.join(map(str, self.events))}]"

    def _on_setrealtimemonitoring(self, *events: float) -> str:
        self.events = [int(event) for event in events]
        return self._on_getrealtimemonitoring()

    def _on_getmonitoringinterval(self) -> str:
        return f"[2116][{self.interval_s:.3f}]"

    def _on_setmonitoringinterval(self, interval_s: float) -> str:
        self.interval_s = interval_s
        return self._on_getmonitoringinterval()

    def _on_setrtc(self, *_: float) -> None: ...

    def _on_setvariablesmonitoring(self, *_: float) -> None: ...

    def _on_setdictmonitoring(self, *_: float) -> None: ...

    def _on_enablejsonmode(self) -> None:
        self._json = True

    def _on_setctrlportmonitoring(self, on: float) -> str:
        self._ctrl_monitoring = bool(on)
        self._say_state(self._control)
        return f"[2096][{int(on)}]"

    def _on_synccmdqueue(self, number: float) -> str:
        return f"[2097][{int(number)}]"

    def _on_reseterror(self) -> Any:
        if self.error is None:
            return "[2006][There was no error to reset.]"
        if not self.resettable and self.error[0] == 3006:
            return "[1025][This error cannot be reset.]"
        self.error = None
        return self._changed("[2005][The error was reset.]")

    def _later(self, delay_s: float, act: Callable[[], Any]) -> None:
        def run() -> None:
            with self._lock:
                if self.error is None and not any(self.stops.values()):
                    act()

        timer = threading.Timer(delay_s, run)
        timer.daemon = True
        timer.start()

    def _on_activaterobot(self) -> Any:
        if any(self.stops.values()):
            return "[1013][Activation failed.]"

        def act() -> None:
            self.activated = True
            self._changed("[2000][Motors activated.]")

        return self._later(self.activating_s, act)

    def _on_home(self) -> Any:
        def act() -> None:
            self.homed = self.activated
            self._changed("[2002][Homing done.]")

        return self._later(self.homing_s, act)

    def _on_deactivaterobot(self) -> Any:
        self.activated = self.homed = False
        self._velocity = None
        return self._changed("[2004][Motors deactivated.]")

    def _on_clearmotion(self) -> Any:
        self._queue.clear()
        self._velocity, self.paused, self.cleared = None, True, True
        return self._changed("[2044][The motion was cleared.]")

    def _on_resumemotion(self) -> Any:
        if self.error is not None:
            return self._refusal()
        for code, state in self.stops.items():
            if code in (PSTOP2, CONNECTION_DROPPED) and state == 2:
                self.stops[code] = 0
                self._say_all(f"[{code}][0]")
        if any(self.stops.values()):
            return []
        self.paused = self.cleared = False
        while self._queue:
            self._start_moving(*self._queue.pop(0))
        return self._changed("[2043][Motion resumed.]")

    def _on_settrf(self, *frame: float) -> None:
        self.trf = list(frame)

    def _on_setwrf(self, *frame: float) -> None: ...

    def _on_setveltimeout(self, timeout_s: float) -> None:
        if self.takes_timeout:
            self.timeout_s = timeout_s

    def _on_getveltimeout(self) -> str:
        return f"[2151][{self.timeout_s:.3f}]"

    def _on_movejointsvel(self, *velocity: float) -> Any:
        return self._move("joints", velocity)

    def _on_movelinvelwrf(self, *velocity: float) -> Any:
        return self._move("pose", velocity)

    def _refusal(self) -> str | None:
        if self.error is not None:
            return "[1011][The robot is in error.]"
        if not self.activated:
            return "[1005][The robot is not activated.]"
        return None if self.homed else "[1006][The robot is not homed.]"

    def _move(self, kind: str, velocity: tuple[float, ...]) -> str | None:
        if refusal := self._refusal():
            return refusal
        assert len(velocity) == 6, velocity
        if self.paused:
            self._queue.append((kind, np.array(velocity)))
        else:
            self._start_moving(kind, np.array(velocity))
        return None

    def _start_moving(self, kind: str, velocity: NDArray[np.float64]) -> None:
        self._advance()
        self._velocity = (kind, velocity, time.monotonic() + self.timeout_s)

    # --- the arm ----------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Move until now, or until the velocity's time was up."""
        now, began = time.monotonic(), self._moved_at
        self._moved_at = now
        if self._velocity is None:
            return
        kind, velocity, until = self._velocity
        for_s = min(now, until) - began
        if for_s > 0:
            if kind == "pose":
                velocity = np.linalg.lstsq(jacobian(self.joints), velocity, rcond=1e-3)[0]
            low, high = np.array(MECA500.joint_min_deg), np.array(MECA500.joint_max_deg)
            self.joints = np.clip(self.joints + velocity * for_s, low, high)
        if now >= until:
            self._velocity = None

    def _simulate(self) -> None:
        due = time.monotonic()
        while True:
            due = max(due + self.interval_s, time.monotonic() - 0.05)
            if self._stop.wait(max(due - time.monotonic(), 0)):
                return
            with self._lock:
                self._advance()
                stamp = int(1e6 * (time.monotonic() - self._boot))
                if self.mute:
                    continue
                values = {2210: self.joints, 2211: flange_pose(self.joints)}
                for code in self.events:
                    numbers = ",".join(f"{value:.5f}" for value in values[code])
                    self._say_all(f"[{code}][{stamp},{numbers}]")
                self._say_all(f"[2230][{stamp}]")
