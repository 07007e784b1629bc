"""Export to DistillKit's samples: all entries as exact float32, without a polynomial."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import yaml

from fusestore.cache.reader import Cache
from fusestore.interop.distillkit import CONFIG_FILE
from fusestore.interop.distillkit_codec import CompressionConfig, pack
from fusestore.interop.export import cached_documents, refuse_samples
from fusestore.progress import Progress

_DOCUMENTS_PER_FILE = 256

_SCHEMA = pl.Schema(
    {
        "input_ids": pl.List(pl.UInt64()),
        "compressed_logprobs": pl.List(pl.List(pl.UInt8())),
        "bytepacked_indices": pl.List(pl.List(pl.UInt8())),
    }
)


def export_distillkit(cache: Cache, path: Path, progress: Progress) -> None:
    """A folder with `compression_config.yaml` and `data_{i}.parquet`.

    Row i is for token i + 1; the last token has none. Missing entries and rows are −inf. Tail and
    labels' log-probabilities are left out.
    """
    refuse_samples(cache, "distillkit")
    k = cache.k
    config = CompressionConfig(
        d=max(cache.fingerprint.tokenizer_length + 1, cache.fingerprint.model.vocab_size),
        k=k,
        exact_k=k,
        residual_bins=[],
        delta_encoding=False,
    )
    path.mkdir()
    content = yaml.safe_dump(config.model_dump(mode="json"))
    (path / CONFIG_FILE).write_text(content, encoding="utf-8")
    records: list[dict[str, object]] = []
    file = 0
    for document in cached_documents(cache, progress):
        rows, count = document.rows, len(document.token_ids) - 1
        if not document.has_row[:count].any():
            continue
        values = np.ascontiguousarray(rows.logprobs[:count], "<f4").view(np.uint8)
        records.append(
            {
                "input_ids": document.token_ids.tolist(),
                "compressed_logprobs": values.reshape(count, -1).tolist(),
                "bytepacked_indices": pack(
                    rows.ids[:count].astype(np.int64), config.id_bits
                ).tolist(),
            }
        )
        if len(records) == _DOCUMENTS_PER_FILE:
            _write(path, file, records)
            records, file = [], file + 1
    if records or not file:
        _write(path, file, records)


def _write(path: Path, file: int, records: list[dict[str, object]]) -> None:
    frame = pl.DataFrame(records, schema=_SCHEMA)
    frame.write_parquet(path / f"data_{file}.parquet", compression="zstd")
