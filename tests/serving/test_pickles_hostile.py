"""Pickles made to do harm: each ends in a value or in BadMessage, and nothing is executed.

While a message is read, an audit hook notes every import, every compilation and execution of
code, every file opened, process started and address connected to; the list must stay empty.
"""

from __future__ import annotations

import builtins
import copyreg
import gc
import importlib
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.messages import BadMessage, Instructions
from serving.pickles import lerobot
from serving.pickles.machine import _HANDLERS
from serving.pickles.reader import NAMES, load
from serving.pickles.values import Bounds
from serving.pickles.writer import dump
from tests.serving.record_pickles import CAMERAS, FOLDER, JOINTS, picture

INSTRUCTIONS = Instructions("act", "p", state_names=JOINTS, cameras=dict(CAMERAS))
WIDE = Bounds(opcodes=200_000, nodes=50_000)  # as for an answer, the widest of the three
DECODERS: dict[str, Callable[[bytes], object]] = {
    "setup": lerobot.decode_setup,
    "observation": lambda data: lerobot.decode_observation(data, INSTRUCTIONS),
    "actions": lerobot.decode_actions,
}
RECORDED = {path.stem: path.read_bytes() for path in sorted(FOLDER.glob("lerobot_*.pickle"))}
P2, P4, P5 = b"\x80\x02", b"\x80\x04", b"\x80\x05"

# The watch. A hook cannot be taken away again: there is one, and it looks while it is asked to.

_watched: list[str] = []
_watching = threading.local()


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if getattr(_watching, "on", False):
        _watched.append(f"{event} {arguments!r:.200}")


sys.addaudithook(_note)


@contextmanager
def watched() -> Iterator[None]:
    """AssertionError where this thread does anything that Python would tell an auditor."""
    _watched.clear()
    _watching.on = True
    try:
        yield
    finally:
        _watching.on = False
    assert _watched == []


def refused(data: bytes) -> list[str]:
    """What each decoder says to the message; all must refuse it."""
    said = []
    for decode in (*DECODERS.values(), lambda data: load(data, WIDE)):
        with watched(), pytest.raises(BadMessage) as caught:
            decode(data)
        line = str(caught.value)
        assert line.isprintable() and len(line) < 300, line
        assert caught.value.kind == "bad_message"
        said.append(line)
    return said


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def stack_global(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def lines_global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


RECORD = stack_global("lerobot.async_inference.helpers", "TimedAction") + b")\x81"


def test_the_watch_sees_what_it_is_for(tmp_path: Path) -> None:
    def execute() -> None:
        exec("1")

    deeds: list[Callable[[], object]] = [
        execute,
        lambda: (tmp_path / "x").write_text("x"),
        lambda: subprocess.run(["true"], check=True),
        lambda: os.system("true"),
        lambda: pickle.loads(pickle.dumps(os.getpid)),
        lambda: importlib.import_module("colorsys"),
    ]
    sys.modules.pop("colorsys", None)  # what is loaded already is not told again
    for deed in deeds:
        with pytest.raises(AssertionError), watched():
            deed()
        assert _watched


# Calls of what is not on the list, in every form that a pickle has.


class Reduced:
    """Pickled as a call: what every published exploit is made with."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


CALLS = [
    Reduced(os.system, "touch canary"),
    Reduced(subprocess.Popen, ["touch", "canary"]),
    Reduced(subprocess.call, ["touch", "canary"]),
    Reduced(subprocess.check_output, ["touch", "canary"]),
    Reduced(os.popen, "touch canary"),
    Reduced(os.execvp, "touch", ["touch", "canary"]),
    Reduced(builtins.eval, "__import__('os').system('touch canary')"),
    Reduced(builtins.exec, "import os; os.system('touch canary')"),
    Reduced(builtins.__import__, "this"),
    Reduced(builtins.open, "canary", "w"),
    Reduced(builtins.compile, "1", "x", "eval"),
    Reduced(builtins.getattr, Reduced(importlib.import_module, "os"), "system"),
    Reduced(Reduced(builtins.getattr, os, "system") and getattr, "x", "upper"),
    Reduced(importlib.import_module, "antigravity"),
    Reduced(pickle.loads, pickle.dumps(Reduced(os.system, "touch canary"))),
    Reduced(np.load, "canary"),
    Reduced(io.open, "canary", "w"),
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "call", CALLS, ids=[f"{i}-{c.call[0].__name__}" for i, c in enumerate(CALLS)]
)
def test_calls(call: Reduced, protocol: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(pickle.dumps(call, protocol))
    if protocol >= 2:
        assert all("refused, nothing was executed" in line for line in said), said
    for wrapped in ({"policy_type": call}, [call], (call,), [{"action": call}]):
        refused(pickle.dumps(wrapped, protocol))
    assert not (tmp_path / "canary").exists()


def test_the_calls_would_work_elsewhere(tmp_path: Path, monkeypatch: Any) -> None:
    """The same bytes do their work in Python's own reader: these are no blanks."""
    monkeypatch.chdir(tmp_path)
    for call in (CALLS[0], CALLS[2], CALLS[6], CALLS[7]):
        pickle.loads(pickle.dumps(call, 4))
        assert (tmp_path / "canary").exists()
        (tmp_path / "canary").unlink()


COMMAND = text("touch canary")
FORMS = {
    "reduce": P2 + lines_global("os", "system") + COMMAND + b"\x85R.",
    "reduce by the stack": P4 + stack_global("os", "system") + COMMAND + b"\x85R.",
    "posix": P4 + stack_global("posix", "system") + COMMAND + b"\x85R.",
    "nt": P4 + stack_global("nt", "system") + COMMAND + b"\x85R.",
    "a dotted name": P4 + stack_global("lerobot.async_inference.helpers", "os.system") + COMMAND
    + b"\x85R.",
    "a dotted name of a known one": P4 + stack_global("numpy", "ndarray.__class__") + b".",
    "a known name's module": P4 + stack_global("torch.storage", "io.open") + COMMAND + b"\x85R.",
    "the name of a package": P4 + stack_global("lerobot", "async_inference.helpers.os.system")
    + COMMAND + b"\x85R.",
    "memoized": P4 + stack_global("os", "system") + b"\x94" + COMMAND + b"\x85\x94R.",
    "inst": P2 + b"(" + COMMAND + b"ios\nsystem\n.",
    "obj": P2 + b"(" + lines_global("os", "system") + COMMAND + b"o.",
    "new": P4 + stack_global("subprocess", "Popen") + COMMAND + b"\x85\x81.",
    "new with names": P4 + stack_global("subprocess", "Popen") + b"(" + COMMAND + b"t}\x92.",
    "ext1": P2 + b"\x82\xf0)R.",
    "ext2": P2 + b"\x83\xf0\x00)R.",
    "ext4": P2 + b"\x84\xf0\x00\x00\x00)R.",
    "a persistent id": P2 + b"Pos.system\n.",
    "a persistent id of the stack": P2 + COMMAND + b"Q.",
    "a state for a name": P4 + stack_global("collections", "OrderedDict") + b"}"
    + text("__init__") + lines_global("os", "system") + b"sb.",
    "a state for a known name": P4 + stack_global("numpy", "dtype") + b"}" + text("__init__")
    + COMMAND + b"sb.",
    "a state for a text": P4 + COMMAND + b"}b.",
    "a state by two parts": P4 + RECORD + b"N}\x86b.",
    "a state that is a name": P4 + RECORD + stack_global("numpy", "dtype") + b"b.",
    "a class of an instance": P4 + RECORD + b"}" + text("__class__")
    + stack_global("os", "system") + b"sb.",
    "a call of a text": P4 + text("os.system") + COMMAND + b"\x85R.",
    "a call of an instance": P4 + RECORD + b"}b" + COMMAND + b"\x85R.",
    "a call of a class that is only made": P4
    + stack_global("lerobot.async_inference.helpers", "TimedAction") + COMMAND + b"\x85R.",
    "a class that is only called": P4 + stack_global("numpy", "dtype") + b")\x81.",
    "an array of another class": P4 + stack_global("numpy._core.multiarray", "_reconstruct")
    + stack_global("collections", "OrderedDict") + b"K\x00\x85C\x01b\x87R.",
    "a feature of a made-up type": P4 + stack_global("lerobot.configs.types", "FeatureType")
    + text("os.system") + b"\x85R.",
    "rot13": P4 + stack_global("_codecs", "encode") + text("abf.flfgrz") + text("rot13")
    + b"\x86R.",
    "decoding": P4 + stack_global("_codecs", "decode") + COMMAND + text("zlib") + b"\x86R.",
    "a name without text": P4 + b"K\x01K\x02\x93.",
    "a name with a break": P4 + stack_global("os\nsystem\x1b[31m", "x" * 400) + b".",
    "a name without end": P2 + b"c" + b"o" * 1000,
    "an iterator of buffers": P5 + b"\x97.",
    "a read-only buffer": P5 + b"C\x01x\x98.",
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_calls(form: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("system", "popen", "execv", "fork"):
        monkeypatch.setattr(os, name, lambda *_: pytest.fail("something was executed"))
    refused(FORMS[form])
    # Within an observation, as a value and as a key.
    raw = P4 + stack_global("lerobot.async_inference.helpers", "TimedObservation") + b")\x81}"
    body = FORMS[form][2:].removesuffix(b".")
    refused(raw + text("observation") + body + b"sb.")
    refused(raw + text("observation") + b"}" + body + b"K\x01ssb.")
    assert not list(tmp_path.iterdir())


def test_extension_codes_are_not_looked_up() -> None:
    copyreg.add_extension("os", "system", 0xF0)
    try:
        for form in ("ext1", "ext2", "ext4"):
            assert all("opcode 0x8" in line for line in refused(FORMS[form]))
    finally:
        copyreg.remove_extension("os", "system", 0xF0)


def test_a_dictionary_cannot_change_what_an_instance_is() -> None:
    """`__setstate__`, `__class__` and `__dict__` are keys of a dictionary like any other."""
    fields: dict[str, Any] = {"__setstate__": "x", "__class__": "y", "__dict__": {"z": 1}}
    state = dump(fields | {"timestamp": 1.0, "timestep": 3, "action": np.zeros(2)})[2:-1]
    with watched():
        chunk = lerobot.decode_actions(P4 + b"](" + RECORD + state + b"be.")
    assert chunk.timestep == 3


@pytest.mark.parametrize("place", range(5))
def test_payloads_within_the_file_of_a_torch_storage(
    place: int, tmp_path: Path, monkeypatch: Any
) -> None:
    """LeRobot reads that file with `weights_only=False`: it is five pickles more."""
    monkeypatch.chdir(tmp_path)
    from serving.pickles.torch_storage import MAGIC, PROTOCOL

    storage = P2 + b"(" + text("storage") + lines_global("torch", "FloatStorage") + text("0")
    storage += text("cpu") + b"K\x02NtQ."
    system = dump({"little_endian": True})
    good = [dump(MAGIC), dump(PROTOCOL), system, storage, dump(["0"])]

    def message(parts: list[bytes]) -> bytes:
        file = b"".join(parts) + struct.pack("<q2f", 2, 0.5, 1.5)
        tensor = stack_global("torch._utils", "_rebuild_tensor_v2") + b"("
        tensor += stack_global("torch.storage", "_load_from_bytes")
        tensor += b"B" + struct.pack("<I", len(file)) + file + b"\x85RK\x00K\x02\x85K\x01\x85\x89"
        return P4 + tensor + stack_global("collections", "OrderedDict") + b")RtR."

    assert load(message(good), WIDE).tolist() == [0.5, 1.5]
    for form in FORMS.values():
        refused(message([*good[:place], form, *good[place + 1 :]]))
    for call in CALLS:
        refused(message([*good[:place], pickle.dumps(call, 2), *good[place + 1 :]]))
    refused(message([*good[:place], dump({"a": [1]}), *good[place + 1 :]]))
    assert not list(tmp_path.iterdir())


def test_the_list_of_names_is_the_agreed_one() -> None:
    """A new name is a decision: it must be made here as well."""
    helpers = ("lerobot.async_inference.helpers", "lerobot.scripts.server.helpers")
    configs = ("lerobot.configs", "lerobot.configs.policies", "lerobot.configs.types")
    kinds = ("RemotePolicyConfig", "TimedObservation", "TimedAction")
    wanted = {(module, kind) for module in helpers for kind in kinds}
    wanted |= {(module, kind) for module in configs for kind in ("PolicyFeature", "FeatureType")}
    for core in ("numpy.core", "numpy._core"):
        wanted |= {(f"{core}.multiarray", "_reconstruct"), (f"{core}.multiarray", "scalar")}
        wanted |= {(f"{core}.numeric", "_frombuffer")}
    wanted |= {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
    wanted |= {("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2")}
    wanted |= {("torch.storage", "_load_from_bytes")}
    assert set(NAMES) == wanted


def test_opcodes_that_no_message_uses_are_refused() -> None:
    import pickletools

    codes = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
    taken = {codes[code] for code in _HANDLERS} | {"PROTO", "STOP"}
    assert {"INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID"}.isdisjoint(taken)
    assert {"LONG4", "LONG", "INT", "FLOAT", "STRING", "UNICODE", "DUP", "POP"}.isdisjoint(taken)
    for code in set(range(256)) - set(_HANDLERS) - {ord(".")}:
        assert all("opcode" in line for line in refused(P4 + bytes([code]) + b"\x00" * 64 + b"."))


# Bombs: small messages that would grow.


def peak(data: bytes, decode: Callable[[bytes], object]) -> tuple[object, int]:
    """What reading gave, and the most bytes that it held at once beside the message."""
    tracemalloc.start()
    try:
        with watched():
            try:
                result: object = decode(data)
            except BadMessage as error:
                result = error
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def laughs(begin: bytes, again: Callable[[int, int], bytes], end: bytes, levels: int) -> bytes:
    """Each level holds the one before it ten times: once itself, and nine times by reference.

    The levels are opened one within the other, so that nothing is left over at the end.
    """
    data = P4 + begin * levels + text("ha") + b"q\x00"
    for level in range(levels):
        data += b"".join(again(level, n) for n in range(1, 10)) + end + b"q%c" % (level + 1)
    return data + b"."


def reference(level: int, _: int) -> bytes:
    return b"h%c" % level


def keyed(level: int, n: int) -> bytes:
    return text(str(n)) + b"h%c" % level


INSTANCE = RECORD + b"}("
TOO_MUCH, TOO_DEEP = "holds too much", "too deeply"
BOMBS: dict[str, tuple[str, bytes]] = {
    "lists": (TOO_MUCH, laughs(b"](", reference, b"e", 12)),
    "tuples": (TOO_MUCH, laughs(b"(", reference, b"t", 12)),
    "dicts": (TOO_MUCH, laughs(b"}(" + text("0"), keyed, b"u", 12)),
    "instances": (TOO_MUCH, laughs(INSTANCE + text("0"), keyed, b"ub", 7)),
    "lists, many levels": (TOO_MUCH, laughs(b"](", reference, b"e", 60)),
    "a wide one": (TOO_MUCH, P4 + b"](](](" + b"N" * 1000 + b"eq\x00" + b"h\x00" * 1000 + b"eq\x01"
    + b"h\x01" * 1000 + b"e."),
    "deep lists": (TOO_DEEP, P4 + b"]" * 19_000 + b"a" * 18_999 + b"."),
    "deep tuples": (TOO_DEEP, P4 + b")" + b"\x85" * 150_000 + b"."),
    "deep dicts": (TOO_DEEP, P4 + (b"}" + text("a")) * 9_000 + b"N" + b"s" * 9_000 + b"."),
    "deep instances": (TOO_DEEP, P4 + RECORD[:-2] + b"q\x00" + b")\x81}" + text("a")
    + (b"h\x00)\x81}" + text("a")) * 5_000 + b"N" + b"sb" * 5_001 + b"."),
    "deep marks": (TOO_DEEP, P4 + b"(" * 100_000 + b"."),
    "a list in itself": (TOO_DEEP, P4 + b"]q\x00h\x00a."),
    "a list in itself, wide": (TOO_DEEP, P4 + b"]q\x00(" + b"h\x00" * 1000 + b"e."),
    "a dict in itself": (TOO_DEEP, P4 + b"}q\x00" + text("a") + b"h\x00s."),
    "an instance in itself": (TOO_DEEP, P4 + RECORD + b"q\x00}" + text("a") + b"h\x00sb."),
    "a tuple in itself": (TOO_DEEP, P4 + b"]q\x00h\x00\x85a."),
    "many values": (TOO_MUCH, P4 + b"(" + b"N" * 1_000_000 + b"t."),
    "more on the stack than a container takes": (TOO_MUCH, P4 + b"(" + b"N" * 25_000 + b"t."),
    "many opcodes": (TOO_MUCH, P4 + b"N" + b"q\x00" * 210_000 + b"."),
    "many in one list": (TOO_MUCH, P4 + b"]" + b"Na" * 105_000 + b"."),
    "a long integer": ("opcode 0x8b", P2 + b"\x8b\x00\x00\x40\x00" + b"\x7f" * (4 << 20) + b"."),
    "an integer of 255 bytes": ("255 bytes", P2 + b"\x8a\xff" + b"\x7f" * 255 + b"."),
    "a text that is not there": ("too long", P4 + b"\x8d" + struct.pack("<Q", 1 << 62) + b"x."),
    "bytes that are not there": ("early", P4 + b"\x8e" + struct.pack("<Q", 1 << 62) + b"x."),
    "4 GB that are not there": ("early", P4 + b"B\xff\xff\xff\xffx."),
    "a buffer that is not there": ("early", P5 + b"\x96" + struct.pack("<Q", 1 << 40) + b"x."),
    "a frame that is not there": ("frame", P4 + b"\x95" + struct.pack("<Q", 1 << 63) + b"N."),
    "a frame that is a byte longer": ("frame", P4 + b"\x95" + struct.pack("<Q", 3) + b"N."),
    "a memo that is not there": ("does not hold", P4 + b"j\xff\xff\xff\xff."),
    "a huge memo index and no value": ("early", P4 + b"r\xff\xff\xff\xff."),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(bomb: str) -> None:
    says, data = BOMBS[bomb]
    decoders: dict[str, Callable[[bytes], object]]
    decoders = {"observation": DECODERS["observation"], "load": lambda data: load(data, WIDE)}
    for name, decode in decoders.items():
        result, grown = peak(data, decode)
        assert isinstance(result, BadMessage), result
        if name == "load":  # the others may refuse it earlier
            assert says in str(result)
        # About 70 bytes an opcode, of which there are at most 20,000 or 200,000.
        most = 4_000_000 if name == "observation" else 20_000_000
        assert grown < most, f"{grown:,} bytes"


def test_what_is_deep_or_shared_within_the_bounds_is_read() -> None:
    """The bombs, smaller: it is their size that they are refused for."""
    shared = load(laughs(b"](", reference, b"e", 4), WIDE)
    assert isinstance(shared, list) and len(shared) == 10 and shared[0] == shared[1]
    assert shared[0] is not shared[1]
    assert load(laughs(INSTANCE + text("0"), keyed, b"ub", 2), WIDE).fields["9"].fields["1"] == "ha"
    assert load(P4 + b")" + b"\x85" * 15 + b".", WIDE) == eval("(" * 15 + "()" + ",)" * 15)


def test_a_huge_memo_index_costs_nothing() -> None:
    data = P4 + b"](" + b"Nr\xff\xff\xff\xff" + b"j\xff\xff\xff\xff" + b"e."
    result, grown = peak(data, lambda data: load(data, WIDE))
    assert result == [None, None] and grown < 20_000


def test_what_is_read_is_let_go_of_when_it_is_refused() -> None:
    """Containers that hold themselves are left to the collector, like any others."""
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(2):
            for _, data in (BOMBS["a list in itself, wide"], BOMBS["lists"], BOMBS["deep lists"]):
                with pytest.raises(BadMessage):
                    load(data, WIDE)
        gc.collect()
        left = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert left < 200_000, f"{left:,} bytes"


# Arrays and tensors whose descriptions lie.

RECONSTRUCT = stack_global("numpy._core.multiarray", "_reconstruct")
SHELL = RECONSTRUCT + stack_global("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"


def dtype(code: str, state: bytes | None = None) -> bytes:
    made = stack_global("numpy", "dtype") + text(code) + b"\x89\x88\x87R"
    plain = b"(K\x03" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
    return made + (plain if state is None else state) + b"b"


def array(
    shape: Any, data: bytes, kind: bytes | None = None, rest: bytes = b"\x89", version: int = 1
) -> bytes:
    part = b"B" + struct.pack("<I", len(data)) + data
    described = b"K%c" % version + dump(shape)[2:-1] + (kind or dtype("f4"))
    return P4 + SHELL + b"(" + described + rest + part + b"tb."


def frombuffer(*parts: bytes) -> bytes:
    head = stack_global("numpy._core.numeric", "_frombuffer")
    return P5 + head + b"(" + b"".join(parts) + b"tR."


FOUR = b"C\x04abcd"
ARRAYS = {
    **{f"elements of {code}": array((1,), b"\0" * 16, dtype(code))
       for code in ("O8", "O", "V8", "S4", "U4", "M8", "m8", "c16", "f16", "g", "i3", "f4,f4", "")},
    "objects in a list": P4 + SHELL + b"(K\x01K\x01\x85" + dtype("O8") + b"\x89]Natb.",
    "a subdtype": array((1,), b"abcd", dtype(
        "f4", b"(K\x03" + text("<") + b"K\x01NNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t")),
    "fields": array((1,), b"abcd", dtype(
        "f4", b"(K\x03" + text("<") + b"N}NJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t")),
    "an item size": array((1,), b"abcd", dtype(
        "f4", b"(K\x03" + text("<") + b"NNNK\x40J\xff\xff\xff\xffK\x00t")),
    "flags": array((1,), b"abcd", dtype(
        "f4", b"(K\x03" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ft")),
    "a byte order": array((1,), b"abcd", dtype(
        "f4", b"(K\x03" + text("%") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t")),
    "a huge shape": array((1 << 40,), b"abcd"),
    "an overflow to nothing": array((1 << 32, 1 << 32), b""),
    "an overflow to four bytes": array((1 << 31, 1 << 31, 1 << 2, 1), b"abcd"),
    "an overflow beside nothing": array((0, 1 << 62, 1 << 62), b""),
    "a negative side": array((-1,), b"abcd"),
    "two negative sides": array((-1, -1), b"abcd"),
    "a true side": array((True,), b"abcd"),
    "a side of 2 to the 100": array((1 << 100,), b"abcd"),
    "a text as a side": array(("1",), b"abcd"),
    "a list as a shape": array([1], b"abcd"),
    "many axes": array((1,) * 40, b"abcd"),
    "too few bytes": array((2,), b"abcd"),
    "too many bytes": array((1,), b"abcdefgh"),
    "another version": array((1,), b"abcd", version=9),
    "an order that is a number": array((1,), b"abcd", rest=b"K\x01"),
    "truths that are neither": array((4,), b"\x00\x01\x02\xff", dtype("b1")),
    "without a state": P4 + SHELL + b".",
    "with two states": array((1,), b"abcd")[:-2] + b"(K\x01K\x01\x85" + dtype("f4") + b"\x89"
    + FOUR + b"tbb.",
    "in itself": P4 + SHELL + b"q\x00(K\x01K\x01\x85" + dtype("f4") + b"\x89h\x00tb.",
    "frombuffer, too few": frombuffer(FOUR, dtype("f4"), b"K\x02\x85", text("C")),
    "frombuffer, a huge shape": frombuffer(FOUR, dtype("f4"), dump((1 << 50,))[2:-1], text("C")),
    "frombuffer, an order": frombuffer(FOUR, dtype("f4"), b"K\x01\x85", text("CF")),
    "frombuffer, no order": frombuffer(FOUR, dtype("f4"), b"K\x01\x85", text("")),
    "frombuffer, wrong axes": frombuffer(FOUR, dtype("f4"), b"K\x01\x85", text("K"), b"K\x07\x85"),
    "frombuffer, no axes": frombuffer(FOUR, dtype("f4"), b"K\x01\x85", text("K"), b"N"),
    "frombuffer, a text": frombuffer(text("abcd"), dtype("f4"), b"K\x01\x85", text("C")),
    "frombuffer, no type": frombuffer(FOUR, b"N", b"K\x01\x85", text("C")),
    "scalar, too few": P4 + stack_global("numpy._core.multiarray", "scalar") + dtype("f8") + FOUR
    + b"\x86R.",
    "scalar of an object": P4 + stack_global("numpy._core.multiarray", "scalar") + dtype("O8")
    + b"N\x86R.",
}  # fmt: skip


def tensor(
    offset: Any = 0, size: Any = (2,), stride: Any = (1,), hooks: bytes = b"}", count: int = 2,
    numel: int = 2, kind: str = "FloatStorage", view: bytes = b"N", more: bytes = b"",
    keys: Any = ("0",),
) -> bytes:  # fmt: skip
    from serving.pickles.torch_storage import MAGIC, PROTOCOL

    storage = P2 + b"(" + text("storage") + lines_global("torch", kind) + text("0")
    storage += text("cpu") + dump(count)[2:-1] + view + b"tQ."
    parts = [dump(MAGIC), dump(PROTOCOL), dump({"little_endian": True}), storage, dump(list(keys))]
    file = b"".join(parts) + struct.pack("<q2f", numel, 0.5, 1.5)
    head = stack_global("torch._utils", "_rebuild_tensor_v2") + b"("
    head += stack_global("torch.storage", "_load_from_bytes")
    head += b"B" + struct.pack("<I", len(file)) + file + b"\x85R"
    said = b"".join(dump(part)[2:-1] for part in (offset, size, stride))
    return P4 + head + said + b"\x89" + hooks + more + b"tR."


TENSOR_HEAD = len(P4 + stack_global("torch._utils", "_rebuild_tensor_v2") + b"(")

TENSORS = {
    "beyond the end": tensor(size=(3,)),
    "beyond the end by an offset": tensor(offset=1),
    "beyond the end by a stride": tensor(stride=(2,)),
    "before the start": tensor(offset=-1),
    "a negative stride": tensor(offset=1, stride=(-1,)),
    "a huge stride": tensor(stride=(1 << 62,)),
    "a stride that overflows": tensor(size=(2, 2), stride=(1 << 63, 1 << 63)),
    "an offset that overflows": tensor(offset=1 << 63, size=(1,)),
    "a negative size": tensor(size=(-2,)),
    "a huge size of one element": tensor(size=(1 << 40,), stride=(0,)),
    "a large size of one element": tensor(size=(1 << 25,), stride=(0,)),
    "an offset that is true": tensor(offset=True),
    "fewer strides than sides": tensor(size=(1, 2)),
    "hooks": tensor(hooks=b"}" + text("a") + b"Ns"),
    "hooks that are a list": tensor(hooks=b"]"),
    "metadata": tensor(more=b"}" + text("a") + b"Ns"),
    "more than there is": tensor(more=b"NN"),
    "a count that lies": tensor(count=3),
    "a count in the file that lies": tensor(numel=3),
    "a negative count": tensor(count=-2, numel=-2),
    "elements of another width": tensor(kind="DoubleStorage"),
    "elements of an unknown kind": tensor(kind="QInt8Storage"),
    "elements of no kind": tensor(kind="FloatTensor"),
    "two keys": tensor(keys=("0", "1")),
    "no key": tensor(keys=()),
    "the key of another": tensor(keys=("1",)),
    "a view of a storage": tensor(view=b"(" + text("1") + b"K\x00K\x01t"),
    "truths that are neither": tensor(kind="BoolStorage", count=8, numel=8, size=(8,)),
    "a storage alone": P4 + tensor()[TENSOR_HEAD : tensor().index(b"\x85R") + 2] + b".",
    "no storage": P4 + stack_global("torch._utils", "_rebuild_tensor_v2")
    + b"(NK\x00)))\x89}tR.",
    "a file of nothing": P4 + stack_global("torch.storage", "_load_from_bytes") + b"C\x00\x85R.",
    "a file that is a zip": P4 + stack_global("torch.storage", "_load_from_bytes")
    + b"C\x04PK\x03\x04\x85R.",
    "a file that is a text": P4 + stack_global("torch.storage", "_load_from_bytes") + COMMAND
    + b"\x85R.",
}  # fmt: skip


@pytest.mark.parametrize("name", [*ARRAYS, *TENSORS])
def test_arrays_and_tensors_that_lie(name: str) -> None:
    refused((ARRAYS | TENSORS)[name])


def test_the_builders_of_arrays_and_tensors_are_sound() -> None:
    """What the lies differ from can be read."""
    assert load(array((1,), b"\0\0\x80\x3f"), WIDE).tolist() == [1.0]
    assert load(tensor(), WIDE).tolist() == [0.5, 1.5]
    assert load(tensor(size=(2, 1), stride=(1, 1)), WIDE).tolist() == [[0.5], [1.5]]
    assert load(frombuffer(FOUR, dtype("u1"), b"K\x04\x85", text("C")), WIDE).tobytes() == b"abcd"


def test_one_storage_shown_a_thousand_times_is_refused() -> None:
    """Views cost nothing to make and much to use: what they show is counted."""
    pixels = b"B" + struct.pack("<I", 3_000_000) + bytes(3_000_000)
    state = b"(K\x01(M\xe8\x03M\xe8\x03K\x03t" + dtype("u1") + b"\x89"
    first = SHELL + state + pixels + b"q\x01tb"
    again = (SHELL + state + b"h\x01tb") * 1000
    result, grown = peak(P4 + b"](" + first + again + b"e.", lambda data: load(data, WIDE))
    assert isinstance(result, BadMessage) and "more bytes" in str(result)
    assert grown < 1_000_000


def test_one_file_of_a_storage_read_a_thousand_times_is_refused() -> None:
    file = tensor(count=250_000, numel=250_000)
    reader = stack_global("torch.storage", "_load_from_bytes")
    file = file[TENSOR_HEAD + len(reader) + 5 : file.index(b"\x85R")] + bytes(1_000_000 - 8)
    data = P4 + b"](" + reader + b"q\x01B" + struct.pack("<I", len(file)) + file + b"q\x02\x85R"
    result, _ = peak(data + b"e.", lambda data: load(data, WIDE))
    assert "should be" in str(result)  # read, but a storage is no value
    data += b"h\x01h\x02\x85R" * 1000 + b"e."
    result, grown = peak(data, lambda data: load(data, WIDE))
    assert isinstance(result, BadMessage) and "more bytes" in str(result) and grown < 1_000_000


def test_texts_that_grow_are_counted() -> None:
    """One character of four bytes makes all the others of a text take four."""
    long = text("x" * 1_000_000 + "\U0001f916")
    result, grown = peak(P4 + b"](" + long * 8 + b"e.", lambda data: load(data, WIDE))
    assert isinstance(result, list) and grown < 40_000_000
    mixed = P4 + b"](" + long * 8 + SHELL + b"(K\x01J\x00\x12\x7a\x00\x85" + dtype("u1") + b"\x89B"
    mixed += struct.pack("<I", 8_000_000) + bytes(8_000_000) + b"q\x01tb"
    assert isinstance(load(mixed + b"e.", WIDE)[8], np.ndarray)
    again = SHELL + b"(K\x01J\x00\x12\x7a\x00\x85" + dtype("u1") + b"\x89h\x01tb"
    result, grown = peak(mixed + again * 4 + b"e.", lambda data: load(data, WIDE))
    assert isinstance(result, BadMessage) and "more bytes" in str(result) and grown < 80_000_000


# Dictionaries, texts, and messages that are cut.

KEYS = {
    "a list": b"}]Ns.", "a dict": b"}}Ns.", "a number": b"}K\x01Ns.", "None": b"}NNs.",
    "a tuple": b"})Ns.", "bytes": b"}C\x01aNs.",
    "an array": b"}" + array((1,), b"abcd")[2:-1] + b"Ns.",
    "a name": b"}" + stack_global("numpy", "dtype") + b"Ns.",
    "a deep tuple": b"})" + b"\x85" * 10_000 + b"Ns.",
    "twice": b"}(" + text("a") + b"N" + text("a") + b"Nu.",
    "twice, one at a time": b"}" + text("a") + b"Ns" + text("a") + b"Ns.",
    "without a value": b"}(" + text("a") + b"u.",
    "a long text": b"}" + text("a" * 5000) + b"Ns.",
    "none, of a list": b"](" + text("a") + b"Nu.",
    "into a tuple": b")" + text("a") + b"Ns.",
    "appended to a dict": b"}Na.",
    "appended to a tuple": b")(Ne.",
}  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_keys(key: str) -> None:
    refused(P4 + KEYS[key])


ODDS = [
    b"", b".", b"\x80", P4, P4 + b".", P4 + b"N", P4 + b"NN.", P4 + b"(.", P4 + b"N(.", P4 + b"a.",
    P4 + b"N..", P4 + b"N.x", P4 + RECORDED["lerobot_setup_4"], b"\x80\x01N.", b"\x80\x06N.",
    b"\x80\xffN.", P4 + P4 + b"N.", b"I1\n.", b"(dp0\n.", b"\x8c\x01a.",
    P4 + b"X\x02\0\0\0\xff\xfe.",
    P4 + b"X\x03\0\0\0\xed\xa0\x80.", P4 + b"t.", P4 + b"e.", P4 + b"u.", P4 + b"\x87.",
    P4 + b"R.", P4 + b"NR.", P4 + b"NNR.", P4 + b"N)R.", P4 + b"b.", P4 + b"Nb.", P4 + b"\x93.",
    P4 + b"q\x00.", P4 + b"\x94.", P4 + b"h\x00.", P4 + stack_global("numpy", "dtype") + b".",
    P4 + RECORD + b".", P4 + RECORD + b"}b}b.", b"GET / HTTP/1.1\r\n\r\n", b"\x1f\x8b" + b"\0" * 50,
    b"PK\x03\x04" + b"\0" * 50, b"\x08\x01\x12\x04test",
]  # fmt: skip


@pytest.mark.parametrize("data", ODDS, ids=range(len(ODDS)))
def test_odd_messages(data: bytes) -> None:
    refused(data)


def test_messages_that_are_too_large() -> None:
    with pytest.raises(BadMessage, match="at most 1048576"):
        lerobot.decode_setup(P4 + bytes(2 << 20))
    with pytest.raises(BadMessage, match="at most 67108864"):
        lerobot.decode_actions(P4 + bytes(64 << 20))


@pytest.mark.parametrize("name", RECORDED)
def test_messages_that_end_too_early(name: str) -> None:
    data, decode = RECORDED[name], DECODERS[name.split("_")[1]]
    decode(data)
    with watched():
        for size in range(len(data)):
            for cut in (data[:size], data[:2] + data[11:size] if size > 11 else b""):
                with pytest.raises(BadMessage):
                    decode(cut)


def test_a_message_with_something_after_it_is_refused() -> None:
    for name, data in RECORDED.items():
        with pytest.raises(BadMessage, match="follows"):
            DECODERS[name.split("_")[1]](data + b"\x00")


# Real messages, changed at random.

# A change of length is noticed at the frame of a message; half of them have none.
BASES = [(name.split("_")[1], data) for name, data in RECORDED.items()]
BASES += [(kind, data[:2] + data[11:]) for kind, data in BASES]
PIECES = [*FORMS.values(), *ARRAYS.values(), *TENSORS.values(), *RECORDED.values()]
SNIPPETS = [b"os", b"system", b"posix", b"builtins", b"eval", b"numpy", b"dtype", b"\xff" * 8]
SNIPPETS += [b"\x00" * 8, b"\x7f\xff\xff\xff", b"\x93R", b"\x81b", b"h\x00", b"(", b"t", b"u"]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The message after one to four changes."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 4))):
        at = chance.randrange(len(changed) + 1)
        end = min(len(changed), at + chance.choice((1, 1, 2, 4, 9, 40)))
        match chance.randrange(9):
            case 0 if at < len(changed):
                changed[at] ^= 1 << chance.randrange(8)
            case 1 if at < len(changed):
                changed[at] = chance.choice(sorted(_HANDLERS))
            case 2:
                del changed[at:end]
            case 3:
                changed[at:at] = chance.choice(SNIPPETS)
            case 4:
                changed[at:end] = chance.choice(SNIPPETS)[: end - at]
            case 5:
                changed[at:at] = changed[at:end] * chance.choice((1, 2, 50))
            case 6:
                other = chance.choice(PIECES)
                begin = chance.randrange(len(other))
                changed[at:at] = other[begin : begin + chance.choice((2, 10, 100, 1000))]
            case 7:
                other = chance.choice(PIECES)
                changed[at:] = other[chance.randrange(len(other)) :]
            case _:
                changed[at:end] = chance.randbytes(end - at)
    return bytes(changed)


def test_ten_thousand_changed_messages(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    chance, taken, no = random.Random(5), 0, 0
    for number in range(10_000):
        kind, base = BASES[number % len(BASES)]
        data, decode = mutated(base, chance), DECODERS[kind]
        with watched():
            for read in (decode, lambda data: load(data, Bounds())):
                try:
                    read(data)
                    taken += 1
                except BadMessage as error:
                    assert str(error).isprintable() and len(str(error)) < 400
                    no += 1
    # Most are refused; some changes make no difference to what is read, or give other numbers.
    assert taken + no == 20_000 and taken > 500 and no > 10_000
    assert not list(tmp_path.iterdir())


def test_changed_messages_keep_their_memory_small() -> None:
    chance = random.Random(6)
    for number in range(300):
        kind, base = BASES[number % len(BASES)]
        result, grown = peak(mutated(base, chance), DECODERS[kind])
        assert grown < 2_000_000, (result, grown)


def test_sound_messages_are_read_in_silence() -> None:
    with watched():
        for name, data in RECORDED.items():
            DECODERS[name.split("_")[1]](data)
        read = lerobot.decode_observation(RECORDED["lerobot_observation_5"], INSTRUCTIONS)
    assert read.pictures["front"].pixels is not None
    assert np.array_equal(read.pictures["front"].pixels, picture("front"))
