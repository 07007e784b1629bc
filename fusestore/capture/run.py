"""`capture`: run one source model over a corpus and fill its distribution cache."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fusestore.cache.manifest import CorpusIdentity, Fingerprint, ModelIdentity
from fusestore.cache.reader import Cache, open_cache
from fusestore.cache.writer import CacheWriter
from fusestore.capture.batches import RowCapturer
from fusestore.capture.models import (
    check_width,
    check_widths,
    load_model,
    local_model_folder,
    model_digest,
)
from fusestore.capture.settings import CaptureSettings, wants_bos
from fusestore.corpus.build import Corpus
from fusestore.corpus.tokenize import corpus_tokens
from fusestore.corpus.tokenizers import Tokenizer, load_tokenizer
from fusestore.corpus.tokens import TokenTable
from fusestore.corpus.vocabulary_table import save_vocabulary
from fusestore.errors import IncompatibleError, InvalidInputError, NonFiniteError
from fusestore.progress import Progress, Reporter, SilentReporter
from fusestore.storage.codec import frequency_ranks
from fusestore.storage.shards import Receipt
from fusestore.storage.store import Store


def capture(
    store: Store,
    corpus: Corpus,
    model: str,
    name: str,
    settings: CaptureSettings | None = None,
    reporter: Reporter | None = None,
    tokenizer: Tokenizer | None = None,
) -> tuple[Cache, bool]:
    """Fill the cache `name` with the distributions of `model` over the corpus.

    What is there already, from an earlier run that was stopped or from another process, is kept.

    Args:
        store: where the cache goes.
        corpus: the documents, already segmented.
        model: folder, hub id, `.gguf` file or `package:NAME`.
        name: the cache's name.
        settings: what is kept and how the model runs.
        reporter: hears the progress.
        tokenizer: the model's, where it is loaded already.

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
    return _carry_out(store, corpus, plan, name, settings, reporter)


class CapturePlan(NamedTuple):
    """What a capture begins with.

    Attributes:
        folder: of the model.
        tokenizer: the model's.
        tokens: what the model reads.
        fingerprint: of the cache to make.
    """

    folder: Path
    tokenizer: Tokenizer
    tokens: TokenTable
    fingerprint: Fingerprint


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
    fingerprint = Fingerprint(
        source=name,
        model=identity,
        tokenizer_digest=tokenizer.digest,
        tokenizer_length=len(tokenizer),
        corpus=CorpusIdentity(name=corpus.name, digest=corpus.manifest.digest),
        add_bos=add_bos,
        top_k=settings.top_k,
        logprob_step=settings.logprob_step,
        dtype=settings.dtype,
        max_length=int(np.diff(tokens.document_offsets).max(initial=1)),
        on_nan=settings.on_nan,
        rows_per_shard=settings.rows_per_shard,
        rows_per_chunk=settings.rows_per_chunk,
        num_documents=tokens.num_documents,
        num_tokens=tokens.num_tokens,
    )
    return CapturePlan(folder, tokenizer, tokens, fingerprint)


def _carry_out(
    store: Store,
    corpus: Corpus,
    plan: CapturePlan,
    name: str,
    settings: CaptureSettings,
    reporter: Reporter,
) -> tuple[Cache, bool]:
    folder, tokenizer, tokens, fingerprint = plan
    identity = fingerprint.model
    writer = CacheWriter.create(
        store, name, fingerprint, tokens, frequency_ranks(tokens.token_ids, identity.vocab_size)
    )
    save_vocabulary(store, tokenizer.vocabulary)
    if writer.complete:
        return open_cache(store, name), False
    missing = writer.missing_shards()
    if missing:
        loaded = load_model(
            folder,
            dtype=settings.dtype,
            device=settings.device,
            attention=settings.attention,
            trust_remote_code=settings.trust_remote_code,
        )
        width = check_widths(loaded, len(tokenizer), name)
        if width != identity.vocab_size:
            raise IncompatibleError(
                f"The configuration of {name} says vocabulary {identity.vocab_size:,}, but its "
                f"output has {width:,}. Correct vocab_size in the model folder's config.json."
            )
        capturer = RowCapturer(loaded, tokens, settings.top_k, settings.batch_size)
        _fill(writer, missing, capturer, corpus, tokens, settings, name, reporter)
    label_logprob = writer.reader.label_logprob(0, tokens.num_tokens)
    skipped = skipped_documents(tokens, label_logprob)
    writer.finish(_score_totals(corpus, tokens, label_logprob, skipped), skipped)
    return open_cache(store, name), True


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
    missing: list[int],
    capturer: RowCapturer,
    corpus: Corpus,
    tokens: TokenTable,
    settings: CaptureSettings,
    name: str,
    reporter: Reporter,
) -> None:
    """Compute and write the missing shards, writing one while the next is computed."""
    bounds = [writer.plan.bounds(shard) for shard in missing]
    total = sum(stop - start for start, stop in bounds)
    already = tokens.num_tokens - total
    written: Future[Receipt] | None = None
    with (
        reporter.stage(f"Capturing {name}", "tokens") as progress,
        ThreadPoolExecutor(max_workers=1) as background,
    ):
        done = already
        progress(done, tokens.num_tokens)
        for shard, (start, stop) in zip(missing, bounds, strict=True):
            base = done
            rows, bad = capturer.rows(start, stop, _offset(progress, base, tokens.num_tokens))
            if bad and settings.on_nan == "stop":
                raise NonFiniteError(_describe_bad(corpus, bad, name))
            if bad:
                reporter.line(_describe_bad(corpus, bad, name))
            if written is not None:
                written.result()
            written = background.submit(writer.write_shard, shard, rows)
            done += stop - start
        if written is not None:
            written.result()


def _offset(progress: Progress, base: int, total: int) -> Progress:
    """Progress of a part, told as progress of the whole."""
    return lambda done, _part: progress(base + done, total)


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


def _score_totals(
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
