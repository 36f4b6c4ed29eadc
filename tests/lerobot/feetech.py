"""A bus of Feetech STS3215 servos on a pseudo-terminal: their bytes, registers and motion.

Packets are `FF FF id length instruction parameters… checksum`; a reply has an error byte in the
instruction's place. Registers are those of the STS/SMS series' memory table.
"""

from __future__ import annotations

import json
import os
import select
import threading
import time
import tty
from collections import Counter
from pathlib import Path

from serving.body import Body, BodyError
from tests.support import wait_until

MODEL_NUMBER = 777
FIRMWARE, MODEL, RANGE_MIN, RANGE_MAX, HOMING = 0, 3, 9, 11, 31
TORQUE, GOAL, PRESENT, STATUS = 40, 42, 56, 65
PING, READ, WRITE, SYNC_READ, SYNC_WRITE = 1, 2, 3, 0x82, 0x83
BROADCAST = 0xFE
TICKS_S = 2000.0
"""How fast a servo turns, about 176 degrees a second."""
NAMES = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
RANGES = ((760, 3340), (830, 3290), (880, 3100), (900, 3200), (0, 4095), (2000, 3500))


class Servo:
    """One servo: 256 bytes of registers, and a shaft."""

    def __init__(self, number: int, low: int, high: int, position: int) -> None:
        self.memory = bytearray(256)
        self.position = float(position)
        self.put(FIRMWARE, 3, 1)
        self.put(FIRMWARE + 1, 10, 1)
        self.put(MODEL, MODEL_NUMBER)
        self.put(5, number, 1)
        self.put(RANGE_MIN, low)
        self.put(RANGE_MAX, high)
        self.put(HOMING, 120)
        self.put(18, 0x10 | 0x4, 1)  # Phase, with the bit that LeRobot clears
        self.put(GOAL, 0)  # an old target, far from where it stands
        self.moved_at = time.monotonic()
        self.sag = 0.0  # ticks that the arm's weight keeps it from its target

    def put(self, address: int, value: int, length: int = 2) -> None:
        self.memory[address : address + length] = value.to_bytes(length, "little")

    def word(self, address: int) -> int:
        return int.from_bytes(self.memory[address : address + 2], "little")

    def advance(self) -> None:
        moment = time.monotonic()
        reach, self.moved_at = TICKS_S * (moment - self.moved_at), moment
        if self.memory[TORQUE]:
            way = self.word(GOAL) - self.sag - self.position
            self.position += max(-reach, min(reach, way))
        self.put(PRESENT, max(0, round(self.position)))


def _packet(number: int, data: bytes, error: int) -> bytes:
    body = bytes([number, len(data) + 2, error]) + data
    return b"\xff\xff" + body + bytes([~sum(body) & 0xFF])


class Bus:
    """Six servos, ids 1 to 6, behind a serial port `path`."""

    def __init__(self) -> None:
        self._master, slave = os.openpty()
        tty.setraw(slave)
        self.path = os.ttyname(slave)
        self._slave = slave
        os.set_blocking(self._master, False)
        self.servos = {
            n: Servo(n, low, high, (low + high) // 2 + 40 * n)
            for n, (low, high) in enumerate(RANGES, 1)
        }
        self.asked: Counter[int] = Counter()
        self.written: list[tuple[int, int, bytes]] = []
        self.silent: set[int] = set()
        self.error_byte: dict[int, int] = {}
        self.corrupt = 0
        self.babbles = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Pull the plug: the port is gone."""
        self._stop.set()
        self._thread.join(5)
        for number in (self._master, self._slave):
            try:
                os.close(number)
            except OSError:
                pass

    def calibrate(self, folder: Path, name: str = "arm") -> None:
        """Write the calibration file that LeRobot would have written."""
        calibration = {
            NAMES[n - 1]: {
                "id": n,
                "drive_mode": 0,
                "homing_offset": servo.word(HOMING),
                "range_min": servo.word(RANGE_MIN),
                "range_max": servo.word(RANGE_MAX),
            }
            for n, servo in self.servos.items()
        }
        (folder / f"{name}.json").write_text(json.dumps(calibration))

    def degrees(self, number: int) -> float:
        """What LeRobot should give for a servo: degrees about the middle of its range."""
        low, high = RANGES[number - 1]
        return (self.servos[number].position - (low + high) / 2) * 360 / 4095

    def percent(self) -> float:
        """What LeRobot should give for the gripper."""
        low, high = RANGES[5]
        return (self.servos[6].position - low) / (high - low) * 100

    @property
    def torque(self) -> list[int]:
        return [servo.memory[TORQUE] for servo in self.servos.values()]

    def _serve(self) -> None:
        waiting = b""
        while not self._stop.is_set():
            if self.babbles:
                self._send(_packet(99, b"\0\0", 0) * 8)
            if not select.select([self._master], [], [], 0.0 if self.babbles else 0.05)[0]:
                continue
            try:
                waiting += os.read(self._master, 4096)
            except OSError:
                return
            while len(waiting) >= 6:
                size = waiting[3] + 4
                assert waiting[:2] == b"\xff\xff", waiting
                if len(waiting) < size:
                    break
                packet, waiting = waiting[:size], waiting[size:]
                assert packet[-1] == ~sum(packet[2:-1]) & 0xFF, packet
                self._obey(packet[2], packet[4], packet[5:-1])

    def _obey(self, number: int, instruction: int, parameters: bytes) -> None:
        self.asked[instruction] += 1
        if instruction == SYNC_READ:
            address, length = parameters[:2]
            for one in parameters[2:]:
                self._reply(one, self._read(one, address, length))
        elif instruction == SYNC_WRITE:
            address, length = parameters[:2]
            rest = parameters[2:]
            for start in range(0, len(rest), length + 1):
                self._write(rest[start], address, rest[start + 1 : start + 1 + length])
        elif number in self.servos:
            if instruction == READ:
                self._reply(number, self._read(number, parameters[0], parameters[1]))
            elif instruction == WRITE:
                self._write(number, parameters[0], parameters[1:])
                self._reply(number, b"")
            elif instruction == PING:
                self._reply(number, b"")

    def _read(self, number: int, address: int, length: int) -> bytes:
        servo = self.servos[number]
        servo.advance()
        return bytes(servo.memory[address : address + length])

    def _write(self, number: int, address: int, data: bytes) -> None:
        if number in self.silent:
            return
        servo = self.servos[number]
        servo.advance()
        servo.memory[address : address + len(data)] = data
        self.written.append((number, address, data))

    def _reply(self, number: int, data: bytes) -> None:
        if number in self.silent:
            return
        packet = _packet(number, data, self.error_byte.get(number, 0))
        if self.corrupt:
            self.corrupt -= 1
            packet = packet[:-1] + bytes([packet[-1] ^ 0x5A])
        self._send(packet)

    def _send(self, data: bytes) -> None:
        try:
            os.write(self._master, data)
        except OSError:
            pass


def open_patiently(body: Body) -> None:
    """Open a body that is on a bus; again where LeRobot found a servo late.

    It gives one 50 ms to answer, which may pass on a busy machine.
    """

    def opens() -> bool:
        try:
            body.open()
        except BodyError as error:
            print(error)
            return False
        return True

    wait_until(opens, "the body to open")
