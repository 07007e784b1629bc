"""What a server answers to a request for a range."""

from __future__ import annotations

import re
from typing import NamedTuple, Protocol

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
