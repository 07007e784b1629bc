"""What a server answers to a request for a range."""

from __future__ import annotations

import http.client
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from fusestore.errors import StorageError


class Body(Protocol):
    """What is still to be read."""

    def readinto(self, target: memoryview, /) -> int:
        """Fill memory; how many bytes came, 0 at the end."""
        ...

    def close(self) -> None:
        """End it, read or not."""
        ...


class Answer(NamedTuple):
    """Bytes on their way.

    Attributes:
        body: begins with the first byte that was asked for.
        num_bytes: of those asked for, how many the file has.
    """

    body: Body
    num_bytes: int


class _Direct:
    """urllib3's answer, filled into memory by what urllib3 stands on."""

    def __init__(self, response: Any, inner: http.client.HTTPResponse) -> None:  # noqa: ANN401
        self._response = response
        self._inner = inner

    def readinto(self, target: memoryview) -> int:
        count = self._inner.readinto(target)
        if self._inner.isclosed():
            # Read to its end.
            self._response.release_conn()
        return count

    def close(self) -> None:
        self._response.close()


def body_of(response: Any) -> Body:  # noqa: ANN401 - urllib3 is no dependency of this file
    """The unread body of an answer of urllib3's.

    urllib3's own `readinto` reads into memory of its own first, and copies.
    """
    inner = getattr(response, "_fp", None)
    if isinstance(inner, http.client.HTTPResponse) and not inner.chunked:
        return _Direct(response, inner)
    body: Body = response
    return body


def range_header(start: int, wanted: int) -> dict[str, str]:
    """What asks for bytes `[start, start + wanted)`."""
    return {"Range": f"bytes={start}-{start + wanted - 1}"}


def bytes_of_whole(headers: Mapping[str, str], wanted: int) -> int:
    """How many of a file's first bytes are coming, where the answer is the whole file."""
    length = headers.get("content-length", "")
    return min(wanted, int(length)) if length.isdecimal() else wanted


def bytes_announced(content_range: str | None, url: str, start: int, wanted: int) -> int:
    """How many of the bytes asked for a file has, by the answer's `Content-Range`.

    Raises:
        StorageError: it is an answer to something else.
    """
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", content_range or "")
    if match is None or int(match[1]) != start:
        raise StorageError(
            f"{url} answered with range {content_range!r} instead of bytes from {start:,}."
        )
    return min(wanted, int(match[2]) - start)
