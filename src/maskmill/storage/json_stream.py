"""A large JSON object read piece by piece: constant memory, whatever its size, and the byte where it breaks."""

import codecs
import json
from collections.abc import Iterator
from typing import IO, Any

_CHUNK = 1 << 20  # bytes read at a time
_MOST = 256 << 20  # characters of one element
_SPACE = " \t\n\r"
_TORN = ("", ".", "e", "E", "e-", "E-", "e+", "E+")  # what a cut may leave after a number


class JsonError(ValueError):
    """It is no whole JSON object; the words say where."""


def stream_object(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """The members of the JSON object in `file` (UTF-8), in its order: (key, value), with arrays one element at a time.

    An array gives (key, []) where it begins, then (key, element) for each element. JsonError if the text is no object,
    is cut short, or is broken; what came before was fine.
    """
    text = _Text(file)
    if text.peek() != "{":
        raise JsonError("it is empty" if text.peek() == "" else f"it begins with {text.peek()!r}, not with an object")
    text.skip("{")
    while text.peek() != "}":
        key = text.value()
        if not isinstance(key, str):
            raise text.broken("a key")
        text.skip(":")
        if text.peek() == "[":
            yield key, []
            yield from ((key, element) for element in _elements(text))
        else:
            yield key, text.value()
        if text.peek() != "}":
            text.skip(",")
            if text.peek() == "}":
                raise text.broken("a key")
    text.skip("}")
    if text.peek():
        raise text.broken("its end")


def _elements(text: "_Text") -> Iterator[Any]:
    text.skip("[")
    while text.peek() != "]":
        yield text.value()
        if text.peek() != "]":
            text.skip(",")
            if text.peek() == "]":
                raise text.broken("an element")
    text.skip("]")


class _Text:
    """The decoded text, with a cursor; what was read is let go."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self.json = json.JSONDecoder()
        self.buffer, self.at, self.ended = "", 0, False
        self.bytes = 0  # read so far

    def more(self) -> bool:
        """Read on; False at the end of the file."""
        if not self.ended:
            data = self.file.read(max(_CHUNK, len(self.buffer) - self.at))  # it doubles: a long element stays linear
            self.bytes += len(data)
            self.ended = not data
            try:
                self.buffer = self.buffer[self.at :] + self.utf8.decode(data, final=self.ended)
            except UnicodeDecodeError as e:
                if self.ended:
                    raise JsonError(f"it is cut short: its {self.bytes} bytes end in the middle") from e
                raise JsonError(f"it is not UTF-8 text before byte {self.bytes}") from e
            self.at = 0
        return not self.ended

    def peek(self) -> str:
        """The next character that is no space; "" at the end."""
        while True:
            while self.at < len(self.buffer):
                if (char := self.buffer[self.at]) not in _SPACE:
                    return char
                self.at += 1
            if not self.more():
                return ""

    def skip(self, char: str) -> None:
        """Step over `char`, which must come next."""
        if self.peek() != char:
            raise self.broken(repr(char))
        self.at += 1

    def value(self) -> Any:
        """The whole JSON value that begins here."""
        self.peek()
        while True:
            try:
                value, end = self.json.raw_decode(self.buffer, self.at)
            except json.JSONDecodeError as e:
                if len(self.buffer) - self.at > _MOST or not self.more():
                    raise self.broken("a value", cut=self.ended and _is_cut(e)) from e
                continue
            except RecursionError as e:
                raise self.broken("a value that is nested less deeply") from e
            # a number at the end of what was read may go on: `12`, `12.`, `12e-`
            if not isinstance(value, str | dict | list) and len(self.buffer) - end < 3 and not self.ended:
                self.more()
                continue
            self.at = end
            return value

    def broken(self, wanted: str, cut: bool = False) -> JsonError:
        """The error here: the text ends too early (`cut`, or nothing comes any more), or is not what was `wanted`."""
        self.peek()
        if cut or (self.ended and self.buffer[self.at :].rstrip() in _TORN):
            return JsonError(f"it is cut short: its {self.bytes} bytes end in the middle")
        where = self.bytes - len(self.buffer[self.at :].encode())
        found = self.buffer[self.at : self.at + 20]
        return JsonError(f"it is broken near byte {where}: expected {wanted}, found {found!r}")


def _is_cut(e: json.JSONDecodeError) -> bool:
    """Whether this error is what the end of the text in the middle of a value looks like."""
    rest = e.doc[e.pos :].rstrip()
    torn = any(word.startswith(rest) for word in ("true", "false", "null", "NaN", "Infinity", "-Infinity"))
    return torn or "Unterminated" in e.msg or (e.msg.startswith("Invalid \\") and len(rest) < 8)
