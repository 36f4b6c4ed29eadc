"""A stack machine for the opcodes of pickles that hold data.

Written from the description of the protocols 2 to 5 in PEP 307, 3154 and 574 and the standard
library's `pickletools`. It knows no way to import or to call anything: a pickle's names become
`Name`s from a table, and a call of one is a function of ours that was put into that table.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

from serving.messages import BadMessage
from serving.pickles.values import Bounds, Budget, Buildable, Name, Record, excerpt

__all__ = ["Machine", "Names"]

Names = Mapping[tuple[str, str], Name]

_PROTO, _STOP = 0x80, 0x2E
_PROTOCOLS = range(2, 6)
_MAX_INTEGER = 16
"""Bytes; torch's magic number has ten."""
_MAX_NAME = 256
_MAX_KEY = 1024
_MAX_TEXT = 1 << 26

_U16, _I32, _U32 = struct.Struct("<H"), struct.Struct("<i"), struct.Struct("<I")
_U64, _F64 = struct.Struct("<Q"), struct.Struct(">d")


class Machine:
    """Runs one pickle, from `at` on. IndexError and struct.error mean that it ends too early.

    Attributes:
        at: where the next opcode is; after `run`, what follows the pickle.
    """

    __slots__ = (
        "_bounds", "_budget", "_marks", "_memo", "_names", "_persistent", "_stack", "_view", "at",
    )  # fmt: skip

    def __init__(
        self,
        view: memoryview,
        names: Names,
        bounds: Bounds,
        budget: Budget,
        at: int = 0,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        """Ready to run.

        Args:
            view: the bytes; what is read refers to them and copies none of their arrays.
            names: the classes and functions that may be named; no other is.
            bounds: of the stack and the marks.
            budget: shared with the message that this is a part of.
            at: where the pickle starts.
            persistent: gives the value for a persistent id; None where there are none.
        """
        self._view, self._names, self._bounds, self._budget = view, names, bounds, budget
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        # By index and in a dictionary: a pickle may claim any index without anything growing.
        self._memo: dict[int, Any] = {}
        self.at = at

    def run(self) -> Any:
        """The value that the pickle holds. Containers may be shared and may hold themselves."""
        if self._view[self.at] != _PROTO or self._view[self.at + 1] not in _PROTOCOLS:
            raise BadMessage("not a pickle of protocol 2 to 5")
        self.at += 2
        while (opcode := self._view[self.at]) != _STOP:
            self.at += 1
            self._budget.opcodes -= 1
            if self._budget.opcodes < 0 or len(self._stack) > self._bounds.stack:
                raise BadMessage("the pickle holds too much")
            handler = _HANDLERS.get(opcode)
            if handler is None:
                raise BadMessage(f"the pickle's opcode 0x{opcode:02x} is not taken")
            handler(self)
        self.at += 1
        if self._marks or len(self._stack) != 1:
            raise BadMessage("the pickle leaves something over")
        return self._stack[0]

    # Reading the operands.

    def _bytes(self, size: int) -> memoryview:
        start, end = self.at, self.at + size
        if end > len(self._view):
            raise BadMessage("the pickle ends too early")
        self.at = end
        return self._view[start:end]

    def _number(self, layout: struct.Struct) -> Any:
        value = layout.unpack_from(self._view, self.at)[0]
        self.at += layout.size
        return value

    def _byte(self) -> int:
        self.at += 1
        return self._view[self.at - 1]

    def _text(self, size: int) -> None:
        if size > _MAX_TEXT:
            raise BadMessage("a text is too long")
        text = str(self._bytes(size), "utf-8")
        self._budget.take(text.__sizeof__())  # up to four times its bytes, for one odd character
        self._stack.append(text)

    def _line(self) -> str:
        line = bytes(self._view[self.at : self.at + _MAX_NAME])
        end = line.find(b"\n")
        if end < 0:
            raise BadMessage("a name is too long or does not end")
        self.at += end + 1
        return str(line[:end], "utf-8")

    # Numbers, texts and bytes.

    def _frame(self) -> None:
        # A frame only says how much may be read ahead.
        if self._number(_U64) > len(self._view) - self.at:
            raise BadMessage("the pickle ends before its frame does")

    def _none(self) -> None:
        self._stack.append(None)

    def _true(self) -> None:
        self._stack.append(True)

    def _false(self) -> None:
        self._stack.append(False)

    def _int1(self) -> None:
        self._stack.append(self._byte())

    def _int2(self) -> None:
        self._stack.append(self._number(_U16))

    def _int4(self) -> None:
        self._stack.append(self._number(_I32))

    def _long1(self) -> None:
        size = self._byte()
        if size > _MAX_INTEGER:
            raise BadMessage(f"an integer of {size} bytes")
        self._stack.append(int.from_bytes(self._bytes(size), "little", signed=True))

    def _float8(self) -> None:
        self._stack.append(self._number(_F64))

    def _text1(self) -> None:
        self._text(self._byte())

    def _text4(self) -> None:
        self._text(self._number(_U32))

    def _text8(self) -> None:
        self._text(self._number(_U64))

    def _bytes1(self) -> None:
        self._stack.append(self._bytes(self._byte()))

    def _bytes4(self) -> None:
        self._stack.append(self._bytes(self._number(_U32)))

    def _bytes8(self) -> None:
        self._stack.append(self._bytes(self._number(_U64)))

    # Containers.

    def _mark(self) -> None:
        if len(self._marks) >= self._bounds.marks:
            raise BadMessage("the pickle is nested too deeply")
        self._marks.append(self._stack)
        self._stack = []

    def _since_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._marks.pop()
        return items

    def _empty_tuple(self) -> None:
        self._stack.append(())

    def _empty_list(self) -> None:
        self._stack.append([])

    def _empty_dict(self) -> None:
        self._stack.append({})

    def _tuple(self) -> None:
        items = self._since_mark()
        self._stack.append(tuple(items))

    def _tuple1(self) -> None:
        self._stack[-1:] = [(self._stack[-1],)]

    def _tuple2(self) -> None:
        second, first = self._stack.pop(), self._stack.pop()
        self._stack.append((first, second))

    def _tuple3(self) -> None:
        third, second, first = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self._stack.append((first, second, third))

    def _append(self) -> None:
        item = self._stack.pop()
        self._list().append(item)

    def _appends(self) -> None:
        items = self._since_mark()
        self._list().extend(items)

    def _list(self) -> list[Any]:
        target = self._stack[-1]
        if type(target) is not list:
            raise BadMessage(f"items are appended to {excerpt(target)}")
        return target

    def _set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def _set_items(self) -> None:
        self._set(self._since_mark())

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise BadMessage(f"keys and values are put into {excerpt(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Only texts: their hashes cannot be made to collide, and need no recursion.
            if type(key) is not str or len(key) > _MAX_KEY:
                raise BadMessage(f"{excerpt(key)} is a key of a dictionary; short texts are taken")
            if key in target:
                raise BadMessage(f"a dictionary has the key {excerpt(key)} twice")
            target[key] = value

    # The memo.

    def _memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _put1(self) -> None:
        self._memo[self._byte()] = self._stack[-1]

    def _put4(self) -> None:
        self._memo[self._number(_U32)] = self._stack[-1]

    def _get1(self) -> None:
        self._stack.append(self._memo[self._byte()])

    def _get4(self) -> None:
        self._stack.append(self._memo[self._number(_U32)])

    # Names, and what stands where other readers call something.

    def _name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise BadMessage("a pickle's name is not a text")
        found = self._names.get((module, name))
        if found is None:
            raise BadMessage(
                f"the pickle names {excerpt(f'{module[:80]}.{name[:80]}')}, which is not among "
                "the few types that LeRobot's messages hold: refused, nothing was executed"
            )
        self._stack.append(found)

    def _name_lines(self) -> None:
        module = self._line()
        self._name(module, self._line())

    def _name_stack(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._name(module, name)

    def _callee(self, arguments: Any) -> Name:
        callee = self._stack.pop()
        if not isinstance(callee, Name) or type(arguments) is not tuple:
            raise BadMessage(f"the pickle calls {excerpt(callee)}")
        return callee

    def _reduce(self) -> None:
        arguments = self._stack.pop()
        callee = self._callee(arguments)
        if callee.reduce is None:
            raise BadMessage(f"the pickle calls {callee.text}, which is only a name here")
        self._stack.append(callee.reduce(arguments, self._budget))

    def _new(self) -> None:
        arguments = self._stack.pop()
        callee = self._callee(arguments)
        if not callee.record or arguments:
            raise BadMessage(f"the pickle makes a {callee.text} in a way that LeRobot does not")
        self._stack.append(Record(callee.record))

    def _build(self) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if not isinstance(target, Buildable):
            raise BadMessage(f"the pickle sets the state of {excerpt(target)}")
        target.build(state, self._budget)

    def _persistent_id(self) -> None:
        if self._persistent is None:
            raise BadMessage("the pickle refers to something outside of it")
        self._stack.append(self._persistent(self._stack.pop()))


# The opcodes that real messages use at one protocol or another, and their longer forms. Left out
# are those of the protocols 0 and 1, sets, INST, OBJ, NEWOBJ_EX, EXT1 to EXT4, LONG4, POP, DUP
# and buffers outside of the message.
_HANDLERS: dict[int, Callable[[Machine], None]] = {
    0x95: Machine._frame,
    ord("N"): Machine._none,
    0x88: Machine._true,
    0x89: Machine._false,
    ord("K"): Machine._int1,
    ord("M"): Machine._int2,
    ord("J"): Machine._int4,
    0x8A: Machine._long1,
    ord("G"): Machine._float8,
    0x8C: Machine._text1,
    ord("X"): Machine._text4,
    0x8D: Machine._text8,
    ord("C"): Machine._bytes1,
    ord("B"): Machine._bytes4,
    0x8E: Machine._bytes8,
    0x96: Machine._bytes8,
    ord("("): Machine._mark,
    ord(")"): Machine._empty_tuple,
    ord("]"): Machine._empty_list,
    ord("}"): Machine._empty_dict,
    ord("t"): Machine._tuple,
    0x85: Machine._tuple1,
    0x86: Machine._tuple2,
    0x87: Machine._tuple3,
    ord("a"): Machine._append,
    ord("e"): Machine._appends,
    ord("s"): Machine._set_item,
    ord("u"): Machine._set_items,
    0x94: Machine._memoize,
    ord("q"): Machine._put1,
    ord("r"): Machine._put4,
    ord("h"): Machine._get1,
    ord("j"): Machine._get4,
    ord("c"): Machine._name_lines,
    0x93: Machine._name_stack,
    ord("R"): Machine._reduce,
    0x81: Machine._new,
    ord("b"): Machine._build,
    ord("Q"): Machine._persistent_id,
}
