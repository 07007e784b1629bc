"""`capture`: run one source model over a corpus and fill its distribution cache."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fusestore.cache.id_order import IdOrder
from fusestore.cache.manifest import CorpusIdentity, Fingerprint, ModelIdentity
from fusestore.cache.reader import Cache, open_cache
from fusestore.cache.writer import CacheWriter, stored_order
from fusestore.capture.batches import RowCapturer
from fusestore.capture.sample import order_of_sample, sample_tokens
from fusestore.capture.settings import CaptureSettings, wants_bos
from fusestore.capture.shard_queue import ShardQueue
from fusestore.corpus.build import Corpus
from fusestore.corpus.tokenize import corpus_tokens
from fusestore.errors import (
    FingerprintMismatchError,
    IncompatibleError,
    InvalidInputError,
    NonFiniteError,
    NotFoundError,
)
from fusestore.models.loading import (
    check_width,
    check_widths,
    load_model,
    local_model_folder,
    model_digest,
    pick_device,
)
from fusestore.models.precision import Dtype, choose_precision
from fusestore.process_rank import process_rank
from fusestore.progress import Progress, Reporter, SilentReporter
from fusestore.store.layout import Store
from fusestore.store.receipts import Receipt
from fusestore.tokenizers.token_table import TokenTable
from fusestore.tokenizers.tokenizer import Tokenizer, load_tokenizer
from fusestore.tokenizers.vocabulary_table import save_vocabulary


def capture(
    store: Store,
    corpus: Corpus,
    model: str,
    name: str,
    settings: CaptureSettings | None = None,
    reporter: Reporter | None = None,
    tokenizer: Tokenizer | None = None,
    redo: Mapping[int, Receipt | None] | None = None,
) -> tuple[Cache, bool]:
    """Fill the cache `name` with the distributions of `model` over the corpus.

    What is there already, from an earlier run that was stopped or from another process, is kept.
    Several processes that capture one cache divide its shards; each returns when it is complete.

    Args:
        store: where the cache goes.
        corpus: the documents, already segmented.
        model: folder, hub id, `.gguf` file or `package:NAME`.
        name: the cache's name.
        settings: what is kept and how the model runs.
        reporter: hears the progress.
        tokenizer: the model's, where it is loaded already.
        redo: shards to compute again whatever is there, each with the receipt that tells what must
            come out, where that is known; for repairs.

    Returns:
        The complete cache, and whether anything had to be computed.

    Raises:
        NotFoundError: no such model.
        InvalidInputError: k above the vocabulary, unknown dtype or device.
        IncompatibleError: model and tokenizer do not belong together, or a document is longer
            than the model's context.
        FingerprintMismatchError: a cache of this name was made with other settings.
        NonFiniteError: the model's logits are not finite and `on_nan` is `stop`.
    """
    settings = settings or CaptureSettings()
    reporter = reporter or SilentReporter()
    plan = plan_capture(store, corpus, model, name, settings, tokenizer)
    try:
        return _carry_out(store, corpus, plan, name, settings, reporter, redo)
    except FingerprintMismatchError:
        # Another writer, which chose another dtype, may have begun the cache meanwhile.
        adopted = _adopt_dtype(store, name, plan, settings)
        if adopted.fingerprint.dtype == plan.fingerprint.dtype:
            raise
        return _carry_out(store, corpus, adopted, name, settings, reporter, redo)


class CapturePlan(NamedTuple):
    """What a capture begins with.

    Attributes:
        folder: of the model.
        tokenizer: the model's.
        tokens: what the model reads.
        fingerprint: of the cache to make.
        dtype_reason: why its dtype is what it is; None where the settings say so.
    """

    folder: Path
    tokenizer: Tokenizer
    tokens: TokenTable
    fingerprint: Fingerprint
    dtype_reason: str | None


def plan_capture(
    store: Store,
    corpus: Corpus,
    model: str,
    name: str,
    settings: CaptureSettings,
    tokenizer: Tokenizer | None = None,
    *,
    keep_tokens: bool = True,
) -> CapturePlan:
    """Everything that is known before the model is loaded.

    Args:
        store: as for `capture`; so are those that follow.
        corpus: the documents.
        model: the model.
        name: the cache's name.
        settings: what is kept and how the model runs.
        tokenizer: the model's, where it is loaded already.
        keep_tokens: keep the tokens with the corpus; otherwise the store is left as it is.

    Raises:
        NotFoundError, InvalidInputError, IncompatibleError: see `capture`.
    """
    folder = local_model_folder(model, revision=settings.revision)
    tokenizer = tokenizer or load_tokenizer(
        str(folder), trust_remote_code=settings.trust_remote_code
    )
    add_bos = wants_bos(settings.bos, tokenizer.adds_bos, tokenizer.bos_id is not None)
    identity, context = _model_identity(folder, settings.trust_remote_code)
    if settings.top_k > identity.vocab_size:
        raise InvalidInputError(
            f"top_k is {settings.top_k}, but {name} has a vocabulary of {identity.vocab_size}. "
            f"Choose at most {identity.vocab_size}."
        )
    check_width(identity.vocab_size, len(tokenizer), name)
    tokens = corpus_tokens(store, corpus, tokenizer, add_bos, keep=keep_tokens)
    _check_lengths(tokens, context, name)
    dtype, reason = _settle_dtype(store, name, settings)
    fingerprint = Fingerprint(
        source=name,
        model=identity,
        tokenizer_digest=tokenizer.digest,
        tokenizer_length=len(tokenizer),
        corpus=CorpusIdentity(name=corpus.name, digest=corpus.manifest.digest),
        add_bos=add_bos,
        selection=settings.selection,
        top_k=settings.top_k,
        top_p=settings.top_p,
        seed=settings.rule.seed,
        profile=settings.profile,
        logprob_step=settings.grid,
        dtype=dtype,
        max_length=int(np.diff(tokens.document_offsets).max(initial=1)),
        on_nan=settings.on_nan,
        rows_per_shard=settings.rows_per_shard,
        rows_per_chunk=settings.rows_per_chunk,
        num_documents=tokens.num_documents,
        num_tokens=tokens.num_tokens,
    )
    return CapturePlan(folder, tokenizer, tokens, fingerprint, reason)


def _settle_dtype(store: Store, name: str, settings: CaptureSettings) -> tuple[Dtype, str | None]:
    """The dtype of a cache, and why it is that one where the settings leave it open."""
    if settings.dtype != "auto":
        return settings.dtype, None
    begun = _begun_dtype(store, name)
    if begun is not None:
        return begun, "this cache was begun with it"
    return choose_precision(pick_device(settings.device))


def _begun_dtype(store: Store, name: str) -> Dtype | None:
    """What the first writer of a cache settled; None where nothing is begun."""
    try:
        return Fingerprint.load(store.cache(name) / "fingerprint.json").dtype
    except NotFoundError:
        return None


def _adopt_dtype(
    store: Store, name: str, plan: CapturePlan, settings: CaptureSettings
) -> CapturePlan:
    """The plan in the dtype of the fingerprint that is there, if the settings leave it open."""
    dtype, reason = _settle_dtype(store, name, settings)
    fingerprint = plan.fingerprint.model_copy(update={"dtype": dtype})
    return plan._replace(fingerprint=fingerprint, dtype_reason=reason)


def say_dtype(plan: CapturePlan, name: str, reporter: Reporter) -> None:
    """Say which dtype was settled for a capture, and why, where the settings do not say it."""
    if plan.dtype_reason is not None:
        reporter.line(f"{name}: dtype {plan.fingerprint.dtype} ({plan.dtype_reason})")


def _carry_out(
    store: Store,
    corpus: Corpus,
    plan: CapturePlan,
    name: str,
    settings: CaptureSettings,
    reporter: Reporter,
    redo: Mapping[int, Receipt | None] | None,
) -> tuple[Cache, bool]:
    tokenizer, tokens, fingerprint = plan.tokenizer, plan.tokens, plan.fingerprint

    # On first use: a cache that is complete needs no model.
    @cache
    def load() -> Any:  # noqa: ANN401 - transformers is untyped
        say_dtype(plan, name, reporter)
        return load_planned(plan, settings, name)

    order = _order(store, name, fingerprint, tokens, settings, load, reporter)
    writer = CacheWriter.create(store, name, fingerprint, tokens, order)
    save_vocabulary(store, tokenizer.vocabulary)
    if writer.complete and not redo:
        writer.clear_up()
        return open_cache(store, name), False
    if redo or writer.missing_shards():
        capturer = RowCapturer(load(), tokens, settings.rule, settings.batch_size)
        with _shards(writer, redo, name, reporter) as shards:
            _fill(writer, shards, capturer, corpus, settings, name, reporter)
    if not writer.complete:
        label_logprob = writer.reader.label_logprob(0, tokens.num_tokens)
        skipped = skipped_documents(tokens, label_logprob)
        writer.finish(score_totals(corpus, tokens, label_logprob, skipped), skipped)
    writer.clear_up()
    return open_cache(store, name), True


def _order(
    store: Store,
    name: str,
    fingerprint: Fingerprint,
    tokens: TokenTable,
    settings: CaptureSettings,
    load: Callable[[], Any],
    reporter: Reporter,
) -> IdOrder | None:
    """How the cache's ids are numbered: as it was settled, or else by a sample of the rows."""
    if fingerprint.profile == "fast":
        return None
    order = stored_order(store, name, fingerprint)
    if order is not None:
        return order
    with reporter.stage(f"Sampling {name}", "tokens") as progress:
        return settle_order(load(), fingerprint, tokens, settings, progress)


def load_planned(plan: CapturePlan, settings: CaptureSettings, name: str) -> Any:  # noqa: ANN401 - transformers is untyped
    """The model, once its output is as wide as its configuration says.

    Raises:
        IncompatibleError: it is not.
    """
    loaded = load_model(
        plan.folder,
        dtype=plan.fingerprint.dtype,
        device=settings.device,
        attention=settings.attention,
        trust_remote_code=settings.trust_remote_code,
    )
    width = check_widths(loaded, len(plan.tokenizer), name)
    vocab_size = plan.fingerprint.model.vocab_size
    if width != vocab_size:
        raise IncompatibleError(
            f"The configuration of {name} says vocabulary {vocab_size:,}, but its output has "
            f"{width:,}. Correct vocab_size in the model folder's config.json."
        )
    return loaded


def settle_order(
    model: Any,  # noqa: ANN401
    fingerprint: Fingerprint,
    tokens: TokenTable,
    settings: CaptureSettings,
    progress: Progress,
) -> IdOrder:
    """The order of ids that suits the model's rows for a sample of the tokens."""
    sample = sample_tokens(tokens)
    capturer = RowCapturer(model, sample, settings.rule, settings.batch_size)
    # A document that is not finite says nothing here; with its shard it will be told.
    rows, _ = capturer.rows(0, sample.num_tokens, progress)
    return order_of_sample(fingerprint.model.vocab_size, tokens, rows)


@contextlib.contextmanager
def _shards(
    writer: CacheWriter,
    redo: Mapping[int, Receipt | None] | None,
    name: str,
    reporter: Reporter,
) -> Iterator[Iterable[int]]:
    """The shards to compute: those to do again, or the missing ones, shared with other writers."""
    if redo:
        writer.redo = dict(redo)
        yield sorted(redo)
        return
    rank, world_size = process_rank()
    with writer.claim_shards(
        first=rank * len(writer.plan) // world_size,
        waiting=lambda count: reporter.line(
            f"Waiting for other writers of {name}: {count} shards are theirs"
        ),
    ) as missing:
        yield missing


def skipped_documents(tokens: TokenTable, label_logprob: npt.NDArray[np.float32]) -> list[int]:
    """Documents without usable rows: they have a next token somewhere and no number for it.

    A document of one token predicts nothing and is never among them.
    """
    unknown = np.isnan(label_logprob)
    ends = tokens.document_offsets[1:] - 1
    unknown[ends[np.diff(tokens.document_offsets) > 0]] = False
    counts = np.concatenate([np.zeros(1, np.int64), np.cumsum(unknown)])
    per_document = counts[tokens.document_offsets[1:]] - counts[tokens.document_offsets[:-1]]
    return [int(index) for index in np.flatnonzero(per_document)]


def _fill(
    writer: CacheWriter,
    shards: Iterable[int],
    capturer: RowCapturer,
    corpus: Corpus,
    settings: CaptureSettings,
    name: str,
    reporter: Reporter,
) -> None:
    """Compute these shards, each of which is written while the next ones are computed.

    The next shard is asked for when the one before is computed, but perhaps not yet written.
    """
    total = writer.fingerprint.num_tokens
    done = writer.num_rows_finished
    with (
        reporter.stage(f"Capturing {name}", "tokens") as progress,
        ShardQueue(writer.write_shard) as queue,
    ):
        progress(done, total)
        for shard in shards:
            start, stop = writer.plan.bounds(shard)
            # What others have finished meanwhile is progress too.
            done = max(done, writer.num_rows_finished)
            rows, bad = capturer.rows(start, stop, _watched(queue, progress, done, total))
            if bad and settings.on_nan == "stop":
                raise NonFiniteError(_describe_bad(corpus, bad, name))
            if bad:
                reporter.line(_describe_bad(corpus, bad, name))
            queue.put(shard, rows)
            done += stop - start


def _watched(queue: ShardQueue, progress: Progress, base: int, total: int) -> Progress:
    """Progress of a part, told as progress of the whole; a failed write ends it."""

    def told(done: int, _part: int) -> None:
        queue.check()
        progress(base + done, total)

    return told


def _describe_bad(corpus: Corpus, documents: list[int], name: str) -> str:
    shown = ", ".join(f"{index} ({corpus.describe(index)})" for index in documents[:5])
    more = f" and {len(documents) - 5} more" if len(documents) > 5 else ""
    return (
        f"Model {name} gave logits that are not finite (NaN or infinite) for document "
        f"{shown}{more}. "
        "Try another dtype (--dtype float32), or --on-nan skip to leave such documents out."
    )


def _model_identity(folder: Path, trust_remote_code: bool) -> tuple[ModelIdentity, int | None]:
    """Who the model is, and its context length where its configuration tells."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{folder} has no usable configuration: {error}") from error
    text = config.get_text_config()
    architecture = (config.architectures or [type(config).__name__])[0]
    identity = ModelIdentity(
        spec_digest=model_digest(folder), architecture=architecture, vocab_size=int(text.vocab_size)
    )
    return identity, getattr(text, "max_position_embeddings", None)


def _check_lengths(tokens: TokenTable, context: int | None, name: str) -> None:
    lengths = np.diff(tokens.document_offsets)
    if context is None or len(lengths) == 0 or lengths.max() <= context:
        return
    longest = int(lengths.argmax())
    raise IncompatibleError(
        f"Document {longest} has {int(lengths[longest]):,} tokens, more than the context of {name} "
        f"({context:,}). Build the corpus with this model among its tokenizers and a max length of "
        f"at most {context:,}, so that long documents are split and none is cut."
    )


def score_totals(
    corpus: Corpus,
    tokens: TokenTable,
    label_logprob: npt.NDArray[np.float32],
    skipped: list[int],
) -> dict[str, float]:
    """For each split: predicted tokens, the bytes they stand for, and −Σ log p in nats."""
    left_out = set(skipped)
    totals: dict[str, float] = {}
    for split in corpus.manifest.splits:
        count, length, nats = 0, 0, 0.0
        for index in corpus.split_documents(split):
            start, stop = tokens.document_offsets[index], tokens.document_offsets[index + 1]
            if int(index) in left_out or stop - start < 2:
                continue
            count += int(stop - start - 1)
            length += int(tokens.end_offsets[stop - 1] - tokens.end_offsets[start])
            nats -= float(label_logprob[start : stop - 1].sum(dtype=np.float64))
        totals |= {
            f"{split}.predicted_tokens": float(count),
            f"{split}.predicted_bytes": float(length),
            f"{split}.nats": nats,
        }
    return totals
