"""What a server can load: the table, paths, the builtin policy, dual-rate sessions."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from serving import policies
from serving.engine import Engine, EngineOptions
from serving.messages import (
    BadMessage,
    FeatureReply,
    Instructions,
    Observation,
    Picture,
    ServingError,
)
from serving.pictures import pixels_of
from serving.policies import check_path, load_policy
from serving.policies.builtin import BuiltinOptions, BuiltinPolicy
from serving.robot_values import StatePlaces
from serving.served import LanedPolicy, Request, ServedPolicy, SessionMemory
from tests.serving.engines import LONG_S, Asking, seen, told
from tests.support import wait_until

NO_LIMITS = EngineOptions()


def refused(kind: str, instructions: Instructions, options: EngineOptions = NO_LIMITS) -> str:
    with pytest.raises(ServingError) as error:
        load_policy(check_path(instructions, options), options)
    assert error.value.kind == kind
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", ["nothing", "os:system", "../builtin", "serving.policies", ""])
def test_unknown_types_are_told_what_there_is(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies.importlib.util, "find_spec", lambda name: None)
    instructions = told()
    object.__setattr__(instructions, "policy_type", kind)
    assert "builtin, qwen_vla" in refused("bad_policy", instructions)


def test_lerobots_types_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies.importlib.util, "find_spec", lambda name: None)
    assert "pip install '.[lerobot]'" in refused("bad_policy", Instructions("act", "/models/act"))


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name="torch")

    monkeypatch.setattr(policies.importlib, "import_module", missing)
    assert "needs torch" in refused("bad_policy", Instructions("qwen_vla", str(tmp_path)))


@pytest.mark.parametrize("path", ["", "a\0b", "/models/../etc", "..", "a\\..\\b", "a\nb"])
def test_tricks_with_paths_are_not_allowed(path: str, tmp_path: Path) -> None:
    for options in (NO_LIMITS, EngineOptions(policy_roots=(str(tmp_path),))):
        assert "give a path on the server" in refused(
            "not_allowed", Instructions("qwen_vla", path), options
        )


def test_a_path_that_is_not_there_is_said() -> None:
    said = refused("not_found", Instructions("qwen_vla", "/no/such/policy"))
    assert said == "there is no '/no/such/policy' on the server: give a path as the server sees it"


def test_hub_names_are_for_lerobots_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies.importlib.util, "find_spec", lambda name: object())
    act = Instructions("act", "someone/act_pick")
    assert check_path(act, NO_LIMITS) is act
    for path in ("/no/such", "./no", "~/no", "someone/act/pick", "https://host/x"):
        with pytest.raises(ServingError, match="there is no"):
            check_path(Instructions("act", path), NO_LIMITS)
    with pytest.raises(ServingError, match="none of the folders"):
        check_path(act, EngineOptions(policy_roots=("/",)))
    assert "there is no" in refused("not_found", Instructions("qwen_vla", "someone/policy"))


def test_only_what_lies_in_the_given_folders_is_opened(tmp_path: Path) -> None:
    inside, outside = tmp_path / "models", tmp_path / "private"
    for folder in (inside / "pick", outside, tmp_path / "models-of-others"):
        folder.mkdir(parents=True)
    (inside / "link").symlink_to(outside)
    (inside / "good").symlink_to(inside / "pick")
    (inside / "round").symlink_to(inside / "round")
    options = EngineOptions(policy_roots=("/no/such", str(inside)))

    def opened(path: str) -> str:
        return check_path(Instructions("qwen_vla", path), options).path

    pick = str((inside / "pick").resolve())
    assert {opened("pick"), opened(str(inside / "pick")), opened("good")} == {pick}
    for path in (str(outside), "link", "round", "none", str(tmp_path / "models-of-others"), "/"):
        with pytest.raises(ServingError, match="none of the folders") as error:
            opened(path)
        assert error.value.kind == "not_allowed"


def test_nothing_is_downloaded_unless_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    load_policy(told(), EngineOptions(allow_downloads=True))
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    load_policy(told(), NO_LIMITS)
    assert os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(
    "values",
    [
        {"fps": 0.0},
        {"similarity": 2.0},
        {"inference_timeout_s": float("nan")},
        {"most_sessions": 0},
        {"joint_ranges": {"a": (1.0, 0.0)}},
        {"joint_ranges": {"a": (0.0, float("inf"))}},
        {"most_left_behind": -1},
        {"most_batched": 0},
        {"load_timeout_s": -1.0},
    ],
)
def test_options_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        EngineOptions(**values)


@pytest.mark.parametrize("error", [KeyError("layers.7"), FileNotFoundError("model.safetensors")])
def test_what_lerobot_raised_is_left_to_the_store_to_log(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("torch")
    from serving.policies.lerobot_checkpoint import _as_refusals

    with pytest.raises(ServingError) as refusal, _as_refusals("act", "someone/act_pick"):
        raise error
    assert refusal.value.__cause__ is error
    assert not caplog.records


# --- PyTorch's threads ----------------------------------------------------------------------------


@pytest.fixture
def torch_threads() -> Iterator[Callable[[], int]]:
    """How many there are; set back at the end."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    yield torch.get_num_threads
    torch.set_num_threads(before)


def load_nothing(instructions: Instructions, options: EngineOptions | None = None) -> ServedPolicy:
    return builtin("hold")


@pytest.mark.parametrize("kind", ["act", "qwen_vla"])
def test_torch_threads_are_set_for_every_policy_that_uses_it(
    kind: str, torch_threads: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = {"act": policies._LEROBOT} | policies._TYPES
    nothing = replace(real[kind], loader=f"{__name__}:load_nothing")
    monkeypatch.setitem(policies._TYPES, kind, nothing)
    load_policy(Instructions(kind, "."), EngineOptions(torch_threads=3))
    assert torch_threads() == 3
    load_policy(Instructions(kind, "."), NO_LIMITS)  # LeRobot's are left alone
    assert torch_threads() == (3 if kind == "act" else max((os.cpu_count() or 2) // 2, 1))


def test_a_policy_without_torch_leaves_its_threads_alone(torch_threads: Callable[[], int]) -> None:
    before = torch_threads()
    load_policy(told(), EngineOptions(torch_threads=before + 1))
    assert torch_threads() == before


# --- the builtin policy ---------------------------------------------------------------------------


def asked(timestep: int, state: Sequence[float], memory: SessionMemory | None = None) -> Request:
    return Request(seen(timestep, state), memory or SessionMemory(told()))


def chunks(policy: BuiltinPolicy, *requests: Request) -> list[NDArray[np.float32]]:
    results = policy.predict(requests)
    actions = [getattr(result, "actions", None) for result in results]
    assert all(rows is not None for rows in actions), results
    return actions  # type: ignore[return-value]


def builtin(path: str) -> BuiltinPolicy:
    return BuiltinPolicy(BuiltinOptions.of(path))


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("dance", "there are hold, sway, raise, hang, no_load"),
        ("sway?speed=1", "no option 'speed': there are rows, amplitude"),
        ("sway?rows=many", "rows=many is no number"),
        ("sway?rows=1.5", "rows=1.5 is no number"),
        ("sway?rows=0", "rows must be from 1"),
        ("sway?inference_s=nan", "inference_s must be from 0"),
        ("sway?inference_s=61", "inference_s must be from 0 to 60"),
        ("hang?hang_s=61", "hang_s must be from 0 to 60"),
        ("hold?load_s=61", "load_s must be from 0 to 60"),
        ("sway?rows=", "rows= is no number"),
    ],
)
def test_paths_that_say_nothing_are_refused(path: str, said: str) -> None:
    assert said in refused("bad_policy", told(path))


def test_hold_stays_where_the_robot_is() -> None:
    (rows,) = chunks(builtin("hold?rows=4"), asked(9, (1.0, -2.0)))
    assert rows.tolist() == [[1.0, -2.0]] * 4


def test_sway_is_smooth_small_and_the_same_for_a_step_in_any_chunk() -> None:
    policy = builtin("sway?rows=60&amplitude=3&period_steps=100")
    memory = SessionMemory(told())
    (first,) = chunks(policy, asked(0, (10.0, 20.0), memory))
    (second,) = chunks(policy, asked(30, (11.0, 19.0), memory))
    np.testing.assert_array_equal(first[30:], second[:30])  # chunks meet without a jump
    assert np.abs(first - [10.0, 20.0]).max() <= 3.0
    assert np.ptp(first, axis=0).min() > 3.0
    assert np.abs(np.diff(first, axis=0)).max() < 2 * np.pi / 100 * 3.0


def test_a_batch_is_what_its_members_are_alone() -> None:
    states = [(1.0, 2.0), (3.0, 4.0), (5.0, 6.0, 7.0)]
    together = chunks(builtin("sway"), *[asked(n, state) for n, state in enumerate(states)])
    alone = [chunks(builtin("sway"), asked(n, state))[0] for n, state in enumerate(states)]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_robot_without_a_state_is_refused() -> None:
    (result,) = builtin("hold").predict([asked(0, ())])
    assert isinstance(result, ServingError)


def test_faults_come_once_when_a_session_comes_to_their_step() -> None:
    policy = builtin("hold?raise_at=5")
    memory, other = SessionMemory(told()), SessionMemory(told())
    chunks(policy, asked(3, (0.0,), memory), asked(4, (0.0,), other))
    with pytest.raises(RuntimeError):  # of a batch, so that it is tried one by one
        policy.predict([asked(6, (0.0,), memory), asked(4, (0.0,), other)])
    with pytest.raises(RuntimeError):
        policy.predict([asked(6, (0.0,), memory)])
    chunks(policy, asked(7, (0.0,), memory), asked(900, (0.0,), SessionMemory(told())))


def test_hangs_end_when_they_are_to() -> None:
    policy, memory = builtin("hold?hang_at=5&hang_s=0.01"), SessionMemory(told())
    chunks(policy, asked(4, (0.0,), memory), asked(4, (0.0,)))
    chunks(policy, asked(5, (0.0,), memory))
    policy = builtin("hang")
    hung = threading.Thread(target=lambda: policy.predict([asked(0, (0.0,))]), daemon=True)
    hung.start()
    hung.join(0.1)
    assert hung.is_alive()
    policy.close()
    hung.join(LONG_S)
    assert not hung.is_alive()


def test_a_client_cannot_gather_threads_that_hang() -> None:
    title = "predict builtin from hang?rows="

    def hanging() -> int:
        return sum(thread.name.startswith(title) for thread in threading.enumerate())

    pictures = []
    with _serving(most_policies=2) as engine:
        for rows in range(1, 13):
            engine.ready("a")
            engine.instruct("a", told(f"hang?rows={rows}", cameras={"front": (4, 6, 3)}))
            engine.subscribe("a", lambda reply: None)
            observation = seen(0, cameras=["front"])
            pictures.append(weakref.ref(observation.pictures["front"].pixels))  # type: ignore[arg-type]
            engine.observe("a", observation)
            del observation
            lanes = engine._sessions.of("a").worker._lanes  # type: ignore[union-attr]
            wait_until(lambda lanes=lanes: lanes[0].batch, "the prediction that hangs")
        wait_until(lambda: hanging() <= 2, "the threads of the others to end")
        wait_until(lambda: sum(p() is not None for p in pictures) <= 2, "their pictures to go")
        assert engine.metrics()["total"]["left_behind"] == 0
    wait_until(lambda: not hanging(), "the last threads to end")


def test_the_ways_to_fail_are_served_as_such() -> None:
    assert "failed" in _load_error("no_load")
    with _serving() as engine:
        engine.ready("a")
        engine.instruct("a", told("raise"))
        engine.observe("a", seen(0))
        assert Asking(engine, "a").error.kind == "failed"


def _load_error(path: str) -> str:
    with _serving() as engine:
        engine.ready("a")
        with pytest.raises(ServingError) as error:
            engine.instruct("a", told(path))
        return error.value.kind


class _serving:
    def __init__(self, **options: Any) -> None:
        options = {"inference_latency_s": 0.0, "obs_queue_timeout_s": 0.05} | options
        self._engine = Engine(EngineOptions(**options))

    def __enter__(self) -> Engine:
        return self._engine

    def __exit__(self, *_: object) -> None:
        self._engine.close()


# --- pictures -------------------------------------------------------------------------------------


def test_pictures_come_as_pixels_or_jpeg() -> None:
    picture = np.zeros((16, 24, 3), np.uint8)
    picture[..., 0] = 250  # red
    assert pixels_of("top", Picture(picture)) is picture
    _, jpeg = cv2.imencode(".jpg", picture[..., ::-1])
    decoded = pixels_of("top", Picture(jpeg=memoryview(jpeg.tobytes())))
    assert decoded.shape == picture.shape
    assert decoded[8, 8].tolist() == pytest.approx([250, 0, 0], abs=4)
    whole = jpeg.tobytes()
    huge = bytearray(whole)
    at = whole.index(b"\xff\xc0") + 5
    huge[at : at + 4] = b"\xff\xff\xff\xff"
    for bad in (whole[:40], b"", bytes(huge)):
        with pytest.raises(BadMessage, match="camera 'top'"):
            pixels_of("top", Picture(jpeg=bad))


# --- dual-rate sessions ---------------------------------------------------------------------------

JOINTS = tuple(f"joint_{n}.pos" for n in range(6))
STATE = (0.0, 10.0, 20.0, 30.0, 40.0, 50.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    # Here rather than by the program that makes it: its libraries take long to import twice.
    from policies.qwen_vla import save_policy
    from policies.qwen_vla.tiny import make_tiny_policy

    folder = tmp_path_factory.mktemp("policy") / "tiny"
    save_policy(make_tiny_policy(seed=3), folder)
    return folder


@pytest.fixture
def dual(checkpoint: Path) -> Iterator[Engine]:
    with _serving(features_max_age_s=LONG_S, inference_timeout_s=LONG_S) as engine:
        engine.ready("a")
        engine.instruct("a", _views(checkpoint))
        yield engine


def _views(checkpoint: Path, **more: Any) -> Instructions:
    cameras = {f"View{n}": (48, 64, 3) for n in range(1, 6)}
    named: dict[str, Any] = {"state_names": JOINTS, "cameras": cameras} | more
    return Instructions("qwen_vla", str(checkpoint), "cpu", **named)


def _pictures(cameras: Sequence[str] = tuple(f"View{n}" for n in range(1, 6))) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    return {name: rng.integers(0, 255, (48, 64, 3), np.uint8) for name in cameras}


def slow(timestep: int, cameras: Sequence[str] | None = None, **more: Any) -> Any:
    pictures = _pictures(cameras) if cameras else _pictures()
    shown = {name: Picture(pixels) for name, pixels in pictures.items()}
    return replace(seen(timestep, STATE, sensor=window(timestep), **more), pictures=shown)


def fast(timestep: int, **more: Any) -> Any:
    return seen(timestep, STATE, **({"sensor": window(timestep)} | more))


def window(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(65, CHANNELS)).astype(np.float32)


CHANNELS = 1026


def test_fast_observations_are_acted_on_with_the_features_kept(
    dual: Engine, checkpoint: Path
) -> None:
    from policies.qwen_vla import load_policy as load_reference

    reference = load_reference(checkpoint, device="cpu", keep_plain=False)
    assert reference.spec.sensor_channels == CHANNELS
    features = reference.encode(_pictures(), "touch the pin")
    dual.observe("a", slow(1, task="touch the pin"))
    first = Asking(dual, "a").chunk
    assert (first.timestep, first.dt) == (1, reference.spec.dt)
    assert reference.spec.space == "joint_position"
    assert first.names == JOINTS  # this robot has no gripper
    for step in (2, 3):
        dual.observe("a", fast(step))
        chunk = Asking(dual, "a").chunk
        expected = reference.act(features, window(step), None, None).actions
        np.testing.assert_allclose(chunk.actions, expected[:, :6], atol=1e-5)
        assert 0.0 < first.features_age_s < chunk.features_age_s + 1.0
    assert np.abs(first.actions - chunk.actions).max() > 0.0


def test_features_are_given_to_clients_that_act_themselves(dual: Engine, checkpoint: Path) -> None:
    from policies.qwen_vla import load_policy as load_reference

    reference = load_reference(checkpoint, device="cpu", keep_plain=False)
    dual.observe("a", slow(4, wants="features", task="touch the pin"))
    reply = Asking(dual, "a").result
    assert isinstance(reply, FeatureReply)
    assert reply.timestep == 4
    expected = reference.encode(_pictures(), "touch the pin")
    np.testing.assert_allclose(reference.unpack(reply.packed), expected, atol=1e-5)
    dual.observe("a", fast(5, wants="features"))
    assert "no picture of View1" in str(Asking(dual, "a").error)


def test_without_features_or_touch_nothing_is_acted_on(dual: Engine) -> None:
    dual.observe("a", fast(1))
    error = Asking(dual, "a").error
    assert (error.kind, "send an observation with pictures" in str(error)) == ("failed", True)
    dual.observe("a", slow(2))
    assert Asking(dual, "a").chunk.timestep == 2
    dual.observe("a", fast(3, sensor=None))
    assert "needs a sensor window" in str(Asking(dual, "a").error)
    dual.observe("a", fast(4, sensor=np.ones((4, 7), np.float32)))
    assert "a sensor window must be (samples, 1026)" in str(Asking(dual, "a").error)
    dual.observe("a", slow(5, cameras=["View1"]))
    assert "no picture of View2" in str(Asking(dual, "a").error)
    dual.ready("b")
    dual.instruct("b", dual._sessions.of("a").instructions)  # type: ignore[arg-type]
    dual.observe("b", fast(1))  # another's features are not its own
    assert "no features yet" in str(Asking(dual, "b").error)


def test_features_too_old_are_not_acted_on(checkpoint: Path) -> None:
    options = EngineOptions(features_max_age_s=LONG_S)
    policy = load_policy(_views(checkpoint), options)
    assert isinstance(policy, LanedPolicy)
    memory = policy.admit(_views(checkpoint))
    import time

    now = time.monotonic()

    def act(observation: Any, arrived_at: float) -> Any:
        return policy.predict([Request(observation, memory, arrived_at)])[0]

    assert act(slow(0), now).actions is not None
    assert act(fast(3), now).features_age_s >= 0.1  # by the client's clock, three steps
    late = act(replace(fast(1), timestamp=seen(0).timestamp + LONG_S + 1), now)
    assert "the features are 61.00 s old" in str(late)  # said by the client's clock alone
    assert act(fast(2), now).actions is not None
    # Pictures that came long ago are old, whatever their client's clock says.
    assert "the features are" in str(act(slow(9), now - LONG_S - 1))
    assert "the features are" in str(act(fast(9), now))


def test_a_fast_observation_does_not_wait_for_a_slow_pass(
    dual: Engine, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dual.ready("b")
    dual.instruct("b", _views(checkpoint))
    dual.observe("a", slow(1))
    assert Asking(dual, "a").chunk.timestep == 1
    worker = dual._sessions.of("a").worker
    assert worker is not None
    policy = worker.policy._policy  # type: ignore[attr-defined]
    gate, began, encode = threading.Event(), threading.Event(), policy.encode

    def waiting(*arguments: Any) -> Any:
        began.set()
        assert gate.wait(LONG_S)
        return encode(*arguments)

    monkeypatch.setattr(policy, "encode", waiting)
    dual.observe("b", slow(1))
    other = Asking(dual, "b")
    dual.observe("a", slow(2))
    assert began.wait(LONG_S)
    dual.observe("a", fast(3))
    assert Asking(dual, "a").chunk.timestep == 3
    assert not other.done
    gate.set()
    assert other.chunk.timestep == 1
    # The slow observation was not lost to the fast one.
    assert Asking(dual, "a").chunk.timestep == 2


def test_views_are_found_by_name_or_rename(checkpoint: Path) -> None:
    with _serving() as engine:
        cameras = {f"cam{n}": (48, 64, 3) for n in range(1, 6)}
        rename = {f"observation.images.cam{n}": f"observation.images.View{n}" for n in (1, 2, 3)}
        rename |= {"cam4": "View4", "cam5": "View5"}
        engine.ready("a")
        with pytest.raises(ServingError, match=r"looks through View1.*the cameras are cam1") as bad:
            engine.instruct("a", _views(checkpoint, cameras=cameras))
        assert bad.value.kind == "bad_policy"
        with pytest.raises(ServingError, match="one camera each"):
            twice = rename | {"cam5": "View4"}
            engine.instruct("a", _views(checkpoint, cameras=cameras, rename=twice))
        engine.instruct("a", _views(checkpoint, cameras=cameras, rename=rename))
        engine.observe("a", slow(0, tuple(cameras), wants="features"))
        assert isinstance(Asking(engine, "a").result, FeatureReply)


def test_checkpoints_that_are_none_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    said = refused("bad_policy", Instructions("qwen_vla", str(tmp_path)))
    assert "no config.json" in said


def test_the_state_is_told_by_its_names() -> None:
    names = ("gripper.pos", *JOINTS, "force.z", *[f"pose.{axis}" for axis in "xyzabc"])
    state = StatePlaces.of(names).robot_state(seen(0, range(14)))
    assert state is not None
    assert state.joints == (1, 2, 3, 4, 5, 6)
    assert (state.force, state.pose) == (7, (8, 9, 10, 11, 12, 13))
    assert StatePlaces.of(("a", "b")).robot_state(seen(0)) is None


def test_speeds_are_told_from_the_state_just_before() -> None:
    places = StatePlaces.of(JOINTS)
    first = places.moving_state(Observation(0, 100.0, False, np.zeros(6, np.float32)), None)
    assert first is not None
    assert first.speeds == ()
    for later, known in ((100.1, True), (100.5, False), (100.001, False), (99.9, False)):
        state = np.full(6, 2.0, np.float32)
        second = places.moving_state(Observation(1, later, False, state), first)
        assert second is not None
        assert second.speeds == (pytest.approx((20.0,) * 6) if known else ())
