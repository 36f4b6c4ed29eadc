"""Training on recorded sessions: what is taken from them, and both ways to train on them."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from common.session import Session, layout
from policies.base import AT_REST
from policies.qwen_vla import load_policy, save_policy
from policies.qwen_vla.images import PatchShape
from scripts.train import main
from scripts.training.data import read_traces
from scripts.training.looks import collect_looks, pictures_at
from scripts.training.recorded import TooShort, from_session
from scripts.training.small import make_small
from scripts.training.traces import Trace
from sim.demonstration_files import Demonstration, write_demonstrations
from sim.layout import HOME_DEG
from sim.rig import Reading
from sim.trace import Trace as RigTrace
from tests.sessions import START, Made, joints_at, make_session

VIEWS = ("View3", "View4")
RNG = np.random.default_rng(0)


def record(parent: Path, number: int = 0, **changed: Any) -> Path:
    """A session by the recorder's own files; each is of other length."""
    made = Made(seconds=2.6 + 0.1 * number, views=VIEWS, size=(320, 180), fps=10.0)
    return make_session(parent, dataclasses.replace(made, start=START + 100 * number, **changed))


def trace_of(folder: Path) -> Trace:
    return from_session(Session(folder), VIEWS)


def test_a_session_is_what_the_robot_did(tmp_path: Path) -> None:
    trace = trace_of(record(tmp_path))
    assert trace.times_s[0] == pytest.approx(0.0, abs=0.011)
    assert trace.times_s[-1] == pytest.approx(2.59, abs=0.011)
    assert not trace.excluded.any()
    wanted = np.array([joints_at(at) for at in trace.times_s])
    # The senders' clocks are known to about the delay of 2 ms.
    assert trace.joints_deg == pytest.approx(wanted, abs=0.05)
    # It ends where the arm was, on average, in the last second.
    last = [joints_at(at) for at in np.arange(1.59, 2.6, 0.01)]
    assert trace.goal_deg == pytest.approx(np.mean(last, axis=0), abs=0.06)
    assert trace.seen_s == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0, 2.5], abs=0.01)
    session = Session(tmp_path / layout.folder_name(layout.stamp_of(START)))
    for place, seen_s in enumerate(trace.seen_s):
        for view in VIEWS:
            shown = trace.pictures[view][place]
            entry = min(
                session.frames(view), key=lambda e: abs(e.captured_at - START - seen_s - 0.001)
            )
            assert shown == entry.read()


def test_a_window_holds_the_newest_samples(tmp_path: Path) -> None:
    folder = record(tmp_path)
    trace, samples = trace_of(folder), Session(folder).samples
    window = trace.window(1.2, 65, RNG)
    assert window.shape == (65, 1026)
    first = int(np.flatnonzero(samples.alines[:, 0] == window[0, 1])[0])
    assert np.array_equal(window[:, 1:], samples.alines[first : first + 65])
    assert np.array_equal(window[:, 0], samples.forces[first : first + 65])
    assert samples.timestamps[first + 64] - (START - 5.0) == pytest.approx(1.2, abs=0.006)
    assert len(trace.window(0.02, 65, RNG)) < 65


def edit_states(folder: Path, kept: Callable[[int, list[str]], bool]) -> None:
    (path,) = folder.glob("robot_state_*.csv")
    head, *rows = path.read_text().splitlines()
    rows = [row for number, row in enumerate(rows) if kept(number, row.split(","))]
    path.write_text("\n".join([head, *rows]) + "\n")


def edit_samples(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    (path,) = folder.glob("sensor_data_*.npz")
    with np.load(path) as file:
        arrays = change(dict(file))
    np.savez(path, **arrays)


def excluded_s(trace: Trace) -> list[float]:
    """The moments that are no example."""
    return [round(float(at), 2) for at in trace.times_s[trace.excluded]]


def test_where_the_arm_was_in_a_gap_is_not_made_up(tmp_path: Path) -> None:
    folder = record(tmp_path)
    edit_states(folder, lambda number, _: not 100 <= number < 150)
    # The last state before the gap, which reaches to the next.
    assert excluded_s(trace_of(folder)) == [pytest.approx(0.99, abs=0.02)]


def test_ticks_without_samples_or_pictures_are_no_examples(tmp_path: Path) -> None:
    folder = record(tmp_path / "a")
    edit_samples(
        folder,
        lambda arrays: {
            name: values[
                ~((arrays["timestamps"] > START - 4.0) & (arrays["timestamps"] < START - 3.6))
            ]
            for name, values in arrays.items()
        },
    )
    apart = excluded_s(trace_of(folder))
    assert apart[0] == pytest.approx(1.1, abs=0.03)
    assert apart[-1] == pytest.approx(1.4, abs=0.03)
    assert len(apart) == pytest.approx(30, abs=3)
    other = record(tmp_path / "b", seconds=4.5)
    for entry in Session(other).frames("View4"):
        if entry.captured_at > START + 1.0:
            entry.path.unlink()
    (index,) = other.glob("frames_*.csv")
    index.write_text(
        "".join(
            line
            for line in index.read_text().splitlines(keepends=True)
            if not line.startswith("View4") or (other / "View4" / line.split(",")[1]).exists()
        )
    )
    trace = trace_of(other)
    # The last look is of the last picture of both views, and serves for two seconds.
    assert trace.seen_s == pytest.approx([0.0, 0.5, 0.9], abs=0.01)
    assert excluded_s(trace)[0] == pytest.approx(trace.seen_s[-1] + 2.0, abs=0.02)
    assert excluded_s(trace)[-1] == pytest.approx(4.49, abs=0.02)


def test_samples_out_of_order_are_put_in_order(tmp_path: Path) -> None:
    folder, other = record(tmp_path / "a"), record(tmp_path / "b")
    order = np.arange(1690)
    order[300:320] = order[300:320][::-1]
    edit_samples(other, lambda arrays: {name: values[order] for name, values in arrays.items()})
    wanted, given = (trace_of(one).window(0.6, 300, RNG) for one in (folder, other))
    assert np.array_equal(wanted, given)


@pytest.mark.parametrize("what", ["no states", "no samples", "no view", "no joint", "no force"])
def test_what_cannot_be_learned_from(tmp_path: Path, what: str) -> None:
    folder = record(tmp_path)
    views = VIEWS
    if what == "no states":
        edit_states(folder, lambda *_: False)
    elif what == "no samples":
        (next(folder.glob("sensor_data_*.npz"))).unlink()
    elif what == "no view":
        views = ("View3", "View9")
    elif what == "no joint":
        (path,) = folder.glob("robot_state_*.csv")
        head, first, *rows = path.read_text().splitlines()
        values = first.split(",")
        values[head.split(",").index("joint_2")] = "nan"
        path.write_text("\n".join([head, ",".join(values), *rows]) + "\n")
    else:

        def spoil(arrays: dict[str, Any]) -> dict[str, Any]:
            arrays["forces"][700] = np.nan
            return arrays

        edit_samples(folder, spoil)
    with pytest.raises(ValueError, match=r"no number|nothing recorded of") as raised:
        from_session(Session(folder), views).window(1.1, 65, RNG)
    assert str(folder) in str(raised.value)


def test_a_short_one_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    short = record(tmp_path, 1, seconds=0.9)
    with pytest.raises(TooShort, match="shorter than 1 s"):
        trace_of(short)
    with pytest.raises(ValueError, match="no session in it is an example"):
        read_traces([tmp_path], VIEWS)
    record(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert len(read_traces([tmp_path], VIEWS)) == 1
    assert "1 of 2 sessions used" in caplog.text


def test_a_session_marked_as_failed_is_left_out(tmp_path: Path) -> None:
    folders = [record(tmp_path, number) for number in range(3)]
    assert len(read_traces([tmp_path], VIEWS)) == 3
    (folders[1] / "failed").touch()
    ends = {one.source for one in read_traces([tmp_path], VIEWS)}
    assert ends == {str(folders[0]), str(folders[2])}
    # One by itself, whose samples are an npz in its folder.
    assert len(read_traces([folders[0]], VIEWS)) == 1
    with pytest.raises(ValueError, match="no session in it is an example"):
        read_traces([folders[1]], VIEWS)


def test_of_the_rigs_sessions_those_are_used_that_succeeded(tmp_path: Path) -> None:
    folders = [record(tmp_path, number) for number in range(4)]
    # Three episodes were judged, the last was cut short.
    rig = RigTrace(tmp_path / "rig.csv")
    for number in range(4):
        for row in range(28):
            at = START + 100 * number - 0.05 + 0.1 * row
            rig.add(
                at,
                np.zeros(6),
                Reading(0.1 * row, 2.0, 0.0, 1.0, 0.0, 0.0, np.zeros(3)),
                number + 7,
                3,
            )
    rig.close()
    entries = [
        {"number": n + 7, "seed": 3, "success": n != 1, "took_s": 2.0, "reason": "", "rms_mm": 0.1}
        for n in range(3)
    ]
    (tmp_path / "score.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    used = {one.source for one in read_traces([tmp_path], VIEWS)}
    assert used == {str(folders[0]), str(folders[2])}


def test_looks_have_the_goal_of_their_own_episode(tmp_path: Path) -> None:
    for number in range(2):
        record(tmp_path, number)
    traces = read_traces([tmp_path], VIEWS)
    config = make_small(VIEWS, torch.tensor([HOME_DEG])).config
    looks = collect_looks(traces, config, PatchShape())
    assert looks.trace.tolist() == [0] * len(traces[0].seen_s) + [1] * len(traces[1].seen_s)
    for place, number in enumerate(looks.trace):
        assert looks.goals_deg[place].numpy() == pytest.approx(traces[number].goal_deg, abs=1e-4)
    assert looks.seen_s.tolist() == [*traces[0].seen_s, *traces[1].seen_s]
    record(tmp_path / "other", 5, size=(320, 240))
    both = [*traces, *read_traces([tmp_path / "other"], VIEWS)]
    with pytest.raises(ValueError, match="pictures of one shape"):
        collect_looks(both, config, PatchShape())


def test_demonstrations_without_the_views_are_said(tmp_path: Path) -> None:
    made = Demonstration(
        seed=1,
        goal_deg=np.zeros(6),
        times_s=np.zeros(1),
        joints_deg=np.zeros((1, 6)),
        ticks_s=np.zeros(0),
        rows_deg=np.zeros((0, 16, 6), np.float32),
        sampled_s=np.zeros(1),
        forces_n=np.zeros(1, np.float32),
        distances_mm=np.zeros(1, np.float32),
        seen_s=np.zeros(0),
        pictures={"View3": []},
    )
    write_demonstrations(tmp_path / "0.npz", [made])
    with pytest.raises(ValueError, match="no pictures of View4"):
        read_traces([tmp_path], VIEWS)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    given = [*arguments, "--batch", 4, "--threads", 1]
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, given)])
    return main()


def test_a_policy_is_trained_on_sessions_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pictures of another shape than the rig's.
    for number in range(2):
        record(tmp_path / "data", number, size=(320, 240))
    out, work = tmp_path / "policy", tmp_path / "work"
    arguments = ["--data", tmp_path / "data", "--out", out, "--work", work]
    arguments += ["--feel-steps", 2, "--look-steps", 2, "--act-steps", 2]
    assert run(monkeypatch, *arguments) == 0
    policy = load_policy(out, device="cpu")
    (trace, _) = read_traces([tmp_path / "data"], VIEWS)
    pictures = dict(zip(VIEWS, pictures_at(trace, 0, VIEWS), strict=True))
    assert pictures["View3"].shape == (240, 320, 3)
    features = policy.encode(pictures, policy.spec.task)
    robot = dataclasses.replace(AT_REST, joints=tuple(trace.joints_deg[0]))
    chunk = policy.act(features, trace.window(0.2, 65, RNG), robot)
    assert chunk.actions.shape == (16, 7)
    assert np.abs(chunk.actions[:, :6] - trace.joints_deg[0]).max() < 60.0


def test_the_fast_half_of_a_checkpoint_is_tuned_and_the_slow_half_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    for number in range(3):
        record(tmp_path / "data", number)
    work, states = tmp_path / "work", []
    for seed in (0, 1):
        base, out = tmp_path / f"base{seed}", tmp_path / f"tuned{seed}"
        save_policy(make_small(VIEWS, torch.tensor([HOME_DEG]), 8, seed).policy(), base)
        arguments = ["--data", tmp_path / "data", "--checkpoint", base, "--out", out]
        assert run(monkeypatch, *arguments, "--work", work, "--act-steps", 3) == 0
        before, after = (load_file(one / "model.safetensors") for one in (base, out))
        assert before.keys() == after.keys()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert {name for name in before if name.startswith("vl_model.")}.isdisjoint(changed)
        for part in ("sensor_encoder.", "action_expert."):
            own = {name for name in before if name.startswith(part)}
            assert len(own & changed) > 0.7 * len(own)
        # What has no example is left alone.
        for name in ("weight", "bias"):
            assert not after[f"action_expert.output_head.1.{name}"][6:].any()
        states.append(sorted(path.name for path in work.glob("*.pt")))
        old, new = (load_policy(one, device="cpu") for one in (base, out))
        picture = RNG.integers(0, 256, (180, 320, 3), dtype=np.uint8)
        given = [one.encode(dict.fromkeys(VIEWS, picture), one.spec.task) for one in (old, new)]
        assert torch.equal(*given)
        robot = dataclasses.replace(AT_REST, joints=joints_at(1.0))
        window = np.zeros((65, 1026), np.float32)
        chunks = [one.act(given[0], window, robot).actions for one in (old, new)]
        assert chunks[1].shape == (8, 7)
        assert not np.allclose(*chunks, atol=1e-3)
    # Tuning another checkpoint in the same folder does not go on from the first one's state.
    assert [len(names) for names in states] == [1, 2]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, "two at least in which the arm moves"),
        ({"aline_length": 99}, "100 values in a sample, the policy takes 1026"),
        ({"views": ("View1",)}, "nothing recorded of View3, View4"),
    ],
)
def test_what_does_not_fit_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, Any],
    said: str,
) -> None:
    for number in range(2 if changed else 1):
        record(tmp_path / "data", number, **changed)
    arguments = ["--data", tmp_path / "data", "--work", tmp_path / "w", "--out", tmp_path / "o"]
    with pytest.raises(SystemExit) as left:
        run(monkeypatch, *arguments, "--feel-steps", 1, "--look-steps", 1, "--act-steps", 1)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
