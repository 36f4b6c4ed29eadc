"""The encoding process: the same features as in a thread, and what happens when it fails."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
import torch

from common.wire import MalformedMessage
from policies.base import DualRatePolicy, PolicyError
from policies.qwen_vla import save_policy
from policies.qwen_vla.tiny import make_tiny_policy
from receiver.encoders import EncoderError, LocalEncoder
from receiver.encoding_process import EncodingProcess
from receiver.loading import PolicyOptions, load, load_fast_half
from tests.receiver.test_programs import Setup
from tests.support import Child, wait_until

TASK = "Touch the port"


@pytest.fixture(scope="module")
def options(tiny_checkpoint: Path) -> PolicyOptions:
    return PolicyOptions(str(tiny_checkpoint), "cpu", "auto", None, None, False, 1)


@pytest.fixture(scope="module")
def policy(options: PolicyOptions) -> DualRatePolicy:
    return load(options)


@pytest.fixture(scope="module")
def jpegs(policy: DualRatePolicy) -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    return {
        view: cv2.imencode(".jpg", rng.integers(0, 255, (90, 160, 3), np.uint8))[1].tobytes()
        for view in policy.spec.views
    }


@pytest.fixture(scope="module")
def shared(options: PolicyOptions, policy: DualRatePolicy) -> Iterator[EncodingProcess]:
    with closing(EncodingProcess(options)) as encoder:
        assert encoder.wait_ready() == policy.spec
        encoder.unpack = policy.unpack
        yield encoder


def test_the_fast_half_alone_acts_like_the_whole_policy(
    options: PolicyOptions, policy: DualRatePolicy, jpegs: dict[str, bytes]
) -> None:
    half = load_fast_half(options, policy.spec)
    with closing(LocalEncoder(policy)) as local:
        features = local.encode(jpegs, TASK)
    window = np.random.default_rng(1).random((65, 1026), np.float32)
    expected = policy.act(features, window, None, None)
    found = half.act(half.unpack(policy.pack(features)), window, None, None)
    np.testing.assert_array_equal(found.actions, expected.actions)
    assert half.spec == policy.spec
    for broken in (b"", b"no features", policy.pack(features)[:-3]):
        with pytest.raises(PolicyError, match="not features"):
            half.unpack(broken)


def of(encoder: EncodingProcess) -> psutil.Process:
    assert encoder._process is not None
    return psutil.Process(encoder._process.pid)


def test_features_are_those_of_the_thread(
    shared: EncodingProcess, policy: DualRatePolicy, jpegs: dict[str, bytes]
) -> None:
    with closing(LocalEncoder(policy)) as local:
        expected = local.encode(jpegs, TASK)
    found = shared.encode(jpegs, TASK)
    torch.testing.assert_close(found, expected)
    assert found.dtype == expected.dtype
    assert not torch.equal(shared.encode(jpegs, "Leave the port"), found)
    assert shared.figures()["where"] == "process" and shared.cpu_s > 0


def test_a_broken_picture_is_a_malformed_message_and_no_more(
    shared: EncodingProcess, jpegs: dict[str, bytes]
) -> None:
    with pytest.raises(MalformedMessage, match="undecodable"):
        shared.encode(jpegs | {"View1": b"\xff\xd8 no picture"}, TASK)
    shared.encode(jpegs, TASK)
    assert shared.restarts == 0


def test_what_the_policy_raises_is_said_and_it_goes_on(
    shared: EncodingProcess, jpegs: dict[str, bytes]
) -> None:
    without = {view: jpeg for view, jpeg in jpegs.items() if view != "View2"}
    with pytest.raises(EncoderError, match="no picture of View2"):
        shared.encode(without, TASK)
    shared.encode(jpegs, TASK)
    assert shared.restarts == 0


def test_killed_or_hung_it_costs_one_pass_and_is_started_again(
    shared: EncodingProcess, jpegs: dict[str, bytes]
) -> None:
    expected, before = shared.encode(jpegs, TASK), shared.restarts
    of(shared).kill()
    with pytest.raises(EncoderError, match="it ended with code -9"):
        shared.encode(jpegs, TASK)
    assert torch.equal(shared.encode(jpegs, TASK), expected)
    hung, patience_s = of(shared), shared._hung_after_s
    hung.suspend()
    shared._hung_after_s = 0.5
    with pytest.raises(EncoderError, match=r"no answer within 0\.5 s"):
        shared.encode(jpegs, TASK)
    shared._hung_after_s = patience_s
    # An answer to what was asked before the hang must not be taken for this one's.
    assert not torch.equal(shared.encode(jpegs, "Leave the port"), expected)
    assert shared.restarts == before + 2
    assert not hung.is_running()


def test_a_process_that_takes_no_pictures_is_found_out_as_well(
    options: PolicyOptions, policy: DualRatePolicy
) -> None:
    # More than the socket between the two holds, as five pictures of a rig are.
    noise = np.random.default_rng(0).integers(0, 255, (720, 1280, 3), np.uint8)
    large = cv2.imencode(".jpg", noise)[1].tobytes()
    assert len(large) > 500_000
    with closing(EncodingProcess(options, hung_after_s=3.0)) as encoder:
        encoder.wait_ready()
        of(encoder).suspend()
        with pytest.raises(EncoderError, match="hangs in the middle of a message for 3 s"):
            encoder.encode(dict.fromkeys(policy.spec.views, large), TASK)
        encoder.encode(dict.fromkeys(policy.spec.views, large), TASK)
        assert encoder.restarts == 1


def test_another_checkpoint_in_the_place_of_the_first_is_refused(
    shared: EncodingProcess,
    jpegs: dict[str, bytes],
    options: PolicyOptions,
    tmp_path: Path,
) -> None:
    other = tmp_path / "other"
    save_policy(make_tiny_policy(seed=5), other)
    shared._options = replace(options, checkpoint=str(other))
    of(shared).kill()
    try:
        with pytest.raises(EncoderError, match="it ended"):
            shared.encode(jpegs, TASK)
        for _ in range(2):  # and again: it stays refused
            with pytest.raises(EncoderError, match="no longer the one"):
                shared.encode(jpegs, TASK)
    finally:
        shared._options = options
    shared.encode(jpegs, TASK)


def test_closing_ends_a_pass_that_is_under_way(
    options: PolicyOptions, jpegs: dict[str, bytes]
) -> None:
    encoder = EncodingProcess(options)
    process = of(encoder)
    process.suspend()
    encoder._ready = True  # as after `wait_ready`: what is asked of it now, it will never answer
    said: list[str] = []

    def run() -> None:
        try:
            encoder.encode(jpegs, TASK)
        except EncoderError as error:
            said.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    encoder.close()
    thread.join(30)
    assert not thread.is_alive() and len(said) == 1
    assert not process.is_running()
    with pytest.raises(EncoderError):
        encoder.encode(jpegs, TASK)


def test_a_policy_that_cannot_be_loaded_is_said_in_one_line(options: PolicyOptions) -> None:
    missing = replace(options, checkpoint="/nowhere/policy.pt")
    with closing(EncodingProcess(missing)) as encoder:
        with pytest.raises(PolicyError, match=r"/nowhere/policy\.pt") as error:
            encoder.wait_ready()
        assert "\n" not in str(error.value)


def _encoder_of(receiver: Child) -> psutil.Process:
    found = [
        child
        for child in psutil.Process(receiver.process.pid).children()
        if any("encoding_worker" in part for part in child.cmdline())
    ]
    assert len(found) == 1
    return found[0]


def test_a_receiver_holds_while_its_encoder_is_away_and_takes_it_along_when_killed(
    program: type[Child], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    setup = Setup(program, tiny_checkpoint, tmp_path)
    for name in ("robot", "cameras", "sensor"):
        setup.sender(name)
    receiver = setup.receiver("--slow-loop", "process", "--stale-after.features-s", "1.0")
    receiver.wait_for(r"\[ACTION #5\]")
    before = len(receiver.lines)
    os.kill(_encoder_of(receiver).pid, signal.SIGKILL)
    receiver.wait_for("VL update failed: EncoderError: it ended with code -9", after=before)
    receiver.wait_for(r"\[HOLD\] features old", after=before)
    receiver.wait_for("starting the encoding process again", after=before)
    receiver.wait_for(r"\[HOLD\] over", after=before)
    second = _encoder_of(receiver)
    receiver.kill()
    wait_until(lambda: not second.is_running(), "the encoding process to end")
