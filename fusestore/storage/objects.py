"""Objects behind S3 and HTTP, by obstore: one client for every verb, from every thread.

A verb raises what Python or this package raises: see `object_client.ask`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from fusestore.errors import InvalidInputError, StorageError
from fusestore.storage import s3
from fusestore.storage.object_client import Options, ask, in_a_thread, split
from fusestore.storage.object_errors import shown

SCHEMES = (*s3.SCHEMES, "http://", "https://")

BYTES_PER_REQUEST = 32 * 2**20
"""A larger object is read in pieces of this size."""

PART_BYTES = 16 * 2**20
"""Of an upload in parts. S3 takes parts from 5 MiB and 10,000 of them: objects up to 160 GB."""

_READ_BYTES = 2**18
"""Copied at a time: what arrives is still in the processor's caches."""


def serves(url: str) -> bool:
    """Whether the file lies behind S3 or HTTP."""
    return url.startswith(SCHEMES)


def size(url: str, options: Options) -> int:
    """Bytes of an object."""

    def verb(client: Any, key: str) -> int:  # noqa: ANN401 - obstore's stores share no type
        import obstore

        return int(obstore.head(client, key)["size"])

    return ask(url, options, verb)


def exists(url: str, options: Options) -> bool:
    """Whether there is such an object, or, on S3, any below it as below a folder."""
    with contextlib.suppress(FileNotFoundError):
        size(url, options)
        return True
    return url.startswith(s3.SCHEMES) and bool(names(url, options))


def read(url: str, options: Options, start: int, stop: int) -> bytes:
    """Bytes `[start, stop)` of an object; fewer only where it ends before."""
    data, _, _ = ask(url, options, lambda client, key: _get(client, key, url, start, stop))
    return data


def read_whole(url: str, options: Options) -> bytes:
    """All bytes of an object: of a large one piece by piece, all of one version of it."""

    def verb(client: Any, key: str) -> bytes:  # noqa: ANN401
        data, total, version = _get(client, key, url, 0, BYTES_PER_REQUEST)
        pieces = [data]
        for start in range(BYTES_PER_REQUEST, total, BYTES_PER_REQUEST):
            stop = min(start + BYTES_PER_REQUEST, total)
            pieces.append(_get(client, key, url, start, stop, if_match=version)[0])
        return b"".join(pieces)

    return ask(url, options, verb)


def read_into(url: str, options: Options, start: int, target: memoryview, *, whole: bool) -> int:
    """Fill memory with an object's bytes from `start`, in one request.

    Args:
        url: of the object.
        options: of its storage.
        start: the first byte.
        target: of bytes, writable.
        whole: whether it is as large as the object should be. No range is asked for then, which
            is less work for some servers.

    Returns:
        How many bytes there were: fewer than asked for only where the object ends before.
    """

    def verb(client: Any, key: str) -> int:  # noqa: ANN401
        import obstore

        asked: Any = {} if whole else {"range": (start, start + len(target))}
        try:
            answer = obstore.get(client, key, options=asked)
        except Exception as error:
            if _begins_behind_the_end(error):
                return 0
            raise
        first, last = answer.range
        expected, filled = min(last - first, len(target)), 0
        for data in answer.stream(min_chunk_size=_READ_BYTES):
            part = memoryview(data)[: len(target) - filled]
            target[filled : filled + len(part)] = part
            filled += len(part)
            # An answer that is read to its end leaves its connection for the next request.
            if filled < last - first and filled == len(target):
                break
        _check_length(url, first, expected, filled)
        return filled

    return ask(url, options, verb)


def write(url: str, options: Options, data: bytes, *, create: bool = False) -> None:
    """Write a whole object in one request.

    Raises:
        FileExistsError: with `create`, there is one.
    """
    _check_is_s3(url, "written")

    def verb(client: Any, key: str) -> None:  # noqa: ANN401
        import obstore

        mode: Any = "create" if create else "overwrite"
        obstore.put(client, key, data, mode=mode, use_multipart=False)

    ask(url, options, verb)


def write_pieces(url: str, options: Options, pieces: Callable[[], Iterable[bytes]]) -> None:
    """Write a whole object in parts; it becomes visible when the last one is there.

    Args:
        url: of the object.
        options: of its storage.
        pieces: begins the content anew. When it raises, what is there stays as it was.
    """
    _check_is_s3(url, "written")

    def verb(client: Any, key: str) -> None:  # noqa: ANN401
        import obstore

        # An object of no parts cannot be made.
        content = iter(pieces())
        first = next(content, b"")
        if not first:
            obstore.put(client, key, b"", use_multipart=False)
            return
        parts = _made_elsewhere(first, content)
        obstore.put(client, key, parts, chunk_size=PART_BYTES, max_concurrency=1)

    ask(url, options, verb)


def sizes(url: str, options: Options) -> dict[str, int]:
    """Bytes of every object below a folder, by its path relative to it."""

    def verb(client: Any, key: str) -> dict[str, int]:  # noqa: ANN401
        import obstore

        below = f"{key}/" if key else ""
        return {
            found["path"].removeprefix(below): int(found["size"])
            for found in obstore.list(client, key or None).collect()
            # A folder's own marker.
            if found["path"] != key
        }

    _check_is_s3(url, "listed")
    found = ask(url, options, verb)
    # A bucket is no object, though a server may answer for its URL.
    if not found and split(url)[1].strip("/"):
        with contextlib.suppress(FileNotFoundError):
            return {"": size(url, options)}
    return found


def names(url: str, options: Options) -> list[str]:
    """Names of the objects and folders directly below a folder, sorted."""

    def verb(client: Any, key: str) -> list[str]:  # noqa: ANN401
        import obstore

        found = obstore.list_with_delimiter(client, key or None)
        paths = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        return sorted({path.rsplit("/", 1)[-1] for path in paths if path != key})

    _check_is_s3(url, "listed")
    return ask(url, options, verb)


def delete(url: str, options: Options) -> None:
    """Remove an object, or all of them below a folder; nothing happens where there is none."""
    below = [f"{url}/{name}" if name else url for name in sizes(url, options)]
    if not below:
        return
    root = split(url)[0]

    def verb(client: Any, key: str) -> None:  # noqa: ANN401
        import obstore

        obstore.delete(client, [split(each)[1] for each in below])

    ask(f"{root}/", options, verb)


def _get(
    client: Any,  # noqa: ANN401
    key: str,
    url: str,
    start: int,
    stop: int,
    if_match: str | None = None,
) -> tuple[bytes, int, str | None]:
    """Bytes of a range, the whole object's size, and which version of it that is."""
    import obstore

    if stop <= start:
        return b"", 0, None
    asked: Any = {"range": (start, stop)}
    if if_match is not None:
        asked["if_match"] = if_match
    try:
        answer = obstore.get(client, key, options=asked)
    except Exception as error:
        if _begins_behind_the_end(error):
            return b"", 0, None
        raise
    first, last = answer.range
    data = bytes(answer.bytes())
    _check_length(url, first, last - first, len(data))
    return data, int(answer.meta["size"]), answer.meta["e_tag"]


def _check_length(url: str, start: int, expected: int, found: int) -> None:
    if found != expected:
        raise StorageError(
            f"Bytes {start:,} to {start + expected:,} of {shown(url)} came back as {found:,} "
            f"instead of {expected:,}."
        )


def _made_elsewhere(first: bytes, others: Iterator[bytes]) -> Iterator[bytes]:
    """Pieces made in other threads: those that obstore calls cannot wait for obstore."""
    piece: bytes | None = first
    while piece is not None:
        yield piece
        piece = in_a_thread(lambda: next(others, None))


def _check_is_s3(url: str, verb: str) -> None:
    if not url.startswith(s3.SCHEMES):
        raise InvalidInputError(
            f"{shown(url)} cannot be {verb}: behind HTTP, files are read and nothing else. Use "
            "another storage."
        )


def _begins_behind_the_end(error: Exception) -> bool:
    text = str(error)
    return "416 Range Not Satisfiable" in text or "Wanted range starting at" in text
