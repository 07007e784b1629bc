"""Rows of positions as a table: of Polars, of Arrow, or as xarray's dataset.

A `PositionTable` holds what a cache, a fused dataset or an alignment says of consecutive positions,
as plain arrays. Its three forms hold the same numbers. Token ids come with their text where a
vocabulary is given; bytes that are no characters are shown in hexadecimal.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import polars as pl

from fusestore.cache.rows import Rows
from fusestore.errors import InvalidInputError, MissingDependencyError
from fusestore.store.codec import counts_of
from fusestore.tokenizers.vocabulary import Vocabulary

if TYPE_CHECKING:
    import pyarrow as pa
    import xarray as xr

LARGEST_TABLE = 2**32
"""Bytes of the largest table that is made without a limit of its positions."""

NO_ENTRY = -1
"""Id of an entry that a row does not have, in arrays; tables leave it out."""

_BYTES_OF_COLUMNS, _BYTES_OF_ENTRY, _BYTES_OF_TEXT = 72, 8, 16
"""Of a position, of each of its entries, and of each text, which short ones do not exceed."""


@dataclass(frozen=True)
class PositionTable:
    """n positions, with k entries each.

    Attributes:
        values: columns in order: [n], or [n, k] of entries. NaN is a null in tables.
        kept: bool [n, k], which entries a row has; None without entries.
        present: bool [n], which positions have a row; None for all.
        nulls: of columns of integers, the number that stands for no value; 0 for entries unless
            named.
        names: of columns of codes, the names that codes are indices of; a negative code has none.
        texts: further columns, of the text of ids: the column of the ids, and their vocabulary.
        coordinates: the columns that say where a position is.
        attributes: what xarray's dataset says of itself.
    """

    values: Mapping[str, npt.NDArray[Any]]
    kept: npt.NDArray[np.bool_] | None = None
    present: npt.NDArray[np.bool_] | None = None
    nulls: Mapping[str, int] = field(default_factory=dict)
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    texts: Mapping[str, tuple[str, Vocabulary]] = field(default_factory=dict)
    coordinates: Sequence[str] = ()
    attributes: Mapping[str, str | int] = field(default_factory=dict)

    def to_polars(self) -> pl.DataFrame:
        """One line a position: entries as lists, null where there is no row."""
        return pl.DataFrame(
            {name: self._series(name, values) for name, values in self.values.items()}
            | {name: self._text_series(*ids) for name, ids in self.texts.items()}
        )

    def to_arrow(self) -> pa.Table:
        """The same table, with types that readers of before string views know.

        Raises:
            MissingDependencyError: pyarrow is not installed.
        """
        try:
            importlib.import_module("pyarrow")
        except ImportError as error:
            raise _missing("pyarrow", "An Arrow table") from error
        return self.to_polars().to_arrow(compat_level=pl.CompatLevel.oldest())

    def to_xarray(self) -> xr.Dataset:
        """The same numbers over `position` and `entry`.

        Where tables have a null or no entry: NaN, the number of `nulls`, an empty text, and −inf
        for log-probabilities of entries.

        Raises:
            MissingDependencyError: xarray is not installed.
        """
        try:
            import xarray as xr
        except ImportError as error:
            raise _missing("xarray", "An xarray dataset") from error
        arrays = {name: self._array(name, values) for name, values in self.values.items()}
        for name, (ids, vocabulary) in self.texts.items():
            texts = np.array([*_texts(vocabulary), ""], object)
            arrays[name] = texts[_known(self._read(ids), len(vocabulary))]
        if self.present is not None:
            arrays["has_row"] = self.present
        # A coordinate of the dimension's name would be an index, and positions are not unique.
        dimensions = ("position", "entry")
        variables = {
            "document_position" if name == "position" else name: (dimensions[: values.ndim], values)
            for name, values in arrays.items()
        }
        coordinates = {
            name: variables.pop(name)
            for name in list(variables)
            if {name, name.removeprefix("document_")} & set(self.coordinates)
        }
        return xr.Dataset(variables, coordinates, dict(self.attributes))

    def _read(self, name: str) -> npt.NDArray[Any]:
        """A column of integers, with the number of `nulls` for entries that are not kept."""
        values = self.values[name]
        if self.kept is None or values.ndim == 1:
            return values
        return np.where(self.kept, values, self.nulls.get(name, 0))

    def _array(self, name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if name in self.names:
            named: npt.NDArray[np.str_] = np.array([*self.names[name], ""])[values]
            return named
        if values.ndim == 1 or values.dtype.kind == "f":
            return values
        return self._read(name)

    def _series(self, name: str, values: npt.NDArray[Any]) -> pl.Series:
        if name in self.names:
            kind = pl.Enum(self.names[name])
            names = pl.Series([*self.names[name], None], dtype=kind)
            return names.gather(_known(values, len(names) - 1))
        series = pl.Series(name, values.reshape(-1))
        if values.ndim == 2:
            return self._lists(series)
        if name in self.nulls:
            return series.replace(self.nulls[name], None)
        return series.fill_nan(None) if values.dtype.kind == "f" else series

    def _text_series(self, ids: str, vocabulary: Vocabulary) -> pl.Series:
        texts = pl.Series([*_texts(vocabulary), None], dtype=pl.String)
        values = self._read(ids)
        series = texts.gather(_known(values.reshape(-1), len(vocabulary)))
        return series if values.ndim == 1 else self._lists(series)

    def _lists(self, values: pl.Series) -> pl.Series:
        """The kept values of k values per row, as one list per row; null where none is present."""
        if self.kept is None:
            raise InvalidInputError("A table of entries says which of them are kept.")
        num_rows, k = self.kept.shape
        if not num_rows:
            return pl.Series([], dtype=pl.List(values.dtype))
        counts = self.kept.sum(axis=1)
        if not (self.kept == (np.arange(k) < counts[:, None])).all():
            # Rows by falling log-probability end with what is not kept.
            order = np.argsort(~self.kept, axis=1, kind="stable")
            values = values.gather((order + np.arange(num_rows)[:, None] * k).reshape(-1))
        frame = pl.DataFrame({"value": values.reshape((num_rows, k)).arr.to_list()})
        lists = pl.col("value")
        if (counts < k).any():
            frame = frame.with_columns(count=counts)
            lists = lists.list.head("count")
        if self.present is not None:
            frame = frame.with_columns(present=self.present)
            lists = pl.when("present").then(lists)
        return frame.select(lists).to_series()


def cache_table(
    rows: Rows,
    first: int,
    offsets: npt.NDArray[np.int64],
    tokens: tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]],
    has_row: npt.NDArray[np.bool_],
    vocabulary: Vocabulary | None,
    *,
    draws: int | None,
    attributes: Mapping[str, str | int],
) -> PositionTable:
    """A cache's rows as the table that `Cache.to_polars` describes.

    Args:
        rows: n rows of k entries, from the beginning of a document on.
        first: index of the first row in the cache.
        offsets: int64 [documents + 1], the first row of each document.
        tokens: ids and end offsets, int32 [n] each.
        has_row: bool [n], whether the cache has the row.
        vocabulary: adds the text of ids; None adds none.
        draws: of each row, where rows are samples; None elsewhere.
        attributes: of xarray's dataset.
    """
    token_ids, end_offsets = tokens
    indices = np.arange(first, first + len(rows))
    documents = np.searchsorted(offsets, indices, side="right") - 1
    positions = (indices - offsets[documents]).astype(np.int32)
    starts = np.concatenate([np.zeros(1, np.int32), end_offsets])[:-1]
    values: dict[str, npt.NDArray[Any]] = {
        "document": documents.astype(np.int32),
        "position": positions,
        "token_id": token_ids,
        "start_offset": np.where(positions == 0, np.int32(0), starts),
        "end_offset": end_offsets,
        "ids": rows.ids,
        "logprobs": rows.logprobs,
        "tail": rows.tail,
        "label_logprob": rows.label_logprob,
    }
    kept = np.isfinite(rows.logprobs)
    if draws is not None:
        values["counts"] = counts_of(rows.logprobs, draws).astype(np.int32)
    texts = {"token": "token_id", "tokens": "ids"} if vocabulary is not None else {}
    return PositionTable(
        values,
        kept,
        has_row,
        nulls={"ids": NO_ENTRY},
        texts={name: (ids, vocabulary) for name, ids in texts.items() if vocabulary is not None},
        coordinates=("document", "position", "token_id", "start_offset", "end_offset", "token"),
        attributes=attributes,
    )


def table_bytes(k: int, *, decode: bool) -> int:
    """About how many bytes a position takes in a table with k entries each."""
    return _BYTES_OF_COLUMNS + k * _BYTES_OF_ENTRY + decode * (k + 1) * _BYTES_OF_TEXT


def positions_of_documents(
    offsets: npt.NDArray[np.int64],
    documents: int | range | None,
    limit: int | None,
    num_bytes: int,
    place: str,
) -> tuple[int, int]:
    """The positions `[start, stop)` of the documents that a table is made of.

    Args:
        offsets: int64 [D + 1], the first position of each document.
        documents: one index, consecutive indices, or None for all.
        limit: most positions; None: as many as fit a table of `LARGEST_TABLE` bytes.
        num_bytes: bytes of a position in the table.
        place: what has the documents, for messages.

    Raises:
        InvalidInputError: no such documents, or too large a table.
    """
    first, last = consecutive(documents, len(offsets) - 1, "document", place)
    start, stop = int(offsets[first]), int(offsets[last])
    return start, limited(start, stop, limit, num_bytes, place)


def consecutive(wanted: int | range | None, count: int, what: str, place: str) -> tuple[int, int]:
    """The indices `[first, last)` that an argument of a table names, of `count`.

    Raises:
        InvalidInputError: they are not consecutive, or there are no such.
    """
    if wanted is None:
        return 0, count
    try:
        # NumPy's integers are indices too.
        asked = wanted if isinstance(wanted, range) else range(index(wanted), index(wanted) + 1)
    except TypeError:
        asked = range(0, 0, 2)
    if asked.step != 1:
        raise InvalidInputError(
            f"{what.capitalize()}s of a table are one index or consecutive ones, as in "
            f"range(0, 10), not {wanted!r}."
        )
    wrong = [each for each in (*asked[:1], *asked[-1:]) if not 0 <= each < count]
    if wrong:
        held = f"{what}s are 0 to {count - 1}" if count else f"it has no {what}s"
        raise InvalidInputError(f"There is no {what} {wrong[0]} in {place}; {held}.")
    return (asked.start, asked.stop) if asked else (0, 0)


def limited(start: int, stop: int, limit: int | None, num_bytes: int, place: str) -> int:
    """Where the positions `[start, stop)` of a table end if they are limited.

    Raises:
        InvalidInputError: a negative limit, or without one a table of more than `LARGEST_TABLE`.
    """
    if limit is not None:
        if limit < 0:
            raise InvalidInputError(f"A table has 0 positions or more; its limit was {limit}.")
        return min(stop, start + limit)
    size = (stop - start) * num_bytes
    if size > LARGEST_TABLE:
        raise InvalidInputError(
            f"A table of {stop - start:,} positions of {place} takes about {size / 1e9:,.0f} GB of "
            f"memory, and more while it is made. Name a part of it, or as many positions as you "
            f"want with limit=, at most {LARGEST_TABLE // num_bytes:,} of them by default."
        )
    return stop


def _texts(vocabulary: Vocabulary) -> list[str]:
    """The text of every token id; bytes that are no characters in hexadecimal."""
    return [token.decode("utf-8", "backslashreplace") for token in vocabulary.token_bytes]


def _known(ids: npt.NDArray[Any], count: int) -> npt.NDArray[np.uint32]:
    """The ids; those that no token has, padding and `NO_ENTRY`, become `count`."""
    return np.where((ids < 0) | (ids > count), count, ids).astype(np.uint32)


def _missing(package: str, wanted: str) -> MissingDependencyError:
    return MissingDependencyError(
        f"{wanted} needs the package {package}, which is not installed. Install it with "
        "`pip install 'fusestore[notebook]'`; to_polars needs nothing more."
    )
