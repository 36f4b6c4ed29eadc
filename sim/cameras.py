"""The rig's five cameras: one thread renders for all of them, paced like a real shutter."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from common.clock import Ticker
from common.endpoints import RIG_STATE
from senders.drivers import DriverError, Frame
from sim.engine import mujoco
from sim.link import RigLink
from sim.messages import RigState
from sim.model import VIEWS, Layout, build_model, place
from sim.rendering import RigRenderer

__all__ = ["SimCamera", "open_sim_cameras"]

_log = logging.getLogger(__name__)

# A state older than this is not worth a picture: the rig is gone.
_STALE_S = 0.5
# Connecting takes up to 5 s; a first GL context under load, a few.
_START_S = 20.0


class _Mailbox:
    """The newest frame of one camera, taken once."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._frame: Frame | None = None
        self._error: str | None = None

    def put(self, frame: Frame) -> None:
        with self._news:
            self._frame = frame
            self._error = None
            self._news.notify()

    def fail(self, error: str) -> None:
        with self._news:
            self._error = error
            self._news.notify()

    def clear(self) -> None:
        with self._news:
            self._frame = self._error = None

    def take(self, timeout_s: float) -> Frame | None:
        with self._news:
            self._news.wait_for(lambda: self._frame or self._error, timeout_s)
            if self._error:
                raise DriverError(self._error)
            frame, self._frame = self._frame, None
            return frame


class _Scene:
    """A copy of the rig that only shows states; lives in the thread that made it."""

    def __init__(self, state: RigState, width: int, height: int) -> None:
        self.config = state.config
        self._seed = state.seed
        self._model = build_model(state.config, state.seed)
        self._data = mujoco.MjData(self._model)
        self._renderer = RigRenderer(self._model, width, height)

    def show(self, state: RigState) -> None:
        if state.seed != self._seed:
            self._seed = state.seed
            place(self._model, self.config, Layout.from_seed(self.config, state.seed))
        self._data.qpos[:] = state.qpos
        mujoco.mj_kinematics(self._model, self._data)

    def picture(self, view: str, state: RigState) -> Frame:
        return Frame(captured_at=state.time, image=self._renderer.render(self._data, [view])[view])

    def close(self) -> None:
        self._renderer.close()


class _Studio:
    """Renders for every camera that is open; runs while at least one is."""

    def __init__(self, width: int, height: int, fps: float, host: str, port: int) -> None:
        self._size = (width, height)
        self._fps = fps
        self._rig = (host, port)
        self._lock = threading.Lock()
        self._boxes: dict[str, _Mailbox] = {}
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._started = threading.Event()
        self._error: str | None = None

    def attach(self, view: str, box: _Mailbox) -> None:
        """Render `view` into `box` from now on; raises DriverError when that cannot be done."""
        with self._lock:
            box.clear()
            self._boxes = {**self._boxes, view: box}
            if self._thread is None or not self._thread.is_alive():
                self._stop, self._started = threading.Event(), threading.Event()
                self._error = None
                self._thread = threading.Thread(target=self._run, name="sim-render", daemon=True)
                self._thread.start()
            started = self._started
        came = started.wait(_START_S)
        if self._error or not came:
            message = self._error or f"the renderer did not start within {_START_S:.0f} s"
            self.detach(view)
            raise DriverError(message)

    def detach(self, view: str) -> None:
        """Stop rendering `view`; the last one to leave ends the thread."""
        with self._lock:
            self._boxes = {name: box for name, box in self._boxes.items() if name != view}
            if self._boxes or self._thread is None:
                return
            self._stop.set()
            # A link that waits for a rig gives up after 5 s at most.
            self._thread.join(_START_S)
            self._thread = None

    def _run(self) -> None:
        stop, started = self._stop, self._started
        link = RigLink(*self._rig)
        scene: _Scene | None = None
        try:
            link.open()
            shown: tuple[int, int] | None = None
            for _ in Ticker(self._fps).ticks(stop):
                state = link.newest(_STALE_S)
                if state is None or (state.run, state.seq) == shown:
                    continue
                if scene is None or state.config != scene.config:
                    if scene is not None:
                        scene.close()
                    scene = _Scene(state, *self._size)
                    started.set()
                shown = (state.run, state.seq)
                scene.show(state)
                for view, box in self._boxes.items():
                    box.put(scene.picture(view, state))
        except Exception as error:
            # Whatever it was, each camera's thread must hear of it rather than wait.
            if not isinstance(error, DriverError):
                _log.exception("rendering stopped")
            self._error = str(error) or type(error).__name__
            for box in self._boxes.values():
                box.fail(self._error)
        finally:
            started.set()
            if scene is not None:
                scene.close()
            link.close()


class SimCamera:
    """One of the rig's cameras; made by `open_sim_cameras`."""

    def __init__(self, name: str, view: str, studio: _Studio) -> None:
        """A camera called `name` on the wire that shows the model's `view`."""
        self._name, self._view, self._studio = name, view, studio
        self._box = _Mailbox()
        self._open = False

    @property
    def name(self) -> str:
        """The name it has on the wire."""
        return self._name

    def open(self) -> None:
        """Start rendering this view.

        Raises DriverError when no rig is running, or no pictures can be rendered here.
        """
        if not self._open:
            self._studio.attach(self._view, self._box)
            self._open = True

    def read(self, timeout_s: float) -> Frame | None:
        """The newest picture not read yet; None when none came in time.

        While the rig is away there are none. Raises DriverError when rendering broke down.
        """
        if not self._open:
            raise DriverError(f"camera {self._name} is not open")
        return self._box.take(timeout_s)

    def close(self) -> None:
        """Stop rendering this view; safe to call twice."""
        if self._open:
            self._open = False
            self._studio.detach(self._view)


def open_sim_cameras(
    *,
    width: int = 1280,
    height: int = 720,
    fps: float = 30.0,
    names: Sequence[str] = VIEWS,
    host: str = "127.0.0.1",
    state_port: int = RIG_STATE.port,
) -> list[SimCamera]:
    """Cameras of the rig, one for each of up to five `names`, in the order of the views.

    A name that is itself a view's shows that view; any other the view at its place. They share
    one thread that renders, which runs while at least one camera is open. Raises ValueError for
    names that are not distinct or a size that cannot be rendered.
    """
    views = [name if name in VIEWS else VIEWS[i] for i, name in enumerate(names[: len(VIEWS)])]
    if not names or len(names) > len(VIEWS) or len(set(views)) < len(names):
        raise ValueError(f"one to {len(VIEWS)} cameras of distinct views, not {list(names)}")
    if not (16 <= width <= 4096 and 16 <= height <= 4096):
        raise ValueError(f"pictures of {width}x{height} cannot be rendered")
    studio = _Studio(width, height, fps, host, state_port)
    return [SimCamera(name, view, studio) for name, view in zip(names, views, strict=True)]
