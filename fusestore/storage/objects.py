"""Verbs on objects behind S3 and HTTP, by obstore. For their errors see `object_client.ask`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any, NamedTuple

from fusestore.errors import InvalidInputError, StorageError
from fusestore.storage.object_client import ask, in_a_thread, s3_options, split
from fusestore.storage.object_errors import RefusedAnswerError, WrongRangeError
from fusestore.storage.options import HTTP_SCHEMES, S3_SCHEMES, Pairs
from fusestore.storage.shown import shown

BYTES_PER_REQUEST = 32 * 2**20
"""A larger object is read in ranges of this size."""

PART_BYTES = 16 * 2**20
"""Size of a part of a multipart upload. S3 takes 10,000 parts of at least 5 MiB: up to 160 GB."""

_PAGE = 1_000
"""Names in one answer of S3."""

_TAKEN = 50
"""Names of a listing that are taken at a time: answers of one long name each are not gathered."""

PAGE_S = 60.0
"""The longest wait for an answer of a listing, which comes as a whole."""

MOST_NAMES = 100_000
"""Names directly in a folder; a folder with more is nobody's store."""

MOST_FILES = 2_000_000
"""Files below a folder; likewise."""

_LONGEST_KEY = 1_024
"""Bytes of a key of S3, by its own rules."""

_LAST_CHARACTER = "\U0010ffff"
"""No name begins with it, and all come before it."""

SLOW_AFTER_S = 3.0
LEAST_BYTES_PER_S = 1024
"""An answer that after this time has come more slowly than this is given up: a server that sends a
byte a second would hold a reader for ever."""


def serves(url: str) -> bool:
    """Whether the file lies behind S3 or HTTP."""
    return url.startswith((*S3_SCHEMES, *HTTP_SCHEMES))


def size(url: str, options: Pairs) -> int:
    """Bytes of an object."""

    def verb(client: Any, key: str) -> int:  # noqa: ANN401 - obstore's stores share no type
        import obstore

        return int(obstore.head(client, key)["size"])

    return ask(url, options, verb)


def exists(url: str, options: Pairs) -> bool:
    """Whether there is such an object or, on S3, a folder of this name."""
    with contextlib.suppress(FileNotFoundError):
        size(url, options)
        return True
    if not url.startswith(S3_SCHEMES):
        return False

    def verb(client: Any, key: str) -> bool:  # noqa: ANN401
        return any(entry["path"] != key for page in _pages(client, key, url) for entry in page)

    return ask(url, options, verb)


def read(url: str, options: Pairs, start: int, stop: int) -> bytes:
    """Bytes `[start, stop)` of an object; fewer only if it ends before `stop`."""
    data, _, _ = ask(url, options, lambda client, key: _get(client, key, url, start, stop))
    return data


def read_whole(url: str, options: Pairs) -> bytes:
    """All bytes of an object; a large one is read range by range, all of one version of it."""

    def verb(client: Any, key: str) -> bytes:  # noqa: ANN401
        data, total, version = _get(client, key, url, 0, BYTES_PER_REQUEST)
        ranges = [data]
        for start in range(BYTES_PER_REQUEST, total, BYTES_PER_REQUEST):
            stop = min(start + BYTES_PER_REQUEST, total)
            ranges.append(_get(client, key, url, start, stop, if_match=version)[0])
        return b"".join(ranges)

    return ask(url, options, verb)


def read_into(url: str, options: Pairs, start: int, target: memoryview, *, whole: bool) -> int:
    """Read an object's bytes from `start` into memory, in one request; see `Location.read_into`."""

    def verb(client: Any, key: str) -> int:  # noqa: ANN401
        import obstore

        request: Any = {} if whole else {"range": (start, start + len(target))}
        try:
            answer = obstore.get(client, key, options=request)
        except Exception as error:
            if _starts_beyond_end(error):
                return 0
            raise
        first, last = answer.range
        expected, num_read = min(last - first, len(target)), 0
        for data in _pieces(answer, url):
            received = memoryview(data)[: len(target) - num_read]
            target[num_read : num_read + len(received)] = received
            num_read += len(received)
            # An answer that is read to its end leaves its connection for the next request.
            if num_read < last - first and num_read == len(target):
                break
        _check_length(url, first, expected, num_read)
        return num_read

    return ask(url, options, verb)


def download(url: str, options: Pairs, file: IO[bytes]) -> None:
    """Write an object's bytes to a file, in one request without a range."""

    def verb(client: Any, key: str) -> None:  # noqa: ANN401
        import obstore

        answer = obstore.get(client, key)
        first, last = answer.range
        for data in _pieces(answer, url):
            file.write(data)
        _check_length(url, first, last - first, file.tell())

    ask(url, options, verb)


def write(url: str, options: Pairs, data: bytes, *, create: bool = False) -> None:
    """Write a whole object in one request.

    Raises:
        FileExistsError: with `create`, the object exists already.
    """
    _check_is_s3(url, "written")

    def verb(client: Any, key: str) -> None:  # noqa: ANN401
        import obstore

        mode: Any = "create" if create else "overwrite"
        obstore.put(client, key, data, mode=mode, use_multipart=False)

    ask(url, options, verb, upload_bytes=len(data))


def write_chunks(url: str, options: Pairs, chunks: Callable[[], Iterable[bytes]]) -> None:
    """Write a whole object as a multipart upload; it becomes visible with its last part.

    Args:
        url: of the object.
        options: of its storage.
        chunks: returns an iterator over the content from its beginning. If the iterator raises, an
            existing object stays as it was.
    """
    _check_is_s3(url, "written")

    def verb(client: Any, key: str) -> None:  # noqa: ANN401
        import obstore

        # A multipart upload needs at least one part.
        content = iter(chunks())
        first = next(content, b"")
        if not first:
            obstore.put(client, key, b"", use_multipart=False)
            return
        data = _read_in_threads(first, content)
        obstore.put(client, key, data, chunk_size=PART_BYTES, max_concurrency=parts)

    parts = s3_options(url, options).max_concurrency
    ask(url, options, verb, upload_bytes=parts * PART_BYTES)


class ListedFile(NamedTuple):
    """What a listing says about a file.

    Attributes:
        num_bytes: its size.
        modified: when it was written, in seconds since 1970 by the storage's clock; None if the
            storage does not say.
    """

    num_bytes: int
    modified: float | None


def listed(url: str, options: Pairs) -> dict[str, ListedFile]:
    """Every object below a folder, by its path relative to the folder."""

    def verb(client: Any, key: str) -> dict[str, ListedFile]:  # noqa: ANN401
        below = f"{key}/" if key else ""
        files: dict[str, ListedFile] = {}
        for page in _pages(client, key, url):
            before = len(files)
            for entry in page:
                # S3 may hold an empty object of the folder's own name.
                if entry["path"] != key:
                    files[entry["path"].removeprefix(below)] = _listed_file(entry)
            if len(page) > 1 and len(files) == before:
                raise _absurd(url, "the same names again and again")
            if len(files) > MOST_FILES:
                raise _absurd(url, f"more than {MOST_FILES:,} files")
        return files

    def head(client: Any, key: str) -> ListedFile:  # noqa: ANN401
        import obstore

        return _listed_file(obstore.head(client, key))

    _check_is_s3(url, "listed")
    found = ask(url, options, verb)
    # A bucket is no object, though a server may answer for its URL.
    if not found and split(url)[1].strip("/"):
        with contextlib.suppress(FileNotFoundError):
            return {"": ask(url, options, head)}
    return found


def _listed_file(entry: Any) -> ListedFile:  # noqa: ANN401 - obstore's ObjectMeta
    return ListedFile(int(entry["size"]), entry["last_modified"].timestamp())


def names(url: str, options: Pairs) -> list[str]:
    """Names of the objects and folders directly below a folder, sorted."""
    _check_is_s3(url, "listed")
    return ask(url, options, lambda client, key: names_below(client, key, url))


def names_below(client: Any, key: str, url: str) -> list[str]:  # noqa: ANN401
    """See `names`.

    S3 could list them by itself, but obstore takes such a listing as a whole, however long it is.
    Here it is read answer by answer, in order, and the rest of a folder that ends one is skipped.
    """
    below = f"{key}/" if key else ""
    found: set[str] = set()
    offset: str | None = None
    is_ordered = True
    while True:
        num_read = 0
        for page in _pages(client, key, url, offset):
            num_read += len(page)
            paths = [entry["path"] for entry in page]
            is_ordered &= paths == sorted(paths) and (offset is None or paths[0] > offset)
            # S3 may hold an empty object of the folder's own name.
            inner = (path.removeprefix(below) for path in paths if path != key)
            found.update(path.split("/", 1)[0] for path in inner)
            if len(found) > MOST_NAMES:
                raise _absurd(url, f"more than {MOST_NAMES:,} names in one folder")
            folder, inside, _ = paths[-1].removeprefix(below).partition("/")
            # A storage that keeps no order takes no offset either, and all of it is read.
            if is_ordered and inside and num_read % _PAGE == 0:
                offset = f"{below}{folder}/{_LAST_CHARACTER}"
                break
        else:
            return sorted(found)


def _pages(
    client: Any,  # noqa: ANN401
    key: str,
    url: str,
    offset: str | None = None,
) -> Iterator[Sequence[Any]]:
    """The objects below a folder, some at a time, in the storage's order, after `offset`.

    Raises:
        RefusedAnswerError: a key is longer than S3 allows.
        StorageError: an answer does not come within `PAGE_S`.
    """
    import obstore

    pages = iter(obstore.list(client, key or None, offset=offset, chunk_size=_TAKEN))
    while True:
        try:
            page = in_a_thread(lambda: next(pages, None), PAGE_S)
        except TimeoutError as error:
            raise StorageError(
                f"The listing of {shown(url)} gives {error}. Use another server or network."
            ) from error
        if page is None:
            return
        for entry in page:
            path = entry["path"]
            if len(path) > _LONGEST_KEY // 4 and len(path.encode()) > _LONGEST_KEY:
                raise _absurd(url, f"a name of {len(path):,} characters")
        if page:
            yield page


def _absurd(url: str, found: str) -> RefusedAnswerError:
    return RefusedAnswerError(f"The listing of {shown(url)} has {found}. Do not trust this store.")


def delete(url: str, options: Pairs) -> None:
    """Remove an object, or all objects below a folder; does nothing if there are none."""
    urls = [f"{url}/{name}" if name else url for name in listed(url, options)]
    if not urls:
        return
    root = split(url)[0]

    def verb(client: Any, key: str) -> None:  # noqa: ANN401
        import obstore

        obstore.delete(client, [split(each)[1] for each in urls])

    ask(f"{root}/", options, verb)


def _get(
    client: Any,  # noqa: ANN401
    key: str,
    url: str,
    start: int,
    stop: int,
    if_match: str | None = None,
) -> tuple[bytes, int, str | None]:
    """Bytes of a range, the size of the whole object, and its version (ETag)."""
    import obstore

    if stop <= start:
        return b"", 0, None
    request: Any = {"range": (start, stop)}
    if if_match is not None:
        request["if_match"] = if_match
    try:
        answer = obstore.get(client, key, options=request)
    except Exception as error:
        if _starts_beyond_end(error):
            return b"", 0, None
        raise
    first, last = answer.range
    if first != start or last > stop:
        raise WrongRangeError(
            f"The server of {shown(url)} was asked for bytes {start:,} to {stop:,} and sends "
            f"{first:,} to {last:,}. Use another server, or copy the store here."
        )
    data = b"".join(_pieces(answer, url))
    _check_length(url, first, last - first, len(data))
    return data, int(answer.meta["size"]), answer.meta["e_tag"]


def _pieces(answer: Any, url: str) -> Iterator[Any]:  # noqa: ANN401 - obstore's GetResult
    """The bytes of an answer as they come.

    Raises:
        RefusedAnswerError: they come too slowly, or are more than the answer says.
    """
    begin, num_read = time.monotonic(), 0
    first, last = answer.range
    # One byte at least: a larger piece of a slow server might never be full.
    for piece in answer.stream(min_chunk_size=1):
        num_read += len(piece)
        if num_read > last - first:
            raise RefusedAnswerError(
                f"The server of {shown(url)} sends more than the {last - first:,} bytes that it "
                "says it sends. Use another server, or copy the store here."
            )
        yield piece
        seconds = time.monotonic() - begin
        is_slow = seconds > SLOW_AFTER_S and num_read < LEAST_BYTES_PER_S * seconds
        if is_slow and num_read < last - first:
            raise RefusedAnswerError(
                f"The server of {shown(url)} sent {num_read:,} of {last - first:,} bytes in "
                f"{seconds:.0f} seconds: too slow to be read. Use another server or network."
            )


def _check_length(url: str, start: int, expected: int, actual: int) -> None:
    if actual != expected:
        raise StorageError(
            f"Bytes {start:,} to {start + expected:,} of {shown(url)} came back as {actual:,} "
            f"instead of {expected:,}."
        )


def _read_in_threads(first: bytes, others: Iterator[bytes]) -> Iterator[bytes]:
    """Chunks read in other threads, because obstore's threads cannot wait for obstore."""
    chunk: bytes | None = first
    while chunk is not None:
        yield chunk
        chunk = in_a_thread(lambda: next(others, None))


def _check_is_s3(url: str, verb: str) -> None:
    if not url.startswith(S3_SCHEMES):
        raise InvalidInputError(
            f"{shown(url)} cannot be {verb}: HTTP serves files for reading only. Use another "
            "storage."
        )


def _starts_beyond_end(error: Exception) -> bool:
    text = str(error)
    return "416 Range Not Satisfiable" in text or "Wanted range starting at" in text
