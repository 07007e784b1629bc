"""Reads a stream of JSON values one by one, so that memory grows with one value, not with the file.

One reader for JSON lines and for `.json` files, because either kind is found under either name: the
stream holds an array, or any number of values one after another.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

_SPACE = re.compile(r"[ \t\n\r]*")
_CHUNK = 2**18
_LONGEST_TOKEN = 16
"""A value that fails this close to the end of what was read may be incomplete, not wrong."""


class JsonError(ValueError):
    """A stream is not JSON.

    Attributes:
        line: where the faulty value begins, from 1.
    """

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


class JsonStream:
    """The values of a stream: elements of its array, or values one after another.

    Args:
        read: returns the next characters of the text, at most as many as it is asked for.
        max_value: the longest value, in characters.
    """

    def __init__(self, read: Callable[[int], str], max_value: int) -> None:
        self._read, self._max_value = read, max_value
        self._text, self._at = "", 0
        self._line, self._counted = 1, 0
        self._decode = json.JSONDecoder().raw_decode

    def values(self) -> Iterator[tuple[int, object]]:
        """Each value, and the line on which it begins.

        Raises:
            JsonError: the stream is not JSON, nests too deeply, or has too long a value.
            InvalidInputError: see `read`.
        """
        if self._next_character() != "[":
            while self._next_character():
                yield self._value()
            return
        self._at += 1
        character = self._next_character()
        while character != "]":
            yield self._value()
            character = self._next_character()
            if character not in (",", "]"):
                raise self._error("expected ',' or ']' after an element of the array")
            self._at += character == ","
        self._at += 1
        if self._next_character():
            raise self._error("found more text after the array")

    def _value(self) -> tuple[int, object]:
        self._next_character()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                incomplete = error.msg.startswith("Unterminated string") or (
                    error.pos >= len(self._text) - _LONGEST_TOKEN
                )
                if not (incomplete and self._read_on()):
                    raise self._error(error.msg) from error
                continue
            except RecursionError as error:
                raise self._error("its values are nested too deeply") from error
            except ValueError as error:
                raise self._error(str(error)) from error
            line = self._count_lines()
            self._at = end
            return line, value

    def _next_character(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_on():
                return ""

    def _read_on(self) -> bool:
        """Read more, and forget what was used; False at the end.

        What is kept doubles, so that a long value is not parsed over and over.
        """
        kept = len(self._text) - self._at
        if kept > self._max_value:
            raise self._error(f"a value is longer than {self._max_value:,} characters")
        chunk = self._read(max(_CHUNK, kept))
        self._count_lines()
        self._text, self._at, self._counted = self._text[self._at :] + chunk, 0, 0
        return bool(chunk)

    def _count_lines(self) -> int:
        """The line of the next character."""
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def _error(self, problem: str) -> JsonError:
        return JsonError(self._count_lines(), problem)
