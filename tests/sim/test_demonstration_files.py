"""Files of demonstrations that are none, or lie: one line, and nothing is unpickled."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sim.demonstration_files import Demonstration, read_demonstrations, write_demonstrations

Arrays = dict[str, NDArray[Any]]
JPEG: bytes = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()


def made(looks: int = 2, count: int = 4) -> Demonstration:
    times = np.arange(count) / 100
    return Demonstration(
        seed=7,
        goal_deg=np.arange(6.0),
        times_s=times,
        joints_deg=np.ones((count, 6)),
        ticks_s=np.arange(count) * 0.1,
        rows_deg=np.zeros((count, 16, 6), np.float32),
        sampled_s=np.arange(2.0 * count),
        forces_n=np.zeros(2 * count, np.float32),
        distances_mm=np.ones(2 * count, np.float32),
        seen_s=np.arange(looks) / 10,
        pictures={"View3": [JPEG] * looks, "View4": [JPEG] * looks},
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_demonstrations(tmp_path / "a.npz", [made(), made(looks=1)])
    return tmp_path / "a.npz"


def said(path: Path) -> str:
    """The one line that reading raises."""
    with pytest.raises(ValueError, match="holds no demonstrations") as raised:
        list(read_demonstrations(path))
    text = str(raised.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    assert len(text) < len(str(path)) + 200
    return text


def test_they_are_read_as_written(path: Path) -> None:
    one, other = read_demonstrations(path)
    wanted = made()
    assert (one.seed, one.pictures) == (7, wanted.pictures)
    assert [len(other.seen_s), len(other.pictures["View4"])] == [1, 1]
    for name in (
        "goal_deg",
        "times_s",
        "joints_deg",
        "ticks_s",
        "rows_deg",
        "sampled_s",
        "forces_n",
        "seen_s",
    ):
        assert np.array_equal(getattr(one, name), getattr(wanted, name))
        assert getattr(one, name).dtype == getattr(wanted, name).dtype


@pytest.mark.parametrize(
    "content",
    [b"", b"nothing of the kind", pickle.dumps([1, 2]), b"\x93NUMPY\x01\x00", b"PK\x03\x04"],
)
def test_what_is_no_zip(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "b.npz").write_bytes(content)
    assert "not whole" in said(tmp_path / "b.npz")


def test_an_array_by_itself(tmp_path: Path) -> None:
    np.save(tmp_path / "b.npy", np.zeros(3))
    said((tmp_path / "b.npy").rename(tmp_path / "b.npz"))


def test_a_file_cut_short(path: Path) -> None:
    whole = path.read_bytes()
    for part in (0.999, 0.7, 0.1):
        path.write_bytes(whole[: int(part * len(whole))])
        said(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(read_demonstrations(tmp_path / "no.npz"))


def drop(name: str) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.__delitem__(name)


def put(name: str, value: Any) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.__setitem__(name, np.asarray(value))


def index(value: object) -> Callable[[Arrays], None]:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return put("index", np.frombuffer(text, np.uint8))


def entry(**changed: object) -> list[dict[str, object]]:
    first: dict[str, object] = {"seed": 7, "views": ["View3", "View4"], "looks": 2}
    return [first | changed, {"seed": 7, "views": ["View3", "View4"], "looks": 1}]


BAD: dict[str, tuple[Callable[[Arrays], None], str]] = {
    "no index": (drop("index"), "index is missing"),
    "no array": (drop("1/forces_n"), "24 arrays, and by the index 25"),
    "another instead": (
        lambda arrays: arrays.update({"1/other": arrays.pop("1/forces_n")}),
        "1/forces_n is missing",
    ),
    "a picture less": (drop("0/View4/1"), "arrays, and by the index"),
    "one more": (put("2/goal_deg", np.zeros(6)), "arrays, and by the index"),
    "five joints": (put("0/joints_deg", np.ones((4, 5))), "not <f8 (4, 6)"),
    "another length": (put("0/joints_deg", np.ones((3, 6))), "not <f8 (4, 6)"),
    "a flat goal": (put("0/goal_deg", np.float64(3)), "0/goal_deg is <f8 ()"),
    "other columns first": (put("0/joints_deg", np.asfortranarray(np.ones((4, 6)))), "joints_deg"),
    "whole numbers": (put("0/times_s", np.arange(4)), "0/times_s is <i8"),
    "half the digits": (put("0/times_s", np.arange(4, dtype=np.float32)), "0/times_s is <f4"),
    "texts": (put("0/seen_s", np.array(["a", "b"])), "0/seen_s is <U1"),
    "no number": (put("0/distances_mm", np.full(8, np.nan, np.float32)), "what is no number"),
    "back in time": (put("0/times_s", np.array([0.0, 0.1, 0.2, 0.1])), "goes back in time"),
    "nothing in it": (
        lambda arrays: arrays.update(
            {
                "0/times_s": np.empty(0),
                "0/joints_deg": np.empty((0, 6)),
                "0/ticks_s": np.empty(0),
                "0/rows_deg": np.empty((0, 16, 6), np.float32),
            }
        ),
        "no joint angles",
    ),
    "no JPEG": (put("0/View3/0", np.zeros(40, np.uint8)), "0/View3/0 is no whole JPEG"),
    "half a JPEG": (put("0/View3/0", np.frombuffer(JPEG[:-9], np.uint8)), "no whole JPEG"),
    "no JSON": (index(b"{"), "the index is no JSON"),
    "no text": (index(b"\xff\xfe\x00"), "the index is no JSON"),
    "a deep index": (index(b"[" * 100_000), "the index is no JSON"),
    "no list": (index({"seed": 1}), "the index is no list"),
    "no maps": (index([1, 2]), "no map"),
    "no seed": (index([{"views": ["View3"], "looks": 1}]), "seed and looks"),
    "true looks": (index(entry(looks=True)), "seed and looks"),
    "fewer than none": (index(entry(looks=-1)), "seed and looks"),
    "huge looks": (index(entry(looks=10**12)), "by the index 2000000000021"),
    "more looks": (index(entry(looks=3)), "by the index 27"),
    "no views": (index(entry(views=[])), "views"),
    "views by number": (index(entry(views=[3, 4])), "view in the index"),
    "a view twice": (index(entry(views=["View3", "View3"])), "by the index 23"),
    "other views": (index(entry(views=["View3", "View5"])), "0/View5/0 is missing"),
    "fewer than there are": (index(entry()[:1]), "by the index 14"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_does_not_fit_together(path: Path, what: str) -> None:
    change, reason = BAD[what]
    with np.load(path) as file:
        arrays = dict(file)
    change(arrays)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    assert reason in said(path)


class Bomb:
    """Would leave a file, were it unpickled."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._target,)


@pytest.mark.parametrize("name", ["index", "0/goal_deg", "0/View3/0"])
def test_objects_are_never_unpickled(path: Path, name: str) -> None:
    target = path.with_name("unpickled")
    with np.load(path) as file:
        arrays = dict(file)
    objects = np.empty(6, object)
    objects[:] = [Bomb(target) for _ in range(6)]
    np.savez(path, **(arrays | {name: objects}))  # type: ignore[arg-type]
    assert f"{name} is |O" in said(path)
    assert not target.exists()


def packed(path: Path, name: str, data: bytes, kind: int = zipfile.ZIP_STORED) -> None:
    """Put `data` where the array `name` was."""
    with zipfile.ZipFile(path) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", kind) as archive:
        for part, content in (parts | {f"{name}.npy": data}).items():
            archive.writestr(part, content)


def header(shape: str, kind: str = "<f8") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY\x07\x00",
        header("(6,") + bytes(48),
        header("(" * 4000) + bytes(48),
        header("(6,)", "<f99") + bytes(48),
        header("(6,)") + bytes(40),
        header("(6,)") + bytes(56),
        header("(6.0,)") + bytes(48),
    ],
)
def test_arrays_that_are_none(path: Path, data: bytes) -> None:
    packed(path, "0/goal_deg", data)
    assert "0/goal_deg" in said(path)


def test_an_array_that_says_it_is_huge_takes_no_memory(path: Path) -> None:
    packed(path, "0/times_s", header(f"({10**15},)") + bytes(64))
    assert "0/times_s has another size than it says" in said(path)


def test_zeros_packed_small_are_not_unpacked(path: Path) -> None:
    packed(path, "0/View3/0", header(f"({1 << 28},)", "|u1") + bytes(1 << 24), zipfile.ZIP_DEFLATED)
    assert "compressed" in said(path)


def test_parts_that_share_their_bytes(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        one = archive.getinfo("0/View3/0.npy")
        # A directory that names one part many times: a small file, and many copies in memory.
        directory = [one] * 2000
        start = archive.start_dir
    data = io.BytesIO(path.read_bytes()[:start])
    data.seek(start)
    with zipfile.ZipFile(data, "a") as copy:
        copy.filelist.extend(directory)
        copy._didModify = True  # type: ignore[attr-defined]
    path.write_bytes(data.getvalue())
    assert "larger than the file" in said(path)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_flipped_bytes_give_a_line_or_what_is_whole(path: Path, data: st.DataObject) -> None:
    whole = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    other = path.with_name("flipped.npz")
    other.write_bytes(whole)
    try:
        read = list(read_demonstrations(other))
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert all(one.joints_deg.shape == (4, 6) for one in read)
