"""Reads the arrays that `arrays` writes: memory map or ranged reads, checksum, decode.

A test proves it equal to zarr-python on every array that both can read. It differs in three ways: a
missing file or chunk is an error instead of fill values, there is no event loop, and chunks are
yielded as they were decoded, so that a caller can write its own result in place.
"""

from __future__ import annotations

import math
import mmap
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from pcodec import standalone  # type: ignore[import-untyped]

from fusestore.errors import CorruptionError, InvalidInputError, NotFoundError
from fusestore.storage.location import Location
from fusestore.store.arrays import ABSENT_CHUNK, ArraySpec, ends_in_crc32c
from fusestore.store.receipts import FileRecord
from fusestore.store.stored_size import SMALL_BYTES, chunk_bytes, file_bytes, is_possible

MAX_OPEN_SHARDS = 64
"""Shards per array for which a reader keeps the index and, locally, the memory map."""

RECENT_CHUNKS = 2
"""Decoded chunks per array that a reader keeps, because neighboring documents share them. A chunk
that was read whole is not kept, so that a long read decodes into the same few buffers, which stay
in the processor's cache."""

_Values = npt.NDArray[Any]
_Records = Mapping[str, FileRecord]


def decode_file(
    folder: Location, spec: ArraySpec, shard: int, content: npt.NDArray[np.uint8], out: _Values
) -> Iterator[_Values]:
    """Decode a whole file of the array from its bytes, chunk by chunk; every chunk is checked.

    Args:
        folder: the group, for messages.
        spec: the array.
        shard: which file.
        content: the file's bytes, uint8.
        out: receives the rows of `spec.rows_of(shard)`, cast to its dtype.

    Yields:
        The rows of `out` that were just decoded, while the processor's caches hold them.

    Raises:
        CorruptionError: the file is truncated, or does not match its checksums.
    """
    opened = _OpenShard(folder, spec, shard, content=content)
    start, stop = spec.rows_of(shard)
    rows = spec.rows_per_chunk
    in_place = spec.chunks_across == 1 and out.dtype == spec.dtype and out.flags.c_contiguous
    # Checks that no chunk is absent; the bytes are `content`.
    opened.fetch_chunks(0, -(-(stop - start) // rows))
    for chunk in range(-(-(stop - start) // rows)):
        target = out[chunk * rows : (chunk + 1) * rows]
        whole = in_place and len(target) == rows
        values = opened.decode(chunk, 0, content, target.reshape(1, -1) if whole else None)
        if not np.may_share_memory(values, target):
            _place(spec, values, chunk * rows, out, 0)
        yield target


def _place(spec: ArraySpec, values: _Values, first: int, out: _Values, start: int) -> None:
    """Copy the rows that a chunk from row `first` and `out` from row `start` share into `out`."""
    low, high = max(start, first), min(start + len(out), first + spec.rows_per_chunk)
    target, rows = out[low - start : high - start], slice(low - first, high - first)
    if len(spec.shape) == 1:
        target[:] = values[0, rows]
        return
    width = spec.chunk_shape[1]
    for number, block in enumerate(values):
        columns = target[:, number * width : (number + 1) * width]
        columns[:] = block[rows, : columns.shape[1]]


class ArrayReader:
    """Reads rows of one array, checking every chunk it decodes.

    A file or chunk that is missing, truncated or does not match its checksum is a `CorruptionError`
    that names the file. Local files are memory-mapped. Of a remote file, the index is fetched once,
    then one range per read and shard. Can be pickled: the copy opens its files again. Not safe for
    use by several threads at once.

    Args:
        folder: the group.
        spec: the array.
        records: of the files by path, from a manifest; or a function that returns those of a shard,
            from its receipt. A file must have the size of its record; by default any.
    """

    def __init__(
        self,
        folder: Location,
        spec: ArraySpec,
        records: _Records | Callable[[int], _Records] | None = None,
    ) -> None:
        self.folder = folder
        self.spec = spec
        self._records = records
        self._shards: OrderedDict[int, _OpenShard] = OrderedDict()
        self._recent: OrderedDict[int, _Values] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": OrderedDict(), "_recent": OrderedDict()}

    def read(self, start: int, stop: int) -> _Values:
        """Rows `[start, stop)`, which must lie inside the array: a new array of its dtype.

        Errors as for `chunks`.
        """
        spec = self.spec
        self.check_there(start, stop)
        out = np.empty((max(0, stop - start), *spec.shape[1:]), dtype=spec.dtype)
        in_place = out if spec.chunks_across == 1 else None
        for first, values in self.chunks(start, stop, in_place):
            if values.base is not out:
                _place(spec, values, first, out, start)
        return out

    def check_there(self, start: int, stop: int) -> None:
        """Check that rows can be stored in the files that there are, before memory is taken.

        Args:
            start: the first row.
            stop: one past the last.

        Raises:
            InvalidInputError: rows outside the array.
            CorruptionError: a file is missing, or they are too small.
        """
        spec = self.spec
        self._check_inside(start, stop)
        row_bytes = math.prod(spec.shape[1:]) * np.dtype(spec.dtype).itemsize
        if (stop - start) * row_bytes <= SMALL_BYTES:
            return
        first, last = start // spec.rows_per_file, -(-stop // spec.rows_per_file)
        stored = sum(self._size(shard) for shard in range(first, last))
        if not is_possible((last - first) * file_bytes(spec), stored):
            raise CorruptionError(
                f"{self.folder} should hold rows {start:,} to {stop:,} of {spec.name!r}, "
                f"{(stop - start) * row_bytes:,} bytes, in files of {stored:,} bytes: its manifest "
                "is wrong. Run `fusestore verify` on its store."
            )

    def _size(self, shard: int) -> int:
        """Bytes of a file."""
        opened = self._shards.get(shard)
        if opened is not None:
            return opened.size
        file = self.folder / self.spec.file_name(shard)
        try:
            return file.size()
        except NotFoundError as error:
            raise CorruptionError(
                f"{file} is missing. Run `fusestore verify` on {self.folder} to see what is "
                "damaged, then make it again."
            ) from error

    def _check_inside(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.spec.shape[0]:
            raise InvalidInputError(
                f"Rows {start} to {stop} are outside array {self.spec.name!r} of "
                f"{self.spec.shape[0]} rows."
            )

    def chunks(
        self, start: int, stop: int, out: _Values | None = None
    ) -> Iterator[tuple[int, _Values]]:
        """Every chunk that overlaps rows `[start, stop)`, in order.

        Args:
            start: the first row.
            stop: one past the last.
            out: memory for these rows, of the array's dtype; only if chunks hold whole rows. Chunks
                that lie inside the rows and have to be decoded are decoded into it.

        Yields:
            The array's row that the chunk begins with, and its values, which are read-only:
            [chunks across, rows per chunk] of an array of one axis, else
            [chunks across, rows per chunk, columns per chunk]. The last chunk has full length too.

        Raises:
            InvalidInputError: rows outside the array.
            CorruptionError: the stored bytes are damaged.
        """
        spec = self.spec
        self._check_inside(start, stop)
        rows = spec.rows_per_chunk
        per_file = spec.rows_per_file // rows
        wanted = range(start // rows, -(-stop // rows) if stop > start else start // rows)
        while wanted:
            shard = wanted[0] // per_file
            inside = wanted[: (shard + 1) * per_file - wanted[0]]
            wanted = wanted[len(inside) :]
            recent = {chunk: self._recent[chunk] for chunk in inside if chunk in self._recent}
            missing = [chunk for chunk in inside if chunk not in recent]
            if missing:
                begin = shard * per_file
                opened = self._open(shard)
                fetched = opened.fetch_chunks(missing[0] - begin, missing[-1] + 1 - begin)
            for chunk in inside:
                first = chunk * rows
                values = recent.get(chunk)
                if values is None:
                    whole = start <= first and first + rows <= stop
                    target = None
                    if whole and out is not None:
                        target = out[first - start : first - start + rows].reshape(1, -1)
                    values = opened.decode(chunk - begin, *fetched, target)
                    if not whole:
                        self._remember(chunk, values)
                yield first, values

    def _remember(self, chunk: int, values: _Values) -> None:
        # A raw chunk costs only its checksum, so it is checked each time.
        if self.spec.codec == "pcodec":
            self._recent[chunk] = values
            if len(self._recent) > RECENT_CHUNKS:
                self._recent.popitem(last=False)

    def _open(self, shard: int) -> _OpenShard:
        opened = self._shards.get(shard)
        if opened is None:
            opened = _OpenShard(self.folder, self.spec, shard, self._recorded_size(shard))
            self._shards[shard] = opened
            if len(self._shards) > MAX_OPEN_SHARDS:
                self._shards.popitem(last=False)
        self._shards.move_to_end(shard)
        return opened

    def _recorded_size(self, shard: int) -> int | None:
        if self._records is None:
            return None
        name = self.spec.file_name(shard)
        records = self._records(shard) if callable(self._records) else self._records
        if name not in records:
            raise CorruptionError(
                f"{self.folder} has no record of its file {name}. Run `fusestore verify` on its "
                "store."
            )
        return records[name].num_bytes


class _OpenShard:
    """One file, its size and its index; `content` holds its bytes if they were read already."""

    def __init__(
        self,
        folder: Location,
        spec: ArraySpec,
        shard: int,
        expected_size: int | None = None,
        content: npt.NDArray[np.uint8] | None = None,
    ) -> None:
        self.folder = folder
        self.spec = spec
        self.file = folder / spec.file_name(shard)
        self.dtype = np.dtype(spec.dtype)
        self.values_per_chunk = math.prod(spec.chunk_shape)
        self.chunks_across = spec.chunks_across
        self.mapped = content
        self.mapped_file: mmap.mmap | None = None
        try:
            if content is not None:
                self.size = len(content)
            elif self.file.is_local:
                with self.file.path.open("rb") as file:
                    self.size = file.seek(0, 2)
                    if self.size:
                        self.mapped_file = mmap.mmap(
                            file.fileno(), self.size, access=mmap.ACCESS_READ
                        )
                        self.mapped = np.frombuffer(self.mapped_file, dtype=np.uint8)
            else:
                # A wrong size is noticed: the index would not match its checksum.
                self.size = self.file.size() if expected_size is None else expected_size
        except (FileNotFoundError, NotFoundError) as error:
            raise self.corrupt("is missing") from error
        if expected_size is not None and self.size != expected_size:
            raise self.corrupt(f"has {self.size:,} bytes, its receipt says {expected_size:,}")
        whole = chunk_bytes(spec) * spec.chunks_across
        if not is_possible(whole, self.size):
            raise self.corrupt(f"has {self.size:,} bytes, too few for chunks of {whole:,}")
        self.offsets, self.lengths = self._read_index()

    def corrupt(self, problem: str) -> CorruptionError:
        return CorruptionError(
            f"{self.file} {problem}. Run `fusestore verify` on {self.folder} to see what is "
            "damaged, then make it again."
        )

    def fetch(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Bytes `[start, stop)`, all of them."""
        if self.mapped is not None:
            # Reading a map beyond the end of its file would kill the process.
            if self.mapped_file is not None and self.mapped_file.size() < self.size:
                raise self.corrupt(f"was cut to {self.mapped_file.size():,} bytes")
            return self.mapped[start:stop]
        try:
            data = self.file.read_range(start, stop) if stop > start else b""
        except NotFoundError as error:
            raise self.corrupt("is missing") from error
        if len(data) != stop - start:
            raise self.corrupt(f"ends before byte {stop:,}")
        return np.frombuffer(data, dtype=np.uint8)

    def checked(self, data: npt.NDArray[np.uint8], what: str) -> npt.NDArray[np.uint8]:
        """The data without the CRC-32C at its end, which must match."""
        if not ends_in_crc32c(data):
            raise self.corrupt(f"does not match its checksum in {what}")
        return data[:-4]

    def _read_index(self) -> tuple[list[int], list[int]]:
        if self.spec.shard_shape is None:
            return [0], [self.size]
        index_bytes = self.spec.index_bytes
        data_end = self.size - index_bytes
        if data_end < 0:
            raise self.corrupt(f"has {self.size:,} bytes, too few to hold its chunk index")
        index = self.checked(self.fetch(data_end, self.size), "its chunk index")
        table = np.frombuffer(index.tobytes(), dtype="<u8").reshape(-1, 2)
        stored = table[table[:, 0] != ABSENT_CHUNK]
        # Each number alone first, because a sum could wrap around.
        if np.any(stored > data_end) or np.any(stored.sum(axis=1) > data_end):
            raise self.corrupt("has a chunk index that points outside the file")
        return table[:, 0].tolist(), table[:, 1].tolist()

    def fetch_chunks(self, first: int, stop: int) -> tuple[int, npt.NDArray[np.uint8]]:
        """One range of the file that holds the chunks `[first, stop)`, counted down the rows.

        Returns:
            The first byte of the range, and its bytes.
        """
        entries = slice(first * self.chunks_across, stop * self.chunks_across)
        begins, lengths = self.offsets[entries], self.lengths[entries]
        if ABSENT_CHUNK in begins:
            raise self.corrupt(f"holds no chunk {entries.start + begins.index(ABSENT_CHUNK)}")
        # Chunks may lie in any order.
        begin, end = min(begins), max(map(sum, zip(begins, lengths, strict=True)))
        return begin, self.fetch(begin, end)

    def decode(
        self, chunk: int, begin: int, data: npt.NDArray[np.uint8], out: _Values | None = None
    ) -> _Values:
        """Values of a chunk of rows, from the result of `fetch_chunks`; shape as in `chunks`.

        Values that have to be decoded go into `out` [chunks across, values], if it is given.
        """
        shape, count = self.spec.chunk_shape, self.values_per_chunk
        if self.spec.codec == "raw":
            start = self.offsets[chunk] - begin
            content = self.checked(data[start : start + self.lengths[chunk]], f"chunk {chunk}")
            if len(content) != count * self.dtype.itemsize:
                raise self.corrupt(f"holds {len(content):,} bytes in chunk {chunk}")
            return content.view(self.dtype.newbyteorder("<")).reshape(1, *shape)
        values = np.empty((self.chunks_across, count), self.dtype) if out is None else out
        for number, target in enumerate(values, chunk * self.chunks_across):
            start = self.offsets[number] - begin
            # The decoder takes bytes, and stops before the checksum by itself.
            encoded = data[start : start + self.lengths[number]].tobytes()
            if not ends_in_crc32c(encoded):
                raise self.corrupt(f"does not match its checksum in chunk {number}")
            try:
                progress = standalone.simple_decompress_into(encoded, target)
            except (RuntimeError, TypeError, ValueError) as error:
                raise self.corrupt(f"cannot be decoded in chunk {number} ({error})") from error
            if progress.n_processed != count or not progress.finished:
                raise self.corrupt(f"holds {progress.n_processed} values in chunk {number}")
        return values.reshape(-1, *shape)
