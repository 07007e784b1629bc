"""The unmatched tokens of an alignment as a Polars table."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from fusestore.align.stored import Alignment
from fusestore.errors import CorruptionError
from fusestore.store.foreign_table import read_foreign_table
from fusestore.tokenizers.vocabulary import Vocabulary

UNMATCHED_FILE = "unmatched.parquet"

UNMATCHED_SCHEMA = pl.Schema(
    {
        "side": pl.Enum(("source", "target")),
        "token_id": pl.Int32(),
        "bytes": pl.Binary(),
        "text": pl.String(),
        "unmatched": pl.Int64(),
        "total": pl.Int64(),
    }
)
"""One row per token id with unmatched occurrences: by side, then by falling number of these."""


def unmatched_table(
    counts: dict[str, tuple[Vocabulary, npt.NDArray[np.int64], npt.NDArray[np.int64]]],
) -> pl.DataFrame:
    """The unmatched tokens; see `UNMATCHED_SCHEMA`.

    Args:
        counts: by side: the vocabulary, and int64 [V] unmatched and all occurrences of every id.
    """
    tables = [pl.DataFrame(schema=UNMATCHED_SCHEMA)]
    for side, (vocabulary, unmatched, total) in counts.items():
        ids = np.flatnonzero(unmatched)
        ids = ids[np.argsort(-unmatched[ids], kind="stable")]
        tokens = [vocabulary.token_bytes[i] for i in ids]
        tables.append(
            pl.DataFrame(
                {
                    "side": [side] * len(ids),
                    "token_id": ids.astype(np.int32),
                    "bytes": tokens,
                    "text": [token.decode("utf-8", "backslashreplace") for token in tokens],
                    "unmatched": unmatched[ids],
                    "total": total[ids],
                },
                schema=UNMATCHED_SCHEMA,
            )
        )
    return pl.concat(tables)


def read_unmatched(alignment: Alignment) -> pl.DataFrame:
    """The stored table of unmatched tokens; see `UNMATCHED_SCHEMA`.

    Raises:
        CorruptionError: it is missing or damaged.
    """
    record = alignment.manifest.files.get(UNMATCHED_FILE)
    file = alignment.location / UNMATCHED_FILE
    table, _ = read_foreign_table(file, record, UNMATCHED_SCHEMA, None, _REPAIR)
    counts = table.select("unmatched", "total", "token_id")
    sane = (counts["unmatched"] > 0) & (counts["unmatched"] <= counts["total"])
    if sum(table.null_count().row(0)) or not (sane & (counts["token_id"] >= 0)).all():
        raise CorruptionError(f"{file} holds numbers that cannot be counts. {_REPAIR}")
    return table


_REPAIR = "Delete the alignment's manifest.json and run `fusestore align` again."
