"""`--robot.…` out of a command line: what the options become, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.cli import ConfigError
from serving.robot_arguments import combined, split


def test_the_options_of_the_contract_are_taken_out() -> None:
    argv = [
        "--server_address", "HOST:8080", "--robot.type", "so101_follower",
        "--robot.port", "/dev/ttyACM0", "--robot.id", "my_arm", "--fps", "30",
        "--robot.cameras",
        "{camera1: {type: opencv, index_or_path: /dev/video2, width: 640, height: 480, fps: 30, "
        "fourcc: MJPG}, wrist: {type: opencv, index_or_path: 0}}",
    ]  # fmt: skip
    robot, rest = split(argv)
    assert rest == ["--server_address", "HOST:8080", "--fps", "30"]
    assert robot == {
        "type": "so101_follower",
        "port": "/dev/ttyACM0",
        "id": "my_arm",
        "cameras": {
            "camera1": {
                "type": "opencv",
                "index_or_path": "/dev/video2",
                "width": 640,
                "height": 480,
                "fps": 30,
                "fourcc": "MJPG",
            },
            "wrist": {"type": "opencv", "index_or_path": 0},
        },
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("True", True),
        ("false", False),
        ("1.5", 1.5),
        ("-3", -3),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("5.", 5.0),
        ("null", None),
        ("", None),
        ("'12'", "12"),
        ("[1, 2.5, a]", [1, 2.5, "a"]),
        ("{a: {b: [1]}}", {"a": {"b": [1]}}),
        # Names, numbers on a label and addresses stay what they are.
        ("007", "007"),
        ("no", "no"),
        ("on", "on"),
        ("11:22:33", "11:22:33"),
        ("2024-01-01", "2024-01-01"),
        ("192.168.0.100", "192.168.0.100"),
        ("rtsp://10.0.0.7/stream", "rtsp://10.0.0.7/stream"),
        ("1_000", "1_000"),
    ],
)
@pytest.mark.parametrize("joined", [True, False])
def test_values_get_their_types(text: str, value: Any, joined: bool) -> None:
    argv = [f"--robot.key={text}"] if joined else ["--robot.key", text]
    robot, rest = split([*argv, "--task", "pick"])
    assert robot == {"key": value}
    assert type(robot["key"]) is type(value)
    assert rest == ["--task", "pick"]


def test_dots_hyphens_and_repeats() -> None:
    robot, rest = split(
        [
            "--robot.left-arm-config.port=/dev/a",
            "--robot.left_arm_config",
            "{use_degrees: true}",
            "--robot.speed-scale=0.25",
            "--robot.speed_scale",
            "0.5",
            "--robot.cameras.front.width=320",
            "--robots",
            "--",
            "--robot.id",
            "x",
        ]
    )
    assert robot == {
        "left_arm_config": {"port": "/dev/a", "use_degrees": True},
        "speed_scale": 0.5,
        "cameras": {"front": {"width": 320}},
    }
    assert rest == ["--robots", "--", "--robot.id", "x"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--robot.port"], "--robot.port needs a value"),
        (["--robot.port", "--task"], "--robot.port needs a value"),
        (["--robot.cameras={front: {"], "--robot.cameras: not YAML .*maps are written"),
        (["--robot.a=!!python/object:os.system {}"], "--robot.a: not YAML"),
        (["--robot.a=[&x [1], *y]"], "--robot.a: not YAML"),
        (["--robot.=1"], "is no option"),
        (["--robot.a..b=1"], "is no option"),
        (["--robot.a b=1"], "is no option"),
        (["--robot.a=1", "--robot.a.b=1"], "--robot.a.b: --robot.a was given a value"),
        (["--robot." + ".".join("abcdefghi") + "=1"], "is no option"),
        (["--robot.a=" + "[" * 5000], "--robot.a: "),
        (["--robot.a=" + "[" * 10 + "]" * 10], "nested too deeply"),
        (["--robot.a=" + "x" * 70_000], "over 65536 characters"),
        (["--robot.a=[" + "1," * 5000 + "]"], "too large"),
        (["--robot.a={[1]: 2}"], "--robot.a: "),
        (["--robot.a={2.5: 2}"], "keys of a map must be names"),
        (["--robot.a=!!binary aGk="], "bytes is no value"),
        ([f"--robot.a{k}=1" for k in range(300)], "over 256 options"),
        (
            ["--robot.a={a: &a [x, x, x, x, x, x, x, x], b: &b [*a, *a, *a, *a, *a, *a, *a, *a], "
             "c: &c [*b, *b, *b, *b, *b, *b, *b, *b], d: [*c, *c, *c, *c, *c, *c, *c, *c]}"],
            "too large",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_read_ends_in_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        split(argv)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(max_size=30).map(lambda text: f"--robot.{text}"), max_size=5))
def test_nothing_else_is_ever_raised(argv: list[str]) -> None:
    try:
        split(argv)
    except ConfigError as error:
        assert "\n" not in str(error)


def test_the_command_line_wins_over_the_file() -> None:
    file = {"type": "simulated", "cameras": {"a": {"width": 1, "height": 2}}, "id": "x"}
    given_, _ = split(["--robot.cameras.a.width=7", "--robot.id=y", "--robot.fps=5"])
    assert combined(file, given_) == {
        "type": "simulated",
        "cameras": {"a": {"width": 7, "height": 2}},
        "id": "y",
        "fps": 5,
    }
    assert file["cameras"] == {"a": {"width": 1, "height": 2}}
    with pytest.raises(ConfigError, match="object is no value"):
        combined({"a": object()}, {})
