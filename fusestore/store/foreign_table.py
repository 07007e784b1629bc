"""Parquet tables of a store: what they say is compared with their manifest before they are read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import polars as pl

from fusestore.errors import CorruptionError, NotFoundError
from fusestore.storage.location import Location
from fusestore.store.parquet_size import parquet_size
from fusestore.store.receipts import FileRecord
from fusestore.store.stored_size import MOST_FROM_A_BYTE, SMALL_BYTES

MAX_TABLE_BYTES = 2**28
"""Of a table that is read whole: vocabularies, maps and unmatched tokens."""

MAX_IDS = 2**22
"""Token ids of a vocabulary; the largest ones have a quarter of a million."""


def read_foreign_table(
    file: Location,
    record: FileRecord | None,
    schema: pl.Schema,
    num_rows: int | None,
    remedy: str,
) -> tuple[pl.DataFrame, bytes]:
    """A small table of a store, with at most `MAX_IDS` rows.

    Args:
        file: the Parquet file.
        record: of the file, from its manifest; None if that does not list it.
        schema: the names and types of the columns.
        num_rows: that it must have; None: any number.
        remedy: a sentence on what to do if it is damaged.

    Returns:
        The table, and the bytes of the file.

    Raises:
        CorruptionError: it is missing, damaged, too large, or another table.
    """
    if record is None or record.num_bytes > MAX_TABLE_BYTES:
        listed = "not listed" if record is None else f"listed with {record.num_bytes:,} bytes"
        raise CorruptionError(f"{file} is {listed} by its manifest. {remedy}")
    try:
        # One byte more, so that a longer file differs from its record.
        data = file.read_prefix(record.num_bytes + 1)
    except NotFoundError as error:
        raise CorruptionError(f"{file} is missing. {remedy}") from error
    if FileRecord.of(data) != record:
        raise CorruptionError(f"{file} does not match its checksum. {remedy}")
    found = check_foreign_table(io.BytesIO(data), str(file), schema, num_rows, remedy)
    if found > MAX_IDS:
        raise CorruptionError(
            f"{file} has {found:,} rows; such a table has at most {MAX_IDS:,}. {remedy}"
        )
    try:
        return pl.read_parquet(io.BytesIO(data)), data
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise CorruptionError(f"{file} cannot be read: {_first_line(error)}. {remedy}") from error


def check_foreign_table(
    file: Path | io.BytesIO, name: str, schema: pl.Schema, num_rows: int | None, remedy: str
) -> int:
    """Check the headers of a Parquet file.

    Args:
        file: its path, or its bytes.
        name: for messages.
        schema: the names and types of the columns.
        num_rows: that it must have; None: any number.
        remedy: a sentence on what to do if it is damaged.

    Returns:
        The number of its rows.

    Raises:
        CorruptionError: it is no such table, or would take far more memory than its bytes.
    """
    if isinstance(file, Path):
        # Polars takes brackets in a path for a pattern.
        with file.open("rb") as opened:
            return _check(opened, name, schema, num_rows, remedy)
    return _check(file, name, schema, num_rows, remedy)


def _check(
    opened: BinaryIO, name: str, schema: pl.Schema, num_rows: int | None, remedy: str
) -> int:
    size = parquet_size(opened, name)
    stored = opened.seek(0, io.SEEK_END)
    opened.seek(0)
    if num_rows is not None and size.num_rows != num_rows:
        raise CorruptionError(
            f"{name} has {size.num_rows:,} rows; its manifest says {num_rows:,}. {remedy}"
        )
    if size.num_bytes > max(SMALL_BYTES, MOST_FROM_A_BYTE * stored):
        raise CorruptionError(
            f"{name} has {stored:,} bytes, but {size.num_bytes:,} uncompressed. {remedy}"
        )
    try:
        found = pl.read_parquet_schema(opened)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise CorruptionError(f"{name} cannot be read: {_first_line(error)}. {remedy}") from error
    if pl.Schema(found) != schema:
        raise CorruptionError(
            f"{name} has the columns {dict(found)}; expected {dict(schema)}. {remedy}"[:2_000]
        )
    opened.seek(0)
    return size.num_rows


def collected(table: pl.LazyFrame, name: str, remedy: str) -> pl.DataFrame:
    """What a query of a checked file gives; its pages may be damaged all the same.

    Args:
        table: the query.
        name: of the file, for messages.
        remedy: a sentence on what to do if it is damaged.

    Raises:
        CorruptionError: a page cannot be read.
    """
    try:
        return table.collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise CorruptionError(f"{name} cannot be read: {_first_line(error)}. {remedy}") from error


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(".")
