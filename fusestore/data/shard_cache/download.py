"""Download of one shard: parallel range requests, SHA-256, and decoding into the local layout."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property

import google_crc32c
import numpy as np
import numpy.typing as npt

from fusestore.data.shard_cache.layout import ShardLayout
from fusestore.errors import CorruptionError, NotFoundError
from fusestore.fuse.layout import shared_arrays
from fusestore.fuse.manifest import FusedManifest
from fusestore.storage.location import Location
from fusestore.store.array_reader import decode_file
from fusestore.store.arrays import ArraySpec
from fusestore.store.copy import CheckedRead, end_reads
from fusestore.store.receipts import FileRecord
from fusestore.store.stored_size import SMALL_BYTES, is_possible

CONNECTIONS = 8
"""Range requests of a process at a time."""

MIN_RANGE_BYTES = 2**19
MAX_RANGE_BYTES = 2**24
"""A file is requested in ranges of at most the larger size. If training waits for it and no other
download runs, it is requested in as many ranges as there are connections, but none below the
smaller size, because requests take processor time on both sides."""

_Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Download:
    """Downloads shards of a dataset. Can be used by several threads at once.

    Attributes:
        source: the dataset's folder on any storage.
        manifest: its manifest, with its form and the record of every file.
        pool: makes the requests, first come, first served.
    """

    source: Location
    manifest: FusedManifest
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(CONNECTIONS))

    @cached_property
    def layout(self) -> ShardLayout:
        """Layout of the shards' files on this machine."""
        return ShardLayout.of(self.manifest)

    @cached_property
    def _stored(self) -> dict[str, ArraySpec]:
        """The arrays of the shared form, by name."""
        layout = self.layout
        arrays = shared_arrays(layout.num_tokens, layout.top_k, layout.rows_per_shard)
        return {array.name: array for array in arrays}

    def fetch(
        self,
        shard: int,
        content: _Bytes,
        begun: Callable[[], None] = lambda: None,
        *,
        alone: bool = False,
    ) -> None:
        """Download a shard into memory.

        Args:
            shard: its number.
            content: uint8 [`ShardLayout.num_bytes`], overwritten with the shard's file.
            begun: called when the pool has all requests.
            alone: whether all connections are free for this shard.

        Raises:
            CorruptionError: a file is missing, or does not match the manifest.
            AccessDeniedError, StorageError: the storage failed.
        """
        layout = self.layout
        sections = layout.sections(content)
        shared = self.manifest.form == "shared"
        # A file of the local form is equal to its section.
        files = [
            self._new_file(array, shard) if shared else sections[array.name]
            for array in layout.arrays
        ]
        reads = [
            self._read(array, file, shard, alone)
            for array, file in zip(layout.arrays, files, strict=True)
        ]
        begun()
        try:
            for array, file, read in zip(layout.arrays, files, reads, strict=True):
                read.result()
                if shared:
                    self._decode(array, shard, file, content)
        finally:
            end_reads(reads)

    def check_there(self, shard: int) -> None:
        """Check, before memory and disk space are taken, that a large shard can be there.

        Raises:
            CorruptionError: its files are missing, or too small for what the manifest says.
            AccessDeniedError, StorageError: the storage failed.
        """
        if self.layout.num_bytes <= SMALL_BYTES:
            return
        stored = 0
        for array in self.layout.arrays:
            file = self.source / array.file_name(shard)
            record = self._record(array, shard)
            try:
                size = file.size()
            except NotFoundError as error:
                raise CorruptionError(f"{file} is missing. Share the dataset again.") from error
            if size != record.num_bytes:
                raise CorruptionError(
                    f"{file} has {size:,} bytes; its manifest says {record.num_bytes:,}. Share the "
                    "dataset again."
                )
            stored += size
        if not is_possible(self.layout.num_bytes, stored):
            raise CorruptionError(
                f"Shard {shard} of {self.source} has {stored:,} bytes, too few for "
                f"{self.layout.num_bytes:,} of values. Share the dataset again."
            )

    def _record(self, array: ArraySpec, shard: int) -> FileRecord:
        name = array.file_name(shard)
        record = self.manifest.files.get(name)
        # The shared form is smaller than the values; in pcodec's worst case slightly larger.
        raw = math.prod(array.chunk_shape) * np.dtype(array.dtype).itemsize + 4
        allowed = 2 * raw + 2**20 if self.manifest.form == "shared" else raw
        if record is None or not 0 < record.num_bytes <= allowed:
            listed = "no size" if record is None else f"{record.num_bytes:,} bytes"
            raise CorruptionError(
                f"The manifest of {self.source} lists {listed} of {name}; expected up to "
                f"{allowed:,} bytes. Share the dataset again."
            )
        if self.manifest.form == "local" and record.num_bytes != raw:
            raise CorruptionError(
                f"The manifest of {self.source} lists {record.num_bytes:,} bytes of {name}; "
                f"expected {raw:,}. Fuse it again."
            )
        return record

    def _new_file(self, array: ArraySpec, shard: int) -> _Bytes:
        return np.empty(self._record(array, shard).num_bytes, np.uint8)

    def _read(self, array: ArraySpec, file: _Bytes, shard: int, alone: bool) -> CheckedRead:
        size = MAX_RANGE_BYTES
        if alone:
            size = min(max(-(-len(file) // CONNECTIONS), MIN_RANGE_BYTES), size)
        path = self.source / array.file_name(shard)
        return CheckedRead(path, self._record(array, shard), file.data, self.pool, size)

    def _decode(self, array: ArraySpec, shard: int, file: _Bytes, content: _Bytes) -> None:
        start, stop = array.rows_of(shard)
        values = self.layout.values(content)[array.name]
        spec, checksum = self._stored[array.name], 0
        for rows in decode_file(self.source, spec, shard, file, values[: stop - start]):
            checksum = google_crc32c.extend(checksum, rows.view(np.uint8))
        padding = values[stop - start :]
        padding[:] = 0
        checksum = google_crc32c.extend(checksum, padding.view(np.uint8))
        self.layout.seal(content, array.name, checksum)
