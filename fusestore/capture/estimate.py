"""Estimates the bytes, time and money of a capture, from a sample of its documents.

The sample goes through the capture's own code: the model runs, rows are selected, and the cache's
writer encodes them into a store in memory. The sizes of its files and the measured times are
extrapolated by tokens: sizes per array, time by length of document, because a token of a long
document takes longer. Nothing is written to the store.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fusestore.cache.id_order import IdOrder
from fusestore.cache.kept_rows import KeptRows
from fusestore.cache.layout import cache_arrays
from fusestore.cache.manifest import Fingerprint, KeptSize
from fusestore.cache.rows import Rows
from fusestore.cache.writer import CacheWriter
from fusestore.capture.capture_plan import (
    CapturePlan,
    plan_capture,
    report_dtype,
    start_engine,
)
from fusestore.capture.engines.protocol import Engine
from fusestore.capture.row_capturer import RowCapturer
from fusestore.capture.run import settle_order
from fusestore.capture.settings import CaptureSettings
from fusestore.corpus.corpus import Corpus
from fusestore.errors import InvalidInputError, NonFiniteError
from fusestore.models.model import Model
from fusestore.progress import Reporter, SilentReporter, ignore_progress
from fusestore.storage.location import Location
from fusestore.store.arrays import ArraySpec
from fusestore.store.layout import Store
from fusestore.tokenizers.token_table import TokenTable

SAMPLE_TOKENS = {"cpu": 4_096}
SAMPLE_TOKENS_OF_ACCELERATOR = 65_536

NUM_STRATA = 4
"""Classes of documents by length, each with about a quarter of the corpus's tokens."""

METADATA = "metadata"
"""Key in `bytes_by_array` of everything that is not an array's data."""

_Documents = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Prices:
    """Prices in one currency; None if unknown.

    Attributes:
        per_hour: of the machine that captures.
        per_gb_month: of storage, for 10^9 bytes.
    """

    per_hour: float | None = None
    per_gb_month: float | None = None


@dataclass(frozen=True)
class CaptureEstimate:
    """The estimate of one capture.

    Attributes:
        num_documents, num_tokens: documents and tokens of the capture; counted, not estimated.
        num_rows: rows that are kept: of all tokens, or with `only` supervised of fewer.
        sampled_documents, sampled_tokens: documents and tokens that were run for the estimate.
        num_bytes: all files of the cache.
        bytes_by_array: the same by array, and `METADATA`.
        seconds: from the command's start to its end, without imports.
        seconds_by_step: `prepare` (reading the model's files, tokenizing), `load`, `sample` (of the
            order of ids), `capture`, and `write` (encoding and writing after the last forward
            pass).
        tokens_per_second: of the step `capture`.
        peak_memory_bytes: peak memory while sampling: of the accelerator if the model ran on one,
            else of this process.
        cost: of the machine's time, if its price is known.
        storage_cost_per_month: of the bytes, if their price is known.
    """

    num_documents: int
    num_tokens: int
    num_rows: int
    sampled_documents: int
    sampled_tokens: int
    num_bytes: int
    bytes_by_array: dict[str, int]
    seconds: float
    seconds_by_step: dict[str, float]
    tokens_per_second: float
    peak_memory_bytes: int
    cost: float | None
    storage_cost_per_month: float | None


def estimate_capture(
    store: Store,
    name: str,
    model: Model,
    corpus: Corpus,
    settings: CaptureSettings | None = None,
    *,
    prices: Prices | None = None,
    sample_tokens: int | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> CaptureEstimate:
    """Estimate what `capture` with the same arguments will take.

    Args:
        store: holds the corpus.
        name: the cache's name.
        model: the model.
        corpus: the documents.
        settings: of the capture.
        prices: of machine and storage.
        sample_tokens: tokens to capture, about; a larger sample makes the estimate better. The
            default takes some seconds.
        seed: draws the sampled documents.
        reporter: receives progress updates.

    Raises:
        NotFoundError, InvalidInputError, IncompatibleError, NonFiniteError: see `capture`.
    """
    settings = settings or CaptureSettings()
    reporter = reporter or SilentReporter()
    prices = prices or Prices()
    begun = time.perf_counter()
    plan = plan_capture(store, name, model, corpus, settings, keep_tokens=False)
    report_dtype(plan, name, reporter)
    prepared = time.perf_counter()
    tokens, fingerprint = plan.tokens, plan.fingerprint
    with (
        start_engine(plan, settings, name, reporter) as engine,
        reporter.stage(f"Sampling {name}", "tokens") as progress,
    ):
        ready = time.perf_counter()
        budget = sample_tokens or SAMPLE_TOKENS.get(engine.device, SAMPLE_TOKENS_OF_ACCELERATOR)
        bounds = plan.kept.rows_before(tokens.document_offsets)
        lengths = np.where(np.diff(bounds) > 0, np.diff(tokens.document_offsets), 0)
        sample = sample_documents(lengths, budget, seed)
        rates, rows, done = [], [], 0
        total = sum(int(lengths[stratum.documents].sum()) for stratum in sample)
        # The first pass of a model allocates and tunes, so its time is not measured.
        _capture(engine, plan, sample[0].documents, settings)
        began, order = time.perf_counter(), None
        if fingerprint.profile != "fast":
            order = settle_order(engine, plan, ignore_progress)
        sample_seconds = time.perf_counter() - began
        for stratum in sample:
            num_tokens = int(lengths[stratum.documents].sum())
            began = time.perf_counter()
            rows.append(_capture(engine, plan, stratum.documents, settings))
            rates.append((time.perf_counter() - began) / num_tokens)
            done += num_tokens
            progress(done, total)
    capture_seconds = sum(
        stratum.num_tokens * rate for stratum, rate in zip(sample, rates, strict=True)
    )
    documents = np.concatenate([stratum.documents for stratum in sample])
    sampled, kept = _take(plan, documents)
    sizes, encode_seconds = _encoded_sizes(fingerprint, sampled, kept, order, _join(rows))
    seconds = {
        "prepare": prepared - begun,
        "load": ready - prepared,
        "sample": sample_seconds,
        "capture": capture_seconds,
        "write": _write_seconds(fingerprint, encode_seconds / kept.num_rows, capture_seconds),
    }
    num_bytes, total_seconds = sum(sizes.values()), sum(seconds.values())
    return CaptureEstimate(
        num_documents=tokens.num_documents,
        num_tokens=tokens.num_tokens,
        num_rows=fingerprint.num_rows,
        sampled_documents=sampled.num_documents,
        sampled_tokens=sampled.num_tokens,
        num_bytes=num_bytes,
        bytes_by_array=sizes,
        seconds=total_seconds,
        seconds_by_step=seconds,
        tokens_per_second=tokens.num_tokens / capture_seconds,
        peak_memory_bytes=_peak_memory(engine.device),
        cost=None if prices.per_hour is None else prices.per_hour * total_seconds / 3600,
        storage_cost_per_month=(
            None if prices.per_gb_month is None else prices.per_gb_month * num_bytes / 1e9
        ),
    )


@dataclass(frozen=True)
class Stratum:
    """Documents of similar length.

    Attributes:
        documents: int64 [n] the sampled documents, rising.
        num_tokens: tokens of all its documents, sampled or not.
    """

    documents: _Documents
    num_tokens: int


def sample_documents(lengths: _Documents, budget: int, seed: int) -> list[Stratum]:
    """Draw documents of every length.

    Args:
        lengths: int64 [D] tokens of each document.
        budget: tokens to draw, about; at least one document of each stratum is drawn.
        seed: of the draw.

    Returns:
        Strata by falling length; together they have all tokens.

    Raises:
        InvalidInputError: no document has a token.
    """
    nonempty = np.flatnonzero(lengths)
    if len(nonempty) == 0:
        raise InvalidInputError("The corpus has no tokens: there is nothing to capture.")
    order = nonempty[np.argsort(-lengths[nonempty], kind="stable")]
    before = np.cumsum(lengths[order]) - lengths[order]
    stratum = before * NUM_STRATA // int(lengths.sum())
    generator = np.random.default_rng(seed)
    strata = []
    for number in np.unique(stratum):
        members = generator.permutation(order[stratum == number])
        taken = np.cumsum(lengths[members]) - lengths[members] < budget / NUM_STRATA
        strata.append(Stratum(np.sort(members[taken]), int(lengths[members].sum())))
    return strata


def _take(plan: CapturePlan, documents: _Documents) -> tuple[TokenTable, KeptRows]:
    """The tokens of some documents, and which have a row."""
    offsets = plan.tokens.document_offsets
    ranges = [(int(offsets[i]), int(offsets[i + 1])) for i in documents]
    return plan.tokens.take(documents), plan.kept.take(ranges)


def _capture(
    engine: Engine, plan: CapturePlan, documents: _Documents, settings: CaptureSettings
) -> Rows:
    tokens, kept = _take(plan, documents)
    capturer = RowCapturer(engine, tokens, settings.rule, kept)
    rows, bad = capturer.rows(0, kept.num_rows, ignore_progress)
    if bad and settings.on_nan == "stop":
        raise NonFiniteError(
            f"The model gave logits that are not finite (NaN or infinite) for {len(bad)} of "
            f"{tokens.num_documents} sampled documents. Try another dtype (--dtype float32), or "
            "--on-nan skip to leave such documents out."
        )
    return rows


def _join(parts: Sequence[Rows]) -> Rows:
    return Rows(*(np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])))


def _encoded_sizes(
    fingerprint: Fingerprint,
    tokens: TokenTable,
    kept: KeptRows,
    order: IdOrder | None,
    rows: Rows,
) -> tuple[dict[str, int], float]:
    """Bytes of the whole cache by array, and the seconds that writing the sample's rows took.

    Args:
        fingerprint: of the whole cache.
        tokens: the sample's.
        kept: which of these have a row.
        order: of the whole cache.
        rows: the sample's.
    """
    sizes: dict[str, object] = {
        "num_documents": tokens.num_documents,
        "num_tokens": tokens.num_tokens,
    }
    if fingerprint.kept is not None:
        sizes["kept"] = KeptSize(num_rows=kept.num_rows, num_runs=len(kept.runs))
    sample = fingerprint.model_copy(update=sizes)
    store = Store(Location.parse(f"memory://fusestore-estimate-{uuid.uuid4().hex}"))
    try:
        writer = CacheWriter.create(store, "sample", sample, tokens, order, kept)
        began = time.perf_counter()
        for shard in range(len(sample.plan)):
            start, stop = sample.plan.bounds(shard)
            writer.write_shard(shard, Rows(*(values[start:stop] for values in vars(rows).values())))
        seconds = time.perf_counter() - began
        written = writer.location.sizes()
    finally:
        store.location.delete()
    return _extrapolate(written, sample, fingerprint), seconds


def _extrapolate(
    written: dict[str, int], sample: Fingerprint, whole: Fingerprint
) -> dict[str, int]:
    """Bytes of the whole cache by array, from the sizes of a sample's files.

    An array's data grows with its rows, chunk indices with the number of files, receipts with the
    number of shards.
    """
    arrays, wholes = (
        {spec.name: spec for spec in (*arrays.per_shard, *arrays.fixed)}
        for arrays in (cache_arrays(sample), cache_arrays(whole))
    )
    sizes = {}
    for name, spec in arrays.items():
        index = 0 if spec.shard_shape is None else spec.index_bytes
        data = sum(size for path, size in written.items() if path.startswith(f"{name}/c/"))
        data -= index * spec.num_files
        ratio = _stored_rows(wholes[name]) / _stored_rows(spec)
        sizes[name] = round(data * ratio) + index * wholes[name].num_files
    receipts = sum(size for path, size in written.items() if path.startswith("receipts/0"))
    others = sum(size for path, size in written.items() if "/c/" not in path) - receipts
    manifest = len(whole.to_bytes())
    sizes[METADATA] = others + manifest + receipts * len(whole.plan) // len(sample.plan)
    return sizes


def _stored_rows(spec: ArraySpec) -> int:
    """Rows that take space: a raw chunk is padded to its full size, a compressed chunk is not."""
    rows, chunk = spec.shape[0], spec.chunk_shape[0]
    return -(-rows // chunk) * chunk if spec.codec == "raw" else rows


def _write_seconds(
    fingerprint: Fingerprint, seconds_per_row: float, capture_seconds: float
) -> float:
    """Seconds of writing after the last forward pass; before, shards are written in parallel."""
    start, stop = fingerprint.plan.bounds(len(fingerprint.plan) - 1)
    total = seconds_per_row * fingerprint.num_rows
    return max(seconds_per_row * (stop - start), total - capture_seconds)


def _peak_memory(device: str) -> int:
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak if sys.platform == "darwin" else peak * 1024
