"""Reading a pickle without unpickling it: containers, strings, numbers, and numpy's arrays of strings or numbers.

An unpickler does what the file says, and even one that knows numpy's own functions alone lets the file decide where an
array's values lie. Here the file's opcodes are read as text is: arrays come out as lists of what their bytes say, as
many as there are bytes for, and no other object is made.
"""

import io
import pickletools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

#: Where numpy 1 and 2 keep what they name in a pickle.
MODULES = ("numpy", *(f"numpy.{core}.{part}" for core in ("core", "_core") for part in ("multiarray", "numeric")))
NAMES = ("ndarray", "dtype", "_reconstruct", "_frombuffer", "scalar")
NUMBERS = re.compile(r"b1|[iu][1248]|f[248]")
STRINGS = re.compile(r"U([1-9]\d{0,5})")
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
CONTAINERS = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


@dataclass(frozen=True)
class _Known:
    """One of numpy's names, which stands for itself."""

    name: str


@dataclass
class _Type:
    """The type of an array's elements; the byte order follows later in the file."""

    code: str
    order: str = "="


class _Array(list[Any]):
    """The values of an array, which follow later in the file."""


def read_plain(path: Path) -> Any:
    """Return what a pickle of protocol 3 or later holds: arrays, of one axis or one column, as lists.

    OSError, or ValueError, TypeError, KeyError or IndexError for a file with anything else in it, or a damaged one.
    """
    reader = _Reader()
    for opcode, value, _ in pickletools.genops(io.BytesIO(path.read_bytes())):
        if opcode.name == "STOP":
            return reader.stack.pop()
        reader.take(opcode.name, value)
    raise ValueError("no end")


class _Reader:
    """What has been read so far: the ``stack``, where marked stretches of it begin, and what is named again later."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def take(self, name: str, value: Any) -> None:
        """Follow one opcode."""
        stack = self.stack
        if name in LITERALS:
            stack.append(value)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in CONTAINERS:
            stack.append(CONTAINERS[name]())
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(self._last(int(name[-1]))))
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            self._memo[len(self._memo) if name == "MEMOIZE" else value] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[value])
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(self._marked()))
        elif name in ("APPEND", "APPENDS"):
            self._append(self._marked() if name == "APPENDS" else self._last(1))
        elif name in ("SETITEM", "SETITEMS"):
            self._set(self._marked() if name == "SETITEMS" else self._last(2))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(_known(*(value.split(" ") if name == "GLOBAL" else self._last(2))))
        elif name == "REDUCE":
            stack.append(_made(*self._last(2)))
        elif name == "BUILD":
            (state,) = self._last(1)
            _complete(stack[-1], state)
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"the opcode {name} in it")

    def _last(self, number: int) -> list[Any]:
        if len(self.stack) < number:
            raise ValueError("an opcode without its arguments")
        items = self.stack[-number:]
        del self.stack[-number:]
        return items

    def _marked(self) -> list[Any]:
        start = self._marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("items of no list")
        self.stack[-1].extend(items)

    def _set(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not dict or not all(isinstance(key, str) for key in items[::2]):
            raise ValueError("items of no mapping of names")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))


def _known(module: Any, name: Any) -> _Known:
    if module not in MODULES or name not in NAMES:
        raise ValueError(f"{module}.{name} in it")
    return _Known(name)


def _made(function: Any, given: Any) -> Any:
    """Return what one of numpy's functions stands for, of these arguments."""
    if function == _Known("dtype"):
        code = given[0]
        if not isinstance(code, str) or not (NUMBERS.fullmatch(code) or STRINGS.fullmatch(code)):
            raise ValueError(f"an array of type {code!r} in it")
        return _Type(code)
    if function == _Known("_reconstruct") and given == (_Known("ndarray"), (0,), b"b"):
        return _Array()
    if function == _Known("_frombuffer"):
        content, kind, shape, _ = given
        return _Array(_values(kind, shape, content))
    if function == _Known("scalar"):
        kind, content = given
        return _values(kind, (1,), content)[0]
    raise ValueError("a call of it")


def _complete(made: Any, state: Any) -> None:
    """Give a type its byte order, or an array its values."""
    if isinstance(made, _Type) and state[1] in ("<", ">", "|", "=") and state[2:5] == (None, None, None):
        made.order = state[1]
    elif isinstance(made, _Array) and not made:
        _, shape, kind, _, content = state
        made.extend(_values(kind, shape, content))
    else:
        raise ValueError("an object with a state in it")


def _values(kind: Any, shape: Any, content: Any) -> list[Any]:
    """Return the elements that the bytes ``content`` hold; there must be just as many as ``shape`` says."""
    if not isinstance(kind, _Type) or not isinstance(content, bytes | bytearray):
        raise ValueError("an array without type or bytes in it")
    if not isinstance(shape, tuple) or type(shape[0]) is not int or shape[0] < 0 or shape[1:] not in ((), (1,)):
        raise ValueError(f"an array of shape {shape} in it")
    letters = STRINGS.fullmatch(kind.code)
    width = 4 * int(letters[1]) if letters else int(kind.code[1])
    if shape[0] * width != len(content):
        raise ValueError(f"{len(content)} bytes for an array {kind.code}{shape} in it")
    if letters:
        encoding = "utf-32-be" if kind.order == ">" else "utf-32-le"
        starts = range(0, len(content), width)
        return [content[start : start + width].decode(encoding).rstrip("\0") for start in starts]
    return list(np.frombuffer(content, kind.order + kind.code).tolist()) if content else []
