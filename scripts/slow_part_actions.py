"""How long an action takes, alone and while updates run one after the other in another thread."""

from __future__ import annotations

import threading
import time

import numpy as np

from policies.qwen_vla.policy import QwenVlaPolicy
from policies.qwen_vla.tiny import random_picture

__all__ = ["action_times_ms"]

# A fast loop of 100 Hz waits between actions; without a pause the GPU would be kept awake.
PERIOD_S = 0.01


def action_times_ms(policy: QwenVlaPolicy, count: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each action: alone, then while updates run.

    Args:
        policy: on its device.
        count: actions of each kind.

    Raises:
        RuntimeError: an update failed meanwhile.
    """
    rng = np.random.default_rng(0)
    pictures = {view: random_picture(rng) for view in policy.config.views}
    sensor = policy.config.sensor
    window = None
    if sensor is not None:
        window = rng.random((sensor.window, sensor.channels), dtype=np.float32)
    features = [policy.encode(pictures, policy.config.task)]
    stop = threading.Event()
    failed: list[Exception] = []

    def update() -> None:
        try:
            while not stop.is_set():
                features[0] = policy.encode(pictures, policy.config.task)
        except Exception as error:
            failed.append(error)

    def actions() -> list[float]:
        times: list[float] = []
        due = time.perf_counter()
        for _ in range(count):
            due += PERIOD_S
            time.sleep(max(0.0, due - time.perf_counter()))
            begin = time.perf_counter()
            policy.act(features[0], window)
            times.append(1e3 * (time.perf_counter() - begin))
        return times

    policy.act(features[0], window)
    alone = actions()
    thread = threading.Thread(target=update)
    thread.start()
    try:
        beside = actions()
    finally:
        stop.set()
        thread.join()
    if failed:
        raise RuntimeError("an update failed while actions were timed") from failed[0]
    return alone, beside
