"""Sessions, answers and batches of the engine, with real threads."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

from serving.messages import (
    BadMessage,
    Chunk,
    FeatureReply,
    Picture,
    Refusal,
    Reply,
    ServingError,
)
from tests.serving.engines import LONG_S, Asking, GatedPolicy, Start, seen, start, told
from tests.support import wait_until

__all__ = ["start"]  # the fixture


def test_an_observation_is_answered_by_a_chunk(start: Start) -> None:
    engine = start()
    engine.ready("a")
    engine.instruct("a", told("sway?rows=40", actions_per_chunk=16, fps=20.0))
    assert engine.observe("a", seen(3, (1.0, 2.0, 3.0)))
    chunk = engine.answer("a")
    assert isinstance(chunk, Chunk)
    assert (chunk.timestep, chunk.timestamp) == (3, 1000.1)
    assert chunk.actions.shape == (16, 3)
    assert chunk.actions.dtype == np.float32
    assert chunk.dt == pytest.approx(0.05)
    assert engine.answer("a") is None  # nothing came since


def test_rows_are_a_period_of_the_server_apart_where_nobody_says(start: Start) -> None:
    engine = start("a", fps=50.0)
    engine.observe("a", seen(0))
    chunk = engine.answer("a")
    assert isinstance(chunk, Chunk)
    assert chunk.dt == pytest.approx(0.02)


def test_nothing_is_served_out_of_turn(start: Start) -> None:
    engine = start()
    for ask in (
        lambda: engine.instruct("a", told()),
        lambda: engine.observe("a", seen(0)),
        lambda: engine.answer("a"),
        lambda: engine.subscribe("a", print),
        lambda: engine.adopt("a", "b"),
    ):
        with pytest.raises(ServingError, match="say Ready first") as refused:
            ask()
        assert refused.value.kind == "no_session"
    engine.ready("a")
    with pytest.raises(ServingError, match="send instructions first"):
        engine.observe("a", seen(0))
    assert engine.metrics()["total"]["refusals"] == {"no_session": 6}


def test_observations_must_be_as_announced(start: Start) -> None:
    engine = start()
    engine.ready("a")
    announced: dict[str, Any] = {"state_names": ("x", "y"), "cameras": {"top": (4, 6, 3)}}
    engine.instruct("a", told(**announced))
    assert engine.observe("a", seen(0, cameras=["top"]))
    assert engine.observe("a", seen(1, (5.0, 5.0)))  # a camera may fail
    for observation, message in (
        (seen(2, (1.0,)), "1 state values came, 2 were announced"),
        (seen(2, cameras=["left"]), "camera 'left' was not announced"),
    ):
        with pytest.raises(BadMessage, match=message):
            engine.observe("a", observation)
    large = seen(2)
    object.__setattr__(large, "pictures", {"top": Picture(np.zeros((8, 6, 3), np.uint8))})
    with pytest.raises(BadMessage, match=r"\(8, 6, 3\) came, \(4, 6, 3\) was announced"):
        engine.observe("a", large)
    object.__setattr__(large, "pictures", {"top": Picture(jpeg=b"\xff\xd8 no picture")})
    with pytest.raises(BadMessage, match="not a JPEG"):
        engine.observe("a", large)
    assert engine.metrics()["total"]["refusals"] == {"bad_message": 4}


def test_the_newest_observation_is_predicted_from(start: Start) -> None:
    policy = GatedPolicy()
    engine = start("a", policy=policy)
    for step in range(5):
        assert engine.observe("a", seen(step, (step, 0.0)))
    worker = engine._sessions.of("a").worker
    assert worker is not None
    lane = worker._lanes[0]
    assert not lane.ready  # nobody waits for an answer yet
    assert (lane.batch, policy.batches) == (None, [])
    assert Asking(engine, "a").chunk.timestep == 4
    assert policy.batches == [[4]]
    counts = engine.metrics()["clients"]["a"]
    assert (counts["observations"], counts["replaced"], counts["answers"]) == (5, 4, 1)


def test_an_answer_waits_for_the_observation_to_come(start: Start) -> None:
    policy = GatedPolicy()
    engine = start("a", policy=policy)
    asking = Asking(engine, "a")
    engine.observe("a", seen(8))
    assert asking.chunk.timestep == 8
    assert not engine.observe("a", seen(8, (7.0, 7.0)))
    assert engine.answer("a", 0.0) is None


def test_ready_of_one_client_leaves_the_others_alone(start: Start) -> None:
    policy = GatedPolicy()
    policy.gate.clear()
    engine = start("a", "b", policy=policy)
    engine.observe("a", seen(1))
    asking = Asking(engine, "a")
    wait_until(lambda: policy.batches, "the prediction for a")
    engine.ready("b")
    engine.instruct("b", told())
    engine.observe("b", seen(1))
    policy.gate.set()
    assert asking.chunk.timestep == 1
    assert not engine.observe("a", seen(1))  # a still knows what was predicted
    assert engine.clients() == ("a", "b")


def test_ready_makes_the_clients_own_session_fresh(start: Start) -> None:
    policy = GatedPolicy()
    policy.gate.clear()
    engine = start("a", policy=policy)
    engine.observe("a", seen(1))
    asking = Asking(engine, "a")
    wait_until(lambda: policy.batches, "the prediction")
    engine.ready("a")
    assert asking.result is None  # of a session that is no more
    engine.instruct("a", told())
    policy.gate.set()
    assert engine.answer("a") is None  # what the earlier session asked for is not given to this one
    assert engine.observe("a", seen(1))
    assert Asking(engine, "a").chunk.timestep == 1


def test_other_instructions_begin_afresh_too(start: Start) -> None:
    policy = GatedPolicy()
    policy.gate.clear()
    engine = start("a", policy=policy)
    engine.observe("a", seen(1))
    asking = Asking(engine, "a", 0.0)
    wait_until(lambda: policy.batches, "the prediction")
    engine.instruct("a", told("hold?rows=7"))
    assert asking.result is None
    policy.gate.set()
    wait_until(lambda: engine.metrics()["total"]["predictions"] == 1, "the prediction's end")
    assert engine.answer("a") is None  # what the earlier policy gave is not an answer now
    engine.observe("a", seen(1))
    assert Asking(engine, "a").chunk.timestep == 1


def test_a_session_goes_on_under_another_name(start: Start) -> None:
    engine = start("a", "b")
    engine.observe("a", seen(1))
    engine.adopt("a", "b")
    assert engine.clients() == ("b",)
    assert Asking(engine, "b").chunk.timestep == 1
    engine.adopt("b", "b")
    engine.forget("b")
    engine.forget("b")
    assert engine.clients() == ()


def test_waiting_clients_are_predicted_for_at_once(start: Start) -> None:
    policy = GatedPolicy()
    policy.gate.clear()
    clients = [f"c{n}" for n in range(6)]
    engine = start(*clients, policy=policy, most_batched=4)
    worker = engine._sessions.of("c0").worker
    assert worker is not None
    ready, asking = worker._lanes[0].ready, []
    for number, client in enumerate(clients):
        engine.observe(client, seen(number))
        asking.append(Asking(engine, client))
        wait_until(lambda: policy.batches, "the first prediction")
        wait_until(lambda: len(ready) == number, "the others to gather")  # noqa: B023
    policy.gate.set()
    assert [one.chunk.actions[0, 0] for one in asking] == [0, 1, 2, 3, 4, 5]
    # One while nobody else waited; then all that had gathered, as far as they fit, in their order.
    assert policy.batches == [[0], [1, 2, 3, 4], [5]]
    assert engine.metrics()["total"]["batch_sizes"] == {"1": 2, "4": 1}


def test_a_policy_may_take_fewer_at_once_than_the_server(start: Start) -> None:
    policy = GatedPolicy(most_batched=1)
    policy.gate.clear()
    engine = start("a", "b", policy=policy)
    asking = []
    for client in ("a", "b"):
        engine.observe(client, seen(1))
        asking.append(Asking(engine, client))
    policy.gate.set()
    assert all(one.chunk.timestep == 1 for one in asking)
    assert [len(batch) for batch in policy.batches] == [1, 1]


def test_a_window_lets_others_join(start: Start) -> None:
    policy = GatedPolicy()
    engine = start("a", "b", policy=policy, batch_window_s=LONG_S, most_batched=2)
    engine.observe("a", seen(1))
    first = Asking(engine, "a")
    engine.observe("b", seen(2))
    second = Asking(engine, "b")
    # Both came, so the rest of the window is not waited for.
    assert (first.chunk.timestep, second.chunk.timestep) == (1, 2)
    assert [sorted(batch) for batch in policy.batches] == [[1, 2]]


def test_one_that_floods_does_not_starve_a_modest_one(start: Start) -> None:
    policy = GatedPolicy(most_batched=1)
    engine = start("flood", "modest", policy=policy)
    engine.subscribe("flood", lambda reply: None)
    stop = threading.Event()

    def flood() -> None:
        step = 1000
        while not stop.is_set():
            engine.observe("flood", seen(step := step + 1, must_go=True))

    flooding = threading.Thread(target=flood, daemon=True)
    flooding.start()
    modest = engine._sessions.of("modest")
    assert modest.worker is not None
    lane = modest.worker._lanes[0]
    try:
        for step in range(10):
            policy.gate.clear()
            wait_until(lambda: lane.batch is not None, "the flood to be served")
            engine.observe("modest", seen(step, (step, 0.0)))
            asking = Asking(engine, "modest")
            wait_until(
                lambda: modest in lane.ready or [step] in policy.batches,  # noqa: B023
                "the modest one to queue",
            )
            came = len(policy.batches)
            policy.gate.set()
            assert asking.chunk.timestep == step
            # After the one under way came at most the one that queued before it.
            assert policy.batches.index([step]) <= came + 1
    finally:
        stop.set()
        flooding.join(LONG_S)
    counts = engine.metrics()["clients"]
    assert counts["modest"]["answers"] == 10
    assert counts["flood"]["replaced"] > 0
    assert counts["modest"]["replaced"] == 0


def test_a_quick_answer_is_given_out_when_it_is_due(start: Start) -> None:
    engine = start("slow", "other", inference_latency_s=0.3)
    began = time.monotonic()
    engine.observe("slow", seen(1))
    assert Asking(engine, "slow").chunk.inference_s < 0.3
    assert time.monotonic() - began >= 0.3


def test_an_answer_held_back_does_not_hold_up_the_others(start: Start) -> None:
    policy = GatedPolicy()
    engine = start("a", "b", policy=policy, inference_latency_s=1.0)
    engine.observe("a", seen(1))
    first = Asking(engine, "a")
    wait_until(lambda: policy.batches, "the prediction for a")
    engine.observe("b", seen(2))
    second = Asking(engine, "b")
    wait_until(lambda: len(policy.batches) == 2, "the prediction for b")
    assert not first.done  # b was predicted for while a's answer was held back
    assert (first.chunk.timestep, second.chunk.timestep) == (1, 2)


def test_an_answer_slower_than_the_target_is_not_delayed(start: Start) -> None:
    policy = GatedPolicy()
    policy.gate.clear()
    engine = start("a", policy=policy, inference_latency_s=0.2)
    engine.observe("a", seen(1))
    asking = Asking(engine, "a")
    wait_until(lambda: policy.batches, "the prediction")
    assert not policy.gate.wait(0.25)
    policy.gate.set()
    chunk = asking.chunk
    assert chunk.inference_s > 0.2
    session = engine._sessions.of("a")
    assert not session.outbox


def test_answers_are_pushed_to_whoever_subscribed(start: Start) -> None:
    got: list[Reply] = []
    engine = start("a", inference_latency_s=0.05)
    engine.observe("a", seen(1))
    began = time.monotonic()
    engine.subscribe("a", got.append)
    wait_until(lambda: got, "the first answer")
    assert time.monotonic() - began >= 0.05
    for step in range(2, 6):
        engine.observe("a", seen(step, (step, 0.0)))
        wait_until(lambda: len(got) == step, f"answer {step}")  # noqa: B023
    assert [reply.timestep for reply in got if isinstance(reply, Chunk)] == [1, 2, 3, 4, 5]
    engine.ready("a")
    engine.instruct("a", told())
    engine.observe("a", seen(1))
    assert Asking(engine, "a").chunk.timestep == 1
    assert len(got) == 5  # the subscription has ended with the session


def test_an_answer_held_back_does_not_reach_the_next_session(start: Start) -> None:
    got: list[Reply] = []
    policy = GatedPolicy()
    engine = start("a", policy=policy, inference_latency_s=0.4)
    engine.subscribe("a", got.append)
    engine.observe("a", seen(500))
    wait_until(lambda: engine.metrics()["clients"]["a"]["answers"] == 1, "the prediction")
    engine.ready("a")
    engine.instruct("a", told())
    engine.subscribe("a", got.append)
    engine.observe("a", seen(0))
    wait_until(lambda: got, "the answer")
    assert [reply.timestep for reply in got if isinstance(reply, Chunk)] == [0]


def test_a_subscription_and_an_answer_do_not_block_each_other(start: Start) -> None:
    got: list[Reply] = []
    engine = start("a", policy=(policy := GatedPolicy()), obs_queue_timeout_s=0.0)
    policy.gate.clear()
    engine.observe("a", seen(1))
    asking = Asking(engine, "a", 0.0)
    wait_until(lambda: policy.batches, "the prediction")
    engine.subscribe("a", got.append)
    policy.gate.set()
    assert asking.result is None
    wait_until(lambda: got, "the pushed answer")


def test_a_failing_delivery_stops_nobody(start: Start) -> None:
    got: list[Reply] = []

    def broken(reply: Reply) -> None:
        raise OSError("the socket is gone")

    engine = start("a", "b")
    engine.subscribe("a", broken)
    engine.subscribe("b", got.append)
    engine.observe("a", seen(1))
    engine.observe("b", seen(1))
    wait_until(lambda: got, "b's answer")


def test_features_are_refused_by_a_policy_without(start: Start) -> None:
    engine = start("a")
    engine.observe("a", seen(1, wants="features"))
    error = Asking(engine, "a").error
    assert error.kind == "bad_policy"
    assert "ask for actions" in str(error)


def test_features_go_out_as_the_policy_packed_them(start: Start) -> None:
    class Packing(GatedPolicy):
        def predict(self, requests: Any) -> Any:
            from serving.served import Predicted

            return [Predicted(features=b"packed") for _ in requests]

    engine = start("a", policy=Packing())
    engine.observe("a", seen(1, wants="features"))
    reply = Asking(engine, "a").result
    assert isinstance(reply, FeatureReply)
    assert (reply.timestep, reply.packed) == (1, b"packed")


def test_there_are_no_more_sessions_than_allowed(start: Start) -> None:
    engine = start("a", "b", most_sessions=3)
    engine.ready("c")
    engine.ready("d")  # c never asked for a policy
    engine.instruct("d", told())
    with pytest.raises(ServingError, match="3 clients are connected") as refused:
        engine.ready("e")
    assert refused.value.kind == "busy"
    engine.ready("a")  # its own session is no further one
    assert set(engine.clients()) == {"a", "b", "d"}


def test_idle_sessions_are_dropped_and_subscribers_told(start: Start) -> None:
    got: list[Reply] = []
    engine = start("idle", "waits", session_timeout_s=0.2)
    engine.subscribe("idle", got.append)
    waiting = Asking(engine, "waits")
    wait_until(lambda: engine.clients() == ("waits",), "the idle session to be dropped")
    wait_until(lambda: got, "the subscriber to be told")
    assert isinstance(got[0], Refusal)
    assert got[0].kind == "no_session"
    assert not waiting.done  # somebody who waits is not idle
    engine.forget("waits")
    assert waiting.result is None


def test_close_lets_go_of_whoever_waits(start: Start) -> None:
    policy = GatedPolicy()
    policy.hang.add(2)
    engine = start("a", "b", policy=policy)
    idle = Asking(engine, "a")
    engine.observe("b", seen(2))
    hung = Asking(engine, "b")
    wait_until(lambda: policy.batches, "the prediction that hangs")
    closing = threading.Thread(target=engine.close, daemon=True)
    closing.start()
    assert idle.result is None
    assert hung.result is None
    closing.join(LONG_S)
    assert not closing.is_alive()  # although a prediction hangs
    with pytest.raises(ServingError, match="is stopping"):
        engine.ready("c")
    policy.release.set()


def test_metrics_say_what_happened(start: Start) -> None:
    engine = start("a", "b")
    for client in ("a", "b"):
        for step in range(3):
            engine.observe(client, seen(step, (step, 0.0)))
            assert Asking(engine, client).chunk.timestep == step
        engine.observe(client, seen(2, (9.0, 9.0)))
    engine.note_refusal("bad_message")
    metrics = engine.metrics()
    assert metrics["sessions"] == 2
    (policy,) = metrics["policies"].values()
    assert (policy["sessions"], policy["loaded"], policy["stuck_now"]) == (2, True, False)
    for counts in (policy, metrics["total"]):
        assert (counts["observations"], counts["filtered"]) == (8, 2)
        assert (counts["predictions"], counts["batches"]) == (6, 6)
        assert 0.0 <= counts["inference_ms_p50"] <= counts["inference_ms_p99"]
    assert metrics["total"]["refusals"] == {"bad_message": 1}
    assert metrics["clients"]["a"]["observations"] == 4
