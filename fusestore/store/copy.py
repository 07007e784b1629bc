"""Files from any storage to any other, or into memory, checked against their records on the way.

What arrives is what a manifest says, or nothing arrives: the SHA-256 of the bytes is computed as
they are read and compared before a file becomes visible. Memory is bounded by `PIECE_BYTES` a file.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed, wait

from fusestore.errors import CorruptionError, InvalidInputError, NotFoundError
from fusestore.storage import objects
from fusestore.storage.location import Location
from fusestore.storage.publish import publish, publish_pieces
from fusestore.storage.retries import patient
from fusestore.store.receipts import FileRecord

FILES_AT_ONCE = 8

PIECE_BYTES = 16 * 2**20
"""Files up to this size are copied in memory, larger ones in pieces of it."""


def check_paths(folder: Location, paths: Iterable[str]) -> None:
    """See that what a manifest or a listing names lies inside the folder, on every storage.

    Raises:
        InvalidInputError: a path that is absolute, empty, leads out, or has a NUL or a backslash.
    """
    for path in paths:
        if any(character in path for character in "\\\0") or any(
            name in ("", ".", "..") for name in path.split("/")
        ):
            raise InvalidInputError(
                f"{folder} lists a file {path!r}, which is no path inside its folder. "
                "Nothing was copied; do not trust this store."
            )


def copy_missing(
    source: Location,
    target: Location,
    files: Mapping[str, FileRecord],
    jobs: int = FILES_AT_ONCE,
) -> None:
    """Have a folder's files at the target; those that are there already are read and kept.

    Args:
        source: the folder to copy from.
        target: the folder to copy to, there or not.
        files: what to copy, by path inside the folder, as its manifest has it.
        jobs: files under way at a time.

    Raises:
        InvalidInputError: a path that does not lie inside the folder.
        CorruptionError: a file is missing or is not what its record says.
        AccessDeniedError, StorageError: either storage failed. Copying again goes on from here.
    """
    check_paths(source, files)
    present = target.sizes()
    with ThreadPoolExecutor(jobs) as pool:
        there = {path for path, record in files.items() if present.get(path) == record.num_bytes}
        sound = pool.map(lambda path: matches(target / path, files[path]), sorted(there))
        kept = {path for path, whole in zip(sorted(there), sound, strict=True) if whole}
        missing = {path: record for path, record in files.items() if path not in kept}
        try:
            problems = [error for _, error in copy_files(source, target, missing, pool) if error]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if problems:
        raise problems[0]


def copy_files(
    source: Location, target: Location, files: Mapping[str, FileRecord], pool: Executor
) -> Iterator[tuple[str, CorruptionError | None]]:
    """Copy several files at a time, replacing any at the target; yields each when it is done.

    Args:
        source: the folder to copy from.
        target: the folder to copy to.
        files: what to copy, by path inside the folder.
        pool: copies one file each.

    Yields:
        A path, and what is wrong with the file at the source, if anything is.

    Raises:
        InvalidInputError: a path that does not lie inside the folder; nothing was copied.
        AccessDeniedError, StorageError: either storage failed.
    """
    check_paths(source, files)
    under_way = {
        pool.submit(copy_file, source / path, target / path, record): path
        for path, record in files.items()
    }
    for copied in as_completed(under_way):
        try:
            copied.result()
        except CorruptionError as error:
            yield under_way[copied], error
        else:
            yield under_way[copied], None


def copy_file(source: Location, target: Location, record: FileRecord) -> None:
    """Copy a file, replacing any file at the target; atomic like every publication.

    Args:
        source: the file to read.
        target: where it goes.
        record: the checksum it must have, and its size, which is not looked at further.

    Raises:
        CorruptionError: the source is missing or is not what the record says; the target is as it
            was.
        AccessDeniedError, StorageError: either storage failed; likewise.
    """
    if record.num_bytes <= PIECE_BYTES:
        publish(target, b"".join(_checked_pieces(source, record)))
    elif target.is_local:
        publish_pieces(target, _checked_pieces(source, record))
    else:
        _upload(target, source, record)


def matches(location: Location, record: FileRecord) -> bool:
    """Whether the file there holds what the record says; it is read whole, in pieces."""
    try:
        for _ in _checked_pieces(location, record):
            pass
    except CorruptionError:
        return False
    return True


class CheckedRead:
    """A file on its way into memory, piece by piece in the threads of a pool.

    Args:
        source: the file.
        record: what it must hold.
        target: memory of the record's size.
        pool: makes the requests, first come first served.
        piece_bytes: asked for at a time; a file that has no more is asked for whole.
    """

    def __init__(
        self,
        source: Location,
        record: FileRecord,
        target: memoryview,
        pool: Executor,
        piece_bytes: int,
    ) -> None:
        self._source, self._record, self._target = source, record, target
        whole = len(target) <= piece_bytes
        self._pieces = {
            start: pool.submit(
                _read_piece, source, start, target[start : start + piece_bytes], whole
            )
            for start in range(0, len(target), piece_bytes)
        }
        self._piece_bytes = piece_bytes

    def result(self) -> None:
        """Wait until the file is there.

        Raises:
            CorruptionError: it is missing or is not what the record says.
            AccessDeniedError, StorageError: the storage failed.
        """
        state = hashlib.sha256()
        for start, piece in self._pieces.items():
            piece.result()
            state.update(self._target[start : start + self._piece_bytes])
        _check(self._source, self._record, state.hexdigest())

    def cancel(self) -> list[Future[None]]:
        """Begin no further request; returns those that are under way."""
        return [piece for piece in self._pieces.values() if not piece.cancel()]


def end_reads(reads: Iterable[CheckedRead]) -> None:
    """Cancel what has not begun, and wait for the rest: nothing is written to memory after this."""
    # What could be cancelled is not waited for: a pool that was shut down never says so.
    wait([piece for read in reads for piece in read.cancel()])


def _read_piece(source: Location, start: int, target: memoryview, whole: bool) -> None:
    try:
        there = source.read_into(start, target, whole=whole)
    except NotFoundError as error:
        raise _missing(source) from error
    if there != len(target):
        raise CorruptionError(
            f"{source} is damaged: it ends at byte {start + there:,}, its manifest says more. "
            f"{_VERIFY}"
        )


def _checked_pieces(source: Location, record: FileRecord) -> Iterator[bytes]:
    """The file's pieces; raises after the last one if they are not what the record says."""
    state = hashlib.sha256()
    # Of an empty file too a byte is asked for: it may be missing.
    end = max(record.num_bytes, 1)
    for start in range(0, end, PIECE_BYTES):
        stop = min(start + PIECE_BYTES, end)
        try:
            piece = source.read_range(start, stop)
        except NotFoundError as error:
            raise _missing(source) from error
        state.update(piece)
        yield piece
    _check(source, record, state.hexdigest())


def _check(source: Location, record: FileRecord, found: str) -> None:
    if found != record.sha256:
        raise CorruptionError(
            f"{source} is damaged: its {record.num_bytes:,} bytes should have the SHA-256 "
            f"{record.sha256[:16]}…, they have {found[:16]}…. {_VERIFY}"
        )


def _missing(source: Location) -> CorruptionError:
    return CorruptionError(f"{source} is missing. {_VERIFY}")


_VERIFY = "Run `fusestore verify` on its store."


@patient
def _upload(target: Location, source: Location, record: FileRecord) -> None:
    """Send a large file in parts: storages show it when it is complete, and it never is if damaged.

    A part that fails begins the file anew.
    """

    def pieces() -> Iterator[bytes]:
        return _checked_pieces(source, record)

    if target.is_object:
        objects.write_pieces(target.url, target.storage_options, pieces)
        return
    # Files of fsspec end their upload when they are closed, for an error too.
    with tempfile.NamedTemporaryFile(prefix="fusestore-") as spool:
        spool.writelines(pieces())
        spool.flush()
        target.filesystem.put_file(spool.name, target.url)
