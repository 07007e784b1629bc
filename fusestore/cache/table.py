"""A cache's rows as a Polars table, with token ids or with their text."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from fusestore.cache.rows import Rows
from fusestore.tokenizers.vocabulary import Vocabulary


def rows_table(
    rows: Rows,
    first: int,
    offsets: npt.NDArray[np.int64],
    token_ids: npt.NDArray[np.int32],
    end_offsets: npt.NDArray[np.int32],
    has_row: npt.NDArray[np.bool_],
    vocabulary: Vocabulary | None,
) -> pl.DataFrame:
    """A cache's rows as the table that `Cache.to_polars` describes.

    Args:
        rows: n rows of k entries.
        first: index of the first row in the cache.
        offsets: int64 [documents + 1], the first row of each document.
        token_ids: int32 [n].
        end_offsets: int32 [n], in bytes.
        has_row: bool [n], whether the cache has the row.
        vocabulary: adds the text of ids; None adds none.
    """
    indices = np.arange(first, first + len(rows))
    documents = np.searchsorted(offsets, indices, side="right") - 1
    ids = pl.Series("ids", rows.ids.reshape(-1), dtype=pl.Int32)
    logprobs = pl.Series("logprobs", rows.logprobs.reshape(-1), dtype=pl.Float32)
    present = pl.Series(has_row)
    kept = pl.Series(np.isfinite(rows.logprobs).reshape(-1))
    columns: dict[str, pl.Series] = {
        "document": pl.Series(documents, dtype=pl.Int32),
        "position": pl.Series(indices - offsets[documents], dtype=pl.Int32),
        "token_id": pl.Series(token_ids, dtype=pl.Int32),
        "end_offset": pl.Series(end_offsets, dtype=pl.Int32),
        "ids": _lists(ids, kept, present),
        "logprobs": _lists(logprobs, kept, present),
        "tail": pl.Series(rows.tail, dtype=pl.Float32).fill_nan(None),
        "label_logprob": pl.Series(rows.label_logprob, dtype=pl.Float32).fill_nan(None),
    }
    if vocabulary is not None:
        texts = _texts(vocabulary)
        columns["token"] = texts.gather(_known(token_ids, texts))
        entries = texts.gather(_known(rows.ids.reshape(-1), texts))
        columns["tokens"] = _lists(entries, kept, present)
    return pl.DataFrame(columns)


def _lists(values: pl.Series, kept: pl.Series, present: pl.Series) -> pl.Series:
    """The kept values of k values per row, as one list per row; null where none is present."""
    num_rows = len(present)
    if not num_rows:
        return pl.Series([], dtype=pl.List(values.dtype))
    row = pl.Series(np.repeat(np.arange(num_rows), len(values) // num_rows))
    # A row that keeps nothing is an empty list, not a missing row.
    frame = pl.DataFrame({"row": row, "value": values, "kept": kept})
    grouped = frame.group_by("row", maintain_order=True).agg(pl.col("value").filter(pl.col("kept")))
    return grouped.select(pl.when(present).then("value")).to_series()


def _texts(vocabulary: Vocabulary) -> pl.Series:
    """The text of every token id, then a null; bytes that are no characters in hexadecimal."""
    texts = [token.decode("utf-8", "backslashreplace") for token in vocabulary.token_bytes]
    return pl.Series([*texts, None], dtype=pl.String)


def _known(ids: npt.NDArray[np.int32], texts: pl.Series) -> pl.Series:
    """The ids; padding ids, which no token has, become the index of the last text, a null."""
    return pl.Series(np.minimum(ids, len(texts) - 1), dtype=pl.UInt32)
