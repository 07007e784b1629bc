"""The positions of a fused dataset as a table, with the text of their tokens if it is wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fusestore.cache.table import NO_ENTRY, PositionTable
from fusestore.fuse.choices import KIND_NAMES
from fusestore.fuse.manifest import KIND_CODES
from fusestore.tokenizers.vocabulary import Vocabulary


def fused_table(
    rows: Mapping[str, npt.NDArray[Any]],
    windows: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64],
    sources: Sequence[str],
    vocabulary: Vocabulary | None,
    attributes: Mapping[str, str | int],
) -> PositionTable:
    """Consecutive positions; columns as `FusedDataset.to_polars` describes them.

    Args:
        rows: the arrays of the dataset by name, [n] and [n, k].
        windows: int64 [n], the window of each position.
        positions: int64 [n], its position in its document.
        sources: names of the recipe's sources.
        vocabulary: of the target; adds the text of ids. None adds none.
        attributes: of xarray's dataset.
    """
    values = {
        "window": windows,
        "document": rows["document"],
        "position": positions.astype(np.int32),
        "token_id": rows["input_ids"],
        "next_id": rows["next_ids"],
        "kind": rows["kind"].astype(np.int32),
        "source": rows["source"].astype(np.int32),
        "ids": rows["ids"],
        "logprobs": rows["logprobs"],
        "tail": rows["tail"],
        "known": rows["known"],
    }
    texts = {"token": "token_id", "next_token": "next_id", "tokens": "ids"}
    return PositionTable(
        values,
        rows["logprobs"] > -np.inf,
        rows["kind"] != KIND_CODES["none"],
        nulls={"ids": NO_ENTRY},
        names={"kind": KIND_NAMES, "source": tuple(sources)},
        texts={name: (ids, vocabulary) for name, ids in texts.items() if vocabulary is not None},
        coordinates=("window", "document", "position", "token_id", "token"),
        attributes=attributes,
    )


def positions_in_documents(documents: npt.NDArray[np.int32], first: int) -> npt.NDArray[np.int64]:
    """int64 [n]: the position of each token in its document.

    Args:
        documents: int32 [n], the document of each position; those of a document are consecutive.
        first: the position of the first token in its document.
    """
    indices = np.arange(len(documents))
    begins = np.diff(documents, prepend=documents[:1] - 1) != 0
    starts: npt.NDArray[np.int64] = np.maximum.accumulate(np.where(begins, indices, 0))
    return indices - starts + np.where(starts == 0, first, 0)
