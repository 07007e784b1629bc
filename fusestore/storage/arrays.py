"""Zarr v3 arrays: metadata by zarr-python, shards encoded and decoded here.

Two forms. `pcodec`: shards (`sharding_indexed`, index at the end) of chunks, each pcodec and then
CRC-32C. `raw`: little-endian values and a CRC-32C per file, one chunk per file, so that a file can
be memory-mapped. Every Zarr v3 reader that knows pcodec reads them; ours differs in that a missing
file or chunk is an error instead of fill values, and that it needs no event loop.
"""

from __future__ import annotations

import itertools
import math
import mmap
import struct
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs.pcodec import PCodec
from pcodec import standalone  # type: ignore[import-untyped]

from fusestore.errors import CorruptionError, InvalidInputError, NotFoundError, StorageError
from fusestore.storage.urls import Location

PCODEC_LEVEL = 12

ABSENT_CHUNK = 2**64 - 1
"""Offset and length that a shard index gives for a chunk that is not stored."""

MAX_OPEN_SHARDS = 64
"""Shards per array whose index (and, locally, memory map) a reader keeps."""

Codec = Literal["pcodec", "raw"]


@dataclass(frozen=True)
class ArraySpec:
    """One array of a Zarr v3 group.

    Attributes:
        name: the array's folder inside the group.
        shape: all rows; the first axis is the long one.
        dtype: NumPy name of a number type.
        chunk_shape: what is encoded together; divides `shard_shape`.
        shard_shape: what one file holds: rows of the shard, then `shape[1:]` rounded up to whole
            chunks. None: one chunk per file, whose `chunk_shape[1:]` must be `shape[1:]`.
        codec: see the module's docstring. `raw` has no shards.
        attributes: written into the array's metadata.
        dimension_names: one per axis.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    chunk_shape: tuple[int, ...]
    shard_shape: tuple[int, ...] | None
    codec: Codec = "pcodec"
    attributes: Mapping[str, Any] = field(default_factory=dict)
    dimension_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        outer = self.shard_shape or self.chunk_shape
        if not len(self.shape) == len(self.chunk_shape) == len(outer) >= 1:
            raise InvalidInputError(
                f"Array {self.name!r}: shape, chunks and shards differ in rank."
            )
        if min(self.chunk_shape) < 1 or any(
            size % part for size, part in zip(outer, self.chunk_shape, strict=True)
        ):
            raise InvalidInputError(
                f"Array {self.name!r}: chunks of {self.chunk_shape} do not divide {outer}."
            )
        if any(size > part for size, part in zip(self.shape[1:], outer[1:], strict=True)):
            raise InvalidInputError(
                f"Array {self.name!r}: only the first axis may be cut into files, but a file of "
                f"{outer} does not hold whole rows of {self.shape}."
            )
        if self.codec == "raw" and self.shard_shape is not None:
            raise InvalidInputError(f"Array {self.name!r}: a raw array has no shards.")

    @property
    def rows_per_file(self) -> int:
        """Rows in a whole file."""
        return (self.shard_shape or self.chunk_shape)[0]

    @property
    def num_files(self) -> int:
        """Files the array has when complete."""
        return -(-self.shape[0] // self.rows_per_file)

    def file_name(self, shard: int) -> str:
        """The file of one shard, relative to the group."""
        return "/".join([self.name, "c", str(shard), *("0" * (len(self.shape) - 1))])

    def rows_of(self, shard: int) -> tuple[int, int]:
        """Rows `[start, stop)` that the file holds."""
        start = shard * self.rows_per_file
        return start, min(start + self.rows_per_file, self.shape[0])

    @property
    def chunk_grid(self) -> tuple[int, ...]:
        """Chunks per file along each axis."""
        outer = self.shard_shape or self.chunk_shape
        return tuple(size // part for size, part in zip(outer, self.chunk_shape, strict=True))

    @property
    def index_bytes(self) -> int:
        """Length of the index at the end of a shard: two uint64 per chunk, and a CRC-32C."""
        return 16 * math.prod(self.chunk_grid) + 4


def array_metadata(spec: ArraySpec) -> bytes:
    """The array's `zarr.json`."""
    from zarr.codecs import BytesCodec, Crc32cCodec
    from zarr.codecs.numcodecs import PCodec as ZarrPCodec

    with warnings.catch_warnings():
        # zarr-python warns that numcodecs' codecs are not part of the Zarr v3 core.
        warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3")
        serializer = ZarrPCodec(level=PCODEC_LEVEL) if spec.codec == "pcodec" else BytesCodec()
        return _metadata_written_by_zarr(
            f"{spec.name}/zarr.json",
            lambda zarr, store: zarr.create_array(
                store,
                name=spec.name,
                shape=spec.shape,
                dtype=spec.dtype,
                chunks=spec.chunk_shape,
                shards=spec.shard_shape,
                filters=(),
                serializer=serializer,
                compressors=[Crc32cCodec()],
                fill_value=0,
                attributes=dict(spec.attributes),
                dimension_names=spec.dimension_names,
            ),
        )


def group_metadata(attributes: Mapping[str, Any]) -> bytes:
    """The group's `zarr.json`."""
    return _metadata_written_by_zarr(
        "zarr.json",
        lambda zarr, store: zarr.create_group(store, attributes=dict(attributes)),
    )


def _metadata_written_by_zarr(key: str, create: Callable[[Any, Any], object]) -> bytes:
    import zarr
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync
    from zarr.storage import MemoryStore

    store = MemoryStore()
    create(zarr, store)
    buffer = sync(store.get(key, default_buffer_prototype()))
    if buffer is None:
        raise StorageError(f"zarr-python wrote no {key}.")
    return buffer.to_bytes()


def encode_shard(spec: ArraySpec, shard: int, values: npt.NDArray[Any]) -> bytes:
    """The bytes of one file.

    Args:
        spec: the array.
        shard: which file; the last one may be short.
        values: the file's rows, of the array's dtype.

    Raises:
        InvalidInputError: other rows, columns or dtype than the file takes.
    """
    start, stop = spec.rows_of(shard)
    if values.shape != (stop - start, *spec.shape[1:]) or values.dtype != np.dtype(spec.dtype):
        raise InvalidInputError(
            f"Shard {shard} of array {spec.name!r} takes {spec.dtype} "
            f"{(stop - start, *spec.shape[1:])}, not {values.dtype} {values.shape}."
        )
    encoded: list[bytes] = []
    index: list[tuple[int, int]] = []
    position = 0
    for region in _chunk_regions(spec):
        part = values[region]
        if part.size == 0:
            index.append((ABSENT_CHUNK, ABSENT_CHUNK))
            continue
        chunk = np.zeros(spec.chunk_shape, dtype=spec.dtype)
        chunk[tuple(slice(0, size) for size in part.shape)] = part
        data = _encode_chunk(spec, chunk)
        index.append((position, len(data)))
        position += len(data)
        encoded.append(data)
    if spec.shard_shape is not None:
        table = np.array(index, dtype="<u8").tobytes()
        encoded += [table, _crc32c(table)]
    return b"".join(encoded)


def _encode_chunk(spec: ArraySpec, chunk: npt.NDArray[Any]) -> bytes:
    if spec.codec == "raw":
        data = chunk.astype(chunk.dtype.newbyteorder("<"), copy=False).tobytes()
    else:
        data = bytes(PCodec(level=PCODEC_LEVEL).encode(chunk.reshape(-1)))
    return data + _crc32c(data)


def _chunk_regions(spec: ArraySpec) -> Iterator[tuple[slice, ...]]:
    """Every chunk of a file in index order (the last axis fastest), as slices of the file."""
    for position in itertools.product(*(range(count) for count in spec.chunk_grid)):
        yield tuple(
            slice(at * size, (at + 1) * size)
            for at, size in zip(position, spec.chunk_shape, strict=True)
        )


def _crc32c(data: bytes | npt.NDArray[np.uint8]) -> bytes:
    return struct.pack("<I", google_crc32c.value(data))


def read_rows(folder: Location, spec: ArraySpec, start: int, stop: int) -> npt.NDArray[Any]:
    """Rows `[start, stop)` of the array in the group at `folder`; see `ArrayReader`."""
    return ArrayReader(folder, spec).read(start, stop)


class ArrayReader:
    """Reads rows of one array, checking every chunk it touches.

    A file or chunk that is missing, cut or does not match its checksum is a `CorruptionError`
    that names the file. Local files are memory-mapped; of a remote one the index is fetched once
    and then one range per read and shard. Can be pickled: what is open is opened again where it
    is used. Not safe for use by several threads at once.

    Args:
        folder: the group.
        spec: the array.
        file_size: bytes that the file of a shard must have, from its receipt; by default any.
    """

    def __init__(
        self, folder: Location, spec: ArraySpec, file_size: Callable[[int], int] | None = None
    ) -> None:
        self.folder = folder
        self.spec = spec
        self._file_size = file_size
        self._shards: OrderedDict[int, _OpenShard] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": OrderedDict()}

    def read(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows `[start, stop)`, which must lie inside the array: a new array of its dtype."""
        spec = self.spec
        if not 0 <= start <= stop <= spec.shape[0]:
            raise InvalidInputError(
                f"Rows {start} to {stop} are outside array {spec.name!r} of {spec.shape[0]} rows."
            )
        out = np.empty((stop - start, *spec.shape[1:]), dtype=spec.dtype)
        row = start
        while row < stop:
            shard = row // spec.rows_per_file
            first, last = spec.rows_of(shard)
            end = min(stop, last)
            self._open(shard).read_into(out[row - start : end - start], row - first)
            row = end
        return out

    def _open(self, shard: int) -> _OpenShard:
        opened = self._shards.get(shard)
        if opened is None:
            expected = None if self._file_size is None else self._file_size(shard)
            opened = _OpenShard(self.folder, self.spec, shard, expected)
            self._shards[shard] = opened
            if len(self._shards) > MAX_OPEN_SHARDS:
                self._shards.popitem(last=False)
        self._shards.move_to_end(shard)
        return opened


class _OpenShard:
    """One file, its size and its index."""

    def __init__(
        self, folder: Location, spec: ArraySpec, shard: int, expected_size: int | None
    ) -> None:
        self.folder = folder
        self.spec = spec
        self.file = folder / spec.file_name(shard)
        self.mapped: npt.NDArray[np.uint8] | None = None
        try:
            if self.file.is_local:
                with self.file.path.open("rb") as file:
                    self.size = file.seek(0, 2)
                    if self.size:
                        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                        self.mapped = np.frombuffer(mapped, dtype=np.uint8)
            else:
                # A wrong size shows itself: the index would not be where the receipt puts it.
                self.size = self.file.size() if expected_size is None else expected_size
        except (FileNotFoundError, NotFoundError) as error:
            raise self.corrupt("is missing") from error
        if expected_size is not None and self.size != expected_size:
            raise self.corrupt(f"has {self.size:,} bytes, its receipt says {expected_size:,}")
        self.offsets, self.lengths = self._read_index()

    def corrupt(self, problem: str) -> CorruptionError:
        return CorruptionError(
            f"{self.file} {problem}. Run `fusestore verify` on {self.folder} to see what is "
            "damaged, then make the damaged part again."
        )

    def fetch(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Bytes `[start, stop)`, all of them."""
        if self.mapped is not None:
            return self.mapped[start:stop]
        try:
            data = self.file.read_range(start, stop) if stop > start else b""
        except NotFoundError as error:
            raise self.corrupt("is missing") from error
        if len(data) != stop - start:
            raise self.corrupt(f"ends before byte {stop:,}")
        return np.frombuffer(data, dtype=np.uint8)

    def checked(self, data: npt.NDArray[np.uint8], what: str) -> npt.NDArray[np.uint8]:
        """The data without its trailing CRC-32C, which must match."""
        if len(data) < 4 or _crc32c(data[:-4]) != data[-4:].tobytes():
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
        # Each alone first: a sum of two could wrap around.
        if np.any(stored > data_end) or np.any(stored.sum(axis=1) > data_end):
            raise self.corrupt("has a chunk index that points outside the file")
        return table[:, 0].tolist(), table[:, 1].tolist()

    def read_into(self, out: npt.NDArray[Any], first_row: int) -> None:
        """Fill `out` with the file's rows from `first_row` on."""
        rows, columns = self.spec.chunk_shape[0], math.prod(self.spec.chunk_grid[1:])
        low, high = first_row // rows, -(-(first_row + len(out)) // rows)
        wanted = range(low * columns, high * columns)
        for chunk in wanted:
            if self.offsets[chunk] == ABSENT_CHUNK:
                raise self.corrupt(f"holds no chunk {chunk}")
        begin = min(self.offsets[chunk] for chunk in wanted)
        end = max(self.offsets[chunk] + self.lengths[chunk] for chunk in wanted)
        data = self.fetch(begin, end)
        for chunk in wanted:
            at = self.offsets[chunk] - begin
            values = self._decode(data[at : at + self.lengths[chunk]], chunk)
            grid = np.unravel_index(chunk, self.spec.chunk_grid)
            top = int(grid[0]) * rows - first_row
            skip = max(0, -top)
            target = out[
                top + skip : top + rows,
                *(
                    slice(int(at) * size, (int(at) + 1) * size)
                    for at, size in zip(grid[1:], self.spec.chunk_shape[1:], strict=True)
                ),
            ]
            inside = tuple(slice(0, size) for size in target.shape[1:])
            target[...] = values[skip : skip + len(target), *inside]

    def _decode(self, data: npt.NDArray[np.uint8], chunk: int) -> npt.NDArray[Any]:
        """Values of one chunk, in `chunk_shape`."""
        spec = self.spec
        payload = self.checked(data, f"chunk {chunk}")
        count = math.prod(spec.chunk_shape)
        dtype = np.dtype(spec.dtype)
        if spec.codec == "raw":
            if len(payload) != count * dtype.itemsize:
                raise self.corrupt(f"holds {len(payload):,} bytes in chunk {chunk}")
            values: npt.NDArray[Any] = payload.view(dtype.newbyteorder("<"))
        else:
            values = np.empty(count, dtype=dtype)
            try:
                progress = standalone.simple_decompress_into(payload.tobytes(), values)
            except (RuntimeError, TypeError, ValueError) as error:
                raise self.corrupt(f"cannot be decoded in chunk {chunk} ({error})") from error
            if progress.n_processed != count or not progress.finished:
                raise self.corrupt(f"holds {progress.n_processed} values in chunk {chunk}")
        return values.reshape(spec.chunk_shape)
