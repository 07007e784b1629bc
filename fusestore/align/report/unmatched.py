"""The unmatched tokens of an alignment as a Polars table."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import polars as pl

from fusestore.align.stored import Alignment
from fusestore.errors import CorruptionError, NotFoundError
from fusestore.store.receipts import FileRecord
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
    file = alignment.location / UNMATCHED_FILE
    try:
        data = file.read_bytes()
    except NotFoundError as error:
        raise CorruptionError(f"{file} is missing. {_REPAIR}") from error
    if FileRecord.of(data) != alignment.manifest.files.get(UNMATCHED_FILE):
        raise CorruptionError(f"{file} does not match its checksum. {_REPAIR}")
    return pl.read_parquet(io.BytesIO(data))


_REPAIR = "Delete the alignment's manifest.json and run `fusestore align` again."
