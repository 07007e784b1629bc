"""llama.cpp's file of `llama-perplexity --kl-divergence-base`: whole rows, in 16 bits a token.

    "_logits_"                                      8 bytes
    n_ctx, n_vocab, n_chunk                         int32 each, little-endian
    tokens                                          int32 [n_chunk · n_ctx]
    rows, for each chunk (n_ctx − 1 − n_ctx // 2)   uint16 [2 · ((n_vocab + 1) // 2) + 4] each:
                                                    float32 scale, float32 min, n_vocab uint16

log p = scale · value + min. Rows are those of the second half of each chunk, and chunks are read by
themselves: a chunk is a document. Where the model adds BOS, it stood in place of the first token. A
log-probability more than 16 nats below the largest logit is stored as 0: of such a label only a
bound is known.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import numpy as np

from fusestore.capture.settings import wants_bos
from fusestore.errors import InvalidInputError
from fusestore.interop.foreign import (
    ForeignDocument,
    ForeignFile,
    ForeignFormat,
    ReadJob,
    checked_ids,
    labels_of,
    rows_of_logprobs,
)

MAGIC = b"_logits_"
DEFAULT_TOP_K = 64

_HEADER = struct.Struct("<8s3i")


class LlamaCppBase(ForeignFormat):
    """See the module."""

    suffixes = (".kld", ".bin", ".dat")

    def documents(self, files: Sequence[ForeignFile], job: ReadJob) -> Iterator[ForeignDocument]:
        """One a chunk."""
        for file in files:
            yield from _chunks(file, job)


def _chunks(file: ForeignFile, job: ReadJob) -> Iterator[ForeignDocument]:
    size = file.path.stat().st_size
    with file.path.open("rb") as data:
        header = data.read(_HEADER.size)
    if len(header) < _HEADER.size or header[: len(MAGIC)] != MAGIC:
        raise InvalidInputError(
            f"{file.name} begins with {header[: len(MAGIC)]!r}, not with {MAGIC!r}: it is no file "
            "of llama-perplexity --kl-divergence-base."
        )
    _, context, vocab_size, chunks = _HEADER.unpack(header)
    if min(context, vocab_size, chunks) < 1:
        raise InvalidInputError(
            f"{file.name} has n_ctx {context}, n_vocab {vocab_size}, n_chunk {chunks} in its "
            "header, which must be positive: it is damaged."
        )
    first = context // 2
    num_rows, width = context - 1 - first, 2 * ((vocab_size + 1) // 2) + 4
    expected = _HEADER.size + 4 * chunks * context + 2 * chunks * num_rows * width
    if size != expected:
        raise InvalidInputError(
            f"{file.name} has {size:,} bytes, and {chunks} chunks of {context} tokens with rows of "
            f"{vocab_size:,} ids take {expected:,}. It is truncated: copy it again, or let "
            "llama-perplexity finish."
        )
    if vocab_size > job.vocab_size:
        raise InvalidInputError(
            f"{file.name} has rows over {vocab_size:,} ids, and the vocabulary has "
            f"{job.vocab_size:,}. Name the model that made them with --model."
        )
    if num_rows < 1:
        raise InvalidInputError(f"{file.name} has chunks of {context} tokens, and so no rows.")
    tokens = np.memmap(file.path, "<i4", "r", _HEADER.size, (chunks, context))
    rows = np.memmap(
        file.path, "<u2", "r", _HEADER.size + 4 * chunks * context, (chunks, num_rows, width)
    )
    tokenizer = job.tokenizer
    has_bos = wants_bos(job.settings.bos, tokenizer.adds_bos, tokenizer.bos_id is not None)
    top_k = min(job.settings.top_k or DEFAULT_TOP_K, vocab_size)
    for chunk in range(chunks):
        place = f"Chunk {chunk} of {file.name}"
        token_ids = tokens[chunk].astype(np.int64)
        checked_ids(place, "token id", token_ids, vocab_size)
        positions = first + np.arange(num_rows)
        labels = labels_of(token_ids, positions)
        if has_bos:
            token_ids[0] = tokenizer.bos_id
        data = rows[chunk]
        scale, low = np.ascontiguousarray(data[:, :4]).view("<f4").astype(np.float64).T
        if not np.all(np.isfinite(scale) & (scale >= 0) & np.isfinite(low)):
            raise InvalidInputError(f"{place} has a scale or minimum that is no number.")
        values = data[:, 4 : 4 + vocab_size]
        ids = np.argpartition(values, vocab_size - top_k, axis=1)[:, vocab_size - top_k :]
        best = np.take_along_axis(values, ids, axis=1).astype(np.float64)
        label = values[np.arange(num_rows), labels].astype(np.float64)
        # 0 stands for all that lies as low or lower, unless all are equal.
        bound = (label == 0) & (scale > 0)
        made = rows_of_logprobs(
            place,
            ids.astype(np.int64),
            best * scale[:, None] + low[:, None],
            labels,
            job,
            label_logprob=np.where(bound, np.nan, label * scale + low),
        )
        yield ForeignDocument(place, token_ids, positions, made, whole_text=False)
