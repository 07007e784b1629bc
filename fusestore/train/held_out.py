"""Scores of a model on held-out documents, without building all logits of a batch.

Tokens of different tokenizers cannot be compared, bytes can: so the unit is bits per byte of the
text that the predicted tokens stand for.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from fusestore.corpus.corpus import open_corpus, supervision_of
from fusestore.corpus.tokenize import corpus_tokens
from fusestore.errors import InvalidInputError, NonFiniteError
from fusestore.models.loading import context_length
from fusestore.models.logits import logit_chunks, pad_batch
from fusestore.models.precision import PrecisionSetting, choose_precision
from fusestore.progress import Reporter
from fusestore.store.layout import Store
from fusestore.tokenizers.token_table import TokenTable
from fusestore.tokenizers.tokenizer import Tokenizer


class HeldOut(NamedTuple):
    """How well a model predicts documents.

    Attributes:
        bits_per_byte: −Σ log2 p(next token) / bytes of the predicted tokens.
        nats_per_token: mean of −log p(next token).
        num_tokens: predicted tokens.
        num_bytes: bytes that the predicted tokens stand for.
    """

    bits_per_byte: float
    nats_per_token: float
    num_tokens: int
    num_bytes: int


def bits_per_byte(
    model: Any,  # noqa: ANN401 - transformers is untyped
    tokens: TokenTable,
    *,
    max_length: int = 1024,
    batch_tokens: int = 4096,
    precision: PrecisionSetting = "float32",
    progress: Callable[[int], None] | None = None,
) -> HeldOut:
    """Score every document; see `document_nats` for the arguments.

    A document's first token is not predicted, and its bytes are not counted; with BOS it is the
    BOS, which has no bytes. Of marked tokens only those that count are scored.

    Raises:
        InvalidInputError: no token of the documents can be predicted.
        NonFiniteError: the model gives NaN for a document.
    """
    nats = document_nats(
        model,
        tokens,
        max_length=max_length,
        batch_tokens=batch_tokens,
        precision=precision,
        progress=progress,
    )
    offsets = tokens.document_offsets
    documents = np.flatnonzero(np.diff(offsets) > 0)
    first, last = offsets[documents], offsets[documents + 1] - 1
    num_bytes = int((tokens.end_offsets[last] - tokens.end_offsets[first]).sum(dtype=np.int64))
    num_tokens = tokens.num_tokens - len(documents)
    if tokens.counted_bytes is not None:
        num_bytes = int(np.maximum(tokens.counted_bytes, 0).sum(dtype=np.int64))
        num_tokens = int(tokens.is_counted.sum())
    if num_tokens == 0 or num_bytes == 0:
        raise InvalidInputError(
            f"{tokens.num_documents} documents with {tokens.num_tokens} tokens hold no token to "
            "predict. Evaluate on a split with a document of two tokens or more."
        )
    total = math.fsum(nats.tolist())
    return HeldOut(total / math.log(2) / num_bytes, total / num_tokens, num_tokens, num_bytes)


def document_nats(
    model: Any,  # noqa: ANN401
    tokens: TokenTable,
    *,
    max_length: int = 1024,
    batch_tokens: int = 4096,
    precision: PrecisionSetting = "float32",
    progress: Callable[[int], None] | None = None,
) -> npt.NDArray[np.float64]:
    """−Σ log p(token i + 1 | tokens 0..i) of each document, over tokens that count, float64 [D].

    Args:
        model: a causal language model; its mode is restored afterwards.
        tokens: D documents of the model's own token ids.
        max_length: longer documents are read in windows of this many tokens, without the text
            before; the window before predicts the first token of a window. Where a document begins
            with BOS, each of its windows does.
        batch_tokens: padded tokens per forward pass.
        precision: `bfloat16` runs the model under autocast, `auto` where its device has bfloat16
            in hardware; log-softmax is float32 always.
        progress: receives the number of tokens of every forward pass.

    Raises:
        NonFiniteError: the model gives NaN; the document is named.
    """
    length = min(max_length, context_length(model.config.get_text_config()) or max_length)
    nats = np.zeros(tokens.num_documents, np.float64)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), autocast(model.device, precision):
            for batch in _batches(tokens, length, batch_tokens):
                per_window = _window_nats(model, batch)
                for window, value in zip(batch, per_window, strict=True):
                    if not math.isfinite(value):
                        raise NonFiniteError(
                            f"The model gives {value} for document {window.document}; nothing was "
                            "stored. Use precision 'float32', or check the model's weights."
                        )
                    nats[window.document] += value
                if progress is not None:
                    progress(sum(len(window.input_ids) - window.lead for window in batch))
    finally:
        model.train(was_training)
    return nats


def autocast(
    device: torch.device, precision: PrecisionSetting
) -> contextlib.AbstractContextManager[Any]:
    """The context to run a model in: bfloat16 matrix products, or no autocast."""
    if precision == "auto":
        precision = choose_precision(str(device)).value
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def held_out_tokens(store: Store, tokenizer: Tokenizer, corpus_name: str, split: str) -> TokenTable:
    """The tokens of a split's documents, by a model's own tokenizer; those that count are marked.

    Raises:
        NotFoundError: the store has no such corpus.
        InvalidInputError: the corpus has no such split.
    """
    corpus = open_corpus(store, corpus_name)
    documents = corpus.split_documents(split)
    tokens = corpus_tokens(store, corpus, tokenizer, tokenizer.adds_bos).take(documents)
    supervision = supervision_of(corpus)
    return tokens if supervision is None else supervision.mark(tokens, documents)


def score(
    held_out: TokenTable,
    precision: PrecisionSetting,
    name: str,
    reporter: Reporter,
    model: Any,  # noqa: ANN401
) -> dict[str, float]:
    """Metrics of a model on held-out documents, by name; see `bits_per_byte`.

    Args:
        held_out: documents of the model's own tokens.
        precision: see `document_nats`.
        name: of the model, for the reporter.
        reporter: receives progress updates.
        model: a causal language model.
    """
    # A document's last token is never an input: no token follows it.
    total = int(np.maximum(np.diff(held_out.document_offsets) - 1, 0).sum())
    done = 0
    with reporter.stage(f"Evaluating {name}", "tokens") as progress:

        def batch_done(num_tokens: int) -> None:
            nonlocal done
            done += num_tokens
            progress(done, total)

        result = bits_per_byte(model, held_out, precision=precision, progress=batch_done)
    return {
        "bits_per_byte": result.bits_per_byte,
        "nats_per_token": result.nats_per_token,
    }


class _Window(NamedTuple):
    """A stretch of a document.

    Attributes:
        document: its index.
        input_ids: int32 [l].
        next_ids: int32 [l], the token after each.
        counted: bool [l], whether what a token predicts is counted.
        lead: whether the first is a BOS put before them; what it predicts is not counted.
    """

    document: int
    input_ids: npt.NDArray[np.int32]
    next_ids: npt.NDArray[np.int32]
    counted: npt.NDArray[np.bool_]
    lead: bool


def _batches(tokens: TokenTable, length: int, batch_tokens: int) -> Iterator[list[_Window]]:
    """All windows with tokens to predict, longest first, so that there is little padding."""
    windows = []
    is_counted = tokens.is_counted
    for document in range(tokens.num_documents):
        ids, ends = tokens.document(document)
        counts = is_counted[tokens.document_offsets[document] :]
        # A model that was trained with BOS may be far off in a window without it.
        has_bos = length > 1 and len(ids) > 0 and ends[0] == 0
        start = 0
        while start < len(ids) - 1:
            lead = has_bos and start > 0
            next_ids = ids[start + 1 : start + length + 1 - lead]
            input_ids = ids[start : start + len(next_ids)]
            counted = counts[start + 1 : start + len(next_ids) + 1]
            start += len(next_ids)
            if lead:
                next_ids = np.concatenate([input_ids[:1], next_ids])
                input_ids = np.concatenate([ids[:1], input_ids])
                counted = np.concatenate([np.zeros(1, np.bool_), counted])
            if counted.any():
                windows.append(_Window(document, input_ids, next_ids, counted, lead))
    windows.sort(key=lambda window: -len(window.input_ids))
    batch: list[_Window] = []
    for window in windows:
        if batch and (len(batch) + 1) * len(batch[0].input_ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _window_nats(
    model: Any,  # noqa: ANN401
    batch: list[_Window],
) -> list[float]:
    """Σ −log p(next token) of each window, summed in float64."""
    input_ids, mask = pad_batch([window.input_ids for window in batch], model.device)
    labels, _ = pad_batch([window.next_ids for window in batch], model.device)
    nats = torch.zeros(input_ids.shape, dtype=torch.float64)
    for start, logits in logit_chunks(model, input_ids, mask):
        positions = slice(start, start + logits.shape[1])
        logprobs = torch.log_softmax(logits.float(), -1)
        at_label = logprobs.gather(-1, labels[:, positions, None]).squeeze(-1)
        nats[:, positions] = -at_label.double().cpu()
    counted, _ = pad_batch([window.counted.astype(np.int32) for window in batch], "cpu")
    kept = nats.where(counted.bool(), torch.zeros_like(nats))
    return [float(total) for total in kept.sum(1)]
