"""LeRobot's policies behind the engine: equal to what LeRobot's own server and loop compute."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if sys.version_info < (3, 12):
    pytest.skip("LeRobot needs Python 3.12: make test-lerobot", allow_module_level=True)
pytest.importorskip("lerobot", reason="LeRobot is not installed: make test-lerobot")

import torch

from serving.messages import Observation, Picture, ServingError
from serving.policies import lerobot_policy
from serving.policies.lerobot_checkpoint import torch_device
from serving.served import Predicted, Request, ServedPolicy, SessionMemory
from tests.lerobot import checkpoints
from tests.lerobot.checkpoints import CAMERA, ROWS, SHAPE, STATE, instructions, observation

RENAMED = {"observation.images.front": "observation.image"}


@pytest.fixture(scope="module")
def act(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.act(tmp_path_factory.mktemp("act"))


@pytest.fixture(scope="module")
def served(act: Path) -> ServedPolicy:
    return lerobot_policy.load(instructions("act", act))


@pytest.fixture(scope="module")
def vqbet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.vqbet(tmp_path_factory.mktemp("vqbet"))


def rows(result: Predicted | Exception) -> np.ndarray:
    if isinstance(result, Exception):
        raise result
    assert result.actions is not None and result.actions.dtype == np.float32
    return result.actions


def predicted(policy: ServedPolicy, memory: SessionMemory, seen: Observation) -> np.ndarray:
    (result,) = policy.predict([Request(seen, memory)])
    return rows(result)


@pytest.fixture
def stock(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Callable[[Observation], np.ndarray]]:
    """LeRobot's PolicyServer, without its network: `stock(kind, folder, rows)(observation)`."""
    monkeypatch.chdir(tmp_path)  # it makes a folder for logs where it is imported
    from lerobot.async_inference import helpers, policy_server
    from lerobot.async_inference.configs import PolicyServerConfig

    def made(kind: str, folder: Path, most: int) -> Callable[[Observation], np.ndarray]:
        import pickle

        features = {
            "observation.state": {"dtype": "float32", "shape": (6,), "names": list(STATE)},
            f"observation.images.{CAMERA}": {"dtype": "image", "shape": SHAPE, "names": ["h"]},
        }
        asked = helpers.RemotePolicyConfig(kind, str(folder), features, most)
        server = policy_server.PolicyServer(PolicyServerConfig())

        class Call:
            data = pickle.dumps(asked)

            @staticmethod
            def peer() -> str:
                return "test"

        server.SendPolicyInstructions(Call, Call)

        def predict(seen: Observation) -> np.ndarray:
            raw: dict[str, Any] = dict(zip(STATE, map(float, seen.state), strict=True))
            pixels = seen.pictures[CAMERA].pixels
            raw |= {CAMERA: pixels, "task": seen.task}
            timed = helpers.TimedObservation(seen.timestamp, seen.timestep, raw, True)
            return np.stack([row.action.numpy() for row in server._predict_action_chunk(timed)])

        return predict

    return made


@pytest.mark.parametrize("most", [ROWS, 7])
def test_chunks_equal_those_of_the_stock_server(
    act: Path, served: ServedPolicy, stock: Callable[..., Any], most: int
) -> None:
    reference = stock("act", act, most)
    memory = served.admit(instructions("act", act, actions_per_chunk=most))
    chunks = []
    for number in range(4):
        seen = observation(number, timestep=3 * number)
        chunks.append(predicted(served, memory, seen))
        assert chunks[-1].shape == (most, len(STATE))
        np.testing.assert_allclose(chunks[-1], reference(seen), rtol=0, atol=1e-5)
    assert np.abs(chunks[0] - chunks[1]).max() > 0.1, "the policy looks at what it is given"


def test_pictures_of_the_policys_own_size_equal_too(
    act: Path, served: ServedPolicy, stock: Callable[..., Any]
) -> None:
    seen = observation(5)
    small = np.ascontiguousarray(checkpoints.picture(5)[:96, :96])
    seen = replace(seen, pictures={CAMERA: Picture(small)})
    ours = predicted(served, served.admit(instructions("act", act)), seen)
    np.testing.assert_allclose(ours, stock("act", act, ROWS)(seen), rtol=0, atol=1e-5)


def test_a_rename_map_leads_a_camera_to_the_policys(act: Path, served: ServedPolicy) -> None:
    rename = {"observation.images.wrist": f"observation.images.{CAMERA}"}
    memory = served.admit(instructions("act", act, cameras={"wrist": SHAPE}, rename=rename))
    seen = observation(2)
    wrist = replace(seen, pictures={"wrist": seen.pictures[CAMERA]})
    expected = predicted(served, served.admit(instructions("act", act)), seen)
    np.testing.assert_array_equal(predicted(served, memory, wrist), expected)


def test_several_at_once_equal_each_alone(act: Path, served: ServedPolicy) -> None:
    asked = [instructions("act", act, actions_per_chunk=k) for k in (20, 5, 20, 1)]
    requests = [
        Request(observation(number, task="x" * number), served.admit(given))
        for number, given in enumerate(asked)
    ]
    assert served.most_batched >= 4
    together = [rows(result) for result in served.predict(requests)]
    for request, given, chunk in zip(requests, asked, together, strict=True):
        alone = predicted(served, served.admit(given), request.observation)
        assert chunk.shape == alone.shape == (given.actions_per_chunk, len(STATE))
        # The order of additions in a larger matrix differs: single precision of values of 20.
        np.testing.assert_allclose(chunk, alone, rtol=0, atol=1e-4)


def test_one_that_cannot_be_computed_fails_alone(act: Path, served: ServedPolicy) -> None:
    good, blind, short = observation(0), observation(1), observation(2)
    blind = replace(blind, pictures={})
    short = replace(short, state=short.state[:3])
    features = replace(observation(3), wants="features")
    memory = [served.admit(instructions("act", act)) for _ in range(5)]
    results = served.predict(
        [Request(s, m) for s, m in zip((blind, good, short, features, good), memory, strict=True)]
    )
    said = [str(result) for result in results if isinstance(result, ServingError)]
    assert said == [
        "the observation has no picture of camera front",
        "6 state values expected, 3 came",
        "a policy of type act gives actions, not features",
    ]
    np.testing.assert_allclose(rows(results[1]), rows(results[4]), rtol=0, atol=1e-4)


def test_a_jpeg_is_as_good_as_its_pixels(act: Path, served: ServedPolicy) -> None:
    import cv2

    seen = observation(1)
    coded = cv2.imencode(".jpg", checkpoints.picture(1)[:, :, ::-1])[1].tobytes()
    decoded = cv2.imdecode(np.frombuffer(coded, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    memory = served.admit(instructions("act", act))
    jpeg = predicted(served, memory, replace(seen, pictures={CAMERA: Picture(jpeg=coded)}))
    pixels = replace(seen, pictures={CAMERA: Picture(np.ascontiguousarray(decoded))})
    np.testing.assert_array_equal(jpeg, predicted(served, memory, pixels))
    broken = replace(seen, pictures={CAMERA: Picture(jpeg=coded[: len(coded) // 8])})
    (result,) = served.predict([Request(broken, memory)])
    assert isinstance(result, ServingError) and "front" in str(result)


# Policies that look back. Their noise comes from torch's generator: seeded alike, drawn alike.


def looked_back(kind: str, folder: Path, numbers: list[int]) -> list[np.ndarray]:
    """The chunks that LeRobot's own `select_action` computes from consecutive observations."""
    from lerobot.policies import get_policy_class, make_pre_post_processors

    policy = get_policy_class(kind).from_pretrained(folder)
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(folder))
    chunks = []
    for number in numbers:
        image = torch.tensor(checkpoints.picture(number)).permute(2, 0, 1)[None]
        size = (checkpoints.SIDE, checkpoints.SIDE)
        image = torch.nn.functional.interpolate(image, size, mode="bilinear") / 255
        name = next(iter(policy.config.image_features))
        batch = {"observation.state": torch.tensor(checkpoints.state(number))[None], name: image}
        policy._queues["action"].clear()
        torch.manual_seed(number)
        first = policy.select_action(before(batch | {"task": "pick"}))
        chunk = torch.stack([first, *policy._queues["action"]], dim=1)
        chunks.append(
            torch.stack([after(chunk[:, k]) for k in range(chunk.shape[1])], 1)[0].numpy()
        )
    return chunks


def seeded(policy: ServedPolicy, memory: SessionMemory, number: int, step: int) -> np.ndarray:
    torch.manual_seed(number)
    return predicted(policy, memory, observation(number, step))


@pytest.mark.parametrize("kind", ["vqbet", "diffusion", "tdmpc"])
def test_each_session_looks_back_at_its_own(kind: str, tmp_path: Path) -> None:
    """Two sessions in turns: each gets what LeRobot's loop computes for a robot by itself."""
    if kind == "diffusion":
        pytest.importorskip("diffusers", reason="lerobot[diffusion] is not installed")
    folder = getattr(checkpoints, kind)(tmp_path)
    given = instructions(kind, folder, rename=RENAMED if kind == "tdmpc" else {})
    policy = lerobot_policy.load(given)
    numbers = ([1, 2, 3, 4, 5], [11, 12, 13, 14, 15])
    expected = [looked_back(kind, folder, mine) for mine in numbers]
    memory = [policy.admit(given) for _ in numbers]
    for step in range(5):
        for mine, kept, chunks in zip(numbers, memory, expected, strict=True):
            chunk = seeded(policy, kept, mine[step], step)
            # tdmpc's loop keeps the rows that it would execute; the chunk is the plan.
            np.testing.assert_allclose(
                chunk[: len(chunks[step])], chunks[step], rtol=0, atol=1e-4, err_msg=f"step {step}"
            )
    if kind != "tdmpc":
        fresh = seeded(policy, policy.admit(given), 5, 4)
        assert np.abs(fresh - expected[0][4]).max() > 1e-3, "what went before makes no difference"


def test_an_old_observation_is_not_taken_for_the_step_before(vqbet: Path) -> None:
    given = instructions("vqbet", vqbet)
    policy = lerobot_policy.load(given)
    memory = policy.admit(given)
    seeded(policy, memory, 1, 0)
    late = seeded(policy, memory, 2, 15)
    np.testing.assert_allclose(late, seeded(policy, policy.admit(given), 2, 15), rtol=0, atol=1e-5)
    again = seeded(policy, memory, 3, 2)  # the robot began anew
    np.testing.assert_allclose(again, seeded(policy, policy.admit(given), 3, 2), rtol=0, atol=1e-5)


def test_policies_that_look_back_are_computed_together(vqbet: Path) -> None:
    given = instructions("vqbet", vqbet)
    policy = lerobot_policy.load(given)
    memory = [policy.admit(given) for _ in range(3)]
    for step in range(4):
        torch.manual_seed(step)
        results = policy.predict(
            [Request(observation(10 * k + step, step), kept) for k, kept in enumerate(memory)]
        )
        assert [rows(result).shape for result in results] == [(4, 6)] * 3
    kept_steps = [[step for step, _ in kept.values["history"]] for kept in memory]
    assert kept_steps == [[1, 2, 3]] * 3
    for k, kept in enumerate(memory):
        states = [seen["observation.state"] for _, seen in kept.values["history"]]
        mean, spread = np.linspace(-3, 3, 6, dtype=np.float32), 20.0
        given_state = (checkpoints.state(10 * k + 3) - mean) / spread
        if policy._policy.config.normalization_mapping["STATE"].value == "MEAN_STD":
            np.testing.assert_allclose(states[-1][0], given_state, atol=1e-5)
        else:
            np.testing.assert_allclose(states[-1][0], given_state.clip(-9, 9), atol=1e-5)


def test_the_stock_server_cannot_serve_them(vqbet: Path, stock: Callable[..., Any]) -> None:
    """Why the queues are filled here: LeRobot 0.6.1 leaves its clients waiting."""
    with pytest.raises(RuntimeError):
        stock("vqbet", vqbet, 4)(observation(0))


# What is refused.


def refused(kind: str, path: object, device: str = "cpu") -> ServingError:
    with pytest.raises(ServingError) as caught:
        lerobot_policy.load(
            replace(instructions("act", Path("x")), policy_type=kind, path=str(path), device=device)
        )
    assert "\n" not in str(caught.value)
    return caught.value


def test_paths_and_types_that_are_not_there(act: Path, tmp_path: Path) -> None:
    for kind, path, refusal, said in [
        ("act", tmp_path / "none", "not_found", "no folder .* on the server"),
        ("act", act / "config.json", "not_found", "is a file"),
        ("act", "somebody/something", "not_found", "unless it may download"),
        ("act", "", "not_found", "no folder ''"),
        ("act", tmp_path, "not_found", "config.json"),
        ("atc", act, "bad_policy", "no policy type 'atc' here; there are .*act.*smolvla"),
        ("vqbet", act, "bad_policy", "holds a policy of type 'act', not 'vqbet'"),
    ]:
        error = refused(kind, path)
        assert error.kind == refusal, error
        assert re.search(said, str(error)), error


def test_devices_that_are_not_there(act: Path) -> None:
    if not torch.cuda.is_available():
        assert "CUDA is not available" in str(refused("act", act, "cuda"))
        assert refused("act", act, "cuda:1").kind == "bad_policy"
    else:
        assert "the server has" in str(refused("act", act, "cuda:99"))
    for wrong in ("gpu", "meta", "", "cuda:x"):
        error = refused("act", act, wrong)
        assert error.kind == "bad_policy" and "give cpu, cuda" in str(error)
    assert torch_device("auto").type in {"cpu", "cuda", "mps"}


def copy_of(folder: Path, into: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, into / "copy"))


def test_a_processor_cannot_name_any_class(act: Path, tmp_path: Path) -> None:
    """LeRobot imports and calls what this file names: `subprocess.Popen(args=…)`, for one."""
    folder, touched = copy_of(act, tmp_path), tmp_path / "touched"
    file = folder / "policy_preprocessor.json"
    content = json.loads(file.read_text())
    evil = {"class": "subprocess.Popen", "config": {"args": ["touch", str(touched)]}}
    file.write_text(json.dumps(content | {"steps": [*content["steps"], evil]}))
    error = refused("act", folder)
    assert error.kind == "bad_policy" and "names the class 'subprocess.Popen'" in str(error)
    assert not touched.exists()
    for text in ("[1]", "{", '{"steps": [3]}', '{"steps": 3}'):
        file.write_text(text)
        assert refused("act", folder).kind == "bad_policy"
    file.unlink()
    assert "has no policy_preprocessor.json" in str(refused("act", folder))


def test_weights_come_from_safetensors_alone(act: Path, tmp_path: Path) -> None:
    folder = copy_of(act, tmp_path)
    weights = folder / "model.safetensors"
    weights.rename(folder / "pytorch_model.bin")
    error = refused("act", folder)
    assert error.kind == "not_found" and "safetensors" in str(error)
    weights.write_bytes(b"\x80\x04not safetensors")
    assert refused("act", folder).kind == "bad_policy"


@pytest.mark.skipif(
    importlib.util.find_spec("transformers") is not None, reason="what these need is here"
)
@pytest.mark.parametrize(
    ("kind", "extra"), [("smolvla", "smolvla"), ("pi0", "pi"), ("pi05", "pi"), ("groot", "groot")]
)
def test_a_type_that_needs_a_package_says_what_installs_it(
    act: Path, tmp_path: Path, kind: str, extra: str
) -> None:
    from lerobot.policies import make_policy_config

    folder = copy_of(act, tmp_path)
    make_policy_config(kind, device="cpu").save_pretrained(folder)
    error = refused(kind, folder)
    assert error.kind == "bad_policy" and f"pip install 'lerobot[{extra}]'" in str(error)
    assert "\n" not in str(error)


def test_robots_that_do_not_fit_are_told_what_would(act: Path, served: ServedPolicy) -> None:
    given = instructions("act", act)
    for wrong, said in [
        (replace(given, cameras={}), "wants the pictures observation.images.front and .* none"),
        (
            replace(given, cameras={"top": SHAPE}),
            "front and the robot gives observation.images.top",
        ),
        (replace(given, state_names=STATE[:4]), "6 state values and the robot has 4 .shoulder_pan"),
        (replace(given, state_names=()), "the robot has 0 .none"),
        (replace(given, cameras={CAMERA: (120, 160, 1)}), "front has 1 channels"),
    ]:
        with pytest.raises(ServingError, match=said) as caught:
            served.admit(wrong)
        assert caught.value.kind == "bad_policy"
    served.admit(replace(given, cameras={CAMERA: SHAPE, "spare": SHAPE}))
