"""The rig process: its pace, its messages, what it makes of bad ones, and how it ends."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgpack
import numpy as np
import pytest
import zmq

from common import cli
from common.endpoints import RIG_STATE, address
from common.program import OptionError
from sim.layout import HOME_DEG
from sim.link import RigLink
from sim.messages import RigState
from sim.rig_server import ServerOptions
from sim.trace import COLUMNS
from tests.sim.conftest import Rig
from tests.support import Child, free_ports, wait_until

StartRig = Callable[..., Rig]


@contextmanager
def link_to(rig: Rig, keep: int = 2000) -> Iterator[RigLink]:
    link = RigLink("127.0.0.1", rig.state_port, keep=keep)
    link.open()
    with closing(link):
        yield link


@contextmanager
def commands_to(rig: Rig) -> Iterator[zmq.Socket[bytes]]:
    context = zmq.Context()
    socket = context.socket(zmq.PUSH)
    socket.connect(address("127.0.0.1", rig.command_port))
    try:
        yield socket
    finally:
        context.destroy(linger=500)


def newest(link: RigLink) -> RigState:
    state = link.newest(0.02, 5.0)
    assert state is not None
    return state


def without_loss(link: RigLink, count: int) -> list[RigState]:
    """So many states one after the other; a machine that stalls for long makes the link lose some.

    The queue between holds a hundred, by design: nobody wants old news.
    """
    kept: list[RigState] = []

    def enough() -> bool:
        for state in link.take(50, 5.0):
            if kept and state.seq != kept[-1].seq + 1:
                kept.clear()
            kept.append(state)
        return len(kept) >= count

    wait_until(enough, f"{count} states without a loss", 120)
    return kept


def test_states_keep_pace_with_the_wall_clock(rig: StartRig) -> None:
    with link_to(rig()) as link:
        states = without_loss(link, 400)
        assert abs(newest(link).time - time.time()) < 5.0
    states = states[1:]
    assert [s.run for s in states] == [states[0].run] * len(states)
    times = np.array([s.time for s in states])
    span = times[-1] - times[0]
    simulated = states[-1].sim_time_s - states[0].sim_time_s
    # A slip, where a busy machine made one, leaves simulated time out; nothing ever adds any.
    assert simulated <= span + 1e-3 and simulated > 0.2 * span
    ticks = np.diff(times) * 260
    assert ticks == pytest.approx(np.rint(ticks), abs=0.05)  # the grid, to a share of a tick
    # The first state's samples were taken before its time: after a stall, there are many of them.
    rows = np.concatenate([s.samples for s in states[1:]])
    gaps = np.diff(rows[:, 0])
    assert (gaps > 0).all()
    assert np.median(gaps) == pytest.approx(1 / 650, abs=2e-6)
    assert len(rows) == pytest.approx(650 * simulated, abs=6)
    assert min(len(s.samples) for s in states) >= 2
    assert [s.seq for s in states] == list(range(states[0].seq, states[0].seq + len(states)))


def test_commands_move_hold_and_reset_it(rig: StartRig) -> None:
    running = rig("--port-spread", "0")
    goal = np.add(HOME_DEG, [3.0, -3.0, 2.0, 4.0, -3.0, 5.0])
    with link_to(running) as link, commands_to(running) as commands:
        commands.send(msgpack.packb({"joints": goal.tolist()}))
        wait_until(lambda: np.abs(newest(link).joints_deg - goal).max() < 0.05, "the joints", 10)
        commands.send(msgpack.packb({"pose": newest(link).pose.tolist()}))
        commands.send(msgpack.packb({"hold": True}))
        # Held without further commands: position control keeps the last target.
        assert np.abs(newest(link).joints_deg - goal).max() < 0.1
        commands.send(msgpack.packb({"reset": 11}))
        wait_until(lambda: newest(link).episode == 1, "the next episode", 10)
        state = newest(link)
        assert state.seed == 11
        assert state.joints_deg == pytest.approx(HOME_DEG, abs=0.05)


def test_episodes_are_judged_one_after_the_other(rig: StartRig, tmp_path: Path) -> None:
    score = tmp_path / "score.jsonl"
    running = rig("--judged", "--episode-s", "1.5", "--score", str(score), "--seed", "5")
    with link_to(running) as link, commands_to(running) as commands:
        wait_until(lambda: newest(link).sim_time_s > 2.0, "some time without a command", 60)
        assert newest(link).episode == 0  # nobody has begun yet
        for number in (0, 1):
            # What comes right at its beginning is still meant for the episode before.
            wait_until(lambda: newest(link).sim_time_s > 0.1, "the episode's beginning", 60)
            commands.send(msgpack.packb({"joints": list(HOME_DEG)}))
            wait_until(lambda n=number: newest(link).episode == n + 1, "the next episode", 60)
            assert newest(link).seed == 6 + number
    running.child.wait_for(r"rig: episode 1 \(seed 6\): failed \(never inside\) after")
    entries = [json.loads(line) for line in score.read_text().splitlines()]
    assert [(e["number"], e["seed"], e["success"]) for e in entries[:2]] == [
        (0, 5, False),
        (1, 6, False),
    ]
    assert running.child.stop() == 0


def test_commands_of_the_episode_before_do_not_move_the_next(rig: StartRig, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    running = rig("--episode-s", "1", "--trace", str(path))
    away = np.add(HOME_DEG, [5.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    with link_to(running) as link, commands_to(running) as commands:
        while newest(link).episode < 2:  # one at every state, as who has not heard of it
            commands.send(msgpack.packb({"joints": away.tolist()}))
    assert running.child.stop() == 0
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["episode"] == "1"]
    first, last = (abs(float(row["j1"]) - HOME_DEG[0]) for row in (rows[3], rows[-1]))
    assert first < 0.05  # 30 ms into the episode; 3 degrees and more if it had gone on
    assert last > 4.0


def test_bad_messages_are_counted_and_change_nothing(
    rig: StartRig, rng: np.random.Generator
) -> None:
    running = rig()
    bad = [b"", b"\xc1", msgpack.packb({"joints": [float("nan")] * 6}), b"{}"]
    bad += [msgpack.packb({"pose": [1e9, 0, 0, 0, 0, 0]}), msgpack.packb({"reset": "x"})]
    bad += [rng.bytes(int(n)) for n in rng.integers(1, 1000, 20)]
    with link_to(running) as link, commands_to(running) as commands:
        for payload in bad:
            commands.send(payload)
        commands.send_multipart([b"two", b"frames"])
        with socket.create_connection(("127.0.0.1", running.command_port)) as raw:
            raw.sendall(rng.bytes(4096))  # not even ZeroMQ
        # Commands are taken in order: when this one has been done, so have those before it.
        commands.send(msgpack.packb({"reset": 3}))
        wait_until(lambda: newest(link).episode == 1, "the good command after the bad", 10)
        assert newest(link).joints_deg == pytest.approx(HOME_DEG, abs=0.05)
    assert running.child.stop() == 0
    counted = re.search(r"\((\d+) bad\)", running.child.lines[-1][1])
    # The raw connection's bytes may pass for messages of the oldest protocol: bad ones, too.
    assert counted and int(counted[1]) >= len(bad) + 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_cleanly_with_one_line(rig: StartRig, number: int) -> None:
    running = rig()
    assert running.child.stop(number, timeout_s=5.0) == 0
    assert running.child.text.count("rig: stopped after") == 1
    assert "Traceback" not in running.child.text


def test_a_port_in_use_is_one_line_and_exit_code_2(
    rig: StartRig, program: Callable[..., Child]
) -> None:
    first = rig()
    ports = ["--state-port", str(first.state_port), "--command-port", str(free_ports(1)[0])]
    second = program("sim/rig_server.py", *ports)
    assert second.end(30) == 2
    assert len(second.lines) == 1 and str(first.state_port) in second.text


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--seed", "-1", "--seed must be"),
        # ZeroMQ would take 99999 for 34463, and -1 for 65535.
        ("--state-port", "99999", "--state-port must be from 1 to 65535"),
        ("--command-port", "-1", "--command-port must be from 1 to 65535"),
        ("--duration", "nan", "--duration must be"),
        ("--episode-s", "nan", "--episode-s must be"),
        ("--linger-s", "inf", "--linger-s must be"),
    ],
)
def test_an_option_that_cannot_be_is_refused(option: str, value: str, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        cli.read(ServerOptions, [option, value]).check()


def test_a_refused_option_is_one_line_and_exit_code_2(program: Callable[..., Child]) -> None:
    refused = program("sim/rig_server.py", "--state-port", "99999", "--duration", "0.1")
    assert refused.end(30) == 2
    assert refused.text == "rig: --state-port must be from 1 to 65535, not 99999"


def test_no_two_options_are_described_alike(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.read(ServerOptions, ["--help"])
    told = " ".join(re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    described = re.findall(r"--[a-z-]+ \S+ ([A-Z].+?) \(default", told)
    assert len(described) > 15
    assert len(set(described)) == len(described)


def test_trace_episodes_and_duration(rig: StartRig, tmp_path: Path) -> None:
    path = tmp_path / "new" / "trace.csv"
    options = ["--trace", str(path), "--duration", "2.5", "--episode-s", "1", "--seed", "40"]
    running = rig(*options, "--tissue-amplitude-mm", "1.0", "--tissue-hz", "2")
    assert running.child.end(20) == 0
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    times = np.array([float(row["wall_time"]) for row in rows])
    assert (np.diff(times) > 0).all()
    assert len(rows) == pytest.approx(100 * (times[-1] - times[0]), rel=0.15)
    tissue = np.array([float(row["tissue_mm"]) for row in rows])
    assert np.abs(tissue).max() == pytest.approx(1.0, abs=0.05)
    episodes = {(row["episode"], row["seed"]) for row in rows}
    assert episodes == {("0", "40"), ("1", "41"), ("2", "42")}
    assert "3 episodes" in running.child.text


def test_a_pause_is_left_out_and_counted_not_run_through(rig: StartRig) -> None:
    running = rig()
    with link_to(running) as link:
        before = newest(link)
        os.kill(running.child.process.pid, signal.SIGSTOP)
        # Stopped for certain: nothing new comes for longer than a tick.
        wait_until(lambda: link.newest(0.1) is None, "the rig to be stopped", 5)
        stopped_at = time.monotonic()
        wait_until(lambda: time.monotonic() - stopped_at > 0.4, "a while", 5)
        link.take(1, 0.0)
        os.kill(running.child.process.pid, signal.SIGCONT)
        first = link.take(1, 5.0)[0]
        # What was on its way when the rig was stopped may come first.
        seen = [newest(link)]
        wait_until(
            lambda: seen.append(newest(link)) or seen[-1].time - before.time > 0.4,
            "a state made after the pause",
        )
        after = seen[-1]
    assert after.time - before.time - (after.sim_time_s - before.sim_time_s) > 0.3
    assert len(first.samples) < 100  # no burst
    assert running.child.stop() == 0
    assert " 0 slips" not in running.child.lines[-1][1]


def test_a_subscriber_that_never_reads_holds_nothing_up(rig: StartRig) -> None:
    running = rig()
    context = zmq.Context()
    try:
        idle = context.socket(zmq.SUB)
        idle.set(zmq.RCVHWM, 1)
        idle.set(zmq.SUBSCRIBE, RIG_STATE.topic)
        idle.connect(address("127.0.0.1", running.state_port))
        with link_to(running) as link:
            states = link.take(200, 10.0)
        assert len(states) >= 200
    finally:
        context.destroy(linger=0)
