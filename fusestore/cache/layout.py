"""The arrays of a distribution cache, and how `Rows` become their values and back.

The specs follow from the fingerprint alone, so opening a cache reads one file. What a reader
without our code needs stands in the arrays' attributes and in `docs/format.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fusestore.cache.manifest import Fingerprint
from fusestore.cache.rows import Rows
from fusestore.errors import InvalidInputError, NonFiniteError
from fusestore.storage.arrays import ArraySpec
from fusestore.storage.codec import (
    ABSENT,
    POSITIVE_TOLERANCE,
    TAIL_STEP,
    check_rows,
    check_tail,
    counts_of,
    dequantize_logprobs,
    dequantize_tail,
    logprobs_of_counts,
    quantize_logprobs,
    quantize_tail,
)

LOGPROB_COLUMNS_PER_CHUNK = 8
"""The first differences of a row are larger than the last: apart, they compress better."""

_Array = npt.NDArray[Any]


@dataclass(frozen=True)
class CacheArrays:
    """Every array of one cache. The first four have one file per shard."""

    ids: ArraySpec
    logprobs: ArraySpec
    tail: ArraySpec
    label_logprob: ArraySpec
    token_ids: ArraySpec
    end_offsets: ArraySpec
    document_offsets: ArraySpec
    rank_to_id: ArraySpec

    @property
    def per_shard(self) -> tuple[ArraySpec, ...]:
        """The distributions."""
        return (self.ids, self.logprobs, self.tail, self.label_logprob)

    @property
    def fixed(self) -> tuple[ArraySpec, ...]:
        """What is known before the model runs."""
        return (self.token_ids, self.end_offsets, self.document_offsets, self.rank_to_id)


def cache_arrays(fingerprint: Fingerprint) -> CacheArrays:
    """The arrays that a cache of this fingerprint has."""
    tokens, k = fingerprint.num_tokens, fingerprint.top_k
    chunk, shard = fingerprint.rows_per_chunk, fingerprint.rows_per_shard
    step = fingerprint.logprob_step
    columns = min(LOGPROB_COLUMNS_PER_CHUNK, k)
    logprob_dtype, logprob_attributes = _logprob_encoding(fingerprint)

    def per_token(name: str, dtype: str, attributes: dict[str, Any]) -> ArraySpec:
        return ArraySpec(
            name, (tokens,), dtype, (chunk,), (shard,), "pcodec", attributes, ("token",)
        )

    def whole(name: str, dtype: str, length: int, axis: str, content: str) -> ArraySpec:
        return ArraySpec(
            name, (length,), dtype, (length,), None, "pcodec", {"content": content}, (axis,)
        )

    return CacheArrays(
        ids=ArraySpec(
            "ids",
            (tokens, k),
            "uint32",
            (chunk, k),
            (shard, k),
            "pcodec",
            {"encoding": "rank", "decode": "token id = rank_to_id[value]"},
            ("token", "entry"),
        ),
        logprobs=ArraySpec(
            "logprobs",
            (tokens, k),
            logprob_dtype,
            (chunk, columns),
            (shard, -(-k // columns) * columns),
            "pcodec",
            logprob_attributes,
            ("token", "entry"),
        ),
        tail=per_token(
            "tail",
            "float32" if step is None else "uint16",
            {"encoding": "exact", "unit": "nat"}
            if step is None
            else {
                "encoding": "grid",
                "unit": "nat",
                "step": TAIL_STEP,
                "absent": ABSENT,
                "max_error": TAIL_STEP / 2,
                "decode": "tail = -step * value; -inf where value == absent",
            },
        ),
        label_logprob=per_token("label_logprob", "float32", {"encoding": "exact", "unit": "nat"}),
        token_ids=per_token("token_ids", "int32", {"content": "token ids of the documents"}),
        end_offsets=per_token(
            "end_offsets", "int32", {"content": "byte offset in its document where a token ends"}
        ),
        document_offsets=whole(
            "document_offsets",
            "int64",
            fingerprint.num_documents + 1,
            "document",
            "document i is tokens [value[i], value[i + 1])",
        ),
        rank_to_id=whole(
            "rank_to_id",
            "int32",
            fingerprint.model.vocab_size,
            "rank",
            "token id of each frequency rank",
        ),
    )


def _logprob_encoding(fingerprint: Fingerprint) -> tuple[str, dict[str, Any]]:
    """Dtype and attributes of the array `logprobs`."""
    step = fingerprint.logprob_step
    if fingerprint.selection == "sampled":
        return "uint16", {
            "encoding": "counts",
            "unit": "nat",
            "draws": fingerprint.top_k,
            "decode": "logprob = ln(value / draws); -inf where value == 0",
        }
    if step is None:
        return "float32", {"encoding": "exact", "unit": "nat"}
    return "uint16", {
        "encoding": "grid-differences",
        "unit": "nat",
        "step": step,
        "absent": ABSENT,
        "max_error": step / 2,
        "decode": "logprob[j] = -step * sum(value[0..j]); -inf where value == absent",
    }


def encode_rows(
    fingerprint: Fingerprint, rows: Rows, id_to_rank: npt.NDArray[np.uint32]
) -> tuple[_Array, _Array, _Array, _Array]:
    """Values of `ids`, `logprobs`, `tail`, `label_logprob` for these rows.

    Raises:
        InvalidInputError: wrong shapes or dtypes, ids outside the vocabulary, rising rows.
        NonFiniteError: NaN or +inf among log-probabilities or tails.
    """
    _check_shapes(fingerprint, rows)
    outside = (rows.ids < 0) | (rows.ids >= fingerprint.model.vocab_size)
    if outside.any():
        row = int(np.argmax(outside.any(axis=1)))
        raise InvalidInputError(
            f"Row {row} holds token id {rows.ids[row][outside[row]][0]}, outside the model's "
            f"vocabulary of {fingerprint.model.vocab_size}."
        )
    label = rows.label_logprob
    # NaN compares as false: it is allowed here, and only here.
    if np.any(label > POSITIVE_TOLERANCE):
        row = int(np.argmax(label > POSITIVE_TOLERANCE))
        raise NonFiniteError(f"Row {row} has the label log-probability {label[row]}, above 0.")
    # One and the same number where there is no entry: it takes next to no room.
    ranks = np.where(np.isneginf(rows.logprobs), np.uint32(0), id_to_rank[rows.ids])
    step = fingerprint.logprob_step
    if fingerprint.selection == "sampled":
        check_tail(rows.tail)
        return ranks, counts_of(rows.logprobs, fingerprint.top_k), rows.tail, label
    if step is None:
        check_rows(rows.logprobs)
        check_tail(rows.tail)
        return ranks, rows.logprobs, rows.tail, label
    return ranks, quantize_logprobs(rows.logprobs, step), quantize_tail(rows.tail), label


def decode_logprobs(fingerprint: Fingerprint, values: _Array) -> npt.NDArray[np.float32]:
    """float32 [n, k] of the values of `logprobs`."""
    step = fingerprint.logprob_step
    if fingerprint.selection == "sampled":
        return logprobs_of_counts(values, fingerprint.top_k)
    return values if step is None else dequantize_logprobs(values, step)


def decode_tail(fingerprint: Fingerprint, values: _Array) -> npt.NDArray[np.float32]:
    """float32 [n] of the values of `tail`."""
    return values if fingerprint.logprob_step is None else dequantize_tail(values)


def _check_shapes(fingerprint: Fingerprint, rows: Rows) -> None:
    n, k = len(rows), fingerprint.top_k
    for name, values, dtype, shape in (
        ("ids", rows.ids, np.int32, (n, k)),
        ("logprobs", rows.logprobs, np.float32, (n, k)),
        ("tail", rows.tail, np.float32, (n,)),
        ("label_logprob", rows.label_logprob, np.float32, (n,)),
    ):
        if values.shape != shape or values.dtype != dtype:
            raise InvalidInputError(
                f"Rows have {name} of {values.dtype} {values.shape}; "
                f"expected {np.dtype(dtype)} {shape}."
            )
