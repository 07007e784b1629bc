"""Copying one file from any storage to any other, checked against its record on the way.

What reaches the other side is what the record says, or nothing: the SHA-256 of the bytes read is
compared before the file becomes visible. Memory is bounded by `PIECE_BYTES` a copy.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fusestore.errors import CorruptionError, NotFoundError
from fusestore.storage.location import Location
from fusestore.storage.publish import publish, publish_pieces
from fusestore.storage.retries import patient
from fusestore.store.receipts import FileRecord

PIECE_BYTES = 16 * 2**20
"""Files up to this size are copied in memory, larger ones in pieces of it."""

_S3_PART_BYTES = 16 * 2**20
"""S3 takes parts from 5 MiB and 10,000 of them: files up to 160 GB."""


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
    elif source.is_local:
        for _ in _checked_pieces(source, record):
            pass
        _upload(target, source.path)
    else:
        # Object storage makes a file visible when its upload ends, checked or not.
        with tempfile.NamedTemporaryFile(prefix="fusestore-") as spool:
            spool.writelines(_checked_pieces(source, record))
            spool.flush()
            _upload(target, Path(spool.name))


def matches(location: Location, record: FileRecord) -> bool:
    """Whether the file there holds what the record says; it is read whole, in pieces."""
    try:
        for _ in _checked_pieces(location, record):
            pass
    except CorruptionError:
        return False
    return True


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
            raise CorruptionError(f"{source} is missing.") from error
        state.update(piece)
        yield piece
    if state.hexdigest() != record.sha256:
        raise CorruptionError(
            f"{source} is damaged: its {record.num_bytes:,} bytes should have the SHA-256 "
            f"{record.sha256[:16]}…, they have {state.hexdigest()[:16]}…."
        )


@patient
def _upload(target: Location, path: Path) -> None:
    # s3fs would otherwise hold ten parts of 50 MB for every file under way.
    s3 = target.url.startswith(("s3://", "s3a://"))
    limits = {"chunksize": _S3_PART_BYTES, "max_concurrency": 1} if s3 else {}
    target.filesystem.put_file(str(path), target.url, **limits)
