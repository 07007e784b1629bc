"""Ranges of remote files read straight into memory, by the thread that asks.

fsspec hands every byte of every connection through the event loop of one thread and puts each
range together before it is copied to where it belongs. Streams read by these instead, for a tenth
to a quarter less of the processor's time.
"""

from __future__ import annotations

from fusestore.errors import StorageError
from fusestore.storage import s3, web
from fusestore.storage.answer import Answer

_READ_BYTES = 2**18
"""Read at a time: what the clients make of it stays in the processor's caches."""


def can_read_into(url: str, options: tuple[tuple[str, str], ...]) -> bool:
    """Whether `read_into` knows this place: S3 or HTTP, and its options."""
    return s3.knows(url, options) or web.knows(url, options)


def read_into(
    url: str,
    options: tuple[tuple[str, str], ...],
    start: int,
    target: memoryview,
    *,
    whole: bool = False,
) -> int:
    """Fill memory with a file's bytes from `start`, in one request.

    Args:
        url: of the file.
        options: the fsspec filesystem's; `can_read_into` approves of both.
        start: the first byte.
        target: of bytes, writable.
        whole: whether it is as large as the file should be: no range is asked for then.

    Returns:
        How many bytes there were: fewer than asked for only where the file ends before.

    Raises:
        OSError: there is no such file, access is denied, or the server says something else.
        StorageError: the answer is not what was asked for.
        The clients' own errors: the request failed.
    """
    client = s3 if s3.knows(url, options) else web
    answer = client.get_range(url, options, start, len(target), whole=whole)
    if answer is None:
        return 0
    filled = _fill(target[: answer.num_bytes], answer)
    if filled != answer.num_bytes:
        raise StorageError(
            f"Bytes {start:,} to {start + answer.num_bytes:,} of {url} came back as {filled:,} "
            "bytes."
        )
    return filled


def _fill(target: memoryview, answer: Answer) -> int:
    filled = 0
    try:
        while filled < len(target):
            count = answer.body.readinto(target[filled : filled + _READ_BYTES])
            if count == 0:
                break
            filled += count
    finally:
        # One that was read to its end leaves its connection for the next request.
        answer.body.close()
    return filled
