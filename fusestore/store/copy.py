"""Copies files between storages or into memory, and checks them against their records.

The SHA-256 of a file is computed while it is read, and compared before the copy becomes visible.
Memory is bounded by `CHUNK_BYTES` per file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed, wait

from fusestore.errors import CorruptionError, NotFoundError
from fusestore.storage import objects
from fusestore.storage.foreign_names import listed_inside
from fusestore.storage.location import Location
from fusestore.storage.publish import publish, publish_chunks
from fusestore.storage.replace import scratch_folder
from fusestore.storage.retries import with_retries
from fusestore.store.receipts import FileRecord

FILES_AT_ONCE = 8

CHUNK_BYTES = 16 * 2**20
"""Files up to this size are copied in memory, larger files in chunks of this size."""


def copy_missing(
    source: Location,
    target: Location,
    files: Mapping[str, FileRecord],
    jobs: int = FILES_AT_ONCE,
) -> None:
    """Copy those files of a folder that the target lacks or that are damaged there.

    Args:
        source: the folder to copy from.
        target: the folder to copy to; it may exist already.
        files: records of the files by path inside the folder, from its manifest.
        jobs: files that are copied at the same time.

    Raises:
        InvalidInputError: a path that does not lie inside the folder.
        CorruptionError: a file is missing or does not match its record.
        AccessDeniedError, StorageError: either storage failed. Another call continues the copy.
    """
    listed_inside(source, files)
    present = target.sizes()
    with ThreadPoolExecutor(jobs) as pool:
        candidates = sorted(
            path for path, record in files.items() if present.get(path) == record.num_bytes
        )
        sound = pool.map(lambda path: matches(target / path, files[path]), candidates)
        kept = {path for path, whole in zip(candidates, sound, strict=True) if whole}
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
        files: records of the files by path inside the folder.
        pool: copies one file each.

    Yields:
        A path, and the damage of the file at the source, if there is any.

    Raises:
        InvalidInputError: a path that does not lie inside the folder; nothing was copied.
        AccessDeniedError, StorageError: either storage failed.
    """
    listed_inside(source, files)
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
        target: the file to write.
        record: the checksum it must have; its size only bounds the read.

    Raises:
        CorruptionError: the source is missing or does not match the record; the target is as it
            was.
        AccessDeniedError, StorageError: either storage failed; the target is as it was.
    """
    if record.num_bytes <= CHUNK_BYTES:
        publish(target, b"".join(_checked_chunks(source, record)))
    elif target.is_local:
        publish_chunks(target, _checked_chunks(source, record))
    else:
        _upload(target, source, record)


def matches(location: Location, record: FileRecord) -> bool:
    """Whether the file matches the record; it is read whole, in chunks."""
    try:
        for _ in _checked_chunks(location, record):
            pass
    except CorruptionError:
        return False
    return True


def check_files_match(folder: Location, files: Mapping[str, FileRecord]) -> None:
    """Check every file of a folder against its record; all are read.

    Raises:
        CorruptionError: a file is missing, or does not match.
        InvalidInputError: a path does not lie inside the folder.
    """
    listed_inside(folder, files)
    for path, record in files.items():
        for _ in _checked_chunks(folder / path, record):
            pass


class CheckedRead:
    """Reads a file into memory, range by range in the threads of a pool, and checks it.

    Args:
        source: the file.
        record: the checksum it must have.
        target: memory of the record's size.
        pool: makes the requests, first come first served.
        range_bytes: size of one request; a file of at most this size is requested whole.
    """

    def __init__(
        self,
        source: Location,
        record: FileRecord,
        target: memoryview,
        pool: Executor,
        range_bytes: int,
    ) -> None:
        self._source, self._record, self._target = source, record, target
        whole = len(target) <= range_bytes
        self._requests = {
            start: pool.submit(
                _read_range, source, start, target[start : start + range_bytes], whole
            )
            for start in range(0, len(target), range_bytes)
        }
        self._range_bytes = range_bytes

    def result(self) -> None:
        """Wait until the file is read.

        Raises:
            CorruptionError: it is missing or does not match the record.
            AccessDeniedError, StorageError: the storage failed.
        """
        state = hashlib.sha256()
        for start, request in self._requests.items():
            request.result()
            state.update(self._target[start : start + self._range_bytes])
        _check(self._source, self._record, state.hexdigest())

    def cancel(self) -> list[Future[None]]:
        """Begin no further request; returns the requests that are under way."""
        return [request for request in self._requests.values() if not request.cancel()]


def end_reads(reads: Iterable[CheckedRead]) -> None:
    """Cancel requests that have not begun, and wait for the others, which write to memory."""
    # A pool that was shut down never marks a canceled request as done, so none is waited for.
    wait([request for read in reads for request in read.cancel()])


def _read_range(source: Location, start: int, target: memoryview, whole: bool) -> None:
    try:
        num_read = source.read_into(start, target, whole=whole)
    except NotFoundError as error:
        raise _missing(source) from error
    if num_read != len(target):
        raise _ends_early(source, start + num_read)


def _checked_chunks(source: Location, record: FileRecord) -> Iterator[bytes]:
    """The file's chunks; raises after the last chunk if they do not match the record."""
    state = hashlib.sha256()
    # An empty file is requested too, because it may be missing.
    end = max(record.num_bytes, 1)
    for start in range(0, end, CHUNK_BYTES):
        stop = min(start + CHUNK_BYTES, end)
        try:
            chunk = source.read_range(start, stop)
        except NotFoundError as error:
            raise _missing(source) from error
        # An empty chunk for each of the 2^63 bytes that a manifest lists would be endless.
        if len(chunk) < min(stop, record.num_bytes) - start:
            raise _ends_early(source, start + len(chunk))
        state.update(chunk)
        yield chunk
    _check(source, record, state.hexdigest())


def _check(source: Location, record: FileRecord, actual: str) -> None:
    if actual != record.sha256:
        raise CorruptionError(
            f"{source} is damaged: its {record.num_bytes:,} bytes should have the SHA-256 "
            f"{record.sha256[:16]}…, they have {actual[:16]}…. {_VERIFY}"
        )


def _ends_early(source: Location, end: int) -> CorruptionError:
    return CorruptionError(
        f"{source} is damaged: it ends at byte {end:,}, its manifest says more. {_VERIFY}"
    )


def _missing(source: Location) -> CorruptionError:
    return CorruptionError(f"{source} is missing. {_VERIFY}")


_VERIFY = "Run `fusestore verify` on its store."


@with_retries
def _upload(target: Location, source: Location, record: FileRecord) -> None:
    """Upload a large file; it becomes visible only when it is complete and checked.

    After a failed part, the whole file is sent again.
    """
    if target.is_object:
        options = target.storage_options
        objects.write_chunks(target.url, options, lambda: _checked_chunks(source, record))
        return
    # A file of fsspec completes its upload when it is closed, even after an error.
    with scratch_folder("upload") as folder:
        spool = folder / "spool"
        with spool.open("wb") as file:
            file.writelines(_checked_chunks(source, record))
        target.filesystem.put_file(str(spool), target.url)
