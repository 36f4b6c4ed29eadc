"""The study on irregular tissue: it is what the workers run on, and is mixed with nothing else."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts import study_latency
from scripts.closed_loop import plots
from scripts.closed_loop.episode import EpisodeResult, run_episode
from scripts.closed_loop.oracle import OraclePolicy
from scripts.closed_loop.results import ResultsError, ResultsFile, read_results
from scripts.closed_loop.rig import VirtualRig
from scripts.closed_loop.score import ScoreOptions
from senders.drivers import DriverError
from sim.layout import RigConfig, TissueKind
from sim.rig import InsertionRig


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "serving")
    caplog.set_level(logging.ERROR, "senders")


def rig_of(tissue: TissueKind, limit_s: float) -> VirtualRig:
    try:
        return VirtualRig(RigConfig(tissue=tissue), ScoreOptions(limit_s=limit_s))
    except DriverError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def rows() -> Iterator[dict[str, EpisodeResult]]:
    """The same two seconds by motion of the tissue."""
    found = {}
    for kind in ("regular", "irregular"):
        rig = rig_of(kind, 2.0)
        found[kind] = run_episode(rig, OraclePolicy(rig.rig), "dual-2", 0.0, 100_000)
        rig.close()
    yield found


def test_the_oracle_follows_irregular_tissue() -> None:
    rig = rig_of("irregular", 9.0)
    row = run_episode(rig, OraclePolicy(rig.rig), "dual-4", 381.0, 11)
    rig.close()
    assert row.success, row
    assert row.rms_mm < 0.45


def test_the_study_runs_on_the_tissue_that_was_asked_for(
    tmp_path: Path,
    rows: dict[str, EpisodeResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    titles = []
    draw = plots._finish

    def noted(figure: Any, axes: Any, title: str, path: Path) -> None:
        titles.append(title)
        draw(figure, axes, title, path)

    monkeypatch.setattr(plots, "_finish", noted)
    base = ["--policy", "oracle", "--out", str(tmp_path), "--limit-s", "2", "--workers", "1"]
    base += ["--methods", "dual-2", "--latencies-ms", "0", "--episodes", "1"]
    assert study_latency.main([*base, "--tissue", "irregular"]) == 0
    (row,) = read_results(tmp_path / "episodes.csv")
    # Rows are rounded when written.
    assert row.force_n == pytest.approx(rows["irregular"].force_n, rel=1e-4)
    assert row.force_n != pytest.approx(rows["regular"].force_n, rel=1e-3)
    assert json.loads((tmp_path / "episodes.json").read_text())["tissue"] == "irregular"
    assert len(titles) == 2 and all(title.endswith("\nirregular tissue") for title in titles)


def test_the_two_motions_do_not_stand_in_one_table(tmp_path: Path) -> None:
    spec = OraclePolicy(InsertionRig()).spec
    regular, irregular = (
        study_latency._settings(study_latency.StudyOptions(policy="oracle", tissue=kind), spec)
        for kind in ("regular", "irregular")
    )
    path = tmp_path / "episodes.csv"
    ResultsFile(path, irregular).close()
    ResultsFile(path, irregular).close()
    with pytest.raises(ResultsError, match=r"another study \(tissue\)"):
        ResultsFile(path, regular)


def test_results_from_before_there_were_two_motions_are_of_the_regular_one(tmp_path: Path) -> None:
    path, older = tmp_path / "episodes.csv", {"policy": "a", "act_ms": 5.0}
    ResultsFile(path, older).close()
    assert "tissue" not in json.loads((tmp_path / "episodes.json").read_text())
    ResultsFile(path, {**older, "tissue": "regular"}).close()
    with pytest.raises(ResultsError, match=r"another study \(tissue\)"):
        ResultsFile(path, {**older, "tissue": "irregular"})
    with pytest.raises(ResultsError, match=r"another study \(act_ms\)"):
        ResultsFile(path, {**older, "act_ms": 7.0, "tissue": "regular"})


@pytest.mark.parametrize("content", ["[]", "3", "{}"])
def test_settings_that_are_none_are_another_studys(tmp_path: Path, content: str) -> None:
    path = tmp_path / "episodes.csv"
    ResultsFile(path, {"policy": "a"}).close()
    path.with_suffix(".json").write_text(content)
    with pytest.raises(ResultsError, match=r"another study \(policy"):
        ResultsFile(path, {"policy": "a", "tissue": "regular"})


def test_a_motion_that_there_is_not_ends_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        study_latency.main(["--policy", "oracle", "--tissue", "wild"])
    assert leaving.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "wild" in error and "irregular" in error
