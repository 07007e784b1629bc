"""`capture`: run one source model over a corpus and write its distribution cache."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache

from fusestore.cache.id_order import IdOrder
from fusestore.cache.manifest import Fingerprint
from fusestore.cache.reader import Cache, open_cache
from fusestore.cache.writer import CacheWriter, clear_up, has_tokens, stored_order
from fusestore.capture.audit import audit
from fusestore.capture.capture_plan import (
    CapturePlan,
    adopt_dtype,
    plan_capture,
    report_dtype,
    start_engine,
)
from fusestore.capture.engines.protocol import Engine
from fusestore.capture.row_capturer import RowCapturer
from fusestore.capture.sample import order_of_sample, sample_tokens
from fusestore.capture.score_totals import score_totals, skipped_documents
from fusestore.capture.settings import CaptureSettings
from fusestore.capture.shard_queue import ShardQueue
from fusestore.corpus.corpus import Corpus
from fusestore.corpus.unspelled import describe_unspelled
from fusestore.errors import FingerprintMismatchError, NonFiniteError, NotFoundError
from fusestore.models.model import Model
from fusestore.progress import Progress, Reporter, SilentReporter
from fusestore.store.fingerprints import check_same_fingerprint
from fusestore.store.layout import Store
from fusestore.store.licenses import License
from fusestore.store.receipts import Receipt
from fusestore.store.result import StageResult
from fusestore.tokenizers.vocabulary_table import keep_vocabulary


def capture(
    store: Store,
    name: str,
    model: Model,
    corpus: Corpus,
    settings: CaptureSettings | None = None,
    *,
    reporter: Reporter | None = None,
    redo: Mapping[int, Receipt | None] | None = None,
) -> StageResult[Cache]:
    """Capture the distributions of a model over a corpus into the cache `name`.

    Shards of an earlier, interrupted run or of another process are kept. Several processes that
    capture one cache divide its shards; each returns when the cache is complete. For a complete
    cache, neither the model nor a remembered tokenizer is loaded.

    Args:
        store: receives the cache.
        name: the cache's name.
        model: the model.
        corpus: the documents, already segmented.
        settings: which entries are kept, and how the model runs. With `tensor_parallel` all
            processes that torchrun started call this together, and rank 0 alone writes.
        reporter: receives progress updates.
        redo: for repairs: shards to compute again even if they exist, each with the receipt that
            the new bytes must match, or None. The other files of a complete cache are checked too,
            and written again if they are damaged, even if the mapping is empty.

    Returns:
        The complete cache. It was created unless it was complete before.

    Raises:
        NotFoundError: no such model.
        InvalidInputError: k above the vocabulary, unknown dtype or device.
        IncompatibleError: a document has a token that the model lacks, or more tokens than its
            context; or the model's rows depend on more than the tokens up to them.
        FingerprintMismatchError: a cache of this name was made with other settings.
        NonFiniteError: the model's logits are not finite and `on_nan` is `stop`.
        EngineError: with `tensor_parallel`, another process failed.
    """
    settings = settings or CaptureSettings()
    reporter = reporter or SilentReporter()

    def own() -> StageResult[Cache]:
        return _capture(store, name, model, corpus, settings, reporter, redo)

    if not settings.tensor_parallel:
        return own()
    from fusestore.capture.together import capture_together

    return capture_together(store, name, model, corpus, settings, own)


def _capture(
    store: Store,
    name: str,
    model: Model,
    corpus: Corpus,
    settings: CaptureSettings,
    reporter: Reporter,
    redo: Mapping[int, Receipt | None] | None,
) -> StageResult[Cache]:
    plan = plan_capture(store, name, model, corpus, settings)
    if redo is None:
        complete = _complete(store, name, plan)
        if complete is not None:
            _check_license(complete, name, settings, reporter)
            return StageResult(complete, created=False)
    try:
        return _carry_out(store, name, plan, corpus, settings, reporter, redo)
    except FingerprintMismatchError:
        # Another writer may have begun the cache meanwhile, with another dtype.
        adopted = adopt_dtype(store, name, plan, settings)
        if adopted.fingerprint.dtype == plan.fingerprint.dtype:
            raise
        return _carry_out(store, name, adopted, corpus, settings, reporter, redo)


def _check_license(
    complete: Cache, name: str, settings: CaptureSettings, reporter: Reporter
) -> None:
    """Tell that a complete cache keeps its license, if another one was named."""
    named, kept = License.of(settings.license, "user"), complete.manifest.license
    if named is not None and (kept is None or (named.id, named.name) != (kept.id, kept.name)):
        reporter.line(
            f"{name} is complete and keeps its license ({kept or 'unknown'}). Name another one "
            f"when you publish it: `fusestore publish --license cache/{name}={named.id}`."
        )


def _complete(store: Store, name: str, plan: CapturePlan) -> Cache | None:
    """The cache if it is complete, else None.

    Raises:
        FingerprintMismatchError: it was made with other settings.
        CorruptionError: its manifest or its fingerprint is damaged.
    """
    location = store.cache(name)
    if not (location / "manifest.json").exists():
        return None
    complete = open_cache(store, name)
    try:
        fingerprint = Fingerprint.load(location / "fingerprint.json")
    except NotFoundError:
        # The writer makes the lost file again.
        return None
    check_same_fingerprint(fingerprint, plan.fingerprint, f"Cache {name!r} ({location})")
    if not has_tokens(location, plan.fingerprint):
        return None
    keep_vocabulary(store, plan.model.tokenizer)
    # A writer that died after writing the manifest left its leases.
    clear_up(location)
    return complete


def _carry_out(
    store: Store,
    name: str,
    plan: CapturePlan,
    corpus: Corpus,
    settings: CaptureSettings,
    reporter: Reporter,
    redo: Mapping[int, Receipt | None] | None,
) -> StageResult[Cache]:
    with contextlib.ExitStack() as running:
        # On first use, because a repair of other files than shards needs no model.
        @cache
        def engine() -> Engine:
            report_dtype(plan, name, reporter)
            return running.enter_context(start_engine(plan, settings, name, reporter))

        return _write(store, name, plan, corpus, settings, engine, reporter, redo)


def _write(
    store: Store,
    name: str,
    plan: CapturePlan,
    corpus: Corpus,
    settings: CaptureSettings,
    engine: Callable[[], Engine],
    reporter: Reporter,
    redo: Mapping[int, Receipt | None] | None,
) -> StageResult[Cache]:
    tokens, fingerprint, kept = plan.tokens, plan.fingerprint, plan.kept
    if name not in store.names("caches"):
        # A model that is refused leaves no cache that was begun.
        engine()
    order = _order(store, name, plan, engine, reporter)
    writer = CacheWriter.create(store, name, fingerprint, tokens, order, kept)
    keep_vocabulary(store, plan.model.tokenizer)
    if writer.complete and not redo:
        clear_up(writer.location)
        return StageResult(open_cache(store, name), created=False)
    if redo or writer.missing_shards():
        unspelled = describe_unspelled(corpus, plan.model.tokenizer)
        if unspelled:
            reporter.line(f"{name}: {unspelled}")
        capturer = RowCapturer(engine(), tokens, settings.rule, kept)
        with _shards(writer, redo, name, reporter) as shards:
            _write_shards(writer, shards, capturer, corpus, settings, name, reporter)
    if not writer.complete:
        label_logprob = writer.reader.label_logprob(0, tokens.num_tokens)
        skipped = skipped_documents(tokens, label_logprob, kept)
        totals = score_totals(corpus, tokens, label_logprob, skipped)
        audited = audit(writer, plan, settings, engine, skipped, name, reporter)
        model = plan.model
        found = License.of(settings.license, "user") or model.license
        writer.finish(totals, skipped, model.portable_spec, audited, found)
    clear_up(writer.location)
    return StageResult(open_cache(store, name), created=True)


def _order(
    store: Store,
    name: str,
    plan: CapturePlan,
    engine: Callable[[], Engine],
    reporter: Reporter,
) -> IdOrder | None:
    """The stored order of ids, or else an order from a sample of the rows."""
    if plan.fingerprint.profile == "fast":
        return None
    order = stored_order(store, name, plan.fingerprint)
    if order is not None:
        return order
    with reporter.stage(f"Sampling {name}", "tokens") as progress:
        return settle_order(engine(), plan, progress)


def settle_order(engine: Engine, plan: CapturePlan, progress: Progress) -> IdOrder:
    """The order of ids that suits the model's rows for a sample of the tokens."""
    fingerprint = plan.fingerprint
    sample, kept = sample_tokens(plan.tokens, plan.kept)
    capturer = RowCapturer(engine, sample, fingerprint.rule, kept)
    # A document that is not finite is ignored here, and reported with its shard.
    rows, _ = capturer.rows(0, kept.num_rows, progress)
    return order_of_sample(fingerprint.model.vocab_size, plan.tokens, rows, plan.kept)


@contextlib.contextmanager
def _shards(
    writer: CacheWriter,
    redo: Mapping[int, Receipt | None] | None,
    name: str,
    reporter: Reporter,
) -> Iterator[Iterable[int]]:
    """The shards to compute: those of `redo`, or the missing shards, divided with other writers."""
    if redo:
        writer.redo = dict(redo)
        yield sorted(redo)
        return
    with writer.lease_shards(
        waiting=lambda count: reporter.line(
            f"Waiting for other writers of {name}, which hold {count} shards"
        ),
    ) as missing:
        yield missing


def _write_shards(
    writer: CacheWriter,
    shards: Iterable[int],
    capturer: RowCapturer,
    corpus: Corpus,
    settings: CaptureSettings,
    name: str,
    reporter: Reporter,
) -> None:
    """Compute these shards, and write each while the next shards are computed.

    The next shard is requested when the last shard is computed, but perhaps not yet written.
    """
    total = writer.fingerprint.num_rows
    unit = "tokens" if writer.fingerprint.kept is None else "rows"
    done = writer.num_rows_finished
    with (
        reporter.stage(f"Capturing {name}", unit) as progress,
        ShardQueue(writer.write_shard) as queue,
    ):
        progress(done, total)
        for shard in shards:
            start, stop = writer.plan.bounds(shard)
            # Shards of other writers count as progress too.
            done = max(done, writer.num_rows_finished)
            rows, bad = capturer.rows(start, stop, _shard_progress(queue, progress, done, total))
            if bad and settings.on_nan == "stop":
                raise NonFiniteError(_describe_bad(corpus, bad, name))
            if bad:
                reporter.line(_describe_bad(corpus, bad, name))
            queue.put(shard, rows)
            done += stop - start


def _shard_progress(queue: ShardQueue, progress: Progress, base: int, total: int) -> Progress:
    """Reports progress of a shard as progress of the cache; raises the error of a failed write."""

    def report(done: int, _total_of_shard: int) -> None:
        queue.check()
        progress(base + done, total)

    return report


def _describe_bad(corpus: Corpus, documents: list[int], name: str) -> str:
    shown = ", ".join(f"{index} ({corpus.describe(index)})" for index in documents[:5])
    more = f" and {len(documents) - 5} more" if len(documents) > 5 else ""
    return (
        f"Model {name} gave logits that are not finite (NaN or infinite) for document "
        f"{shown}{more}. "
        "Try another dtype (--dtype float32), or --on-nan skip to leave such documents out."
    )
