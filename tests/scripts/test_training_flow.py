"""Training a flow head: it learns, goes on where it was stopped, and gives a policy that runs."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from policies.base import AT_REST
from policies.flow import RtcChunker, load_flow
from policies.flow.storing import empty_parts
from policies.qwen_vla import load_policy, save_policy
from policies.qwen_vla.policy import QwenVlaPolicy
from scripts.train_flow import main
from scripts.training.act import Batch, Episodes
from scripts.training.errors import TipMetric
from scripts.training.flow import FlowTrainer, Scales, measured_scales
from scripts.training.loop import Schedule
from scripts.training.small import make_small, without_dropout
from scripts.training.traces import Trace, from_demonstration
from sim.demonstration_files import Demonstration, write_demonstrations
from sim.demonstrations import Demonstrator
from sim.layout import HOME_DEG
from tests.support import ROOT

VIEWS = ("View3", "View4")


@pytest.fixture(scope="module")
def made() -> Iterator[list[Demonstration]]:
    with closing(Demonstrator(VIEWS, 320, 180)) as demonstrator:
        kinds = ("inside", "look")
        yield [demonstrator.make(seed, kinds[seed % 2]) for seed in range(12)]


@pytest.fixture(scope="module")
def traces(made: list[Demonstration]) -> list[Trace]:
    return [from_demonstration(one) for one in made]


@pytest.fixture(scope="module")
def base(traces: list[Trace]) -> QwenVlaPolicy:
    torch.set_num_threads(1)
    goals = torch.tensor(np.array([trace.goal_deg for trace in traces]), dtype=torch.float32)
    return make_small(VIEWS, goals).policy()


@pytest.fixture(scope="module")
def episodes(base: QwenVlaPolicy, traces: list[Trace]) -> Episodes:
    numbers = np.concatenate([[n] * len(t.seen_s) for n, t in enumerate(traces)])
    seen = np.concatenate([t.seen_s for t in traces])
    features = torch.randn(len(seen), 128, generator=torch.Generator().manual_seed(0))
    return Episodes(base.config, traces, features, numbers, seen, 0.0, base.fast.action_expert)


def trainer_of(base: QwenVlaPolicy, scales: Scales, draws: int = 2) -> FlowTrainer:
    torch.manual_seed(3)
    sensor, head = empty_parts(base.config)
    for module in (sensor, head):
        without_dropout(module)
    return FlowTrainer(sensor, head, scales, TipMetric(HOME_DEG, (0.0, 0.0, 70.0)), draws)


def drawn(episodes: Episodes, count: int, seed: int = 9) -> list[Batch]:
    rng = np.random.default_rng(seed)
    return [episodes.draw(16, rng) for _ in range(count)]


def test_scales_are_of_the_rows_that_are_examples() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn((500, 6), generator=generator) * 30
    steps = torch.arange(1, 5).view(1, 4, 1) * torch.tensor([1.0, 2.0, 0.5, 1.0, 1.0, 0.0])
    rows = start.unsqueeze(1) + 3.0 + steps * torch.randn((500, 4, 6), generator=generator)
    valid = torch.rand((500, 4), generator=generator) < 0.7
    rows[~valid] = 1e6
    empty = torch.empty(0)
    parts = [Batch(empty, empty, start[k::2], rows[k::2], valid[k::2]) for k in range(2)]
    scales = measured_scales(parts)
    assert scales.center_deg.numpy() == pytest.approx(3.0, abs=0.9)
    assert (scales.scale_deg[:, :5] / steps[0, :, :5]).numpy() == pytest.approx(1.0, abs=0.12)
    # A joint that stands still does not become loud.
    assert scales.scale_deg[:, 5].numpy() == pytest.approx(0.01, abs=1e-6)


def test_what_is_no_example_teaches_nothing(base: QwenVlaPolicy, episodes: Episodes) -> None:
    batch = episodes.draw(16, np.random.default_rng(2))
    valid = batch.valid.clone()
    valid[:, 6:] = False
    valid[0] = False  # a push begins at once
    trainer = trainer_of(base, measured_scales([batch])).eval()
    rows = batch.rows_deg.clone()
    losses = []
    for off in (0.0, 50.0):
        rows[~valid] = batch.rows_deg[~valid] + off
        part = dataclasses.replace(batch, rows_deg=rows, valid=valid)
        losses.append(trainer.loss(part, torch.Generator().manual_seed(0)).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert np.isfinite(losses).all()


def test_a_flow_is_learned_and_goes_on_where_it_was(
    base: QwenVlaPolicy, episodes: Episodes, tmp_path: Path
) -> None:
    kept = drawn(episodes, 1)
    scales = measured_scales(drawn(episodes, 2, seed=1))
    reports: dict[str, dict[int, dict[str, float]]] = {"whole": {}, "parts": {}}
    weights = []
    for name, stops in (("whole", (12,)), ("parts", (6, 12))):
        for stop in stops:
            trainer = trainer_of(base, scales)

            def report(
                step: int, figures: dict[str, float], name: str = name, stop: int = stop
            ) -> None:
                reports[name][step] = figures
                if step == stop < 12:
                    raise KeyboardInterrupt

            schedule = Schedule(12, 8, 2e-3, warmup=2)
            try:
                trainer.learn(episodes, kept, schedule, tmp_path / f"{name}.pt", report, every=6)
            except KeyboardInterrupt:
                assert stop < 12
        weights.append(trainer.head.row_in.weight.detach().clone())
    before = trainer_of(base, scales).judge(kept)
    whole = reports["whole"]
    assert whole[12]["loss"] < whole[6]["loss"]
    assert whole[12]["kept_loss"] < before["kept_loss"]
    assert whole[12]["rows_mm"] < before["rows_mm"]
    assert reports["parts"][12]["kept_loss"] == pytest.approx(whole[12]["kept_loss"], rel=1e-3)
    assert torch.allclose(weights[0], weights[1], atol=1e-5)
    # Its encoder comes from the base, with the means and deviations that it was used to.
    known = dict(trainer_of(base, scales).sensor.named_buffers())
    now = dict(trainer.sensor.named_buffers())
    assert any("running_mean" in name for name in known)
    assert all(torch.equal(known[name], now[name]) for name in known)


def test_a_head_may_begin_as_the_direct_one(base: QwenVlaPolicy) -> None:
    _, head = empty_parts(base.config)
    way_out = head.get_parameter("output_head.1.weight").clone()
    head.begin_as(base.fast.action_expert)
    for name in ("fusion_proj.weight", "pos_embed", "temporal_decoder.layers.0.linear1.weight"):
        assert torch.equal(head.get_parameter(name), base.fast.action_expert.get_parameter(name))
    assert torch.equal(head.get_parameter("output_head.1.weight"), way_out)


def test_one_command_trains_a_head_that_runs(
    base: QwenVlaPolicy,
    made: list[Demonstration],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, out, work = tmp_path / "data", tmp_path / "flow", tmp_path / "work"
    data.mkdir()
    write_demonstrations(data / "0.npz", made)
    save_policy(base, tmp_path / "policy")
    arguments = ["--base", tmp_path / "policy", "--data", data, "--out", out, "--work", work]
    arguments += ["--kept", 0.3, "--steps", 3, "--batch", 4, "--threads", 1]
    monkeypatch.setattr(sys, "argv", ["train_flow.py", *map(str, arguments)])
    assert main() == 0
    assert f"flow head  {out}" in capsys.readouterr().out
    assert (work / "flow.png").read_bytes().startswith(b"\x89PNG")
    entries = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    assert [entry["stage"] for entry in entries] == ["flow"]
    assert len(list(work.glob("flow-*.pt"))) == 1
    policy = load_flow(out, device="cpu")
    assert policy.base.spec.identity == load_policy(tmp_path / "policy").spec.identity
    # The sensor encoder is a copy of the base's, and has gone on from there.
    own, old = policy.fast.sensor_encoder, base.fast.sensor_encoder
    assert own is not None and old is not None
    name = "conv_backbone.0.weight"
    change = (own.get_parameter(name) - old.get_parameter(name)).abs().max()
    assert 0 < change < 0.1
    robot = dataclasses.replace(AT_REST, joints=HOME_DEG)
    window = np.zeros((65, 1026), np.float32)
    chunker = RtcChunker(policy.spec.rows, policy.spec.dt)
    for now in (0.0, 0.5):
        under_way = chunker.begin(now, 0.2)
        assert (under_way is None) == (now == 0.0)
        chunk = policy.act(policy.blank(), window, robot, under_way=under_way)
        chunker.finish(chunk, now + 0.2)
        target = chunker.target(now + 0.3)
        assert target is not None
        assert np.abs(target.joints_deg - HOME_DEG).max() < 60.0


def test_it_is_a_program() -> None:
    command = [sys.executable, "scripts/train_flow.py", "--help"]
    done = subprocess.run(
        command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0
    assert "--begin {base,fresh}" in done.stdout


def test_what_cannot_be_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for base, said in ((tmp_path, "not a policy directory"), (tmp_path / "no", "no such")):
        arguments = ["train_flow.py", "--base", base, "--work", tmp_path / "work"]
        monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 2
        assert said in capsys.readouterr().err
