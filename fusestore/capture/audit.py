"""The audit of a capture: some of its documents, computed once more by another way.

Checks of single rows find what cannot be right. They cannot find rows that are right for other
tokens: those of another request, after a BOS or a chat template that was added silently, or at
another temperature. An audit computes a sample of documents with transformers where the model can
be loaded here, or else with the engine itself, alone and in another order, and compares.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import psutil

from fusestore.cache.kept_rows import KeptRows
from fusestore.cache.manifest import DEFAULT_ENGINE, Audit, AuditVerdict
from fusestore.cache.rows import Rows
from fusestore.cache.rule import Rule
from fusestore.cache.writer import CacheWriter
from fusestore.capture.capture_plan import CapturePlan, reference_engine
from fusestore.capture.engines.engine_registry import engine_capabilities
from fusestore.capture.engines.protocol import Engine
from fusestore.capture.row_capturer import RowCapturer
from fusestore.capture.settings import CaptureSettings
from fusestore.errors import EngineError, FusestoreError
from fusestore.models.weight_files import weight_files
from fusestore.progress import Reporter, ignore_progress
from fusestore.tokenizers.token_table import TokenTable

SHARE = 0.001
"""Share of the documents in an audit."""

MIN_DOCUMENTS = 8

EQUAL_NATS = 1e-3
"""Largest difference of a label's log-probability that float32 rounding explains."""

_BYTES_TO_LOAD = 3
"""Memory of a model in float32, its loading included, as a multiple of its files."""


def audit(
    writer: CacheWriter,
    plan: CapturePlan,
    settings: CaptureSettings,
    engine: Callable[[], Engine],
    skipped: list[int],
    name: str,
    reporter: Reporter,
) -> Audit | None:
    """Compare a sample of a cache whose shards are written with a second computation.

    Args:
        writer: of the cache.
        plan: of the capture.
        settings: of the capture; `audit` says by what, `audit_limit` how much may differ.
        engine: the engine of the capture.
        skipped: documents without rows.
        name: of the cache.
        reporter: receives a line with the result.

    Returns:
        The figures; None for the reference engine itself, or if `audit` is off.

    Raises:
        EngineError: more differs than the settings allow. The cache stays incomplete.
    """
    if settings.engine == DEFAULT_ENGINE or settings.audit == "off":
        return None
    documents = audited_documents(plan.tokens, skipped, plan.kept)
    if len(documents) == 0:
        return None
    sample = plan.tokens.take(documents)
    offsets = plan.tokens.document_offsets
    kept = plan.kept.take([(int(offsets[i]), int(offsets[i + 1])) for i in documents])
    reference, rows = _second_rows(plan, settings, engine, sample, kept, name, reporter)
    bounds = plan.kept.rows_before(offsets)
    first = [writer.reader.kept_rows(int(bounds[i]), int(bounds[i + 1])) for i in documents]
    rows_of = kept.rows_before(sample.document_offsets)
    result = compare(reference, first, rows, rows_of, settings.audit_limit)
    reporter.line(f"{name}: audit by {reference}: {describe_audit(result)}")
    if result.verdict == "different":
        worst = int(documents[result.worst_document])
        raise EngineError(
            f"The rows of cache {name!r} are not those of its model: {describe_audit(result)}; "
            f"worst in document {worst}. At most {settings.audit_limit:g} nats are allowed. "
            "Another request's rows, a BOS or a chat template that the server adds, a temperature, "
            "other weights or strong quantization look like this. Correct the server, delete the "
            f"cache (fusestore rm cache/{name}) and capture again; or allow it with --audit-limit."
        )
    return result.model_copy(update={"worst_document": int(documents[result.worst_document])})


def audited_documents(
    tokens: TokenTable, skipped: list[int], kept: KeptRows | None = None
) -> npt.NDArray[np.int64]:
    """Int64 [n], rising: evenly spread documents that have a label and were not skipped.

    A label is the next token of a kept row; None keeps all.
    """
    kept = KeptRows.all(tokens.num_tokens) if kept is None else kept
    first, stop = tokens.document_offsets[:-1], tokens.document_offsets[1:]
    # A document's last token has no next one.
    has_label = kept.rows_before(stop - 1) > kept.rows_before(first)
    usable = np.setdiff1d(np.flatnonzero(has_label), skipped)
    count = min(len(usable), max(MIN_DOCUMENTS, round(SHARE * len(usable))))
    return usable[np.arange(count) * len(usable) // max(count, 1)].astype(np.int64)


def compare(
    reference: str,
    first: list[Rows],
    second: Rows,
    offsets: npt.NDArray[np.int64],
    limit: float,
) -> Audit:
    """Figures of how far two computations of some documents are apart.

    Args:
        reference: what computed the second rows.
        first: the stored rows of each document.
        second: the rows of all documents.
        offsets: int64 [n + 1]: document i is rows `[value[i], value[i + 1])` of `second`.
        limit: nats by which the labels of a document may differ in the mean.
    """
    means, largest, shared, counts = [], 0.0, [], []
    for index, rows in enumerate(first):
        start, stop = int(offsets[index]), int(offsets[index + 1])
        # The last row of a whole document has no label.
        has_label = ~np.isnan(rows.label_logprob)
        moved = np.abs(rows.label_logprob - second.label_logprob[start:stop])[has_label]
        counts.append(len(moved))
        # Rows that were skipped in one computation only are as far apart as can be.
        moved = np.nan_to_num(moved.astype(np.float64), nan=float(np.finfo(np.float32).max))
        means.append(float(moved.mean()))
        largest = max(largest, float(moved.max()))
        present = rows.logprobs > -np.inf
        same = (rows.ids[:, :, None] == second.ids[start:stop, None, :]) & (
            second.logprobs[start:stop, None, :] > -np.inf
        )
        shared.append((same.any(axis=2) & present).sum() / max(1, present.sum()))
    worst = int(np.argmax(means))
    verdict: AuditVerdict = "equal" if largest <= EQUAL_NATS else "noise"
    if means[worst] > limit:
        verdict = "different"
    return Audit(
        reference=reference,
        num_documents=len(first),
        num_rows=int(offsets[-1]),
        label_nats=float(np.average(means, weights=counts)),
        largest_label_nats=largest,
        worst_document=worst,
        worst_document_nats=means[worst],
        shared_entries=float(np.mean(shared)),
        limit_nats=limit,
        verdict=verdict,
    )


def describe_audit(result: Audit) -> str:
    """One line of its figures."""
    return (
        f"{result.verdict}: log-probabilities of next tokens in {result.num_documents} documents "
        f"differ by {result.label_nats:.2g} nats in the mean, {result.worst_document_nats:.2g} in "
        f"the mean of the worst document, {result.largest_label_nats:.2g} at most; "
        f"{result.shared_entries:.1%} of the entries are the same"
    )


def _second_rows(
    plan: CapturePlan,
    settings: CaptureSettings,
    engine: Callable[[], Engine],
    sample: TokenTable,
    kept: KeptRows,
    name: str,
    reporter: Reporter,
) -> tuple[str, Rows]:
    """What computed the second rows, and the rows of all documents of the sample."""
    if settings.audit == "transformers" or (settings.audit == "auto" and _fits_here(plan)):
        try:
            with reference_engine(plan, settings, name, reporter) as reference:
                return DEFAULT_ENGINE, _rows(reference, sample, kept, plan.fingerprint.rule)
        except (FusestoreError, RuntimeError, MemoryError) as error:
            # torch's own error when memory runs out is a RuntimeError.
            if settings.audit == "transformers":
                raise
            reporter.line(f"{name}: transformers cannot audit it: {error}")
    return settings.engine, _rows(engine(), sample, kept, plan.fingerprint.rule)


def _rows(engine: Engine, sample: TokenTable, kept: KeptRows, rule: Rule) -> Rows:
    """One document after the other, the last first: another order, and no other in its batch."""
    parts = []
    for index in reversed(range(sample.num_documents)):
        alone = sample.take(np.array([index]))
        start, stop = sample.document_offsets[index : index + 2].tolist()
        own = kept.take([(start, stop)])
        capturer = RowCapturer(engine, alone, rule, own)
        parts.append(capturer.rows(0, own.num_rows, ignore_progress)[0])
    parts.reverse()
    return Rows(
        ids=np.concatenate([rows.ids for rows in parts]),
        logprobs=np.concatenate([rows.logprobs for rows in parts]),
        tail=np.concatenate([rows.tail for rows in parts]),
        label_logprob=np.concatenate([rows.label_logprob for rows in parts]),
    )


def _fits_here(plan: CapturePlan) -> bool:
    """Whether the model's weights are here, and fit into this machine's memory."""
    if engine_capabilities(plan.fingerprint.engine).gguf:
        # They would have to be dequantized first.
        return False
    files = weight_files(plan.model.description)
    if not files or not all(file.is_file() for file in files):
        return False
    size = sum(file.stat().st_size for file in files)
    return bool(size * _BYTES_TO_LOAD < psutil.virtual_memory().available)
