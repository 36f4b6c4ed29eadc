"""Models that raise, hang and do not load, and policies that are shared."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.engine import Engine, EngineOptions
from serving.messages import Chunk, Instructions, Refusal, Reply, ServingError
from serving.served import Predicted, ServedPolicy
from tests.serving.engines import LONG_S, Asking, GatedPolicy, Start, seen, start, told
from tests.support import wait_until

__all__ = ["start"]  # the fixture

HANG = {"inference_timeout_s": 0.2, "replace_after_s": 3600.0}


class Shelf:
    """Loads policies by path, and holds a load up until its gate is opened."""

    def __init__(self) -> None:
        self.loaded: list[tuple[str, GatedPolicy]] = []
        self.began: list[str] = []
        self.closed: dict[str, threading.Event] = {}
        self.errors: dict[str, BaseException] = {}
        self.made: Callable[[GatedPolicy], None] = lambda policy: None

    def __call__(self, instructions: Instructions, options: EngineOptions) -> ServedPolicy:
        path = instructions.path
        self.began.append(path)
        if path in self.closed:
            assert self.closed[path].wait(LONG_S)
        if path in self.errors:
            raise self.errors[path]
        policy = GatedPolicy()
        self.made(policy)
        self.loaded.append((path, policy))
        return policy

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.loaded]


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def serve(shelf: Shelf) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def make(*clients: str, **options: Any) -> Engine:
        options = {"inference_latency_s": 0.0, "obs_queue_timeout_s": 0.05} | options
        engines.append(Engine(EngineOptions(**options), load=shelf))
        for client in clients:
            engines[-1].ready(client)
        return engines[-1]

    yield make
    for gate in shelf.closed.values():
        gate.set()
    for _, policy in shelf.loaded:
        policy.gate.set()
        policy.release.set()
    for engine in engines:
        engine.close()


class Instructing(threading.Thread):
    """Gives instructions; `error` is what that raised."""

    def __init__(self, engine: Engine, client: str, instructions: Instructions) -> None:
        super().__init__(daemon=True)
        self._do = lambda: engine.instruct(client, instructions)
        self.error: ServingError | None = None
        self.start()

    def run(self) -> None:
        try:
            self._do()
        except ServingError as error:
            self.error = error

    def end(self) -> ServingError | None:
        self.join(LONG_S)
        assert not self.is_alive()
        return self.error


def test_a_prediction_that_raises_is_refused_in_one_line(start: Start) -> None:
    policy = GatedPolicy()
    policy.error = RuntimeError("out of\n memory")
    policy.poison.add(1)
    engine = start("a", policy=policy)
    engine.observe("a", seen(1))
    error = Asking(engine, "a").error
    assert error.kind == "failed"
    assert str(error).endswith("failed: RuntimeError: out of memory")
    policy.poison.clear()
    assert engine.observe("a", seen(1))  # the same step may be tried again: the robot stands still
    assert Asking(engine, "a").chunk.timestep == 1
    assert engine.metrics()["total"]["refusals"] == {"failed": 1}


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError()])
def test_nothing_that_a_model_raises_ends_its_thread(start: Start, error: BaseException) -> None:
    policy = GatedPolicy()
    policy.error = error
    policy.poison.add(1)
    engine = start("a", policy=policy)
    engine.observe("a", seen(1))
    assert type(error).__name__ in str(Asking(engine, "a").error)
    engine.observe("a", seen(2))
    assert Asking(engine, "a").chunk.timestep == 2


def test_a_bad_request_does_not_fail_those_in_its_batch(start: Start) -> None:
    policy = GatedPolicy()
    policy.poison.add(2)
    engine = start("a", "b", "c", policy=policy, batch_window_s=LONG_S, most_batched=3)
    asking = {}
    for step, client in enumerate("abc", start=1):
        engine.observe(client, seen(step))
        asking[client] = Asking(engine, client)
    assert asking["a"].chunk.timestep == 1
    assert "poisoned" in str(asking["b"].error)
    assert asking["c"].chunk.timestep == 3
    assert sorted(policy.batches[0]) == [1, 2, 3]
    assert sorted(policy.batches[1:]) == [[1], [2], [3]]


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([], "0 results for 1"),
        ([Predicted()], "gave no actions"),
        ([Predicted(np.zeros(3, np.float32))], "no sound actions"),
        ([Predicted(np.full((4, 2), np.nan, np.float32))], "not finite"),
        ([Predicted("actions")], "no sound actions"),  # type: ignore[arg-type]
        ([ServingError("bad_message", "no picture\nof it")], "^no picture of it$"),
        ([ValueError()], "failed: ValueError$"),
        ([None], "gave a NoneType, no prediction"),
    ],
)
def test_what_is_no_chunk_is_refused(start: Start, results: list[Any], said: str) -> None:
    class Odd(GatedPolicy):
        def predict(self, requests: Any) -> Any:
            return results

    engine = start("a", policy=Odd())
    engine.observe("a", seen(1))
    with pytest.raises(ServingError, match=said):
        engine.answer("a")


def test_a_hung_prediction_is_refused_and_so_is_what_comes_after(start: Start) -> None:
    policy = GatedPolicy()
    policy.hang.add(1)
    got: list[Reply] = []
    engine = start("a", "queued", "pushed", policy=policy, most_batched=1, **HANG)
    engine.subscribe("pushed", got.append)
    engine.observe("a", seen(1))
    hung = Asking(engine, "a")
    wait_until(lambda: policy.batches, "the prediction that hangs")
    engine.observe("queued", seen(5))
    queued = Asking(engine, "queued")
    for asking in (hung, queued):
        assert asking.error.kind == "timed_out"
        assert "has not answered for over 0.2 s" in str(asking.error)
    engine.observe("pushed", seen(7))
    wait_until(lambda: got, "the subscriber to be told")
    assert isinstance(got[0], Refusal)
    assert got[0].kind == "timed_out"
    engine.observe("queued", seen(6))
    assert Asking(engine, "queued").error.kind == "timed_out"
    engine.ready("new")
    with pytest.raises(ServingError, match="has not answered") as refused:
        engine.instruct("new", told())
    assert refused.value.kind == "timed_out"
    assert engine.metrics()["total"]["stuck"] == 1
    assert policy.batches == [[1]]

    policy.release.set()
    wait_until(lambda: not _stuck(engine), "the call to return")
    assert engine.answer("a") is None  # what came too late is thrown away
    policy.hang.clear()
    assert engine.observe("a", seen(1))  # it may be tried again
    assert Asking(engine, "a").chunk.timestep == 1
    engine.instruct("new", told())


@pytest.mark.parametrize("hangs", [0, 1])
def test_a_hang_after_a_failed_batch_refuses_who_is_still_due(start: Start, hangs: int) -> None:
    policy = GatedPolicy()
    policy.poison.add(1)
    policy.gate.clear()
    engine = start("a", "b", policy=policy, batch_window_s=LONG_S, most_batched=2, **HANG)
    asking = {}
    for client, step in (("a", 1), ("b", 2)):
        assert engine.observe(client, seen(step))
        asking[step] = Asking(engine, client)
    wait_until(lambda: policy.batches, "the batch")
    # The batch raises; then one by one, and the call for one of the two hangs.
    first, second = policy.batches[0]
    stuck = (first, second)[hangs]
    retried = threading.Event()

    def predict(requests: Any) -> Any:
        if [request.observation.timestep for request in requests] == [stuck]:
            policy.release.wait(LONG_S)
        retried.set()
        return once(requests)

    once, policy.predict = policy.predict, predict  # type: ignore[method-assign]
    policy.gate.set()
    assert asking[stuck].error.kind == "timed_out"
    if hangs == 0:
        assert asking[second].error.kind == "timed_out"
        assert not retried.is_set()
    elif first == 1:
        assert asking[1].error.kind == "failed"
    else:
        assert asking[2].chunk.timestep == 2
    for session in engine._sessions:
        assert session.running == 0
        assert not session.outbox  # nobody is refused besides
    policy.release.set()


def _stuck(engine: Engine) -> bool:
    return any(policy["stuck_now"] for policy in engine.metrics()["policies"].values())


def test_a_policy_stuck_for_long_gets_a_fresh_copy(
    serve: Callable[..., Engine], shelf: Shelf
) -> None:
    engine = serve("a", "b", inference_timeout_s=0.1, replace_after_s=0.1, most_replaced=1)
    for client in ("a", "b"):
        engine.instruct(client, told("p"))
    old = shelf.loaded[0][1]
    old.hang.add(1)
    got: list[Reply] = []
    engine.subscribe("b", got.append)
    engine.observe("a", seen(1))
    assert Asking(engine, "a").error.kind == "timed_out"
    wait_until(lambda: len(shelf.loaded) == 2 and not _stuck(engine), "the fresh copy")
    assert engine.observe("a", seen(2))
    assert Asking(engine, "a").chunk.timestep == 2
    engine.observe("b", seen(1))
    wait_until(lambda: any(isinstance(reply, Chunk) for reply in got), "a pushed answer")
    assert shelf.loaded[1][1].batches == [[2], [1]]
    assert engine.metrics()["total"]["fresh_copies"] == 1
    old.release.set()  # what comes of the old copy now concerns nobody
    assert engine.answer("a") is None

    shelf.loaded[1][1].hang.add(9)
    assert engine.observe("a", seen(9, must_go=True))
    assert Asking(engine, "a").error.kind == "timed_out"
    began = time.monotonic()
    wait_until(lambda: time.monotonic() > began + 0.5, "some ticks of the keeper")
    assert len(shelf.loaded) == 2  # no more copies than allowed
    assert _stuck(engine)


def _hung(engine: Engine, shelf: Shelf, client: str, path: str) -> GatedPolicy:
    """The policy at the path, after it was loaded for the client and hung."""
    engine.ready(client)
    engine.instruct(client, told(path))
    policy = shelf.loaded[-1][1]
    policy.hang.add(1)
    engine.observe(client, seen(1))
    assert Asking(engine, client).error.kind == "timed_out"
    return policy


def _left_behind(engine: Engine) -> int:
    count: int = engine.metrics()["total"]["left_behind"]
    return count


def test_policies_that_hang_are_left_behind_in_a_bounded_number(
    serve: Callable[..., Engine], shelf: Shelf
) -> None:
    engine = serve(most_policies=1, most_left_behind=2, **HANG)
    first = _hung(engine, shelf, "a", "p")
    _hung(engine, shelf, "a", "q")
    assert _left_behind(engine) == 1
    _hung(engine, shelf, "a", "r")
    assert _left_behind(engine) == 2
    engine.ready("a")
    with pytest.raises(ServingError, match=r"p on cpu hangs, and 2 policies.*restart") as refused:
        engine.instruct("a", told("p"))
    assert refused.value.kind == "failed"
    with pytest.raises(ServingError, match="1 policies are in use, loading or hung") as refused:
        engine.instruct("a", told("s"))  # r hangs and keeps its place
    assert refused.value.kind == "busy"
    assert shelf.paths == ["p", "q", "r"]
    first.release.set()
    wait_until(lambda: _left_behind(engine) == 1, "a call to return after all")
    engine.instruct("a", told("s"))
    assert _left_behind(engine) == 2


def test_no_more_copies_are_left_behind_than_may_be(
    serve: Callable[..., Engine], shelf: Shelf
) -> None:
    engine = serve("a", inference_timeout_s=0.1, replace_after_s=0.1, most_left_behind=1)
    _hung(engine, shelf, "a", "p")
    wait_until(lambda: len(shelf.loaded) == 2 and not _stuck(engine), "the fresh copy")
    assert _left_behind(engine) == 1
    shelf.loaded[1][1].hang.add(2)
    engine.observe("a", seen(2))
    assert Asking(engine, "a").error.kind == "timed_out"
    (entry,) = engine._store.entries()
    with engine._lock:
        engine._store.replace_stuck(time.monotonic() + LONG_S)
        assert not entry.copying
    shelf.loaded[0][1].release.set()
    wait_until(lambda: len(shelf.loaded) == 3 and not _stuck(engine), "a copy, once one is gone")


def test_a_fresh_copy_is_not_used_where_the_call_returned_meanwhile(
    serve: Callable[..., Engine], shelf: Shelf
) -> None:
    engine = serve("a", inference_timeout_s=0.1, replace_after_s=0.1)
    engine.instruct("a", told("p"))
    old = shelf.loaded[0][1]
    old.hang.add(1)
    shelf.closed["p"] = threading.Event()
    engine.observe("a", seen(1))
    assert Asking(engine, "a").error.kind == "timed_out"
    wait_until(lambda: len(shelf.began) == 2, "the copy to be loaded")
    old.release.set()
    wait_until(lambda: not _stuck(engine), "the call to return")
    shelf.closed["p"].set()
    wait_until(lambda: len(shelf.loaded) == 2, "the copy")
    engine.observe("a", seen(2))
    assert Asking(engine, "a").chunk.timestep == 2
    assert old.batches == [[1], [2]]


def test_a_copy_that_does_not_fit_is_said(serve: Callable[..., Engine], shelf: Shelf) -> None:
    engine = serve("a", inference_timeout_s=0.1, replace_after_s=0.1)
    engine.instruct("a", told("p"))
    shelf.loaded[0][1].hang.add(1)
    shelf.made = lambda policy: setattr(policy, "misfit", True)
    engine.observe("a", seen(1))
    assert Asking(engine, "a").error.kind == "timed_out"
    wait_until(lambda: len(shelf.loaded) == 2 and not _stuck(engine), "the fresh copy")
    with pytest.raises(ServingError, match="send instructions first"):
        engine.observe("a", seen(2))


def test_clients_share_one_load(serve: Callable[..., Engine], shelf: Shelf) -> None:
    clients = [f"c{n}" for n in range(5)]
    engine = serve(*clients)
    shelf.closed["p"] = threading.Event()
    loading = [
        Instructing(engine, client, told("p", actions_per_chunk=n + 1, rename={"x": client}))
        for n, client in enumerate(clients)
    ]
    wait_until(lambda: shelf.began, "the load")
    shelf.closed["p"].set()
    assert [one.end() for one in loading] == [None] * 5
    assert shelf.began == ["p"]
    for n, client in enumerate(clients):
        engine.observe(client, seen(n))
        assert Asking(engine, client).chunk.actions.shape == (n + 1, 2)


def test_loading_holds_nobody_else_up(serve: Callable[..., Engine], shelf: Shelf) -> None:
    engine = serve("a", "b", "c", load_timeout_s=0.2)
    engine.instruct("a", told("p"))
    shelf.closed["q"] = threading.Event()
    with pytest.raises(ServingError, match="still loading: ask again") as refused:
        engine.instruct("b", told("q"))
    assert refused.value.kind == "timed_out"
    engine.observe("a", seen(1))
    assert Asking(engine, "a").chunk.timestep == 1
    engine.instruct("c", told("r"))
    shelf.closed["q"].set()
    wait_until(lambda: "q" in shelf.paths, "the policy")
    engine.instruct("b", told("q"))
    assert shelf.began == ["p", "q", "r"]


def test_a_load_that_fails_is_said_and_tried_again(
    serve: Callable[..., Engine], shelf: Shelf
) -> None:
    engine = serve("a", "b")
    shelf.errors["p"] = OSError("no space\nleft")
    shelf.closed["p"] = threading.Event()
    both = [Instructing(engine, client, told("p")) for client in ("a", "b")]
    wait_until(lambda: engine.metrics()["policies"], "the load")
    wait_until(
        lambda: next(iter(engine.metrics()["policies"].values()))["sessions"] == 2, "both to wait"
    )
    shelf.closed["p"].set()
    for one in both:
        error = one.end()
        assert error is not None
        assert error.kind == "failed"
        assert "p on cpu cannot be loaded: OSError: no space left" in str(error)
    shelf.errors["p"] = ServingError("not_found", "no such path")
    with pytest.raises(ServingError, match="no such path") as refused:
        engine.instruct("a", told("p"))
    assert refused.value.kind == "not_found"
    del shelf.errors["p"]
    engine.instruct("a", told("p"))


def test_what_is_no_policy_is_said(serve: Callable[..., Engine], shelf: Shelf) -> None:
    shelf.made = lambda policy: delattr(policy, "most_batched")
    with pytest.raises(ServingError, match=r"cannot be loaded: AttributeError"):
        serve("a").instruct("a", told("p"))


def test_a_policy_that_does_not_fit_keeps_no_place(
    serve: Callable[..., Engine], shelf: Shelf
) -> None:
    engine = serve("a", most_policies=1)
    shelf.made = lambda policy: setattr(policy, "misfit", True)
    with pytest.raises(ServingError, match="does not fit"):
        engine.instruct("a", told("p"))
    shelf.made = lambda policy: None
    engine.instruct("a", told("q"))


def test_unused_policies_are_kept_while_there_is_room(
    serve: Callable[..., Engine], shelf: Shelf
) -> None:
    engine = serve("a", "b", most_policies=2)
    for path in ("p", "q", "p", "r", "p", "q"):  # q goes for r, then r for q
        engine.instruct("a", told(path))
    assert shelf.paths == ["p", "q", "r", "q"]
    engine.instruct("b", told("p"))
    with pytest.raises(ServingError, match="2 policies are in use") as refused:
        engine.ready("c")
        engine.instruct("c", told("s"))
    assert refused.value.kind == "busy"
    engine.forget("a")
    engine.instruct("c", told("s"))
    assert shelf.paths[-1] == "s"
    assert engine.metrics()["sessions"] == 2


def test_a_session_that_ends_while_its_policy_loads_keeps_no_place(
    serve: Callable[..., Engine], shelf: Shelf
) -> None:
    engine = serve("a", most_policies=1)
    shelf.closed["p"] = threading.Event()
    loading = Instructing(engine, "a", told("p"))
    wait_until(lambda: shelf.began, "the load")
    engine.ready("a")
    error = loading.end()  # while the policy loads on: its thread is not wanted for that
    assert error is not None
    assert error.kind == "no_session"
    shelf.closed["p"].set()
    wait_until(lambda: _loaded(engine), "the policy")
    engine.instruct("a", told("q"))


def _loaded(engine: Engine) -> bool:
    return all(policy["loaded"] for policy in engine.metrics()["policies"].values())


def test_loads_that_fail_are_logged_once_a_second(
    serve: Callable[..., Engine], shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    engine, tried = serve("a", most_policies=1), 0

    def fails() -> list[str]:
        nonlocal tried
        tried += 1
        shelf.errors[f"p{tried}"] = OSError("no space left")
        with pytest.raises(ServingError, match="no space left"):
            engine.instruct("a", told(f"p{tried}"))
        return caplog.messages[1:]

    began_at = time.monotonic()
    wait_until(fails, "a second line")
    assert time.monotonic() - began_at >= 1.0
    assert tried > 2
    assert f"; {tried - 2} more like it were left out" in caplog.messages[1]


def test_loads_and_evictions_are_logged_once_a_second(
    serve: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    engine, began_at = serve("a", most_policies=2), time.monotonic()
    for number in range(50):
        engine.instruct("a", told(f"p{number}"))
    for words in ("is loaded, in", "making room"):
        lines = [line for line in caplog.messages if words in line]
        assert 1 <= len(lines) <= 1 + time.monotonic() - began_at


def test_failures_of_many_policies_are_logged_once_a_second(
    serve: Callable[..., Engine], shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.made = lambda policy: policy.poison.add(1)
    engine, began_at = serve("a", most_policies=2), time.monotonic()
    for number in range(50):
        engine.instruct("a", told(f"p{number}"))
        engine.observe("a", seen(1))
        assert Asking(engine, "a").error.kind == "failed"
    lines = [line for line in caplog.messages if "poisoned" in line]
    assert 1 <= len(lines) <= 1 + time.monotonic() - began_at


def test_the_error_behind_a_loaders_refusal_is_logged(
    serve: Callable[..., Engine], shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.errors["p"] = ServingError("bad_policy", "p cannot be loaded")
    shelf.errors["p"].__cause__ = KeyError("model.layers.7")
    with pytest.raises(ServingError, match=r"^p cannot be loaded$"):
        serve("a").instruct("a", told("p"))
    assert "KeyError: 'model.layers.7'" in caplog.text


def test_new_weights_under_an_old_path_are_loaded(
    serve: Callable[..., Engine], shelf: Shelf, tmp_path: Path
) -> None:
    import os

    file = tmp_path / "model.safetensors"
    file.write_bytes(b"old")
    engine = serve("a", "b")
    engine.instruct("a", told(str(tmp_path)))
    engine.instruct("b", told(str(tmp_path)))
    os.utime(file, ns=(1, 2**61))
    engine.instruct("b", told(str(tmp_path)))
    assert len(shelf.loaded) == 2


def test_the_keeper_goes_on_after_an_error(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    policy = GatedPolicy()
    policy.hang.add(1)
    engine = start("a", policy=policy, **HANG)

    def fails(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(engine._store, "replace_stuck", fails)
    monkeypatch.setattr(engine._sessions, "drop_idle", fails)
    wait_until(lambda: "can't start new thread" in caplog.text, "the error")
    engine.observe("a", seen(1))
    with pytest.raises(ServingError, match="has not answered"):
        engine.answer("a")
    policy.release.set()


def test_what_a_client_says_cannot_write_lines_of_its_own(
    serve: Callable[..., Engine], shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    engine = serve(most_policies=1)
    for path in ("a", "b"):
        engine.ready("c")
        engine.instruct("c", told(path, device="cpu\n[SERVER] all is well\x1b[2J"))
    assert all(record.getMessage().isprintable() for record in caplog.records)
    assert "is loaded" in caplog.text
