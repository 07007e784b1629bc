"""Decodes files of text: UTF-8, or what a byte order mark says, which is no part of the text."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable

from fusestore.errors import InvalidInputError

MAX_DOCUMENT = 2**30
"""Most bytes or characters of one document, so that a small archive does not fill the memory."""

_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encodings by byte order mark. UTF-32 comes first: its mark begins like that of UTF-16."""


def whole_text(data: io.BufferedReader, source: str) -> str:
    """All text of a stream.

    Args:
        data: the stream.
        source: its name, for messages.

    Raises:
        InvalidInputError: it is no text, or longer than `MAX_DOCUMENT`.
    """
    encoding = _encoding(data)
    content = data.read(MAX_DOCUMENT + 1)
    if len(content) > MAX_DOCUMENT:
        raise _too_long(source)
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"{source} is not {_shown(encoding)}: byte {error.object[error.start]:#04x} at "
            f"position {error.start:,}. Convert the file to UTF-8 first."
        ) from error


class DecodedText:
    """The text of a stream; bytes that are none are an error that names their line."""

    def __init__(self, data: io.BufferedReader, source: str) -> None:
        self._source, self._encoding = source, _encoding(data)
        self._lines = 1
        # Undecodable bytes become surrogates, because the error of a decoder has no line.
        # Only a line feed ends a line: JSON strings and cells hold other separators.
        self._file = io.TextIOWrapper(data, self._encoding, errors="surrogateescape", newline="\n")

    def read(self, size: int) -> str:
        """The next characters, fewer only at the end.

        Raises:
            InvalidInputError: bytes that are no text.
        """
        return self._checked(self._file.read, size)

    def readline(self) -> str:
        """The next line with its line feed, empty at the end.

        Raises:
            InvalidInputError: bytes that are no text, or a line that is longer than `MAX_DOCUMENT`.
        """
        line = self._checked(self._file.readline, MAX_DOCUMENT + 1)
        if len(line) > MAX_DOCUMENT:
            raise _too_long(self._source)
        return line

    def _checked(self, read: Callable[[int], str], size: int) -> str:
        try:
            text = read(size)
        except UnicodeDecodeError as error:
            raise self._error(self._lines, error.reason) from error
        if (position := first_surrogate(text)) is not None:
            line = self._lines + text.count("\n", 0, position)
            raise self._error(line, f"byte {ord(text[position]) - 0xDC00:#04x}")
        self._lines += text.count("\n")
        return text

    def _error(self, line: int, problem: str) -> InvalidInputError:
        return InvalidInputError(
            f"Line {line} of {self._source} is not {_shown(self._encoding)}: {problem}. "
            "Convert the file to UTF-8 first."
        )


def _encoding(data: io.BufferedReader) -> str:
    start = data.peek(4)
    return next((name for mark, name in _MARKS.items() if start.startswith(mark)), "utf-8")


def _shown(encoding: str) -> str:
    return encoding.upper().removesuffix("-SIG")


def first_surrogate(text: str) -> int | None:
    """The position of the first lone surrogate, which UTF-8 cannot hold; None if there is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def _too_long(source: str) -> InvalidInputError:
    return InvalidInputError(
        f"{source} holds a document of more than {MAX_DOCUMENT:,} bytes. Divide it into "
        "several files or rows."
    )
