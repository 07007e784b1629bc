"""What reading a Parquet file takes, from its headers alone, before a library reads it.

A page says how large it is uncompressed, and readers take that much memory at once; the footer says
where the pages lie. Both are Thrift structs in the compact protocol, of which this reads as much as
it needs. See https://parquet.apache.org/docs/file-format/.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from fusestore.errors import CorruptionError

_MAGIC = b"PAR1"
_MAX_FOOTER = 32 * 2**20
_USUAL_HEADER = 512
_MAX_HEADER = 2**20
_MANY_PAGES = 10_000
_BYTES_PER_PAGE = 4_096
_MAX_DEPTH = 16
_MAX_VALUES = 2_000_000

_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_INTEGERS = (4, 5, 6)


class ParquetSize(NamedTuple):
    """What a file says of itself.

    Attributes:
        num_rows: rows of the table.
        num_bytes: bytes of its pages, uncompressed.
    """

    num_rows: int
    num_bytes: int


def parquet_size(file: BinaryIO, name: str) -> ParquetSize:
    """The size of a table, by its footer and the header of each page.

    Args:
        file: the Parquet file, seekable.
        name: of the file, for messages.

    Raises:
        CorruptionError: it is no Parquet file, or its headers do not fit it.
    """
    try:
        return _size(file)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise CorruptionError(f"{name} is no valid Parquet file: {error}.") from error


def _size(file: BinaryIO) -> ParquetSize:
    end = file.seek(0, io.SEEK_END)
    file.seek(max(0, end - 8))
    tail = file.read(8)
    footer = int.from_bytes(tail[:4], "little")
    if len(tail) < 8 or tail[4:] != _MAGIC or footer > min(end - 8, _MAX_FOOTER):
        raise ValueError("its footer is missing or too large")
    file.seek(end - 8 - footer)
    metadata: Any = _Thrift(file.read(footer)).struct()
    num_bytes, num_rows, num_pages = 0, 0, 0
    most_pages = _MANY_PAGES + end // _BYTES_PER_PAGE
    for group in metadata[4]:
        num_rows += _natural(group[3])
        for column in group[1]:
            chunk = column[3]
            starts = [chunk[place] for place in (9, 11) if chunk.get(place)]
            start, length = min(map(_natural, starts)), _natural(chunk[7])
            if start + length > end:
                raise ValueError("a column lies outside it")
            for size in _pages(file, start, start + length):
                num_bytes += size
                num_pages += 1
                if num_pages > most_pages:
                    raise ValueError("it has too many pages for its size")
    if num_rows != _natural(metadata[3]):
        raise ValueError("its groups have other rows than it says")
    return ParquetSize(num_rows, num_bytes)


def _pages(file: BinaryIO, start: int, stop: int) -> Iterator[int]:
    """Bytes of each page of a column, uncompressed."""
    while start < stop:
        file.seek(start)
        try:
            thrift = _Thrift(file.read(min(_USUAL_HEADER, stop - start)))
            header = thrift.struct()
        except (ValueError, IndexError):
            # The statistics in it hold the least and the largest text of the page.
            file.seek(start)
            thrift = _Thrift(file.read(min(_MAX_HEADER, stop - start)))
            header = thrift.struct()
        yield _natural(header[2])
        start += thrift.position + _natural(header[3])
    if start != stop:
        raise ValueError("a page lies outside its column")


def _natural(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("a size is no natural number")
    return value


class _Thrift:
    """Values of the compact protocol; structs are dicts by the number of the field."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self._num_values = 0

    def struct(self, depth: int = 0) -> dict[int, object]:
        """A struct; see `parquet.thrift` for the numbers of its fields."""
        fields: dict[int, object] = {}
        number = 0
        while (head := self._byte()) != 0:
            step, kind = head >> 4, head & 15
            number = number + step if step else _signed(self._varint())
            # A truth is in the head itself.
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> object:
        self._num_values += 1
        if depth > _MAX_DEPTH or self._num_values > _MAX_VALUES:
            raise ValueError("its headers are nested too deep, or too many")
        if kind in (_TRUE, _FALSE, _BYTE):
            return self._byte()
        if kind in _INTEGERS:
            return _signed(self._varint())
        if kind == _DOUBLE:
            return self._bytes(8)
        if kind == _BINARY:
            return self._bytes(self._varint())
        if kind in (_LIST, _SET):
            head = self._byte()
            count = head >> 4 if head >> 4 != 15 else self._varint()
            self._check_count(count)
            return [self._value(head & 15, depth + 1) for _ in range(count)]
        if kind == _MAP:
            count = self._varint()
            self._check_count(count)
            kinds = self._byte() if count else 0
            return [
                (self._value(kinds >> 4, depth + 1), self._value(kinds & 15, depth + 1))
                for _ in range(count)
            ]
        if kind == _STRUCT:
            return self.struct(depth + 1)
        raise ValueError(f"a field has the unknown type {kind}")

    def _check_count(self, count: int) -> None:
        # Each element takes a byte at least.
        if count > len(self.data) - self.position:
            raise ValueError("a list is longer than its header")

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number is longer than 64 bits")

    def _byte(self) -> int:
        self.position += 1
        return self.data[self.position - 1]

    def _bytes(self, count: int) -> bytes:
        self.position += count
        if self.position > len(self.data):
            raise ValueError("a text is longer than its header")
        return self.data[self.position - count : self.position]


def _signed(number: int) -> int:
    return (number >> 1) ^ -(number & 1)
