"""What a cache that does not keep every row saves: rows, bytes, and work of the model."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from fusestore.cache.layout import cache_arrays
from fusestore.cache.manifest import TOKENS_PART, Fingerprint
from fusestore.cache.reader import Cache
from fusestore.capture.engines.engine_registry import engine_capabilities
from fusestore.store.manifest import Frozen
from fusestore.store.receipts import Receipt, receipt_path


class KeptSummary(Frozen):
    """What a cache takes that keeps rows of supervised tokens only, and what all rows would take.

    Attributes:
        num_tokens: tokens of the corpus; with all rows, each has one.
        num_rows: rows that are kept.
        tokens_read: tokens that the model read: of each document those up to the one that the last
            kept row predicts.
        rows_computed: rows for which the output head ran. More than `num_rows` where the engine
            computes a row for every token that the model reads.
        num_bytes: of the cache.
        bytes_of_all_rows: about what it would take with all rows, by the bytes of those it has.
    """

    num_tokens: int = Field(ge=1)
    num_rows: int = Field(ge=1)
    tokens_read: int = Field(ge=1)
    rows_computed: int = Field(ge=1)
    num_bytes: int = Field(ge=0)
    bytes_of_all_rows: int = Field(ge=0)

    def describe(self) -> str:
        """All of it, in a sentence."""

        def share(count: int) -> str:
            return f"{count / self.num_tokens:.1%}"

        return (
            f"Only supervised rows are kept, {share(self.num_rows)} of {self.num_tokens:,}: "
            f"{self.num_bytes:,} bytes, where all rows would take about "
            f"{self.bytes_of_all_rows:,}. The model read {share(self.tokens_read)} of the tokens, "
            f"and its output head ran for {share(self.rows_computed)}."
        )


def kept_summary(cache: Cache) -> KeptSummary | None:
    """What a cache saves; None if it keeps all rows. Reads its offsets, runs and one receipt."""
    fingerprint, manifest = cache.fingerprint, cache.manifest
    if fingerprint.kept is None:
        return None
    start, stop = cache.document_offsets[:-1], cache.document_offsets[1:]
    runs = cache.kept.runs
    has_rows = cache.kept.rows_before(stop) > cache.kept.rows_before(start)
    # The run in which a document's last kept row lies.
    last = np.minimum(runs[np.searchsorted(runs[:, 0], stop) - 1, 1], stop)
    read = np.minimum(last + 1, stop) - start
    tokens_read = int(read[has_rows].sum())
    only = engine_capabilities(fingerprint.engine).wanted_rows_only
    tokens_part = Receipt.load(cache.location / receipt_path(TOKENS_PART)).num_bytes
    of_rows = manifest.num_bytes - tokens_part - _index_bytes(fingerprint)
    whole = fingerprint.model_copy(update={"only": "all", "kept": None})
    scale = fingerprint.num_tokens / fingerprint.num_rows
    return KeptSummary(
        num_tokens=fingerprint.num_tokens,
        num_rows=fingerprint.num_rows,
        tokens_read=tokens_read,
        rows_computed=fingerprint.num_rows if only else tokens_read,
        num_bytes=manifest.num_bytes,
        bytes_of_all_rows=tokens_part + round(of_rows * scale) + _index_bytes(whole),
    )


def _index_bytes(fingerprint: Fingerprint) -> int:
    """Bytes of a cache's rows that depend on the number of files alone: indices of chunks."""
    return sum(spec.index_bytes * spec.num_files for spec in cache_arrays(fingerprint).per_shard)
