"""Ranges of files behind HTTP, by urllib3."""

from __future__ import annotations

import os
import threading
from typing import Any
from urllib.parse import urlsplit

from fusestore.errors import StorageError
from fusestore.storage.answer import (
    Answer,
    body_of,
    bytes_announced,
    bytes_of_whole,
    range_header,
)

_CONNECTIONS = 16
_CONNECT_TIMEOUT_S = 10
_READ_TIMEOUT_S = 60
_REDIRECTS = 5

_POOLS: dict[int, Any] = {}
"""By process id: never shared across a fork."""

_MAKING = threading.Lock()


def knows(url: str, options: tuple[tuple[str, str], ...]) -> bool:
    """Whether this is HTTP, without an option or a password that fsspec alone understands."""
    if options or not url.startswith(("http://", "https://")):
        return False
    return urlsplit(url).username is None


def get_range(
    url: str, options: tuple[tuple[str, str], ...], start: int, wanted: int, *, whole: bool
) -> Answer | None:
    """Ask for some bytes of a file; None where it ends before they begin.

    Args:
        url: of the file.
        options: none: see `knows`.
        start: the first byte.
        wanted: how many.
        whole: whether these are supposed to be all that the file has.

    Raises:
        FileNotFoundError, PermissionError: the server says so.
        OSError: it says something else.
        StorageError: it does not understand ranges.
        urllib3's: the request failed.
    """
    del options
    response = _pool().request(
        "GET",
        url,
        headers={
            "Accept-Encoding": "identity",
            **({} if whole else range_header(start, wanted)),
        },
        preload_content=False,
        decode_content=False,
    )
    try:
        num_bytes = _announced(response, url, start, wanted)
    except BaseException:
        response.close()
        raise
    if num_bytes is None:
        response.close()
        return None
    return Answer(body_of(response), num_bytes)


def _announced(response: Any, url: str, start: int, wanted: int) -> int | None:  # noqa: ANN401
    """How many of the bytes are coming; None where the file ends before they begin."""
    if response.status == 206:
        return bytes_announced(response.headers.get("Content-Range"), url, start, wanted)
    if response.status == 200 and start == 0:
        # What is wanted comes first.
        return bytes_of_whole(response.headers, wanted)
    if response.status == 200:
        raise StorageError(
            f"The server of {url} does not understand ranges: it sends the whole file. Use another "
            "server, or copy the dataset here."
        )
    if response.status == 416:
        return None
    if response.status in (404, 410):
        raise FileNotFoundError(url)
    if response.status in (401, 403):
        raise PermissionError(f"HTTP {response.status} {response.reason}")
    raise OSError(f"HTTP {response.status} {response.reason}")


def _pool() -> Any:  # noqa: ANN401
    import urllib3

    with _MAKING:
        if os.getpid() not in _POOLS:
            # Everything but a redirection is tried again by who asks.
            retries = urllib3.Retry(
                total=None, connect=0, read=0, status=0, other=0, redirect=_REDIRECTS
            )
            timeout = urllib3.Timeout(connect=_CONNECT_TIMEOUT_S, read=_READ_TIMEOUT_S)
            _POOLS[os.getpid()] = urllib3.PoolManager(
                maxsize=_CONNECTIONS, retries=retries, timeout=timeout
            )
        return _POOLS[os.getpid()]
