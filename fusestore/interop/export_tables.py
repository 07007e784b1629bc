"""Exports to tables: Parquet, a folder as `datasets` saves it, and axolotl's records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from fusestore.cache.reader import Cache
from fusestore.interop.export import (
    CachedDocument,
    cached_documents,
    refuse_samples,
    rows_for_tokens,
)
from fusestore.progress import Progress

_TOKENS_AT_ONCE = 2**17
"""Tokens of a row group or a batch: whole documents up to about this many."""


def export_parquet(cache: Cache, path: Path, progress: Progress) -> None:
    """One Parquet file, a document a row.

    Columns: document int32; input_ids list [n]; ids list [n] of lists; logprobs the same, by
    falling log-probability, null without a row; tail list [n], null where it is not known;
    label_logprob list [n], null where it is not known.
    """
    _write_parquet(path, _frames(cache, progress, _record_of_all))


def export_axolotl(cache: Cache, path: Path, progress: Progress) -> None:
    """One Parquet file as axolotl's second version reads it.

    Columns: input_ids, attention_mask, labels, and for the last m tokens logprobs and
    target_token_ids, lists [m] of lists [k]. Tail and labels' log-probabilities are left out.
    """
    refuse_samples(cache, "axolotl")
    _write_parquet(path, _frames(cache, progress, _record_for_axolotl))


def export_datasets(cache: Cache, path: Path, progress: Progress) -> None:
    """A folder that `datasets.load_from_disk` opens, with the columns of `export_parquet`."""
    path.mkdir()
    frame = pl.concat(list(_frames(cache, progress, _record_of_all)))
    file = "data-00000-of-00001.arrow"
    # Compatible with readers of before string views.
    frame.write_ipc_stream(path / file, compat_level=pl.CompatLevel.oldest())
    lists = {"input_ids": "int32", "tail": "float32", "label_logprob": "float32"}
    nested = {"ids": "int32", "logprobs": "float32"}
    features: dict[str, Any] = {"document": _value("int32")}
    features |= {name: _list(_value(dtype)) for name, dtype in lists.items()}
    features |= {name: _list(_list(_value(dtype))) for name, dtype in nested.items()}
    info = {
        "citation": "",
        "description": "",
        "features": {name: features[name] for name in frame.columns},
        "homepage": "",
        "license": "",
    }
    state: dict[str, Any] = {
        "_data_files": [{"filename": file}],
        "_fingerprint": hashlib.sha256(cache.digest.encode()).hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (path / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    (path / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def _value(dtype: str) -> dict[str, str]:
    return {"dtype": dtype, "_type": "Value"}


def _list(feature: dict[str, Any]) -> dict[str, Any]:
    return {"feature": feature, "_type": "LargeList"}


_ALL = pl.Schema(
    {
        "document": pl.Int32(),
        "input_ids": pl.List(pl.Int32()),
        "ids": pl.List(pl.List(pl.Int32())),
        "logprobs": pl.List(pl.List(pl.Float32())),
        "tail": pl.List(pl.Float32()),
        "label_logprob": pl.List(pl.Float32()),
    }
)
_FOR_AXOLOTL = pl.Schema(
    {
        "input_ids": pl.List(pl.Int64()),
        "attention_mask": pl.List(pl.Int8()),
        "labels": pl.List(pl.Int64()),
        "logprobs": pl.List(pl.List(pl.Float32())),
        "target_token_ids": pl.List(pl.List(pl.Int64())),
    }
)


def _record_of_all(cache: Cache, document: CachedDocument) -> dict[str, Any] | None:
    del cache
    rows, has_row = document.rows, document.has_row
    return {
        "document": document.index,
        "input_ids": document.token_ids.tolist(),
        "ids": _lists(rows.ids, rows.logprobs, has_row),
        "logprobs": _lists(rows.logprobs, rows.logprobs, has_row),
        "tail": _known(rows.tail),
        "label_logprob": _known(rows.label_logprob),
    }


def _record_for_axolotl(cache: Cache, document: CachedDocument) -> dict[str, Any] | None:
    first, last = rows_for_tokens(cache, document, "axolotl")
    if first == last:
        return None
    rows, ids = document.rows, document.token_ids.tolist()
    part, has_row = slice(first, last), np.ones(last - first, np.bool_)
    return {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        "labels": ids,
        "logprobs": _lists(rows.logprobs[part], rows.logprobs[part], has_row),
        "target_token_ids": _lists(rows.ids[part], rows.logprobs[part], has_row),
    }


_SCHEMAS = {_record_of_all: _ALL, _record_for_axolotl: _FOR_AXOLOTL}


def _frames(cache: Cache, progress: Progress, record_of: Any) -> Iterator[pl.DataFrame]:  # noqa: ANN401
    schema = _SCHEMAS[record_of]
    records: list[dict[str, Any]] = []
    tokens = 0
    for document in cached_documents(cache, progress):
        record = record_of(cache, document)
        if record is not None:
            records.append(record)
            tokens += len(document.token_ids)
        if tokens >= _TOKENS_AT_ONCE:
            yield pl.DataFrame(records, schema=schema)
            records, tokens = [], 0
    yield pl.DataFrame(records, schema=schema)


def _write_parquet(path: Path, frames: Iterator[pl.DataFrame]) -> None:
    pl.concat(list(frames)).write_parquet(path, compression="zstd", row_group_size=256)


def _lists(
    values: npt.NDArray[Any], logprobs: npt.NDArray[np.float32], has_row: npt.NDArray[np.bool_]
) -> list[list[Any] | None]:
    """The entries of each row; None without a row."""
    counts = (logprobs > -np.inf).sum(axis=1).tolist()
    return [
        row[:count] if kept else None
        for row, count, kept in zip(values.tolist(), counts, has_row.tolist(), strict=True)
    ]


def _known(values: npt.NDArray[np.float32]) -> list[float | None]:
    return [None if each != each else each for each in values.tolist()]
