"""Options, the choice of a driver, and what a sender must not need."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from common.program import OptionError
from senders import cameras, registry, robot_sender, robots, sensors
from senders.registry import DriverEntry

PROGRAMS = ["robot_sender", "jetson_camera_sender", "force_sensor_sender"]


def on(script: str) -> tuple[str, ...]:
    return ("--robot", "on") if script == "robot_sender" else ()


@pytest.mark.parametrize("script", PROGRAMS)
def test_help_shows_every_option(call: Any, script: str) -> None:
    done = call(script, "--help")
    assert done.returncode == 0
    assert all(option in done.stdout for option in ("--driver", "--config", "--duration"))
    assert "_hz" not in done.stdout


@pytest.mark.parametrize("script", PROGRAMS)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--nonsense", "1"), "--nonsense"),
        (("--port", "many"), "--port"),
        (("--port", "70000", "--driver", "synthetic"), "--port must be from 1 to 65535"),
        (("--duration", "-1", "--driver", "synthetic"), "--duration"),
        (("--driver", "abacus"), "no driver 'abacus'"),
        (("--driver", "synthetic", "--driver-options", "colour=red"), "'colour=red'"),
    ],
)
def test_a_bad_option_is_one_line_and_exit_2(
    call: Any, script: str, options: tuple[str, ...], said: str
) -> None:
    done = call(script, *on(script), *options)
    assert done.returncode == 2
    assert said in done.stderr and done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("script", "option", "value"),
    [
        ("robot_sender", "--rate-hz", "nan"),
        ("robot_sender", "--host-bind", "999.0.0.1"),
        ("robot_sender", "--speed-scale", "2"),
        ("robot_sender", "--output-dir", "/proc/no"),
        ("robot_sender", "--action-host", "no..host"),
        ("jetson_camera_sender", "--quality", "0"),
        ("jetson_camera_sender", "--server-ip", "no..host"),
        ("jetson_camera_sender", "--cameras", "a,a"),
        ("force_sensor_sender", "--batch", "16"),
        ("force_sensor_sender", "--batch", "0"),
        ("force_sensor_sender", "--server-ip", "no..host"),
    ],
)
def test_a_value_that_cannot_be_used_is_exit_2(
    call: Any, script: str, option: str, value: str
) -> None:
    done = call(script, *on(script), "--driver", "synthetic", option, value)
    assert done.returncode == 2, done.stdout
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


@pytest.mark.parametrize("script", PROGRAMS)
def test_duration_ends_a_sender_by_itself(call: Any, script: str) -> None:
    done = call(script, *on(script), "--driver", "synthetic", "--duration", "0.3")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


BLOCKER = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "mujoco", "policies", "receiver",
                                  "serving", "sim", "mecademicpy", "depthai", "pyzed", "lerobot"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
"""


@pytest.mark.parametrize("script", PROGRAMS)
def test_a_sender_runs_without_torch_and_the_other_rooms(
    start: Any, tmp_path: Path, script: str
) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(BLOCKER)
    check = subprocess.run(
        [sys.executable, "-c", "import torch"],
        env={"PYTHONPATH": str(hooks)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert "torch is blocked" in check.stderr  # the hook itself works
    options = (*on(script), "--driver", "synthetic", "--duration", "0.5")
    program = start(script, *options, blocked=str(hooks))
    assert program.ended() == 0, program.said


def test_a_drivers_options_may_be_a_map_in_the_file(call: Any, tmp_path: Path) -> None:
    config = tmp_path / "sensor.yaml"
    config.write_text("driver: synthetic\ndriver_options: {block: 7, colour: red}\n")
    done = call("force_sensor_sender", "--config", config)
    assert done.returncode == 2 and "'colour=red'" in done.stderr
    config.write_text("driver: synthetic\ndriver_options: {block: 7}\nduration: 0.2\n")
    assert call("force_sensor_sender", "--config", config).returncode == 0


def test_the_robots_options_may_stand_in_a_file(call: Any, tmp_path: Path, free_port: Any) -> None:
    config = tmp_path / "robot.yaml"
    config.write_text(f"robot: on\ndriver: synthetic\nport: {free_port()}\nspeed_scale: 2\n")
    done = call("robot_sender", "--config", config)
    assert done.returncode == 2 and "--speed-scale must be from 0.001 to 1, not 2" in done.stderr
    done = call("robot_sender", "--config", config, "--speed-scale", "0.1", "--duration", "0.2")
    assert done.returncode == 0 and "driver synthetic, publishing" in done.stdout


def test_a_receiver_that_was_never_heard_is_said(call: Any, free_port: Any) -> None:
    nobody = free_port()
    where = ("--port", free_port(), "--action-host", "127.0.0.1", "--action-port", nobody)
    options = (*on("robot_sender"), "--driver", "synthetic", *where, "--duration", "0.3")
    done = call("robot_sender", *options, "--accept-actions")
    assert f"| no action yet from 127.0.0.1:{nobody} |" in done.stdout
    assert "no action yet" not in call("robot_sender", *options).stdout


@pytest.mark.parametrize("script", PROGRAMS)
def test_without_a_device_a_driver_must_be_named(start: Any, tmp_path: Path, script: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCKER)
    program = start(script, *on(script), blocked=str(tmp_path))
    assert program.ended() == 2
    assert "no device's is installed; pick one with --driver: " in program.said
    assert "synthetic (" in program.said and program.said.count("\n") == 1


# --- the table -----------------------------------------------------------------------------------

PLAIN = DriverEntry("senders.robots.synthetic:SyntheticRobot", "made up", real=False)
MISSING = DriverEntry("nowhere:Robot", "a robot", needs="no_such_package", extra="arm")
THERE = DriverEntry("senders.robots.synthetic:SyntheticRobot", "a robot", needs="json")


def test_made_up_data_is_never_chosen_unasked() -> None:
    with pytest.raises(OptionError, match=r"no device's is installed.*pip install '\.\[arm\]'"):
        registry.choose({"made_up": PLAIN, "arm": MISSING}, None)
    assert registry.choose({"made_up": PLAIN, "arm": MISSING}, "made_up") == "made_up"


def test_the_one_device_whose_package_is_there_is_chosen() -> None:
    table = {"made_up": PLAIN, "arm": MISSING, "other": THERE}
    assert registry.choose(table, None) == "other"
    with pytest.raises(OptionError, match="several are installed: other, third"):
        registry.choose({**table, "third": THERE}, None)


def test_a_missing_package_is_one_line_with_what_installs_it() -> None:
    with pytest.raises(OptionError, match=r"needs no_such_package: pip install '\.\[arm\]'"):
        registry.choose({"arm": MISSING}, "arm")
    installed = dataclasses.replace(MISSING, needs="json")
    with pytest.raises(OptionError, match=r"cannot be loaded.*pip install '\.\[arm\]'"):
        registry.make({"arm": installed}, "arm", {})


def test_a_driver_gets_what_it_takes_in_its_own_types() -> None:
    robot = registry.make({"r": PLAIN}, "r", {"rate_hz": 5}, ["sway_deg=4", "episode_s=2.5"])
    assert robot._sway_deg == 4.0 and isinstance(robot._sway_deg, float)
    with pytest.raises(OptionError, match="sway_deg must be a float"):
        registry.make({"r": PLAIN}, "r", {}, ["sway_deg=wide"])
    for value in ("nan", "inf", "-inf"):
        with pytest.raises(OptionError, match="sway_deg must be a finite number"):
            registry.make({"r": PLAIN}, "r", {}, [f"sway_deg={value}"])


def test_what_the_program_sets_is_no_drivers_option() -> None:
    offered = {"sway_hz": 0.1, "moves": False}
    with pytest.raises(OptionError, match=r"sway_hz is not a driver's option.*see --help"):
        registry.make({"r": PLAIN}, "r", offered, ["sway_hz=1"])
    with pytest.raises(OptionError) as refused:
        registry.make({"r": PLAIN}, "r", offered, ["colour=red"])
    assert str(refused.value).endswith("--driver-options: sway_deg=… episode_s=…")
    # What this driver does not take is unknown to it, whoever offers it.
    with pytest.raises(OptionError, match="does not take 'moves=true'"):
        registry.make({"r": PLAIN}, "r", offered, ["moves=true"])


@pytest.mark.parametrize("given", ["moves=true", "speed_scale=1", "control_hz=10"])
def test_an_arm_is_not_let_loose_by_its_drivers_options(given: str, tmp_path: Path) -> None:
    pytest.importorskip("mecademicpy")
    options = robot_sender.RobotOptions("on", "meca500", (given,), output_dir=tmp_path)
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(OptionError, match=f"{given.partition('=')[0]} is not a driver's option"):
        robot_sender.send(options, stopped)


@pytest.mark.parametrize("table", [robots.DRIVERS, cameras.DRIVERS, sensors.DRIVERS])
def test_every_driver_in_the_tables_exists(table: dict[str, DriverEntry]) -> None:
    for entry in table.values():
        if not entry.installed:
            continue
        module, _, attribute = entry.factory.partition(":")
        assert callable(getattr(importlib.import_module(module), attribute))
