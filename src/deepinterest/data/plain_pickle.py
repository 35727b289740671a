"""Pickles of a dict from text to whole numbers, and of nothing else.

A pickle is a program, and Python's own reader calls whatever functions it names. The reader here knows only the
instructions that make dicts, texts and whole numbers, of protocols 0 to 5; it has no way to call anything.
"""

from __future__ import annotations

import codecs
from pickletools import opcodes
from typing import Any

# What an instruction that is refused would make, where its name doesn't tell.
MAKES = {
    "NONE": "None", "NEWTRUE": "bool", "NEWFALSE": "bool", "FLOAT": "float", "BINFLOAT": "float",
    "LIST": "list", "EMPTY_LIST": "list", "APPEND": "list", "APPENDS": "list",
    "TUPLE": "tuple", "EMPTY_TUPLE": "tuple", "TUPLE1": "tuple", "TUPLE2": "tuple", "TUPLE3": "tuple",
    "EMPTY_SET": "set", "ADDITEMS": "set", "FROZENSET": "frozenset", "BYTEARRAY8": "bytearray",
}  # fmt: skip
# How many bytes hold the length or the number that follows an instruction, and whether the number has a sign.
BYTES = {"X": 4, "\x8c": 1, "\x8d": 8, "T": 4, "U": 1, "B": 4, "C": 1, "\x8e": 8}
NUMBERS = {"J": (4, True), "K": (1, False), "M": (2, False)}
LONGS = {"\x8a": 1, "\x8b": 4}
PUTS, GETS = {"q": 1, "r": 4}, {"h": 1, "j": 4}


class RefusedError(Exception):
    """The pickle holds something else, or is broken; the text says what."""


class _Mark:
    def __repr__(self) -> str:
        return "a mark"


MARK = _Mark()


def loads(data: bytes) -> dict[str | bytes, int]:
    """The dict that `data` holds, its keys as they stand there: text, or bytes from Python 2. Raises RefusedError."""
    try:
        result = _run(data)
    except (IndexError, KeyError) as error:  # the stack is empty, or the memo lacks an entry
        raise RefusedError(f"is broken ({type(error).__name__} of the pickle's own stack)") from None
    if type(result) is not dict:
        raise RefusedError(f"holds {_kind(result)}")
    return result


class _Input:
    """Bytes, and how far they have been read."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, length: int) -> bytes:
        end = self.at + length
        if length < 0 or end > len(self.data):
            raise RefusedError(f"breaks off at byte {len(self.data)}")
        part = self.data[self.at : end]
        self.at = end
        return part

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise RefusedError(f"breaks off at byte {len(self.data)}")
        part = self.data[self.at : end]
        self.at = end + 1
        return part

    def number(self, width: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(width), "little", signed=signed)


def _run(data: bytes) -> Any:
    source = _Input(data)
    stack: list[Any] = []
    memo: dict[int, Any] = {}  # not a list: an entry's number is the pickle's choice
    while True:
        at = source.at
        code = source.take(1).decode("latin-1")
        if code == "s":
            value, key = stack.pop(), stack.pop()
            _set(stack[-1], key, value)
        elif code == "u":
            begin = _mark(stack)
            items = stack[begin + 1 :]
            del stack[begin:]
            if len(items) % 2:
                raise RefusedError(f"is broken at byte {at}: a key without a value")
            for key, value in zip(items[::2], items[1::2], strict=True):
                _set(stack[-1], key, value)
        elif code in "VSI" or code == "L":
            stack.append(_from_line(code, source.line(), at))
        elif code in BYTES:
            part = source.take(source.number(BYTES[code]))
            stack.append(_utf8(part, at) if code in "X\x8c\x8d" else part)
        elif code in NUMBERS:
            stack.append(source.number(*NUMBERS[code]))
        elif code in LONGS:
            stack.append(source.number(source.number(LONGS[code]), True))
        elif code == "p" or code in PUTS:
            memo[_index(source.line(), at) if code == "p" else source.number(PUTS[code])] = stack[-1]
        elif code == "\x94":
            memo[len(memo)] = stack[-1]
        elif code == "g" or code in GETS:
            stack.append(memo[_index(source.line(), at) if code == "g" else source.number(GETS[code])])
        elif code == "(":
            stack.append(MARK)
        elif code == "}":
            stack.append({})
        elif code == "d":
            begin = _mark(stack)
            items = stack[begin + 1 :]
            if len(items) % 2:
                raise RefusedError(f"is broken at byte {at}: a key without a value")
            made: dict[Any, int] = {}
            for key, value in zip(items[::2], items[1::2], strict=True):
                _set(made, key, value)
            stack[begin:] = [made]
        elif code == "\x80":
            if (protocol := source.number(1)) > 5:
                raise RefusedError(f"is of pickle protocol {protocol}, unknown here")
        elif code == "\x95":
            source.take(8)  # the length of a frame
        elif code == ".":
            return stack.pop()
        else:
            raise RefusedError(_foreign(code, source, stack, at))


def _set(target: Any, key: Any, value: Any) -> None:
    if type(target) is not dict:
        raise RefusedError(f"has a key in {_kind(target)}")
    if type(key) not in (str, bytes):
        raise RefusedError(f"has {_kind(key)} as a key")
    if type(value) is not int:
        raise RefusedError(f"has {_kind(value)} as the value of {key!r}")
    if key in target:
        raise RefusedError(f"has the key {key!r} twice")
    target[key] = value


def _mark(stack: list[Any]) -> int:
    for place in range(len(stack) - 1, -1, -1):
        if stack[place] is MARK:
            return place
    raise RefusedError("is broken (no mark on the pickle's own stack)")


def _from_line(code: str, line: bytes, at: int) -> str | bytes | int:
    """A text, bytes or a number that protocol 0 writes in a line."""
    try:
        if code == "V":
            return _pairs(line.decode("raw-unicode-escape"))
        if code == "S":
            line = line.strip()
            if len(line) < 2 or line[:1] not in b"'\"" or line[:1] != line[-1:]:
                raise ValueError("no quotes")
            text = line[1:-1]
            return bytes(codecs.escape_decode(text)[0]) if b"\\" in text else text
        if code == "I" and line in (b"00", b"01"):
            raise RefusedError(f"holds bool (byte {at})")
        return int(line.removesuffix(b"L"))
    except ValueError as error:
        raise RefusedError(f"is broken at byte {at} ({error})") from None


def _index(line: bytes, at: int) -> int:
    try:
        return int(line)
    except ValueError:
        raise RefusedError(f"is broken at byte {at} (the number of an entry is {line[:20]!r})") from None


def _pairs(text: str) -> str:
    """Some builds of Python 2 write a character beyond U+FFFF as two surrogates."""
    if any("\ud800" <= sign <= "\udfff" for sign in text):
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    return text


def _utf8(part: bytes, at: int) -> str:
    try:
        return part.decode("utf-8")
    except UnicodeDecodeError:
        raise RefusedError(f"has a text at byte {at} that isn't UTF-8 ({part[:40]!r})") from None


def _kind(value: Any) -> str:
    return repr(value) if value is MARK else type(value).__name__


def _foreign(code: str, source: _Input, stack: list[Any], at: int) -> str:
    """What an instruction would do that isn't followed."""
    opcode = next((known for known in opcodes if known.code == code), None)
    if opcode is None:
        return f"is no pickle (byte {at} is {code!r})"
    if opcode.name in ("GLOBAL", "INST"):
        module, name = (source.line().decode("utf-8", "backslashreplace") for _ in range(2))
        return f"asks for {module}.{name} (byte {at})"
    if opcode.name == "STACK_GLOBAL":
        return f"asks for {'.'.join(str(part) for part in stack[-2:])} (byte {at})"
    if opcode.name in MAKES:
        return f"holds {MAKES[opcode.name]} (byte {at})"
    return f"has the instruction {opcode.name} (byte {at})"
