"""Records of foreign files: rows of Parquet and Arrow tables, and lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from fusestore.errors import InvalidInputError
from fusestore.interop.foreign import ForeignFile

TABLE_SUFFIXES = (".parquet", ".arrow", ".jsonl", ".ndjson", ".json")

_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
"""Without it a stream that lacks its last batches looks like a whole one."""

_ROWS_AT_ONCE = 64
_ALL_BITS = 2**64 - 1
_MAX_LINE = 2**30
"""Characters of a line of JSON; more is refused."""

Record = Mapping[str, Any]


def read_records(file: ForeignFile, columns: tuple[str, ...]) -> Iterator[tuple[str, Record]]:
    """The records of a file, each with its place for messages.

    Args:
        file: Parquet, an Arrow stream or file, or JSON lines.
        columns: those to read; a table may lack some.

    Raises:
        InvalidInputError: the file is damaged, or a line is no JSON object.
    """
    if file.path.suffix in (".jsonl", ".ndjson", ".json"):
        yield from _lines(file)
        return
    read = 0
    for frame in _frames(file, columns):
        for record in frame.iter_slices(1):
            yield (
                f"Record {read} of {file.name}",
                {name: record[name][0] for name in record.columns},
            )
            read += 1


def _frames(file: ForeignFile, columns: tuple[str, ...]) -> Iterator[pl.DataFrame]:
    try:
        if file.path.suffix == ".parquet":
            lazy = pl.scan_parquet(file.path)
            found = [name for name in columns if name in lazy.collect_schema()]
            total = int(lazy.select(pl.len()).collect().item())
            for start in range(0, total, _ROWS_AT_ONCE):
                yield lazy.select(found).slice(start, _ROWS_AT_ONCE).collect()
            return
        with file.path.open("rb") as data:
            is_file = data.read(6) == b"ARROW1"
            data.seek(-min(len(_END_OF_STREAM), file.path.stat().st_size), 2)
            is_whole = is_file or data.read() == _END_OF_STREAM
        if not is_whole:
            raise InvalidInputError(
                f"{file.name} is no Arrow file, or a stream that was cut off: it lacks the mark "
                "of its end. Copy it again."
            )
        reader = pl.read_ipc if is_file else pl.read_ipc_stream
        table = reader(file.path)
        yield table.select(name for name in columns if name in table.columns)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise InvalidInputError(
            f"{file.name} cannot be read as {file.path.suffix[1:]}: {error}. It may be truncated: "
            "copy it again."
        ) from error


def _lines(file: ForeignFile) -> Iterator[tuple[str, Record]]:
    with file.path.open(encoding="utf-8", errors="strict") as lines:
        for number in range(1, 2**62):
            place = f"Line {number} of {file.name}"
            try:
                line = lines.readline(_MAX_LINE)
                if not line:
                    return
                if not line.strip():
                    continue
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InvalidInputError(
                    f"{place} is not JSON ({error}). The file may be truncated: copy it again."
                ) from error
            if not isinstance(record, dict):
                raise InvalidInputError(f"{place} is no JSON object, but {str(record)[:40]}.")
            yield place, record


def needed(place: str, record: Record, column: str, layout: str) -> Any:  # noqa: ANN401 - a table's cell
    """The value of a column.

    Raises:
        InvalidInputError: there is none; the message names those that there are.
    """
    value = record.get(column)
    if value is None:
        found = ", ".join(name for name in record if record[name] is not None)
        raise InvalidInputError(
            f"{place} has no {column!r}, which the layout {layout} has. Its columns are: {found}."
        )
    return value


def numbers(place: str, column: str, values: Any) -> npt.NDArray[np.float64]:  # noqa: ANN401
    """Float64 [n] of a list; null becomes NaN.

    Raises:
        InvalidInputError: it is no list of numbers.
    """
    try:
        if isinstance(values, pl.Series):
            return values.cast(pl.Float64).to_numpy().astype(np.float64)
        return np.array([np.nan if each is None else each for each in values], np.float64)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
        raise InvalidInputError(
            f"{place} has in {column!r} no list of numbers: {error}."
        ) from error


def integers(place: str, column: str, values: Any) -> npt.NDArray[np.int64]:  # noqa: ANN401
    """Int64 [n] of a list of whole numbers.

    Raises:
        InvalidInputError: it is none.
    """
    found = numbers(place, column, values)
    if found.ndim != 1 or not np.all(np.isfinite(found) & (np.abs(found) < 2**53)):
        raise InvalidInputError(f"{place} has in {column!r} no list of integers.")
    if np.any(found != np.rint(found)):
        raise InvalidInputError(f"{place} has in {column!r} numbers that are no integers.")
    return found.astype(np.int64)


def matrix(
    place: str,
    column: str,
    values: Any,  # noqa: ANN401 - a table's cell
    fill: float,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Float64 [n, k] of a list of lists, and the length of each, −1 for null.

    Shorter lists end with `fill`.

    Raises:
        InvalidInputError: it is no list of lists of numbers.
    """
    try:
        if isinstance(values, pl.Series):
            lengths = values.list.len().cast(pl.Int64).fill_null(-1).to_numpy()
            # An empty list explodes to a null of its own, and so does a null.
            full = values.filter(pl.Series(lengths > 0))
            flat = numbers(place, column, full.explode()) if len(full) else np.empty(0)
        else:
            rows = [None if row is None else numbers(place, column, row) for row in values]
            lengths = np.array([-1 if row is None else len(row) for row in rows], np.int64)
            flat = np.concatenate([np.empty(0), *(row for row in rows if row is not None)])
    except (TypeError, ValueError, AttributeError, pl.exceptions.PolarsError) as error:
        raise InvalidInputError(f"{place} has in {column!r} no list of lists: {error}.") from error
    width = max(1, int(lengths.max(initial=0)))
    if len(lengths) * width > 64 * len(flat) + 2**20:
        raise InvalidInputError(
            f"{place} has lists of 0 to {width} numbers in {column!r}, too uneven for rows."
        )
    result = np.full((len(lengths), width), fill, np.float64)
    result[np.arange(width) < lengths[:, None]] = flat
    return result, lengths.astype(np.int64)


def words(place: str, column: str, values: Any) -> npt.NDArray[np.uint64]:  # noqa: ANN401
    """Words of 64 bits [n, w] of a list of lists of one length; negative ones as they are in bits.

    Raises:
        InvalidInputError: it is no such list of integers.
    """
    try:
        if isinstance(values, pl.Series):
            listed: list[list[int]] = values.to_list()
        else:
            listed = [list(row) for row in values]
        found = np.array([[word & _ALL_BITS for word in row] for row in listed], np.uint64)
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
        raise InvalidInputError(
            f"{place} has in {column!r} no list of lists of integers, all of one length: {error}."
        ) from error
    if found.ndim != 2:
        raise InvalidInputError(f"{place} has in {column!r} no list of lists of integers.")
    return found
