"""Several kinds of cameras in one sender: rig files, what is attached, unplugging, recordings."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from common import cli
from common.program import OptionError
from senders import jetson_camera_sender as sender
from senders.cameras import attached as attached_module
from senders.cameras.attached import table
from senders.drivers import DriverError, Recorded
from senders.registry import DriverEntry
from tests.senders.test_camera_sender import Puller
from tests.senders.test_cameras_opencv import MjpegServer, written
from tests.support import free_ports, wait_until

ROOT = Path(__file__).resolve().parents[2]
KNOWN_RIG = ROOT / "senders" / "rigs" / "known_rig.yaml"
FAKE_ZED = Path(__file__).with_name("fake_pyzed")
SERIALS = (41182735, 49429257, 44377151, 49045152)
ZEDS = [f"ZED_{serial}_left" for serial in SERIALS]


def options(*arguments: object) -> sender.CameraOptions:
    made = cli.read(sender.CameraOptions, [str(argument) for argument in arguments])
    made.check()
    return made


@pytest.fixture
def zed_bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The made-up ZED SDK, installed; nothing is plugged in."""
    monkeypatch.syspath_prepend(str(FAKE_ZED))
    mine = ("pyzed", "pyzed.sl", "senders.cameras.zed")
    for name in mine:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("pyzed.sl").bench
    for name in mine:
        sys.modules.pop(name, None)


@pytest.fixture
def oak_bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A made-up OAK under the real depthai, plugged in."""
    dai = pytest.importorskip("depthai")
    fake_oak = importlib.import_module("tests.senders.fake_oak")
    monkeypatch.setattr(dai, "Device", fake_oak.Device)
    monkeypatch.setattr(dai, "Pipeline", fake_oak.Pipeline)
    fake_oak.bench.__init__()
    fake_oak.bench.ids.append("1844301051D9B50F00")
    yield fake_oak.bench
    fake_oak.bench.unplug()


@pytest.fixture
def puller(zmq_context: Any, free_port: Callable[[], int]) -> Iterator[Puller]:
    made = Puller(zmq_context, free_port())
    wait_until(made.bind, "the port")
    yield made


@pytest.fixture
def sending() -> Iterator[Callable[..., threading.Thread]]:
    """`sending(options)`: a sender that runs in this process."""
    stop, threads = threading.Event(), []

    def begin(chosen: sender.CameraOptions) -> threading.Thread:
        threads.append(threading.Thread(target=sender.send, args=(chosen, stop)))
        threads[-1].start()
        return threads[-1]

    yield begin
    stop.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


# --- the known rig -------------------------------------------------------------------------------


def test_the_known_rig_sends_its_five_cameras_and_survives_unplugging(
    zed_bench: Any, oak_bench: Any, puller: Puller, sending: Any
) -> None:
    for serial in SERIALS[:3]:
        zed_bench.plug(serial)
    small = ("--width", 640, "--height", 352, "--fps", 20)
    sending(options("--config", KNOWN_RIG, "--port", puller.port, *small))
    # The fourth ZED is missing: the others begin without it.
    wait_until(puller.has(10, cameras=4), "pictures of the four that are there")
    assert sorted(puller.headers) == sorted([*ZEDS[:3], "OAK"])
    sizes = {name: (h[0]["width"], h[0]["height"]) for name, h in puller.headers.items()}
    assert sizes == {**dict.fromkeys(ZEDS[:3], (630, 352)), "OAK": (640, 352)}
    zed_bench.plug(SERIALS[3])
    wait_until(puller.has(5, cameras=5), "the ZED that was plugged in late")
    zed_bench.unplug(SERIALS[0])
    oak_bench.unplug()
    seen = {name: len(headers) for name, headers in puller.headers.items()}
    others = ZEDS[1:]

    def others_go_on() -> bool:
        puller.drain()
        return all(len(puller.headers[name]) >= seen[name] + 20 for name in others)

    wait_until(others_go_on, "the others' pictures")
    zed_bench.plug(SERIALS[0])
    oak_bench.ids.append("1844301051D9B50F00")
    gone = {name: len(puller.headers[name]) for name in (ZEDS[0], "OAK")}

    def both_are_back() -> bool:
        puller.drain()
        return all(len(puller.headers[name]) >= gone[name] + 5 for name in gone)

    wait_until(both_are_back, "the two that were plugged in again")
    for name in puller.headers:
        assert (np.diff(puller.seqs(name)) > 0).all()


def test_the_known_rig_is_the_one_that_the_receiver_knows() -> None:
    rig = options("--config", KNOWN_RIG, "--list").rig
    assert [camera.name for camera in rig] == [*ZEDS, "OAK"]
    assert [camera.source for camera in rig] == [*SERIALS, ""]
    receiver = importlib.import_module("receiver.options")
    assert [s for s in receiver.RIG_VIEWS if s != "OAK"] == [str(s) for s in SERIALS]


# --- rig files -----------------------------------------------------------------------------------


def rig_file(folder: Path, *lines: str) -> Path:
    path = folder / "rig.yaml"
    path.write_text("\n".join(["rig:", *lines]))
    return path


def test_a_rig_mixes_drivers_and_its_cameras_have_settings_of_their_own(tmp_path: Path) -> None:
    film = written(tmp_path / "film.avi")
    path = rig_file(
        tmp_path,
        "  - {driver: synthetic, name: Front, width: 64, height: 48, fps: 5}",
        "  - {driver: synthetic, name: Side, source: View2}",
        f"  - {{driver: opencv, name: Film, source: {film}, options: [loop=true]}}",
    )
    chosen = options("--config", path, "--fps", 20, "--height", 240)
    captures = sender.make_captures(chosen, threading.Event(), sender.Encoders())
    assert [c.name for c in captures] == ["Front", "Side", "Film"]
    assert [c._fps for c in captures] == [5.0, 20.0, 20.0]
    assert [c.recorded for c in captures] == [False, False, True]
    front, side, film_camera = (c._driver for c in captures)
    front.open()
    frame = front.read(1.0)
    front.close()
    assert frame is not None and frame.image is not None and frame.image.shape == (48, 64, 3)
    assert side.name == "Side" and isinstance(film_camera, Recorded)
    only = options("--config", path, "--cameras", "Side")
    (capture,) = sender.make_captures(only, threading.Event(), sender.Encoders())
    assert capture.name == "Side"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["  - {driver: synthetic}"], "name"),
        (["  - {driver: synthetic, name: a/b}"], "not a camera's name: 'a/b'"),
        (["  - {driver: abacus, name: a}"], "no driver 'abacus'"),
        (["  - {driver: synthetic, name: a, colour: red}"], "no option 'colour'"),
        (["  - {driver: synthetic, name: a, fps: 0}"], "rig: a: fps must be from 0.1"),
        (["  - {driver: synthetic, name: a, source: [1]}"], "source must be a text or a number"),
        (["  - {driver: synthetic, name: a, options: [x=1]}"], "does not take 'x=1'"),
        (["  - {driver: opencv, name: a}"], "say which: sources="),
        (["  - {driver: opencv, name: a, source: no.mp4}"], "no such device, URL or file"),
        (2 * ["  - {driver: synthetic, name: a}"], "a name comes twice: a, a"),
        (["  - synthetic"], "a map is expected"),
    ],
)
def test_a_rig_that_cannot_be_used_is_one_line_and_exit_2(
    call: Any, tmp_path: Path, lines: list[str], said: str
) -> None:
    done = call("jetson_camera_sender", "--config", rig_file(tmp_path, *lines))
    assert done.returncode == 2, done.stdout
    assert said in done.stderr and done.stderr.count("\n") == 1


def test_a_driver_beside_a_rig_or_options_of_no_driver_are_refused(tmp_path: Path) -> None:
    path = rig_file(tmp_path, "  - {driver: synthetic, name: a}")
    with pytest.raises(OptionError, match="give one of them"):
        options("--config", path, "--driver", "synthetic")
    with pytest.raises(OptionError, match="Give --driver too"):
        options("--driver-options", "names=a")
    with pytest.raises(OptionError, match=r"--cameras: no b; there are: a"):
        chosen = options("--config", path, "--cameras", "b")
        sender.make_captures(chosen, threading.Event(), sender.Encoders())


# --- what is attached ----------------------------------------------------------------------------


def test_list_shows_every_driver_though_nothing_is_attached(call: Any) -> None:
    done = call("jetson_camera_sender", "--list")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert next(iter(rows)) == "driver"
    assert {"zed", "oak", "opencv", "sim", "synthetic"} <= set(rows)
    assert "not installed: " in rows["zed"] and "no device: " in rows["synthetic"]


def test_list_shows_the_cameras_that_are_attached(start: Any, tmp_path: Path) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(
        f"import sys\nsys.path.insert(0, {str(FAKE_ZED)!r})\n"
        "from pyzed.sl import MODEL, bench\nbench.plug(11, model=MODEL.ZED_X)\n"
    )
    program = start("jetson_camera_sender", "--list", "--driver", "zed", blocked=str(hooks))
    assert program.ended() == 0, program.said
    header, row = program.said.splitlines()
    assert header.split() == ["driver", "name", "source", "model", "state"]
    assert row.split() == ["zed", "ZED_11_left", "11", "ZED_X", "available"]


def test_a_driver_that_cannot_look_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken:
        @staticmethod
        def attached() -> list[Any]:
            raise DriverError("no USB")

    def importing(name: str) -> Any:
        if name == "missing":
            raise ImportError("libusb")
        return Broken if name == "broken" else object()

    monkeypatch.setattr(attached_module.importlib, "import_module", importing)
    shown = table(
        {
            "one": DriverEntry("broken:Camera", "a camera"),
            "two": DriverEntry("missing:Camera", "a camera"),
            "three": DriverEntry("fine:Camera", "made up"),
        }
    ).splitlines()
    assert "cannot be used: no USB" in shown[1] and "cannot be used: libusb" in shown[2]
    assert "no device: made up" in shown[3]


# --- streams and recordings ----------------------------------------------------------------------


def test_a_stream_s_server_may_die_and_come_back(
    start: Any, puller: Puller, tmp_path: Path
) -> None:
    port = free_ports(1)[0]
    path = rig_file(
        tmp_path,
        f"  - {{driver: opencv, name: Net, source: 'http://127.0.0.1:{port}/a.mjpg'}}",
        "  - {driver: synthetic, name: Front, width: 64, height: 48}",
    )
    server = MjpegServer(port)
    program = start("jetson_camera_sender", "--config", path, "--port", puller.port, "--fps", 20)
    wait_until(puller.has(5, cameras=2), "both cameras")
    server.stop()
    wait_until(lambda: "camera Net: " in program.said, "the failure")
    puller.drain()
    front, net = len(puller.headers["Front"]), len(puller.headers["Net"])

    def goes_on() -> bool:
        puller.drain()
        return len(puller.headers["Front"]) > front + 10

    wait_until(goes_on, "the other camera")
    server = MjpegServer(port)
    try:
        wait_until(lambda: puller.drain() or len(puller.headers["Net"]) > net + 5, "it again")
        assert (np.diff(puller.seqs("Net")) > 0).all()
    finally:
        server.stop()
    assert program.stop() == 0, program.said


def test_a_film_is_sent_whole_and_the_sender_ends_with_it(
    start: Any, puller: Puller, tmp_path: Path
) -> None:
    film = written(tmp_path / "film.avi", pictures=40, fps=200.0)
    chosen = ("--driver", "opencv", "--driver-options", f"sources={film}", "--fps", 5)
    program = start("jetson_camera_sender", *chosen, "--port", puller.port)
    wait_until(puller.has(40, cameras=1), "every picture")
    assert program.ended() == 0, program.said
    assert puller.seqs("film") == list(range(40))
    image = cv2.imdecode(np.frombuffer(puller.last_jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None and image.shape == (48, 64, 3)
    assert "film.avi is over" in program.said
